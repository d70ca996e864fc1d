"""Rows into packs without padding: pure functions of lengths and a token budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from berthead.records import IntArray, Pack
from berthead.text.tokenizer import Encoded


def plan(lengths: Sequence[int] | IntArray, token_budget: int) -> list[IntArray]:
    """Which rows are computed together.

    Args:
        lengths: tokens of each row, at least 1.
        token_budget: most tokens in a pack; a longer row gets its own pack.

    Returns:
        Row numbers of each pack; longest rows first, equal lengths in the order given.

    Example:
        >>> [rows.tolist() for rows in plan([3, 9, 3, 2], token_budget=8)]
        [[1], [0, 2, 3]]
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    packs: list[IntArray] = []
    start, tokens = 0, 0
    for end, row in enumerate(order):
        length = int(lengths[row])
        if end > start and tokens + length > token_budget:
            packs.append(order[start:end])
            start, tokens = end, 0
        tokens += length
    if start < len(order):
        packs.append(order[start:])
    return packs


def pack(encoded: Sequence[Encoded], rows: IntArray) -> Pack:
    """The rows of one pack laid end to end.

    Args:
        encoded: all inputs.
        rows: which of them, in the order of the pack.

    Returns:
        The pack; `row` holds `rows`.
    """
    chosen = [encoded[row] for row in rows]
    lengths = np.array([len(one.ids) for one in chosen], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return Pack(
        ids=np.concatenate([one.ids for one in chosen]).astype(np.int64),
        segments=np.concatenate([one.segments for one in chosen]).astype(np.int64),
        positions=np.arange(starts[-1]) - np.repeat(starts[:-1], lengths),
        starts=starts,
        row=np.asarray(rows, dtype=np.int64),
    )
