"""A label a word: named entities, slots, parts of speech."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from berthead.data.entities import entities
from berthead.data.labels import MOST_LABELS, is_blank
from berthead.data.tag_schemes import SCHEMES, STANDARD, SchemeError, from_bio, letters_of, scheme_of, to_bio
from berthead.data.tags import OUTSIDE
from berthead.errors import DataError, counted, did_you_mean, listed, shown
from berthead.records import Example, FloatArray, IntArray, Prediction, Span
from berthead.tasks.arrays import ragged, softmax
from berthead.tasks.base import Answer, Batch, Task
from berthead.tasks.cells import spans_json
from berthead.tasks.crf import Field, rules
from berthead.tasks.entity_notes import ill_formed
from berthead.tasks.entity_scores import entity_scores, span_scores
from berthead.tasks.label_scores import nll
from berthead.tasks.marks import Mark, aligned, check_marks, in_code_points, mark_of, trimmed
from berthead.tasks.tag_unit import unit_for
from berthead.tasks.viterbi import viterbi
from berthead.text.tokenizer import Tokenizer
from berthead.text.windows import EncodedExample, LengthPolicy, read_words

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tag(Task):
    """A label for each word, and the spans that they form.

    Args:
        tags: the possible tags: BIO tags, or plain ones such as parts of speech.
        scheme: how the user's data writes spans: `BIO`, `IOB1`, `BIOES` or `plain`.
        letters: the letters for begin, inside, end and single, and the separator.
        unit: what gets a tag in a text: `word`, or `piece`, each token of the tokenizer. Given tokens are words.
        head: the fitted head, whose conditional random field decodes if it has one.
        mean_words: words an example in the whole batch; None: in the given rows.

    Example:
        >>> task = Tag.from_targets([("B-PER", "O")], "data")
        >>> task.tags
        ('O', 'B-PER', 'I-PER')
    """

    name: ClassVar[str] = "tag"
    problem_type: ClassVar[str] = "token_classification"
    form: ClassVar[str] = "words"
    level: ClassVar[str] = "token"
    is_sequence: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, int]] = {"f1": 1, "macro_f1": 1, "token_accuracy": 1, "loss": -1}

    tags: tuple[str, ...]
    scheme: str = "BIO"
    letters: str = STANDARD
    unit: str = "word"
    head: Any = field(default=None, compare=False, repr=False)
    mean_words: float | None = field(default=None, compare=False, repr=False)

    @classmethod
    def read(cls, value: Any) -> tuple[str, ...] | tuple[Mark, ...]:
        """The cell as tags of words, or as spans of characters: a list, or JSON."""
        if isinstance(value, str):
            with suppress(ValueError):
                value = json.loads(value)
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if not isinstance(value, list | tuple):
            saw = "is blank" if is_blank(value) else f"is {shown(value)[:60]}"
            raise ValueError(
                f'{saw}; expected a list of tags, or of spans such as {{"start": 0, "end": 5, "label": "PER"}}'
            )
        if all(isinstance(one, str) for one in value):
            return tuple(value)
        if all(isinstance(one, int) and not isinstance(one, bool) for one in value):
            raise ValueError(f"holds numbers, such as {value[0]}; expected tags. Name them: --tag-names O,B-PER,...")
        return tuple(mark_of(one) for one in value)

    @classmethod
    def settled(cls, example: Example) -> Example:
        """As many tags as words, or spans that lie in the text and do not overlap."""
        target = example.target
        if target and isinstance(target[0], Mark):
            if example.words is not None:
                raise ValueError("holds spans, and the row holds tokens; expected a tag for each token")
            example = in_code_points(example)
            check_marks(example.target, example.text)
            return example
        if example.words is None and target:
            raise ValueError("holds tags, and the row holds a text; expected spans, or a list of tokens as the text")
        if example.words is not None and len(target) != len(example.words):
            saw = f"holds {counted(len(target), 'tag')} for {counted(len(example.words), 'token')}"
            raise ValueError(f"{saw}; expected one for each")
        return example

    @classmethod
    def from_targets(cls, targets: Sequence[Any], where: str) -> Self:
        """The task with the tags of the targets."""
        places = [place for place, target in enumerate(targets) if target]
        rows = [targets[place] for place in places]
        marked = [isinstance(target[0], Mark) for target in rows]
        if any(marked) and not all(marked):
            odd = places[marked.index(not marked[0])]
            saw = f"holds {'tags' if marked[0] else 'spans'}, and rows before it {'spans' if marked[0] else 'tags'}"
            raise DataError(where, saw, "tags in all rows, or spans in all rows").about(odd)
        if all(marked):
            labels = sorted({mark.label for target in rows for mark in target})
            scheme, letters = "BIO", STANDARD
        else:
            try:
                scheme, letters = scheme_of(rows), letters_of(rows)
            except SchemeError as error:
                fix = "Write all tags in one scheme."
                raise DataError(where, f"mixes tag schemes: {error}", "", fix).about(places[error.row]) from None
            if scheme == "plain":
                if len(rows) < len(targets):
                    bare = next(place for place, target in enumerate(targets) if not target)
                    fix = "Tag it, or leave it out."
                    raise DataError(where, "holds no tags", "a tag for each word", fix).about(bare)
                plain = sorted({tag for target in rows for tag in target})
                return cls(_enough(tuple(plain), where), scheme, letters)
            bio = [to_bio(target, scheme) for target in rows]
            labels = sorted({one.label for target in bio for one in entities(target)})
        found = ("O", *(f"{letter}-{label}" for label in labels for letter in "BI"))
        return cls(_enough(found, where), scheme, letters)

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Self:
        """The task from its saved state."""
        tags, scheme, letters = state["labels"], state["scheme"], state["letters"]
        if not isinstance(tags, list) or len(set(map(str, tags))) < len(tags) or len(tags) < 2:
            raise ValueError(f"labels are {shown(tags)[:60]}; expected at least two different tags")
        if not all(isinstance(text, str) for text in (*tags, letters)) or scheme not in SCHEMES:
            raise ValueError(f"scheme is {scheme!r}; expected one of {listed(SCHEMES)}")
        if len(letters) != len(STANDARD):
            raise ValueError(f"letters are {letters!r}; expected {len(STANDARD)} of them")
        if (unit := state.get("unit", "word")) not in ("word", "piece"):
            raise ValueError(f"unit is {unit!r}; expected word or piece")
        return cls(tuple(tags), scheme, letters, unit)

    def to_json(self) -> dict[str, Any]:
        """Tags and scheme, and the unit if it is not a word."""
        unit = {} if self.unit == "word" else {"unit": self.unit}
        state = {"labels": list(self.tags), "activation": "softmax", "scheme": self.scheme, "letters": self.letters}
        return state | unit

    @property
    def format_version(self) -> int:
        """Older readers would tag words."""
        return 1 if self.unit == "word" else 5

    def with_unit(self, unit: str, tokenizer: Tokenizer, examples: Sequence[Example]) -> tuple[Self, list[str]]:
        """The task with words or pieces as units; `auto`: pieces, where words cannot give the spans of the data."""
        chosen, notes = unit_for(unit, tokenizer, examples)
        return (self if chosen == "word" else replace(self, unit=chosen)), notes

    @property
    def outputs(self) -> int:
        """The number of tags."""
        return len(self.tags)

    @property
    def label_texts(self) -> list[str]:
        """The tags."""
        return list(self.tags)

    def bound(self, head: Any) -> Self:
        """The task with the head, if that holds a conditional random field."""
        return replace(self, head=head if getattr(head, "crf", None) is True else None)

    def encode(self, tokenizer: Tokenizer, examples: Sequence[Example], policy: LengthPolicy) -> list[EncodedExample]:
        """Texts by their words or pieces."""
        return read_words(tokenizer, examples, policy, whole=False, by_piece=self.unit == "piece")

    @property
    def encode_key(self) -> Hashable:
        """Only the unit decides how a text is encoded."""
        return type(self).encode, self.unit

    def check(self, target: Sequence[Any]) -> None:
        """Check that every label is known."""
        if self.scheme == "plain":
            if not target or isinstance(target[0], Mark):
                raise ValueError("holds spans; expected a tag for each word, as this model was fitted")
            given, known = set(target), set(self.tags)
        else:
            marks = [one.label for one in target if isinstance(one, Mark)]
            tags = [tag for tag in target if isinstance(tag, str)]
            bare = set(tags) - {OUTSIDE} if tags and scheme_of([tags]) in ("plain", "IO") else set()
            given = set(marks) or bare or {one.label for one in entities(tags)}
            known = {tag[2:] for tag in self.tags if tag != "O"}
        for label in sorted(given - known):
            near = did_you_mean(label, known)
            saw = f"holds {shown(label)}; expected one of {counted(len(known), 'known label')}: "
            saw += listed(map(shown, sorted(known)))
            raise ValueError(f"{saw}. {near}" if near else saw)

    def targets(self, values: Sequence[Any], inputs: Sequence[EncodedExample] = ()) -> np.ndarray:
        """Tag numbers of each example's words, int64 [words]."""
        number = {tag: place for place, tag in enumerate(self.tags)}
        rows = []
        for value, one in zip(values, inputs, strict=True):
            tags = aligned(value, one)[0] if not value or isinstance(value[0], Mark) else self._bio(value)
            rows.append(np.array([number[tag] for tag in tags], dtype=np.int64))
        return ragged(rows)

    def _bio(self, tags: Sequence[str]) -> list[str]:
        """The tags of a row in BIO; labels without prefixes are read as such, whatever the scheme of the fit."""
        has_prefixes = self.scheme == "plain" or scheme_of([tags]) != "IO"
        return to_bio(tags, self.scheme if has_prefixes else "IO")

    def misfits(self, examples: Sequence[Example], inputs: Sequence[EncodedExample]) -> list[str]:
        """Spans that begin or end inside a word; entities that are not written as the others are."""
        lines, tagged = [], []
        for example, one in zip(examples, inputs, strict=True):
            if example.target and isinstance(example.target[0], Mark):
                found = aligned(example.target, one, example.text)[1]
                lines += [f"misplaced: {example.where}: {line}" for line in found]
            elif example.target:
                tagged.append(example)
        return lines + ill_formed(tagged)

    def weights(self, targets: np.ndarray) -> FloatArray | None:
        """Words / (tags * words with the tag), float32 [tags]; none for a conditional random field."""
        if self.head is not None:
            return None
        counts = self._counts(targets)
        weights: FloatArray = (counts.sum() / (self.outputs * np.maximum(counts, 1))).astype(np.float32)
        return weights

    def prior(self, targets: np.ndarray) -> FloatArray:
        """The log of each tag's share, one word added to each, float32 [tags]."""
        counts = self._counts(targets) + 1
        shares: FloatArray = np.log(counts / counts.sum()).astype(np.float32)
        return shares

    def _counts(self, targets: np.ndarray) -> IntArray:
        return np.bincount(np.concatenate([*targets, np.empty(0, dtype=np.int64)]), minlength=self.outputs)

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None, sizes: Sequence[int] = ()) -> Tensor:
        """Cross-entropy of the words, or the negative log-likelihood of the tag sequence; their mean over the words."""
        from berthead.tasks.losses import field_losses, word_losses

        if self.head is None:
            losses = word_losses(logits, targets, weights, sizes)
        else:
            losses = field_losses(self.head, self.tags, logits, targets, sizes)
        return losses / (self.mean_words or max(1, len(logits)) / len(sizes))

    def over(self, targets: Tensor, examples: int) -> Self:
        """The task for the parts of a batch: the mean is over the words of the whole batch."""
        return replace(self, mean_words=max(1, len(targets)) / examples)

    def decode(self, logits: FloatArray, batch: Batch | None = None) -> list[Answer]:
        """The likeliest allowed sequence of tags, and its spans in characters of the text."""
        assert batch is not None
        answers = []
        for rows, example, one in zip(batch.split(logits), batch.examples, batch.inputs, strict=True):
            assert one.units is not None
            path, shares = self.path(rows)
            tags = [self.tags[number] for number in path]
            spans = []
            for entity in entities(tags) if self.scheme != "plain" else ():
                start, end = int(one.units.start[entity.first]), int(one.units.end[entity.end - 1])
                score = float(shares[entity.first : entity.end].mean())
                window = int(one.units.window[entity.first])
                spans.append(Span(start, end, example.text[start:end], entity.label, score, window))
            if self.scheme == "plain" and example.words is None:
                places = zip(one.units.start.tolist(), one.units.end.tolist(), tags, shares, one.units.window,
                             strict=False)  # fmt: skip
                spans = [Span(s, e, example.text[s:e], tag, float(p), int(w)) for s, e, tag, p, w in places]
            given = None
            if example.words is not None:
                padded = self._padded(tags, len(example.words))
                given = from_bio(padded, self.scheme, self.letters) if self.scheme != "plain" else padded
            answers.append(Answer(given if self.scheme == "plain" and given is not None else spans, None, None,
                                  spans, given))  # fmt: skip
        return answers

    @property
    def has_probabilities(self) -> bool:
        """No: each word has its own probabilities."""
        return False

    def columns(self, probabilities: bool = False) -> dict[str, type]:
        """Spans as JSON, or plain tags; and the tags of given tokens."""
        return {"prediction": str, "predicted_tags": list}

    def cells(self, prediction: Prediction) -> dict[str, Any]:
        """Spans, or plain tags of given tokens; and all tags of given tokens."""
        plain = prediction.spans is None or prediction.tags == prediction.answer
        answer = prediction.answer if plain else spans_json(prediction.spans or [])
        return {"prediction": answer, "predicted_tags": prediction.tags}

    def identity(self, answer: Answer) -> Hashable:
        """The set of spans; plain tags of given tokens unchanged."""
        if self.scheme == "plain" and answer.tags is not None:
            return tuple(answer.tags)
        return frozenset((one.start, one.end, one.label) for one in answer.spans or ())

    def is_right(self, answer: Answer, example: Example, read: EncodedExample) -> bool:
        """Whether all spans, or all plain tags, are the row's."""
        return self.identity(answer) == self.wanted(example, read)

    def wanted(self, example: Example, read: EncodedExample) -> Hashable:
        """The target in the form of `identity`: spans by characters, or plain tags."""
        if self.scheme == "plain":
            return tuple(example.target)
        return frozenset(self.places(example, read))

    def places(self, example: Example, read: EncodedExample) -> list[tuple[int, int, str]]:
        """A target's spans as start, end and label: as they were given, whatever words they cut, or those of tags."""
        if _is_marked(example):
            return [(*trimmed(example.text, mark), mark.label) for mark in example.target]
        return _places(self._bio(example.target), read)

    def written_target(self, example: Example) -> Any:
        """Spans as objects, or tags."""
        return [one._asdict() if isinstance(one, Mark) else one for one in example.target]

    def evaluate(self, logits: FloatArray, targets: np.ndarray, batch: Batch | None = None) -> dict[str, Any]:
        """Precision, recall and F1 of whole entities, as seqeval and conlleval count them."""
        assert batch is not None
        return self.scores([self.path(rows)[0] for rows in batch.split(logits)], logits, targets, batch)

    def scores(
        self, paths: Sequence[IntArray], logits: FloatArray, targets: np.ndarray, batch: Batch
    ) -> dict[str, Any]:
        """Like `evaluate`, from decoded tag numbers of each example's words."""
        if len(logits) == 0:
            raise DataError("", "the rows hold no words to score", "texts with words", "Check the column.")
        gold = [[self.tags[number] for number in row] for row in targets]
        predicted = [
            self._padded([self.tags[number] for number in path], len(row))
            for path, row in zip(paths, targets, strict=True)
        ]
        read = [row[: len(path)] for path, row in zip(paths, targets, strict=True)]
        scores = entity_scores(gold, predicted, "plain" if self.scheme == "plain" else "BIO")
        if any(map(_is_marked, batch.examples)):  # spans as they were given, which need not be those of whole words
            rows = list(zip(batch.examples, batch.inputs, predicted, strict=True))
            wanted = [self.places(example, one) for example, one, _ in rows]
            found = [_places(tags, one) for _, one, tags in rows]
            scores = span_scores(wanted, found, scores["token_accuracy"])
        never = [row["label"] for row in scores["per_label"] if row["support"] and not row["recall"]]
        return scores | {
            "loss": self._mean_loss(logits, np.concatenate(read), [len(row) for row in read]),
            "warnings": [f"never found: {listed(map(shown, never))}"] if never else [],
        }

    def _mean_loss(self, logits: FloatArray, targets: np.ndarray, sizes: Sequence[int]) -> float:
        """The mean loss of a word."""
        if self.head is None:
            return nll(logits, targets, 1.0)
        from berthead.tasks.losses import field_losses, of_arrays

        losses = of_arrays(partial(field_losses, self.head, self.tags), logits, targets, sizes)
        return float(losses.sum()) / max(1, len(logits))

    def _padded(self, tags: list[str], words: int) -> list[str]:
        """Tags for all words; words that were not read get none."""
        return tags + ["O" if "O" in self.tags else self.tags[0]] * (words - len(tags))

    def path(self, logits: FloatArray) -> tuple[IntArray, FloatArray]:
        """Tag numbers of an example's words, and the probability of each."""
        if len(logits) == 0:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
        if self.head is not None:
            return Field.of(self.head, self.tags).path(logits)
        first, step = rules(self.tags)
        shares = softmax(logits)
        path = logits.argmax(1)
        if not (first[path[0]] and step[path[:-1], path[1:]].all()):
            no = np.float32(-np.inf)
            start, steps = np.where(first, np.float32(0), no), np.where(step, np.float32(0), no)
            path = viterbi(np.log(shares + 1e-30), start, steps, np.zeros(self.outputs, dtype=np.float32))
        return path, shares[np.arange(len(path)), path]


def _is_marked(example: Example) -> bool:
    """Whether its target is spans of characters."""
    return bool(example.target) and isinstance(example.target[0], Mark)


def _places(tags: Sequence[str], read: EncodedExample) -> list[tuple[int, int, str]]:
    """The spans of an example's BIO tags as start, end and label, in characters."""
    assert read.units is not None
    words = read.units.start >= 0
    starts, ends = read.units.start[words].tolist(), read.units.end[words].tolist()
    return [(starts[one.first], ends[one.end - 1], one.label) for one in entities(tags)]


def _enough(tags: tuple[str, ...], where: str) -> tuple[str, ...]:
    if not 2 <= len(tags) <= MOST_LABELS:
        saw = "holds no entity" if tags in (("O",), ()) else f"holds {counted(len(tags), 'different tag')}"
        raise DataError(where, saw, f"2 to {MOST_LABELS:,} tags", "Is this the right column?")
    return tags
