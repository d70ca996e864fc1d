"""Rows of tokens through a model, and its logits back to the units of the inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from berthead.errors import ModelError
from berthead.model.heads import RowHead, pool_windows
from berthead.records import FloatArray, Pack
from berthead.text.layout import Layout
from berthead.text.packing import pack, plan
from berthead.text.tokenizer import Encoded

Compute = Callable[[Pack], FloatArray]
Done = Callable[[int], None]


def packs(rows: Sequence[Encoded], token_budget: int) -> Iterator[Pack]:
    """Rows as packs, longest rows first."""
    for chosen in plan([len(row.ids) for row in rows], token_budget):
        yield pack(rows, chosen)


def _computed(
    rows: Sequence[Encoded], compute: Compute, token_budget: int, workers: int = 1
) -> Iterator[tuple[Pack, FloatArray]]:
    """Packs, longest rows first, each with what `compute` says of it; so many threads compute at once."""
    made = packs(rows, token_budget)
    if workers == 1:
        for one in made:
            yield one, compute(one)
        return
    waiting = list(made)
    with ThreadPoolExecutor(workers) as pool:
        yield from zip(waiting, pool.map(compute, waiting), strict=True)


def unit_logits(
    layout: Layout, compute: Compute, head: Any, outputs: int, token_budget: int, workers: int = 1
) -> tuple[FloatArray, FloatArray | None]:
    """Logits of all units.

    Args:
        layout: the inputs.
        compute: logits of a pack, [rows or tokens, ...].
        head: says how windows become one answer.
        outputs: logits a unit.
        token_budget: most tokens computed at once; a longer row is computed alone.
        workers: how many packs are computed at once.

    Returns:
        float32 [units, outputs]; and the logits of the rows, [rows, ...], where several rows make one unit, else None.
    """
    if layout.by_token:
        return by_unit(layout, compute, outputs, token_budget, workers=workers), None
    return of_units(layout, by_row(layout.rows, compute, outputs, token_budget, workers=workers), head, outputs)


def of_units(layout: Layout, rows: FloatArray, head: Any, outputs: int) -> tuple[FloatArray, FloatArray | None]:
    """Logits of units from those of their rows.

    Args:
        layout: the inputs; their units are no tokens.
        rows: logits of the rows, [rows, ...].
        head: says how windows become one answer.
        outputs: logits a unit.

    Returns:
        As `unit_logits`.
    """
    if rows.shape[1] != outputs and not hasattr(head, "combine"):
        raise ModelError("head", f"gives {rows.shape[1]} numbers a row", f"{outputs}: what the task has outputs")
    if layout.plain and (isinstance(head, RowHead) or not hasattr(head, "combine")):
        return rows[:, :outputs], None
    with torch.inference_mode():
        units = torch.from_numpy(layout.unit_of_row)
        return combined(head, torch.from_numpy(rows), units, layout.n_units).numpy(), rows


def by_row(
    rows: Sequence[Encoded], compute: Compute, outputs: int, token_budget: int, done: Done | None = None,
    workers: int = 1,
) -> FloatArray:  # fmt: skip
    """What `compute` says of each row, in their order, float32 [rows, ...]."""
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
    """What `compute` says of each unit's token, in their order, float32 [units, ...]."""
    result = np.empty((0, outputs), dtype=np.float32)
    for one, values in _computed(layout.rows, compute, token_budget, workers):
        if len(result) == 0:
            result = np.empty((layout.n_units, values.shape[1]), dtype=np.float32)
        units, tokens = layout.units_in(one)
        result[units] = values[tokens]
        if done:
            done(len(one.row))
    return result


def combined(head: Any, rows: Tensor, unit_of_row: Tensor, units: int) -> Tensor:
    """One answer a unit from its rows' logits, by the head's own `combine`, or their mean."""
    if hasattr(head, "combine"):
        values: Tensor = head.combine(rows, unit_of_row, units)
        return values
    return pool_windows(rows, unit_of_row, units, "mean", rows[:, :0])
