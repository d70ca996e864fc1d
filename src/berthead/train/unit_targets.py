"""Targets of rows as one tensor, for losses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def unit_targets(targets: np.ndarray, sizes: Sequence[int]) -> Tensor:
    """Targets of rows as one tensor; for rows of several units those of the units that were read.

    Args:
        targets: as the task's loss reads them, [rows, ...]; of rows with several units an array of arrays.
        sizes: the units of each row.

    Returns:
        [rows or units, ...].

    Example:
        >>> unit_targets(np.array([3, 1]), [1, 1])
        tensor([3, 1])
    """
    if targets.dtype != object:
        return torch.from_numpy(targets)
    return torch.from_numpy(np.concatenate([one[:size] for one, size in zip(targets, sizes, strict=True)]))
