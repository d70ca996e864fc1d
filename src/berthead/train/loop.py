"""Fitting: epochs over packs, the best epoch by one metric restored whole."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from berthead.errors import UsageError
from berthead.model.adapt import stages
from berthead.model.heads import RowHead
from berthead.model.model import Model
from berthead.progress import Progress
from berthead.tasks import Task
from berthead.train.optim import Optimiser, peak_rate, rate, unfrozen
from berthead.train.parts import Fold, HeadOnly, Part, part_of
from berthead.train.settings import Settings
from berthead.train.table import learns_by_row


@dataclass(slots=True)
class History:
    """What happened in each epoch.

    Args:
        epochs: the training loss and the held-out metrics of each finished epoch.
        best_epoch: the epoch, from 1, whose weights the model holds now; 0: none was finished.
        interrupted: whether the user stopped the fit.
        kept: how many vectors of a frozen part were looked up instead of computed in each epoch, and how exactly.
    """

    epochs: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    interrupted: bool = False
    kept: dict[str, Any] | None = None


def fit_model(
    model: Model, task: Task, train: Fold, valid: Fold | None, settings: Settings, quiet: bool = False,
    cache: Path | None = None,
) -> History:  # fmt: skip
    """Fit the parameters that learn, in place.

    Args:
        model: with the parameters that learn marked.
        task: the loss and the metrics.
        train: rows to fit.
        valid: rows that choose the best epoch; None: the last epoch is kept.
        settings: how.
        quiet: show no progress.
        cache: where what a frozen part says of the rows is kept for later fits; None: nowhere.

    Returns:
        What happened. After Ctrl-C the best epoch so far is in the model, and `interrupted` is set.
    """
    rescaled = isinstance(model.head, RowHead)
    if isinstance(model.head, RowHead):
        model.head.scale, model.head.shift = task.affine()
    model.to(torch.device(settings.device))
    part = part_of(model, task.outputs, train, valid, settings, quiet, cache)
    with _one_thread() if isinstance(part, HeadOnly) else nullcontext():
        history = _fit_part(part, task, train.targets, valid, settings, quiet)
    history.kept = part.kept
    part.finish()
    model.cpu()
    if rescaled:
        model.head.fold()
    model.eval()
    return history


@contextmanager
def _one_thread() -> Iterator[None]:
    """Steps of a head alone are so short that threads would wait for each other longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _fit_part(
    part: Part, task: Task, targets: np.ndarray, valid: Fold | None, settings: Settings, quiet: bool
) -> History:
    history, best, best_value = History(), None, (-np.inf, -np.inf)
    rows = len(targets)
    per_epoch = -(-rows // settings.batch)
    steps = per_epoch * settings.epochs
    optimiser = _optimiser(part.module, settings)
    groups = stages(part.module) if settings.unfreeze and isinstance(part.module, Model) else []
    fixed = {name for name, parameter in part.module.named_parameters() if not parameter.requires_grad}
    weights = task.weights(targets) if settings.balanced else None
    loss_weights = torch.from_numpy(weights) if weights is not None else None
    random = np.random.default_rng(settings.seed)
    with Progress("fit", rows * settings.epochs, "rows", quiet) as progress:
        try:
            for epoch in range(settings.epochs):
                started = time.monotonic()
                if groups:
                    _unfreeze(groups, unfrozen(epoch, settings.epochs, len(groups)))
                part.train()
                order = random.permutation(rows)
                total = 0.0
                for step in range(per_epoch):
                    chosen = order[step * settings.batch : (step + 1) * settings.batch]
                    share = rate(epoch * per_epoch + step, steps, settings.warmup)
                    total += _step(part, task, targets, chosen, optimiser, share, loss_weights)
                    progress.advance(len(chosen))
                optimiser.settle()
                if not np.isfinite(total):
                    saw = f"the training loss is {total} in epoch {epoch + 1}"
                    raise UsageError("fit", saw, "a finite loss", f"Lower --lr (it is {settings.lr:g}).")
                scores = _score(part, task, valid)
                history.epochs.append({"train_loss": total / rows} | scores)
                value = _value(task, settings.metric, scores, epoch)
                if value > best_value or best is None:
                    best, best_value, history.best_epoch = _copy(part.module, fixed), value, epoch + 1
                if _is_told(epoch, settings.epochs):
                    seconds = time.monotonic() - started
                    progress.say(_epoch_line(epoch + 1, settings, history.epochs[-1], rows / seconds))
        except KeyboardInterrupt:
            history.interrupted = True
        finally:
            optimiser.close()
    if best is not None:
        part.module.load_state_dict(best, strict=False)
    part.module.eval()
    return history


def _step(
    part: Part, task: Task, targets: np.ndarray, rows: np.ndarray, optimiser: Optimiser, share: float,
    weights: Tensor | None,
) -> float:  # fmt: skip
    """One update at a share of the peak rates; the sum of the rows' losses."""
    optimiser.zero_grad()
    total = 0.0
    task = task.over(_wanted(targets[rows], part.sizes[rows].tolist()), len(rows))
    for logits, places, sizes in part.training_logits(rows):
        loss = task.loss(logits, _wanted(targets[rows[places]], sizes), weights, sizes).sum()
        (loss / len(rows)).backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    optimiser.step(share)
    return total


def _wanted(targets: np.ndarray, sizes: Sequence[int]) -> Tensor:
    """Targets of rows as one tensor; of several units a row those that were read."""
    if targets.dtype != object:
        return torch.from_numpy(targets)
    return torch.from_numpy(np.concatenate([one[:size] for one, size in zip(targets, sizes, strict=True)]))


def _score(part: Part, task: Task, valid: Fold | None) -> dict[str, float]:
    if valid is None:
        return {}
    part.module.eval()
    scores = task.evaluate(part.valid_logits(), valid.targets, valid.batch)
    return {name: scores[name] for name in task.metrics}


def _value(task: Task, metric: str, scores: dict[str, float], epoch: int) -> tuple[float, float]:
    """What the best epoch is chosen by: the metric, and among equals the loss; without held-out rows the last one."""
    if not scores:
        return float(epoch), 0.0
    return scores[metric] * task.metrics[metric], -scores["loss"]


def _optimiser(module: nn.Module, settings: Settings) -> Optimiser:
    """AdamW with the rates of the blocks, the embeddings and the head."""
    head_lr = settings.head_lr or settings.lr
    if not isinstance(module, Model):  # the head alone
        return Optimiser(module, head_lr, settings.weight_decay, settings.clip)
    blocks = len(module.encoder.blocks)

    def peak(name: str) -> float:
        return peak_rate(name, blocks, settings.lr, head_lr, settings.layer_decay)

    words = getattr(module.encoder.embeddings, "word", None)  # what is looked up has no table
    table = words if words is not None and learns_by_row(words) else None
    return Optimiser(module, settings.lr, settings.weight_decay, settings.clip, peak, table)


def _unfreeze(groups: Sequence[Sequence[nn.Parameter]], count: int) -> None:
    """Let the first groups learn, and the others not."""
    for number, group in enumerate(groups):
        for parameter in group:
            parameter.requires_grad_(number < count)


def _copy(module: nn.Module, fixed: Collection[str]) -> dict[str, Tensor]:
    """What a fit may have changed."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items() if name not in fixed}


def _is_told(epoch: int, epochs: int) -> bool:
    """Ten lines or so, and the last one."""
    return (epoch + 1) % max(1, round(epochs / 10)) == 0 or epoch + 1 == epochs


def _epoch_line(epoch: int, settings: Settings, scores: dict[str, float], rows_per_second: float) -> str:
    line = f"epoch {epoch}/{settings.epochs}  train loss {scores['train_loss']:.4f}"
    if settings.metric in scores:
        line += f"  held-out {settings.metric} {scores[settings.metric]:.4f}"
    return f"{line}  {rows_per_second:,.0f} rows/s"
