"""What a step computes: the whole model, or only a head on cached vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from berthead.engine.cpu import engine_for
from berthead.errors import MachineError, counted
from berthead.function.head_record import row_part
from berthead.kernels import training as kernels
from berthead.model.adapt import frozen_parts
from berthead.model.heads import JointHead, RowHead, TokenHead, combined, over_arrays, pool_windows
from berthead.model.lora import merged
from berthead.model.model import Model
from berthead.model.tensors import TensorPack
from berthead.model.units import Compute, by_row, by_unit, packs, unit_logits
from berthead.predict.predictor import TOKEN_BUDGET
from berthead.progress import Progress
from berthead.records import FloatArray, IntArray, Pack
from berthead.text.bounds import check_pack
from berthead.text.layout import Layout
from berthead.text.packing import pack, plan
from berthead.text.windows import EncodedExample
from berthead.train import memory
from berthead.train.cached_features import MOST_CACHED_BYTES, Vectors, above, below, frozen_layers, keep
from berthead.train.fold import Fold
from berthead.train.settings import Settings
from berthead.train.team import ALONE, Team

# Tokens of one forward and backward pass: a larger batch is computed in parts, with the same gradient.
MICRO_TOKENS = 8192
# Windows of one text in a training step: of a longer text each step sees a random subset.
MOST_WINDOWS = 16


class TrainingMode:
    """What a step computes: the trained module, its logits in training, its logits for held-out rows."""

    module: nn.Module
    sizes: IntArray
    """Units of each row, [rows]."""
    random: np.random.Generator
    """Chooses the windows that a step reads of a long text."""
    micro_tokens: int
    """Tokens of one forward and backward pass."""
    kept: dict[str, Any] | None = None
    """What is looked up instead of computed."""
    team: Team = ALONE
    """Who shares a step's rows."""
    read: Tensor | None = None
    """What all rows of the step read of an embedding table, int64, ascending; of use to a team."""

    def train(self) -> None:
        """Prepare for training."""
        self.module.train()

    def training_logits(self, rows: np.ndarray) -> Iterator[tuple[Tensor, np.ndarray, list[int]]]:
        """Logits of rows in parts, each with the indices into `rows` that it covers and the units of each."""
        raise NotImplementedError

    def valid_logits(self) -> FloatArray:
        """Logits of the held-out rows, [units, outputs]."""
        raise NotImplementedError

    def shrink(self) -> str:
        """Compute less at once from now on, because the last pass did not fit into memory.

        Returns:
            What the user should know.

        Raises:
            MachineError: it cannot compute less at once.
        """
        raise MachineError("--batch", "the memory is too small for a step of the head", "", "Lower --batch.")

    def finish(self) -> None:
        """Undo changes made only for training."""


