"""predict_file(): a file or a stream in, the same rows with predictions out, in constant memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from berthead.data.words import WordTable
from berthead.errors import Interrupted, OutputError, UsageError, counted
from berthead.formats.readers import STDIO
from berthead.formats.registry import split_sheet
from berthead.formats.table import Table
from berthead.formats.writers import RowWriter, check_writable, open_writer
from berthead.function.protocol import widest
from berthead.jobs.assembly import errors_file_of
from berthead.jobs.counts import Summary
from berthead.jobs.inputs import is_file, matching
from berthead.jobs.job import Job, run
from berthead.jobs.work import Chunk, Pool, Work
from berthead.options import PredictOptions
from berthead.predict.columns import named_columns
from berthead.predict.predictor import Applier
from berthead.predict.reading import prefetched
from berthead.progress import Progress

if TYPE_CHECKING:
    from berthead.predict.joined import JoinedPredictor


def predict_file(
    predictor: Applier | JoinedPredictor,
    source: str | Path | Sequence[str | Path],
    target: str,
    options: PredictOptions,
    quiet: bool = False,
    again: str = "the same call with resume=True.",
    pool: Pool | None = None,
) -> Summary:
    """Predict every row of a file, or of several as one table.

    Args:
        predictor: the fitted function, or several; then each added column begins with the function's name.
        source: a file of rows in any format that can be read; a pattern such as `texts/*.csv`, or several files of one
            format and with the same columns; or `-` for stdin.
        target: a file in any format that can be written, by its extension, or `-` for stdout; it is never half
            written.
        options: columns, what to add, and how the job is divided and resumed.
        quiet: show no progress.
        again: how the user resumes after an interruption.
        pool: computes the parts elsewhere, such as `berthead.jobs.ray.RayPool`; None: they are computed here.

    Returns:
        A summary. Rows without an answer are not in the target but in `<target>.errors.jsonl`.

    Raises:
        UsageError: an option that does not fit this input or output, or parts of another job.
        DataError: the input cannot be read.
        OutputError: the output cannot be written; parts that are whole are kept in `<target>.parts`.
        Interrupted: Ctrl-C; whole parts are kept; for stdin, finished rows are in `<target>.partial`.
    """
    check_writable(target)
    if target != STDIO:
        errors_file_of(target)
    paths = matching(source)
    lasting = target != STDIO and all(map(is_file, paths))
    _refuse(paths, target, options, lasting)
    if options.ray and pool is None:
        raise UsageError("ray", f'is "{options.ray}", but no pool was given', fix="Give pool=RayPool(options).")
    with Table(paths) as table:
        options = _by_sentence(table, predictor, options)
        work = Work.plan(predictor, options, table.columns, table.name)
        if lasting:
            job = Job(work, table, target, options, again, quiet, pool)
            _refuse_many(job, paths)
            with pool or nullcontext():
                summary = run(job)
            summary.notes += work.renamed()
            return summary
        summary = _stream(work, table, target, options, quiet)
    summary.notes += work.renamed()
    summary.max_tokens = widest(predictor.functions).policy.max_tokens
    return summary


def _by_sentence(table: Table, predictor: Applier | JoinedPredictor, options: PredictOptions) -> PredictOptions:
    """Make a table of a word a row one of a sentence a row; returns the options with its column of words."""
    function = widest(predictor.functions)
    wanted = named_columns(function, options, table.columns)
    words = WordTable.find(function.task.form, wanted, table.columns, table.peek, table.name, label=False)
    if words is None:
        return options
    table.through(words.sentences, words.note)
    return replace(options, text=words.word)


def _refuse(paths: Sequence[str], target: str, options: PredictOptions, lasting: bool) -> None:
    """Refuse an output that is also an input, and a stream where a file is needed."""
    for path in (split_sheet(path)[0] for path in paths if lasting):
        if Path(target).exists() and Path(path).exists() and Path(target).samefile(path):
            raise OutputError(target, "is the input", "another file", "The output would replace it.")
    for flag, given in (("--resume", options.resume), ("--shard", options.shard), ("--ray", options.ray)):
        if given and target == STDIO:
            raise UsageError(flag, "stdout keeps no parts", "a file: --out FILE")
        if given and not lasting:
            pipe = next("stdin" if path == STDIO else f"{path}, a pipe," for path in paths if not is_file(path))
            raise UsageError(flag, f"{pipe} cannot be read twice", "a file as IN", "Write the rows to a file.")


def _refuse_many(job: Job, paths: Sequence[str]) -> None:
    """Refuse more rows than the output format can hold, before any is computed."""
    most = job.output.most_rows
    if most is None or (len(paths) == 1 and job.table.format == job.output.format):
        return
    count = job.table.count()
    if count is not None and count <= most:
        return
    with Table(paths) as again:  # the count was a guess
        if job.table.view:
            again.through(*job.table.view)
        if again.skip(most + 1) > most:
            fix = "Write another format, or several files."
            raise OutputError(job.target, "has no room for all rows", f"at most {most:,} rows", fix)


def _stream(work: Work, table: Table, target: str, options: PredictOptions, quiet: bool) -> Summary:
    """Write rows directly to their output, which is never half written; after Ctrl-C finished rows are kept."""
    summary = Summary()
    with ExitStack() as stack:
        opened = open_writer(target, table.format, table.columns, table.schema, dict(work.added))
        writer = stack.enter_context(opened)
        errors = stack.enter_context(_Errors(target))
        progress = stack.enter_context(Progress("predict", None, "rows", quiet))
        chunks = stack.enter_context(closing(prefetched(_chunks(work, table, options.part_rows))))
        try:
            work.answer(_counted(chunks, progress), writer.write, errors.add, summary)
        except KeyboardInterrupt:
            table.abandon()
            raise _interrupted(table, writer, summary) from None
        summary.notes, summary.errors_file = table.notes + writer.notes, errors.written
    return summary


def _chunks(work: Work, table: Table, part_rows: int) -> Iterator[Chunk]:
    """Chunks as for a file, so that the answers are the same to the last bit."""
    for _, rows in table.parts(part_rows, lambda part: True):
        yield from work.read(rows)


def _counted(chunks: Iterable[Chunk], progress: Progress) -> Iterator[Chunk]:
    for chunk in chunks:
        yield chunk
        progress.advance(len(chunk.rows))


def _interrupted(table: Table, writer: RowWriter, summary: Summary) -> Interrupted:
    kept = writer.keep()
    saw = f"stopped after {counted(summary.rows, 'row')}"
    return Interrupted(table.name, saw, fix=f"They are kept in {kept}." if kept else "")


class _Errors:
    """Bad rows of a stream; the file is made with the first one."""

    def __init__(self, target: str) -> None:
        self.path = None if target == STDIO else errors_file_of(target)
        self._stack = ExitStack()
        self._writer: RowWriter | None = None

    @property
    def written(self) -> str | None:
        """The file, or None."""
        return self.path if self._writer else None

    def add(self, values: dict[str, Any]) -> None:
        """Write a bad row."""
        if self.path is None:
            return
        if self._writer is None:
            opened = open_writer(self.path, "jsonl", ["where", "error", "row"], None, {})
            self._writer = self._stack.enter_context(opened)
        self._writer.write(values)

    def __enter__(self) -> _Errors:
        if self.path is not None:
            # Errors of an earlier run would look like errors of this one.
            Path(self.path).unlink(missing_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        # After Ctrl-C the rows done are kept, and so are the errors among them.
        kept = kind is not None and issubclass(kind, Interrupted)
        self._stack.__exit__(*((None, None, None) if kept else (kind, error, trace)))
