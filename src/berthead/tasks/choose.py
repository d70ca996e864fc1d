"""One of a question's own choices."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np

from berthead.data.labels import is_blank, plain
from berthead.errors import DataError, counted, listed, shown
from berthead.records import Example, FloatArray, Prediction
from berthead.tasks.arrays import ragged, softmax
from berthead.tasks.base import Answer, Batch, Task, stateless
from berthead.tasks.cells import short
from berthead.tasks.label_scores import best_temperature, temperature_in
from berthead.text.tokenizer import Tokenizer
from berthead.text.windows import EncodedExample, LengthPolicy, read_choices

if TYPE_CHECKING:
    from torch import Tensor

STYLES = ("text", "letter", "number")
FEWEST = 8
"""Rows in which a label of 0 is expected."""


class Choice(NamedTuple):
    """The right choice, by every way in which its label can be read: "1" may be a number and the text of a choice.

    Args:
        of: the number of choices.
        readings: style and number from 0, at least one.
    """

    of: int
    readings: tuple[tuple[str, int], ...]

    def number(self, style: str) -> int:
        """The number of the choice, read in this style if possible."""
        return dict(self.readings).get(style, self.readings[0][1])


@dataclass(frozen=True, slots=True)
class Choose(Task):
    """One of a question's choices; each is read with the question, and gets a score.

    Args:
        style: how a choice is named: its `number` from 0, its `letter` (A is the first), or its `text`.
        temperature: divides the scores before the softmax; fitted on held-out rows.

    Example:
        >>> Choose.named(1, ("red", "blue"), "letter")
        'B'

    Source: Devlin et al. 2019, section 4.4.
    """

    name: ClassVar[str] = "choose"
    problem_type: ClassVar[str] = "multiple_choice"
    form: ClassVar[str] = "choices"
    metrics: ClassVar[Mapping[str, int]] = {"accuracy": 1, "loss": -1}
    decided: ClassVar[tuple[str, ...]] = ("temperature",)

    style: str = "number"
    temperature: float = 1.0

    @classmethod
    def read(cls, value: Any) -> Choice:
        """The cell and its choices as the right choice."""
        cell, choices = value
        return choice_of(plain(cell), choices)

    @staticmethod
    def named(number: int, choices: Sequence[str], style: str) -> Any:
        """A choice as the user writes it."""
        return {"number": number, "letter": chr(ord("A") + number), "text": choices[number]}[style]

    @classmethod
    def from_targets(cls, targets: Sequence[Choice], where: str) -> Self:
        """The task, with the style in which the targets name a choice."""
        if not targets:
            raise DataError(where, "holds no labelled row", "questions with choices and a label")
        read = [dict(target.readings) for target in targets]
        common = [style for style in STYLES if all(style in readings for readings in read)]
        # Where rows name choices in different ways, answers are given in the way that always can be: by the text.
        return cls(common[0] if common else "text")

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Self:
        """The task from its saved state."""
        if state["style"] not in STYLES:
            raise ValueError(f"style is {state['style']!r}; expected one of {listed(STYLES)}")
        return cls(state["style"], temperature_in(state))

    def to_json(self) -> dict[str, Any]:
        """Style and temperature."""
        return {"labels": [], "activation": "softmax", "style": self.style, "temperature": self.temperature}

    @property
    def outputs(self) -> int:
        """One score a choice."""
        return 1

    @property
    def label_texts(self) -> list[str]:
        """The one output's name."""
        return ["score"]

    @stateless
    def encode(self, tokenizer: Tokenizer, examples: Sequence[Example], policy: LengthPolicy) -> list[EncodedExample]:
        """Each question with each of its choices."""
        return read_choices(tokenizer, examples, policy)

    def check(self, target: Choice) -> None:
        """Every choice is allowed."""

    def targets(self, values: Sequence[Choice], inputs: Sequence[EncodedExample] = ()) -> np.ndarray:
        """1 for the right choice and 0 for the others, int64 [choices, 1]."""
        return ragged([(np.arange(value.of) == value.number(self.style)).astype(np.int64)[:, None] for value in values])

    def misfits(self, examples: Sequence[Example], inputs: Sequence[EncodedExample]) -> list[str]:
        """Labels that can be read in two ways, and numbers that seem to begin at 1."""
        lines = []
        twofold = [one for one in examples if len({number for _, number in one.target.readings}) > 1]
        if self.style == "number":  # a number that is also the text of another choice
            twofold += [one for one in examples if one not in twofold and _is_text_of_another(one)]
        if twofold:
            shown_choices, first = listed(map(shown, twofold[0].choices or ()), 4), twofold[0]
            lines.append(
                f"{first.where}: the label can be read as the text of a choice and as its number or letter "
                f"(choices {shown_choices}): {counted(len(twofold), 'such row')}, read as the {self.style}"
            )
        numbers = [one.target.number(self.style) for one in examples]
        if self.style == "number" and len(numbers) >= FEWEST and 0 not in numbers:
            lines.append("no label is 0: numbers of choices begin at 0, so check that they do here")
        return lines

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None, sizes: Sequence[int] = ()) -> Tensor:
        """Cross-entropy among the choices of each question, [examples]."""
        from berthead.tasks.losses import choice_losses

        return choice_losses(logits, targets, sizes)

    def tuned(self, logits: FloatArray, targets: np.ndarray, batch: Batch | None = None) -> Self:
        """The task with the temperature of the highest likelihood on held-out rows."""
        found = best_temperature(lambda temperature: _nll(logits, targets, temperature), len(targets))
        return self if found is None else replace(self, temperature=found)

    def decode(self, logits: FloatArray, batch: Batch | None = None) -> list[Answer]:
        """The likeliest choice of each question, and the probability of every one."""
        assert batch is not None
        answers = []
        for scores, example in zip(batch.split(logits[:, 0]), batch.examples, strict=True):
            shares = softmax((scores[None] / self.temperature).astype(np.float32))[0].tolist()
            best = int(np.argmax(scores))
            named = self.named(best, example.choices or (), self.style)
            answers.append(Answer(named, shares[best], dict(enumerate(shares))))
        return answers

    def evaluate(self, logits: FloatArray, targets: np.ndarray, batch: Batch | None = None) -> dict[str, Any]:
        """The share of questions with the right choice."""
        edges = np.cumsum([len(row) for row in targets])[:-1]
        scores = np.split(logits[:, 0], edges)
        right = [int(row.argmax()) == int(target[:, 0].argmax()) for row, target in zip(scores, targets, strict=True)]
        return {"accuracy": float(np.mean(right)), "loss": _nll(logits, targets, self.temperature), "warnings": []}

    def window_scores(self, unit: FloatArray, windows: FloatArray) -> FloatArray:
        """The scores that each window gives the choice."""
        return windows[:, 0]

    def columns(self, probabilities: bool = False) -> dict[str, type]:
        """The choice as the user names it; the probabilities of as many choices as each row has are one column."""
        added: dict[str, type] = {"prediction": int if self.style == "number" else str, "score": float}
        return added | ({"probabilities": str} if probabilities else {})

    def cells(self, prediction: Prediction) -> dict[str, Any]:
        """The choice, and the probability of every one."""
        shares = [short(share) for share in (prediction.probabilities or {}).values()]
        return {"prediction": prediction.answer, "score": short(prediction.score), "probabilities": shares}

    def identity(self, answer: Answer) -> Hashable:
        """The number of the choice."""
        shares = answer.probabilities or {}
        return max(shares, key=shares.__getitem__)

    def is_right(self, answer: Answer, example: Example, read: EncodedExample) -> bool:
        """Whether it is the right choice."""
        return bool(self.identity(answer) == example.target.number(self.style))

    def written_target(self, example: Example) -> Any:
        """The right choice as the answers are named."""
        return self.named(example.target.number(self.style), example.choices or (), self.style)

    def answers_in_words(self) -> str:
        """The possible answers, in a few words."""
        return f"one of each question's choices, by its {self.style}"


