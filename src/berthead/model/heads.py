"""Predict_omega: the encoder's vectors to logits, with pooling of tokens and of windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from berthead.model.tensors import TensorPack
from berthead.model.units import Combine
from berthead.records import FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class Pooling:
    """How the tokens of a row become one vector.

    Args:
        pool: the encoder's vectors [tokens, width] and their rows -> float32 [rows, width].
        words: the result of `pool` for a row, for the model folder's note.
        reads: the tokens whose vectors are read, int64, ascending; None: all. The encoder may skip the others.
        dense: whether a trained dense layer and an activation follow.
        sentence_transformers: its name in sentence-transformers' `1_Pooling/config.json`; None: it has none.
        normalised: the same pooling with vectors of length 1, a key of `POOLINGS`; None: there is none.
        format_version: the lowest one of a folder whose readers know it.
    """

    pool: Callable[[Tensor, TensorPack], Tensor]
    words: str
    reads: Callable[[TensorPack], Tensor | None] = lambda pack: None
    dense: bool = False
    sentence_transformers: str | None = None
    normalised: str | None = None
    format_version: int = 1


def first_vectors(hidden: Tensor, pack: TensorPack) -> Tensor:
    """The vector of each row's first token: [tokens, width] -> float32 [rows, width]."""
    return hidden[pack.starts].float()


def row_means(hidden: Tensor, pack: TensorPack) -> Tensor:
    """The mean of each row's vectors: [tokens, width] -> float32 [rows, width]."""
    if hidden.is_cuda and not hidden.requires_grad:
        return segment_means(hidden, pack.lengths)
    means = [
        hidden[group.first : group.first + group.rows * group.length].view(group.rows, group.length, -1).float().mean(1)
        for group in pack.groups
    ]
    return means[0] if len(means) == 1 else torch.cat(means)


def segment_means(hidden: Tensor, lengths: Tensor) -> Tensor:
    """`row_means` in one launch for any number of lengths: on a GPU a launch takes longer than the sum."""
    return torch.segment_reduce(hidden.float(), "mean", lengths=lengths, unsafe=True)  # unsafe: no check, no sync


def first_of_length_1(hidden: Tensor, pack: TensorPack) -> Tensor:
    """`first_vectors`, each divided by its length."""
    return functional.normalize(first_vectors(hidden, pack))


def mean_of_length_1(hidden: Tensor, pack: TensorPack) -> Tensor:
    """`row_means`, each divided by its length."""
    return functional.normalize(row_means(hidden, pack))


def _starts(pack: TensorPack) -> Tensor:
    return pack.starts


POOLINGS = {
    "cls": Pooling(
        first_vectors, "a row's first vector", _starts, sentence_transformers="cls_token", normalised="cls_normalised"
    ),
    "mean": Pooling(
        row_means, "the mean of a row's vectors", sentence_transformers="mean_tokens", normalised="mean_normalised"
    ),
    "pooler": Pooling(first_vectors, "a row's first vector", _starts, dense=True),
    "cls_normalised": Pooling(
        first_of_length_1, "a row's first vector divided by its length", _starts, format_version=6
    ),
    "mean_normalised": Pooling(mean_of_length_1, "the mean of a row's vectors divided by its length", format_version=6),
}
WINDOW_POOLINGS = ("mean", "max", "attention")
POOLED: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "gelu": functional.gelu, "relu": functional.relu}


class Head(Protocol):
    """The interface of a head: any torch module with this forward; the other parts are optional.

    If `forward` is `classify` after `pool`, a fit with a frozen encoder uses cached vectors. `fold_input` allows these
    vectors to be standardised.
    """

    level: ClassVar[str]
    """`row`: forward gives one answer a row; `token`: one a token."""

    def __call__(self, hidden: Tensor, pack: TensorPack) -> Tensor:
        """The encoder's vectors [tokens, width] to logits, float32 [rows or tokens, outputs]."""
        ...


