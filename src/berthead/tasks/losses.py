"""Losses in torch; nothing else in `tasks` imports torch, so that answers can be decoded without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from berthead.records import FloatArray
from berthead.tasks.crf import IMPOSSIBLE, rules

# Texts whose likelihoods are computed together: each step holds texts * tags * tags numbers.
TEXTS_AT_ONCE = 256


def cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    """Of each row: logits [rows, labels] and label numbers [rows] to [rows]."""
    return F.cross_entropy(logits, targets, weight=weights, reduction="none")


def binary_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    """Mean over the labels: logits and 0 or 1, both [rows, labels], to [rows]."""
    return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="none").mean(1)


def squared_errors(logits: Tensor, targets: Tensor, deviations: Sequence[float]) -> Tensor:
    """Squared errors in standard deviations, the mean over each row's known targets, [rows].

    Args:
        logits: [rows, targets].
        targets: as the logits; NaN: not known.
        deviations: of each target, in the unit of the logits.
    """
    known = ~targets.isnan()
    away = torch.where(known, logits - targets.nan_to_num(), 0.0) / logits.new_tensor(deviations)
    return (away**2).sum(1) / known.sum(1).clamp(min=1)


def word_losses(logits: Tensor, targets: Tensor, weights: Tensor | None, sizes: Sequence[int]) -> Tensor:
    """The sum of each text's words' cross-entropies, [texts]; `sizes`: the words of each."""
    each = cross_entropy(logits, targets, weights)
    return torch.stack([part.sum() for part in each.split_with_sizes(list(sizes))])


def window_losses(logits: Tensor, targets: Tensor, sizes: Sequence[int]) -> Tensor:
    """Cross-entropy of the start and of the end among the tokens of each window, mean over the windows, [examples].

    Args:
        logits: of start and end, [units, 2].
        targets: 1 where the answer starts, 1 where it ends, and the window, int64 [units, 3].
        sizes: units of each example.

    Returns:
        [examples].
    """
    key = torch.stack([_segments(sizes), targets[:, 2]], 1)
    windows, place = torch.unique_consecutive(key, dim=0, return_inverse=True)
    each = segment_losses(logits, targets[:, :2], place, len(windows)).mean(1)
    sums = each.new_zeros(len(sizes)).index_add(0, windows[:, 0], each)
    return sums / torch.bincount(windows[:, 0], minlength=len(sizes)).clamp_min(1)


def choice_losses(logits: Tensor, targets: Tensor, sizes: Sequence[int]) -> Tensor:
    """Cross-entropy among the choices of each question, [questions]; `sizes`: the choices of each."""
    return segment_losses(logits, targets, _segments(sizes), len(sizes))[:, 0]


def segment_losses(logits: Tensor, hot: Tensor, segment: Tensor, segments: int) -> Tensor:
    """Cross-entropy among the rows of each segment, column by column.

    Args:
        logits: [rows, columns].
        hot: 1 at the right row of each segment, [rows, columns].
        segment: of each row, int64 [rows].
        segments: how many.

    Returns:
        [segments, columns].

    Example:
        >>> segment_losses(torch.zeros(2, 1), torch.tensor([[1], [0]]), torch.tensor([0, 0]), 1)
        tensor([[0.6931]])
    """
    place = segment[:, None].expand_as(logits)
    empty = logits.new_zeros(segments, logits.shape[1])
    most = empty.scatter_reduce(0, place, logits.detach(), "amax", include_self=False)
    total = empty.index_add(0, segment, (logits - most[segment]).exp())
    return total.log() + most - empty.index_add(0, segment, torch.where(hot > 0, logits, 0.0))


def field_losses(head: Any, tags: tuple[str, ...], logits: Tensor, targets: Tensor, sizes: Sequence[int]) -> Tensor:
    """Negative log-likelihood of each text's tag sequence in a head's conditional random field.

    Args:
        head: holds the field's scores.
        tags: the task's.
        logits: of all words, [words, tags].
        targets: tag numbers, int64 [words].
        sizes: words of each text.

    Returns:
        [texts].
    """
    field = _Scores.of(head, tags)
    parts = logits.split_with_sizes(list(sizes)), targets.split_with_sizes(list(sizes))
    some = [
        field.losses(*(part[start : start + TEXTS_AT_ONCE] for part in parts))
        for start in range(0, len(sizes), TEXTS_AT_ONCE)
    ]
    return torch.cat(some)


def of_arrays(
    loss: Callable[[Tensor, Tensor, Sequence[int]], Tensor], logits: FloatArray, targets: np.ndarray,
    sizes: Sequence[int],
) -> FloatArray:  # fmt: skip
    """A loss of arrays, without gradients, float32 [examples]."""
    with torch.no_grad():
        values: FloatArray = loss(torch.from_numpy(logits), torch.from_numpy(targets), sizes).numpy()
    return values


class _Scores(NamedTuple):
    """The scores of `crf.Field` as tensors with gradients."""

    first: Tensor
    last: Tensor
    step: Tensor

    @classmethod
    def of(cls, head: Any, tags: tuple[str, ...]) -> _Scores:
        """The scores that a head holds, on the CPU, where logits and targets are."""
        first, step = (torch.from_numpy(part) for part in rules(tags))
        return cls(head.first.cpu() + ~first * IMPOSSIBLE, head.last.cpu(), head.step.cpu() + ~step * IMPOSSIBLE)

    def losses(self, logits: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """The loss of each text, [texts]."""
        lengths = torch.tensor([len(part) for part in logits])
        if not lengths.any():
            return torch.stack([part.sum() for part in logits])  # zeros that know where they came from
        emissions, wanted = pad_sequence(list(logits), batch_first=True), pad_sequence(list(targets), batch_first=True)
        total = self.first + emissions[:, 0]
        score = total.gather(1, wanted[:, :1])[:, 0]
        for place in range(1, emissions.shape[1]):
            inside = place < lengths
            onward = torch.logsumexp(total[:, :, None] + self.step, 1) + emissions[:, place]
            total = torch.where(inside[:, None], onward, total)
            now, before = wanted[:, place], wanted[:, place - 1]
            taken = self.step[before, now] + emissions[:, place].gather(1, now[:, None])[:, 0]
            score = score + torch.where(inside, taken, 0.0)
        final = wanted.gather(1, (lengths - 1).clamp_min(0)[:, None])[:, 0]
        losses = torch.logsumexp(total + self.last, 1) - score - self.last[final]
        return torch.where(lengths > 0, losses, 0.0)


def _segments(sizes: Sequence[int]) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(list(sizes)))
