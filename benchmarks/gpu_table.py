"""What benchmarks/gpu.py measures, how long each part may take, and the table that is made of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

ENCODERS = ("minilm", "base")
PEER = "transformers bf16"
PREDICTED = ("short texts", "long texts", "one text")
HEADER = ("work", "encoder", "engine", "rows/s", "tokens/s", "times transformers", "same answers", "computed by")
NO_TIME = "it was not reached"


class Budget:
    """Seconds that are there for all steps together.

    Args:
        seconds: from now on.
        clock: seconds that only grow.

    Example:
        >>> budget = Budget(100.0, clock=lambda: 0.0)
        >>> budget.share(0.6), budget.share(0.6, keep=0.7)
        (60.0, 30.0)
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self._clock, self._begun = seconds, clock, clock()

    def spent(self) -> float:
        """Seconds since it began."""
        return self._clock() - self._begun

    def share(self, wanted: float, keep: float = 0.0) -> float:
        """Seconds that a step may take.

        Args:
            wanted: the share of all that it may take at most.
            keep: the share that later steps keep.

        Returns:
            What is left beside that, and no more than is wanted; never below 0.
        """
        return max(0.0, min(wanted * self.seconds, (1 - keep) * self.seconds - self.spent()))


@dataclass(frozen=True)
class Step:
    """What one process measures.

    Args:
        verb: `predict` or `fit`.
        encoder: one of `ENCODERS`.
        engine: `berthead` or `transformers`.
    """

    verb: str
    encoder: str
    engine: str

    def cells(self) -> list[tuple[str, str, str]]:
        """What is expected of it: work, encoder and engine of each row of the table."""
        works = PREDICTED if self.verb == "predict" else ("fit",)
        both = self.engine == "berthead" and self.verb == "predict"
        precisions = ("fp32", "bf16") if both else ("bf16",)
        return [(work, self.encoder, f"{self.engine} {precision}") for work in works for precision in precisions]


def plan() -> list[Step]:
    """All steps, those that say most first: what there is no time for is missing at the end."""
    return [
        Step(verb, encoder, engine)
        for encoder in ENCODERS
        for verb in ("predict", "fit")
        for engine in ("berthead", "transformers")
    ]


def rows() -> list[tuple[str, str, str]]:
    """All cells in the order of the table: what is compared stands together."""
    cells = [cell for step in plan() for cell in step.cells()]
    return sorted(cells, key=lambda cell: (ENCODERS.index(cell[1]), (*PREDICTED, "fit").index(cell[0])))


@dataclass
class Record:
    """All that is known so far; `write` makes the files of it.

    Args:
        out: the folder of gpu.md and gpu.json.
        rehearse: small sizes on the processor.
        machine: names and versions, and what was failed to install.
        tests: passed, failed and skipped ones, `failures` with their reasons, and why they ended early.
        cells: by work, encoder and engine: what was measured, or `failed` with the reason.
        notes: what else was seen.
        seconds: that all took.
    """

    out: Path
    rehearse: bool = False
    machine: dict[str, Any] = field(default_factory=dict)
    tests: dict[str, Any] = field(default_factory=dict)
    cells: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: int = 0

    def add(self, step: Step, lines: Sequence[dict[str, Any]], why: str) -> None:
        """What a process printed, and why it printed no more: what was expected of it and is not there has failed."""
        for line in lines:
            self.cells[line["work"], step.encoder, line["engine"]] = line
        for cell in step.cells():
            self.cells.setdefault(cell, {"failed": why or "nothing was printed"})

    def has_failed(self) -> bool:
        """Whether anything was not measured, or a test did not pass."""
        measured = all("failed" not in self.cells.get(cell, {"failed": NO_TIME}) for cell in rows())
        return not (measured and self.tests.get("passed") and not self.tests["failed"] and not self.tests["note"])

    def write(self) -> None:
        """Write both files; the way there may end at any time."""
        written = asdict(self) | {"out": str(self.out), "cells": [_named(*item) for item in self.cells.items()]}
        (self.out / "gpu.json").write_text(json.dumps(written, indent=1), encoding="utf-8")
        (self.out / "gpu.md").write_text(markdown(self) + "\n", encoding="utf-8")


def _named(cell: tuple[str, str, str], found: dict[str, Any]) -> dict[str, Any]:
    return dict(zip(("work", "encoder", "engine"), cell, strict=True)) | found


def markdown(record: Record) -> str:
    """The table, with what it was measured on above it and the tests below."""
    return "\n".join(_lines(record))


def _lines(record: Record) -> Iterator[str]:
    name = (
        "Rehearsal on the processor: these figures mean nothing" if record.rehearse else record.machine.get("gpu", "")
    )
    yield f"### {name}, {date.today().isoformat()}"
    yield ""
    yield from (f"- {key}: {_in_line(value)}" for key, value in record.machine.items() if value)
    yield from (f"- {_in_line(note)}" for note in record.notes)
    yield f"- all of it took {record.seconds} s: `make gpu`"
    yield ""
    yield _row(HEADER)
    yield _row(["---"] * len(HEADER))
    for cell in rows():
        found = record.cells.get(cell, {"failed": NO_TIME})
        yield _row([*cell, *_measured(record, cell, found)])
    yield ""
    if not record.tests:
        yield "Tests on the GPU: failed: they were not run."
        return
    counts = ", ".join(f"{record.tests[word]} {word}" for word in ("passed", "failed", "skipped"))
    yield f"Tests on the GPU: {counts}{'; ' + _in_line(record.tests['note']) if record.tests['note'] else ''}."
    yield from (f"- `{test}`: {_in_line(reason)}" for test, reason in record.tests["failures"].items())


def _measured(record: Record, cell: tuple[str, str, str], found: dict[str, Any]) -> list[str]:
    if "failed" in found:
        return [f"failed: {found['failed']}", "", "", "", ""]
    peer = record.cells.get((cell[0], cell[1], PEER), {}).get("rows_per_second")
    speed, same = found["rows_per_second"], found.get("same")
    return [
        _number(speed), _number(found["tokens_per_second"]), f"{speed / peer:.2f}" if peer else "",
        "" if same is None else f"{same:.2%}", found.get("how", ""),
    ]  # fmt: skip


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _row(words: Sequence[str]) -> str:
    return f"| {' | '.join(_in_line(word) for word in words)} |"


def _in_line(value: object) -> str:
    """A value as a part of one line of a table."""
    return " ".join(str(value).replace("|", "/").split())
