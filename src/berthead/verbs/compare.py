"""Compare two functions on the same rows: answers that differ, which is right more often, and their parameters."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from berthead.errors import DataError, UsageError, listed, shown
from berthead.fitted import Fitted, load
from berthead.formats.readers import STDIO
from berthead.formats.registry import find_format, format_of
from berthead.formats.writers import check_writable, open_writer
from berthead.options import ROW_OPTIONS, PredictOptions
from berthead.options.keywords import RowKeywords
from berthead.options.python_words import notes_in_python
from berthead.options.signatures import takes_options
from berthead.predict.answers import NOT_FINITE, decoded
from berthead.predict.predictor import refuse_faulty
from berthead.predict.rows import LabelledRows, knows, labelled_rows
from berthead.records import Example, FloatArray, Label
from berthead.tasks import Answer, Batch, Task
from berthead.text.windows import EncodedExample


@dataclass(frozen=True, slots=True)
class Flip:
    """A row that two functions answer differently.

    Args:
        where: the row's `file:line` or `row N`.
        text: its first text.
        pair: its second text, its context, or its choices as a list; None: it has none.
        a: the answer of the first function, as JSON.
        b: the answer of the second.
        target: the correct answer, or None.
        a_right: whether the first is right; None: undefined.
        b_right: whether the second is.
    """

    where: str
    text: str
    pair: str | list[str] | None
    a: Any
    b: Any
    target: Any = None
    a_right: bool | None = None
    b_right: bool | None = None


@dataclass(frozen=True, slots=True)
class LabelChange:
    """How well two functions find a label.

    Args:
        label: the label.
        support: how often it is the target.
        a: `precision`, `recall` and `f1` of the first function; None: it does not have the label, or a tag's label
            is neither target nor answer.
        b: those of the second.
    """

    label: Label
    support: int
    a: dict[str, float] | None
    b: dict[str, float] | None


@dataclass(frozen=True, slots=True)
class Right:
    """Number of rows in which each of two functions is right.

    Args:
        both: both are right.
        only_a: only the first is right.
        only_b: only the second is right.
        neither: neither is right.
    """

    both: int
    only_a: int
    only_b: int
    neither: int


@dataclass(frozen=True, slots=True)
class PairedTest:
    """A test of whether two functions are equally good.

    Args:
        name: `McNemar, exact` on the rows where exactly one is right (McNemar 1947), or `Wilcoxon signed-rank` on the
            absolute errors of numbers (Wilcoxon 1945), of several targets on the largest in standard deviations;
            two-sided.
        p: the p-value: the probability of such a difference or a larger one between equally good functions.
    """

    name: str
    p: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """What differs between two functions on the same rows, in plain Python types.

    Args:
        task: of both.
        a: `theta_sha256` and `omega_sha256` of the first.
        b: those of the second.
        rows: number of compared rows.
        skipped: rows left out.
        agreement: share of the rows with the same answer; numbers are compared in six digits.
        flips: the other rows, in order; for numbers by descending difference, of several targets by the largest one in
            standard deviations.
        right: how often each is right; None: no targets, or answers that are not right or wrong.
        test: the test of whether one is better; None: no targets, or nothing to test.
        scored: rows used for metrics and labels: those whose targets both functions know.
        metrics: name to the values of `a` and `b`; empty without targets.
        per_label: labels of rows, tags or entities; empty if the task has none.
        per_intent: labels of joint rows.
        moved: ||b - a|| / ||a|| of the parameters of each layer (None if the layer is 0 in the first); None: the
            architectures differ. The head is left out if the labels differ.
        notes: what to know about the comparison.
    """

    task: str
    a: dict[str, str]
    b: dict[str, str]
    rows: int
    skipped: int
    agreement: float
    flips: list[Flip]
    right: Right | None
    test: PairedTest | None
    scored: int
    metrics: dict[str, dict[str, float]]
    per_label: list[LabelChange]
    per_intent: list[LabelChange]
    moved: dict[str, float | None] | None
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """The record as a JSON-serialisable dict."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Side:
    """The answers and scores of one function."""

    task: Task
    values: FloatArray
    inputs: list[EncodedExample]
    answers: list[Answer]
    identities: list[Hashable]
    right: list[bool | None]


