"""What an encoder is made of: sizes, and which parts it has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Relative:
    """Attention that reads how far apart two tokens are, instead of or beside their positions.

    Args:
        kind: `bias` (a number a head and distance, added to the scores) or `disentangled` (vectors of the distances,
            multiplied with queries and keys).
        buckets: distances told apart; far ones share a bucket.
        max_distance: from here on all distances are one.
        shared: disentangled: distances go through the queries' and keys' own layers.
        terms: disentangled: `c2p` (content to position) and `p2c`.
        normed: disentangled: the distances' vectors are normalised first.
    """

    kind: str
    buckets: int
    max_distance: int
    shared: bool = True
    terms: tuple[str, ...] = ()
    normed: bool = False


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """Sizes and parts of BERT_theta; the defaults are BERT's.

    Args:
        vocabulary: token numbers.
        width: size of a token's vector.
        layers: transformer blocks that a token passes.
        heads: attention heads a block.
        inner: width inside the feed-forward network.
        positions: longest row in tokens.
        segments: token types; 0: none.
        family: model_type in config.json.
        activation: the feed-forward network's function.
        eps: added to the variance in layer norms.
        dropout: share dropped of the embeddings, in training.
        attention_dropout: share of attention weights dropped.
        output_dropout: share dropped of what attention adds, and of what the feed-forward network adds.
        inner_dropout: share dropped inside the feed-forward network.
        embedding: size of a vector in the embedding tables; None: width.
        projection: where embeddings of another size become as wide as the blocks: `before` or `after` their norm.
        first_position: the row of the position table for a row's first token; None: no such table.
        order: the block that computes each layer; empty: each has its own.
        group: blocks in a group of the checkpoint's names.
        norm_first: each part normalises what it reads, instead of what it adds to.
        gated: the feed-forward network multiplies two halves, one of them through the activation.
        attention_bias: linear layers of attention have biases.
        mlp_bias: those of the feed-forward network.
        norm_bias: layer norms.
        rotary: the base of the rotary positions of each layer; empty: none.
        local: how many tokens each way a layer sees; 0: all. Empty: all layers see all.
        relative: distances in attention, or None.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    inner: int
    positions: int
    segments: int
    family: str = "bert"
    activation: str = "gelu"
    eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    output_dropout: tuple[float, float] = (0.1, 0.1)
    inner_dropout: float = 0.0
    embedding: int | None = None
    projection: str | None = None
    first_position: int | None = 0
    order: tuple[int, ...] = ()
    group: int = 1
    norm_first: bool = False
    gated: bool = False
    attention_bias: bool = True
    mlp_bias: bool = True
    norm_bias: bool = True
    rotary: tuple[float, ...] = ()
    local: tuple[int, ...] = ()
    relative: Relative | None = None

    @property
    def blocks(self) -> int:
        """Blocks with parameters of their own."""
        return max(self.order) + 1 if self.order else self.layers
