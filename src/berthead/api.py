"""fit(), load(), and the fitted function in Python."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from torch import Tensor

from berthead import artifact as artifacts
from berthead import folder as folders
from berthead.artifact import Artifact
from berthead.data.examples import SYNONYMS, Columns, find_column, rows_of, sound_examples, to_example
from berthead.data.labels import is_blank
from berthead.data.readers import STDIO, RowReader, open_rows
from berthead.errors import DataError, Interrupted, UsageError
from berthead.infer.engine import use_threads
from berthead.infer.files import input_columns
from berthead.infer.gate import Choice, choose
from berthead.infer.predict import Predictor, split_readable
from berthead.model.parameters import Parameters
from berthead.options import FitOptions, PredictOptions
from berthead.records import Example, FloatArray, Label, Prediction, Row
from berthead.tasks import Task, find_task
from berthead.train.fit import fit_examples

DEFAULT_HELD_OUT = 0.1

Text = str | tuple[str, Any] | dict[str, Any]
"""One input: a text; a tuple of two texts; question and context; question and choices; {"tokens": [...]}."""


class Fitted:
    """A fitted function Predict(BERT(x)), ready to be applied; safe to call from many threads.

    Args:
        artifact: the function's parts.
        options: precision and token budget.

    Example:
        >>> model = load("tickets-model")  # doctest: +SKIP
        >>> model.predict("My parcel never came").answer  # doctest: +SKIP
        'delivery'
    """

    def __init__(self, artifact: Artifact, options: PredictOptions | None = None) -> None:
        self.artifact = artifact
        self.options = options or PredictOptions()
        self.warnings: list[str] = []

    @cached_property
    def choice(self) -> Choice | None:
        """The precision that `auto` took, and why; None: the options name one."""
        return choose({"": self.artifact}) if self.options.precision == "auto" else None

    @cached_property
    def predictor(self) -> Predictor:
        """The function with its weights laid out for this processor."""
        precision = self.choice.precision if self.choice else self.options.precision
        return Predictor(self.artifact, precision, self.options.token_budget)

    def __getstate__(self) -> dict[str, Any]:
        # The prepared weights lie as this processor wants them: they are made again where it is unpickled.
        engine = {"precision": self.options.precision, "token_budget": self.options.token_budget}
        return {"artifact": self.artifact, "warnings": self.warnings, "engine": engine}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["artifact"], PredictOptions(**state["engine"]))  # type: ignore[misc]
        self.warnings = state["warnings"]

    @property
    def labels(self) -> list[Label]:
        """The labels it can answer, in the order of `predict_proba`; none for regress, span and choose."""
        return list(self.artifact.task.to_json()["labels"])

    @overload
    def predict(self, texts: Text) -> Prediction: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, texts: Iterable[Text]) -> list[Prediction]: ...

    def predict(self, texts: Text | Iterable[Text]) -> Prediction | list[Prediction]:
        """Answers for one text or for many.

        Args:
            texts: an input or an iterable of them. An input is a text; for pairs a tuple of two texts; for span
                (question, context); for choose (question, [choice, ...]); for tag and joint a text, or
                {"tokens": [...]}. Each may also be a dict with the columns that the function was fitted on.

        Returns:
            One prediction for one text, a list in the same order for many. A text without an answer gets a
            prediction with `error` set.

        Raises:
            DataError: something that is neither a text nor a pair.
        """
        one = self._is_one(texts)
        inputs: Iterable[Any] = [texts] if one else texts
        predictions = list(self.predictor.predict(self._examples(inputs)))
        return predictions[0] if one else predictions

    def predict_proba(self, texts: Iterable[Text]) -> FloatArray:
        """Probabilities, float32 [rows, labels].

        Args:
            texts: texts, or tuples of two for pairs.

        Returns:
            One row a text, columns in the order of `labels`.

        Raises:
            DataError: a text without an answer.
            UsageError: the function answers numbers.
        """
        if not self.labels or self.artifact.task.name == "tag":
            saw = f"--task {self.artifact.task.name} has no probabilities of labels a row"
            raise UsageError("predict_proba", saw, "", "Use predict.")
        if self._is_one(texts):
            raise DataError("predict_proba", "is given one input", "a list of texts or of pairs", "Put it in a list.")
        rows: list[list[float]] = []
        for prediction in self.predictor.predict(self._examples(texts)):
            if prediction.probabilities is None:
                raise DataError(prediction.where, str(prediction.error))
            rows.append(list(prediction.probabilities.values()))
        return np.array(rows, dtype=np.float32).reshape(len(rows), len(self.labels))

    def evaluate(
        self,
        data: Any,
        *,
        text: str | None = None,
        pair: str | None = None,
        label: str | None = None,
        choices: str | None = None,
        intent: str | None = None,
        skip_bad_rows: bool | None = None,
    ) -> dict[str, Any]:
        """Metrics on labelled data.

        Args:
            data: a file, a data frame, or a list of dicts.
            text: column of the text; None: as fitted.
            pair: column of the second text; None: as fitted.
            label: column of the target; None: as fitted.
            choices: column of the choices, or one for each, as a,b,c; None: as fitted.
            intent: column of the label beside tags; None: as fitted.
            skip_bad_rows: leave out rows that cannot be used; they are counted as `skipped`.

        Returns:
            The task's metrics, `rows`, and `warnings`.

        Raises:
            DataError: rows that cannot be used, or labels that the function does not know.
        """
        flags = {
            "text": text, "pair": pair, "label": label, "choices": choices, "intent": intent,
            "skip_bad_rows": skip_bad_rows,
        }  # fmt: skip
        read = labelled_rows(data, PredictOptions.from_sources(flags), [self.artifact])
        scores = self.predictor.evaluate(read.examples)
        notes = read.notes + scores["warnings"] + [f"left out: {line}" for line in read.bad]
        return scores | {"skipped": len(read.bad), "warnings": notes}

    def verify(self) -> float:
        """Replay the golden examples, in float32 unless the options name another precision.

        Returns:
            The largest relative difference of a logit.

        Raises:
            GateError: the answers are not the ones that were saved.
        """
        # What `auto` takes answers alike, but its logits are others.
        predictor = Predictor(self.artifact) if self.options.precision == "auto" else self.predictor
        return artifacts.replay(self.artifact, predictor.logits)

    @property
    def theta(self) -> Parameters:
        """The encoder's parameters, under the names of its checkpoint."""
        return Parameters(self.artifact.theta())

    @property
    def omega(self) -> Parameters:
        """The head's parameters, under the names of model.safetensors."""
        return Parameters(self.artifact.omega())

    def with_parameters(
        self, theta: Mapping[str, Tensor] | None = None, omega: Mapping[str, Tensor] | None = None
    ) -> Fitted:
        """The same architecture with other parameters: another function.

        Temperature, thresholds and the range of numbers stay as they were fitted, for other parameters or not. Golden
        examples and hashes are those of the new function; the scores of the old one are left out of its record.

        Args:
            theta: of the encoder, such as another function's `theta`; None: as they are.
            omega: of the head; None: as they are.

        Returns:
            The function; this one stays as it is.

        Raises:
            ModelError: a tensor is missing, left over, misshapen or not finite.

        Example:
            >>> mean = Parameters.mean([model.theta, other.theta])  # doctest: +SKIP
            >>> model.with_parameters(theta=mean).save("between")  # doctest: +SKIP
        """
        given = [None if one is None else one if isinstance(one, Parameters) else Parameters(one)
                 for one in (theta, omega)]  # fmt: skip
        return Fitted(artifacts.with_parameters(self.artifact, *given), self.options)

    def info(self) -> dict[str, Any]:
        """The formula as fitted: task, encoder, head, hashes of theta and omega, labels, metrics, versions."""
        return self.artifact.describe()

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write the model folder; it is whole or absent.

        Args:
            folder: where to.
            overwrite: replace a model folder that exists.

        Raises:
            OutputError: it cannot be written.
        """
        folders.save(self.artifact, Path(folder), overwrite)

    def merged(self) -> Fitted:
        """The same function as one that needs no other folder: LoRA's change is part of the encoder.

        Returns:
            The function; `save` writes a model folder of its own.

        Raises:
            UsageError: it is one already.
        """
        if self.artifact.adapter is None:
            raise UsageError("merge", "the model holds an encoder of its own", "a folder that a LoRA fit made")
        return Fitted(replace(self.artifact, adapter=None), self.options)

    def _is_one(self, texts: Any) -> bool:
        """Whether this is one input; in a tuple two texts are a pair, in a list they are a batch of two."""
        if isinstance(texts, str) or (isinstance(texts, dict) and self._form != "text"):
            return True
        if not isinstance(texts, tuple) or len(texts) != 2 or not isinstance(texts[0], str):
            return False
        return isinstance(texts[1], str) or (self._form == "choices" and isinstance(texts[1], list | tuple))

    @property
    def _form(self) -> str:
        return self.artifact.task.form

    def _examples(self, texts: Iterable[Any]) -> Iterator[Example]:
        # Iterating these gives bytes, keys and column names: no texts to be answered.
        if isinstance(texts, bytes | dict) or hasattr(texts, "columns") or not isinstance(texts, Iterable):
            allowed, fix = "a list of texts, or of tuples of two for pairs", "Of a table give its column of texts."
            raise DataError("predict", f"is given {type(texts).__name__}", allowed, fix)
        wants_pair = bool(self.artifact.columns["pair"])
        columns = Columns("text", "pair" if wants_pair else None, form=self._form)
        if self._form == "choices":
            columns = replace(columns, choices=("choices",))
        for number, value in enumerate(texts, start=1):
            where = f"input {number}"
            yield to_example(Row(self._values(value, where), where), columns, None)

    def _values(self, value: Any, where: str) -> dict[str, Any]:
        """One input as text, pair and choices."""
        names, form = self.artifact.columns, self._form
        second = "choices" if form == "choices" else "pair" if names["pair"] else None
        if form != "text" and isinstance(value, dict):
            wanted: dict[str, Any] = {role: names[role] for role in ("text", "pair") if names[role] in value}
            wanted["choices"] = [name for name in names.get("choices", []) if name in value]
            own = Columns.find(form, wanted, list(value), where, label=False)
            choices = [value[name] for name in own.choices]
            while len(choices) > 1 and is_blank(choices[-1]):
                choices.pop()  # as in a file: rows may have fewer choices than columns
            found = {"text": value[own.text], "pair": value.get(own.pair or "")}
            return found | {"choices": choices if len(own.choices) > 1 else choices[0] if choices else None}
        if second is None and isinstance(value, dict):
            raise DataError(where, f"is {type(value).__name__}", "this model reads single texts")
        if second is None and isinstance(value, tuple | list) and not form.startswith("words"):
            raise DataError(where, f"is {type(value).__name__}", "this model reads single texts")
        if second is None:
            return {"text": value}
        if not (isinstance(value, tuple | list) and len(value) == 2):
            wanted = {"choices": "a question and its choices", "question": "a question and its context"}
            allowed = f"this model reads {wanted.get(form, 'pairs')}: a tuple of two"
            raise DataError(where, f"is {type(value).__name__}", f"{allowed} texts" if form == "text" else allowed)
        return {"text": value[0], second: value[1]}


def fit(
    data: Any, *, out: str | Path | None = None, config: str | Path | None = None, quiet: bool = False, **options: Any
) -> Fitted:
    """Fit Predict(BERT(x)) on labelled data.

    Args:
        data: a csv, tsv, jsonl or parquet file, a data frame, or a list of dicts.
        out: the model folder to write; None: none is written.
        config: a YAML file with options.
        quiet: show no progress.
        options: the flags of `berthead fit` as keywords, such as task, text, label, adapt, epochs.

    Returns:
        The fitted function; `warnings` says what to know about it.

    Raises:
        UsageError: an option that cannot be used.
        DataError: rows that cannot be used.
        ModelError: the encoder cannot be used.
        OutputError: the folder cannot be written.
        Interrupted: Ctrl-C; the best epoch so far is kept in `<out>.interrupted`.

    Example:
        >>> model = fit("tickets.csv", text="text", label="queue", adapt="frozen")  # doctest: +SKIP
    """
    chosen = FitOptions.from_sources(options, Path(config) if config else None)
    folder = Path(out) if out else None
    if folder:
        folders.check_out(folder, chosen.overwrite)
    names, rows, where = read_rows(data)
    task = find_task(chosen.task)
    columns = Columns.find(task.form, chosen.to_dict(), names, where)
    examples, bad, notes = _labelled(rows, columns, task, chosen)
    notes += _unread_pair(names, columns)
    held_out, bad_held_out, more_notes = _held_out(chosen, task, columns)
    notes += more_notes
    result = fit_examples(examples, held_out, chosen, columns.to_dict(), where, quiet=quiet)
    fitted = Fitted(result.artifact)
    fitted.warnings = notes + [f"left out: {line}" for line in bad + bad_held_out] + result.warnings
    if folder and result.history.interrupted:
        folder = folder.with_name(f"{folder.name}.interrupted")
    if folder:
        fitted.save(folder, overwrite=chosen.overwrite or result.history.interrupted)
    if result.history.interrupted:
        epochs = len(result.history.epochs)
        kept = f"The best of them is kept in {folder}." if epochs else f"The weights so far are kept in {folder}."
        raise Interrupted("fit", f"stopped after {epochs} whole epochs", fix=kept if folder else "")
    return fitted


def load(
    folder: str | Path, *, precision: str | None = None, token_budget: int | None = None, threads: int | None = None,
    base: str | Path | None = None,
) -> Fitted:  # fmt: skip
    """A fitted function from its model folder.

    Args:
        folder: made by `fit` or `save`.
        precision: `fp32` (exact, the default), `bf16`, `int8`, or `auto`: the fastest that was measured to answer
            alike.
        token_budget: tokens computed at once.
        threads: processor threads that torch uses from now on; None: what this process may use.
        base: where the encoder of an adapter folder lies; None: where it was at the fit, or beside the folder.

    Returns:
        The function.

    Raises:
        ModelError: the folder is missing, broken or not to be trusted.
    """
    flags = {"precision": precision, "token_budget": token_budget, "threads": threads, "base": base}
    options = PredictOptions.from_sources(flags)
    use_threads(options.threads)
    return Fitted(folders.load(Path(folder), options.base), options)


def read_rows(data: Any) -> tuple[list[str], Iterable[Row], str]:
    """Columns, rows and name of a file, a data frame or a list of dicts.

    Args:
        data: a path, `-`, a pandas or polars data frame, or dicts.

    Returns:
        Column names, rows, and the data's name for messages.

    Raises:
        DataError: it is empty or something else.
    """
    if isinstance(data, str | Path):
        reader = open_rows(data)
        return reader.columns, reader, reader.name
    if hasattr(data, "to_dicts"):
        records = data.to_dicts()
    elif hasattr(data, "to_dict") and hasattr(data, "columns"):
        records = data.to_dict("records")
    else:
        records = list(data) if isinstance(data, Iterable) else [data]
    if not records:
        raise DataError("data", "is empty", "at least two labelled rows")
    if not all(isinstance(record, dict) for record in records):
        raise DataError("data", f"holds {type(records[0]).__name__}", "a file, a data frame, or a list of dicts")
    return list(dict.fromkeys(str(name) for record in records for name in record)), rows_of(records), "data"


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """Rows that functions are scored on.

    Args:
        examples: the sound ones, with targets unless `labelled` is false.
        bad: the others, as `file:line: what is wrong`.
        notes: what is to be known about them.
        labelled: whether there were targets to read.
    """

    examples: list[Example]
    bad: list[str]
    notes: list[str]
    labelled: bool = True


def labelled_rows(
    data: Any, options: PredictOptions, artifacts: Sequence[Artifact], *, needed: bool = True
) -> LabelledRows:
    """Rows with targets, for one function or for several of one task.

    Args:
        data: a file, a data frame, or a list of dicts.
        options: may name columns, and leave out bad rows.
        artifacts: who reads them; the first says which columns, and a target that one of them knows is sound.
        needed: whether there have to be targets; otherwise they are read where their column is there.

    Returns:
        The rows.

    Raises:
        DataError: rows that cannot be used, or labels that no function knows.
    """
    names, rows, where = read_rows(data)
    labelled, task = True, artifacts[0].task
    try:
        columns = input_columns(artifacts[0], options, names, where, label=True)
    except DataError:
        if needed or options.label or options.intent:
            raise
        columns, labelled = input_columns(artifacts[0], options, names, where, label=False), False

    def known(value: Any) -> Any:
        target = task.read(value)
        if not any(knows(artifact.task, target) for artifact in artifacts):
            task.check(target)
        return target

    read = (to_example(row, columns, known if labelled else None, task.settled) for row in rows)
    examples, bad = sound_examples(read, options.skip_bad_rows)
    for artifact in artifacts if options.skip_bad_rows else ():
        examples, long = split_readable(artifact.task, artifact.tokenizer, examples, artifact.reading)
        bad += long
    if not examples:
        what = "scored" if labelled else "answered"
        raise DataError(where, f"holds no rows that can be {what}", "rows with a text and a label")
    return LabelledRows(examples, bad, notes_on(rows) + mended(examples), labelled)


def knows(task: Task, target: Any) -> bool:
    """Whether a function can answer with this target."""
    try:
        task.check(target)
    except ValueError:
        return False
    return True


def _labelled(
    rows: Iterable[Row], columns: Columns, task: type[Task], options: FitOptions
) -> tuple[list[Example], list[str], list[str]]:
    """Sound examples, the bad rows, and what is to be known about the file."""
    read = (to_example(row, columns, task.read, task.settled) for row in rows)
    sound, bad = sound_examples(read, options.skip_bad_rows)
    return sound, bad, notes_on(rows) + mended(sound)


def mended(examples: Iterable[Example]) -> list[str]:
    """What was mended in the rows, as lines."""
    return [f"mended: {example.where}: {example.note}" for example in examples if example.note]


def notes_on(rows: Iterable[Row]) -> list[str]:
    """What the reader of a file noticed; nothing for rows in memory."""
    return rows.notes if isinstance(rows, RowReader) else []


def _held_out(
    options: FitOptions, task: type[Task], columns: Columns
) -> tuple[Sequence[Example] | float, list[str], list[str]]:
    if options.valid is None:
        return DEFAULT_HELD_OUT, [], []
    try:
        share = float(options.valid)
    except ValueError:
        path = Path(options.valid)
        if options.valid != STDIO and not path.suffix and not path.exists():
            saw = f'is "{options.valid}"'
            raise UsageError("--valid", saw, "a file, or a share from 0 to below 1 such as 0.1") from None
        names, rows, where = read_rows(options.valid)
        for role, column in columns.to_dict().items():
            for name in column if isinstance(column, list) else [column]:
                if name:
                    find_column(role, name, names, where)
        return _labelled(rows, columns, task, options)
    if not 0 <= share < 1:
        raise UsageError("--valid", f"is {options.valid}", "a file, or a share from 0 to below 1")
    return share, [], []


def _unread_pair(names: list[str], columns: Columns) -> list[str]:
    unread = [name for name in SYNONYMS["pair"] if name in names and name not in columns.to_dict().values()]
    if columns.form != "text" or columns.pair or not unread:
        return []
    return [f'column "{unread[0]}" is not read; to fit on pairs: --pair {unread[0]}']
