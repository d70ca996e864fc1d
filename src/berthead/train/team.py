"""Processes that fit together: rows are divided, gradients are summed, cached activations are exchanged."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from berthead.engine.threads import available_threads
from berthead.errors import MachineError, UsageError
from berthead.model.units import Compute
from berthead.records import FloatArray, IntArray, Pack
from berthead.train.optim import Optimiser


@dataclass(frozen=True, slots=True)
class Team:
    """The processes of a fit, as seen by one of them; a single process exchanges nothing.

    Args:
        rank: the number of this process, from 0.
        size: the number of processes.
        local_rank: its number among the processes of this machine.
        local_size: the number of processes on this machine.
        ends_early: whether this process ends after training, while another one returns the function.
        why: says why an exchange failed: what happened to the others.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    ends_early: bool = False
    why: Callable[[Exception], MachineError] | None = None

    def threads(self, wanted: int | None) -> int:
        """Processor threads of this process: its part of the machine's threads."""
        return max(1, (wanted or available_threads()) // self.local_size)

    def share(self, lengths: Sequence[int] | IntArray) -> IntArray:
        """Which rows of a step this process computes; all processes get about as many tokens.

        Args:
            lengths: tokens of each row.

        Returns:
            Row numbers, ascending; every row belongs to one process.

        Example:
            >>> [Team(rank, 2).share([9, 2, 3, 4]).tolist() for rank in range(2)]
            [[0], [1, 2, 3]]
        """
        loads, mine = [0] * self.size, list[int]()
        for row in np.argsort(-np.asarray(lengths), kind="stable"):
            least = loads.index(min(loads))
            loads[least] += int(lengths[row])
            if least == self.rank:
                mine.append(int(row))
        return np.array(sorted(mine), dtype=np.int64)

    def seed(self, *numbers: int) -> None:
        """Seed torch, so that each process has its own dropout, whatever it has computed before."""
        (drawn,) = np.random.SeedSequence((*numbers, self.rank)).generate_state(1, np.uint64)
        torch.manual_seed(int(drawn >> np.uint64(1)))

    def sum(self, optimiser: Optimiser, loss: float, read: Tensor | None) -> float:
        """Sum the gradients of all processes in every process, as if it had computed all rows.

        Args:
            optimiser: of the trained parameters.
            loss: the sum of this process's losses.
            read: rows of the embedding table that the step reads, int64, ascending, the same everywhere.

        Returns:
            The sum of all losses.
        """
        if self.size == 1:
            return loss
        learning, table = list(optimiser.named.values()), optimiser.table
        has_grad = [one.grad is not None for one in learning] + [table is not None and table.grad is not None]
        known = torch.tensor([loss, *has_grad], dtype=torch.float64)
        self._all_reduce(known)
        total, *counts, count_of_table = known.tolist()
        # Parameters without a gradient in any process, such as frozen blocks, have none afterwards either.
        wanted = [one for one, count in zip(learning, counts, strict=True) if count]
        grads = [torch.zeros_like(one) if one.grad is None else one.grad for one in wanted]
        if table and count_of_table and read is not None:
            table.bring_up(read)
            grads.append(table.grad_of(read))
        flat = torch.cat([one.reshape(-1) for one in grads])
        self._all_reduce(flat)
        parts = flat.split_with_sizes([one.numel() for one in grads])
        summed = [part.view_as(one) for part, one in zip(parts, grads, strict=True)]
        if table and count_of_table and read is not None:
            table.take_grad(read, summed.pop())
        for parameter, grad in zip(wanted, summed, strict=True):
            parameter.grad = grad
        return float(total)

    def spread(self, compute: Compute, packs: Iterable[Pack]) -> Compute:
        """A function for these packs, called in this order; each process computes some of them for all.

        Args:
            compute: a pack to its values, float32 [rows or tokens, width].
            packs: the same in every process.

        Returns:
            The function.
        """
        if self.size == 1:
            return compute
        ahead, known = iter(packs), deque[FloatArray]()

        def values_of(pack: Pack) -> FloatArray:
            if not known:
                some = list(islice(ahead, self.size))
                mine = compute(some[self.rank]) if self.rank < len(some) else np.empty((0, 0), dtype=np.float32)
                known.extend(self._gathered(mine)[: len(some)])
            return known.popleft()

        return values_of

    def gather(self, text: str) -> list[str]:
        """The text of each process, in order of rank."""
        if self.size == 1:
            return [text]
        return [one.tobytes().decode() for one in self._gathered_bytes(np.frombuffer(text.encode(), dtype=np.uint8))]

    def every(self, holds: bool) -> bool:
        """Whether something holds in every process."""
        return set(self.gather(str(holds))) == {"True"}

    def agree(self, what: str) -> None:
        """Check that all processes have the same fit.

        Raises:
            UsageError: the processes have different fits.
        """
        if len(set(self.gather(what))) > 1:
            saw = "the processes were not given the same data, encoder and options"
            raise UsageError("fit", saw, "the same command for all of them")

    def _gathered(self, mine: FloatArray) -> list[FloatArray]:
        """The arrays of all processes, [rows, width], of any lengths."""
        shapes = self._gathered_bytes(np.array(mine.shape, dtype=np.int64))
        values = self._gathered_bytes(np.ascontiguousarray(mine, np.float32))
        pairs = zip(values, shapes, strict=True)
        return [value.view(np.float32).reshape(shape.view(np.int64)) for value, shape in pairs]

    def _gathered_bytes(self, mine: np.ndarray) -> list[np.ndarray]:
        """The bytes of each process's array, uint8 [bytes]."""
        raw = torch.from_numpy(mine.reshape(-1).view(np.uint8).copy())
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with self._exchange():
            dist.all_gather(lengths, torch.tensor([len(raw)]))
            longest = max(int(length) for length in lengths)
            found = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(found, torch.cat((raw, raw.new_zeros(longest - len(raw)))))
        return [one[: int(length)].numpy() for one, length in zip(found, lengths, strict=True)]

    def _all_reduce(self, values: Tensor) -> None:
        with self._exchange():
            dist.all_reduce(values)

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        """If an exchange fails, raise an error that says which process died."""
        try:
            yield
        except RuntimeError as error:
            if self.why:
                raise self.why(error) from error
            saw = "another process of this fit has ended"
            raise MachineError("fit", saw, "", "Its error is shown above.") from error


ALONE = Team()
"""The team of a process that fits by itself."""
