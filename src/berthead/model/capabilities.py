"""Which parts of an encoder an engine, trainer or exporter supports; encoders with other parts are left to torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from berthead.model.dropout import Dropout
from berthead.model.encoder import Attention, Block, Embeddings, Encoder, Gated
from berthead.model.positions import Disentangled, NoPositions, RelativeBias, Rotary

ALL_POSITIONS = frozenset({NoPositions, Rotary, RelativeBias, Disentangled})
ALL_ACTIVATIONS = frozenset({"gelu", "gelu_pytorch_tanh", "relu", "silu", "tanh"})
_ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.SiLU: "silu", nn.Tanh: "tanh"}
_GELU = {"none": "gelu", "tanh": "gelu_pytorch_tanh"}


def activation_name(function: nn.Module) -> str | None:
    """The name of a feed-forward network's function, without its gate.

    Args:
        function: the module.

    Returns:
        One of ALL_ACTIVATIONS, or None. None also for a subclass: it may compute something else.

    Example:
        >>> activation_name(nn.GELU()), activation_name(Gated(nn.SiLU())), activation_name(nn.ELU())
        ('gelu', 'silu', None)
    """
    if type(function) is Gated:
        function = function.function
    if type(function) is nn.GELU:
        return _GELU.get(function.approximate)
    return _ACTIVATIONS.get(type(function))


@dataclass(frozen=True, slots=True)
class Supported:
    """The supported parts; everything that is not named here is unsupported.

    Parts are matched by their exact type: a subclass may compute something else.

    Args:
        positions: supported types of the positions part.
        activations: names, as from `activation_name`.
        gates: whether feed-forward networks may have a gate.
        embeddings: whether the embeddings must be supported too.
    """

    positions: frozenset[type[nn.Module]] = ALL_POSITIONS
    activations: frozenset[str] = ALL_ACTIVATIONS
    gates: bool = True
    embeddings: bool = False

    def why_not(self, encoder: Encoder) -> str | None:
        """The unsupported part of an encoder.

        Args:
            encoder: of any parts.

        Returns:
            The first such part, in words; None: everything is supported.

        Example:
            >>> from berthead.model.config import EncoderConfig
            >>> sizes = EncoderConfig(vocabulary=10, width=8, layers=1, heads=2, inner=16, positions=6, segments=2)
            >>> encoder = Encoder(sizes)
            >>> Supported().why_not(encoder) is None
            True
            >>> encoder.blocks[0].mlp.activation = nn.ELU()
            >>> Supported().why_not(encoder)
            'block 0 has the activation ELU'
        """
        return next(self._unknown(encoder), None)

    def _unknown(self, encoder: Encoder) -> Iterator[str]:
        if type(encoder) is not Encoder:
            yield f"the encoder is {_name(encoder)}"
        if type(encoder.positions) not in self.positions:
            yield f"its positions are {_name(encoder.positions)}"
        if self.embeddings and (
            type(encoder.embeddings) is not Embeddings or not is_layer_norm(encoder.embeddings.norm)
        ):
            yield f"its embeddings are {_name(encoder.embeddings)}"
        if type(encoder.final_norm) is not nn.Identity and not is_layer_norm(encoder.final_norm):
            yield f"its last norm is {_name(encoder.final_norm)}"
        for number, block in enumerate(encoder.blocks):
            for saw in self._unknown_in(block, encoder.config.eps):
                yield f"block {number} {saw}"

    def _unknown_in(self, block: nn.Module, eps: float) -> Iterator[str]:
        if type(block) is not Block or type(block.attention) is not Attention or type(block.mlp) is not nn.Sequential:
            yield f"is {_name(block)}"
            return
        parts = dict(block.mlp.named_children())
        linears = [block.attention.qkv, block.attention.out, parts.pop("up", None), parts.pop("down", None)]
        for layer in linears:
            if type(layer) is not nn.Linear:
                yield f"has the layer {_name(layer)}"
        function = parts.pop("activation", nn.Identity())
        if activation_name(function) not in self.activations or (type(function) is Gated and not self.gates):
            yield f"has the activation {_name(function)}"
        drops = [block.attention_dropout, block.mlp_dropout, *parts.values()]
        for part in drops:
            if type(part) is not Dropout:
                yield f"has the part {_name(part)}"
        # With pre-norm, the embeddings' own norm comes before the first block.
        norms: list[nn.Module] = [block.mlp_norm]
        if not (block.norm_first and type(block.attention_norm) is nn.Identity):
            norms.append(block.attention_norm)
        for norm in norms:
            if not is_layer_norm(norm) or norm.eps != eps:
                yield f"has the norm {_name(norm)}"


def is_layer_norm(norm: nn.Module | None) -> bool:
    """Whether this is a layer norm over the last axis with weights, and nothing else."""
    return type(norm) is nn.LayerNorm and len(norm.normalized_shape) == 1 and norm.elementwise_affine


def _name(part: object) -> str:
    return type(part).__name__
