"""AdamW of an embedding table, row by row: a step updates the rows that it read; the others catch up later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from berthead.kernels import library
from berthead.kernels import training_passes as passes
from berthead.kernels.abi import AdamWSteps

# The factors of each step, from 1: see csrc/abi.h.
_BY_STEP = ("decay_factor", "step_size", "rsqrt_correction", "decay_product")


class EmbeddingTable:
    """An embedding table whose rows are updated when they are read, with the result of dense AdamW.

    Dense AdamW also changes rows without a gradient, by moments and decay; a row catches up on these steps when it is
    read again, or by `settle`. Gradients are sparse, so the cost of a step depends only on the rows that it reads.

    Args:
        embedding: the table, float32 on the CPU; until `close` its gradient is sparse.
        decay: decoupled weight decay.
        betas: of the two moments.
        eps: added to the root of the second moment.

    Example:
        >>> from berthead.train.embedding_table import EmbeddingTable, learns_by_row
        >>> embedding = torch.nn.Embedding(5, 2)
        >>> if learns_by_row(embedding):
        ...     table = EmbeddingTable(embedding, decay=0.01)
        ...     embedding(torch.tensor([1, 3])).sum().backward()
        ...     table.step(1e-3)
        ...     table.close()

    Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization".
    """

    def __init__(
        self, embedding: nn.Embedding, decay: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        self.embedding, self.decay, self.betas, self.eps = embedding, decay, betas, eps
        rows = len(embedding.weight)
        # numpy's zeros take memory only when written: rows that are never read cost none.
        self.exp_avg, self.exp_avg_sq = (np.zeros(embedding.weight.shape, dtype=np.float32) for _ in range(2))
        self.row_steps, self.has_moments = np.zeros(rows, dtype=np.int32), np.zeros(rows, dtype=np.uint8)
        self.steps = 0
        self.decay_factor, self.step_size, self.rsqrt_correction = (np.ones(64, dtype=np.float32) for _ in range(3))
        self.decay_product: np.ndarray = np.ones(64)
        embedding.sparse = True
        self._hooks = [
            embedding.register_forward_pre_hook(self._before),
            embedding.weight.register_post_accumulate_grad_hook(_coalesce),  # type: ignore[no-untyped-call]
        ]

    def __deepcopy__(self, memo: dict[int, Any]) -> EmbeddingTable:
        return self  # a copy of the embedding for inference shares the weights

    @property
    def grad(self) -> Tensor | None:
        """The gradients of the rows that were read, float32 [rows, width]; they can be scaled in place."""
        grad = self.embedding.weight.grad
        return None if grad is None else grad.values()

    def step(self, lr: float) -> None:
        """One step with the current gradients; without any gradient no step is made, as with torch's AdamW."""
        grads = self.grad
        if grads is None or self.embedding.weight.grad is None:
            return
        self._remember(lr)
        self.steps += 1
        self._advance(self.embedding.weight.grad.indices()[0], grads)

    def settle(self) -> None:
        """Bring all rows up to the last step."""
        self._advance(None)

    def bring_up(self, rows: Tensor) -> None:
        """Bring rows up to the last step; int64, none of them twice."""
        if self.steps:
            self._advance(rows)

    def grad_of(self, rows: Tensor) -> Tensor:
        """The gradients of these rows (ascending), float32 [rows, width]; 0 for rows without one."""
        grad, found = self.embedding.weight.grad, self.embedding.weight.new_zeros(len(rows), self.exp_avg.shape[1])
        if grad is not None:
            found[torch.searchsorted(rows, grad.indices()[0])] = grad.values()
        return found

    def take_grad(self, rows: Tensor, values: Tensor) -> None:
        """Replace all gradients: rows ascending, values float32 [rows, width]."""
        weight = self.embedding.weight
        weight.grad = torch.sparse_coo_tensor(
            rows[None], values, weight.shape, is_coalesced=True, check_invariants=False
        )

    def tensors(self) -> dict[str, Tensor]:
        """The state without the weights, by name; moments of the rows that ever had a gradient."""
        rows = np.flatnonzero(self.has_moments)
        moments = {
            "rows": rows, "exp_avg": self.exp_avg[rows], "exp_avg_sq": self.exp_avg_sq[rows],
            "row_steps": self.row_steps,
        }  # fmt: skip
        by_step = {name: getattr(self, name)[: self.steps + 1] for name in _BY_STEP}
        return {name: torch.from_numpy(array) for name, array in (moments | by_step).items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the state that `tensors` returned."""
        rows = tensors["rows"].numpy()
        self.exp_avg[rows], self.exp_avg_sq[rows] = tensors["exp_avg"].numpy(), tensors["exp_avg_sq"].numpy()
        self.row_steps[:], self.has_moments[rows] = tensors["row_steps"].numpy(), 1
        self.steps = len(tensors["decay_product"]) - 1
        self._grow(self.steps + 1)
        for name in _BY_STEP:
            getattr(self, name)[: self.steps + 1] = tensors[name].numpy()

    def close(self) -> None:
        """Settle, and restore the embedding's settings."""
        self.settle()
        for hook in self._hooks:
            hook.remove()
        self.embedding.sparse = False
        self.embedding.weight.grad = None

    def _before(self, embedding: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.bring_up(torch.unique(inputs[0]))

    def _remember(self, lr: float) -> None:
        """Record the factors of the next step."""
        step, (beta1, beta2) = self.steps + 1, self.betas
        if step == len(self.decay_product):
            self._grow(2 * step)
        self.decay_factor[step] = 1 - lr * self.decay
        self.decay_product[step] = self.decay_product[step - 1] * (1 - lr * self.decay)
        self.step_size[step] = lr / (1 - beta1**step)
        self.rsqrt_correction[step] = (1 - beta2**step) ** -0.5

    def _grow(self, length: int) -> None:
        """Make room for the factors of more steps."""
        for name in _BY_STEP:
            values = getattr(self, name)
            more = np.ones(max(0, length - len(values)), dtype=values.dtype)
            setattr(self, name, np.concatenate((values, more)))

    def _advance(self, rows: Tensor | None, grads: Tensor | None = None) -> None:
        weight = self.embedding.weight
        if rows is not None and len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(weight):
            saw = f"rows from {int(rows.min())} to {int(rows.max())}"
            raise IndexError(f"{saw} of an embedding table; expected 0 to {len(weight) - 1}")
        arrays = ("exp_avg", "exp_avg_sq", "row_steps", "has_moments", *_BY_STEP)
        pointers = {name: getattr(self, name).ctypes.data for name in arrays}
        passes.advance(
            AdamWSteps(
                **pointers, weights=weight.data_ptr(),
                row_ids=None if rows is None else rows.data_ptr(), grads=None if grads is None else grads.data_ptr(),
                count=len(weight) if rows is None else len(rows), width=weight.shape[1], step=self.steps,
                beta1=self.betas[0], beta2=self.betas[1], eps=self.eps,
            )
        )  # fmt: skip


def _coalesce(weight: Tensor) -> None:
    """Sum the gradients of a row that was read several times, so that they never need more memory than the table."""
    assert weight.grad is not None
    weight.grad = weight.grad.coalesce()


def learns_by_row(embedding: nn.Embedding) -> bool:
    """Whether our kernels support row-wise updates of a table on this machine."""
    weight = embedding.weight
    plain = weight.requires_grad and weight.dtype == torch.float32 and weight.device.type == "cpu"
    return plain and library.chosen() != "torch" and weight.is_contiguous()