class FullModel(TrainingMode):
    """Encoder and head, computed in every step."""

    def __init__(
        self, model: Model, outputs: int, train: Fold, valid: Fold | None, settings: Settings, team: Team = ALONE
    ) -> None:
        self.team = team
        self.module = self.model = model
        self.outputs = outputs
        self.inputs, self.valid, self.sizes = train.inputs, valid, _sizes(train.inputs)
        self.examples, self.micro_tokens = train.examples, MICRO_TOKENS
        self.precision = settings.precision
        self.device = torch.device(settings.device)
        self.random = np.random.default_rng(settings.seed)
        # The rows of the pass that is being computed, and their tokens.
        self.computed, self.tokens = np.empty(0, dtype=np.int64), 0

    def train(self) -> None:
        """Prepare for training; frozen layers have no dropout."""
        self.model.train()
        for frozen in frozen_parts(self.model.encoder):
            frozen.eval()

    def training_logits(self, rows: np.ndarray) -> Iterator[tuple[Tensor, np.ndarray, list[int]]]:
        """Logits of rows, in passes of at most `micro_tokens` tokens."""
        chosen = [_bounded(self.inputs[row], self.random) for row in rows]
        lengths = np.array([sum(len(row.ids) for row in one.rows) for one in chosen], dtype=np.int64)
        if self.team.size > 1:
            ids = np.unique(np.concatenate([row.ids for one in chosen for row in one.rows]))
            self.read = torch.from_numpy(ids.astype(np.int64))
        mine = self.team.share(lengths)
        for some_of_mine in plan(lengths[mine], self.micro_tokens):
            places = mine[some_of_mine]
            self.computed, self.tokens = rows[places], int(lengths[places].sum())
            some = [chosen[place] for place in places]
            layout = Layout(some)
            # The rows of a text are computed together, longest first.
            order = np.argsort([-len(row.ids) for row in layout.rows], kind="stable")
            one = pack(layout.rows, order)
            check_pack(one, self.model.encoder.config)
            tensors = TensorPack.from_pack(one, self.device)
            # Targets and losses stay on the CPU: logits are few.
            logits = self.model.head(self._hidden(tensors), tensors).cpu()
            yield _unit_logits(self.model.head, logits, layout, one), places, self.sizes[rows[places]].tolist()

    def shrink(self) -> str:
        """Halve the tokens of a pass; a single row is never split."""
        if len(self.computed) <= 1 or self.tokens < 2:
            where = self.examples[self.computed[0]].where if len(self.computed) else "fit"
            saw = f"the memory is too small for a row of {counted(self.tokens, 'token')}"
            raise MachineError(where, saw, "", memory.WAYS_OUT)
        self.micro_tokens = min(self.micro_tokens, self.tokens) // 2
        what = f"the memory was too small for {counted(self.tokens, 'token')} at once"
        return f"{what}: from now on at most {self.micro_tokens:,} are computed at once; the steps stay the same"

    def _hidden(self, pack: TensorPack) -> Tensor:
        """The encoder's vectors, float32 [tokens, width]."""
        encoder = self.model.encoder
        if kernels.supports_training(encoder, self.precision, self.device):
            reads = getattr(self.model.head, "reads", None)
            return kernels.hidden(encoder, pack, self.precision, reads(pack) if reads else None)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            vectors: Tensor = encoder(pack)
        return vectors.float()

    def valid_logits(self) -> FloatArray:
        """Logits of the held-out rows by the inference engine, [units, outputs]."""
        assert self.valid is not None
        layout, engine = Layout(self.valid.inputs), engine_for(merged(self.model), self.device)
        compute = self.team.spread(engine.logits, packs(layout.rows, TOKEN_BUDGET))
        return unit_logits(layout, compute, over_arrays(self.model.head), self.outputs, TOKEN_BUDGET)[0]


