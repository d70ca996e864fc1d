"""The random states that a fit draws from, saved and restored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Randomness:
    """The random states of torch (dropout) and of the choice of windows of a long text.

    Args:
        cpu: state of torch's generator.
        cuda: that of the GPU in use, or None.
        windows: state of the windows' generator, as JSON.

    Example:
        >>> windows = np.random.default_rng(0)
        >>> before = Randomness.of(windows)
        >>> drawn = torch.rand(()).item(), windows.random()
        >>> before.restore(windows)
        >>> drawn == (torch.rand(()).item(), windows.random())
        True
    """

    cpu: Tensor
    cuda: Tensor | None
    windows: dict[str, Any]

    @classmethod
    def of(cls, windows: np.random.Generator) -> Self:
        """The current state."""
        has_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        return cls(
            torch.get_rng_state(), torch.cuda.get_rng_state() if has_cuda else None, dict(windows.bit_generator.state)
        )

    def restore(self, windows: np.random.Generator) -> None:
        """Restore this state."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)
        windows.bit_generator.state = self.windows

    def tensors(self) -> dict[str, Tensor]:
        """The states that are tensors, by name."""
        return {"cpu": self.cpu} | ({} if self.cuda is None else {"cuda": self.cuda})

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], windows: dict[str, Any]) -> Self:
        """The record from what `tensors` and `windows` returned."""
        return cls(tensors["cpu"], tensors.get("cuda"), windows)
