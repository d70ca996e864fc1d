"""Several functions on one theta: shared layers are computed once a text, and each function answers.

Functions fitted with `frozen`, `top:K` or LoRA share their lower layers. Layers with the same
parameters are one layer here, so the functions make a tree that branches where their parameters differ.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from berthead.engine.cpu import CPU, computed_by, kernels_of, prepared
from berthead.engine.cuda import NO_GPU, memory_explained
from berthead.engine.forks import fork_lock, refuse_child
from berthead.function.artifact import Artifact
from berthead.model.heads import over_arrays
from berthead.model.model import Model
from berthead.model.sharing import shared
from berthead.model.tensors import TensorPack
from berthead.model.units import of_units, packs
from berthead.predict.answers import Computed, answered
from berthead.predict.predictor import Predictor, budget_of
from berthead.predict.reading import ReadChunk, chunks, prefetched
from berthead.records import Example, FloatArray, Pack, Prediction
from berthead.text.bounds import check_pack
from berthead.text.layout import Layout, ranges
from berthead.text.tokenizer import Encoded
from berthead.text.windows import EncodedExample


class JoinedEngine:
    """Models of one architecture, prepared once for a precision; safe to call from many threads.

    Args:
        models: the fitted models; they are not changed.
        precision: `fp32`, `bf16` or `int8`.
        device: `cpu`, or `cuda` for the first GPU.
    """

    def __init__(self, models: Sequence[Model], precision: str = "fp32", device: torch.device = CPU) -> None:
        self.precision, self.device = precision, device
        memo: dict[int, Any] = {}
        self.models = [prepared(model, precision, memo, device) for model in shared(models)]
        self._lock, self._process = fork_lock(), os.getpid()

    def logits(self, pack: Pack, members: Sequence[int]) -> list[FloatArray]:
        """Logits of a pack by some of the models.

        Args:
            pack: rows laid end to end.
            members: numbers of the models.

        Returns:
            float32 [rows or tokens, ...] of each, in their order.
        """
        found: dict[int, FloatArray] = {}
        if self.device.type == "cuda":
            refuse_child(self._process, *NO_GPU)
        check_pack(pack, self.models[0].encoder.config)
        with memory_explained(pack), self._lock, torch.inference_mode():
            tensors = TensorPack.from_pack(pack, self.device)
            for group in _grouped(members, lambda member: self.models[member].encoder.positions):
                hidden, places = self.models[group[0]].encoder.begin(tensors)
                self._descend(tensors, hidden, places, group, 0, found)
        return [found[member] for member in members]

    def _descend(
        self, pack: TensorPack, hidden: Tensor, places: Any, members: Sequence[int], depth: int,
        found: dict[int, FloatArray],
    ) -> None:  # fmt: skip
        """The layers from `depth` on, each computed once for all models that have it."""
        encoder = self.models[members[0]].encoder
        if depth == len(encoder.order):
            for member in members:
                model = self.models[member]
                found[member] = model.head(model.encoder.final_norm(hidden), pack).float().cpu().numpy()
            return
        for group in self._parted(members, depth):
            last = depth + 1
            while last < len(encoder.order) and len(self._parted(group, last)) == 1:
                last += 1
            after = self.models[group[0]].encoder.through(hidden, pack, places, depth, last)
            self._descend(pack, after, places, group, last, found)

    def _parted(self, members: Sequence[int], depth: int) -> list[list[int]]:
        """The models grouped by the block that computes this layer."""
        encoders = [model.encoder for model in self.models]
        return _grouped(members, lambda member: encoders[member].blocks[encoders[member].order[depth]])


def _grouped(members: Sequence[int], part: Any) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for member in members:
        groups.setdefault(id(part(member)), []).append(member)
    return list(groups.values())


@dataclass(frozen=True, slots=True)
class _Read:
    """A chunk encoded once: the inputs, and the distinct row of each of their rows."""

    layout: Layout
    distinct: np.ndarray


class JoinedPredictor:
    """Several fitted functions applied to the same input; safe to call from many threads.

    Args:
        artifacts: the functions by name, of one encoder.
        precision: `fp32` (exact), `bf16` or `int8`.
        token_budget: tokens computed at once; None: the device's default.
        device: `cpu`, or `cuda` for the first GPU.
    """

    def __init__(
        self, artifacts: Mapping[str, Artifact], precision: str = "fp32", token_budget: int | None = None,
        device: torch.device = CPU,
    ) -> None:  # fmt: skip
        self.functions, self.device = dict(artifacts), device
        self.engine = JoinedEngine([one.model for one in self.functions.values()], precision, device)
        self.token_budget = token_budget or budget_of(device)

    def __reduce__(self) -> tuple[Any, ...]:
        # The prepared weights are packed for this processor: they are made again after unpickling.
        return type(self), (self.functions, self.engine.precision, self.token_budget, self.device)

    def computed_by(self) -> dict[str, Any]:
        """Everything that decides the last bits of answers: versions, kernels and threads."""
        kernels = sorted({kernels_of(one.model, self.engine.precision) for one in self.functions.values()})
        return computed_by(", ".join(kernels) if self.device.type == "cpu" else self.device.type, self.device)

    def verify(self) -> dict[str, float]:
        """Replay each function's golden examples in float32: the largest relative difference of a logit by name.

        Raises:
            GateError: a difference is above the tolerance.
        """
        return {name: Predictor(one).verify() for name, one in self.functions.items()}

    def answers(self, examples: Iterable[Example]) -> Iterator[dict[str, Prediction]]:
        """Answers of all functions in input order, streaming.

        Args:
            examples: the examples; one with an error gets predictions with that error.

        Yields:
            For each example a prediction by each function's name.
        """
        for chunk in prefetched(self.read(examples)):
            yield from self.answer(chunk)

    def read(self, examples: Iterable[Example]) -> Iterator[ReadChunk]:
        """Chunks of examples that are computed together, encoded for each function."""
        for chunk in chunks(examples):
            sound = [example for example in chunk if not example.error]
            known: dict[Any, list[EncodedExample | None]] = {}
            read = []
            for artifact in self.functions.values():
                task = artifact.task
                key = (task.encode_key, artifact.policy)
                if key not in known:
                    inputs = iter(task.encode(artifact.tokenizer, sound, artifact.policy))
                    known[key] = [None if example.error else next(inputs) for example in chunk]
                read.append(known[key])
            yield chunk, read

    def answer(self, chunk: ReadChunk) -> Iterator[dict[str, Prediction]]:
        """The answers to an encoded chunk, by the names of `functions`."""
        examples, read = chunk
        alike = {id(inputs): [one for one in inputs if one and not one.error] for inputs in read}
        sound = [alike[id(inputs)] for inputs in read]
        answers = [
            answered(artifact, examples, inputs, computed)
            for artifact, inputs, computed in zip(self.functions.values(), read, self.compute(sound), strict=True)
        ]
        for predictions in zip(*answers, strict=True):
            yield dict(zip(self.functions, predictions, strict=True))

    def compute(self, read: Sequence[Sequence[EncodedExample]]) -> list[Computed]:
        """Logits for each function, with each distinct row computed once.

        Args:
            read: the inputs of each function; functions that encode in the same way share one list.

        Returns:
            The logits of each function, in order.
        """
        rows: list[Encoded] = []
        numbers: dict[tuple[bytes, bytes], int] = {}
        readings: dict[int, _Read] = {}
        for inputs in read:
            if id(inputs) not in readings:
                layout = Layout(inputs)
                readings[id(inputs)] = _Read(
                    layout, np.array([_number(row, numbers, rows) for row in layout.rows], int)
                )
        own = [readings[id(inputs)] for inputs in read]
        edges = np.cumsum([0, *(len(row.ids) for row in rows)])
        values = self._values(rows, edges, [one.distinct for one in own])
        sides = zip(self.functions.values(), own, values, strict=True)
        return [_computed(artifact, one, value, edges) for artifact, one, value in sides]

    def _values(self, rows: Sequence[Encoded], edges: np.ndarray, readers: Sequence[np.ndarray]) -> list[FloatArray]:
        """Logits of each function for the distinct rows that it reads, [rows, ...] or [tokens, ...]."""
        reads = np.zeros((len(readers), len(rows)), dtype=bool)
        for member, distinct in enumerate(readers):
            reads[member, distinct] = True
        levels = [artifact.model.head.level for artifact in self.functions.values()]
        found = [np.empty((0, artifact.task.outputs), dtype=np.float32) for artifact in self.functions.values()]
        for who in np.unique(reads, axis=1).T:
            chosen = np.flatnonzero((reads == who[:, None]).all(0))
            members = np.flatnonzero(who).tolist()
            for pack in packs([rows[number] for number in chosen.tolist()], self.token_budget):
                numbers = chosen[pack.row]
                places = {"row": numbers, "token": ranges(edges[numbers], edges[numbers + 1])}
                sizes = {"row": len(rows), "token": edges[-1]}
                for member, values in zip(members, self.engine.logits(pack, members), strict=True):
                    level = levels[member]
                    if not len(found[member]):
                        found[member] = np.zeros((sizes[level], values.shape[1]), dtype=np.float32)
                    found[member][places[level]] = values
        return found


def _number(row: Encoded, numbers: dict[tuple[bytes, bytes], int], rows: list[Encoded]) -> int:
    """The number of a row among the distinct ones; a new row is added."""
    key = row.ids.tobytes(), row.segments.tobytes()
    if key not in numbers:
        numbers[key] = len(rows)
        rows.append(row)
    return numbers[key]


def _computed(artifact: Artifact, read: _Read, values: FloatArray, edges: np.ndarray) -> Computed:
    layout = read.layout
    if layout.by_token:
        rows, tokens = layout.token_units
        return Computed(values[edges[read.distinct[rows]] + tokens], None, layout)
    head, outputs = artifact.model.head, artifact.task.outputs
    return Computed(*of_units(layout, values[read.distinct], over_arrays(head), outputs), layout)
