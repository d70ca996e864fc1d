"""AdamW with decay groups, and the rate's rise and linear fall."""

from __future__ import annotations

import torch
from torch import nn


def adamw(module: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over the parameters that learn; matrices decay, biases and layer norms do not.

    Args:
        module: what is fitted.
        lr: peak learning rate.
        weight_decay: decoupled decay of the matrices.

    Returns:
        The optimiser, with bias correction.

    Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization".
    """
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learning if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in learning if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), eps=1e-8, fused=True)


def rate(step: int, steps: int, warmup: float) -> float:
    """The share of the peak learning rate at a step.

    Args:
        step: from 0.
        steps: all steps of the fit.
        warmup: share of the steps in which the rate rises from 0.

    Returns:
        From 0 to 1.

    Example:
        >>> [rate(step, 4, 0.5) for step in range(4)]
        [0.5, 1.0, 1.0, 0.5]
    """
    rising = int(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return (steps - step) / max(1, steps - rising)