class CachedFeatures(TrainingMode):
    """Only the head is trained: the frozen encoder's activations are computed once and cached."""

    def __init__(
        self, model: Model, train: Fold, valid: Fold | None, settings: Settings, quiet: bool,
        cache: Path | None = None, team: Team = ALONE,
    ) -> None:  # fmt: skip
        # A team computes the vectors together; a step of the head is too short to share.
        self.module = self.head = model.head
        engine = engine_for(model, torch.device(settings.device), settings.precision)
        self.layout, self.inputs, self.sizes = Layout(train.inputs), train.inputs, _sizes(train.inputs)
        self.random, self.micro_tokens = np.random.default_rng(settings.seed), MICRO_TOKENS
        self.valid_layout = Layout(valid.inputs) if valid else None
        layouts = [layout for layout in (self.layout, self.valid_layout) if layout]
        stored = _stored(model, engine.pooled, layouts, settings.precision, cache, quiet, team) if cache else None
        self.kept = stored.to_json() if stored else None
        with Progress("encode", sum(len(layout.rows) for layout in layouts), "rows", quiet) as progress:

            def vectors(layout: Layout) -> Tensor:
                spread = team.spread(engine.pooled, packs(layout.rows, TOKEN_BUDGET))
                compute = stored.compute(layout.rows) if stored else spread
                if layout.by_token:
                    return torch.from_numpy(by_unit(layout, compute, 1, TOKEN_BUDGET, progress.advance))
                return torch.from_numpy(by_row(layout.rows, compute, 1, TOKEN_BUDGET, progress.advance))

            self.train_vectors = vectors(self.layout)
            self.valid_vectors = vectors(self.valid_layout) if self.valid_layout else None
        # The rest is small: the head is fitted on the CPU.
        self.head.cpu()
        self.mean, self.deviation = torch.zeros(1), torch.ones(1)
        self.scales = bool(getattr(self.head, "is_linear", False)) and hasattr(self.head, "fold_input")
        if self.scales:
            # A linear head trains fastest on features of one scale; `finish` folds the scale into its weights.
            self.mean = self.train_vectors.mean(0)
            deviation = self.train_vectors.std(0, unbiased=False)
            # Features that vary only by rounding have no scale.
            varies = deviation > 1e-5 * self.mean.abs().clamp_min(1)
            self.deviation = torch.where(varies, deviation, 1.0)

    def _scaled(self, vectors: Tensor) -> Tensor:
        return (vectors - self.mean) / self.deviation

    def unit_vectors(self, normalised: bool) -> Tensor:
        """The training rows' vectors, divided by their lengths or not; of a text's windows their mean.

        Returns:
            float32 [units, width].
        """
        vectors = functional.normalize(self.train_vectors) if normalised else self.train_vectors
        if self.layout.by_token or self.layout.plain:
            return vectors
        place, weights = torch.from_numpy(self.layout.unit_of_row), vectors.new_empty(len(vectors), 0)
        return pool_windows(vectors, place, self.layout.n_units, "mean", weights)

    def training_logits(self, rows: np.ndarray) -> Iterator[tuple[Tensor, np.ndarray, list[int]]]:
        """Logits of all rows at once."""
        sizes = self.sizes[rows].tolist()
        wanted = self.layout.units_of(rows) if self.layout.by_token else self.layout.rows_of(rows)
        logits = self.head.classify(self._scaled(self.train_vectors[torch.from_numpy(wanted)]))
        if not self.layout.by_token:
            plain = self.layout.plain
            units = np.arange(len(rows)) if plain else Layout([self.inputs[row] for row in rows]).unit_of_row
            logits = combined(self.head, logits, torch.from_numpy(units), sum(sizes))
        yield logits, np.arange(len(rows)), sizes

    def valid_logits(self) -> FloatArray:
        """Logits of the held-out rows, [units, outputs]."""
        assert self.valid_layout is not None
        assert self.valid_vectors is not None
        with torch.no_grad():
            logits = self.head.classify(self._scaled(self.valid_vectors))
            if not self.valid_layout.by_token:
                units = torch.from_numpy(self.valid_layout.unit_of_row)
                logits = combined(self.head, logits, units, self.valid_layout.n_units)
        values: FloatArray = logits.numpy()
        return values

    def finish(self) -> None:
        """Fold the scale of the vectors into the head."""
        if self.scales:
            self.head.fold_input(self.mean, self.deviation)


def mode_of(
    model: Model, outputs: int, train: Fold, valid: Fold | None, settings: Settings, quiet: bool, cache: Path | None,
    team: Team = ALONE,
) -> TrainingMode:  # fmt: skip
    """The training mode of a model.

    Args:
        model: with the trained parameters marked, on the training device.
        outputs: logits a unit.
        train: training rows.
        valid: rows that are scored after each epoch.
        settings: the settings of the fit.
        quiet: show no progress.
        cache: the folder that keeps activations of the frozen layers for later fits, or None.
        team: the processes that fit together.

    Returns:
        CachedFeatures if only the head is trained and its input can be cached; else FullModel, with the activations of
        the frozen layers looked up if they can be cached.
    """
    frozen = not any(parameter.requires_grad for parameter in model.encoder.parameters())
    if frozen and _has_fixed_input(model.head) and fits_in_memory(model.encoder.config.width, (train, valid)):
        return CachedFeatures(model, train, valid, settings, quiet, cache, team)
    return _whole(model, outputs, train, valid, settings, quiet, cache, team)