class RowHead(nn.Module):
    """One vector a row, then a linear layer.

    Args:
        width: size of a token's vector.
        outputs: numbers a row.
        pooling: one of POOLINGS: `cls` (the first token), `mean` (of all tokens), each with `-normalised` for vectors
            of length 1, or `pooler` (the first token through BERT's own dense layer and activation, which starts from
            the checkpoint's weights and belongs to omega).
        dropout: share of the pooled vector dropped in training.
        windows: how the windows of a long text become one answer: `mean` or `max` of their logits, or `attention`
            (their mean, weighted by what a linear layer finds in each).
        pooled: the activation of the `pooler`'s dense layer, one of `POOLED`.

    Example:
        >>> RowHead(8, 3, "mean")
        RowHead(pooling=mean, 8 -> 3)
    """

    level: ClassVar[str] = "row"

    def __init__(
        self, width: int, outputs: int, pooling: str, dropout: float = 0.0, windows: str = "mean", pooled: str = "tanh"
    ) -> None:
        super().__init__()
        self.pooling, self.windows, self.pooled = pooling, windows, pooled
        self.dense = nn.Linear(width, width) if POOLINGS[pooling].dense else None
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, outputs)
        self.attend = nn.Linear(width, 1) if windows == "attention" else None
        for layer in (self.out, self.attend):
            if layer is not None:
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.scale: float | Tensor = 1.0
        self.shift: float | Tensor = 0.0

    def forward(self, hidden: Tensor, pack: TensorPack) -> Tensor:
        """Logits of the pack's rows.

        Args:
            hidden: the encoder's vectors, [tokens, width].
            pack: the rows they belong to.

        Returns:
            float32 [rows, outputs]; with window attention one column more, each window's weight.
        """
        return self.classify(self.pool(hidden, pack))

    def reads(self, pack: TensorPack) -> Tensor | None:
        """The tokens whose vectors the head reads, int64, ascending; None: all. The encoder may skip the others."""
        return POOLINGS[self.pooling].reads(pack)

    def pool(self, hidden: Tensor, pack: TensorPack) -> Tensor:
        """One vector a row, without trained parameters: [tokens, width] -> float32 [rows, width]."""
        return POOLINGS[self.pooling].pool(hidden, pack)

    def classify(self, pooled: Tensor) -> Tensor:
        """The trained part: [rows, width] -> [rows, outputs]."""
        if self.dense is not None:
            pooled = POOLED[self.pooled](self.dense(pooled))
        dropped = self.dropout(pooled)
        logits: Tensor = self.out(dropped)
        if self.is_rescaled:
            logits = logits * self.scale + self.shift
        return logits if self.attend is None else torch.cat([logits, self.attend(dropped)], 1)

    def combine(self, logits: Tensor, unit_of_row: Tensor, units: int) -> Tensor:
        """One answer for the windows of each text.

        Args:
            logits: the output of `classify`, [rows, ...].
            unit_of_row: the text each row belongs to, int64 [rows].
            units: texts.

        Returns:
            [units, outputs].
        """
        outputs = self.out.out_features
        values, weights = logits[:, :outputs], logits[:, outputs:]
        if len(values) == units:
            return values  # rows are in the order of their texts, and every text has one row
        return pool_windows(values, unit_of_row, units, self.windows, weights)

    @property
    def is_linear(self) -> bool:
        """Whether `fold_input` can undo a change of scale of the input of `classify`."""
        return self.dense is None

    @property
    def format_version(self) -> int:
        """The lowest `format_version` of a folder whose readers know its pooling."""
        return POOLINGS[self.pooling].format_version

    def rescale(self, scale: float | FloatArray, shift: float | FloatArray) -> None:
        """Until `fold`, multiply the last layer's outputs, and add to them.

        Args:
            scale: the factor, or one for each output, [outputs].
            shift: what is added, as `scale`.
        """
        self.scale, self.shift = (
            self.out.bias.new_tensor(one) if isinstance(one, np.ndarray) else one for one in (scale, shift)
        )

    @property
    def is_rescaled(self) -> bool:
        """Whether `rescale` changes anything."""
        return isinstance(self.scale, Tensor) or (self.scale, self.shift) != (1.0, 0.0)

    @torch.no_grad()
    def fold(self) -> None:
        """Fold scale and shift into the last layer's weights."""
        scale, shift = (one.to(self.out.bias) if isinstance(one, Tensor) else one for one in (self.scale, self.shift))
        self.out.weight.mul_(scale[:, None] if isinstance(scale, Tensor) else scale)
        self.out.bias.mul_(scale).add_(shift)
        self.rescale(1.0, 0.0)

    def fold_input(self, mean: Tensor, deviation: Tensor) -> None:
        """Make the last layer read x instead of (x - mean) / deviation, each [width]."""
        _fold_input(self.out, mean, deviation)
        if self.attend is not None:
            _fold_input(self.attend, mean, deviation)

    def extra_repr(self) -> str:
        """Pooling and sizes."""
        return f"pooling={self.pooling}, {self.out.in_features} -> {self.out.out_features}"

    def __repr__(self) -> str:
        return f"RowHead({self.extra_repr()})"


