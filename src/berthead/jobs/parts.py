"""The folder of a long job's finished parts: no part is ever half written, and one manifest describes them."""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from berthead.errors import UsageError
from berthead.jobs.counts import Counts
from berthead.jobs.shard import Shard
from berthead.storage.files import Aside, sync_folder, write_json
from berthead.storage.hashes import file_sha256

PARTS = ".parts"  # what the folder is called, behind the output's name
MANIFEST, END, LOCK = "manifest.json", "end.json", "lock"
# What the job's files are called; those of parts begin with their number.
_FIXED = re.compile(rf"{re.escape(MANIFEST)}|{re.escape(END)}|{LOCK}(-\d+-of-\d+)?")
_OF_A_PART = re.compile(r"(\d{6,})\.(json|errors\.jsonl|[a-z]+)")
_ASIDE = re.compile(r"\.(.+)\.part-\d+")


@dataclass(frozen=True, slots=True)
class Part:
    """A finished part.

    Args:
        answers: the file of its rows.
        errors: the file of its bad rows, or None.
        counts: counts of its rows.
        sha256: of both files.
        shard: the process that computed it, as `K/N`.
    """

    answers: Path
    errors: Path | None
    counts: Counts
    sha256: tuple[str, ...]
    shard: str


class OpenPart:
    """A part that is being written.

    Attributes:
        answers: the stream of its rows.
        errors: the stream of its bad rows.
        counts: counts of its rows, to be filled in.
    """

    def __init__(self, answers: Path, errors: Path) -> None:
        self._answers = Aside(answers)
        try:
            self._errors = Aside(errors)
        except OSError:
            self._answers.discard()
            raise
        self.answers: BinaryIO = self._answers.stream
        self.errors: BinaryIO = self._errors.stream
        self.counts = Counts()

    def publish(self, record: Path, shard: str) -> Part:
        """Rename the files into place, then write the record that says so."""
        asides = [self._answers, self._errors]
        for aside in asides:
            aside.seal()
        if not self.counts.failed:
            asides.pop().discard()
        sha256 = tuple(file_sha256(aside.part) for aside in asides)
        answers, *errors = [aside.rename() for aside in asides]
        # The errors file of a killed process has the same rows: a part without a bad row never leaves one.
        written = {"answers": answers.name, "errors": errors[0].name if errors else None, "sha256": sha256}
        write_json(record, written | {"shard": shard, "counts": asdict(self.counts)}, compact=True)
        return Part(answers, errors[0] if errors else None, self.counts, sha256, shard)

    def discard(self) -> None:
        """Leave nothing behind."""
        self._answers.discard()
        self._errors.discard()


