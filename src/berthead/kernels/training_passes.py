"""Passes of blocks that learn, and steps of a table that learns, by kernels of our own."""

from __future__ import annotations

import ctypes
from typing import ClassVar

import torch
from torch import Tensor

from berthead.kernels.library import PRECISIONS, TableSteps, Training, TrainingGrads, TrainingSpec, chosen, loaded

# As many as an encoder has layers, mostly.
MOST_TAPES = 24


def advance(steps: TableSteps) -> None:
    """Bring rows of a table up to a step; no row twice."""
    found = loaded()
    assert found is not None
    found.berthead_advance(chosen().encode(), ctypes.byref(steps), torch.get_num_threads())


def forget_tapes() -> None:
    """Free the memory that is kept for the next passes of blocks that learn."""
    Pass._tapes.clear()


class Pass:
    """Passes of blocks that learn over the same rows.

    Args:
        precision: of the products, `fp32` or `bf16`.
        starts: the first token of each row, and the end of the last, int64 [rows + 1].
        wanted: the tokens of which the block's output is wanted, int64, ascending; None: all.
    """

    # Tapes of passes that are over: fresh memory costs more than what is written to it.
    _tapes: ClassVar[list[Tensor]] = []

    def __init__(self, precision: str, starts: Tensor, wanted: Tensor | None = None) -> None:
        found = loaded()
        assert found is not None
        self.library, self.name, self.precision = found, chosen().encode(), PRECISIONS[precision]
        self.starts, self.wanted, self.tokens = starts, wanted, int(starts[-1])
        self.going = self.tokens if wanted is None else len(wanted)
        self.wanted_starts = None if wanted is None else torch.searchsorted(wanted, starts)

    def forward(self, spec: TrainingSpec, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The block's output, float32 [wanted tokens, width], and what the way back needs."""
        sizes = self.tokens, self.going
        size = self.library.berthead_tape_bytes(self.name, self.precision, ctypes.byref(spec), *sizes) + 64
        fitting = [number for number, tape in enumerate(self._tapes) if size <= len(tape)]
        tape = self._tapes.pop(fitting[-1]) if fitting else torch.empty(size, dtype=torch.uint8)
        output = hidden.new_empty(self.going, hidden.shape[1])
        self._run(spec, hidden, output, tape, TrainingGrads(), wants_input=False, forward=True)
        return output, tape

    def backward(
        self, spec: TrainingSpec, grad: Tensor, tape: Tensor, grads: TrainingGrads, wants_input: bool
    ) -> Tensor:
        """The gradient of the block's input, float32 [tokens, width]; without meaning where it is not wanted.

        The tape is used up.
        """
        output = grad.new_empty(self.tokens, grad.shape[1])
        self._run(spec, grad, output, tape, grads, wants_input=wants_input, forward=False)
        self._tapes.append(tape)
        del self._tapes[:-MOST_TAPES]
        return output

    def _run(
        self, spec: TrainingSpec, given: Tensor, output: Tensor, tape: Tensor, grads: TrainingGrads, *,
        wants_input: bool, forward: bool,
    ) -> None:  # fmt: skip
        work = Training(
            input=given.data_ptr(), output=output.data_ptr(), starts=self.starts.data_ptr(), tokens=self.tokens,
            wanted=None if self.wanted is None else self.wanted.data_ptr(),
            wanted_starts=None if self.wanted_starts is None else self.wanted_starts.data_ptr(), going=self.going,
            rows=len(self.starts) - 1, wants_input=wants_input, tape=-(-tape.data_ptr() // 64) * 64, grads=grads,
        )  # fmt: skip
        failed = self.library.berthead_train(
            self.name, self.precision, ctypes.byref(spec), ctypes.byref(work), forward, torch.get_num_threads()
        )
        if failed:
            raise MemoryError("no memory for the gradients of a pass")
