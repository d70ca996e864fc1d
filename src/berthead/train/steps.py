"""The state of a running fit: its steps and epochs, with saving and loading."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from berthead.errors import UsageError
from berthead.model.adapt import stages
from berthead.model.model import Model
from berthead.tasks import Task
from berthead.train import memory
from berthead.train.checkpoints import Saved
from berthead.train.convex import OutOfFold
from berthead.train.embedding_table import learns_by_row
from berthead.train.fold import Fold
from berthead.train.interrupts import defer_sigint
from berthead.train.modes import TrainingMode
from berthead.train.optim import Optimiser, peak_rate, rate, unfrozen
from berthead.train.random_states import Randomness
from berthead.train.settings import Settings
from berthead.train.unit_targets import unit_targets


@dataclass(slots=True)
class History:
    """What happened in each epoch.

    Args:
        epochs: the training loss and the held-out metrics of each finished epoch.
        best_epoch: the epoch, from 1, whose weights the model holds; 0: none was finished.
        interrupted: whether the user stopped the fit.
        kept: how many cached vectors of frozen layers were looked up in each epoch, and in which precision.
        notes: notes for the user.
        out_of_fold: of a head that was solved: the answers of heads fitted without the rows that they answer.
    """

    epochs: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    interrupted: bool = False
    kept: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    out_of_fold: OutOfFold | None = None


class FitState:
    """A running fit: everything that changes from step to step, with saving and loading."""

    def __init__(
        self, mode: TrainingMode, task: Task, targets: np.ndarray, valid: Fold | None, settings: Settings
    ) -> None:
        self.mode, self.task, self.targets, self.valid, self.settings = mode, task, targets, valid, settings
        self.per_epoch = -(-len(targets) // settings.batch)
        self.optimiser = _optimiser(mode.module, settings)
        self.groups = stages(mode.module) if settings.unfreeze and isinstance(mode.module, Model) else []
        self.fixed = {name for name, parameter in mode.module.named_parameters() if not parameter.requires_grad}
        weights = task.weights(targets) if settings.balanced else None
        self.weights = torch.from_numpy(weights) if weights is not None else None
        self.history = History(kept=mode.kept)
        self.best: dict[str, Tensor] | None = None
        self.best_value = -np.inf, -np.inf
        self.epoch, self.step, self.loss = 0, 0, 0.0
        self.orders = np.random.default_rng(settings.seed)
        self.order_state = self.orders.bit_generator.state
        # The random state that belongs to the fields above; None: in the middle of a step.
        self.randomness: Randomness | None = Randomness.of(mode.random)

    @property
    def has_begun(self) -> bool:
        """Whether any step was made."""
        return self.epoch > 0 or self.step > 0

    @property
    def rows_left(self) -> int:
        """Rows still to be trained on, counted once for each remaining epoch."""
        rows = len(self.targets)
        return rows * (self.settings.epochs - self.epoch) - min(rows, self.step * self.settings.batch)

    def begin_epoch(self) -> np.ndarray:
        """Set up the order of the rows for an epoch, or for the rest of one."""
        if self.groups:
            _unfreeze(self.groups, unfrozen(self.epoch, self.settings.epochs, len(self.groups)))
        self.mode.train()
        self.orders.bit_generator.state = self.order_state
        return self.orders.permutation(len(self.targets))

    def take_step(self, order: np.ndarray, say: Callable[[str], None]) -> int:
        """Make one update; returns the number of rows that it read."""
        rows = order[self.step * self.settings.batch : (self.step + 1) * self.settings.batch]
        number = self.epoch * self.per_epoch + self.step
        if self.mode.team.size > 1:
            self.mode.team.seed(self.settings.seed, number)
            self.randomness = Randomness.of(self.mode.random)
        loss = self.mode.team.sum(self.optimiser, self._gradients(rows, say), self.mode.read)
        share = rate(number, self.per_epoch * self.settings.epochs, self.settings.warmup)
        with defer_sigint():
            self.randomness = None
            self.optimiser.step(share)
            self.step, self.loss, self.randomness = self.step + 1, self.loss + loss, Randomness.of(self.mode.random)
        return len(rows)

    def _gradients(self, rows: np.ndarray, say: Callable[[str], None]) -> float:
        """Compute the gradients of the rows' mean loss, in smaller parts if memory is too small."""
        before = self.randomness
        assert before is not None
        while True:
            self.optimiser.zero_grad()
            try:
                return _passes(self.mode, self.task, self.targets, rows, self.weights)
            except (MemoryError, RuntimeError) as error:
                if not memory.is_out_of_memory(error):
                    raise
            # Not in the handler: the error keeps the activations of the pass alive. Gradients added so far are
            # discarded: a pass may have stopped in the middle of its backward pass.
            self.optimiser.zero_grad()
            memory.give_back()
            before.restore(self.mode.random)
            note = self.mode.shrink()
            self.history.notes.append(note)
            say(note)

    def end_epoch(self) -> None:
        """Score the held-out rows, and keep the parameters if they are the best so far."""
        self.optimiser.settle()
        if not np.isfinite(self.loss):
            raise self._diverged(f"the training loss is {self.loss}", "a finite loss")
        if not all(torch.isfinite(tensor).all() for tensor in self._trained().values()):
            raise self._diverged("a parameter is not finite", "finite parameters")
        logits = _held_out_logits(self.mode, self.valid)
        if not np.isfinite(logits).all():
            raise self._diverged("a logit of a held-out row is not finite", "finite logits")
        scores = _score(logits, self.task, self.valid)
        value = _value(self.task, self.settings.metric, scores, self.epoch)
        with defer_sigint():
            before, self.randomness = self.randomness, None
            self.history.epochs.append({"train_loss": self.loss / len(self.targets)} | scores)
            if value > self.best_value or self.best is None:
                self.best, self.best_value = _copy(self._trained()), value
                self.history.best_epoch = self.epoch + 1
            self.epoch, self.step, self.loss = self.epoch + 1, 0, 0.0
            self.order_state, self.randomness = self.orders.bit_generator.state, before

    def _trained(self) -> dict[str, Tensor]:
        """The trained parameters, not copied."""
        return {name: one for name, one in self.mode.module.state_dict().items() if name not in self.fixed}

    def _diverged(self, saw: str, expected: str) -> UsageError:
        """The error of a fit whose numbers overflow."""
        where = f"{saw} in epoch {self.epoch + 1}"
        return UsageError("fit", where, expected, f"Lower --lr (it is {self.settings.lr:g}).")

    def saved(self) -> Saved | None:
        """The whole state, to resume from; None in the middle of an update."""
        if self.randomness is None:
            return None
        names = ("epoch", "step", "loss", "order_state", "best_value")
        state = {name: getattr(self, name) for name in names} | {
            "epochs": self.history.epochs, "best_epoch": self.history.best_epoch, "notes": self.history.notes,
            "kept": self.mode.kept, "micro_tokens": self.mode.micro_tokens, "windows": self.randomness.windows,
        }  # fmt: skip
        groups = {"now": self._trained(), "best": self.best or {}, "random": self.randomness.tensors()}
        tensors = {f"{group}.{name}": one for group, some in groups.items() for name, one in some.items()}
        return Saved(state, tensors | self.optimiser.tensors())

    def load(self, saved: Saved) -> None:
        """Load the state that `saved` returned."""
        state, tensors = saved.state, saved.tensors

        def group(name: str) -> dict[str, Tensor]:
            return {one.removeprefix(f"{name}."): tensors[one].clone() for one in tensors if one.startswith(f"{name}.")}

        if state["kept"] != self.mode.kept:
            saw = f"frozen activations were kept as {state['kept']} and are now kept as {self.mode.kept}"
            raise UsageError("--resume", saw, "", "Free some space in the temporary folder, or in --cache.")
        self.mode.module.load_state_dict(group("now"), strict=False)
        self.optimiser.load(tensors)
        self.best, self.best_value = group("best") or None, tuple(state["best_value"])
        self.epoch, self.step, self.loss = state["epoch"], state["step"], state["loss"]
        self.order_state, self.mode.micro_tokens = state["order_state"], state["micro_tokens"]
        self.history.epochs, self.history.best_epoch = state["epochs"], state["best_epoch"]
        self.history.notes = state["notes"]
        self.randomness = Randomness.from_tensors(group("random"), state["windows"])
        self.randomness.restore(self.mode.random)


