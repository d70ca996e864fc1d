"""The config of an encoder: its sizes and parts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Relative:
    """Relative positions in attention, instead of or beside absolute ones.

    Args:
        kind: `bias` (a number a head and distance, added to the scores) or `disentangled` (vectors for distances,
            multiplied with queries and keys).
        buckets: number of distance buckets; far distances share one.
        max_distance: distances from here on count as equal.
        shared: disentangled: distances use the layers of queries and keys.
        terms: disentangled: `c2p` (content to position) and `p2c`.
        normed: disentangled: the distance vectors are normalised first.
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
        vocabulary: number of tokens in the vocabulary.
        width: size of a token's vector.
        layers: transformer layers.
        heads: attention heads a block.
        inner: width inside the feed-forward network.
        positions: longest row in tokens.
        segments: token types; 0: none.
        family: model_type in config.json.
        activation: the feed-forward network's function.
        eps: added to the variance in layer norms.
        dropout: dropout of the embeddings, in training.
        attention_dropout: dropout of attention weights.
        output_dropout: dropout of the outputs of attention and of the feed-forward network.
        inner_dropout: dropout inside the feed-forward network.
        embedding: size of a vector in the embedding tables; None: width.
        projection: where narrow embeddings are projected to the width: `before` or `after` their norm.
        first_position: the row of the position table for a row's first token; None: no such table.
        order: the block of each layer; empty: each layer has its own.
        group: blocks in a group of the checkpoint's names.
        norm_first: pre-norm instead of post-norm.
        gated: the feed-forward network is a gated linear unit.
        attention_bias: linear layers of attention have biases.
        mlp_bias: linear layers of the feed-forward network have biases.
        norm_bias: layer norms have biases.
        rotary: the base of the rotary positions of each layer; empty: none.
        local: how many tokens each way each layer attends to; 0: all. Empty: all layers attend to all.
        relative: relative positions, or None.
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
        """The number of blocks with their own parameters."""
        return max(self.order) + 1 if self.order else self.layers
