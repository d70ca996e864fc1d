"""What learns: theta and omega, or omega alone."""

from __future__ import annotations

from berthead.model.model import Model


def adapt(model: Model, strategy: str) -> None:
    """Mark the parameters that learn.

    Args:
        model: the model to fit.
        strategy: `full` (theta and omega) or `frozen` (omega alone: the fitted theta is the pre-trained one).
    """
    model.requires_grad_(True)
    if strategy == "frozen":
        model.encoder.requires_grad_(False)
