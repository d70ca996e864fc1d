"""What commands say: results on stdout, notes on stderr."""

from __future__ import annotations

import json
import sys
from typing import Any

from berthead.errors import OutputError


def warn(lines: list[str]) -> None:
    """Print notes; of those on single rows the first few of each kind."""
    groups = [[line for line in lines if line.startswith(kind)] for kind in _ROW_NOTES]
    shown = [line for line in lines if not line.startswith(_ROW_NOTES)]
    for kind, rows in zip(_ROW_NOTES, groups, strict=True):
        more = [f"{kind}{len(rows) - _SHOWN_ROWS:,} more rows"] if len(rows) > _SHOWN_ROWS else []
        shown += rows[:_SHOWN_ROWS] + more
    for line in shown:
        print(f"note: {line}", file=sys.stderr)


# Notes on single rows: there may be thousands.
_ROW_NOTES = ("left out: ", "mended: ", "out of place: ")
# Bad rows shown on a terminal; --json tells them all.
_SHOWN_ROWS = 10


def print_json(value: Any) -> None:
    """Print a result as JSON, letters as they are."""
    print_text(json.dumps(value, ensure_ascii=False, indent=2))


def print_text(text: str) -> None:
    """Write a result to stdout now, so that a full disk is met here."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError("stdout", f"cannot be written ({error.strerror})", fix="Free some space.") from error


def say_choice(fitted: Any) -> None:
    """Which precision `--precision auto` took, and why."""
    if fitted.choice is not None:
        print(fitted.choice, file=sys.stderr)
