"""A linear head on fixed vectors has a convex loss: it is solved, and folds choose how strongly it is penalised.

The loss of the rows' mean, plus half of the penalty times the squared weights, is minimised by L-BFGS (Liu and Nocedal
1989). The biases are not penalised. The same rows in folds, each scored by a head that did not see it, choose the
penalty and the scale of the vectors, and later temperature and thresholds: no row is held out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from berthead.data.forms import FORMS
from berthead.data.split import folds
from berthead.errors import ModelError
from berthead.model.adapt import Adapt
from berthead.model.heads import POOLINGS, RowHead, TokenHead
from berthead.options import HEADS, FitOptions
from berthead.progress import Progress
from berthead.records import FloatArray, IntArray
from berthead.tasks import Task
from berthead.text.layout import ranges
from berthead.train.fold import Fold
from berthead.train.unit_targets import unit_targets

FOLDS = 5
# Folds are scored until so many rows were: more choose no better.
ENOUGH_ROWS = 2_000
# Penalties, as multiples of the vectors' mean variance times the loss's curvature; the strongest first, because the
# next one starts where the last one ended. So strong that only the labels' mean vectors count, to hardly any.
STRENGTHS = tuple(10.0**power for power in range(3, -5, -1))
# The path ends after so many penalties that are no better; then those half-way to the best one's neighbours are tried.
PATIENCE = 2
HALF_WAY = 10**0.5
STEPS, MEMORY = 200, 10
# A search ends where a step changes the loss by no more than this: on the path, and for the head that is kept.
NEAR_ENOUGH, NEAREST = 1e-4, 1e-8
# Directions in which the vectors vary less than this, relative to the widest one, hold rounding only.
LEAST_SPREAD = 1e-7
# The options that only a fit in steps reads: with one of them, a head is fitted in steps.
OF_STEPS = ("epochs", "batch", "lr", "head_lr", "weight_decay", "warmup", "clip")


@dataclass(frozen=True, slots=True)
class OutOfFold:
    """Rows as they are answered by heads that were fitted without them.

    Args:
        rows: their numbers, ascending int64 [scored rows].
        logits: of their units, float32 [units, outputs].
        fold_of: the fold of every row, int64 [rows].
        heads: the parameters of the heads that were fitted without fold 0, 1, ..., as far as those folds were scored;
            their outputs are in the user's unit.
        solution: what was chosen, for the folder's record.
    """

    rows: IntArray
    logits: FloatArray
    fold_of: IntArray
    heads: list[dict[str, Tensor]]
    solution: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Solving:
    """How a head is solved.

    Args:
        metric: chooses the penalty: a metric of the task.
        normalises: whether the rows' vectors may be divided by their lengths, if the folds prefer that.
    """

    metric: str
    normalises: bool

    @classmethod
    def of(cls, options: FitOptions, task: Task, pooling: str | None) -> Self | None:
        """How a fit solves its head; None: it is fitted in steps.

        It is solved if the encoder is frozen, the head is linear in the encoder's vectors, and nobody asks for steps.

        Args:
            options: what to fit and how.
            task: what is predicted.
            pooling: of the head's rows: a key of `POOLINGS`; None: it has no pooling, or is not ours.
        """
        usual = FitOptions()
        asked = any(getattr(options, name) != getattr(usual, name) for name in OF_STEPS)
        if asked or Adapt.parse(options.adapt).kind != "frozen" or options.head not in HEADS or options.head == "crf":
            return None
        kind = task.needed_head()["kind"]
        is_linear = pooling is not None and not POOLINGS[pooling].dense and options.windows == "mean"
        if kind != "token" and not (kind == "row" and is_linear):
            return None
        # The loss is smooth where a share of right answers of few rows has steps.
        return cls(options.metric or "loss", kind == "row" and options.pooling == "auto")


def solve(
    head: RowHead | TokenHead, vectors: Callable[[bool], Tensor], task: Task, fold: Fold, solving: Solving, *,
    balanced: bool, seed: int, quiet: bool,
) -> OutOfFold:  # fmt: skip
    """Fit a linear head on fixed vectors, in place.

    Args:
        head: its biases are where the search begins.
        vectors: of the units, divided by their lengths or not, float32 [units, width].
        task: the loss and the metrics.
        fold: the rows.
        solving: how.
        balanced: whether a rare class counts as much as a common one.
        seed: of the folds.
        quiet: show no progress.

    Returns:
        The rows' answers out of fold.

    Raises:
        ModelError: vectors that are not finite.
    """
    weights = task.weights(fold.targets) if balanced else None
    problem = _Problem(task, fold, weights)
    by_pair = FORMS[task.form].needs_pair
    fold_of = folds(fold.examples, FOLDS, seed, lambda one: task.group(one.target), by_pair=by_pair)
    scored = _enough(fold_of)
    best: _Trial | None = None
    looks = (_View.standardised, False), (_View.centred, solving.normalises)
    most = (len(looks) * len(STRENGTHS) + 2) * len(scored) + 1
    with Progress("solve", most, "heads", quiet) as progress:
        for look, normalised in looks:
            now = vectors(normalised)
            if not now.isfinite().all():
                raise ModelError("--encoder", "gives vectors that are not finite", "", "Try --precision fp32.")
            view = look(now)
            problem.look(view, now)
            judge = _Judge(problem, fold_of, scored, solving.metric, progress)
            trial = _path(judge, head.out.bias.detach())
            if best is None or trial.value > best.value:
                best, chosen = trial, (view, normalised, judge)
        assert best is not None
        view, normalised, judge = chosen
        if problem.view is not view:
            problem.look(view, vectors(normalised))
        best = max(best, judge.trial(best.strength * HALF_WAY, best), judge.trial(best.strength / HALF_WAY, best))
        found = problem.minimised(np.arange(len(fold.targets)), best.strength, best.heads[0], NEAREST)
        progress.advance(1)
    without = [_written(head, problem.in_users_unit(one), view) for one in best.heads]
    head.load_state_dict(_written(head, found, view))
    if normalised and isinstance(head, RowHead):
        head.pooling = POOLINGS[head.pooling].normalised or head.pooling
    solution = {
        "penalty": problem.unit * best.strength,
        "vectors": "normalised" if normalised else view.name, "folds": FOLDS, "chosen_by": solving.metric,
        "scored_rows": len(judge.rows),
    }  # fmt: skip
    return OutOfFold(judge.rows, best.logits, fold_of, without, solution)


@dataclass(frozen=True, slots=True)
class _View:
    """How vectors are seen: shifted, scaled and turned into directions of rising spread.

    Args:
        name: for the record.
        mean: subtracted, [width].
        scale: divided by, [width].
        turn: the directions, [width, directions].
        spread: the variance along each, [directions].
    """

    name: str
    mean: Tensor
    scale: Tensor
    turn: Tensor
    spread: Tensor

    @classmethod
    def of(cls, name: str, vectors: Tensor, mean: Tensor, scale: Tensor) -> Self:
        """The view with this shift and scale."""
        gram = torch.zeros(len(mean), len(mean), dtype=torch.float64)
        for start in range(0, len(vectors), _PART):
            seen = (vectors[start : start + _PART] - mean) / scale
            gram += (seen.T @ seen).double()
        spread, turn = torch.linalg.eigh(gram / len(vectors))
        wide = spread > LEAST_SPREAD * spread[-1].clamp_min(1e-30)
        return cls(name, mean, scale, turn[:, wide].float(), spread[wide].float())

    @classmethod
    def centred(cls, vectors: Tensor) -> Self:
        """Vectors less their mean."""
        mean = vectors.mean(0)
        return cls.of("centred", vectors, mean, torch.ones_like(mean))

    @classmethod
    def standardised(cls, vectors: Tensor) -> Self:
        """Vectors less their mean, in standard deviations."""
        mean = vectors.mean(0)
        deviation = vectors.std(0, unbiased=False)
        # Features that vary only by rounding have no scale.
        varies = deviation > 1e-5 * mean.abs().clamp_min(1)
        return cls.of("standardised", vectors, mean, torch.where(varies, deviation, 1.0))

    def seen(self, vectors: Tensor) -> Tensor:
        """Vectors as they are seen, [units, directions]."""
        seen = vectors.new_empty(len(vectors), len(self.spread))
        for start in range(0, len(vectors), _PART):
            seen[start : start + _PART] = ((vectors[start : start + _PART] - self.mean) / self.scale) @ self.turn
        return seen


@dataclass(frozen=True, slots=True)
class _Found:
    """A head on seen vectors: weights [outputs, directions] and biases [outputs]."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def at(cls, bias: Tensor, problem: _Problem) -> Self:
        """The head that reads nothing."""
        return cls(torch.zeros(len(bias), len(problem.spread)), bias.clone())

    def logits(self, seen: Tensor) -> Tensor:
        """[units, outputs], before the task's scale and shift."""
        return torch.addmm(self.bias, seen, self.weight.T)


