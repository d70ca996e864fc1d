"""A linear-chain conditional random field over the words of a text.

Source: Lafferty et al. 2001, "Conditional Random Fields: Probabilistic Models for Segmenting and Labeling Sequence
Data".
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from berthead.data import tags as tagging
from berthead.model.heads import TokenHead
from berthead.records import FloatArray, IntArray
from berthead.tasks.classify import softmax

# Added to the score of a step that no tag sequence may take.
IMPOSSIBLE = -1e4
# Texts whose likelihoods are computed together: each step holds texts * tags * tags numbers.
TEXTS_AT_ONCE = 256


class Field(NamedTuple):
    """The field's scores, with those of impossible steps far below all others.

    Args:
        first: of the first tag, [tags].
        last: of the last tag, [tags].
        step: of a tag (column) after another (row), [tags, tags].
    """

    first: Tensor
    last: Tensor
    step: Tensor

    @classmethod
    def of(cls, head: TokenHead, tags: tuple[str, ...]) -> Field:
        """The scores that a head holds, on the CPU, where logits and targets are."""
        first, step = (torch.from_numpy(part) for part in rules(tags))
        return cls(head.first.cpu() + ~first * IMPOSSIBLE, head.last.cpu(), head.step.cpu() + ~step * IMPOSSIBLE)

    def losses(self, logits: Tensor, targets: Tensor, sizes: Sequence[int]) -> Tensor:
        """Negative log-likelihood of each text's tag sequence.

        Args:
            logits: of all words, [words, tags].
            targets: tag numbers, int64 [words].
            sizes: words of each text.

        Returns:
            [texts].
        """
        parts = logits.split_with_sizes(list(sizes)), targets.split_with_sizes(list(sizes))
        some = [
            self._losses(*(part[start : start + TEXTS_AT_ONCE] for part in parts))
            for start in range(0, len(sizes), TEXTS_AT_ONCE)
        ]
        return torch.cat(some)

    def _losses(self, logits: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
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

    def path(self, logits: FloatArray) -> tuple[IntArray, FloatArray]:
        """The likeliest tags of a text's words, int64 [words], and their probabilities, [words]."""
        first, last, step = (part.detach().numpy() for part in self)
        path = tagging.viterbi(logits, first, step, last)
        return path, marginals(logits, first, step, last)[np.arange(len(path)), path]


@lru_cache(maxsize=64)
def rules(tags: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """`tags.allowed` of a task's tags, which is asked for every text."""
    return tagging.allowed(tags)


def marginals(emissions: FloatArray, start: FloatArray, step: FloatArray, end: FloatArray) -> FloatArray:
    """The probability of each tag at each word in a linear-chain conditional random field.

    Args:
        emissions: scores of tags, [words, tags].
        start: of the first tag, [tags].
        step: of a tag after another, [tags, tags].
        end: of the last tag, [tags].

    Returns:
        float [words, tags]; each row sums to 1.
    """
    forward, backward = (np.empty(emissions.shape) for _ in range(2))
    forward[0], backward[-1] = start + emissions[0], end
    for place in range(1, len(emissions)):
        forward[place] = np.logaddexp.reduce(forward[place - 1][:, None] + step, 0) + emissions[place]
    for place in range(len(emissions) - 2, -1, -1):
        backward[place] = np.logaddexp.reduce(step + emissions[place + 1] + backward[place + 1], 1)
    return softmax(forward + backward)