@takes_options(PredictOptions, ROW_OPTIONS)
def compare(a: Fitted | str | Path, b: Fitted | str | Path, data: Any, **options: Unpack[RowKeywords]) -> Comparison:
    """Apply two functions of one task to the same rows, and compare their answers and parameters.

    Args:
        a: the first function, or its folder.
        b: the second; its labels may differ.
        data: a file, a data frame, or a list of dicts; with targets the functions are scored too.
        {options}

    Returns:
        The comparison.

    Raises:
        UsageError: the functions answer different questions.
        DataError: rows that cannot be used, or labels that neither function knows.
        ModelError: a folder cannot be loaded.

    Example:
        >>> found = compare("model", "new-model", "test.csv")  # doctest: +SKIP
        >>> found.agreement, found.test.p  # doctest: +SKIP
        (0.97, 0.38)
    """
    first, second = (one if isinstance(one, Fitted) else load(one) for one in (a, b))
    _check_same_question(first, second)
    artifacts = [first.artifact, second.artifact]
    read = labelled_rows(data, artifacts, needed=False, **options)
    sides, examples = _sides((first, second), read)
    flips = _flips(*sides, examples, read.labelled)
    notes = read.unscored + _label_notes(*(side.task for side in sides)) + read.notes + read.left_out
    known = _known(sides, examples) if read.labelled else [np.empty(0, dtype=np.bool_)] * 2
    for name, one in zip("AB", known, strict=True):
        if count := int((~one).sum()):
            notes.append(f"{count:,} rows have a target that {name} does not know: it is wrong there, and no metric "
                         "counts them")  # fmt: skip
    scored = known[0] & known[1]
    scores = [_scores(side, examples, scored) if scored.any() else {} for side in sides]
    for name, found in zip("AB", scores, strict=True):
        notes += [f"{name}: {warning}" for warning in found.get("warnings", [])]
    return Comparison(
        task=first.artifact.task.name,
        a=_hashes(first),
        b=_hashes(second),
        rows=len(examples),
        skipped=len(read.bad),
        agreement=1 - len(flips) / len(examples),
        flips=flips,
        right=_right(*sides),
        test=_test(*sides, examples) if read.labelled else None,
        scored=int(scored.sum()),
        metrics=_metrics(*scores),
        per_label=_label_changes("per_label", *scores),
        per_intent=_label_changes("per_intent", *scores),
        moved=_moved(first, second),
        notes=notes_in_python(notes),
    )


def write_flips(comparison: Comparison, path: str | Path) -> None:
    """Write the rows that are answered differently.

    Args:
        comparison: the result of `compare`.
        path: .csv, .tsv or .jsonl (also .gz); written under another name and renamed when complete.

    Raises:
        UsageError: an extension that is not known.
        OutputError: it cannot be written.
    """
    names = list(Flip.__slots__)
    with open_writer(path, "jsonl", names, None, {}) as writer:
        for flip in comparison.flips:
            writer.write(asdict(flip))


def check_flips_file(path: str) -> None:
    """Check that `write_flips` can write there, before any work is done.

    Args:
        path: the file.

    Raises:
        UsageError: not a text file, or an unknown extension.
        OutputError: the place cannot be written.
    """
    if path == STDIO or not find_format(format_of(path)[0]).text:
        raise UsageError(f"--out {path}", "cannot hold the rows", "a .csv, .tsv or .jsonl file")
    check_writable(path)


def _check_same_question(a: Fitted, b: Fitted) -> None:
    names = [one.artifact.task.name for one in (a, b)]
    if names[0] != names[1]:
        raise UsageError("compare", f"A has the task {names[0]}, B the task {names[1]}", "two functions of one task")
    if bool(a.artifact.columns["pair"]) != bool(b.artifact.columns["pair"]):
        which = ("A", "B") if a.artifact.columns["pair"] else ("B", "A")
        raise UsageError(
            "compare", f"{which[0]} reads pairs, {which[1]} single texts", "two functions with the same input"
        )


def _hashes(fitted: Fitted) -> dict[str, str]:
    said = fitted.artifact.parameters()
    return {name: said[name] for name in ("theta_sha256", "omega_sha256")}


def _sides(both: tuple[Fitted, Fitted], read: LabelledRows) -> tuple[tuple[_Side, _Side], list[Example]]:
    """The answers of both functions, and the examples for which both have finite logits; others are bad rows."""
    examples, found = read.examples, [one.applier.scored(read.examples) for one in both]
    faulty = found[0][2] | found[1][2]
    if not read.skips_bad:
        refuse_faulty(examples, faulty)
    for number in np.flatnonzero(faulty):
        which = " and ".join(name for name, one in zip("AB", found, strict=True) if one[2][number])
        read.bad.append(f"{examples[number].where}: {which}: {NOT_FINITE}")
    kept = np.flatnonzero(~faulty).tolist()
    if not kept:
        raise DataError("data", "holds no rows that can be compared", "rows with finite logits", NOT_FINITE)
    examples = [examples[number] for number in kept]
    sides = []
    for one, (values, inputs, _) in zip(both, found, strict=True):
        sound = values[np.repeat(~faulty, [row.n_units for row in inputs])]
        sides.append(_side(one.artifact.task, sound, [inputs[number] for number in kept], examples, read.labelled))
    return (sides[0], sides[1]), examples


def _side(
    task: Task, values: FloatArray, inputs: list[EncodedExample], examples: list[Example], labelled: bool
) -> _Side:
    answers = list(decoded(task, values, Batch(examples, inputs)))
    right: list[bool | None] = [None] * len(answers)
    if labelled:
        right = [task.is_right(*one) for one in zip(answers, examples, inputs, strict=True)]
    return _Side(task, values, inputs, answers, [task.identity(answer) for answer in answers], right)