@dataclass(frozen=True, slots=True)
class _Trial:
    """A strength of penalty: how good it is, the answers of the scored rows, and the heads of the scored folds."""

    strength: float
    value: float
    logits: FloatArray
    heads: list[_Found]

    def __lt__(self, other: _Trial) -> bool:
        return self.value < other.value


class _Problem:
    """The loss of a linear head on some rows, for each penalty."""

    def __init__(self, task: Task, fold: Fold, weights: FloatArray | None) -> None:
        self.task, self.fold, self.targets = task, fold, fold.targets
        self.edges = np.concatenate([[0], np.cumsum([one.n_units for one in fold.inputs])]).astype(np.int64)
        self.sizes = np.diff(self.edges)
        self.weights = None if weights is None else torch.from_numpy(weights)
        self.scale, self.shift = (torch.as_tensor(one, dtype=torch.float32) for one in task.affine())

    def look(self, view: _View, vectors: Tensor) -> None:
        """See the units' vectors in this view from now on."""
        self.view, self.seen, self.spread = view, view.seen(vectors), view.spread
        prior = torch.from_numpy(self.task.prior(self.targets)).float()
        outputs = ((prior - self.shift) / self.scale).repeat(len(vectors), 1)
        curvature = _curvature(self._loss_of(np.arange(len(self.targets))), outputs)
        self.unit = float(curvature.mean() * self.spread.sum()) / vectors.shape[1]

    def units_of(self, rows: IntArray) -> Tensor:
        """The numbers of the rows' units, int64 [units]."""
        return torch.from_numpy(ranges(self.edges[rows], self.edges[rows + 1]))

    def logits(self, found: _Found, rows: IntArray) -> FloatArray:
        """What a head answers for rows, float32 [units, outputs]."""
        logits = found.logits(self.seen[self.units_of(rows)]) * self.scale + self.shift
        values: FloatArray = logits.numpy()
        return values

    def in_users_unit(self, found: _Found) -> _Found:
        """The head whose outputs are logits, without the task's scale and shift behind it."""
        scale = self.scale.expand(len(found.bias))
        return _Found(found.weight * scale[:, None], found.bias * scale + self.shift)

    def minimised(self, rows: IntArray, strength: float, start: _Found, near: float) -> _Found:
        """The head with the least loss of the rows at this strength of penalty, from a head near it."""
        penalty = self.unit * strength
        loss_of, seen = self._loss_of(rows), self.seen[self.units_of(rows)]
        # In these units every direction is about equally steep, so few steps are enough.
        curvature = _curvature(loss_of, start.logits(seen))
        step = (curvature[:, None] * self.spread + penalty).rsqrt()
        bias_step = curvature.rsqrt()
        point = torch.cat([start.weight / step, (start.bias / bias_step)[:, None]], 1).requires_grad_()
        search = torch.optim.LBFGS(
            [point], max_iter=STEPS, history_size=MEMORY, tolerance_grad=1e-6, tolerance_change=near,
            line_search_fn="strong_wolfe",
        )  # fmt: skip

        def head() -> _Found:
            return _Found(point[:, :-1] * step, point[:, -1] * bias_step)

        def loss() -> Tensor:
            search.zero_grad()
            now = head()
            total = loss_of(now.logits(seen)) + penalty / 2 * (now.weight**2).sum()
            total.backward()  # type: ignore[no-untyped-call]
            return total

        search.step(loss)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            return head()

    def _loss_of(self, rows: IntArray) -> Callable[[Tensor], Tensor]:
        """The mean loss of rows, of a head's outputs for their units."""
        sizes = self.sizes[rows].tolist()
        wanted = unit_targets(self.targets[rows], sizes)
        task = self.task.over(wanted, len(rows))

        def loss(outputs: Tensor) -> Tensor:
            return task.loss(outputs * self.scale + self.shift, wanted, self.weights, sizes).mean()

        return loss