class PartsFolder:
    """A folder of parts, locked by one process, or by several shards.

    Args:
        path: the folder.
        part_format: the extension of the parts' files.
        shard: which parts this process computes.

    Attributes:
        whole: the finished parts, by number, as far as this process knows.

    Raises:
        OSError: it cannot be made or written.
        UsageError: another process works in it.
    """

    def __init__(self, path: Path, part_format: str, shard: Shard) -> None:
        self.path, self.part_format, self.shard = path, part_format, shard
        path.mkdir(exist_ok=True)
        # A shard lets the others in, and keeps out a process that does all parts, and itself.
        self._locks = [self._locked(LOCK, shared=not shard.alone)]
        if not shard.alone:
            self._locks.append(self._locked(f"{LOCK}-{shard.number}-of-{shard.of}"))
        self.whole: dict[int, Part] = {}
        self.look()

    def look(self) -> None:
        """Find this process's parts that are finished and intact; a damaged part counts as missing."""
        wanted = filter(self.shard.owns, sorted(self._records() - self.whole.keys()))
        found = {number: self._read(number) for number in wanted}
        self.whole |= {number: part for number, part in found.items() if part is not None}

    @property
    def empty(self) -> bool:
        """Whether no shard has finished a part yet."""
        return not self._records()

    @property
    def manifest(self) -> dict[str, Any] | None:
        """The manifest, or None if there is none that can be read."""
        return _read_json(self.path / MANIFEST)

    def begin(self, manifest: dict[str, Any]) -> None:
        """Write the manifest, unless another shard was faster."""
        with suppress(FileExistsError):
            write_json(self.path / MANIFEST, manifest, replace=False, compact=True)

    def finish(self, output: dict[str, Any]) -> None:
        """Record that the output is in place, so that nothing is computed again while parts are removed."""
        write_json(self.path / MANIFEST, (self.manifest or {}) | {"finished": output}, compact=True)

    @property
    def end(self) -> dict[str, Any] | None:
        """`rows`, `parts` and `notes` of the whole input; None until it was read to its end."""
        return _read_json(self.path / END)

    def reached_end(self, end: dict[str, Any]) -> None:
        """Record how many parts there are, as `end` returns it."""
        write_json(self.path / END, end, compact=True)

    @contextmanager
    def writing(self, number: int) -> Iterator[OpenPart]:
        """A context for writing a part: it is kept when the block ends, and discarded after an exception.

        Raises:
            OSError: it cannot be written.
        """
        stem = f"{number:06}"
        # A record of a part that was found damaged is no record of this one.
        (self.path / f"{stem}.json").unlink(missing_ok=True)
        part = OpenPart(self.path / f"{stem}.{self.part_format}", self.path / f"{stem}.errors.jsonl")
        try:
            yield part
            self.whole[number] = part.publish(self.path / f"{stem}.json", str(self.shard))
        except BaseException:
            part.discard()
            raise

    def clear(self) -> None:
        """Remove all files of the job except the locks; a record after what it is about, the manifest last."""
        self.whole = {}
        for path in sorted(self._ours(), key=lambda path: (path.name == MANIFEST, path.suffix == ".json")):
            if not path.name.startswith(LOCK):
                path.unlink()

    def remove(self) -> None:
        """Remove the folder, unless it holds files that are not ours."""
        self.clear()
        for path in self._ours():
            path.unlink()
        self.close()  # before the folder goes: a shared disk keeps open files under other names
        with suppress(OSError):
            self.path.rmdir()
        sync_folder(self.path.parent)

    def release(self) -> None:
        """Unlock the folder; remove it if it has no parts and no other shard works in it."""
        if self._locks and self.shard.alone and self.empty:
            with suppress(OSError):
                self.remove()
        self.close()

    def close(self) -> None:
        """Unlock the folder."""
        while self._locks:
            self._locks.pop().close()

    def _records(self) -> set[int]:
        return {int(path.stem) for path in self.path.glob("*.json") if path.stem.isdecimal()}

    def _ours(self) -> list[Path]:
        """The job's own files: of parts that there are records of, or that may have been begun since."""
        records = self._records()
        begun = max(records, default=-1) + self.shard.of
        found = []
        for path in self.path.iterdir():
            aside = _ASIDE.fullmatch(path.name)
            name = aside[1] if aside else path.name
            part = _OF_A_PART.fullmatch(name)
            if _FIXED.fullmatch(name) or (part and (int(part[1]) in records or int(part[1]) <= begun)):
                found.append(path)
        return found

    def _read(self, number: int) -> Part | None:
        record = _read_json(self.path / f"{number:06}.json")
        try:
            written: dict[str, Any] = record or {}
            files = [self.path / Path(name).name for name in (written["answers"], written["errors"]) if name]
            part = Part(
                files[0], files[1] if len(files) > 1 else None, Counts(**written["counts"]),
                tuple(written["sha256"]), str(written["shard"]),
            )  # fmt: skip
            sound = tuple(map(file_sha256, files)) == part.sha256
        except (OSError, KeyError, TypeError, ValueError):
            return None
        return part if sound else None

    def _locked(self, name: str, shared: bool = False) -> Any:
        """An open file with a lock that is released when this process ends, however it ends."""
        file = open(self.path / name, "a")  # noqa: SIM115
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            who = f"another process with --shard {self.shard}" if name != LOCK else "another process"
            fix = "Wait for it, or stop it."
            raise UsageError(str(self.path), f"{who} is using it", fix=fix) from None
        except OSError:
            pass  # a shared disk without locks
        return file


def _read_json(path: Path) -> dict[str, Any] | None:
    with suppress(OSError, ValueError):
        read = json.loads(path.read_bytes())
        return read if isinstance(read, dict) else None
    return None
