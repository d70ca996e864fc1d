"""Soups: the mean of the parameters of several fitted functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from berthead.errors import ModelError, UsageError, shown
from berthead.fitted import Fitted, load
from berthead.function.artifact import Artifact, with_golden, with_parameters
from berthead.function.checks import golden_input
from berthead.function.head_record import head_record
from berthead.function.parameters import Parameters
from berthead.options import ROW_OPTIONS, PredictOptions
from berthead.options.keywords import RowKeywords
from berthead.options.python_words import notes_in_python
from berthead.options.signatures import takes_options
from berthead.predict.predictor import Predictor
from berthead.predict.rows import labelled_rows
from berthead.records import Example
from berthead.tasks import Batch, choose_metric
from berthead.train.identity import data_sha256


@dataclass(frozen=True, slots=True)
class _Member:
    """A candidate for the soup.

    Args:
        name: its folder as the user typed it.
        artifact: the function.
        theta: its encoder's parameters.
        omega: its head's parameters.
    """

    name: str
    artifact: Artifact
    theta: Parameters
    omega: Parameters

    @classmethod
    def of(cls, given: Fitted | str | Path, number: int, base: str | Path | None) -> _Member:
        fitted = given if isinstance(given, Fitted) else load(given, base=base)
        name = f"member {number}" if isinstance(given, Fitted) else str(given)
        return cls(name, fitted.artifact, fitted.theta, fitted.omega)


@dataclass(frozen=True, slots=True)
class _Scored:
    """A function with its scores on the held-out rows; its thresholds or temperature are tuned unless that is worse.

    Args:
        artifact: the function.
        metrics: the task's.
        score: the metric that decides; higher is better.
    """

    artifact: Artifact
    metrics: dict[str, Any]
    score: float


@takes_options(PredictOptions, ROW_OPTIONS)
def soup(
    members: Sequence[Fitted | str | Path],
    data: Any = None,
    *,
    uniform: bool = False,
    metric: str | None = None,
    base: str | Path | None = None,
    **options: Unpack[RowKeywords],
) -> Fitted:
    """The mean of fitted functions, of theta and of omega; as fast as one of them.

    Greedy: members are sorted by their scores on held-out rows, and each is added unless it makes the mean worse, so
    the soup is never worse there than the best member. Temperature and thresholds are tuned on these rows, as a fit
    does, unless that makes the deciding metric worse.

    Args:
        members: two or more functions or their folders, of one architecture, task, tokenizer and pre-trained encoder.
        data: held-out rows with targets: a file, a data frame, or a list of dicts; None: with `uniform` alone.
        uniform: average all members, whether it helps or not; without data the first one's thresholds are kept.
        metric: the deciding metric; None: the task's own.
        base: the encoder of adapter folders; None: where it was at the fits, or beside the folders.
        {options}

    Returns:
        The function; `run["soup"]` in its record has the members' hashes and scores, and for the first one chosen what
        it was fitted on.

    Raises:
        UsageError: too few members, no data, or no such metric.
        ModelError: a folder cannot be loaded, or two members cannot be averaged.
        DataError: rows that cannot be used.

    Example:
        >>> mean = soup(["model-0", "model-1", "model-2"], "valid.csv")  # doctest: +SKIP
        >>> mean.save("soup")  # doctest: +SKIP

    Source: Wortsman et al. 2022, "Model soups: averaging weights of multiple fine-tuned models improves accuracy
    without increasing inference time".
    """
    if isinstance(members, str | Path) or len(members) < 2:
        raise UsageError("soup", "got fewer than two members", "two model folders or more")
    if data is None and not uniform:
        fix = "Give --valid DATA, or --uniform to average all members without data."
        raise UsageError(
            "--valid", "is not given", "held-out rows with targets, which decide which members are averaged", fix
        )
    if data is None and metric is not None:
        raise UsageError("--metric", "needs held-out rows", "--valid DATA")
    given = [_Member.of(one, number, base) for number, one in enumerate(members, 1)]
    for other in given[1:]:
        _check_alike(given[0], other)
    given = [_in_unit_of(given[0], one) for one in given]
    if data is None:
        return Fitted(_recorded(_mean(given), given, given, {}))
    name = choose_metric(type(given[0].artifact.task), metric)
    read = labelled_rows(data, [given[0].artifact], **options)
    scores = [_scored(one.artifact, read.examples, name) for one in given]
    by_score = sorted(range(len(given)), key=lambda place: -scores[place].score)
    if uniform:
        chosen, found = list(range(len(given))), _scored(_mean(given), read.examples, name)
    else:
        chosen, found = _greedy(given, scores, by_score, read.examples, name)
    metrics = {key: value for key, value in found.metrics.items() if key != "warnings"}
    told = {
        "recipe": "uniform" if uniform else "greedy",
        "metric": name,
        "data_sha256": data_sha256(read.examples),
        "scores": [one.metrics[name] for one in scores],
        "metrics": metrics,
        "rows": len(read.examples),
    }
    made = Fitted(_recorded(found.artifact, given, [given[place] for place in chosen], told))
    made.warnings = notes_in_python(read.notes + read.left_out + found.metrics["warnings"])
    return made


def _greedy(
    given: Sequence[_Member], scores: Sequence[_Scored], by_score: Sequence[int], rows: list[Example], metric: str
) -> tuple[list[int], _Scored]:
    chosen, best = [by_score[0]], scores[by_score[0]]
    for place in by_score[1:]:
        tried = _scored(_mean([given[one] for one in [*chosen, place]]), rows, metric)
        if tried.score >= best.score:
            chosen, best = [*chosen, place], tried
    return chosen, best


def _mean(members: Sequence[_Member]) -> Artifact:
    """The first member with the mean of all parameters and merged thresholds."""
    first = members[0].artifact
    theta, omega = ([one.theta for one in members], [one.omega for one in members])
    artifact = with_parameters(first, Parameters.mean(theta), Parameters.mean(omega))
    tasks = [one.artifact.task for one in members]
    adapts = {one.artifact.adapt for one in members}
    adapt = first.adapt if len(adapts) == 1 else "full"
    return replace(artifact, task=artifact.task.merged(tasks), adapt=adapt)


def _in_unit_of(first: _Member, member: _Member) -> _Member:
    """The member with its loss in the first one's unit, so that losses of number tasks can be compared."""
    same = member.artifact.task.in_unit_of(first.artifact.task)
    return replace(member, artifact=replace(member.artifact, task=same))