def _curvature(loss: Callable[[Tensor], Tensor], outputs: Tensor) -> Tensor:
    """How steep a loss is in each output: of likelihoods the mean square of its gradient.

    Args:
        loss: of the units' outputs.
        outputs: [units, outputs].

    Returns:
        Above 0, [outputs].
    """
    outputs = outputs.detach().requires_grad_()
    loss(outputs).backward()  # type: ignore[no-untyped-call]
    assert outputs.grad is not None
    return ((outputs.grad * len(outputs)) ** 2).mean(0).clamp_min(1e-6)


class _Judge:
    """Judges penalties by the rows of some folds, each answered by a head that was fitted without its fold."""

    def __init__(
        self, problem: _Problem, fold_of: IntArray, scored: Sequence[int], metric: str, progress: Progress
    ) -> None:
        self.problem, self.metric, self.progress = problem, metric, progress
        self.inside = [np.flatnonzero(fold_of == fold) for fold in scored]
        self.outside = [np.flatnonzero(fold_of != fold) for fold in scored]
        together = np.concatenate(self.inside)
        order = np.argsort(together, kind="stable")
        self.rows = together[order]
        self.fold = problem.fold.of(self.rows)
        ends = np.cumsum(problem.sizes[together])
        self.units = ranges((ends - problem.sizes[together])[order], ends[order])

    def trial(self, strength: float, near: _Trial | list[_Found]) -> _Trial:
        """Try a strength of penalty, from heads near it."""
        starts = near.heads if isinstance(near, _Trial) else near
        heads = [
            self.problem.minimised(rows, strength, start, NEAR_ENOUGH)
            for rows, start in zip(self.outside, starts, strict=True)
        ]
        answers = [self.problem.logits(found, rows) for rows, found in zip(self.inside, heads, strict=True)]
        logits = np.concatenate(answers)[self.units]
        self.progress.advance(len(heads))
        return _Trial(strength, _value(self.problem.task, self.metric, logits, self.fold), logits, heads)


