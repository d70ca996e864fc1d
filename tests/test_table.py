"""A table that learns by its rows: against torch's dense AdamW on the same gradients."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from conftest import tries
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from berthead.kernels import library
from berthead.train.embedding_table import EmbeddingTable, learns_by_row

pytestmark = pytest.mark.skipif(not library.kernels(), reason="this machine has no kernels of ours")


@pytest.fixture(params=library.kernels())
def each_kernel(request, monkeypatch) -> str:
    monkeypatch.setenv(library.SWITCH, request.param)
    return request.param


class Both:
    """The same table twice: one learns by its rows, the other with all of them in torch."""

    def __init__(self, rows, width, decay, seed=0):
        torch.manual_seed(seed)
        self.ours, self.dense = nn.Embedding(rows, width), nn.Embedding(rows, width)
        self.dense.load_state_dict(self.ours.state_dict())
        self.table = EmbeddingTable(self.ours, decay)
        self.adamw = torch.optim.AdamW([self.dense.weight], lr=1.0, weight_decay=decay, foreach=False, fused=False)

    def step(self, ids, lr, scale=1.0):
        ids = torch.as_tensor(ids)
        factors = scale * torch.randn(len(ids), self.ours.embedding_dim)
        read, wanted = self.ours(ids), self.dense(ids)
        torch.testing.assert_close(read, wanted, atol=2e-6, rtol=2e-5)  # what is read is what a dense step made
        self.ours.weight.grad = None
        self.adamw.zero_grad()
        (read * factors).sum().backward()
        (wanted * factors).sum().backward()
        self.adamw.param_groups[0]["lr"] = lr
        self.adamw.step()
        self.table.step(lr)

    def compare(self):
        self.table.settle()
        torch.testing.assert_close(self.ours.weight, self.dense.weight, atol=2e-6, rtol=2e-5)
        state = self.adamw.state[self.dense.weight]
        torch.testing.assert_close(torch.from_numpy(self.table.exp_avg), state["exp_avg"], atol=1e-7, rtol=2e-4)
        torch.testing.assert_close(torch.from_numpy(self.table.exp_avg_sq), state["exp_avg_sq"], atol=1e-9, rtol=2e-4)


@given(
    width=st.integers(1, 70), rows=st.integers(2, 40), decay=st.sampled_from([0.0, 0.01, 0.3]),
    steps=st.lists(st.tuples(st.lists(st.integers(0, 39), min_size=1, max_size=6), st.sampled_from([0.0, 1e-4, 3e-3])),
                   min_size=1, max_size=30),
    count=st.sampled_from([1, 2, 3]),
)  # fmt: skip
@settings(max_examples=tries(60), deadline=None)
def test_every_row_learns_as_with_all_of_them(width, rows, decay, steps, count):
    torch.set_num_threads(count)
    both = Both(rows, width, decay)
    for ids, lr in steps:
        both.step([one % rows for one in ids], lr)
    both.compare()


@pytest.mark.parametrize("width", [32, 21])
def test_rows_that_are_seldom_read_make_up_for_hundreds_of_steps(each_kernel, width):
    both, random = Both(60, width, 0.01), np.random.default_rng(0)
    for step in range(1200):
        often, seldom = random.integers(0, 4, 3), random.integers(4, 50, 2)  # the last ten rows are never read
        both.step(
            [*often, *(seldom if step % 397 == 0 else [])], 1e-3 * (1 - step / 1200), scale=10.0 ** (step % 3 - 2)
        )
    both.compare()
    assert both.table.has_moments.tolist() == [1] * 4 + both.table.has_moments[4:50].tolist() + [0] * 10
    assert (both.table.row_steps == 1200).all()


def test_without_gradients_no_step_is_made():
    both = Both(6, 8, 0.1)
    both.step([1, 2], 1e-3)
    both.ours.weight.grad = None
    before = both.ours.weight.clone()
    both.table.step(1e-3)
    both.table.settle()
    assert both.table.steps == 1
    both.compare()
    assert torch.equal(both.ours.weight[[1, 2]], before[[1, 2]])


def test_gradients_of_several_passes_add_up():
    both = Both(9, 4, 0.01)
    for ids in ([1, 1, 3], [3, 8]):
        both.ours(torch.tensor(ids)).sum().backward()
        both.dense(torch.tensor(ids)).sum().backward()
    assert both.table.grad.tolist() == [[2.0] * 4, [2.0] * 4, [1.0] * 4]
    both.table.step(1e-2)
    both.adamw.param_groups[0]["lr"] = 1e-2
    both.adamw.step()
    both.compare()


def test_gradients_never_take_more_room_than_the_table_and_copies_share_its_state():
    both = Both(7, 4, 0.01)
    for _ in range(5):
        both.ours(torch.arange(7).repeat(100)).sum().backward()
    assert len(both.table.grad) == 7
    copied = copy.deepcopy(both.ours, {id(both.ours.weight): both.ours.weight})
    (hook,) = copied._forward_pre_hooks.values()
    assert hook.__self__ is both.table


def test_closed_the_embedding_is_as_it_was():
    both = Both(5, 4, 0.01)
    both.step([2], 1e-2)
    both.table.close()
    assert not both.ours._forward_pre_hooks
    assert both.ours.weight.grad is None
    both.ours(torch.tensor([2])).sum().backward()
    assert not both.ours.weight.grad.is_sparse
    torch.testing.assert_close(both.ours.weight, both.dense.weight, atol=2e-6, rtol=2e-5)


def test_what_does_not_learn_or_has_no_kernels_is_left_to_torch(monkeypatch):
    embedding = nn.Embedding(4, 2)
    assert learns_by_row(embedding)
    assert not learns_by_row(nn.Embedding(4, 2, dtype=torch.bfloat16))
    embedding.weight.requires_grad_(False)
    assert not learns_by_row(embedding)
    monkeypatch.setenv(library.SWITCH, "torch")
    assert not learns_by_row(nn.Embedding(4, 2))
