"""Bounds checks of token numbers against an encoder's tables: of a tokenizer at loading, of each pack before computing.

Kernels do not check again: a token number outside a table would make them read outside of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from berthead.errors import ModelError
from berthead.records import IntArray, Pack
from berthead.text.tokenizer import Tokenizer

_OF_THIS_ENCODER = "Use the tokenizer that was saved with this encoder."


class Tables(Protocol):
    """The sizes of an encoder's tables; its config is one of these.

    Attributes:
        vocabulary: rows of the table of tokens.
        segments: rows of the table of token types; 0: no table, and token types are not read.
        positions: the longest row in tokens.
    """

    @property
    def vocabulary(self) -> int: ...  # noqa: D102
    @property
    def segments(self) -> int: ...  # noqa: D102
    @property
    def positions(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class TableSizes:
    """`Tables` without an encoder.

    Args:
        vocabulary: rows of the table of tokens.
        segments: rows of the table of token types; 0: no table.
        positions: the longest row in tokens.
    """

    vocabulary: int
    segments: int
    positions: int


def check_tokenizer(tokenizer: Tokenizer, tables: Tables, where: str, *, pairs: bool) -> None:
    """Check that everything a tokenizer can return has a row in the encoder's tables.

    Args:
        tokenizer: of the folder.
        tables: of the encoder.
        where: the folder or flag, for errors.
        pairs: whether pairs of texts are read, too.

    Raises:
        ModelError: a token number or token type outside its table, or more special tokens than a row can hold.
    """
    if tokenizer.largest_id >= tables.vocabulary:
        saw = f"its tokenizer gives token numbers up to {tokenizer.largest_id}"
        allowed = f"at most {tables.vocabulary - 1}: the table of tokens has {tables.vocabulary} rows"
        raise ModelError(where, saw, allowed, _OF_THIS_ENCODER)
    for pair in (False, True) if pairs else (False,):
        what, most = "a pair" if pair else "a text", max(tokenizer.token_types(pair=pair))
        if 0 < tables.segments <= most:
            allowed = f"0 to {tables.segments - 1}: type_vocab_size is {tables.segments}"
            fix = f"Correct type_id in the post_processor of tokenizer.json. {_OF_THIS_ENCODER}"
            raise ModelError(where, f"its tokenizer gives token type {most} in {what}", allowed, fix)
        special = tokenizer.special_tokens(pair=pair)
        if special > tables.positions:
            saw = f"its tokenizer puts {special} special tokens around {what}"
            raise ModelError(where, saw, f"fewer than the {tables.positions} of a row", _OF_THIS_ENCODER)


def check_pack(pack: Pack, tables: Tables) -> None:
    """Check all indices of a pack: its rows among its tokens, and its tokens in the encoder's tables.

    Args:
        pack: the rows.
        tables: of the encoder.

    Raises:
        ModelError: an index is out of bounds; the message names row and token.

    Example:
        >>> check_pack(Pack(*map(np.array, ([7, 2], [0, 0], [0, 1], [0, 2], [0]))), TableSizes(10, 2, 6))
    """
    tokens = len(pack.ids)
    _check_starts(pack.starts, tokens, tables.positions)
    _check_numbers(pack, "token number", pack.ids, tables.vocabulary, "the table of tokens")
    _check_numbers(pack, "token type", pack.segments, tables.segments, "the table of token types")
    _check_numbers(pack, "position", pack.positions, tables.positions, "the table of positions")


def _check_starts(starts: IntArray, tokens: int, positions: int) -> None:
    fix = "Make packs with berthead.text.packing.pack."
    if starts.dtype != np.int64 or starts.ndim != 1 or len(starts) < 2 or starts[0] != 0 or starts[-1] != tokens:
        saw = f"starts are {_shown(starts)}, of {tokens} tokens"
        raise ModelError("pack", saw, "int64 from 0 to the number of tokens, for one row or more", fix)
    lengths = np.diff(starts)
    # As whole numbers without a sign the negative ones are large.
    if int((lengths - 1).view(np.uint64).max()) >= positions:
        row = int(np.argmax((lengths < 1) | (lengths > positions)))
        raise ModelError(f"row {row} of the pack", f"has {lengths[row]} tokens", f"1 to {positions}", fix)


def _check_numbers(pack: Pack, what: str, values: IntArray, rows: int, table: str) -> None:
    if values.dtype != np.int64 or values.shape != (len(pack.ids),):
        saw = f"a {what} a token is {_shown(values)}"
        raise ModelError("pack", saw, f"int64 [{len(pack.ids)}]", "Make packs with berthead.text.packing.pack.")
    if rows and int(values.view(np.uint64).max()) >= rows:
        token = int(np.argmax((values < 0) | (values >= rows)))
        row = int(np.searchsorted(pack.starts, token, side="right")) - 1
        saw = f"token {token - int(pack.starts[row])} has the {what} {values[token]}"
        allowed = f"0 to {rows - 1}: {table} has {rows} rows"
        raise ModelError(f"row {row} of the pack", saw, allowed, _OF_THIS_ENCODER)


def _shown(array: Any) -> str:
    return f"{array.dtype} {list(array.shape)}"
