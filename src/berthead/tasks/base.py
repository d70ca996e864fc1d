"""What a task is: how its target is read, the loss, the decoding, the metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np

from berthead.errors import UsageError, did_you_mean, listed
from berthead.records import Example, FloatArray, Label, Span
from berthead.text.tokenizer import Tokenizer
from berthead.text.windows import Input, Reading, read_texts

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Answer:
    """A decoded row of logits: the parts of a Prediction that the task decides."""

    answer: Any
    score: float | None = None
    probabilities: dict[Label, float] | None = None
    spans: list[Span] | None = None
    tags: list[str] | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """The examples that logits belong to, for tasks whose examples have several units.

    Args:
        examples: the rows.
        inputs: what was read of each.
    """

    examples: Sequence[Example]
    inputs: Sequence[Input]

    def split(self, values: np.ndarray) -> list[np.ndarray]:
        """Values of all units as those of each example."""
        edges = np.cumsum([one.n_units for one in self.inputs])
        return np.split(values, edges[:-1]) if len(edges) else []


class Task(Protocol):
    """The meaning of the logits. A task is a small immutable record; its state is what `to_json` writes.

    What is read and answered is the example as a whole unless `inputs` says otherwise. Such a task may leave `batch`
    out of account: its logits have one row an example.
    """

    name: ClassVar[str]
    form: ClassVar[str] = "text"
    """What a row of data holds: a key of `data.examples.FORMS`."""
    level: ClassVar[str] = "row"
    """The head it needs: `row` or `token`."""
    problem_type: ClassVar[str]
    """transformers' word for it, in config.json."""
    metrics: ClassVar[Mapping[str, int]]
    """The metrics that can choose the best epoch; 1: higher is better, -1: lower. The first is the default."""

    @classmethod
    def read(cls, value: Any) -> Any:
        """A cell as a target.

        Raises:
            ValueError: it is none; the message says what was seen and what is allowed.
        """
        ...

    @classmethod
    def settled(cls, example: Example) -> Example:
        """The example with its target compared with its text.

        Raises:
            ValueError: they do not go together.
        """
        return example

    @classmethod
    def from_targets(cls, targets: Sequence[Any], where: str) -> Self:
        """The task that these targets call for.

        Raises:
            DataError: nothing can be learnt from them.
        """
        ...

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Self:
        """The task from its written state."""
        ...

    def to_json(self) -> dict[str, Any]:
        """The state that decoding needs, as JSON."""
        ...

    @property
    def outputs(self) -> int:
        """Numbers wanted a row."""
        ...

    @property
    def label_texts(self) -> list[str]:
        """A text for each output."""
        ...

    def check(self, target: Any) -> None:
        """Whether the function can know this target.

        Raises:
            ValueError: a label that was not there at fit.
        """
        ...

    def bound(self, head: Any) -> Self:
        """The task with what it reads of the head when it decodes; most read nothing."""
        return self

    def inputs(self, tokenizer: Tokenizer, examples: Sequence[Example], reading: Reading) -> list[Input]:
        """Examples as the encoder reads them."""
        pairs = [example.pair or "" for example in examples] if any(x.pair is not None for x in examples) else None
        return read_texts(tokenizer, [example.text for example in examples], pairs, reading)

    def misfits(self, examples: Sequence[Example], inputs: Sequence[Input]) -> list[str]:
        """Targets that do not fit what was read, as lines with their rows."""
        return []

    def targets(self, values: Sequence[Any], inputs: Sequence[Input] = ()) -> np.ndarray:
        """Targets as the loss reads them: int64 [rows], float32 [rows, outputs], or an array [units, ...] for each."""
        ...

    def weights(self, targets: np.ndarray) -> FloatArray | None:
        """Weights for `class_weight=balanced`, float32 [outputs]."""
        ...

    def prior(self, targets: np.ndarray) -> FloatArray:
        """The logits of who knows the targets' shares and reads no text, float32 [outputs]."""
        ...

    def over(self, targets: Tensor, examples: int) -> Self:
        """The task for the parts of one batch, where its loss is a mean over something else than the examples."""
        return self

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None, sizes: Sequence[int] = ()) -> Tensor:
        """The loss of each example, [examples]; `sizes`: the units of each."""
        ...

    def affine(self) -> tuple[float, float]:
        """The scale and shift that turn a head's raw outputs into the user's unit."""
        ...

    def tuned(self, logits: FloatArray, targets: np.ndarray, batch: Batch | None = None) -> Self:
        """The task with its decision fitted on held-out rows: temperature, thresholds."""
        ...

    def decode(self, logits: FloatArray, batch: Batch | None = None) -> list[Answer]:
        """Logits [units, outputs] as one answer an example."""
        ...

    def evaluate(self, logits: FloatArray, targets: np.ndarray, batch: Batch | None = None) -> dict[str, Any]:
        """The metrics of held-out rows; numbers under the names in `metrics`, and tables."""
        ...


def number(state: Mapping[Any, Any], key: Any, above: float = -math.inf) -> float:
    """A finite number of a written state.

    Args:
        state: what `from_json` reads.
        key: the number's name.
        above: it has to be above this.

    Returns:
        The number.

    Raises:
        ValueError: it is something else.
        KeyError: it is not there.
    """
    value = state[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < float(value) < math.inf:
        raise ValueError(f"{key} is {value!r}")
    return float(value)


def ragged(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays of several lengths as one array of them, [rows]."""
    one = np.empty(len(arrays), dtype=object)
    for place, array in enumerate(arrays):
        one[place] = array
    return one


def choose_metric(task: type[Task], wanted: str | None) -> str:
    """The metric that chooses the best epoch.

    Args:
        task: the task.
        wanted: its name; None: the task's own.

    Returns:
        The name.

    Raises:
        UsageError: the task has no such metric.
    """
    if wanted is None:
        return next(iter(task.metrics))
    if wanted not in task.metrics:
        known = f"metrics of {task.name}: {listed(task.metrics)}"
        raise UsageError("--metric", f'is "{wanted}"', known, did_you_mean(wanted, task.metrics))
    return wanted


def per_label(labels: Sequence[Label], gold: np.ndarray, predicted: np.ndarray) -> list[dict[str, Any]]:
    """Precision, recall, F1 and support of each label.

    Args:
        labels: the labels, in output order.
        gold: label numbers [rows], or 0/1 [rows, labels].
        predicted: the same shape.

    Returns:
        One dict a label.
    """
    from sklearn.metrics import precision_recall_fscore_support

    numbers = list(range(len(labels)))
    parts = precision_recall_fscore_support(gold, predicted, labels=numbers, zero_division=0)
    return [
        {"label": label, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
        for label, p, r, f, n in zip(labels, *parts, strict=True)
    ]
