"""The loop of a fit: epochs of steps; at the end the best epoch by one metric is restored."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from berthead.errors import MachineError, UsageError
from berthead.model.heads import RowHead
from berthead.model.model import Model
from berthead.progress import Progress
from berthead.tasks import Task
from berthead.train import memory
from berthead.train.checkpoints import Checkpoints, Saved
from berthead.train.convex import Solving, solve
from berthead.train.fold import Fold
from berthead.train.modes import CachedFeatures, TrainingMode, mode_of
from berthead.train.settings import Settings
from berthead.train.steps import FitState, History
from berthead.train.team import ALONE, Team

# Multiplications of a head with all vectors, from which on threads do not mostly wait for each other.
LARGE = 50_000_000


def fit_model(
    model: Model, task: Task, train: Fold, valid: Fold | None, settings: Settings, quiet: bool = False,
    cache: Path | None = None, checkpoints: Checkpoints | None = None, saved: Saved | None = None, team: Team = ALONE,
    solving: Solving | None = None,
) -> History:  # fmt: skip
    """Train the marked parameters, in place.

    Args:
        model: with the trained parameters marked.
        task: the loss and the metrics.
        train: training rows.
        valid: rows that choose the best epoch; None: the last epoch is kept.
        settings: the settings of the fit.
        quiet: show no progress.
        cache: the folder that keeps activations of the frozen layers for later fits, or None.
        checkpoints: where checkpoints are written, or None.
        saved: the state to resume from; None: start from the beginning.
        team: the processes that fit together; each has the fitted model at the end, except those that end early.
        solving: how the head is solved; None: it is fitted in steps.

    Returns:
        What happened. After Ctrl-C the best epoch so far is in the model, and `interrupted` is set.

    Raises:
        UsageError: the loss is not finite.
        MachineError: too little memory for one row, or another process died.
    """
    model.to(torch.device(settings.device))
    if isinstance(model.head, RowHead):
        model.head.rescale(*task.affine())
    mode = mode_of(model, task.outputs, train, valid, settings, quiet, cache, team)
    if team.ends_early and isinstance(mode, CachedFeatures):
        return History()  # this process is done
    if solving:
        assert isinstance(mode, CachedFeatures)
        with nullcontext() if mode.train_vectors.numel() * task.outputs > LARGE else _one_thread():
            found = solve(
                model.head, mode.unit_vectors, task, train, solving, balanced=settings.balanced, seed=settings.seed,
                quiet=quiet,
            )  # fmt: skip
        history = History(kept=mode.kept, out_of_fold=found)
    else:
        history = _in_steps(mode, task, train, valid, settings, quiet, checkpoints, saved)
    model.cpu()
    if isinstance(model.head, RowHead):
        model.head.fold()
    model.eval()
    return history


def _in_steps(
    mode: TrainingMode, task: Task, train: Fold, valid: Fold | None, settings: Settings, quiet: bool,
    checkpoints: Checkpoints | None, saved: Saved | None,
) -> History:  # fmt: skip
    """Epochs of steps, and the best epoch's parameters."""
    with _one_thread() if isinstance(mode, CachedFeatures) else nullcontext():
        state = FitState(mode, task, train.targets, valid, settings)
        if saved:
            state.load(saved)
        history = _ran(state, checkpoints, quiet)
    mode.finish()
    return history


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread: a head alone is so little work that threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _ran(state: FitState, checkpoints: Checkpoints | None, quiet: bool) -> History:
    """Run from the current state to the end; then the best epoch is in the module."""
    settings, history = state.settings, state.history
    with Progress("fit", state.rows_left, "rows", quiet) as progress:
        if state.has_begun:
            place = f"{state.step:,} of {state.per_epoch:,} steps of epoch {state.epoch + 1}/{settings.epochs}"
            progress.say(f"resumed after {place if state.epoch < settings.epochs else 'the last epoch'}")
        try:
            with memory.explained():
                while state.epoch < settings.epochs:
                    _epoch(state, checkpoints, progress)
        except (KeyboardInterrupt, MachineError) as error:
            _keep(state, checkpoints, progress)
            if isinstance(error, MachineError):
                raise
            history.interrupted = True
        except UsageError:  # the loss: resuming from here would fail again
            if checkpoints:
                checkpoints.remove()
            raise
        finally:
            state.optimiser.close()
    if state.best is not None:
        state.mode.module.load_state_dict(state.best, strict=False)
    state.mode.module.eval()
    return history


def _epoch(state: FitState, checkpoints: Checkpoints | None, progress: Progress) -> None:
    """Run an epoch, or the rest of one."""
    started, rows, number = time.monotonic(), 0, state.epoch + 1
    order = state.begin_epoch()
    while state.step < state.per_epoch:
        read = state.take_step(order, progress.say)
        progress.advance(read)
        rows += read
        if checkpoints and checkpoints.is_due():
            _keep(state, checkpoints, progress)
    state.end_epoch()
    if checkpoints and checkpoints.is_due(epoch_ended=True):
        _keep(state, checkpoints, progress)
    if _is_told(number, state.settings.epochs):
        speed = rows / (time.monotonic() - started)
        progress.say(_epoch_line(number, state.settings, state.history.epochs[-1], speed))


def _keep(state: FitState, checkpoints: Checkpoints | None, progress: Progress) -> None:
    """Write a checkpoint of the run."""
    if checkpoints and checkpoints.writes and state.has_begun and (saved := state.saved()):
        checkpoints.write(saved, progress.say)


def _is_told(epoch: int, epochs: int) -> bool:
    """Whether an epoch (from 1) is reported: about ten of them, and the last one."""
    return epoch % max(1, round(epochs / 10)) == 0 or epoch == epochs


def _epoch_line(epoch: int, settings: Settings, scores: dict[str, float], rows_per_second: float) -> str:
    line = f"epoch {epoch}/{settings.epochs}  train loss {scores['train_loss']:.4f}"
    if settings.metric in scores:
        line += f"  held-out {settings.metric} {scores[settings.metric]:.4f}"
    return f"{line}  {rows_per_second:,.0f} rows/s"
