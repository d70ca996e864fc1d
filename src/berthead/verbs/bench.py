"""Speed of a fitted function on this machine, where the time goes, and whether lower precisions agree with fp32."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Unpack

import numpy as np
import torch

from berthead.engine import machine
from berthead.engine.cpu import find_device
from berthead.errors import UsageError
from berthead.fitted import Fitted, load
from berthead.function.artifact import Artifact
from berthead.model.config import EncoderConfig
from berthead.model.heads import over_arrays
from berthead.model.tensors import TensorPack
from berthead.model.units import packs, unit_logits
from berthead.options import ROW_OPTIONS, PredictOptions
from berthead.options.keywords import RowKeywords
from berthead.options.python_words import notes_in_python
from berthead.options.signatures import takes_options
from berthead.predict import precision as gate
from berthead.predict.answers import Computed, answered
from berthead.predict.predictor import Predictor
from berthead.predict.reading import length_notes
from berthead.predict.rows import labelled_rows
from berthead.progress import Progress
from berthead.records import Example, FloatArray, Pack
from berthead.tasks import Batch
from berthead.text.bounds import check_pack
from berthead.text.layout import Layout
from berthead.text.windows import EncodedExample

# Rows whose answers are compared, and tokens that are timed.
MOST_ROWS = 2048
MOST_TOKENS = 16384
GPU_TOKENS = 16 * MOST_TOKENS  # several packs for each of several GPUs
ROUNDS = 3
PEAK_SECONDS = 0.05
STAGES = ("reading", "tokenising", "packing", "encoder", "head", "decoding")


@dataclass(frozen=True, slots=True)
class PrecisionSpeed:
    """Speed of a function in one precision.

    Args:
        precision: `fp32`, `bf16` or `int8`.
        kernels: what computes the encoder: `torch`, `oneDNN`, the name of our own kernels, or `cuda` with the
            attention kernel.
        rows_per_second: from examples in memory to answers, everything included; the median of several rounds.
        tokens_per_second: the same in tokens.
        gain: times as fast as float32.
        operations_per_second: of the encoder's matrix products during their computation: linear layers, attention's
            scores and weighted sums; an addition and a multiplication are two.
        peak: measured peak operations per second of the machine, or of one GPU, in this precision.
        share_of_peak: operations_per_second / peak.
        stages: share of the time of each of `STAGES`, run one after another, in the fastest round; they sum to 1.
    """

    precision: str
    kernels: str
    rows_per_second: float
    tokens_per_second: float
    gain: float
    operations_per_second: float
    peak: float
    share_of_peak: float
    stages: dict[str, float]


@dataclass(frozen=True, slots=True)
class Bench:
    """What `bench` measured, in plain Python types.

    Args:
        cpu: the processor.
        gpus: the GPUs that compute, such as `2 x NVIDIA H100`; empty: none.
        threads: number of threads.
        rows: number of timed rows.
        tokens: tokens of these rows, special tokens and windows included.
        of: `given` rows, or `golden`: the golden examples, repeated.
        padding: share of the computed tokens that belong to no row.
        runs: one for each precision, float32 first.
        gate: how well lower precisions agree, as `run.gate` in berthead.json: on the given rows, or as measured before
            on the most rows; None: never measured.
        kept: whether the gate's result is kept on this machine for `auto`.
        auto: the precision that `auto` chooses, and why.
        skipped: rows left out.
        notes: what to know about the rows.
    """

    cpu: str
    gpus: str
    threads: int
    rows: int
    tokens: int
    of: str
    padding: float
    runs: list[PrecisionSpeed]
    gate: dict[str, Any] | None
    kept: bool
    auto: str
    skipped: int = 0
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The record as a JSON-serialisable dict."""
        return asdict(self)


