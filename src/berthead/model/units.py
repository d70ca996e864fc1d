"""Rows of tokens through a model, and its logits back to the units of the inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from berthead.errors import ModelError
from berthead.records import FloatArray, IntArray, Pack
from berthead.text.layout import Layout
from berthead.text.packing import pack, plan
from berthead.text.tokenizer import Encoded

Compute = Callable[[Pack], FloatArray]
Done = Callable[[int], None]
Combine = Callable[[FloatArray, IntArray, int], FloatArray]
"""Logits of rows [rows, ...], the unit of each [rows], and how many units -> logits of units [units, outputs]."""


def packs(rows: Sequence[Encoded], token_budget: int) -> Iterator[Pack]:
    """Rows as packs, longest rows first."""
    for chosen in plan([len(row.ids) for row in rows], token_budget):
        yield pack(rows, chosen)


def _computed(
    rows: Sequence[Encoded], compute: Compute, token_budget: int, workers: int = 1
) -> Iterator[tuple[Pack, FloatArray]]:
    """Packs, longest rows first, each with the result of `compute`, by several threads."""
    made = packs(rows, token_budget)
    if workers == 1:
        for one in made:
            yield one, compute(one)
        return
    waiting = list(made)
    with ThreadPoolExecutor(workers) as pool:
        yield from zip(waiting, pool.map(compute, waiting), strict=True)


def unit_logits(
    layout: Layout, compute: Compute, combine: Combine | None, outputs: int, token_budget: int, workers: int = 1
) -> tuple[FloatArray, FloatArray | None]:
    """Logits of all units.

    Args:
        layout: the inputs.
        compute: logits of a pack, [rows or tokens, ...].
        combine: combines windows into one answer; None: the mean of their logits.
        outputs: logits a unit.
        token_budget: most tokens computed at once; a longer row is computed alone.
        workers: how many packs are computed at once.

    Returns:
        float32 [units, outputs]; and the logits of the rows, [rows, ...], if several rows make one unit, else None.
    """
    if layout.by_token:
        return by_unit(layout, compute, outputs, token_budget, workers=workers), None
    return of_units(layout, by_row(layout.rows, compute, outputs, token_budget, workers=workers), combine, outputs)


def of_units(
    layout: Layout, rows: FloatArray, combine: Combine | None, outputs: int
) -> tuple[FloatArray, FloatArray | None]:
    """Logits of units from those of their rows.

    Args:
        layout: the inputs; their units are not tokens.
        rows: logits of the rows, [rows, ...].
        combine: combines windows into one answer; None: the mean of their logits.
        outputs: logits a unit.

    Returns:
        As `unit_logits`.
    """
    if combine is None and rows.shape[1] != outputs:
        raise ModelError("head", f"gives {rows.shape[1]} numbers a row", f"{outputs}, the outputs of the task")
    units = layout.unit_of_row, layout.n_units
    values = combine(rows, *units) if combine else pooled(rows, *units, "mean", outputs)
    return values, None if layout.plain else rows


def by_row(
    rows: Sequence[Encoded], compute: Compute, outputs: int, token_budget: int, done: Done | None = None,
    workers: int = 1,
) -> FloatArray:  # fmt: skip
    """The result of `compute` for each row, in order, float32 [rows, ...]."""
    result = np.empty((0, outputs), dtype=np.float32)
    for one, values in _computed(rows, compute, token_budget, workers):
        if len(result) == 0:
            result = np.empty((len(rows), values.shape[1]), dtype=np.float32)
        result[one.row] = values
        if done:
            done(len(one.row))
    return result


def by_unit(
    layout: Layout, compute: Compute, outputs: int, token_budget: int, done: Done | None = None, workers: int = 1
) -> FloatArray:
    """The result of `compute` for each unit's token, in order, float32 [units, ...]."""
    result = np.empty((0, outputs), dtype=np.float32)
    for one, values in _computed(layout.rows, compute, token_budget, workers):
        if len(result) == 0:
            result = np.empty((layout.n_units, values.shape[1]), dtype=np.float32)
        units, tokens = layout.units_in(one)
        result[units] = values[tokens]
        if done:
            done(len(one.row))
    return result


def pooled(rows: FloatArray, unit_of_row: IntArray, units: int, how: str, outputs: int) -> FloatArray:
    """One answer for the windows of each text, like `heads.pool_windows`.

    Args:
        rows: the windows' logits, [rows, outputs]; for `attention` followed by each window's score.
        unit_of_row: the text each window belongs to, int64 [rows], ascending.
        units: texts.
        how: `mean`, `max` or `attention`.
        outputs: logits a text.

    Returns:
        float32 [units, outputs].

    Example:
        >>> pooled(np.array([[1.0], [3.0]], dtype=np.float32), np.array([0, 0]), 1, "mean", 1).tolist()
        [[2.0]]
    """
    if how not in ("mean", "max", "attention"):
        raise ValueError(f"windows is {how!r}; expected mean, max or attention")
    values = rows[:, :outputs]
    if len(values) == units:
        return values
    firsts = np.searchsorted(unit_of_row, np.arange(units))
    if how == "max":
        return np.maximum.reduceat(values, firsts)
    weights: FloatArray = np.ones((len(values), 1), dtype=np.float32)
    if how == "attention":
        scores = rows[:, outputs:]
        weights = np.exp(scores - np.maximum.reduceat(scores, firsts)[unit_of_row])
    return np.divide(np.add.reduceat(values * weights, firsts), np.add.reduceat(weights, firsts), dtype=np.float32)
