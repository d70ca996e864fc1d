"""Which parts of a job a process computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from berthead.errors import UsageError


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several processes that share a job: it computes every `of`-th part.

    Args:
        number: from 1.
        of: the number of shards.
        alone: it computes all parts, and no other process may work in the folder.

    Example:
        >>> [part for part in range(6) if Shard.parse("2/3").owns(part)]
        [1, 4]
    """

    number: int = 1
    of: int = 1
    alone: bool = True

    @classmethod
    def parse(cls, text: str) -> Self:
        """A shard from `K/N`; UsageError if K is above N."""
        number, of = map(int, text.split("/"))
        if not 1 <= number <= of:
            raise UsageError("--shard", f"is {text}", f"1/{of} to {of}/{of}")
        return cls(number, of, alone=False)

    def owns(self, part: int) -> bool:
        """Whether a part is computed by this process."""
        return part % self.of == self.number - 1

    def share(self, rows: int, part_rows: int) -> int:
        """The number of rows that this process computes."""
        firsts = range((self.number - 1) * part_rows, rows, self.of * part_rows)
        return sum(min(part_rows, rows - first) for first in firsts)

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"
