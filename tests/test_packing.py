"""Packing: every row once, within the budget, in a stable order, and laid end to end without padding."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from berthead.text.packing import pack, plan
from berthead.text.tokenizer import Encoded

lengths_lists = st.lists(st.integers(1, 60), max_size=80)
budgets = st.integers(1, 130)


def encoded_rows(lengths) -> list[Encoded]:
    """Rows whose every token and type can be told from all others."""
    rows = []
    for number, length in enumerate(lengths):
        rows.append(Encoded(1000 * number + np.arange(length), np.full(length, number % 2), length, False))
    return rows


@given(lengths_lists, budgets)
def test_every_row_is_in_exactly_one_pack(lengths, budget):
    packs = plan(lengths, budget)
    assert sorted(row for rows in packs for row in rows.tolist()) == list(range(len(lengths)))
    assert all(len(rows) for rows in packs)


@given(lengths_lists, budgets)
def test_the_budget_is_kept_unless_one_row_alone_exceeds_it(lengths, budget):
    for rows in plan(lengths, budget):
        assert sum(lengths[row] for row in rows) <= budget or len(rows) == 1


@given(lengths_lists, budgets)
def test_no_pack_ends_while_its_next_row_would_fit(lengths, budget):
    for rows, following in pairwise(plan(lengths, budget)):
        assert sum(lengths[row] for row in rows) + lengths[following[0]] > budget


@given(lengths_lists, budgets)
def test_longest_rows_come_first_and_equal_ones_stay_in_order(lengths, budget):
    order = [row for rows in plan(lengths, budget) for row in rows.tolist()]
    assert order == sorted(range(len(lengths)), key=lambda row: -lengths[row])  # Python's sort is stable


@given(lengths_lists, budgets)
def test_lists_and_arrays_are_planned_alike(lengths, budget):
    from_list, from_array = plan(lengths, budget), plan(np.array(lengths, dtype=np.int64), budget)
    assert [rows.tolist() for rows in from_list] == [rows.tolist() for rows in from_array]


@pytest.mark.parametrize(
    ("lengths", "budget", "wanted"),
    [
        ([], 8, []),
        ([3], 1, [[0]]),
        ([4, 4], 8, [[0, 1]]),
        ([4, 4], 7, [[0], [1]]),
        ([9, 9, 1], 8, [[0], [1], [2]]),
        ([3, 9, 3, 2], 8, [[1], [0, 2, 3]]),
        ([1, 1, 1], 100, [[0, 1, 2]]),
        ([1, 2, 3], 3, [[2], [1, 0]]),
    ],
)
def test_plans_of_known_lengths(lengths, budget, wanted):
    assert [rows.tolist() for rows in plan(lengths, budget)] == wanted


@given(lengths_lists.filter(bool), budgets)
def test_a_pack_holds_its_rows_end_to_end(lengths, budget):
    encoded = encoded_rows(lengths)
    for rows in plan(lengths, budget):
        one = pack(encoded, rows)
        assert one.row.tolist() == rows.tolist()
        assert one.starts[0] == 0
        assert one.starts[-1] == len(one.ids) == len(one.segments) == len(one.positions)
        assert one.lengths.tolist() == [lengths[row] for row in rows]
        for row, (start, end) in zip(rows, pairwise(one.starts), strict=True):
            assert one.ids[start:end].tolist() == encoded[row].ids.tolist()
            assert one.segments[start:end].tolist() == encoded[row].segments.tolist()
            assert one.positions[start:end].tolist() == list(range(lengths[row]))


@given(st.permutations(range(6)))
def test_a_pack_keeps_the_order_it_is_given(order):
    one = pack(encoded_rows([3, 1, 4, 1, 5, 9]), np.array(order))
    assert one.row.tolist() == order
    assert (one.ids[one.starts[:-1]] // 1000).tolist() == order


def test_every_array_is_int64_whatever_the_rows_hold():
    rows = [Encoded(np.array([1, 2], dtype=np.int32), np.array([0, 1], dtype=np.uint8), 2, False)]
    one = pack(rows, np.array([0], dtype=np.int32))
    arrays = (one.ids, one.segments, one.positions, one.starts, one.row)
    assert {array.dtype for array in arrays} == {np.dtype(np.int64)}
    assert (one.ids.tolist(), one.segments.tolist(), one.positions.tolist(), one.starts.tolist()) == (
        [1, 2], [0, 1], [0, 1], [0, 2],
    )  # fmt: skip
