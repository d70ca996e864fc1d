"""The base of tasks: reading targets, loss, decoding, metrics, and everything about answers."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeVar

import numpy as np

from berthead.errors import UsageError, listed
from berthead.records import Example, FloatArray, IntArray, Label, Prediction, Span
from berthead.tasks.cells import answer_json, common_type, quoted, short
from berthead.text.tokenizer import Tokenizer
from berthead.text.windows import EncodedExample, LengthPolicy, read_texts

if TYPE_CHECKING:
    from torch import Tensor

Encode = TypeVar("Encode", bound=Callable[..., list[EncodedExample]])
LinearModel = Callable[[Any, np.ndarray, Any, int], FloatArray]
"""Features of fitted texts, their targets, features of other texts, outputs -> logits of the others: `linear.py`."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A decoded row of logits: the parts of a Prediction that the task decides."""

    answer: Any
    score: float | None = None
    probabilities: dict[Label, float] | None = None
    spans: list[Span] | None = None
    tags: list[str] | None = None

    @property
    def is_number(self) -> bool:
        """Whether it is a measured number, and not a label that happens to be a number."""
        return isinstance(self.answer, float) and self.probabilities is None

    @property
    def numbers(self) -> list[float]:
        """All measured numbers in it: of a dict one for each target."""
        if isinstance(self.answer, dict):
            return [one for one in self.answer.values() if isinstance(one, float)]
        return [self.answer] if self.is_number else []


@dataclass(frozen=True, slots=True)
class Batch:
    """The examples that logits belong to, for tasks whose examples have several units.

    Args:
        examples: the rows.
        inputs: the encoded examples.
    """

    examples: Sequence[Example]
    inputs: Sequence[EncodedExample]

    def split(self, values: np.ndarray) -> list[np.ndarray]:
        """Split values of all units by example."""
        edges = np.cumsum([one.n_units for one in self.inputs])
        return np.split(values, edges[:-1]) if len(edges) else []


def stateless(encode: Encode) -> Encode:
    """Mark a task's `encode` as independent of its state, so that joined functions encode a row only once."""
    encode.stateless = True  # type: ignore[attr-defined]
    return encode