def _is_text_of_another(example: Example) -> bool:
    number, choices = example.target.number("number"), example.choices or ()
    return str(number) in choices and choices[number] != str(number)


def choice_of(label: Any, choices: Sequence[str]) -> Choice:
    """Which choice a label names.

    Args:
        label: a number from 0, a letter from A, or the text of a choice.
        choices: the choices.

    Returns:
        The choice.

    Raises:
        ValueError: it names none.

    Example:
        >>> choice_of("B", ["red", "blue"])
        Choice(of=2, readings=(('letter', 1),))
    """
    count = len(choices)
    last = chr(ord("A") + min(count, 26) - 1)
    allowed = f"a number from 0 to {count - 1}, a letter from A to {last}, or the text of a choice"
    if is_blank(label):
        raise ValueError(f"is blank; expected {allowed}")
    readings = []
    if isinstance(label, str):
        alike = [place for place, choice in enumerate(choices) if choice == label]
        word = label.strip()
        if len(alike) == 1:
            readings.append(("text", alike[0]))
        if len(word) == 1 and "A" <= word.upper() <= last:
            readings.append(("letter", ord(word.upper()) - ord("A")))
        if word.isascii() and word.isdecimal() and int(word) < count:
            readings.append(("number", int(word)))
        if not readings and alike:
            raise ValueError(f"is {shown(label)}, the text of {len(alike)} choices; expected {allowed}")
    elif isinstance(label, int | float) and not isinstance(label, bool) and label in range(count):
        readings.append(("number", int(label)))
    if not readings:
        if str(label).strip() == str(count):
            allowed += "; numbers begin at 0"
        raise ValueError(f"is {shown(label)}, and there are {count} choices; expected {allowed}")
    return Choice(count, tuple(readings))


def _nll(logits: FloatArray, targets: np.ndarray, temperature: float) -> float:
    from berthead.tasks.losses import choice_losses, of_arrays

    sizes, scaled = [len(row) for row in targets], (logits / temperature).astype(np.float32)
    return float(of_arrays(choice_losses, scaled, np.concatenate(targets), sizes).mean())
