"""CUDA graphs for small packs: an encoder's launches are recorded once for each of a few sizes, and replayed."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from berthead.model.encoder import Encoder
from berthead.model.tensors import RowGroup, TensorPack, groups_of
from berthead.records import Pack

# Packs up to this size are replayed, tokens rounded up to the next step: at most 8 recordings.
STEP_TOKENS = 64
MOST_TOKENS = 512
MOST_ROWS = 32

Replay = Callable[[], Tensor]
Record = Callable[[Callable[[], Tensor]], Replay]
"""A function that always reads the same tensors -> what computes it again from what they hold then."""


class Graphs:
    """An encoder replayed from CUDA graphs: launching the kernels of a small pack takes longer than computing them.

    Args:
        encoder: its attention reads row lengths on the device, so they change no shapes.
        device: its device.
        record: records its launches.
    """

    def __init__(self, encoder: Encoder, device: torch.device, record: Record) -> None:
        self.encoder, self.device, self.record = encoder, device, record
        # By size: the input tensors, and the replay; None: this size cannot be recorded.
        self._kept: dict[int, tuple[TensorPack, Replay] | None] = {}

    def encoded(self, pack: Pack) -> tuple[Tensor, TensorPack] | None:
        """A pack through the encoder.

        Args:
            pack: rows laid end to end.

        Returns:
            The last vectors [tokens, width], valid until the next pack, and the pack on the device; None:
            it is too large to be replayed.
        """
        tokens, rows = len(pack.ids), len(pack.row)
        if tokens > MOST_TOKENS or rows > MOST_ROWS:
            return None
        size = rounded(tokens)
        given = TensorPack.from_pack(padded(pack, size), self.device)
        if size not in self._kept:
            self._kept[size] = self._recorded(given, size)
        kept = self._kept[size]
        if kept is None:
            return None
        read, replay = kept
        for place, tensor in zip(read[:-1], given[:-1], strict=True):
            place.copy_(tensor)
        ids, segments, positions = (tensor[:tokens] for tensor in given[:3])
        own = TensorPack(ids, segments, positions, given.starts[:rows], given.lengths[:rows], groups_of(pack))
        return replay()[:tokens], own

    def _recorded(self, given: TensorPack, size: int) -> tuple[TensorPack, Replay] | None:
        # The longest row may be the whole pack, so the recording works for rows of any lengths.
        read = TensorPack._make([*(tensor.clone() for tensor in given[:-1]), (RowGroup(0, 1, size),)])
        try:
            return read, self.record(lambda: self.encoder(read))
        except RuntimeError:  # this GPU or torch cannot record: packs are computed like larger ones
            return None


# torch records one graph at a time.
_RECORDING = threading.Lock()


def rounded(tokens: int) -> int:
    """The recorded size for a pack of this many tokens.

    Example:
        >>> rounded(1), rounded(64), rounded(65)
        (64, 64, 128)
    """
    return -(-tokens // STEP_TOKENS) * STEP_TOKENS


def padded(pack: Pack, tokens: int) -> Pack:
    """A pack padded to a number of tokens and `MOST_ROWS` + 1 rows.

    Args:
        pack: with at most that many tokens and `MOST_ROWS` rows.
        tokens: the number of tokens.

    Returns:
        The same rows, then one row of all added tokens, then empty rows: no row of the pack attends to an added token.
    """
    starts = np.full(MOST_ROWS + 2, tokens)
    starts[: len(pack.starts)] = pack.starts
    more = (0, tokens - len(pack.ids))
    ids, segments, positions = (np.pad(array, more) for array in (pack.ids, pack.segments, pack.positions))
    return Pack(ids, segments, positions, starts, pack.row)


def recorded(function: Callable[[], Tensor]) -> Replay:
    """Record the launches of a function on the current CUDA device.

    Args:
        function: reads the same tensors in every call, and does not synchronise.

    Returns:
        A function that launches everything again, at once.
    """
    usual, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(usual)
    with _RECORDING:
        try:
            with torch.cuda.stream(side):
                function()  # set-up of the first call is not recorded
            graph = torch.cuda.CUDAGraph()
            # Other threads compute on their own GPUs meanwhile.
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                result = function()
        finally:
            torch.cuda.set_stream(usual)  # a failed recording leaves its own stream set
    usual.wait_stream(side)

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
