"""How to fit: the options with their defaults filled in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """How to fit; the fields of FitOptions, with their defaults filled in."""

    epochs: int
    batch: int
    lr: float
    weight_decay: float
    warmup: float
    clip: float
    metric: str
    precision: str
    seed: int
    balanced: bool
    device: str = "cpu"
    head_lr: float | None = None
    layer_decay: float = 1.0
    unfreeze: bool = False
