"""File to file: rows in, the same rows with predictions out, in constant memory."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from berthead.data.examples import Columns, to_example
from berthead.data.labels import Labels
from berthead.data.readers import STDIO, RowReader, count_lines, open_rows
from berthead.data.writers import RowWriter, check_writable, open_writer
from berthead.errors import Interrupted, OutputError, UsageError
from berthead.function import Function
from berthead.infer.predict import Applier
from berthead.options import PredictOptions
from berthead.progress import Progress
from berthead.records import Example, Prediction, Row, Span
from berthead.tasks import Choose

if TYPE_CHECKING:
    from berthead.infer.joined import JoinedPredictor


@dataclass(slots=True)
class Summary:
    """What a job did.

    Args:
        rows: rows read.
        failed: rows without an answer.
        truncated: rows of which tokens were cut.
        windowed: rows that were read in several windows.
        errors: the first bad rows, as `file:line: what is wrong`.
        errors_file: where all of them stand, or None.
        notes: what the user should know about the input.
    """

    rows: int = 0
    failed: int = 0
    truncated: int = 0
    windowed: int = 0
    errors: list[str] = field(default_factory=list)
    errors_file: str | None = None
    notes: list[str] = field(default_factory=list)


# Errors shown at the end; with a file as output all of them are written beside it.
SHOWN_ERRORS = 10


def input_columns(artifact: Function, options: PredictOptions, names: list[str], where: str, label: bool) -> Columns:
    """The columns of an input file, named by the options or as they were at fit.

    Args:
        artifact: the fitted function.
        options: may name other columns.
        names: the file's columns.
        where: the file, for errors.
        label: whether targets are read.

    Returns:
        The columns.

    Raises:
        DataError: a column is missing.
        UsageError: a pair is asked of a function of single texts.
    """
    fitted = artifact.columns
    if options.pair and not fitted["pair"]:
        raise UsageError("--pair", "this model was fitted on single texts", "no --pair")
    # Other data of the same form may call its columns by other usual names, and hold a text where fit saw tokens.
    form, given = artifact.task.form, options.to_dict()
    wanted = {
        role: given[role] or (name if form == "text" or _there(name, names) else None)
        for role in ("text", "pair", "label", "intent", "choices")
        for name in [fitted.get(role)]
    }
    return Columns.find(form, wanted, names, where, label=label)


def _there(wanted: Any, names: list[str]) -> bool:
    return bool(wanted) and all(name in names for name in ([wanted] if isinstance(wanted, str) else wanted))


def predict_file(
    predictor: Applier | JoinedPredictor, source: str, target: str, options: PredictOptions, quiet: bool = False
) -> Summary:
    """Predict every row of a file.

    Args:
        predictor: the fitted function, or several; of these each column added begins with the function's name.
        source: csv, tsv, jsonl (also .gz), parquet, or `-` for stdin.
        target: the same formats, or `-` for stdout; written aside and renamed when it is whole.
        options: columns and what to add.
        quiet: show no progress.

    Returns:
        What was done. Rows without an answer are left out of the target and stand in `<target>.errors.jsonl`.

    Raises:
        DataError: the input cannot be read.
        OutputError: the output cannot be written; nothing is left there.
        Interrupted: Ctrl-C; the rows done are kept in `<target>.partial`.
    """
    check_writable(target)
    if STDIO not in (source, target) and Path(target).exists() and Path(target).samefile(source):
        raise OutputError(target, "is the input", "another file", "The output would replace it.")
    summary = Summary()
    total = count_lines(source) if sys.stderr.isatty() and not quiet else None
    with ExitStack() as stack:
        reader = stack.enter_context(open_rows(source))
        columns = input_columns(widest(predictor.functions), options, reader.columns, reader.name, label=False)
        names: dict[str, dict[str, str]] = {}
        types: dict[str, type] = {}
        for name, artifact in predictor.functions.items():
            prefix = f"{name}_" if name else ""
            names[name] = added_names(artifact, [*reader.columns, *types], options.probabilities, prefix)
            types |= _added_types(artifact, names[name])
        writer = stack.enter_context(open_writer(target, reader.format, reader.columns, reader.schema, types))
        errors = stack.enter_context(_Errors(target, summary))
        progress = stack.enter_context(Progress("predict", total, "rows", quiet))
        waiting: deque[Row] = deque()
        try:
            for predictions in predictor.answers(_examples(reader, columns, waiting)):
                row = waiting.popleft()
                _write(row, predictions, names, writer, errors, summary)
                progress.advance(1)
        except KeyboardInterrupt:
            reader.abandon()
            kept = writer.keep()
            saw = f"stopped after {summary.rows:,} rows"
            fix = f"They are kept in {kept}." if kept else ""
            raise Interrupted(source, saw, fix=fix) from None
        summary.notes = reader.notes + writer.notes
    return summary


def _examples(reader: RowReader, columns: Columns, waiting: deque[Row]) -> Iterator[Example]:
    for row in reader:
        waiting.append(row)
        yield to_example(row, columns, None)


def widest(functions: Mapping[str, Function]) -> Function:
    """Of functions that read one input the one that reads most of it: tokens too, where one of them does."""
    return max(functions.values(), key=lambda one: one.task.form.startswith("words"))


def added_names(artifact: Function, columns: Sequence[str], probabilities: bool, prefix: str = "") -> dict[str, str]:
    """What is added to each row: our name to a column name that the input does not use yet.

    Args:
        artifact: the fitted function.
        columns: the input's columns.
        probabilities: one column a label as well.
        prefix: what the column names begin with.

    Returns:
        `prediction`, `score` (not for numbers and tags), `start` and `end` of an answer, `spans` beside a label,
        `predicted_tags` where the input may hold tokens, and `p(label)` for each label.
    """
    task = artifact.task
    more = {
        "regress": [],
        "tag": ["predicted_tags"],
        "span": ["score", "start", "end"],
        "joint": ["score", "spans", "predicted_tags"],
    }
    wanted = ["prediction", *more.get(task.name, ["score"])]
    labels = task.to_json()["labels"]
    if probabilities and labels and task.name != "tag":
        wanted += [f"p({text})" for text in Labels(labels).texts()]
    elif probabilities and task.form == "choices":
        wanted.append("probabilities")  # of as many choices as each row has
    names: dict[str, str] = {}
    for name in wanted:
        free, number = f"{prefix}{name}", 2
        while free in columns or free in names.values():
            free, number = f"{prefix}{name}_{number}", number + 1
        names[name] = free
    return names


def _added_types(artifact: Function, names: dict[str, str]) -> dict[str, type]:
    answer: dict[str, type] = {"regress": float, "multilabel": list, "tag": str, "span": str}
    task = artifact.task
    if isinstance(task, Choose):
        answer["choose"] = int if task.style == "number" else str
    kind = answer.get(task.name) or _label_type(artifact)
    kinds: dict[str, type] = {
        "prediction": kind,
        "start": int,
        "end": int,
        "spans": str,
        "predicted_tags": list,
        "probabilities": str,
    }
    return {name: kinds.get(ours, float) for ours, name in names.items()}


def _label_type(artifact: Function) -> type:
    kinds = {type(label) for label in artifact.task.to_json()["labels"]}
    return kinds.pop() if len(kinds) == 1 else str


def _added_values(prediction: Prediction, names: dict[str, str]) -> dict[str, Any]:
    """Our names to values: a label stays as the user wrote it, what was computed is float32."""
    answer = prediction.answer
    if isinstance(answer, list) and prediction.spans is not None and prediction.tags != answer:
        answer = spans_json(prediction.spans)
    values: dict[str, Any] = {
        "prediction": answer if "score" in names or prediction.spans is not None else _short(answer)
    }
    values |= {
        "score": None if prediction.score is None else _short(prediction.score),
        "predicted_tags": prediction.tags,
    }
    if "start" in names:
        best = prediction.spans[0] if prediction.answer and prediction.spans else None
        values |= {"start": best and best.start, "end": best.end if best else None}
    if "spans" in names:
        values["spans"] = spans_json(prediction.spans or [])
    shares = [_short(share) for share in (prediction.probabilities or {}).values()]
    if "probabilities" in names:
        values["probabilities"] = shares
    columns = [name for name in names if name.startswith("p(")]
    return {name: values[name] for name in names if name in values} | dict(zip(columns, shares, strict=False))


def spans_json(spans: Sequence[Span]) -> list[dict[str, Any]]:
    """Spans as JSON objects: start, end, label, text and score."""
    return [
        {"start": one.start, "end": one.end, "label": one.label, "text": one.text, "score": _short(one.score)}
        for one in spans
    ]


def _write(
    row: Row, predictions: Mapping[str, Prediction], names: Mapping[str, dict[str, str]], writer: RowWriter,
    errors: _Errors, summary: Summary,
) -> None:  # fmt: skip
    summary.rows += 1
    values: dict[str, Any] = {}
    for name, prediction in predictions.items():
        if prediction.error is not None:
            errors.add(row, prediction.error)
            return
        added = _added_values(prediction, names[name])
        values |= {names[name][ours]: value for ours, value in added.items()}
    taken = {name for own in names.values() for name in own.values()} & row.values.keys()
    if taken:
        # Names are chosen by the header; a row of JSON Lines may have more.
        errors.add(row, f'has a value for "{min(taken)}", the name of an added column')
        return
    summary.truncated += any(one.truncated for one in predictions.values())
    summary.windowed += any(one.n_windows > 1 for one in predictions.values())
    writer.write(row.values | values)


def _short(value: Any) -> Any:
    """A float32 in as few digits as it takes to read the same float32 again."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


