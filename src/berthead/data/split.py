"""Seeded splits of examples: into fitted and held-out rows, and into folds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from berthead.records import Example, IntArray


def hold_out(
    examples: Sequence[Example], share: float, seed: int, group_of: Callable[[Example], Any], *, by_pair: bool = False
) -> tuple[list[Example], list[Example]]:
    """Split examples into fitted and held-out ones.

    Equal texts, and questions about one context, stay on one side; every group has the same share held out.

    Args:
        examples: all examples.
        share: share held out, above 0 and below 1.
        seed: of the random choice.
        group_of: the group of an example, such as its label.
        by_pair: rows with the same second text, such as a context, stay on one side.

    Returns:
        Fitted and held-out examples, each in the given order.
    """
    twins = _twins(examples, by_pair)
    groups = _by_group(examples, twins, group_of)
    random = np.random.default_rng(seed)
    held: set[int] = set()
    rounding = 0.0
    for members in groups:
        # What one group lost or gained by rounding the next one makes up: many small groups give their share too.
        wanted = share * len(members) + rounding
        # A group never goes to the held-out side as a whole.
        count = max(0, min(round(wanted), len(members) - 1))
        rounding = min(max(wanted - count, -0.5), 0.5)
        for index in random.permutation(len(members))[:count]:
            held.update(members[index])
    # Nor does a label whose texts all stand under other labels too.
    kept = {repr(group_of(example)) for number, example in enumerate(examples) if number not in held}
    for numbers in twins:
        labels = {repr(group_of(examples[number])) for number in numbers}
        if not labels <= kept:
            held.difference_update(numbers)
            kept |= labels
    fitted = [example for number, example in enumerate(examples) if number not in held]
    return fitted, [examples[number] for number in sorted(held)]


def folds(
    examples: Sequence[Example], count: int, seed: int, group_of: Callable[[Example], Any], *, by_pair: bool = False
) -> IntArray:
    """The fold of each example: each is left out once by a head that is fitted on the others.

    Equal texts, and questions about one context, are in one fold; every group is spread evenly.

    Args:
        examples: all examples.
        count: of folds.
        seed: of the random choice.
        group_of: the group of an example, such as its label.
        by_pair: rows with the same second text, such as a context, are in one fold.

    Returns:
        Fold numbers from 0, int64 [examples].

    Example:
        >>> rows = [Example(text=text, target=label) for label in "ab" for text in "uvwx"]
        >>> np.bincount(folds(rows, 2, 0, lambda row: row.target)).tolist()
        [4, 4]
    """
    random = np.random.default_rng(seed)
    fold_of = np.zeros(len(examples), dtype=np.int64)
    dealt = 0
    for members in _by_group(examples, _twins(examples, by_pair), group_of):
        # The next group goes on where the last one ended: many small groups give equal folds too.
        for index in random.permutation(len(members)):
            fold_of[members[index]] = dealt % count
            dealt += 1
    return fold_of


def _twins(examples: Sequence[Example], by_pair: bool) -> list[list[int]]:
    """The numbers of examples that belong together, because they have the same text, or the same second text."""
    twins: dict[Any, list[int]] = defaultdict(list)
    for number, example in enumerate(examples):
        twins[example.pair if by_pair else (example.text, example.pair)].append(number)
    return list(twins.values())


def _by_group(
    examples: Sequence[Example], twins: Sequence[list[int]], group_of: Callable[[Example], Any]
) -> list[list[list[int]]]:
    """The twins of each group, in the order of the groups' names."""
    groups: dict[Any, list[list[int]]] = defaultdict(list)
    for numbers in twins:
        groups[repr(group_of(examples[numbers[0]]))].append(numbers)
    return [groups[key] for key in sorted(groups)]
