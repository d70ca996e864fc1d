"""Notes on tagged rows: entities that are written otherwise than most."""

from __future__ import annotations

from collections.abc import Sequence

from berthead.data.entities import Entity, entities, shown_tags, unclosed
from berthead.data.tag_schemes import scheme_of
from berthead.records import Example


def ill_formed(examples: Sequence[Example]) -> list[str]:
    """A line about entities that are written otherwise than most."""
    scheme = scheme_of(example.target for example in examples)
    if scheme not in ("BIO", "BIOES"):
        return []

    def odd(tags: Sequence[str]) -> list[Entity]:
        if scheme == "BIOES":
            return unclosed(tags)
        return [one for one in entities(tags) if not tags[one.first].startswith("B")]

    found = [(example, entity) for example in examples for entity in odd(example.target)]
    if not found:
        return []
    (example, entity), more = found[0], len(found) - 1
    also = f", as {more:,} more are" if more else ""
    saw, rule = shown_tags(example.target, entity), "begin with B" if scheme == "BIO" else "have an end tag"
    return [f'misplaced: {example.where}: an entity is written "{saw}"{also}, and others {rule}; read as entities']
