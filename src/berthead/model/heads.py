"""Predict_omega: the encoder's vectors to logits. Pooling lives here."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from berthead.model.tensors import TensorPack


class RowHead(nn.Module):
    """One vector a row, then a linear layer.

    Args:
        width: size of a token's vector.
        outputs: numbers wanted a row.
        pooling: `cls` (the first token), `mean` (of all tokens), or `pooler` (the first token through BERT's own
            dense + tanh layer, which starts from the checkpoint's weights and belongs to omega).
        dropout: share of the pooled vector dropped in training.

    Example:
        >>> RowHead(8, 3, "mean")
        RowHead(pooling=mean, 8 -> 3)
    """

    def __init__(self, width: int, outputs: int, pooling: str, dropout: float = 0.0) -> None:
        super().__init__()
        self.pooling = pooling
        self.dense = nn.Linear(width, width) if pooling == "pooler" else None
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, outputs)
        nn.init.normal_(self.out.weight, std=0.02)
        nn.init.zeros_(self.out.bias)
        self.scale, self.shift = 1.0, 0.0

    def forward(self, hidden: Tensor, pack: TensorPack) -> Tensor:
        """Logits of the pack's rows.

        Args:
            hidden: the encoder's vectors, [tokens, width].
            pack: the rows they belong to.

        Returns:
            float32 [rows, outputs].
        """
        return self.classify(self.pool(hidden, pack))

    def pool(self, hidden: Tensor, pack: TensorPack) -> Tensor:
        """One vector a row, before anything that learns: [tokens, width] -> float32 [rows, width]."""
        if self.pooling == "mean":
            return row_means(hidden, pack)
        return hidden[pack.starts].float()

    def classify(self, pooled: Tensor) -> Tensor:
        """The part that learns: [rows, width] -> [rows, outputs]."""
        if self.dense is not None:
            pooled = torch.tanh(self.dense(pooled))
        logits: Tensor = self.out(self.dropout(pooled))
        return logits if (self.scale, self.shift) == (1.0, 0.0) else logits * self.scale + self.shift

    @torch.no_grad()
    def fold(self) -> None:
        """Write scale and shift into the last layer's weights: the same function, without them."""
        self.out.weight.mul_(self.scale)
        self.out.bias.mul_(self.scale).add_(self.shift)
        self.scale, self.shift = 1.0, 0.0

    @torch.no_grad()
    def fold_input(self, mean: Tensor, deviation: Tensor) -> None:
        """Let the last layer read x where it was fitted on (x - mean) / deviation, each [width]."""
        self.out.weight.div_(deviation)
        self.out.bias.sub_(self.out.weight @ mean)

    def extra_repr(self) -> str:
        """Pooling and sizes."""
        return f"pooling={self.pooling}, {self.out.in_features} -> {self.out.out_features}"

    def __repr__(self) -> str:
        return f"RowHead({self.extra_repr()})"


def row_means(hidden: Tensor, pack: TensorPack) -> Tensor:
    """The mean of each row's vectors: [tokens, width] -> float32 [rows, width]."""
    means = [
        hidden[run.first : run.first + run.rows * run.length].view(run.rows, run.length, -1).float().mean(1)
        for run in pack.runs
    ]
    return means[0] if len(means) == 1 else torch.cat(means)
