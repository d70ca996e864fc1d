"""Examples to predictions in input order; eval, files and Python all use it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from berthead.errors import DataError, counted
from berthead.function.golden import replay, replay_answers
from berthead.function.protocol import Function
from berthead.model.units import Combine, unit_logits
from berthead.predict.answers import NOT_FINITE, Computed, answered
from berthead.predict.reading import ReadChunk, chunks, length_notes, prefetched, readable
from berthead.records import Example, FloatArray, Pack, Prediction
from berthead.tasks import Batch
from berthead.text.layout import Layout
from berthead.text.windows import EncodedExample

if TYPE_CHECKING:
    import torch

    from berthead.engine.cpu import CpuEngine
    from berthead.engine.cuda import Engines
    from berthead.function.artifact import Artifact

TOKEN_BUDGET = 2048
GPU_TOKEN_BUDGET = 16_384  # a GPU has many more processors to keep busy


class Computes(Protocol):
    """The interface of an engine.

    Attributes:
        precision: `fp32`, `bf16` or `int8`.
        workers: the number of packs computed at once.
    """

    precision: str
    workers: int

    def logits(self, pack: Pack) -> FloatArray:
        """Logits of the pack's rows or tokens, float32 [rows or tokens, ...]."""
        ...

    def computed_by(self) -> dict[str, Any]:
        """Everything that decides the last bits of numbers, as JSON: versions, kernels and threads."""
        ...


class Applier:
    """A fitted function and its engine; safe to call from many threads.

    Args:
        function: how inputs are read, and what logits mean.
        engine: the engine.
        combine: combines the windows of a long text into one answer; None: the mean of their logits.
        token_budget: tokens computed at once.
    """

    def __init__(
        self, function: Function, engine: Computes, combine: Combine | None, token_budget: int = TOKEN_BUDGET
    ) -> None:
        self.function, self.engine, self.combine, self.token_budget = function, engine, combine, token_budget

    def computed_by(self) -> dict[str, Any]:
        """Everything that decides the last bits of answers, as JSON: versions, kernels and threads."""
        return self.engine.computed_by()

    def predict(self, examples: Iterable[Example]) -> Iterator[Prediction]:
        """Answers in input order, streaming: memory does not grow with the rows.

        Args:
            examples: the examples; one with an error gets a prediction with that error.

        Yields:
            One prediction an example.
        """
        read = self.read(examples)
        # One text is answered before another thread would start reading it.
        alone = isinstance(examples, Sequence) and len(examples) == 1
        for chunk in read if alone else prefetched(read):
            yield from self._answered(chunk)

    @property
    def functions(self) -> dict[str, Function]:
        """The functions by name; a single function has no name."""
        return {"": self.function}

    def answers(self, examples: Iterable[Example]) -> Iterator[dict[str, Prediction]]:
        """Like `predict`, by the names of `functions`."""
        return ({"": prediction} for prediction in self.predict(examples))

    def read(self, examples: Iterable[Example]) -> Iterator[ReadChunk]:
        """Chunks of examples that are computed together, encoded; other threads may read ahead."""
        function = self.function
        for chunk in chunks(examples):
            sound = [example for example in chunk if not example.error]
            inputs = iter(function.task.encode(function.tokenizer, sound, function.policy))
            yield chunk, [[None if example.error else next(inputs) for example in chunk]]

    def answer(self, chunk: ReadChunk) -> Iterator[dict[str, Prediction]]:
        """The answers to an encoded chunk, by the names of `functions`."""
        return ({"": prediction} for prediction in self._answered(chunk))

    def _answered(self, chunk: ReadChunk) -> Iterator[Prediction]:
        examples, (inputs,) = chunk
        computed = self.compute([one for one in inputs if one and not one.error])
        return answered(self.function, examples, inputs, computed)

    def logits(self, examples: Sequence[Example]) -> FloatArray:
        """Logits of examples without errors, float32 [units, outputs]: a unit is a row, a choice, a word or a token."""
        parts = [self.compute(readable(chunk, inputs)).values for chunk, (inputs,) in prefetched(self.read(examples))]
        return np.concatenate(parts) if parts else np.empty((0, self.function.task.outputs), dtype=np.float32)

    def verify(self) -> float:
        """Replay the golden examples: their logits, and their answers if the folder holds them.

        Returns:
            The largest relative difference of a logit.

        Raises:
            GateError: a difference is above the tolerance.
        """
        largest = replay(self.function, self.logits)
        replay_answers(self.function, self.predict)
        return largest

    def evaluate(self, examples: Sequence[Example], left_out: list[str] | None = None) -> dict[str, Any]:
        """Metrics over examples with targets.

        Args:
            examples: without errors, with known targets.
            left_out: where examples whose logits are not finite are added, as `file:line: what is wrong`; None: one
                is an error.

        Returns:
            The task's metrics, `rows`, and `warnings`.

        Raises:
            DataError: an example without finite logits, or one too long for a function fitted with `on_long="error"`.
        """
        task = self.function.task
        values, inputs, faulty = self.scored(examples)
        if left_out is not None and faulty.any():
            left_out += [f"{examples[number].where}: {NOT_FINITE}" for number in np.flatnonzero(faulty).tolist()]
            values = values[np.repeat(~faulty, [one.n_units for one in inputs])]
            sound = np.flatnonzero(~faulty).tolist()
            examples, inputs = [examples[number] for number in sound], [inputs[number] for number in sound]
        else:
            refuse_faulty(examples, faulty)
        if not examples:
            raise DataError("data", "holds no rows that can be scored", "rows with finite logits", NOT_FINITE)
        targets = task.targets([example.target for example in examples], inputs)
        scores = task.evaluate(values, targets, Batch(examples, inputs))
        scores["warnings"] += task.misfits(examples, inputs) + length_notes(inputs, self.function.policy)
        return {"rows": len(examples)} | scores

    def computed(self, examples: Sequence[Example]) -> tuple[FloatArray, list[EncodedExample]]:
        """Logits of examples, and the encoded examples, for scoring.

        Args:
            examples: without errors.

        Returns:
            float32 [units, outputs], and the encoded examples without their tokens.

        Raises:
            DataError: an example without finite logits, or one too long for a function fitted with `on_long="error"`.
        """
        values, inputs, faulty = self.scored(examples)
        refuse_faulty(examples, faulty)
        return values, inputs

    def scored(self, examples: Sequence[Example]) -> tuple[FloatArray, list[EncodedExample], NDArray[np.bool_]]:
        """Like `computed`, and which examples have logits that are not finite, [examples]: they are no error."""
        values, inputs = [np.empty((0, self.function.task.outputs), dtype=np.float32)], list[EncodedExample]()
        faulty = [np.empty(0, dtype=np.bool_)]
        for chunk, (read,) in prefetched(self.read(examples)):
            sound = readable(chunk, read)
            computed = self.compute(sound)
            values.append(computed.values)
            faulty.append(computed.faulty)
            inputs += [one.without_rows() for one in sound]
        return np.concatenate(values), inputs, np.concatenate(faulty)

    def compute(self, inputs: Sequence[EncodedExample]) -> Computed:
        """Logits of encoded examples, in order."""
        layout, engine, outputs = Layout(inputs), self.engine, self.function.task.outputs
        found = unit_logits(layout, engine.logits, self.combine, outputs, self.token_budget, engine.workers)
        return Computed(*found, layout)


