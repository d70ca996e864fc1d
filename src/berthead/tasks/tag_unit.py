"""What gets a tag in a text: each word, or each piece where spans cut words."""

from __future__ import annotations

from collections.abc import Sequence

from berthead.errors import UsageError, counted
from berthead.records import Example
from berthead.tasks.marks import aligned
from berthead.text.tokenizer import Tokenizer
from berthead.text.windows import LengthPolicy, read_words

FEW_CUT = 0.02
"""The share of spans that may cut words before pieces are tagged; a few are slips of the annotators."""
SAMPLED = 1_000
"""How many rows are looked at to choose between words and pieces."""


def unit_for(wanted: str, tokenizer: Tokenizer, examples: Sequence[Example]) -> tuple[str, list[str]]:
    """What gets a tag in texts.

    Args:
        wanted: `word`, `piece`, or `auto`: pieces, where words cannot give the spans of the data.
        tokenizer: the encoder's.
        examples: with their spans.

    Returns:
        `word` or `piece`, and notes for the user.

    Raises:
        UsageError: `piece`, and the rows hold tokens.
    """
    if wanted == "word":
        return wanted, []
    texts = [example for example in examples if example.words is None]
    if wanted == "piece":
        if not texts:
            saw = "the rows hold tokens, and each has a tag already"
            raise UsageError("--tag-unit piece", saw, "rows of texts with spans", "Leave --tag-unit out.")
        return wanted, []
    marked = [example for example in texts if example.target][:SAMPLED]
    spans = sum(len(example.target) for example in marked)
    cut, cut_by_pieces = (_cut(tokenizer, marked, by_piece=by_piece) for by_piece in (False, True))
    if not spans or cut < FEW_CUT * spans or 2 * cut_by_pieces > cut:
        return "word", []
    told = f"{cut:,} of {counted(spans, 'span')} begin or end inside a word, so each piece of a word gets a tag"
    return "piece", [f"{told} (--tag-unit piece); --tag-unit word gives tags to whole words"]


def _cut(tokenizer: Tokenizer, examples: Sequence[Example], *, by_piece: bool) -> int:
    """How many spans begin or end inside a word, or inside a piece."""
    policy = LengthPolicy(8, "truncate")  # of words that are not read, the places are known too
    encoded = read_words(tokenizer, examples, policy, whole=False, by_piece=by_piece)
    return sum(
        len(aligned(example.target, one, example.text)[1]) for example, one in zip(examples, encoded, strict=True)
    )
