"""Dropout with cheap random numbers, whose generation is the cost of dropout on a CPU.

Source: Srivastava et al. 2014, "Dropout: A Simple Way to Prevent Neural Networks from Overfitting".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def keep_mask(shape: Sequence[int], share: float, device: torch.device | str = "cpu") -> Tensor:
    """The mask of kept values.

    Args:
        shape: the values' shape.
        share: the share dropped, at least 0 and below 1; exact to 1/65536.
        device: the mask's device.

    Returns:
        bool [*shape]; drawn from torch's default generator.

    Example:
        >>> keep_mask((2, 3), 0.0).all().item()
        True
    """
    count = math.prod(shape)
    # Four values from one draw of 64 bits: bernoulli needs a draw for each value, and takes five times as long.
    drawn = torch.empty((count + 3) // 4, dtype=torch.int64, device=device).random_(-(2**63), None)
    return (drawn.view(torch.int16)[:count] >= round(share * 65536) - 32768).view(*shape)


class Dropout(nn.Module):
    """In training, values are zero with probability `share`, and the others are scaled so that the mean stays.

    Args:
        share: at least 0 and below 1.

    Example:
        >>> Dropout(0.5).eval()(torch.ones(2))
        tensor([1., 1.])
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, values: Tensor) -> Tensor:
        """The values, some of them dropped in training, [*shape]."""
        if not self.training or self.share == 0:
            return values
        return (values * keep_mask(values.shape, self.share, values.device)).mul_(1 / (1 - self.share))

    def extra_repr(self) -> str:
        """The share dropped."""
        return f"{self.share:g}"
