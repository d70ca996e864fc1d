"""The part of a context that answers a question."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np

from berthead.data.labels import is_blank
from berthead.errors import DataError, counted, shown
from berthead.records import Example, FloatArray, Prediction, Span
from berthead.tasks.answer_scores import answer_scores, best_threshold, exact, f1
from berthead.tasks.arrays import number, ragged
from berthead.tasks.base import Answer, Batch, Task, stateless
from berthead.tasks.cells import short
from berthead.text.tokenizer import Tokenizer
from berthead.text.windows import EncodedExample, LengthPolicy, read_questions

if TYPE_CHECKING:
    from torch import Tensor

BEST = 5
# Starts and ends of a window that are tried with each other.
TRIED = 20
SHORTEST_LIMIT = 100


class Gold(NamedTuple):
    """A right answer: its text, and the character of the context at which it begins."""

    text: str
    start: int


@dataclass(frozen=True, slots=True)
class Found:
    """The candidate answers in a context.

    Args:
        spans: the best answers, best first, without repetition: (start, end, score, window).
        nothing: the score of "no answer here", the lowest of all windows.
    """

    spans: list[tuple[int, int, float, int]]
    nothing: float


@dataclass(frozen=True, slots=True)
class Extract(Task):
    """A span of the context, or no answer.

    Args:
        longest: the most characters of an answer.
        unanswerable: whether a question may have no answer (SQuAD 2.0).
        threshold: an answer is given if its score is above that of no answer by at least this; tuned on held-out
            rows.

    Example:
        >>> Extract.from_targets([(Gold("Paris", 3),), ()], "data").unanswerable
        True

    Source: Devlin et al. 2019, sections 4.2 and 4.3.
    """

    name: ClassVar[str] = "span"
    problem_type: ClassVar[str] = "question_answering"
    form: ClassVar[str] = "question"
    level: ClassVar[str] = "token"
    metrics: ClassVar[Mapping[str, int]] = {"f1": 1, "exact": 1, "loss": -1}
    decided: ClassVar[tuple[str, ...]] = ("threshold", "longest")
    # BERT's own head drops nothing: the two edges are single tokens, and more of them are met exactly.
    head_dropout: ClassVar[float] = 0.0

    longest: int
    unanswerable: bool = False
    threshold: float = 0.0

    @classmethod
    def read(cls, value: Any) -> tuple[Gold, ...]:
        """The cell as right answers: [{"text", "answer_start"}], {"text": [...], "answer_start": [...]}, or JSON."""
        if isinstance(value, str):
            try:
                found = json.loads(value)
            except ValueError:
                found = None
            # "1999" and "true" are answers, though they are JSON too.
            value = found if isinstance(found, dict | list) else [{"text": value}] if value.strip() else None
        if isinstance(value, dict):
            value = _rows(value)
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if not isinstance(value, list | tuple):
            allowed = 'answers such as [{"text": "...", "answer_start": 0}], or [] for none'
            raise ValueError(f"is {shown(value)[:60]}; expected {allowed}")
        if value and all(isinstance(one, dict) and "text" in one and is_blank(one["text"]) for one in value):
            return ()  # how many write that there is no answer
        return tuple(_gold(one) for one in value)

    @classmethod
    def settled(cls, example: Example) -> Example:
        """Answers at the given offsets; a wrong offset is corrected if the text occurs only once."""
        context, golds, notes = example.pair or "", [], []
        for gold in example.target:
            if context[gold.start : gold.start + len(gold.text)] == gold.text and gold.start >= 0:
                golds.append(gold)
                continue
            count, said = (
                context.count(gold.text),
                f"answer_start {gold.start}" if gold.start >= 0 else "no answer_start",
            )
            exact_place = _other_place(context, gold) if count > 1 else None
            if exact_place is not None:
                golds.append(gold._replace(start=exact_place))
                notes.append(f"{said} does not count characters; {shown(gold.text[:60])} occurs at {exact_place}")
                continue
            if count != 1:
                stands = "is not in the context" if not count else f"occurs {count} times in the context"
                saw = f"has {said}, and {shown(gold.text[:60])} {stands}"
                raise ValueError(f"{saw}; expected the place of its first character")
            golds.append(gold._replace(start=context.index(gold.text)))
            if gold.start >= 0:
                notes.append(
                    f"{said} is wrong; {shown(gold.text[:60])} occurs at {golds[-1].start} only, which is used instead"
                )
        return replace(example, target=tuple(golds), note="; ".join(notes) or None)

    @classmethod
    def from_targets(cls, targets: Sequence[tuple[Gold, ...]], where: str) -> Self:
        """The task with the length of answers, and whether there always is one."""
        lengths = [len(gold.text) for target in targets for gold in target]
        if not lengths:
            raise DataError(where, "holds no answer", "questions with answers", "Add rows that have one.")
        return cls(max(SHORTEST_LIMIT, *lengths), any(not target for target in targets))

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Self:
        """The task from its saved state."""
        longest, unanswerable = state["longest"], state["unanswerable"]
        if type(longest) is not int or longest < 1 or type(unanswerable) is not bool:
            saw = f"longest is {longest!r}, unanswerable is {unanswerable!r}"
            raise ValueError(f"{saw}; expected a whole number from 1, and true or false")
        return cls(longest, unanswerable, number(state, "threshold"))

    def to_json(self) -> dict[str, Any]:
        """The longest answer and the threshold."""
        kept = {"longest": self.longest, "unanswerable": self.unanswerable, "threshold": self.threshold}
        return {"labels": [], "activation": "softmax", **kept}

    def merged(self, tasks: Sequence[Self]) -> Self:
        """The task with the longest answer of any of these."""
        return replace(self, longest=max(one.longest for one in tasks))

    @property
    def outputs(self) -> int:
        """Start and end."""
        return 2

    @property
    def label_texts(self) -> list[str]:
        """The two outputs' names."""
        return ["start", "end"]

    @stateless
    def encode(self, tokenizer: Tokenizer, examples: Sequence[Example], policy: LengthPolicy) -> list[EncodedExample]:
        """Questions, each with windows of its context."""
        return read_questions(tokenizer, examples, policy)

    def check(self, target: tuple[Gold, ...]) -> None:
        """Every answer is allowed."""

    def targets(self, values: Sequence[tuple[Gold, ...]], inputs: Sequence[EncodedExample] = ()) -> np.ndarray:
        """For each unit whether the answer starts there, whether it ends there, and its window, int64 [units, 3]."""
        rows = []
        for golds, one in zip(values, inputs, strict=True):
            assert one.units is not None
            row = np.zeros((one.n_units, 3), dtype=np.int64)
            row[:, 2] = one.units.window
            for window in range(len(one.rows)):
                first, end = np.searchsorted(one.units.window, [window, window + 1])
                found = _within(one, first, end, golds[0]) if golds else None
                start, last = found or (first, first)
                row[start, 0], row[last, 1] = 1, 1
            rows.append(row)
        return ragged(rows)

    def misfits(self, examples: Sequence[Example], inputs: Sequence[EncodedExample]) -> list[str]:
        """Answers that no window contains completely."""
        lines = []
        for example, one, row in zip(examples, inputs, self.targets([x.target for x in examples], inputs), strict=True):
            assert one.units is not None
            if example.target and not row[one.units.start >= 0, 0].any():
                lines.append(f"{example.where}: the answer {shown(example.target[0].text[:60])} is in no window")
        return lines

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None, sizes: Sequence[int] = ()) -> Tensor:
        """Cross-entropy of the start and of the end among the tokens of each window, mean over the windows."""
        from berthead.tasks.losses import window_losses

        return window_losses(logits, targets, sizes)

    @property
    def needs_held_out(self) -> bool:
        """Yes, if a question may have no answer."""
        return self.unanswerable

    def tuned(self, logits: FloatArray, targets: np.ndarray, batch: Batch | None = None) -> Self:
        """The task with the threshold of the best F1 on held-out rows, if some have no answer."""
        assert batch is not None
        golds = [_texts(example) for example in batch.examples]
        if not self.unanswerable or all(golds):
            return self
        margins, right = [], []
        for found, example, gold in zip(self._found(logits, batch), batch.examples, golds, strict=True):
            best = found.spans[0] if found.spans else None
            margins.append(best[2] - found.nothing if best else -np.inf)
            right.append(f1((example.pair or "")[best[0] : best[1]], gold) if best else float(not gold))
        return replace(self, threshold=best_threshold(margins, right, [bool(gold) for gold in golds]))

    def decode(self, logits: FloatArray, batch: Batch | None = None) -> list[Answer]:
        """The best span of each context, or the empty text; and the best few with their probabilities."""
        assert batch is not None
        answers = []
        for found, example in zip(self._found(logits, batch), batch.examples, strict=True):
            context = example.pair or ""
            scores = np.array([span[2] for span in found.spans] + [found.nothing] * self.unanswerable)
            shares = np.exp(scores - scores.max()) if len(scores) else scores
            shares = (shares / shares.sum()).tolist() if len(scores) else []
            spans = [
                Span(start, end, context[start:end], None, share, window)
                for (start, end, _, window), share in zip(found.spans[:BEST], shares, strict=False)
            ]
            if spans and self._answered(found):
                answers.append(Answer(spans[0].text, spans[0].score, None, spans))
            else:
                answers.append(Answer("", shares[-1] if self.unanswerable and shares else None, None, spans))
        return answers

    def evaluate(self, logits: FloatArray, targets: np.ndarray, batch: Batch | None = None) -> dict[str, Any]:
        """Exact match and F1 as SQuAD's official script counts them."""
        from berthead.tasks.losses import of_arrays, window_losses

        assert batch is not None
        answers = [answer.answer for answer in self.decode(logits, batch)]
        scores: dict[str, Any] = dict(answer_scores(answers, [_texts(example) for example in batch.examples]))
        sizes = [len(row) for row in targets]
        losses = of_arrays(window_losses, logits, np.concatenate(targets), sizes)
        return scores | {"loss": float(losses.mean()), "warnings": []}

    def columns(self, probabilities: bool = False) -> dict[str, type]:
        """The answer, its probability, and its offsets."""
        return {"prediction": str, "score": float, "start": int, "end": int}

    def cells(self, prediction: Prediction) -> dict[str, Any]:
        """The answer and its offsets; no offsets if there is no answer."""
        best = prediction.spans[0] if prediction.answer and prediction.spans else None
        place = {"start": best and best.start, "end": best.end if best else None}
        return {"prediction": prediction.answer, "score": short(prediction.score), **place}

    def identity(self, answer: Answer) -> Hashable:
        """The text, wherever it occurs."""
        return str(answer.answer)

    def is_right(self, answer: Answer, example: Example, read: EncodedExample) -> bool:
        """Whether it is one of the right answers, as SQuAD's exact match counts it."""
        return bool(exact(answer.answer, _texts(example)))

    def written_target(self, example: Example) -> Any:
        """The texts of the right answers."""
        return _texts(example)

    def answers_in_words(self) -> str:
        """The possible answers, in a few words."""
        return f"an answer in the context{', or none' if self.unanswerable else ''}"

    def _answered(self, found: Found) -> bool:
        return not self.unanswerable or found.spans[0][2] - found.nothing >= self.threshold

    def _found(self, logits: FloatArray, batch: Batch) -> list[Found]:
        """The best spans of each example, over all its windows."""
        every = []
        for rows, one in zip(batch.split(logits), batch.inputs, strict=True):
            assert one.units is not None
            best: dict[tuple[int, int], tuple[float, int]] = {}
            nothing = np.inf
            for window in range(len(one.rows)):
                first, end = np.searchsorted(one.units.window, [window, window + 1])
                nothing = min(nothing, float(rows[first].sum()))
                starts, ends = one.units.start[first + 1 : end], one.units.end[first + 1 : end]
                for start, last, score in _spans(rows[first + 1 : end], starts, ends, self.longest):
                    place = int(starts[start]), int(ends[last])
                    if place not in best or score > best[place][0]:
                        best[place] = score, window
            ordered = sorted(((*place, *found) for place, found in best.items()), key=lambda x: (-x[2], x[0], x[1]))
            every.append(Found(ordered[:TRIED], nothing))
        return every


