"""What became of the rows of a job, or of a part of it."""

from __future__ import annotations

from dataclasses import dataclass, field

# Bad rows that are shown at the end; all of them stand in the errors file.
SHOWN_ERRORS = 10


@dataclass(slots=True)
class Counts:
    """What became of rows.

    Args:
        rows: rows read.
        failed: rows without an answer.
        truncated: rows of which tokens were cut.
        windowed: rows that were read in several windows.
        errors: the first bad rows, as `file:line: what is wrong`.
        left_out: columns that the header does not have.
    """

    rows: int = 0
    failed: int = 0
    truncated: int = 0
    windowed: int = 0
    errors: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(self, other: Counts) -> None:
        """Count other rows too; of the bad ones as many are kept as are shown."""
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
        errors_file: where all bad rows stand, or None.
        notes: what the user should know about the input.
        parts: the folder with the parts of a shard, which are yet to be gathered; None: the output is there.
        max_tokens: of a window.
    """

    errors_file: str | None = None
    notes: list[str] = field(default_factory=list)
    parts: str | None = None
    max_tokens: int = 0
