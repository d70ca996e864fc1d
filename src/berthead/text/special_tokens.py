"""The special tokens around one text or a pair."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
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


def check_templates(backend: Any) -> None:
    """Check that each special token of a template has its numbers: where one lacks them, the library would panic.

    A panic prints lines of its own before anybody can say what is wrong.

    Raises:
        ValueError: a token of a template is not among its special tokens, or has not one number for each of its texts.
    """
    if backend.post_processor is None:
        return
    for template in _templates(json.loads(backend.post_processor.__getstate__())):
        known = template.get("special_tokens", {})
        for piece in (*template.get("single", ()), *template.get("pair", ())):
            name = piece.get("SpecialToken", {}).get("id")
            if name is None:
                continue
            ids = known.get(name, {}).get("ids", ())
            if not ids or len(ids) != len(known[name].get("tokens", ids)):
                raise ValueError(f'the template of its post_processor uses "{name}", which has no number there')


def _templates(state: Any) -> Iterator[Mapping[str, Any]]:
    """The templates of a post-processor, or of several in a row."""
    if isinstance(state, dict):
        if state.get("type") == "TemplateProcessing":
            yield state
        for one in state.get("processors", ()):
            yield from _templates(one)


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