def _scored(artifact: Artifact, rows: list[Example], metric: str) -> _Scored:
    task = artifact.task
    values, inputs = Predictor(artifact).computed(rows)
    targets, batch = task.targets([row.target for row in rows], inputs), Batch(rows, inputs)
    found = []
    for one in (task.tuned(values, targets, batch), task):
        metrics = one.evaluate(values, targets, batch)
        score = float(metrics[metric]) * task.metrics[metric]
        found.append(_Scored(replace(artifact, task=one), metrics, score))
    # The first of equals: tuned.
    return max(found, key=lambda one: one.score)


def _recorded(
    artifact: Artifact, given: Sequence[_Member], chosen: Sequence[_Member], told: dict[str, Any]
) -> Artifact:
    """The artifact with a `run` that records its members."""
    kept = {name: chosen[0].artifact.run[name] for name in ("rows", "data_sha256", "seed", "versions")}
    members = [
        {
            # A record holds no place of one machine.
            "model": Path(one.name).name,
            "theta_sha256": one.theta.sha256,
            "omega_sha256": one.omega.sha256,
            "data_sha256": one.artifact.run["data_sha256"],
            "seed": one.artifact.run["seed"],
            "score": told["scores"][number] if told else None,
            "chosen": any(one is other for other in chosen),
        }
        for number, one in enumerate(given)
    ]
    made = {name: told.get(name) for name in ("metric", "data_sha256")}
    run = kept | {"soup": {"recipe": told.get("recipe", "uniform"), **made, "members": members}}
    if told:
        run |= {"held_out_rows": told["rows"], "metrics": told["metrics"]}
    # Thresholds and temperature were tuned since: the answers are others.
    return with_golden(replace(artifact, run=run), [golden_input(one) for one in artifact.golden])


def _check_alike(first: _Member, other: _Member) -> None:
    """Check that two functions can be averaged; ModelError names their first difference."""
    traits = _traits(first.artifact), _traits(other.artifact)
    for name in traits[0] | traits[1]:
        seen = [one.get(name) for one in traits]
        if seen[0] != seen[1]:
            values = " and ".join(shown(value)[:100] for value in seen)
            allowed = "members of one architecture, task, tokenizer and pre-trained encoder"
            raise ModelError(f"{first.name} and {other.name}", f"differ in {name}: {values}", allowed)


def _traits(artifact: Artifact) -> dict[str, Any]:
    """What members of one soup must have in common, by its name in messages."""
    task, model = artifact.task, artifact.model
    head = head_record(model.head, artifact.own_head, task.outputs, dropout=0)
    return {
        "the task": task.name,
        **{f"the task's {name}": value for name, value in task.undecided().items()},
        "what is read": "pairs" if artifact.columns["pair"] else "single texts",
        **{f"the encoder's {name}": value for name, value in asdict(model.encoder.config).items()},
        **{f"the head's {name}": value for name, value in head.items()},
        "the pre-trained encoder": f"{artifact.pretrained['name']}, sha256 {artifact.pretrained['theta_sha256']}",
        "the tokenizer": f"sha256 {artifact.tokenizer.sha256}",
        **{f"the reading's {name}": value for name, value in asdict(artifact.policy).items()},
    }
