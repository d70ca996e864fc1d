"""Which rows the scores of a fit are of, in words."""

from __future__ import annotations

from typing import Any

from berthead.errors import counted


def is_out_of_fold(run: dict[str, Any]) -> bool:
    """Whether the scores are of fitted rows, each answered by a head that was fitted without it."""
    return "solved" in run and not run["held_out_rows"]


def scored_on(run: dict[str, Any]) -> str:
    """The rows that the scores of a fit are of.

    Args:
        run: how a fit went, from the record of a function.

    Returns:
        Words.

    Example:
        >>> scored_on({"held_out_rows": 20})
        '20 held-out rows'
        >>> scored_on({"held_out_rows": 0, "solved": {"scored_rows": 32}})
        '32 rows out of fold'
    """
    if is_out_of_fold(run):
        return f"{counted(run['solved']['scored_rows'], 'row')} out of fold"
    return counted(run["held_out_rows"], "held-out row")