def _path(judge: _Judge, bias: Tensor) -> _Trial:
    """The best of a path of penalties."""
    last = best = judge.trial(STRENGTHS[0], [_Found.at(bias, judge.problem)] * len(judge.inside))
    worse = 0
    for strength in STRENGTHS[1:]:
        last = judge.trial(strength, last)
        worse = 0 if best < last else worse + 1
        best = max(best, last)
        if worse == PATIENCE:
            break
    return best


def _value(task: Task, metric: str, logits: FloatArray, rows: Fold) -> float:
    """How good logits are by a metric, with the best temperature and thresholds; more is better."""
    task = task.tuned(logits, rows.targets, rows.batch)
    return float(task.evaluate(logits, rows.targets, rows.batch)[metric]) * task.metrics[metric]


def _enough(fold_of: IntArray) -> list[int]:
    """The folds that are scored."""
    sizes = np.bincount(fold_of, minlength=FOLDS)
    wanted = int(np.searchsorted(np.cumsum(sizes), ENOUGH_ROWS)) + 1
    return [fold for fold in range(min(FOLDS, wanted)) if sizes[fold]]


def _written(head: nn.Module, found: _Found, view: _View) -> dict[str, Tensor]:
    """The head's parameters, so that it reads the vectors themselves."""
    weight = (found.weight.double() @ view.turn.T.double()) / view.scale.double()
    bias = found.bias.double() - weight @ view.mean.double()
    others = {name: one.clone() for name, one in head.state_dict().items()}
    return others | {"out.weight": weight.float(), "out.bias": bias.float()}


_PART = 16_384
"""Vectors that are transformed at once."""
