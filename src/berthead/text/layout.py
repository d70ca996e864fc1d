"""The layout of many inputs: from rows of tokens to units, and from units to inputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from berthead.records import IntArray, Pack
from berthead.text.tokenizer import Encoded
from berthead.text.windows import EncodedExample


class Layout:
    """Inputs as one flat list of rows and one flat list of units.

    Args:
        inputs: the encoded examples.

    Attributes:
        rows: the rows of all inputs.
        row_starts: each input's first row, and the end of the last, int64 [inputs + 1].
        unit_starts: each input's first unit, and the end of the last, int64 [inputs + 1].
        by_token: whether units are tokens; otherwise each row belongs to one unit.
        plain: whether every input is one row with one unit.
    """

    def __init__(self, inputs: Sequence[EncodedExample]) -> None:
        self.rows: list[Encoded] = [row for one in inputs for row in one.rows]
        self.row_starts = _edges([len(one.rows) for one in inputs])
        self.unit_starts = _edges([one.n_units for one in inputs])
        self.by_token = bool(inputs) and inputs[0].units is not None
        if self.by_token:
            self._token = np.concatenate([one.units.token for one in inputs if one.units is not None])
            window = [one.units.window + first for one, first in zip(inputs, self.row_starts, strict=False)
                      if one.units is not None]  # fmt: skip
            # Units are sorted by row: the units of a row are neighbours.
            self._row_units = np.searchsorted(np.concatenate(window), np.arange(len(self.rows) + 1))
        else:
            groups = [(0,) * len(one.rows) if one.groups is None else one.groups for one in inputs]
            self.unit_of_row = np.array(
                [first + group for first, one in zip(self.unit_starts, groups, strict=False) for group in one],
                dtype=np.int64,
            )
        self.plain = not self.by_token and len(self.rows) == len(inputs) == self.unit_starts[-1]

    @property
    def n_units(self) -> int:
        """Units of all inputs."""
        return int(self.unit_starts[-1])

    def units_in(self, pack: Pack) -> tuple[IntArray, IntArray]:
        """The token units in a pack.

        Args:
            pack: of `rows`.

        Returns:
            Unit numbers, and each one's token in the pack; both int64 [units in the pack].
        """
        firsts, ends = self._row_units[pack.row], self._row_units[pack.row + 1]
        units = ranges(firsts, ends)
        return units, self._token[units] + np.repeat(pack.starts[:-1], ends - firsts)

    @property
    def token_units(self) -> tuple[IntArray, IntArray]:
        """The row of each token unit, and its token in that row; both int64 [units]."""
        return np.repeat(np.arange(len(self.rows)), np.diff(self._row_units)), self._token

    def units_of(self, inputs: IntArray) -> IntArray:
        """Unit numbers of these inputs, in order."""
        return ranges(self.unit_starts[inputs], self.unit_starts[inputs + 1])

    def rows_of(self, inputs: IntArray) -> IntArray:
        """Row numbers of these inputs, in order."""
        return ranges(self.row_starts[inputs], self.row_starts[inputs + 1])


def ranges(firsts: IntArray, ends: IntArray) -> IntArray:
    """The concatenated ranges from each first to its end.

    Example:
        >>> ranges(np.array([5, 0]), np.array([7, 1])).tolist()
        [5, 6, 0]
    """
    sizes = ends - firsts
    return np.repeat(firsts - _edges(sizes)[:-1], sizes) + np.arange(sizes.sum())


def _edges(sizes: Sequence[int] | IntArray) -> IntArray:
    return np.concatenate([[0], np.cumsum(np.asarray(sizes, dtype=np.int64))]).astype(np.int64)