class _Errors:
    """Bad rows, put aside as they come: the file is made when the first one does."""

    def __init__(self, target: str, summary: Summary) -> None:
        self.path = None if target == STDIO else f"{target}.errors.jsonl"
        self.summary = summary
        self._stack = ExitStack()
        self._writer: RowWriter | None = None

    def add(self, row: Row, error: str) -> None:
        self.summary.failed += 1
        if len(self.summary.errors) < SHOWN_ERRORS:
            self.summary.errors.append(f"{row.where}: {error}")
        if self.path is None:
            return
        if self._writer is None:
            opened = open_writer(self.path, "jsonl", ["where", "error", "row"], None, {})
            self._writer = self._stack.enter_context(opened)
            self.summary.errors_file = self.path
        self._writer.write({"where": row.where, "error": error, "row": row.values})

    def __enter__(self) -> _Errors:
        if self.path is not None:
            # Errors of an earlier run would look like errors of this one.
            Path(self.path).unlink(missing_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        # After Ctrl-C the rows done are kept, and so are the errors among them.
        kept = kind is not None and issubclass(kind, Interrupted)
        self._stack.__exit__(*((None, None, None) if kept else (kind, error, trace)))


def as_line(prediction: Prediction, as_json: bool) -> str:
    """One answer for a terminal: `label  0.98`, or the whole record as JSON."""
    if as_json:
        return json.dumps(prediction.to_dict(), ensure_ascii=False)
    answer, spans = prediction.answer, prediction.spans
    if spans is not None and (isinstance(answer, list) or prediction.probabilities):
        shown = "\n".join(f"{one.start}-{one.end}  {one.label}  {one.text}  {one.score or 0:.4f}" for one in spans)
        whole = "" if isinstance(answer, list) else f"{answer}  {prediction.score or 0:.4f}\n"
        return whole + (shown or "(no span)")
    if spans is not None:
        place = f"  {spans[0].start}-{spans[0].end}" if answer else ""
        return (
            f"{answer or '(no answer)'}" + (f"  {prediction.score:.4f}" if prediction.score is not None else "") + place
        )
    if isinstance(answer, list):
        shares = prediction.probabilities or {}
        shown = "  ".join(f"{label} {shares[label]:.4f}" if label in shares else f"{label}" for label in answer)
        return shown or "(no label)"
    if isinstance(answer, float) and prediction.score is None:
        return f"{answer:.6g}"
    return f"{answer}" if prediction.score is None else f"{answer}  {prediction.score:.4f}"
