"""The options as typed keywords, which editors complete. Made by tools/keywords.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict


class FitKeywords(TypedDict, total=False):
    """Options of `berthead.fit`."""

    task: str
    text: str | None
    pair: str | None
    label: str | Sequence[str] | None
    choices: str | Sequence[str] | None
    intent: str | None
    separator: str | None
    labels: str | None
    valid: float | str | Path | None
    encoder: str | Path
    adapt: str
    tag_unit: str
    tag_names: str | None
    head: str
    pooling: str
    epochs: int | None
    batch: int
    lr: float | None
    head_lr: float | None
    layer_decay: float
    unfreeze: bool
    weight_decay: float
    warmup: float
    clip: float
    class_weight: str
    metric: str | None
    max_tokens: int | None
    on_long: str
    stride: int | None
    windows: str
    precision: str
    device: str
    cache: str | Path | None
    seed: int
    threads: int | None
    workers: int
    skip_bad_rows: bool
    overwrite: bool
    resume: bool
    checkpoint_minutes: float


class LoadKeywords(TypedDict, total=False):
    """Options of `berthead.load`."""

    base: str | Path | None
    precision: str
    engine: str
    device: str
    token_budget: int | None
    threads: int | None


class JobKeywords(TypedDict, total=False):
    """Options of `Fitted.predict_file`."""

    text: str | None
    pair: str | None
    choices: str | Sequence[str] | None
    probabilities: bool
    resume: bool
    shard: str | None
    ray: str | None
    part_rows: int


class RowKeywords(TypedDict, total=False):
    """How labelled rows are read."""

    text: str | None
    pair: str | None
    label: str | Sequence[str] | None
    choices: str | Sequence[str] | None
    intent: str | None
    separator: str | None
    skip_bad_rows: bool


class EstimatorKeywords(TypedDict, total=False):
    """Parameters of the estimators."""

    labels: str | None
    encoder: str | Path
    adapt: str
    tag_unit: str
    head: str
    pooling: str
    epochs: int | None
    batch: int
    lr: float | None
    head_lr: float | None
    layer_decay: float
    unfreeze: bool
    weight_decay: float
    warmup: float
    clip: float
    metric: str | None
    max_tokens: int | None
    on_long: str
    stride: int | None
    windows: str
    precision: str
    cache: str | Path | None
    threads: int | None
    valid: float | tuple[Any, Any] | None
    random_state: Any
    verbose: bool
    class_weight: str | None