class Task(Protocol):
    """The meaning of the logits. A task is a small immutable record; its state is what `to_json` writes.

    Unless `encode` says otherwise, the whole example gets one answer. Such a task may ignore `batch`:
    its logits have one row an example. Everything that is not abstract has a default that works for any task.
    """

    # The rows, and the target.

    name: ClassVar[str]
    form: ClassVar[str] = "text"
    """What a row of data holds: a key of `data.forms.FORMS`."""
    measures_targets: ClassVar[bool] = False
    """Whether `from_targets` measures the targets, as their mean: then held-out rows have no part in it."""

    several_numbers: ClassVar[bool] = False
    """Whether a target may be several numbers, with a column for each: then `read` gets them as `TargetCells`."""

    @classmethod
    @abstractmethod
    def read(cls, value: Any) -> Any:
        """A cell as a target.

        Raises:
            ValueError: not a target; the message says what was found and what is allowed.
        """

    @classmethod
    def settled(cls, example: Example) -> Example:
        """The example with its target checked against its text.

        Raises:
            ValueError: they do not match.
        """
        return example

    @classmethod
    @abstractmethod
    def from_targets(cls, targets: Sequence[Any], where: str) -> Self:
        """The task for these targets.

        Raises:
            DataError: they cannot be used for a fit.
        """

    @abstractmethod
    def check(self, target: Any) -> None:
        """Check that the function knows this target.

        Raises:
            ValueError: a label that the fit did not see.
        """

    def group(self, target: Any) -> Label | None:
        """The label of a target, for equal shares among held-out rows; None: it has none."""
        return target if self.answer_labels and isinstance(target, str | int | float | bool) else None

    @stateless
    def encode(self, tokenizer: Tokenizer, examples: Sequence[Example], policy: LengthPolicy) -> list[EncodedExample]:
        """Examples as the encoder reads them."""
        pairs = [example.pair or "" for example in examples] if any(x.pair is not None for x in examples) else None
        return read_texts(tokenizer, [example.text for example in examples], pairs, policy)

    @property
    def encode_key(self) -> Hashable:
        """Equal for tasks that encode every example in the same way."""
        read = type(self).encode
        return read if getattr(read, "stateless", False) else id(self)

    def with_unit(self, unit: str, tokenizer: Tokenizer, examples: Sequence[Example]) -> tuple[Self, list[str]]:
        """The task with what gets a tag in these texts, and notes about it.

        Args:
            unit: `auto`, `word` or `piece`.
            tokenizer: the encoder's.
            examples: the fitted rows.

        Raises:
            UsageError: the task has no such unit.
        """
        if unit != "auto":
            raise UsageError("--tag-unit", f"is {unit}, but --task {self.name} has no tags", "auto")
        return self, []

    @classmethod
    def target_notes(cls, targets: Sequence[Any]) -> list[str]:
        """What was probably not meant in the targets of a fit, as lines."""
        return []

    def misfits(self, examples: Sequence[Example], inputs: Sequence[EncodedExample]) -> list[str]:
        """Targets that do not match the encoded text, as lines with their rows."""
        return []

    # What is written down.

    @property
    def format_version(self) -> int:
        """The lowest `format_version` of a folder whose readers know all of the saved state."""
        return 1

    @classmethod
    @abstractmethod
    def from_json(cls, state: Mapping[str, Any]) -> Self:
        """The task from its saved state."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """The state that decoding needs, as JSON; `labels`: the possible answers, empty if not a fixed set."""

    decided: ClassVar[tuple[str, ...]] = ()
    """What of that state is decided after the weights: functions whose weights are averaged may differ in it."""

    @property
    def needs_held_out(self) -> bool:
        """Whether answers depend on a threshold tuned on held-out rows: then some are held out, however few."""
        return False

    def undecided(self) -> dict[str, Any]:
        """The saved state without what is tuned after training."""
        return {name: value for name, value in self.to_json().items() if name not in self.decided}

    def in_unit_of(self, other: Self) -> Self:
        """The task with its loss in another task's unit, so that their losses can be compared."""
        return self

    def merged(self, tasks: Sequence[Self]) -> Self:
        """The task of a mean of functions: this one, merged with the others."""
        return self

    can_be_described: ClassVar[bool] = False
    """Whether an answer is one of labels that texts about them describe: `fit --labels`."""

    # The head that it needs.

    level: ClassVar[str] = "row"
    """What gets an answer: `row` or `token`."""
    problem_type: ClassVar[str]
    """transformers' word for it, in config.json."""
    is_sequence: ClassVar[bool] = False
    """Whether the units make a sequence that a conditional random field can score: `--head crf`."""
    head_dropout: ClassVar[float] = 0.1
    """The share of a new head's input that it drops, where the encoder is fitted too."""

    @property
    @abstractmethod
    def outputs(self) -> int:
        """The number of logits."""

    @property
    @abstractmethod
    def label_texts(self) -> list[str]:
        """A text for each output that transformers reads."""

    @property
    def output_texts(self) -> list[str]:
        """A text for each output."""
        return self.label_texts

    def needed_head(self) -> dict[str, Any]:
        """berthead's head for it: `kind` (`row`, `token` or `joint`), `outputs`, and of `joint` how many are `tags`."""
        return {"kind": self.level, "outputs": self.outputs}

    def bound(self, head: Any) -> Self:
        """The task with what decoding needs from the head; most need nothing."""
        return self

    # Learning.

    @abstractmethod
    def targets(self, values: Sequence[Any], inputs: Sequence[EncodedExample] = ()) -> np.ndarray:
        """Targets as the loss reads them: int64 [rows], float32 [rows, outputs], or an array [units, ...] for each."""

    def support(self, targets: np.ndarray) -> IntArray | None:
        """Rows of each label, [outputs], so that rare ones are reported; None: rows have no labels."""
        return None

    def weights(self, targets: np.ndarray) -> FloatArray | None:
        """Weights for `class_weight=balanced`, float32 [outputs]; None: there are no classes."""
        return None

    def prior(self, targets: np.ndarray) -> FloatArray:
        """The best logits without reading the text, from the targets' shares, float32 [outputs]."""
        return np.full(self.outputs, self.affine()[1], dtype=np.float32)

    def over(self, targets: Tensor, examples: int) -> Self:
        """The task for the parts of one batch, if its loss is not a mean over examples."""
        return self

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None, sizes: Sequence[int] = ()) -> Tensor:
        """The loss of each example, [examples]; `sizes`: the units of each."""

    def affine(self) -> tuple[Any, Any]:
        """The scale and shift that turn a head's raw outputs into the user's unit: numbers, or arrays [outputs]."""
        return 1.0, 0.0

    def tuned(self, logits: FloatArray, targets: np.ndarray, batch: Batch | None = None) -> Self:
        """The task with temperature and thresholds tuned on held-out rows."""
        return self

    # Answers.

    several_labels: ClassVar[bool] = False
    """Whether an answer is a list of labels."""

    @property
    def answer_labels(self) -> list[Label]:
        """The labels that an answer is chosen from, in the order of the probabilities; empty: none."""
        return list(self.to_json()["labels"])

    @property
    def all_labels(self) -> list[Label]:
        """`answer_labels`, and all others that occur in an answer."""
        return self.answer_labels

    @property
    def has_probabilities(self) -> bool:
        """Whether an answer holds a probability of each of `answer_labels`."""
        return bool(self.answer_labels)

    @abstractmethod
    def decode(self, logits: FloatArray, batch: Batch | None = None) -> list[Answer]:
        """Logits [units, outputs] as one answer an example."""

    def window_scores(self, unit: FloatArray, windows: FloatArray) -> FloatArray:
        """The score that each window of a long text gives the answer, [windows].

        Args:
            unit: the logits that were answered, [outputs].
            windows: the logits of each window, [windows, outputs].
        """
        return windows[:, int(unit.argmax())] if len(unit) > 1 else -np.abs(windows[:, 0] - unit[0])

    def columns(self, probabilities: bool = False) -> dict[str, type]:
        """What answers add to a table: column to type, which is str, float, int, bool or list (of str).

        Args:
            probabilities: whether they are asked for; those of `answer_labels` get their columns elsewhere.
        """
        return {"prediction": common_type(self.answer_labels), "score": float}

    def cells(self, prediction: Prediction) -> dict[str, Any]:
        """An answer's values under the names of `columns`; computed numbers are float32."""
        return {"prediction": prediction.answer, "score": short(prediction.score)}

    # Scores and comparisons.

    metrics: ClassVar[Mapping[str, int]]
    """The metrics that can choose the best epoch; 1: higher is better, -1: lower. The first is the default."""
    linear: ClassVar[LinearModel | None] = None
    """The linear model on TF-IDF that a fit has to beat; None: no baselines."""

    @abstractmethod
    def evaluate(self, logits: FloatArray, targets: np.ndarray, batch: Batch | None = None) -> dict[str, Any]:
        """The metrics of held-out rows; numbers under the names in `metrics`, and tables."""

    def identity(self, answer: Answer) -> Hashable:
        """A key that is equal for equal answers; numbers are compared in six digits, as printed."""
        if answer.is_number:
            return f"{answer.answer:.6g}"
        return json.dumps(self.written(answer), default=str, sort_keys=True)

    @property
    def number_unit(self) -> float:
        """The size of a difference of two numbers that matters, in the unit of `distance`."""
        unit: float = self.affine()[0]
        return unit

    def distance(self, one: Answer, other: Answer) -> float | None:
        """The distance of two numbers in the user's unit; None: answers are only equal or not."""
        return abs(one.answer - other.answer) if one.is_number and other.is_number else None

    def shares(self, answer: Answer) -> dict[Hashable, float]:
        """The parts of an answer with their probabilities; a part that is missing in the other counts in full."""
        shares: dict[Hashable, float] = {label: share for label, share in (answer.probabilities or {}).items()}
        for one in answer.spans or ():
            shares[one.start, one.end, one.label] = 1.0 if one.score is None else one.score
        return shares or {self.identity(answer): 1.0 if answer.score is None else answer.score}

    def is_right(self, answer: Answer, example: Example, read: EncodedExample) -> bool | None:
        """Whether an answer is entirely right; None: undefined, as for numbers.

        Args:
            answer: the example's.
            example: with a target.
            read: the encoded example.
        """
        is_label = self.answer_labels and isinstance(example.target, str | int | float | bool)
        return bool(answer.answer == example.target) if is_label else None

    # Words.

    @property
    def logits_in_words(self) -> str:
        """How logits become answers, if a reader of the logits has to know it."""
        return ""

    def written(self, answer: Answer) -> Any:
        """An answer as JSON: spans as lists of start, end, label and text; beside a label as `label` and `spans`."""
        return answer_json(answer.answer, answer.spans, answer.probabilities is not None)

    def written_target(self, example: Example) -> Any:
        """An example's target as JSON, in the user's own terms."""
        return list(example.target) if isinstance(example.target, tuple | list) else example.target

    def facts(self) -> list[tuple[str, str]]:
        """Facts for `info`: names to texts."""
        labels = self.answer_labels
        return [(f"{len(labels)} labels", listed(map(quoted, labels), 20))] if labels else []

    def answers_in_words(self) -> str:
        """The possible answers, in a few words."""
        return listed(map(quoted, self.answer_labels), 8) if self.answer_labels else "numbers or places"
