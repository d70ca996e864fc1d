"""A job: file to file in parts, so that finished parts survive whatever happens to the process."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from operator import itemgetter
from typing import Any

from berthead.errors import Interrupted, counted
from berthead.formats.output import Output
from berthead.formats.registry import format_of
from berthead.formats.table import Table
from berthead.jobs.counts import Summary
from berthead.jobs.gather import already_gathered, gather_parts
from berthead.jobs.inputs import Fingerprint
from berthead.jobs.manifest import manifest_of, open_parts, window_in
from berthead.jobs.parts import PARTS, Part, PartsFolder
from berthead.jobs.shard import Shard
from berthead.jobs.work import Chunk, Pool, Work, compute_part
from berthead.options import PredictOptions
from berthead.predict.reading import prefetched
from berthead.progress import Progress
from berthead.records import Row
from berthead.storage.files import output_error, target_of

# Seconds between lines of progress where stderr is no terminal: a night's job has a log.
LOG_S = 60

Parts = Iterator[tuple[int, Iterator[Row]]]


@dataclass(frozen=True, slots=True)
class Job:
    """A table whose answers go to a file.

    Args:
        work: the computation on its rows.
        table: the rows.
        target: the file.
        options: rows a part, the shard, and whether to resume.
        again: what the user does to go on after an interruption.
        quiet: show no progress.
        pool: computes the parts elsewhere; None: they are computed here.
    """

    work: Work
    table: Table
    target: str
    options: PredictOptions
    again: str
    quiet: bool = False
    pool: Pool | None = None

    @property
    def shard(self) -> Shard:
        """Which parts this process computes."""
        return Shard.parse(self.options.shard) if self.options.shard else Shard()

    @property
    def output(self) -> Output:
        """The format and columns of the output."""
        table = self.table
        return Output.of(format_of(self.target)[0], table.format, table.columns, table.schema, self.work.added)


def run(job: Job) -> Summary:
    """Compute the missing parts; a whole job then joins them into the output, a shard leaves its parts.

    Args:
        job: the job.

    Returns:
        A summary, of this process and earlier ones.

    Raises:
        UsageError: there are parts, without `resume` or of another job.
        DataError: the input cannot be read, or changed meanwhile.
        OutputError: the output cannot be written; whole parts are kept.
        Interrupted: Ctrl-C; whole parts are kept.
    """
    folder: PartsFolder | None = None
    try:
        inputs = [Fingerprint.of(path) for path in job.table.paths]
        folder = _opened(job, inputs)
        return _run(job, folder, inputs)
    except KeyboardInterrupt:
        job.table.abandon()
        raise _interrupted(job, folder.whole if folder else {}) from None
    except OSError as error:
        raise output_error(job.target, error, f"Then go on: {job.again}" if folder and folder.whole else "") from error
    finally:
        if folder is not None:
            folder.release()


def _opened(job: Job, inputs: list[Fingerprint]) -> PartsFolder:
    """The job's parts folder; if the target is a link, beside the file that it points to."""
    place = target_of(job.target)
    functions = {name: one.identity() for name, one in job.work.predictor.functions.items()}
    manifest = manifest_of(inputs, functions, _options(job), computed_by(job.work), job.output)
    return open_parts(
        place.with_name(place.name + PARTS), manifest, job.output.part_format, job.shard,
        resume=job.options.resume, name=f"{job.target}{PARTS}",
    )  # fmt: skip


