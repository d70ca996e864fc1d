"""Training by the C++ library: passes through blocks, and AdamW of an embedding table."""

from __future__ import annotations

import ctypes
from typing import ClassVar

import torch
from torch import Tensor

from berthead.kernels.abi import PRECISIONS, AdamWSteps, TrainingGrads, TrainingPass, TrainingSpec
from berthead.kernels.library import chosen, loaded

# Usually enough for all layers of an encoder.
MOST_TAPES = 24


def advance(steps: AdamWSteps) -> None:
    """Bring rows of a table up to a step; each row at most once."""
    found = loaded()
    assert found is not None
    if found.berthead_adamw(chosen().encode(), ctypes.byref(steps), torch.get_num_threads()):
        raise MemoryError("no memory for the steps of a table")


def forget_tapes() -> None:
    """Free the tapes that are kept for the next passes of trained blocks."""
    Pass._tapes.clear()


class Pass:
    """Passes of trained blocks over the same rows.

    Args:
        precision: of the products, `fp32` or `bf16`.
        starts: the first token of each row, and the end of the last, int64 [rows + 1].
        selected: the tokens that have an output, int64, ascending; None: all.
    """

    # Tapes of finished passes, for reuse: allocating memory costs more than writing to it.
    _tapes: ClassVar[list[Tensor]] = []

    def __init__(self, precision: str, starts: Tensor, selected: Tensor | None = None) -> None:
        found = loaded()
        assert found is not None
        self.library, self.name, self.precision = found, chosen().encode(), PRECISIONS[precision]
        self.starts, self.selected, self.tokens = starts, selected, int(starts[-1])
        self.output_tokens = self.tokens if selected is None else len(selected)
        self.selected_starts = None if selected is None else torch.searchsorted(selected, starts)

    def forward(self, spec: TrainingSpec, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The block's output, float32 [selected tokens, width], and the tape for the backward pass."""
        sizes = self.tokens, self.output_tokens
        size = self.library.berthead_tape_bytes(self.name, self.precision, ctypes.byref(spec), *sizes) + 64
        fitting = [number for number, tape in enumerate(self._tapes) if size <= len(tape)]
        tape = self._tapes.pop(fitting[-1]) if fitting else torch.empty(size, dtype=torch.uint8)
        output = hidden.new_empty(self.output_tokens, hidden.shape[1])
        self._run(spec, hidden, output, tape, TrainingGrads(), needs_input_grad=False, forward=True)
        return output, tape

    def backward(
        self, spec: TrainingSpec, grad: Tensor, tape: Tensor, grads: TrainingGrads, needs_input_grad: bool
    ) -> Tensor:
        """The gradient of the block's input, float32 [tokens, width]; undefined if it is not needed.

        The tape is consumed.
        """
        output = grad.new_empty(self.tokens, grad.shape[1])
        self._run(spec, grad, output, tape, grads, needs_input_grad=needs_input_grad, forward=False)
        self._tapes.append(tape)
        del self._tapes[:-MOST_TAPES]
        return output

    def _run(
        self, spec: TrainingSpec, given: Tensor, output: Tensor, tape: Tensor, grads: TrainingGrads, *,
        needs_input_grad: bool, forward: bool,
    ) -> None:  # fmt: skip
        work = TrainingPass(
            input=given.data_ptr(), output=output.data_ptr(), starts=self.starts.data_ptr(), tokens=self.tokens,
            selected=None if self.selected is None else self.selected.data_ptr(),
            selected_starts=None if self.selected_starts is None else self.selected_starts.data_ptr(),
            output_tokens=self.output_tokens, sequences=len(self.starts) - 1, needs_input_grad=needs_input_grad,
            tape=-(-tape.data_ptr() // 64) * 64, grads=grads,
        )  # fmt: skip
        failed = self.library.berthead_train(
            self.name, self.precision, ctypes.byref(spec), ctypes.byref(work), forward, torch.get_num_threads()
        )
        if failed:
            raise MemoryError("no memory for the gradients of a pass")
