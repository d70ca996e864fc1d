"""The checkpoint of a fit, in a file beside its output: intact after kill -9 at any moment, removed at the end."""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from safetensors import SafetensorError, safe_open
from torch import Tensor

from berthead.errors import OutputError, UsageError
from berthead.storage.files import put_in_place
from berthead.storage.tensors import write_tensors

FORMAT_VERSION = 1
# At the end of an epoch there is a checkpoint, unless the last one is more recent than this, or than
# this many times the time that writing it took.
LEAST_SECONDS, LEAST_TIMES = 5.0, 20
# safetensors first writes to its own name: so the partial file is in a folder.
_FILE, _ASIDE, _LOCK, _DONE = "checkpoint.safetensors", "part", "lock", "done"
_ANEW = "Give --overwrite instead of --resume to start over."


@dataclass(frozen=True, slots=True)
class Saved:
    """The state of a fit.

    Args:
        state: the part that is JSON.
        tensors: everything else, by name.
    """

    state: dict[str, Any]
    tensors: Mapping[str, Tensor]


@dataclass(slots=True)
class Checkpoints:
    """The checkpoint of one fit: at most one whole file, and the one that is being written.

    Args:
        folder: its folder.
        minutes: the time between checkpoints within an epoch; 0: one after every step.
        resume: continue from the checkpoint.
        writes: whether this process writes; the others only read.
    """

    folder: Path
    minutes: float = 10.0
    resume: bool = False
    writes: bool = True
    identity: dict[str, Any] = field(default_factory=dict)
    """What the fit depends on, by the names that its user knows."""
    _lock: TextIO | None = None
    _last: float = field(default_factory=lambda: time.monotonic())
    _took: float = 0.0
    _has_failed: bool = False

    def check(self, overwrite: bool) -> None:
        """Check that a fit may begin, before any work is done.

        Args:
            overwrite: start over, whatever is there.

        Raises:
            OutputError: there is an unfinished fit, or something else.
        """
        if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
            raise OutputError(str(self.folder), "is not a folder", "the folder of a checkpoint", "Give another --out.")
        there = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()
        if not there <= {_FILE, _ASIDE, _LOCK, _DONE}:
            raise OutputError(
                str(self.folder), "holds other files", "the folder of a checkpoint", "Give another --out."
            )
        if self.exists() and not self.resume and not overwrite:
            fix = "Add --resume to continue it, or --overwrite to start over."
            raise OutputError(str(self.folder), "holds an interrupted fit", "", fix)

    def __enter__(self) -> Self:
        if self.writes:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / _LOCK).open("a", encoding="ascii")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._lock.close()
                fix = "Wait for it, or give another --out."
                raise OutputError(str(self.folder), "is used by a fit that is still running", "", fix) from None
            except OSError:
                pass  # some network file systems lock nothing
            if not self.resume:
                self._unlink(_FILE, _DONE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.writes and not self.exists():
            self.remove()
        if self._lock:
            self._lock.close()

    def for_reading(self) -> Checkpoints:
        """The same for a process that only reads."""
        return Checkpoints(self.folder, self.minutes, self.resume, writes=False)

    def exists(self) -> bool:
        """Whether there is a whole checkpoint."""
        return (self.folder / _FILE).is_file()

    def read(self, identity: Mapping[str, Any]) -> Saved | None:
        """The state of the fit that is resumed.

        Args:
            identity: what the fit depends on, by names known to the user; JSON.

        Returns:
            The state; None: the fit starts from the beginning.

        Raises:
            UsageError: the checkpoint is of another fit; the message has the old and new values.
            OutputError: it is broken.
        """
        self.identity = {"format": FORMAT_VERSION, **identity}
        if not self.resume or not self.exists():
            return None
        try:
            with safe_open(self.folder / _FILE, framework="pt") as file:
                written = json.loads(file.metadata()["fit"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            was, state = dict(written["identity"]), dict(written["state"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise OutputError(str(self.folder / _FILE), f"cannot be read ({error})", "", _ANEW) from error
        now = json.loads(json.dumps(self.identity))
        changed = [
            f"{name} was {_shown(was.get(name))} and is {_shown(now.get(name))}"
            for name in dict.fromkeys((*was, *now))
            if was.get(name) != now.get(name)
        ]
        if changed:
            fix = f"Use the same data and options as before. {_ANEW}"
            raise UsageError(f"--resume {self.folder}", "; ".join(changed), "", fix)
        return Saved(state, tensors)

    def is_due(self, *, epoch_ended: bool = False) -> bool:
        """Whether the next checkpoint is due."""
        passed = time.monotonic() - self._last
        least = max(LEAST_SECONDS, LEAST_TIMES * self._took) if epoch_ended else 60 * self.minutes
        return self.writes and passed >= min(least, 60 * self.minutes)

    def write(self, saved: Saved, say: Callable[[str], None]) -> None:
        """Write a checkpoint under another name and rename it over the last one.

        Args:
            saved: the state of the fit.
            say: called once if the checkpoint cannot be written: the fit continues, and the last checkpoint stays.
        """
        started = time.monotonic()
        about = json.dumps({"identity": self.identity, "state": saved.state})
        aside = self.folder / _ASIDE / _FILE
        try:
            self._clear()
            aside.parent.mkdir()
            write_tensors(_apart(saved.tensors), aside, {"fit": about})
            put_in_place(aside, self.folder / _FILE)
        except (OSError, SafetensorError) as error:
            if not self._has_failed:
                say(f"{self.folder}: the checkpoint could not be written ({error}); the fit continues")
            self._has_failed = True
        self._clear()
        self._last = time.monotonic()
        self._took = self._last - started

    def finish(self) -> None:
        """Record that the model folder is about to be written: from now on a folder there is of this fit."""
        (self.folder / _DONE).touch()

    def has_finished(self) -> bool:
        """Whether the fit had reached the writing of its model folder; False without a whole checkpoint."""
        return (self.folder / _DONE).exists()

    def remove(self) -> None:
        """Remove the checkpoint and its folder."""
        if self.writes:
            self._clear()
            self._unlink(_FILE, _LOCK, _DONE)
            if self.folder.is_dir() and not any(self.folder.iterdir()):
                self.folder.rmdir()

    def _clear(self) -> None:
        """Remove the partial file of a killed process."""
        shutil.rmtree(self.folder / _ASIDE, ignore_errors=True)

    def _unlink(self, *names: str) -> None:
        for name in names:
            (self.folder / name).unlink(missing_ok=True)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU that share no memory, as safetensors requires."""
    places: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        apart[name] = plain.clone() if plain.data_ptr() in places else plain
        places.add(apart[name].data_ptr())
    return apart


def _shown(value: Any) -> str:
    text = "not given" if value is None else f"{value:.12g}" if isinstance(value, float) else str(value)
    return f"{text[:12]}…" if len(text) == 64 else text
