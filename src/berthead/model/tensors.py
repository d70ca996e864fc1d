"""A Pack as tensors on a device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from berthead.model.config import EncoderConfig
from berthead.records import Pack
from berthead.text.bounds import check_pack


class RowGroup(NamedTuple):
    """Neighbouring rows of one length, whose attention is one product.

    Args:
        first: the first token of the group.
        rows: how many rows.
        length: tokens in each row.
    """

    first: int
    rows: int
    length: int


class TensorPack(NamedTuple):
    """A Pack as the encoder reads it.

    Args:
        ids: token numbers, int64 [tokens].
        segments: token types, int64 [tokens].
        positions: position in the row, int64 [tokens].
        starts: where each row starts, without the end of the last, int64 [rows].
        lengths: tokens in each row, int64 [rows].
        groups: neighbouring rows of equal length.
    """

    ids: Tensor
    segments: Tensor
    positions: Tensor
    starts: Tensor
    lengths: Tensor
    groups: tuple[RowGroup, ...]

    @classmethod
    def from_pack(cls, pack: Pack, device: torch.device | str = "cpu") -> TensorPack:
        """The same rows as tensors.

        Args:
            pack: rows laid end to end; rows of equal length that lie together are computed together.
            device: the tensors' device.

        Returns:
            The tensors and the groups of rows.
        """
        device = torch.device(device)

        def tensor(array: np.ndarray) -> Tensor:
            here = torch.from_numpy(np.ascontiguousarray(array))
            # From pinned memory a GPU copies while this thread continues.
            return here.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else here.to(device)

        return cls(
            tensor(pack.ids),
            tensor(pack.segments),
            tensor(pack.positions),
            tensor(pack.starts[:-1]),
            tensor(pack.lengths),
            groups_of(pack),
        )


def groups_of(pack: Pack) -> tuple[RowGroup, ...]:
    """A pack's rows in groups of equal length."""
    lengths = pack.lengths
    edges = np.flatnonzero(np.diff(lengths, prepend=-1, append=-1))
    return tuple(RowGroup(int(pack.starts[a]), int(b - a), int(lengths[a])) for a, b in pairwise(edges))


def check_rows(pack: TensorPack, config: EncoderConfig) -> None:
    """`check_pack` for tensors, for code that does not check bounds itself.

    Args:
        pack: the rows, on the CPU.
        config: of the encoder.

    Raises:
        ModelError: an index of the pack is out of bounds.
    """
    ids, segments, positions = pack.ids.numpy(), pack.segments.numpy(), pack.positions.numpy()
    starts = np.append(pack.starts.numpy(), len(ids))
    check_pack(Pack(ids, segments, positions, starts, row=starts[:-1]), config)


class _NoFirstValues(TorchFunctionMode):
    """Skips random initial values: on the meta device drawing them imports torch's compiler, which takes a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def shapes_only() -> Iterator[None]:
    """A context in which modules have shapes but no values, and need no memory."""
    with torch.device("meta"), _NoFirstValues():
        yield
