"""Counts of the rows of a job, or of a part of it."""

from __future__ import annotations

from dataclasses import dataclass, field

# Bad rows that are shown at the end; all of them stand in the errors file.
SHOWN_ERRORS = 10


@dataclass(slots=True)
class Counts:
    """Counts of rows.

    Args:
        rows: rows read.
        failed: rows without an answer.
        truncated: rows with tokens cut.
        windowed: rows that were read in several windows.
        errors: the first bad rows, as `file:line: what is wrong`.
        left_out: columns that are not in the header.
    """

    rows: int = 0
    failed: int = 0
    truncated: int = 0
    windowed: int = 0
    errors: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(self, other: Counts) -> None:
        """Add other counts; only as many bad rows are kept as are shown."""
        for name in ("rows", "failed", "truncated", "windowed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.errors = [*self.errors, *other.errors][:SHOWN_ERRORS]
        self.left_out = list(dict.fromkeys([*self.left_out, *other.left_out]))

    def fail(self, line: str) -> None:
        """Count a bad row."""
        self.failed += 1
        if len(self.errors) < SHOWN_ERRORS:
            self.errors.append(line)


@dataclass(slots=True)
class Summary(Counts):
    """What a job did.

    Args:
        errors_file: the file with all bad rows, or None.
        notes: notes for the user about the input.
        parts: the folder with a shard's parts, to be gathered later; None: the output is complete.
        max_tokens: of a window.
    """

    errors_file: str | None = None
    notes: list[str] = field(default_factory=list)
    parts: str | None = None
    max_tokens: int = 0
