"""Tags of words and a label of the whole text from one encoder pass: slots and intent."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np

from berthead.data.examples import CellError
from berthead.records import Example, FloatArray, IntArray, Label, Prediction
from berthead.tasks.arrays import ragged
from berthead.tasks.base import Answer, Batch, Task
from berthead.tasks.cells import common_type, short, spans_json, typed
from berthead.tasks.classify import Classify
from berthead.tasks.tag import Tag
from berthead.text.tokenizer import Tokenizer
from berthead.text.windows import EncodedExample, LengthPolicy, read_words

if TYPE_CHECKING:
    from torch import Tensor


class TagsAndLabel(NamedTuple):
    """The target of a joint row."""

    tags: Any
    label: Label


@dataclass(frozen=True, slots=True)
class Joint(Task):
    """`Tag` and `Classify` on the same text.

    Args:
        tag: the words' task.
        classify: the whole text's task.

    Example:
        >>> task = Joint.from_targets([TagsAndLabel(("B-X", "O"), "a"), TagsAndLabel(("O", "O"), "b")], "data")
        >>> task.outputs
        5

    Source: Chen et al. 2019, "BERT for Joint Intent Classification and Slot Filling".
    """

    name: ClassVar[str] = "joint"
    problem_type: ClassVar[str] = "token_classification"
    form: ClassVar[str] = "words and label"
    level: ClassVar[str] = "token"
    is_sequence: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, int]] = {
        "exact_match": 1, "f1": 1, "intent_accuracy": 1, "intent_macro_f1": 1, "loss": -1,
    }  # fmt: skip

    tag: Tag
    classify: Classify

    @classmethod
    def read(cls, value: Any) -> Any:
        """The cell of the tags, or that of the label."""
        tags, label = value
        try:
            read = Classify.read(label)
        except ValueError as error:
            raise CellError("intent", str(error)) from None
        return TagsAndLabel(Tag.read(tags), read)

    @classmethod
    def settled(cls, example: Example) -> Example:
        """As many tags as words."""
        settled = Tag.settled(_tagged(example))
        return replace(settled, target=example.target)

    @classmethod
    def from_targets(cls, targets: Sequence[TagsAndLabel], where: str) -> Self:
        """The task with the tags and labels of the targets."""
        tag = Tag.from_targets([target.tags for target in targets], where)
        return cls(tag, Classify.from_targets([target.label for target in targets], where))

    @classmethod
    def target_notes(cls, targets: Sequence[TagsAndLabel]) -> list[str]:
        """Notes on the labels of the texts."""
        return Classify.target_notes([target.label for target in targets])

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Self:
        """The task from its saved state."""
        return cls(Tag.from_json(state["tag"]), Classify.from_json(state["classify"]))

    def to_json(self) -> dict[str, Any]:
        """The states of both tasks; `labels` are those of the whole text."""
        classify = self.classify.to_json()
        return {"labels": classify["labels"], "tag": self.tag.to_json(), "classify": classify}

    def undecided(self) -> dict[str, Any]:
        """The states of both tasks without what is tuned after training."""
        return self.to_json() | {"tag": self.tag.undecided(), "classify": self.classify.undecided()}

    def group(self, target: TagsAndLabel) -> Label | None:
        """The label of the whole text."""
        return self.classify.group(target.label)

    @property
    def outputs(self) -> int:
        """Tags and labels."""
        return self.tag.outputs + self.classify.outputs

    @property
    def label_texts(self) -> list[str]:
        """The tags; transformers reads those alone."""
        return self.tag.label_texts

    @property
    def output_texts(self) -> list[str]:
        """The tags and the labels."""
        return self.tag.label_texts + self.classify.label_texts

    @property
    def all_labels(self) -> list[Label]:
        """The tags and the labels."""
        return [*self.tag.tags, *self.answer_labels]

    def needed_head(self) -> dict[str, Any]:
        """A head of two parts: some of the outputs belong to the words."""
        return {"kind": "joint", "outputs": self.outputs, "tags": self.tag.outputs}

    def bound(self, head: Any) -> Self:
        """The task with the tokens' head."""
        return replace(self, tag=self.tag.bound(getattr(head, "tokens", None)))

    @property
    def format_version(self) -> int:
        """That of the words' task."""
        return self.tag.format_version

    def with_unit(self, unit: str, tokenizer: Tokenizer, examples: Sequence[Example]) -> tuple[Self, list[str]]:
        """The task with words or pieces as units of its tags."""
        tag, notes = self.tag.with_unit(unit, tokenizer, [*map(_tagged, examples)])
        return replace(self, tag=tag), notes

    def encode(self, tokenizer: Tokenizer, examples: Sequence[Example], policy: LengthPolicy) -> list[EncodedExample]:
        """Texts by words or pieces, with one more unit for each window."""
        return read_words(tokenizer, examples, policy, whole=True, by_piece=self.tag.unit == "piece")

    @property
    def encode_key(self) -> Hashable:
        """Only the unit of the tags decides how a text is encoded."""
        return type(self).encode, self.tag.unit

    def check(self, target: TagsAndLabel) -> None:
        """Whether tags and label are known."""
        self.tag.check(target.tags)
        self.classify.check(target.label)

    def targets(self, values: Sequence[TagsAndLabel], inputs: Sequence[EncodedExample] = ()) -> np.ndarray:
        """Tag number (-1: none) and label number (-1: none) of each unit, int64 [units, 2]."""
        tags = self.tag.targets([value.tags for value in values], inputs)
        labels = self.classify.targets([value.label for value in values])
        rows = []
        for words, label, one in zip(tags, labels, inputs, strict=True):
            whole = _is_whole(one)
            row = np.full((len(whole), 2), -1, dtype=np.int64)
            row[~whole, 0] = words
            row[whole, 1] = label
            rows.append(row)
        return ragged(rows)

    def misfits(self, examples: Sequence[Example], inputs: Sequence[EncodedExample]) -> list[str]:
        """Spans that begin or end inside a word."""
        return self.tag.misfits([*map(_tagged, examples)], inputs)

    def weights(self, targets: np.ndarray) -> FloatArray | None:
        """Weights of tags and of labels, float32 [outputs]."""
        tags, labels = self.tag.weights(_words(targets)), self.classify.weights(_labels(targets))
        return None if tags is None or labels is None else np.concatenate([tags, labels])

    def prior(self, targets: np.ndarray) -> FloatArray:
        """The log shares of tags and of labels, float32 [outputs]."""
        return np.concatenate([self.tag.prior(_words(targets)), self.classify.prior(_labels(targets))])

    def over(self, targets: Tensor, examples: int) -> Self:
        """The task for the parts of a batch: the tags' mean is over the words of the whole batch."""
        return replace(self, tag=self.tag.over(targets[targets[:, 0] >= 0], examples))

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None, sizes: Sequence[int] = ()) -> Tensor:
        """The sum of both tasks' losses, [examples]."""
        k = self.tag.outputs
        tag_weights, label_weights = (weights[:k], weights[k:]) if weights is not None else (None, None)
        words = targets[:, 0] >= 0
        counts = [int(part.sum()) for part in words.split_with_sizes(list(sizes))]
        tags = self.tag.loss(logits[words][:, :k], targets[words][:, 0], tag_weights, counts)
        wholes = self.classify.loss(logits[~words][:, k:], targets[~words][:, 1], label_weights)
        windows = [size - count for size, count in zip(sizes, counts, strict=True)]
        for place, part in enumerate(wholes.split_with_sizes(windows)):
            tags = tags.index_add(0, tags.new_tensor([place]).long(), part.mean()[None])
        return tags

    def tuned(self, logits: FloatArray, targets: np.ndarray, batch: Batch | None = None) -> Self:
        """The label's temperature."""
        assert batch is not None
        labels = self._parts(logits, batch)[1]
        return replace(self, classify=self.classify.tuned(labels, _labels(targets)))

    def decode(self, logits: FloatArray, batch: Batch | None = None) -> list[Answer]:
        """The label as the answer, and the spans beside it."""
        assert batch is not None
        words, labels, word_batch = self._parts(logits, batch)
        answers = zip(self.tag.decode(words, word_batch), self.classify.decode(labels), strict=True)
        return [Answer(whole.answer, whole.score, whole.probabilities, tags.spans, tags.tags)
                for tags, whole in answers]  # fmt: skip

    def columns(self, probabilities: bool = False) -> dict[str, type]:
        """The label with its probability, the spans beside it as JSON, and the tags of given tokens."""
        label = common_type(self.answer_labels)
        return {"prediction": label, "score": float, "spans": str, "predicted_tags": list}

    def cells(self, prediction: Prediction) -> dict[str, Any]:
        """The label, the spans beside it, and the tags of given tokens."""
        label = {"prediction": prediction.answer, "score": short(prediction.score)}
        return label | {"spans": spans_json(prediction.spans or []), "predicted_tags": prediction.tags}

    def identity(self, answer: Answer) -> Hashable:
        """The label with its type, and the set of spans."""
        return typed(answer.answer), self.tag.identity(answer)

    def is_right(self, answer: Answer, example: Example, read: EncodedExample) -> bool:
        """Whether both the label and all spans are the row's."""
        target: TagsAndLabel = example.target
        return self.classify.is_right(answer, replace(example, target=target.label), read) and (
            self.tag.identity(answer) == self.tag.wanted(_tagged(example), read)
        )

    def written_target(self, example: Example) -> Any:
        """The label, and the spans or tags."""
        spans = self.tag.written_target(_tagged(example))
        return {"label": example.target.label, "spans": spans}

    def evaluate(self, logits: FloatArray, targets: np.ndarray, batch: Batch | None = None) -> dict[str, Any]:
        """Entity metrics, the label's as `intent_...`, and how many rows are right in both."""
        assert batch is not None
        words, labels, word_batch = self._parts(logits, batch)
        paths = [self.tag.path(rows)[0] for rows in word_batch.split(words)]
        tagged = Batch([*map(_tagged, word_batch.examples)], word_batch.inputs)
        tags = self.tag.scores(paths, words, _words(targets), tagged)
        whole = self.classify.evaluate(labels, _labels(targets))
        answers = zip(self.tag.decode(words, tagged), tagged.examples, tagged.inputs, strict=True)
        right = np.array([self.tag.is_right(*one) for one in answers])
        both = right & (labels.argmax(1) == _labels(targets))
        return tags | {
            "exact_match": float(both.mean()),
            "intent_accuracy": whole["accuracy"],
            "intent_macro_f1": whole["macro_f1"],
            "loss": tags["loss"] + whole["loss"],
            "per_intent": whole["per_label"],
            "warnings": tags["warnings"] + whole["warnings"],
        }

    def _parts(self, logits: FloatArray, batch: Batch) -> tuple[FloatArray, FloatArray, Batch]:
        """The words' logits, each row's label logits (the mean of its windows), and the words alone as a batch."""
        k = self.tag.outputs
        inputs, words, labels = [], [np.empty((0, k), dtype=np.float32)], []
        for rows, one in zip(batch.split(logits), batch.inputs, strict=True):
            assert one.units is not None
            whole = _is_whole(one)
            kept = ~whole[: len(rows)]
            units = replace(
                one.units, window=one.units.window[kept], token=one.units.token[kept], start=one.units.start[~whole],
                end=one.units.end[~whole],
            )  # fmt: skip
            inputs.append(replace(one, units=units))
            words.append(rows[kept, :k])
            labels.append(rows[~kept, k:].mean(0))
        stacked = np.array(labels, dtype=np.float32).reshape(len(labels), self.classify.outputs)
        return np.concatenate(words), stacked, Batch(batch.examples, inputs)


def _tagged(example: Example) -> Example:
    """The example with its tags or spans alone as the target."""
    return replace(example, target=example.target.tags)


def _is_whole(one: EncodedExample) -> np.ndarray:
    assert one.units is not None
    whole: np.ndarray = one.units.start < 0
    return whole


def _words(targets: np.ndarray) -> np.ndarray:
    return ragged([row[row[:, 0] >= 0, 0] for row in targets])


def _labels(targets: np.ndarray) -> IntArray:
    return np.array([row[:, 1].max() for row in targets], dtype=np.int64)
