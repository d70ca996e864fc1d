"""The special tokens around one text or a pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Template:
    """The special tokens around one text or a pair: three pieces of (ids, segments)."""

    before: tuple[list[int], list[int]]
    between: tuple[list[int], list[int]]
    after: tuple[list[int], list[int]]
    segment: int
    pair_segment: int

    @property
    def special_tokens(self) -> list[int]:
        """All of them, in their order."""
        return [*self.before[0], *self.between[0], *self.after[0]]

    @property
    def types(self) -> set[int]:
        """The token types of a row."""
        return {self.segment, self.pair_segment, *self.before[1], *self.between[1], *self.after[1]}


def template_of(backend: Any, *, pair: bool) -> Template:
    """The special tokens around a text and a pair, read from one encoding."""
    encoding = backend.encode("a", "a") if pair else backend.encode("a")
    ids, segments, sides = encoding.ids, encoding.type_ids, encoding.sequence_ids
    first = [i for i, side in enumerate(sides) if side == 0]
    second = [i for i, side in enumerate(sides) if side == 1] or [len(ids)]
    if not first:
        first = [min(1, len(ids))]

    def piece(start: int, end: int) -> tuple[list[int], list[int]]:
        return ids[start:end], segments[start:end]

    end_of_first = first[-1] + 1
    return Template(
        before=piece(0, first[0]),
        between=piece(end_of_first, second[0]) if pair else ([], []),
        after=piece(second[-1] + 1, len(ids)) if pair else piece(end_of_first, len(ids)),
        segment=segments[first[0]] if segments else 0,
        pair_segment=segments[second[0]] if pair else 0,
    )