class TokenHead(nn.Module):
    """A linear layer on each token's vector.

    Args:
        width: size of a token's vector.
        outputs: numbers a token.
        dropout: share of the vector dropped in training.
        crf: hold the scores of a linear-chain conditional random field: of the first and the last label, and of each
            transition (Lafferty et al. 2001). The task reads them, `forward` does not.

    Example:
        >>> TokenHead(8, 3)
        TokenHead(8 -> 3)
    """

    level: ClassVar[str] = "token"
    is_linear: ClassVar[bool] = True

    def __init__(self, width: int, outputs: int, dropout: float = 0.0, crf: bool = False) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, outputs)
        nn.init.normal_(self.out.weight, std=0.02)
        nn.init.zeros_(self.out.bias)
        self.crf = crf
        if crf:
            self.first = nn.Parameter(torch.zeros(outputs))
            self.last = nn.Parameter(torch.zeros(outputs))
            self.step = nn.Parameter(torch.zeros(outputs, outputs))

    def forward(self, hidden: Tensor, pack: TensorPack) -> Tensor:
        """Logits of the pack's tokens, float32 [tokens, outputs]."""
        return self.classify(self.pool(hidden, pack))

    def pool(self, hidden: Tensor, pack: TensorPack) -> Tensor:
        """The vectors themselves, float32 [tokens, width]."""
        return hidden.float()

    def classify(self, vectors: Tensor) -> Tensor:
        """The trained part: [tokens, width] -> [tokens, outputs]."""
        logits: Tensor = self.out(self.dropout(vectors))
        return logits

    def fold_input(self, mean: Tensor, deviation: Tensor) -> None:
        """Make the layer read x instead of (x - mean) / deviation, each [width]."""
        _fold_input(self.out, mean, deviation)

    def __repr__(self) -> str:
        return f"TokenHead({'crf, ' if self.crf else ''}{self.out.in_features} -> {self.out.out_features})"


