"""The gate: measures whether lower precisions agree with float32, and chooses a precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from berthead.engine import machine
from berthead.engine.cpu import CPU, has_fast_bf16
from berthead.engine.prepacked import BF16_SUPPORTED
from berthead.errors import GateError
from berthead.function.artifact import Artifact
from berthead.function.checks import golden_input
from berthead.function.golden import replay
from berthead.function.precision_report import LEAST_AGREEMENT, MOST_LOST_POINTS, PrecisionReport, Verdict
from berthead.kernels import native
from berthead.model.model import Model
from berthead.predict.answers import Computed, decoded
from berthead.predict.predictor import Predictor
from berthead.records import FloatArray
from berthead.tasks import Batch, Task
from berthead.text.layout import Layout
from berthead.text.windows import EncodedExample

# Held-out rows that a fit measures.
MOST_ROWS = 512
# Numbers this close, in standard deviations of the targets, are the same answer.
NEAR = 0.1
# A lower precision is chosen if it is this many times as fast as float32.
LEAST_GAIN = 1.05
# On the golden examples a precision may drift this many times as far as in the report, or this far.
GOLDEN_TIMES = 2.0
GOLDEN_DRIFT = 0.02
HOW_TO = "berthead bench MODEL DATA measures them on your rows, and keeps the result for auto"
ON_GPU = HOW_TO.replace("DATA", "DATA --device cuda")


def candidates(model: Model, device: torch.device = CPU) -> list[str]:
    """The precisions below float32 that this machine supports without emulation."""
    known = BF16_SUPPORTED.why_not(model.encoder) is None
    if device.type == "cuda":
        return ["bf16"] if known and has_fast_bf16(device) else []
    fast = {
        "bf16": native.computes(model.encoder, "bf16") or (known and has_fast_bf16()),
        "int8": native.computes(model.encoder, "int8"),
    }
    return [precision for precision, computed in fast.items() if computed]


def computed_by(model: Model, precision: str, device: torch.device = CPU) -> str:
    """What computes a model here, for the report: `kernels` (ours), `torch` or `cuda`."""
    if device.type == "cuda":
        return "cuda"
    return "kernels" if native.computes(model.encoder, precision) else "torch"


class Computer(Protocol):
    """What computes logits in a precision."""

    def compute(self, inputs: Sequence[EncodedExample]) -> Computed:
        """Logits of encoded examples, in order."""
        ...


def measure(
    artifact: Artifact, batch: Batch, targets: np.ndarray | None, of: str, exact: FloatArray | None = None,
    predictors: Mapping[str, Computer] | None = None, device: torch.device = CPU,
) -> PrecisionReport:  # fmt: skip
    """Compare the answers of each lower precision with those of float32.

    Args:
        artifact: the fitted function.
        batch: examples without errors, encoded, with their tokens.
        targets: as the task reads them, a row or an array for each example; None: unknown.
        of: which rows these are: `held-out`, `given` or `golden`.
        exact: their float32 logits, [units, outputs]; None: compute them.
        predictors: predictors by precision; missing ones are made here.
        device: where it is computed.

    Returns:
        The report; the same processor and rows give the same report.
    """
    task = artifact.task
    prepared: Mapping[str, Computer] = predictors or {}
    if exact is None:
        exact = (prepared.get("fp32") or Predictor(artifact, device=device)).compute(batch.inputs).values
    scores = None if targets is None else task.evaluate(exact, targets, batch)
    metric = next((name for name in task.metrics if scores and name in scores), None)
    verdicts = {}
    for precision in candidates(artifact.model, device):
        predictor = prepared.get(precision) or Predictor(artifact, precision, device=device)
        try:
            values = predictor.compute(batch.inputs).values
        except RuntimeError:
            if artifact.own_head is None:
                raise
            continue  # a head of another package may not support this precision: that does not stop a fit
        points = None
        if metric is not None and scores is not None:
            found = task.evaluate(values, targets, batch)  # type: ignore[arg-type]
            points = round(_points(task.metrics[metric], float(scores[metric]), float(found[metric])), 6)
        verdict = _verdict(task, batch, exact, values, points)
        verdicts[precision] = replace(verdict, by=computed_by(artifact.model, precision, device))
    value = None if metric is None or scores is None else round(float(scores[metric]), 6)
    return PrecisionReport(len(batch.inputs), of, metric, value, verdicts)


def _points(better: int, exact: float, found: float) -> float:
    """Change of a metric in points of 100, negative if worse; relative to its size if lower is better."""
    size = 1.0 if better > 0 else max(abs(exact), 1e-9)
    return 100 * better * (found - exact) / size


def _verdict(task: Task, batch: Batch, exact: FloatArray, values: FloatArray, points: float | None) -> Verdict:
    unit, same, drifts = task.number_unit, 0, []
    for one, other in zip(decoded(task, exact, batch), decoded(task, values, batch), strict=True):
        distance = task.distance(one, other)
        if distance is not None:
            drifts.append(distance / unit)
            same += drifts[-1] <= NEAR
            continue
        same += task.identity(one) == task.identity(other)
        shares = task.shares(one), task.shares(other)
        drifts.append(max((abs(shares[0].get(key, 0.0) - shares[1].get(key, 0.0)) for key in shares[0] | shares[1]),
                          default=0.0))  # fmt: skip
    rows = max(len(drifts), 1)
    sizes = round(same / rows, 6), round(float(max(drifts, default=0.0)), 6), round(float(sum(drifts)) / rows, 6)
    return Verdict(*sizes, points)


@dataclass(frozen=True, slots=True)
class PrecisionChoice:
    """The precision that `auto` chose.

    Args:
        precision: `fp32`, `bf16` or `int8`.
        reason: why, with the figures, in one line.
    """

    precision: str
    reason: str

    def __str__(self) -> str:
        return f"precision {self.precision}: {self.reason}"


def choose(functions: Mapping[str, Artifact], device: torch.device = CPU) -> PrecisionChoice:
    """The fastest precision that passed the report of every function; float32 always passes.

    Args:
        functions: one, or several on one encoder, by name.
        device: where they are computed.

    Returns:
        The choice. Speed is measured once on this machine, and kept in the user's cache folder.
    """
    first = next(iter(functions.values()))
    possible, how_to = candidates(first.model, device), ON_GPU if device.type == "cuda" else HOW_TO
    if not possible:
        return PrecisionChoice("fp32", f"no lower precision is supported here: {_nothing_lower(first.model, device)}")
    keys = {name: machine.key_of(artifact, device) for name, artifact in functions.items()}
    known = {name: reports_of(artifact, machine.measured(keys[name])) for name, artifact in functions.items()}
    unknown = [name for name, reports in known.items() if not reports]
    if unknown:
        return PrecisionChoice("fp32", f"{_whose(unknown[0])}lower precisions were not measured at the fit; {how_to}")
    by = {one: computed_by(first.model, one, device) for one in possible}
    told = {one: {name: _about(reports, one, by[one]) for name, reports in known.items()} for one in possible}
    why_not = {one: _refused(told[one], one, how_to) for one in possible}
    passed = [one for one in possible if not why_not[one]]
    if not passed:
        return PrecisionChoice("fp32", "; ".join(why_not.values()))
    speed: dict[str, float] = {}
    for name, artifact in functions.items():
        try:
            own, golden = _here(artifact, keys[name], device)
        except GateError:
            return PrecisionChoice(
                "fp32", f"{_whose(name)}the golden examples give other logits here; see berthead verify"
            )
        speed = speed or own
        for one in passed:
            why_not[one] = why_not[one] or _drifted(told[one][name], golden, one)
    return _fastest(speed, why_not, told)


def _fastest(
    speed: Mapping[str, float], why_not: Mapping[str, str], told: Mapping[str, Mapping[str, PrecisionReport | None]]
) -> PrecisionChoice:
    """The choice among precisions that passed, by tokens a second."""
    best, why = "fp32", [line for line in why_not.values() if line]
    for one in (one for one, line in why_not.items() if not line):
        gain = speed[one] / speed["fp32"]
        if gain < LEAST_GAIN:
            why.append(f"{one} is not faster here: {gain:.2f} x fp32")
        elif speed[one] > speed[best]:
            best = one
    if best != "fp32":
        reports = [report for report in told[best].values() if report is not None]
        worst = min(reports, key=lambda report: report.verdicts[best].agreement)
        why.insert(0, f"{speed[best] / speed['fp32']:.2f} x fp32 here; {worst.says(best)}")
    return PrecisionChoice(best, "; ".join(why))


def _whose(name: str) -> str:
    """The name of one of several functions, as a prefix."""
    return f"{name}: " if name else ""


def reports_of(artifact: Artifact, kept: Mapping[str, Any]) -> list[PrecisionReport]:
    """The reports of a function: from this machine on the user's own rows, and from the fit.

    Args:
        artifact: the function.
        kept: measurements of this machine.

    Returns:
        The reports, the one with the most rows first; empty if nothing was measured.
    """
    found = []
    for written in (kept.get("receipt"), artifact.run.get("gate")):
        try:
            found += [] if written is None else [PrecisionReport.from_json(written)]
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # a cache file that is not ours
    return sorted(found, key=lambda report: -report.rows)


def _about(reports: Sequence[PrecisionReport], precision: str, by: str) -> PrecisionReport | None:
    """The report with the most rows for a precision as computed here."""
    known = (one for one in reports if precision in one.verdicts and one.verdicts[precision].by == by)
    return next(known, None)


def _refused(told: Mapping[str, PrecisionReport | None], precision: str, how_to: str) -> str:
    """Why a precision is refused, by the report of each function; empty: it passed for all."""
    for name, report in told.items():
        if report is None:
            return f"{_whose(name)}{precision} was not measured with what computes it here; {how_to}"
        if report.passes(precision) is None:
            return f"{_whose(name)}{precision} {report.verdict(precision)}; {how_to}"
        if not report.passes(precision):
            allowed = f"{100 * LEAST_AGREEMENT:.1f} %, -{MOST_LOST_POINTS} points"
            return f"{_whose(name)}{precision} is refused: {report.says(precision)} (expected {allowed})"
    return ""


def _drifted(report: PrecisionReport | None, golden: PrecisionReport, precision: str) -> str:
    """Why a precision is refused, by its logits for the golden examples on this machine."""
    if report is None or precision not in golden.verdicts:
        return f"{precision} was not measured on the golden examples"
    allowed = max(GOLDEN_TIMES * report.verdicts[precision].largest_drift, GOLDEN_DRIFT)
    drift = golden.verdicts[precision].largest_drift
    if drift <= allowed:
        return ""
    return f"{precision} is refused: golden examples drift by {drift:.2g} here (expected {allowed:.2g})"


def _nothing_lower(model: Model, device: torch.device) -> str:
    if part := BF16_SUPPORTED.why_not(model.encoder):
        return f"{part}, which is not supported in lower precisions"
    if device.type == "cuda":
        return "this GPU has no bfloat16 in hardware"
    return f"no bfloat16 in hardware, and {native.why_not(model.encoder)}"


def _here(artifact: Artifact, key: Mapping[str, Any], device: torch.device) -> tuple[dict[str, float], PrecisionReport]:
    """Tokens a second and logits of the golden examples on this machine: measured once, and kept.

    Raises:
        GateError: the float32 logits of the golden examples differ on this machine.
    """
    kept, names = machine.measured(key), ["fp32", *candidates(artifact.model, device)]
    speed, golden = _kept_speed(kept, names), _kept_golden(kept)
    if speed and golden:
        return speed, golden
    predictors = {name: Predictor(artifact, name, device=device) for name in names}
    replay(artifact, predictors["fp32"].logits)
    batch = golden_batch(artifact)
    golden = measure(artifact, batch, None, "golden", predictors=predictors, device=device)
    if not speed:
        engines = {name: one.engine for name, one in predictors.items()}
        speed = machine.speeds(engines, machine.typical_pack(Layout(batch.inputs).rows))
    machine.keep(key, {machine.speed_name(): speed, "golden": golden.to_json()})
    return speed, golden


def _kept_speed(kept: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
    try:
        speed = {name: float(kept[machine.speed_name()][name]) for name in names}
    except (ValueError, KeyError, TypeError):
        return {}  # nothing was saved, or the file is not ours
    return speed if all(one > 0 for one in speed.values()) else {}


def _kept_golden(kept: Mapping[str, Any]) -> PrecisionReport | None:
    try:
        return PrecisionReport.from_json(kept["golden"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def golden_batch(artifact: Artifact) -> Batch:
    """The golden examples, encoded."""
    examples = [golden_input(one) for one in artifact.golden]
    return Batch(examples, artifact.task.encode(artifact.tokenizer, examples, artifact.policy))