@takes_options(PredictOptions, ROW_OPTIONS)
def bench(model: Fitted | str | Path, data: Any = None, *, quiet: bool = True, **options: Unpack[RowKeywords]) -> Bench:
    """Measure a fitted function on this machine, in every precision that the machine supports.

    Args:
        model: the function, or its folder.
        data: a file, a data frame, or a list of dicts; with targets also the metric is compared; None: the
            golden examples, repeated, without comparing answers.
        quiet: show no progress.
        {options}

    Returns:
        The measurements. Speeds, and what was measured on `data`, are kept in the user's cache folder, where `auto`
        reads them.

    Raises:
        UsageError: there is no data, and the model holds no golden examples.
        DataError: rows that cannot be used.
        ModelError: the folder cannot be loaded.

    Example:
        >>> found = bench("tickets-model", "test.csv")  # doctest: +SKIP
        >>> found.runs[0].rows_per_second, found.padding  # doctest: +SKIP
        (812.4, 0.0)
    """
    fitted = model if isinstance(model, Fitted) else load(model)
    artifact = fitted.artifact
    device = find_device(fitted.options.device)
    most = MOST_TOKENS if device.type == "cpu" else GPU_TOKENS
    rows = _golden(artifact, most) if data is None else _given(artifact, data, **options)
    names = ["fp32", *gate.candidates(artifact.model, device)]
    predictors = {name: Predictor(artifact, name, fitted.options.token_budget, device) for name in names}
    key = machine.key_of(artifact, device)
    kept = False
    with Progress("bench", len(names) * (ROUNDS + 1), "passes", quiet) as progress:
        if data is not None:
            progress.say(f"comparing answers to {len(rows.batch.inputs):,} rows in {', '.join(names)}")
            report = gate.measure(artifact, rows.batch, rows.targets, "given", predictors=predictors, device=device)
            kept = machine.keep(key, {"receipt": report.to_json()})
        timed = _timed(rows, most)
        progress.say(f"timing {len(timed.examples):,} rows in {', '.join(names)}")
        runs = _runs(artifact, predictors, timed, rows.reading_seconds * len(timed.examples), progress)
    # Of a whole job, and longer than `auto` itself would measure.
    machine.keep(key, {machine.speed_name(): {one.precision: one.tokens_per_second for one in runs}})
    needed = sum(len(row.ids) for row in Layout(timed.inputs).rows)
    computed = sum(len(one.ids) for one in packs(Layout(timed.inputs).rows, predictors["fp32"].token_budget))
    reports = [report] if data is not None else gate.reports_of(artifact, machine.measured(key))
    return Bench(
        cpu=machine.cpu_model(), gpus=machine.gpus() if device.type == "cuda" else "", threads=torch.get_num_threads(),
        rows=len(timed.examples), tokens=needed, of="given" if data is not None else "golden",
        padding=1 - needed / computed, runs=runs, gate=reports[0].to_json() if reports else None, kept=kept,
        auto=str(gate.choose({"": artifact}, device)), skipped=len(rows.bad), notes=notes_in_python(rows.notes),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows to measure on, and how long reading one took."""

    batch: Batch
    targets: np.ndarray | None
    reading_seconds: float
    bad: list[str]
    notes: list[str]


def _given(artifact: Artifact, data: Any, **options: Unpack[RowKeywords]) -> _Rows:
    begun = time.perf_counter()
    read = labelled_rows(data, [artifact], needed=False, **options)
    seconds = (time.perf_counter() - begun) / len(read.examples)
    chosen = _evenly(len(read.examples), MOST_ROWS)
    examples = [read.examples[row] for row in chosen]
    inputs = artifact.task.encode(artifact.tokenizer, examples, artifact.policy)
    sound = [(example, one) for example, one in zip(examples, inputs, strict=True) if not one.error]
    examples, inputs = [example for example, _ in sound], [one for _, one in sound]
    targets = artifact.task.targets([one.target for one in examples], inputs) if read.labelled else None
    notes = read.unscored
    if len(chosen) < len(read.examples):
        notes.append(f"{len(chosen):,} of {len(read.examples):,} rows, evenly spread, are compared")
    notes += read.notes + length_notes(inputs, artifact.policy) + read.left_out
    return _Rows(Batch(examples, inputs), targets, seconds, read.bad, notes)


def _golden(artifact: Artifact, most: int) -> _Rows:
    if not artifact.golden:
        raise UsageError("bench", "the model holds no golden examples", "rows to measure on", "Give a file as DATA.")
    batch = gate.golden_batch(artifact)
    tokens = sum(len(row.ids) for one in batch.inputs for row in one.rows)
    times = max(1, most // tokens)
    return _Rows(Batch([*batch.examples] * times, [*batch.inputs] * times), None, 0.0, [], [])


def _timed(rows: _Rows, most: int) -> Batch:
    """Evenly spread rows with about the given number of tokens."""
    tokens = sum(len(row.ids) for one in rows.batch.inputs for row in one.rows)
    count = len(rows.batch.inputs)
    chosen = _evenly(count, max(1, count * most // tokens))
    return Batch([rows.batch.examples[row] for row in chosen], [rows.batch.inputs[row] for row in chosen])


def _evenly(rows: int, most: int) -> list[int]:
    return [int(row) for row in np.linspace(0, rows - 1, min(rows, most))]


def _runs(
    artifact: Artifact, predictors: Mapping[str, Predictor], rows: Batch, reading: float, progress: Progress
) -> list[PrecisionSpeed]:
    """Time the precisions in interleaved rounds, so that a change of the machine's speed affects all of them."""
    tokens = sum(len(row.ids) for one in rows.inputs for row in one.rows)
    work = operations(artifact.model.encoder.config, [len(row.ids) for one in rows.inputs for row in one.rows])
    times: dict[str, list[float]] = {name: [] for name in predictors}
    for number in range(ROUNDS + 1):
        for name, predictor in predictors.items():
            begun = time.perf_counter()
            for _ in predictor.predict(rows.examples):
                pass
            if number:  # the first takes memory and starts threads
                times[name].append(time.perf_counter() - begun)
            progress.advance(1)
    seconds = {name: median(some) for name, some in times.items()}
    runs = []
    for name, predictor in predictors.items():
        # The least disturbed of some rounds: of both, or one would be a share of something else.
        best = min(
            (_stages(artifact, predictor, rows.examples) for _ in range(ROUNDS)), key=lambda one: sum(one.values())
        )
        peak = max(machine.peak(artifact.model, name, PEAK_SECONDS, predictor.device) for _ in range(ROUNDS))
        stages, rate = {"reading": reading} | best, work / best["encoder"]
        shares = {stage: stages[stage] / sum(stages.values()) for stage in STAGES}
        runs.append(PrecisionSpeed(
            name, predictor.engine.kernels, len(rows.examples) / seconds[name], tokens / seconds[name],
            seconds["fp32"] / seconds[name], rate, peak, rate / peak, shares,
        ))  # fmt: skip
    return runs


def _stages(artifact: Artifact, predictor: Predictor, examples: Sequence[Example]) -> dict[str, float]:
    """Seconds of each stage except reading, run one after another, without the thread that tokenises ahead."""
    model, device = predictor.engine.model, predictor.device
    seconds = dict.fromkeys(STAGES[1:], 0.0)

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        machine.finish(device)
        seconds[stage] += time.perf_counter() - begun

    def compute(one: Pack) -> FloatArray:
        check_pack(one, model.encoder.config)
        with torch.inference_mode():
            tensors = TensorPack.from_pack(one, device)
            with timed("encoder"):
                vectors = model.encoder(tensors)
            with timed("head"):
                logits: FloatArray = model.head(vectors, tensors).float().cpu().numpy()
        return logits

    with timed("tokenising"):
        inputs: list[EncodedExample] = artifact.task.encode(artifact.tokenizer, examples, artifact.policy)
    with timed("packing"):
        layout = Layout(inputs)
        combine = over_arrays(artifact.model.head)
        found = unit_logits(layout, compute, combine, artifact.task.outputs, predictor.token_budget)
    seconds["packing"] -= seconds["encoder"] + seconds["head"]
    with timed("decoding"):
        for _ in answered(artifact, examples, inputs, Computed(*found, layout)):
            pass
    return seconds


def operations(config: EncoderConfig, lengths: Sequence[int]) -> float:
    """Operations of an encoder's matrix products; an addition and a multiplication are two.

    Args:
        config: the encoder's.
        lengths: tokens of each row.

    Returns:
        The operations of the linear layers and of attention's scores and weighted sums.

    Example:
        >>> sizes = EncoderConfig(vocabulary=10, width=8, layers=1, heads=2, inner=16, positions=6, segments=2)
        >>> operations(sizes, [1])
        1056.0
    """
    rows, width = np.asarray(lengths, dtype=np.float64), config.width
    wide = config.inner * (2 if config.gated else 1)
    linear = 2.0 * width * (4 * width + wide + config.inner) * rows.sum()
    # A token of a local layer sees so many others each way.
    reach = [config.local[layer] if config.local else 0 for layer in range(config.layers)]
    attended = sum(4.0 * width * (rows * np.minimum(rows, 2 * one + 1 if one else np.inf)).sum() for one in reach)
    return float(config.layers * linear + attended)