def _run(job: Job, folder: PartsFolder, inputs: list[Fingerprint]) -> Summary:
    if (summary := already_gathered(folder, job.target)) is not None:
        return summary
    end = folder.end
    if end is None or any(folder.shard.owns(part) and part not in folder.whole for part in range(end["parts"])):
        _compute(job, folder, inputs)
        rows = job.table.rows
        end = {"rows": rows, "parts": -(-rows // job.options.part_rows), "notes": job.table.notes}
        folder.reached_end(end)
    if folder.shard.alone:
        return gather_parts(job.target, folder.manifest or {}, folder.whole, end, folder)
    summary = Summary(notes=end["notes"], parts=f"{job.target}{PARTS}", max_tokens=window_in(folder.manifest or {}))
    for _, part in sorted(folder.whole.items()):
        summary.add(part.counts)
    return summary


def _compute(job: Job, folder: PartsFolder, inputs: Sequence[Fingerprint]) -> None:
    """Compute the parts that are missing."""
    part_rows, done = job.options.part_rows, frozenset(folder.whole)
    parts = job.table.parts(part_rows, lambda part: folder.shard.owns(part) and part not in done)
    begun = sum(part.counts.rows for part in folder.whole.values())
    total = None if job.quiet else job.table.count()
    share = None if total is None else folder.shard.share(total, part_rows)
    shown = Progress("predict", share, "rows", job.quiet, done=begun, log_s=LOG_S)
    compute = _compute_here if job.pool is None else _compute_elsewhere
    with shown as progress, closing(compute(job, folder, parts, progress)) as written:
        for _ in written:
            for one in inputs:
                one.check_unchanged()  # so every part is of the rows that the manifest names


def _compute_here(job: Job, folder: PartsFolder, parts: Parts, progress: Progress) -> Generator[None]:
    """Compute the parts in order, yielding before each is written; the next rows are read during the computation."""

    def read() -> Iterator[tuple[int, Chunk]]:
        for number, rows in parts:
            for chunk in job.work.read(rows):
                yield number, chunk

    with closing(prefetched(read())) as ready:
        for number, chunks in groupby(ready, key=itemgetter(0)):
            with folder.writing(number) as part:
                counted = _counted((chunk for _, chunk in chunks), progress)
                part.counts = compute_part(job.work, job.output, counted, part.answers, part.errors)
                yield


def _compute_elsewhere(job: Job, folder: PartsFolder, parts: Parts, progress: Progress) -> Generator[None]:
    """Write the parts as the pool finishes them, yielding before each."""
    assert job.pool is not None
    with closing(job.pool.compute(job.work, job.output, parts, computed_by(job.work))) as computed:
        for one in computed:
            with folder.writing(one.number) as part:
                part.answers.write(one.answers)
                part.errors.write(one.errors)
                part.counts = one.counts
                yield
            progress.advance(one.counts.rows)


def _counted(chunks: Iterable[Chunk], progress: Progress) -> Iterator[Chunk]:
    for chunk in chunks:
        yield chunk
        progress.advance(len(chunk.rows))


def _interrupted(job: Job, whole: Mapping[int, Part]) -> Interrupted:
    rows = sum(part.counts.rows for part in whole.values())
    are = "is" if rows == 1 else "are"
    kept = f"{counted(rows, 'row')} {are} kept in {job.target}{PARTS}" if rows else "no part was finished"
    return Interrupted(job.table.name, f"stopped; {kept}", fix=f"To go on: {job.again}")


# What decides the bytes of a part


def _options(job: Job) -> dict[str, Any]:
    columns, options, predictor = job.work.columns, job.options, job.work.predictor
    return {
        "text": columns.text,
        "pair": columns.pair,
        "choices": list(columns.choices),
        "probabilities": options.probabilities,
        "precision": predictor.engine.precision,
        "token_budget": predictor.token_budget,
        "part_rows": options.part_rows,
    }


def computed_by(work: Work) -> dict[str, Any]:
    """Everything in this process that decides the last bits of answers.

    Args:
        work: the computation.

    Returns:
        Versions, kernels, and threads if they matter, by name.
    """
    by = {name: _version(name) for name in ("berthead", "tokenizers", "numpy", "pyarrow")}
    return by | work.predictor.computed_by()


def _version(name: str) -> str | None:
    """The version of a package; exported functions do not need all of them."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
