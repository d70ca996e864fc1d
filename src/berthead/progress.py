"""Progress on stderr: rate and time left, if stderr is a terminal; results never go there."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from berthead.errors import printable


class Progress:
    """A progress line with count, rate and time left; `say` writes lines that stay.

    Args:
        what: the work, in a word.
        total: units to do; None: unknown.
        unit: what is counted, in the plural.
        quiet: show and say nothing.
        done: units that were done before.
        log_s: seconds between lines if stderr is no terminal; None: no lines.

    Example:
        >>> with Progress("predict", total=2, unit="rows", quiet=True) as progress:
        ...     progress.advance(2)
    """

    def __init__(
        self, what: str, total: int | None, unit: str = "rows", quiet: bool = False, *, done: int = 0,
        log_s: float | None = None,
    ) -> None:  # fmt: skip
        self.what, self.total, self.unit, self.quiet = what, total, unit, quiet
        self.done, self._before, self._log_s = done, done, log_s
        self._started = self._logged = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[unit]}"),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.what, total=self.total, completed=self.done, unit=self.unit, rate="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def rate(self) -> float:
        """Units a second since the start."""
        return (self.done - self._before) / max(time.monotonic() - self._started, 1e-9)

    def advance(self, units: int) -> None:
        """Count units as done."""
        self.done += units
        if self._bar is not None:
            self._bar.update(self._task, advance=units, rate=f"{self.rate:,.0f}/s")
        elif self._log_s is not None and time.monotonic() >= self._logged + self._log_s:
            self._logged = time.monotonic()
            with suppress(OSError):  # a log that cannot be written is no reason to stop
                self.say(self.line)

    @property
    def line(self) -> str:
        """The progress in words.

        Example:
            >>> Progress("predict", total=20, done=5).line.split(", ")[0]
            'predict: 5 of 20 rows'
        """
        of, left = "", ""
        if self.total and self.total >= self.done:
            of = f" of {self.total:,}"
            left = f", {timedelta(seconds=round((self.total - self.done) / max(self.rate, 1e-9)))} left"
        return f"{self.what}: {self.done:,}{of} {self.unit}, {self.rate:,.0f}/s{left}"

    def say(self, line: str) -> None:
        """Write a line that stays."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.console.print(printable(line), highlight=False, markup=False)
        else:
            print(printable(line), file=sys.stderr, flush=True)