def _flips(a: _Side, b: _Side, examples: list[Example], labelled: bool) -> list[Flip]:
    places = [place for place, both in enumerate(zip(a.identities, b.identities, strict=True)) if both[0] != both[1]]
    # Numbers that are furthest apart come first; of other answers none is further apart than another.
    places.sort(key=lambda place: -(a.task.distance(a.answers[place], b.answers[place]) or 0.0))
    return [
        Flip(
            one.where, one.text, list(one.choices) if one.choices is not None else one.pair,
            a.task.written(a.answers[place]), b.task.written(b.answers[place]),
            a.task.written_target(one) if labelled else None,
            a.right[place], b.right[place],
        )
        for place, one in ((place, examples[place]) for place in places)
    ]  # fmt: skip


def _known(sides: Sequence[_Side], examples: Iterable[Example]) -> list[np.ndarray]:
    targets = [example.target for example in examples]
    return [np.array([knows(side.task, target) for target in targets], dtype=np.bool_) for side in sides]


def _scores(side: _Side, examples: list[Example], kept: np.ndarray) -> dict[str, Any]:
    """The task's metrics on some of the rows."""
    rows = [examples[place] for place in np.flatnonzero(kept)]
    inputs = [side.inputs[place] for place in np.flatnonzero(kept)]
    values = side.values[np.repeat(kept, [one.n_units for one in side.inputs])]
    targets = side.task.targets([row.target for row in rows], inputs)
    return side.task.evaluate(values, targets, Batch(rows, inputs))


def _metrics(a: dict[str, Any], b: dict[str, Any]) -> dict[str, dict[str, float]]:
    a, b = (_of_targets(one) | one for one in (a, b))
    return {
        name: {"a": value, "b": b[name]}
        for name, value in a.items()
        if isinstance(value, int | float) and isinstance(b.get(name), int | float)
    }


def _of_targets(scores: dict[str, Any]) -> dict[str, float]:
    """The metrics of each of several targets, by the target and the metric."""
    return {
        f"{row['target']}: {name}": value
        for row in scores.get("per_target", [])
        for name, value in row.items()
        if isinstance(value, float)
    }


def _label_changes(table: str, a: dict[str, Any], b: dict[str, Any]) -> list[LabelChange]:
    rows = [{repr(row["label"]): row for row in scores.get(table, [])} for scores in (a, b)]
    changes = []
    for key, row in (rows[0] | rows[1]).items():
        shares = [{name: one[key][name] for name in ("precision", "recall", "f1")} if key in one else None
                  for one in rows]  # fmt: skip
        changes.append(LabelChange(row["label"], row["support"], shares[0], shares[1]))
    return changes


def _right(a: _Side, b: _Side) -> Right | None:
    pairs = [(one, other) for one, other in zip(a.right, b.right, strict=True)]
    if any(one is None or other is None for one, other in pairs):
        return None
    return Right(*(pairs.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False))))


def _test(a: _Side, b: _Side, examples: list[Example]) -> PairedTest | None:
    from scipy.stats import binomtest, wilcoxon

    errors = [[side.task.distance(answer, Answer(example.target))
               for answer, example in zip(side.answers, examples, strict=True)] for side in (a, b)]  # fmt: skip
    if not any(error is None for error in errors[0] + errors[1]):
        apart = np.array(errors[0], dtype=np.float64) - np.array(errors[1], dtype=np.float64)
        # Where no row differs scipy has no p.
        return PairedTest("Wilcoxon signed-rank", float(wilcoxon(apart).pvalue) if apart.any() else 1.0)
    right = _right(a, b)
    if right is None:
        return None
    discordant = right.only_a + right.only_b
    p = float(binomtest(right.only_a, discordant).pvalue) if discordant else 1.0
    return PairedTest("McNemar, exact", p)


def _label_notes(a: Task, b: Task) -> list[str]:
    keys = [{repr(label): label for label in task.all_labels} for task in (a, b)]
    only = [[shown(label) for key, label in one.items() if key not in other]
            for one, other in (keys, reversed(keys))]  # fmt: skip
    known = [f"only {name} knows {listed(labels)}" for name, labels in zip("AB", only, strict=True) if labels]
    return [f"their labels differ: {'; '.join(known)}"] if known else []


def _moved(a: Fitted, b: Fitted) -> dict[str, float | None] | None:
    theta, omega = (a.theta, b.theta), (a.omega, b.omega)
    if theta[0].shapes != theta[1].shapes:
        return None
    moved = theta[1].difference(theta[0])
    if omega[0].shapes == omega[1].shapes and not _label_notes(a.artifact.task, b.artifact.task):
        moved |= omega[1].difference(omega[0])
    return {layer: share if math.isfinite(share) else None for layer, share in moved.items()}
