"""The forms of rows: what a row of data holds, and how its columns are usually called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# What the field calls these columns, the first is ours.
SYNONYMS = {
    "text": ("text", "sentence", "sentence1", "premise", "content", "review", "document", "question1"),
    "pair": ("pair", "text_pair", "sentence2", "hypothesis", "question2"),
    "label": ("label", "labels", "target", "category", "class", "score"),
}
_WORDS = ("tokens", "words", "text", "sentence")
_TAGS = ("tags", "ner_tags", "spans", "entities", "labels", "label", "tag", "ner_tag", "upos")


@dataclass(frozen=True, slots=True)
class Form:
    """What a row of data holds, by the usual names of its columns.

    Args:
        text: the first text, the tokens, or the question.
        label: the target.
        pair: the second text, or the context; with choices, a context that some data have.
        needs_pair: whether a pair is required.
        choices: one column with a list of choices; empty: no choices.
        intent: the label beside the tags; empty: none.
        reads_words: whether the text may be a list of tokens.
        two_texts: what a row of two texts is called in messages.
        row: how messages describe a row in Python.
    """

    text: tuple[str, ...] = SYNONYMS["text"]
    label: tuple[str, ...] = SYNONYMS["label"]
    pair: tuple[str, ...] = SYNONYMS["pair"]
    needs_pair: bool = False
    choices: tuple[str, ...] = ()
    intent: tuple[str, ...] = ()
    reads_words: bool = False
    two_texts: str = "pairs"
    row: str = "(text, pair)"

    @property
    def second(self) -> str | None:
        """The role of the second part of every row: `pair`, `choices`, or None."""
        return "choices" if self.choices else "pair" if self.needs_pair else None

    @property
    def is_plain(self) -> bool:
        """Whether a row is a text or a pair of texts, and nothing else."""
        return not self.reads_words and self.second is None

    def usual(self, pair: bool = False) -> dict[str, Any]:
        """The usual column names, by role, for rows that did not come from a table.

        Args:
            pair: whether rows have a second text, if the form allows both.
        """
        has_pair = self.needs_pair or pair
        names = {"text": self.text[0], "pair": self.pair[0] if has_pair else None, "label": self.label[0]}
        return names | ({"choices": [self.choices[0]]} if self.choices else {})


FORMS = {
    "text": Form(),
    "words": Form(_WORDS, _TAGS, (), reads_words=True, row="[token, ...]"),
    "words and label": Form(
        _WORDS, _TAGS[:-1], (), intent=("intent", "label"), reads_words=True, row="[token, ...]",
    ),
    "question": Form(
        ("question", "query"), ("answers", "answer"), ("context", "passage", "paragraph"), True,
        two_texts="a question and its context", row="(question, context)",
    ),
    "choices": Form(
        ("question", "stem", "premise", "text", "sent2"), ("label", "answer", "answerKey", "correct"),
        ("article", "passage", "context", "sent1"),
        choices=("choices", "options", "endings"), two_texts="a question and its choices",
        row="(question, [choice, ...])",
    ),
}  # fmt: skip