def _passes(mode: TrainingMode, task: Task, targets: np.ndarray, rows: np.ndarray, weights: Tensor | None) -> float:
    """Forward and backward passes: adds the gradients of the rows' mean loss; returns the sum of their losses."""
    total = 0.0
    task = task.over(unit_targets(targets[rows], mode.sizes[rows].tolist()), len(rows))
    for logits, places, sizes in mode.training_logits(rows):
        loss = task.loss(logits, unit_targets(targets[rows[places]], sizes), weights, sizes).sum()
        (loss / len(rows)).backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total


def _held_out_logits(mode: TrainingMode, valid: Fold | None) -> np.ndarray:
    if valid is None:
        return np.empty((0, 1), dtype=np.float32)
    mode.module.eval()
    return mode.valid_logits()


def _score(logits: np.ndarray, task: Task, valid: Fold | None) -> dict[str, float]:
    if valid is None:
        return {}
    scores = task.evaluate(logits, valid.targets, valid.batch)
    return {name: scores[name] for name in task.metrics}


def _value(task: Task, metric: str, scores: dict[str, float], epoch: int) -> tuple[float, float]:
    """The key that chooses the best epoch: the metric, then the loss; without held-out rows the last epoch."""
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

    words = getattr(module.encoder.embeddings, "word", None)  # cached vectors have no table
    table = words if words is not None and learns_by_row(words) else None
    return Optimiser(module, settings.lr, settings.weight_decay, settings.clip, peak, table)


def _unfreeze(groups: Sequence[Sequence[nn.Parameter]], count: int) -> None:
    """Train the first groups, and freeze the others."""
    for number, group in enumerate(groups):
        for parameter in group:
            parameter.requires_grad_(number < count)


def _copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of parameters."""
    return {name: tensor.clone() for name, tensor in tensors.items()}