def _spans(logits: FloatArray, starts: np.ndarray, ends: np.ndarray, longest: int) -> list[tuple[int, int, float]]:
    """Start token, end token and score of the best spans in a window."""
    first = np.argsort(-logits[:, 0], kind="stable")[:TRIED]
    last = np.argsort(-logits[:, 1], kind="stable")[:TRIED]
    score = logits[first, 0][:, None] + logits[last, 1][None]
    characters = ends[last][None] - starts[first][:, None]
    sound = (last[None] >= first[:, None]) & (characters <= longest)
    full = ends > starts  # a token of nothing but space neither begins nor ends an answer
    sound &= full[first][:, None] & full[last][None]
    if not sound.any() and len(logits):
        # No pair of the likeliest places makes a span: the likeliest token alone.
        token = int(np.where(full, logits.sum(1), -np.inf).argmax())
        return [(token, token, float(logits[token].sum()))]
    rows, columns = np.nonzero(sound)
    order = np.argsort(-score[rows, columns], kind="stable")[:TRIED]
    return [(int(first[rows[n]]), int(last[columns[n]]), float(score[rows[n], columns[n]])) for n in order]


def _within(one: EncodedExample, first: int, end: int, gold: Gold) -> tuple[int, int] | None:
    """The units at which the answer starts and ends in a window, or None if it is not complete there."""
    assert one.units is not None
    starts, ends = one.units.start[first + 1 : end], one.units.end[first + 1 : end]
    start = int(np.searchsorted(ends, gold.start, side="right"))
    last = int(np.searchsorted(starts, gold.start + len(gold.text), side="left")) - 1
    cut_before = start == 0 and len(starts) > 0 and starts[0] > gold.start and first > 0
    whole = start <= last < len(starts) and not cut_before and _reaches(one, first, end, gold)
    return (first + 1 + start, first + 1 + last) if whole else None


