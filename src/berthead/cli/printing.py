"""Output of commands: results on stdout, notes on stderr."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from berthead.errors import OutputError, counted, printable

if TYPE_CHECKING:
    from berthead.records import Prediction


def warn(lines: list[str]) -> None:
    """Print notes; of notes about single rows only the first few of each kind."""
    groups = [[line for line in lines if line.startswith(kind)] for kind in _ROW_NOTES]
    shown = [line for line in lines if not line.startswith(_ROW_NOTES)]
    for kind, rows in zip(_ROW_NOTES, groups, strict=True):
        more = [f"{kind}{counted(len(rows) - _SHOWN_ROWS, 'more row')}"] if len(rows) > _SHOWN_ROWS else []
        shown += rows[:_SHOWN_ROWS] + more
    for line in shown:
        say(f"note: {line}")


def say(line: str) -> None:
    """Print a line to stderr."""
    print(printable(line), file=sys.stderr)


# Notes on single rows: there may be thousands.
_ROW_NOTES = ("left out: ", "corrected: ", "misplaced: ")
# Bad rows shown on a terminal; --json tells them all.
_SHOWN_ROWS = 10


def print_json(value: Any) -> None:
    """Print a result as JSON, without escaping letters."""
    print_text(json.dumps(value, ensure_ascii=False, indent=2))


def print_text(text: str) -> None:
    """Write a result to stdout and flush, so that a full disk fails here."""
    try:
        print(printable(text), flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError("stdout", f"cannot be written ({error.strerror})", fix="Free some space.") from error


def say_choice(fitted: Any) -> None:
    """Print which precision `--precision auto` chose, and why."""
    if fitted.choice is not None:
        say(str(fitted.choice))


def share_text(share: float) -> str:
    """A probability in four digits; never as 1, which none is.

    Example:
        >>> share_text(0.12345), share_text(0.99999)
        ('0.1235', '0.9999')
    """
    return f"{min(share, 0.9999):.4f}"


def as_line(prediction: Prediction, as_json: bool) -> str:
    """One answer for a terminal: `label  0.98`, or the whole record as JSON."""
    if as_json:
        return json.dumps(prediction.to_dict(), ensure_ascii=False)
    answer, spans = prediction.answer, prediction.spans
    if spans is not None and (isinstance(answer, list) or prediction.probabilities):
        shown = "\n".join(
            f"{one.start}-{one.end}  {one.label}  {one.text}  {share_text(one.score or 0)}" for one in spans
        )
        whole = "" if isinstance(answer, list) else f"{answer}  {share_text(prediction.score or 0)}\n"
        return whole + (shown or "(no span)")
    if spans is not None:
        place = f"  {spans[0].start}-{spans[0].end}" if answer else ""
        return (
            f"{answer or '(no answer)'}"
            + (f"  {share_text(prediction.score)}" if prediction.score is not None else "")
            + place
        )
    if isinstance(answer, list):
        shares = prediction.probabilities or {}
        shown = "  ".join(f"{label} {share_text(shares[label])}" if label in shares else f"{label}" for label in answer)
        return shown or "(no label)"
    if isinstance(answer, float | dict) and prediction.score is None:
        from berthead.tasks.cells import number_text

        if isinstance(answer, dict):
            parts = {name: number_text(one) if isinstance(one, float) else one for name, one in answer.items()}
            return "  ".join(f"{name} {one}" for name, one in parts.items())
        return number_text(answer)
    return f"{answer}" if prediction.score is None else f"{answer}  {share_text(prediction.score)}"