def _has_fixed_input(head: Any) -> bool:
    """Whether what the head trains reads vectors that the encoder alone decides."""
    return hasattr(head, "pool") and hasattr(head, "classify")


def fits_in_memory(width: int, folds: Sequence[Fold | None]) -> bool:
    """Whether a head's input, vectors of this width, can be cached for all rows."""
    inputs = [one for fold in folds if fold for one in fold.inputs]
    vectors = sum(one.n_units if one.units is not None else len(one.rows) for one in inputs)
    return vectors * 2 * width * 4 <= MOST_CACHED_BYTES


def _whole(
    model: Model, outputs: int, train: Fold, valid: Fold | None, settings: Settings, quiet: bool, cache: Path | None,
    team: Team,
) -> FullModel:  # fmt: skip
    """FullModel, with the frozen layers computed or their cached activations looked up."""
    folds = [fold for fold in (train, valid) if fold]
    if frozen_layers(model) and (settings.epochs > 1 or cache):
        rows = [row for fold in folds for one in fold.inputs for row in one.rows]
        vectors = below(model, rows, torch.device(settings.device), settings.precision, cache, quiet, team)
        if vectors is not None:
            looked_up = [replace(fold, inputs=[vectors.numbered(one) for one in fold.inputs]) for fold in folds]
            mode = FullModel(
                above(model, vectors), outputs, looked_up[0], looked_up[1] if valid else None, settings, team
            )
            mode.kept = vectors.to_json() | {"layers": frozen_layers(model)}
            return mode
    return FullModel(model, outputs, train, valid, settings, team)


def _stored(
    model: Model, compute: Compute, layouts: Sequence[Layout], precision: str, cache: Path, quiet: bool, team: Team
) -> Vectors | None:
    """The cached input of one of our heads; for heads of other packages it is unknown what their input depends on."""
    head = model.head
    if not isinstance(head, RowHead | TokenHead | JointHead):
        return None
    row = row_part(head)
    pooling = f"{type(head).__name__} {row.pooling if row else ''} {precision}"
    rows = [row for layout in layouts for row in layout.rows]
    return keep(rows, compute, model, pooling, by_token=head.level == "token", folder=cache, quiet=quiet, team=team)


def _sizes(inputs: Sequence[EncodedExample]) -> IntArray:
    return np.array([one.n_units for one in inputs], dtype=np.int64)


def _bounded(one: EncodedExample, random: np.random.Generator) -> EncodedExample:
    """A text as a training step sees it: of very many windows a random subset, in order."""
    if len(one.rows) <= MOST_WINDOWS:
        return one
    groups = np.array(one.groups if one.groups is not None else (0,) * len(one.rows))
    most = max(1, MOST_WINDOWS // one.n_units)
    kept = [random.permutation(np.flatnonzero(groups == group))[:most] for group in range(one.n_units)]
    chosen = np.sort(np.concatenate(kept))
    rows = tuple(one.rows[row] for row in chosen)
    return replace(one, rows=rows, groups=None if one.groups is None else tuple(groups[chosen].tolist()))


def _unit_logits(head: Any, logits: Tensor, layout: Layout, one: Pack) -> Tensor:
    """Logits of the units of a pack, [units, outputs]."""
    if layout.by_token:
        units, tokens = layout.units_in(one)
        return logits[torch.from_numpy(tokens[np.argsort(units)])]
    in_order = logits[torch.from_numpy(np.argsort(one.row))]
    return combined(head, in_order, torch.from_numpy(layout.unit_of_row), layout.n_units)