class JointHead(nn.Module):
    """A TokenHead and a RowHead on the same vectors: each token's logits are followed by those of its row.

    Args:
        tokens: for the tokens.
        row: for the row.

    Example:
        >>> JointHead(TokenHead(8, 3), RowHead(8, 2, "cls"))
        JointHead(TokenHead(8 -> 3), RowHead(pooling=cls, 8 -> 2))
    """

    level: ClassVar[str] = "token"

    def __init__(self, tokens: TokenHead, row: RowHead) -> None:
        super().__init__()
        self.tokens, self.row = tokens, row

    def forward(self, hidden: Tensor, pack: TensorPack) -> Tensor:
        """Logits of the pack's tokens, float32 [tokens, outputs of both]."""
        return self.classify(self.pool(hidden, pack))

    def pool(self, hidden: Tensor, pack: TensorPack) -> Tensor:
        """Each token's vector and its row's, float32 [tokens, 2 * width]."""
        rows = self.row.pool(hidden, pack).repeat_interleave(pack.lengths, 0)
        return torch.cat([self.tokens.pool(hidden, pack), rows], 1)

    def classify(self, vectors: Tensor) -> Tensor:
        """The trained part: [tokens, 2 * width] -> [tokens, outputs of both]."""
        token, row = vectors.chunk(2, 1)
        return torch.cat([self.tokens.classify(token), self.row.classify(row)], 1)

    @property
    def is_linear(self) -> bool:
        """Whether `fold_input` can undo a change of scale of the input of `classify`."""
        return self.row.is_linear

    def fold_input(self, mean: Tensor, deviation: Tensor) -> None:
        """Make both layers read x instead of (x - mean) / deviation, each [2 * width]."""
        means, deviations = mean.chunk(2), deviation.chunk(2)
        self.tokens.fold_input(means[0], deviations[0])
        self.row.fold_input(means[1], deviations[1])

    def __repr__(self) -> str:
        return f"JointHead({self.tokens!r}, {self.row!r})"


def pool_windows(values: Tensor, unit_of_row: Tensor, units: int, how: str, weights: Tensor) -> Tensor:
    """One answer for the windows of each text.

    Args:
        values: the windows' logits, [rows, outputs].
        unit_of_row: the text each window belongs to, int64 [rows].
        units: texts.
        how: `mean`, `max` or `attention`.
        weights: for `attention`, each window's score, [rows, 1].

    Returns:
        [units, outputs].

    Example:
        >>> one_text = torch.zeros(2, dtype=torch.int64)
        >>> pool_windows(torch.tensor([[1.0], [3.0]]), one_text, 1, "mean", torch.empty(2, 0))
        tensor([[2.]])
    """
    if how not in WINDOW_POOLINGS:
        raise ValueError(f"windows is {how!r}; expected one of {', '.join(WINDOW_POOLINGS)}")
    place = unit_of_row[:, None].expand_as(values)
    empty = values.new_zeros(units, values.shape[1])
    if how == "max":
        return empty.scatter_reduce(0, place, values, "amax", include_self=False)
    if how == "mean":
        return empty.scatter_reduce(0, place, values, "mean", include_self=False)
    most = weights.new_zeros(units, 1).scatter_reduce(0, unit_of_row[:, None], weights, "amax", include_self=False)
    raised = (weights - most.detach()[unit_of_row]).exp()
    total = raised.new_zeros(units, 1).index_add(0, unit_of_row, raised)
    return empty.index_add(0, unit_of_row, values * raised / total[unit_of_row])


def combined(head: Any, rows: Tensor, unit_of_row: Tensor, units: int) -> Tensor:
    """One answer a unit from its rows' logits, by the head's own `combine`, or their mean."""
    if hasattr(head, "combine"):
        values: Tensor = head.combine(rows, unit_of_row, units)
        return values
    return pool_windows(rows, unit_of_row, units, "mean", rows[:, :0])


def over_arrays(head: Any) -> Combine | None:
    """A head's `combine` for arrays, or None."""
    if not hasattr(head, "combine"):
        return None

    def combine(rows: FloatArray, unit_of_row: IntArray, units: int) -> FloatArray:
        with torch.inference_mode():
            values: FloatArray = head.combine(torch.from_numpy(rows), torch.from_numpy(unit_of_row), units).numpy()
        return values

    return combine


@torch.no_grad()
def _fold_input(linear: nn.Linear, mean: Tensor, deviation: Tensor) -> None:
    linear.weight.div_(deviation)
    linear.bias.sub_(linear.weight @ mean)
