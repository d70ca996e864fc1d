"""Fitting: epochs over packs, the best epoch by one metric restored whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from berthead.errors import UsageError
from berthead.infer.engine import Engine
from berthead.infer.predict import TOKEN_BUDGET, packs
from berthead.model.model import Model
from berthead.model.tensors import TensorPack
from berthead.progress import Progress
from berthead.records import FloatArray
from berthead.tasks import Task
from berthead.text.tokenizer import Encoded
from berthead.train.optim import adamw, rate

# Tokens of one forward and backward pass: a larger batch is computed in parts, with the same gradient.
MICRO_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Fold:
    """Rows to fit or to score.

    Args:
        encoded: token numbers of each row.
        targets: as the task's loss reads them, [rows, ...].
    """

    encoded: Sequence[Encoded]
    targets: np.ndarray


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


@dataclass(slots=True)
class History:
    """What happened in each epoch.

    Args:
        epochs: the training loss and the held-out metrics of each finished epoch.
        best_epoch: the epoch, from 1, whose weights the model holds now; 0: none was finished.
        interrupted: whether the user stopped the fit.
    """

    epochs: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    interrupted: bool = False


def fit_model(
    model: Model, task: Task, train: Fold, valid: Fold | None, settings: Settings, quiet: bool = False
) -> History:
    """Fit the parameters that learn, in place.

    Args:
        model: with the parameters that learn marked.
        task: the loss and the metrics.
        train: rows to fit.
        valid: rows that choose the best epoch; None: the last epoch is kept.
        settings: how.
        quiet: show no progress.

    Returns:
        What happened. After Ctrl-C the best epoch so far is in the model, and `interrupted` is set.
    """
    model.head.scale, model.head.shift = task.affine()
    if any(parameter.requires_grad for parameter in model.encoder.parameters()):
        part: _Part = _Whole(model, train, valid, settings.precision)
    else:
        part = _HeadOnly(model, train, valid, quiet)
    history = _fit_part(part, task, train.targets, valid, settings, quiet)
    part.finish()
    model.head.fold()
    model.eval()
    return history


class _Part:
    """What is fitted: its learning module, its logits in training, its logits for held-out rows."""

    module: nn.Module

    def training_logits(self, rows: np.ndarray) -> Iterator[tuple[Tensor, np.ndarray]]:
        """Logits of rows in parts, each with the places in `rows` that it covers."""
        raise NotImplementedError

    def valid_logits(self) -> FloatArray:
        """Logits of the held-out rows, [rows, outputs]."""
        raise NotImplementedError

    def finish(self) -> None:
        """Undo what was done for fitting only."""


class _Whole(_Part):
    """Encoder and head, computed anew in every step."""

    def __init__(self, model: Model, train: Fold, valid: Fold | None, precision: str) -> None:
        self.module = self.model = model
        self.train, self.valid = train, valid
        self.bf16 = precision == "bf16"

    def training_logits(self, rows: np.ndarray) -> Iterator[tuple[Tensor, np.ndarray]]:
        for one in packs([self.train.encoded[row] for row in rows], MICRO_TOKENS):
            tensors = TensorPack.from_pack(one)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                hidden = self.model.encoder(tensors)
            yield self.model.head(hidden.float(), tensors), one.row

    def valid_logits(self) -> FloatArray:
        assert self.valid is not None
        engine = Engine(self.model)
        return _by_row(self.valid.encoded, engine.logits)


class _HeadOnly(_Part):
    """The head alone: what the frozen encoder says of each row is computed once."""

    def __init__(self, model: Model, train: Fold, valid: Fold | None, quiet: bool) -> None:
        self.head = model.head
        self.module = model.head
        engine = Engine(model)
        total = len(train.encoded) + (len(valid.encoded) if valid else 0)
        with Progress("encode", total, "rows", quiet) as progress:
            self.train = torch.from_numpy(_by_row(train.encoded, engine.pooled, progress.advance))
            self.valid = torch.from_numpy(_by_row(valid.encoded, engine.pooled, progress.advance)) if valid else None
        self.mean, self.deviation = torch.zeros(1), torch.ones(1)
        if self.head.dense is None:
            # A linear head learns fastest from features of one scale; `finish` folds the scale into its weights.
            self.mean = self.train.mean(0)
            deviation = self.train.std(0, unbiased=False)
            # What never varies, but for rounding, has no scale.
            varies = deviation > 1e-5 * self.mean.abs().clamp_min(1)
            self.deviation = torch.where(varies, deviation, 1.0)

    def _scaled(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.deviation

    def training_logits(self, rows: np.ndarray) -> Iterator[tuple[Tensor, np.ndarray]]:
        yield self.head.classify(self._scaled(self.train[torch.from_numpy(rows)])), np.arange(len(rows))

    def valid_logits(self) -> FloatArray:
        assert self.valid is not None
        with torch.no_grad():
            logits: FloatArray = self.head.classify(self._scaled(self.valid)).numpy()
        return logits

    def finish(self) -> None:
        if self.head.dense is None:
            self.head.fold_input(self.mean, self.deviation)


def _by_row(
    encoded: Sequence[Encoded], compute: Callable[[Any], FloatArray], done: Callable[[int], None] | None = None
) -> FloatArray:
    """What `compute` says of each pack, in row order."""
    result: FloatArray | None = None
    for one in packs(encoded, TOKEN_BUDGET):
        values = compute(one)
        if result is None:
            result = np.empty((len(encoded), values.shape[1]), dtype=np.float32)
        result[one.row] = values
        if done:
            done(len(one.row))
    assert result is not None
    return result


def _fit_part(
    part: _Part, task: Task, targets: np.ndarray, valid: Fold | None, settings: Settings, quiet: bool
) -> History:
    history, best, best_value = History(), None, (-np.inf, -np.inf)
    rows = len(targets)
    per_epoch = -(-rows // settings.batch)
    steps = per_epoch * settings.epochs
    optimiser = adamw(part.module, settings.lr, settings.weight_decay)
    weights = task.weights(targets) if settings.balanced else None
    loss_weights = torch.from_numpy(weights) if weights is not None else None
    random = np.random.default_rng(settings.seed)
    with Progress("fit", rows * settings.epochs, "rows", quiet) as progress:
        try:
            for epoch in range(settings.epochs):
                started = time.monotonic()
                part.module.train()
                order = random.permutation(rows)
                total = 0.0
                for step in range(per_epoch):
                    chosen = order[step * settings.batch : (step + 1) * settings.batch]
                    share = rate(epoch * per_epoch + step, steps, settings.warmup)
                    total += _step(part, task, targets, chosen, optimiser, share * settings.lr, loss_weights, settings)
                    progress.advance(len(chosen))
                if not np.isfinite(total):
                    saw = f"the training loss is {total} in epoch {epoch + 1}"
                    raise UsageError("fit", saw, "a finite loss", f"Lower --lr (it is {settings.lr:g}).")
                scores = _score(part, task, valid)
                history.epochs.append({"train_loss": total / rows} | scores)
                value = _value(task, settings.metric, scores, epoch)
                if value > best_value or best is None:
                    best, best_value, history.best_epoch = _copy(part.module), value, epoch + 1
                if _is_told(epoch, settings.epochs):
                    seconds = time.monotonic() - started
                    progress.say(_epoch_line(epoch + 1, settings, history.epochs[-1], rows / seconds))
        except KeyboardInterrupt:
            history.interrupted = True
    if best is not None:
        part.module.load_state_dict(best)
    part.module.eval()
    return history


def _step(
    part: _Part, task: Task, targets: np.ndarray, rows: np.ndarray, optimiser: torch.optim.Optimizer, lr: float,
    weights: Tensor | None, settings: Settings,
) -> float:  # fmt: skip
    """One update; the sum of the rows' losses."""
    optimiser.zero_grad(set_to_none=True)
    total = 0.0
    for logits, places in part.training_logits(rows):
        wanted = torch.from_numpy(targets[rows[places]])
        loss = task.loss(logits, wanted, weights).sum()
        (loss / len(rows)).backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    torch.nn.utils.clip_grad_norm_([p for p in part.module.parameters() if p.grad is not None], settings.clip)
    for group in optimiser.param_groups:
        group["lr"] = lr
    optimiser.step()
    return total


def _score(part: _Part, task: Task, valid: Fold | None) -> dict[str, float]:
    if valid is None:
        return {}
    part.module.eval()
    scores = task.evaluate(part.valid_logits(), valid.targets)
    return {name: scores[name] for name in task.metrics}


def _value(task: Task, metric: str, scores: dict[str, float], epoch: int) -> tuple[float, float]:
    """What the best epoch is chosen by: the metric, and among equals the loss; without held-out rows the last one."""
    if not scores:
        return float(epoch), 0.0
    return scores[metric] * task.metrics[metric], -scores["loss"]


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def _is_told(epoch: int, epochs: int) -> bool:
    """Ten lines or so, and the last one."""
    return (epoch + 1) % max(1, round(epochs / 10)) == 0 or epoch + 1 == epochs


def _epoch_line(epoch: int, settings: Settings, scores: dict[str, float], rows_per_second: float) -> str:
    line = f"epoch {epoch}/{settings.epochs}  train loss {scores['train_loss']:.4f}"
    if settings.metric in scores:
        line += f"  held-out {settings.metric} {scores[settings.metric]:.4f}"
    return f"{line}  {rows_per_second:,.0f} rows/s"
