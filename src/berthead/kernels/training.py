"""Encoders trained by the C++ library: each block is one autograd function, forward and backward."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from berthead.kernels import abi, library, native
from berthead.kernels.training_passes import Pass
from berthead.model.capabilities import Supported, activation_name
from berthead.model.encoder import Block, Encoder
from berthead.model.positions import NoPositions
from berthead.model.tensors import TensorPack, check_rows

SUPPORTED = Supported(
    positions=frozenset({NoPositions}), activations=frozenset({"gelu", "gelu_pytorch_tanh", "relu"}), gates=False
)


def supports_training(encoder: Encoder, precision: str, device: torch.device) -> bool:
    """Whether our kernels support training of an encoder on this machine.

    Args:
        encoder: supported with norms after the residuals and attention to all tokens, as in BERT.
        precision: of the products, `fp32` or `bf16`.
        device: the training device.
    """
    config = encoder.config
    usual = not (config.norm_first or any(config.local))
    biased = config.attention_bias and config.mlp_bias and config.norm_bias and config.inner_dropout == 0
    known = SUPPORTED.why_not(encoder) is None
    return device.type == "cpu" and usual and biased and known and native.computes(encoder, precision)


def hidden(encoder: Encoder, pack: TensorPack, precision: str, selected: Tensor | None = None) -> Tensor:
    """The last layer's vectors, float32 [tokens, width], with gradients to all trained parameters.

    Args:
        encoder: one whose training the kernels support; dropout follows the train or eval mode of each part.
        pack: rows laid end to end.
        precision: of the products, `fp32` or `bf16`.
        selected: the tokens whose vectors the head reads, int64, ascending; the others are 0. None: all.

    Example:
        >>> from berthead.model.config import EncoderConfig
        >>> sizes = EncoderConfig(vocabulary=10, width=8, layers=1, heads=2, inner=16, positions=6, segments=2)
        >>> supports_training(Encoder(sizes), "fp32", torch.device("cuda"))
        False
    """
    check_rows(pack, encoder.config)  # the kernels do not check bounds, also those of the embedding table
    vectors: Tensor = encoder.embeddings(pack)
    tokens = len(pack.ids)
    starts = torch.cat((pack.starts, torch.tensor([tokens])))
    # The kernels split queries from keys and values at a panel boundary.
    if encoder.config.width % abi.WIDEST_TILE or not encoder.order:
        selected = None
    whole, last = Pass(precision, starts), Pass(precision, starts, selected)
    for layer, number in enumerate(encoder.order, 1):
        block = encoder.blocks[number]
        assert isinstance(block, Block)
        weights = _weights(block)
        passes = last if layer == len(encoder.order) else whole
        vectors = _Block.apply(vectors, passes, _spec(block, encoder, weights), *weights)  # type: ignore[no-untyped-call]
    if selected is None:
        return vectors
    return vectors.new_zeros(tokens, vectors.shape[1]).index_copy(0, selected, vectors)


def _weights(block: Block) -> list[Tensor]:
    """The parameters of a block, in the order of `abi.WEIGHTS`."""
    layers: list[Any] = [block.attention.qkv, block.attention.out, block.attention_norm,
                         block.mlp.up, block.mlp.down, block.mlp_norm]  # fmt: skip
    return [tensor for layer in layers for tensor in (layer.weight, layer.bias)]


def _spec(block: Block, encoder: Encoder, weights: list[Tensor]) -> abi.TrainingSpec:
    config, attention = encoder.config, block.attention
    function = activation_name(block.mlp.get_submodule("activation"))
    assert function is not None

    def dropped(part: nn.Module, share: float) -> float:
        return share if part.training else 0.0

    shares = {
        "attention_dropout": dropped(attention, attention.dropout),
        "output_dropout": dropped(block.attention_dropout, block.attention_dropout.share),
        "mlp_dropout": dropped(block.mlp_dropout, block.mlp_dropout.share),
    }
    return abi.TrainingSpec(
        **{name: weight.data_ptr() for name, weight in zip(abi.WEIGHTS, weights, strict=True)}, **shares,
        width=config.width, heads=config.heads, inner=config.inner, activation=library.ACTIVATIONS[function],
        eps=config.eps, attention_scale=1 / math.sqrt(config.width // config.heads),
        # Without dropout nothing is drawn, so that other parts draw the same numbers as with the plain model.
        seed=int(torch.randint(2**31, ())) if any(shares.values()) else 0,
    )  # fmt: skip


class _Block(torch.autograd.Function):
    """A block as one autograd function."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, passes: Pass, spec: abi.TrainingSpec, *weights: Tensor) -> Tensor:
        """[tokens, width] -> [tokens, width]."""
        output, ctx.tape = passes.forward(spec, vectors.contiguous())
        ctx.passes, ctx.spec = passes, spec
        ctx.save_for_backward(*weights)  # a change in between is then an error
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the input and of each trained weight."""
        weights, wanted = ctx.saved_tensors, ctx.needs_input_grad
        to_weights = [torch.empty_like(one) if wants else None for one, wants in zip(weights, wanted[3:], strict=True)]
        places = abi.TrainingGrads(*(None if one is None else one.data_ptr() for one in to_weights))
        tape, ctx.tape = ctx.tape, None
        to_input = ctx.passes.backward(ctx.spec, grads[0].contiguous(), tape, places, wanted[0])
        return to_input if wanted[0] else None, None, None, *to_weights
