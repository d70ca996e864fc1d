"""The seeded split of examples into fitted and held-out rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from berthead.records import Example


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
    twins: dict[Any, list[int]] = defaultdict(list)
    for number, example in enumerate(examples):
        twins[example.pair if by_pair else (example.text, example.pair)].append(number)
    groups: dict[Any, list[list[int]]] = defaultdict(list)
    for numbers in twins.values():
        groups[repr(group_of(examples[numbers[0]]))].append(numbers)
    random = np.random.default_rng(seed)
    held: set[int] = set()
    rounding = 0.0
    for key in sorted(groups):
        members = groups[key]
        # What one group lost or gained by rounding the next one makes up: many small groups give their share too.
        wanted = share * len(members) + rounding
        # A group never goes to the held-out side as a whole.
        count = max(0, min(round(wanted), len(members) - 1))
        rounding = min(max(wanted - count, -0.5), 0.5)
        for index in random.permutation(len(members))[:count]:
            held.update(members[index])
    # Nor does a label whose texts all stand under other labels too.
    kept = {repr(group_of(example)) for number, example in enumerate(examples) if number not in held}
    for numbers in twins.values():
        labels = {repr(group_of(examples[number])) for number in numbers}
        if not labels <= kept:
            held.difference_update(numbers)
            kept |= labels
    fitted = [example for number, example in enumerate(examples) if number not in held]
    return fitted, [examples[number] for number in sorted(held)]
