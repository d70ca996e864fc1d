"""Tags of words: a letter, a separator and a label."""

from __future__ import annotations

from functools import lru_cache

OUTSIDE = "O"
"""The tag of words outside all entities."""

# BILOU says last and unit, BMEWO says middle and whole.
_ALIASES = {"L": "E", "U": "S", "W": "S", "M": "I"}
PREFIXES = frozenset("BIES") | frozenset(_ALIASES)
Parts = tuple[str, str]


def is_prefixed(tag: str) -> bool:
    """Whether a tag begins with a letter of a scheme and a separator."""
    return tag[:1] in PREFIXES and tag[1:2] in ("-", "_")


@lru_cache(maxsize=10_000)
def parts_of(tag: str) -> Parts:
    """The letter and the label of a tag."""
    letter, rest = tag[:1], tag[1:]
    label = rest[1:] if rest.startswith("_") else rest.split("-", 1)[-1]
    return _ALIASES.get(letter, letter), label or "_"