def _reaches(one: EncodedExample, first: int, end: int, gold: Gold) -> bool:
    """Whether a window ends after the answer, or with the context."""
    assert one.units is not None
    is_last = end == len(one.units.window) and not one.truncated
    return is_last or bool(one.units.end[end - 1] >= gold.start + len(gold.text.rstrip()))


def _texts(example: Example) -> list[str]:
    return [gold.text for gold in example.target]


def _rows(value: dict[str, Any]) -> list[Any]:
    """SQuAD's answers of one question as rows: its columns may be lists."""
    texts, starts = value.get("text"), value.get("answer_start")
    if not isinstance(texts, list | tuple | np.ndarray):
        return [value]
    starts = [None] * len(texts) if starts is None else list(starts)
    if len(starts) != len(texts):
        saw = f"has {counted(len(texts), 'text')} and {counted(len(starts), 'value')} of answer_start"
        raise ValueError(f"{saw}; expected as many of both")
    return [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]


def _other_place(context: str, gold: Gold) -> int | None:
    """The character at which an answer begins, if its offset counts UTF-16 units or bytes."""
    for encoding, size in (("utf-16-le", 2), ("utf-8", 1)):
        before = context.encode(encoding, "surrogatepass")[: max(gold.start, 0) * size].decode(encoding, "replace")
        if gold.start >= 0 and context.startswith(before) and context[len(before) :].startswith(gold.text):
            return len(before)
    return None


def _gold(value: Any) -> Gold:
    if isinstance(value, str):
        value = {"text": value}
    if not isinstance(value, dict) or not isinstance(value.get("text"), str) or is_blank(value["text"]):
        raise ValueError(f'holds {shown(value)[:60]}; expected an answer such as {{"text": "...", "answer_start": 0}}')
    start = value.get("answer_start")
    if start is None:
        return Gold(value["text"], -1)
    if isinstance(start, bool) or not isinstance(start, int | np.integer) or start < 0:
        raise ValueError(f"has answer_start {shown(start)}; expected a whole number of characters, at least 0")
    return Gold(value["text"], int(start))