class Predictor(Applier):
    """A fitted function prepared for torch or our kernels; safe to call from many threads.

    Args:
        artifact: the fitted function.
        precision: `fp32` (exact), `bf16` or `int8`.
        token_budget: tokens computed at once; None: the device's default.
        device: `cpu`, or `cuda` for all GPUs; None: `cpu`.
    """

    engine: CpuEngine | Engines  # type: ignore[assignment]

    def __init__(
        self, artifact: Artifact, precision: str = "fp32", token_budget: int | None = None,
        device: torch.device | None = None,
    ) -> None:  # fmt: skip
        from berthead.engine import cpu as engine
        from berthead.model.heads import over_arrays

        self.device = device or engine.CPU
        made: Any = engine.applied(artifact.model, precision, self.device)
        super().__init__(artifact, made, over_arrays(artifact.model.head), token_budget or budget_of(self.device))

    def computed_by(self) -> dict[str, Any]:
        """Everything that decides the last bits of answers: versions, kernels and threads."""
        from berthead.engine.cpu import computed_by

        return computed_by(self.engine.kernels, self.device)

    def __reduce__(self) -> tuple[Any, ...]:
        # The prepared weights are packed for this processor: they are made again after unpickling.
        return type(self), (self.function, self.engine.precision, self.token_budget, self.device)


def refuse_faulty(examples: Sequence[Example], faulty: NDArray[np.bool_]) -> None:
    """Raise DataError at the first example whose logits are not finite."""
    if faulty.any():
        rows = f" ({int(faulty.sum()):,} of {counted(len(faulty), 'row')})" if len(faulty) > 1 else ""
        raise DataError(examples[int(faulty.argmax())].where, f"{NOT_FINITE}{rows}")


def budget_of(device: torch.device) -> int:
    """The default number of tokens that a device computes at once."""
    return TOKEN_BUDGET if device.type == "cpu" else GPU_TOKEN_BUDGET
