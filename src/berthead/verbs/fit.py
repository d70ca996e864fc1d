"""fit(): reads rows, fits them with train/fit.py, and writes the folder; Ctrl-C keeps finished work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from berthead.data.descriptions import read_descriptions, with_descriptions
from berthead.data.examples import Columns, sound_examples, to_example
from berthead.data.forms import FORMS, SYNONYMS
from berthead.errors import DataError, Interrupted, MachineError, UsageError, counted
from berthead.fitted import Fitted, load
from berthead.formats.readers import STDIO
from berthead.options import FitOptions
from berthead.options.keywords import FitKeywords
from berthead.options.python_words import notes_in_python
from berthead.options.signatures import takes_options
from berthead.predict.rows import in_sentences, mended, notes_on, read_rows
from berthead.records import Example, Row
from berthead.storage.folders import check_out
from berthead.tasks import Task, find_task
from berthead.train.checkpoints import Checkpoints
from berthead.train.described import describe
from berthead.train.fit import fit_examples
from berthead.train.settings import MOST_HELD_OUT, check_share
from berthead.train.steps import History
from berthead.train.workers import is_writer

GO_ON = "To continue, run the same command with --resume."


@takes_options(FitOptions)
def fit(
    data: Any = None, *, out: str | Path | None = None, config: str | Path | None = None, quiet: bool = False,
    **options: Unpack[FitKeywords],
) -> Fitted:  # fmt: skip
    """Fit Predict(BERT(x)) on labelled data.

    Args:
        data: a file of rows, a data frame, an Arrow table, a dict of columns, or a list of dicts; None: `labels` says
            what the labels mean, and nothing is learnt.
        out: the model folder to write, or None.
        config: a YAML file with options.
        quiet: show no progress.
        {options}

    Returns:
        The fitted function; `warnings` has notes about it.

    Raises:
        UsageError: an option that cannot be used.
        DataError: rows that cannot be used.
        ModelError: the encoder cannot be used.
        OutputError: the folder cannot be written.
        MachineError: too little memory, or a worker died.
        Interrupted: Ctrl-C; the best epoch so far is in `<out>.interrupted`, and `resume=True` continues.

    Example:
        >>> model = fit("tickets.csv", text="text", label="queue", adapt="frozen")  # doctest: +SKIP
    """
    chosen = FitOptions.from_sources(dict(options), Path(config) if config else None)
    if out:
        return _fit_into(Path(out), data, chosen, quiet)
    if chosen.resume:
        raise UsageError("--resume", "needs --out", "the folder of the interrupted fit")
    fitted, history = _fitted(data, chosen, quiet)
    if history.interrupted:
        raise _interrupted(history)
    return fitted


def _fit_into(folder: Path, data: Any, options: FitOptions, quiet: bool) -> Fitted:
    """Fit, with checkpoints beside the folder, and write the folder."""
    place = folder.parent / f"{folder.name}.fit"
    checkpoints = Checkpoints(place, options.checkpoint_minutes, options.resume, writes=is_writer())
    has_finished = options.resume and checkpoints.has_finished()
    if has_finished and not checkpoints.exists():  # it was killed when all but this was done
        checkpoints.remove()
        return load(folder)
    overwrite = options.overwrite or has_finished
    if checkpoints.writes:
        checkpoints.check(options.overwrite)
        check_out(folder, overwrite)
    with checkpoints:
        try:
            fitted, history = _fitted(data, options, quiet, checkpoints)
        except MachineError as error:
            if not checkpoints.exists():
                raise
            raise MachineError(error.where, error.saw, error.expected, f"{error.fix} {GO_ON}".lstrip()) from error
        if not checkpoints.writes:
            if history.interrupted:
                raise _interrupted(history)
            return fitted
        if history.interrupted:
            kept = folder.with_name(f"{folder.name}.interrupted")
            fitted.save(kept, overwrite=True)
            raise _interrupted(history, kept, GO_ON if checkpoints.exists() else "")
        checkpoints.finish()
        fitted.save(folder, overwrite=overwrite)
        checkpoints.remove()
    return fitted


def _interrupted(history: History, kept: Path | None = None, fix: str = "") -> Interrupted:
    epochs = len(history.epochs)
    what = f"The {'best one is' if epochs else 'weights so far are'} kept in {kept}." if kept else ""
    return Interrupted("fit", f"stopped after {counted(epochs, 'whole epoch')}", fix=f"{what} {fix}".strip())


def _fitted(
    data: Any, chosen: FitOptions, quiet: bool, checkpoints: Checkpoints | None = None
) -> tuple[Fitted, History]:
    """Read the rows and fit them; returns the result."""
    task = find_task(chosen.task)
    described = _described(chosen, task)
    if data is None:
        if not described:
            raise DataError("data", "is None", "rows, or --labels FILE")
        return Fitted(describe(described, chosen, f"--labels {chosen.labels}")), History()
    names, rows, where = read_rows(data)
    wanted = chosen.to_dict() | {"tag_names": _tag_names(chosen.tag_names, task)}
    rows, word = in_sentences(rows, names, task.form, wanted, where)
    wanted["text"] = word or wanted["text"]
    columns = _columns(task, wanted, names, where)
    examples, bad, notes = _labelled(rows, columns, task, chosen)
    notes += _unread_pair(names, columns)
    if described:
        examples, more_notes = with_descriptions(examples, described)
        notes += more_notes
    held_out, bad_held_out, more_notes = _held_out(chosen, task, columns)
    notes += more_notes
    result = fit_examples(examples, held_out, chosen, columns.to_dict(), where, quiet=quiet, checkpoints=checkpoints)
    fitted = Fitted(result.artifact)
    notes += [f"left out: {line}" for line in bad + bad_held_out] + result.warnings
    fitted.warnings = notes_in_python(notes)
    return fitted, result.history


def _described(options: FitOptions, task: type[Task]) -> list[Example]:
    """The descriptions of labels, as rows."""
    if options.labels is None:
        return []
    if not task.can_be_described:
        raise UsageError("--labels", f"is given, but --task {task.name} has no labels to describe", "--task classify")
    return read_descriptions(Path(options.labels))


def _labelled(
    rows: Iterable[Row], columns: Columns, task: type[Task], options: FitOptions
) -> tuple[list[Example], list[str], list[str]]:
    """Valid examples, the bad rows, and notes about the file."""
    read = (to_example(row, columns, task.read, task.settled) for row in rows)
    sound, bad = sound_examples(read, options.skip_bad_rows)
    return sound, bad, notes_on(rows) + mended(sound)


def _held_out(
    options: FitOptions, task: type[Task], columns: Columns
) -> tuple[Sequence[Example] | float | None, list[str], list[str]]:
    if options.valid is None:
        return None, [], []
    try:
        share = float(options.valid)
    except ValueError:
        path = Path(options.valid)
        if options.valid != STDIO and not path.suffix and not path.exists():
            saw = f'is "{options.valid}"'
            raise UsageError("--valid", saw, f"a file, or a share from 0 to {MOST_HELD_OUT:g} such as 0.1") from None
        names, rows, where = read_rows(options.valid)
        rows, _ = in_sentences(rows, names, task.form, columns.to_dict(), where)
        _columns(task, columns.to_dict(), names, where)
        return _labelled(rows, columns, task, options)
    check_share(share, "--valid", "a file, or a share")
    return share, [], []


def _columns(task: type[Task], wanted: Mapping[str, Any], names: Sequence[str], where: str) -> Columns:
    kinds = {"several": task.several_labels, "numbers": task.several_numbers}
    return Columns.find(task.form, wanted, names, where, **kinds)


def _tag_names(given: str | None, task: type[Task]) -> list[str]:
    """The names of tags: a,b,c, or the lines of a file."""
    if given is None:
        return []
    if "tags" not in FORMS[task.form].label:
        raise UsageError("--tag-names", f"is given, but --task {task.name} has no tags", "", "Leave --tag-names out.")
    path = Path(given)
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else given.split(",")
    names = [line.strip() for line in lines if line.strip()]
    if len(names) < 2 or len(set(names)) < len(names):
        saw = f"has {counted(len(names), 'name')}" if len(names) < 2 else "has a name twice"
        raise UsageError("--tag-names", saw, "each tag once, in the order of its number, or a file with one a line")
    return names


def _unread_pair(names: list[str], columns: Columns) -> list[str]:
    unread = [name for name in SYNONYMS["pair"] if name in names and name not in columns.to_dict().values()]
    if not FORMS[columns.form].is_plain or columns.pair or not unread:
        return []
    return [f'column "{unread[0]}" is not read; to fit on pairs: --pair {unread[0]}']
