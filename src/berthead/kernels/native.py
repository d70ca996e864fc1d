"""An encoder computed by the C++ library: weights are packed once, and each thread computes its own rows."""

from __future__ import annotations

import copy
import ctypes
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from berthead.kernels.abi import PRECISIONS, BlockSpec, EmbeddingSpec
from berthead.kernels.library import ACTIVATIONS, SWITCH, built, chosen, has_bf16, kernels, loaded
from berthead.kernels.quantization import Smoothing, smoothing, split_outliers
from berthead.model.capabilities import Supported, activation_name, is_layer_norm
from berthead.model.config import EncoderConfig
from berthead.model.encoder import Attention, Block, Embeddings, Encoder
from berthead.model.model import Model
from berthead.model.positions import Disentangled, NoPositions, RelativeBias, Rotary
from berthead.model.tensors import TensorPack, check_rows

Reads = Callable[[TensorPack], Tensor | None]
SUPPORTED = Supported()


def computes(encoder: Encoder, precision: str) -> bool:
    """Whether our kernels support an encoder in this precision, on this machine.

    Args:
        encoder: of any family.
        precision: `fp32`, `bf16` or `int8`.
    """
    name, config = chosen(), encoder.config
    if name == "torch" or (precision == "bf16" and not has_bf16(name)):
        return False
    sizes = config.width % 4 == 0 and config.inner % 4 == 0 and (config.width // config.heads) % 2 == 0
    return sizes and len(encoder.blocks) > 0 and SUPPORTED.why_not(encoder) is None


def why_not(encoder: Encoder) -> str:
    """Why our kernels do not support an encoder in int8."""
    if os.environ.get(SWITCH) == "torch":
        return f"{SWITCH} says torch"
    if not built():
        return "the kernels were not built when berthead was installed: there was no C++ compiler"
    if not kernels():
        return "none of the kernels runs on this processor"
    part = SUPPORTED.why_not(encoder)
    return f"{part}, which the kernels do not support" if part else "the kernels do not support its sizes"


class NativeBlock:
    """One block of NativeBlocks, in place of the torch module."""

    def __init__(self, number: int) -> None:
        self.number = number


class NativeBlocks:
    """Blocks packed for one precision and instruction set; safe to call from many threads.

    Args:
        precision: `fp32`, `bf16` or `int8`.
        config: the encoders' config.
    """

    def __init__(self, precision: str, config: EncoderConfig) -> None:
        found = loaded()
        assert found is not None
        self.library, self.name, self.precision, self.config = found, chosen(), precision, config
        self.handle = found.berthead_encoder_new(self.name.encode(), PRECISIONS[precision])
        if not self.handle:
            raise MemoryError("no memory for an encoder")
        # Tables that the kernels read in place.
        self._kept: list[Tensor] = []
        self._count = 0

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.library.berthead_encoder_free(self.handle)

    def add(self, block: Block, positions: nn.Module, smoothing: Smoothing) -> NativeBlock:
        """Pack a block's weights.

        Args:
            block: it is not changed.
            positions: its positions part.
            smoothing: how the inputs of its layers are quantized.
        """
        attention, config, used = block.attention, self.config, list[Tensor]()
        name_of_activation = activation_name(block.mlp.get_submodule("activation"))
        assert name_of_activation is not None
        scales = smoothing.scales

        def pointer(tensor: Tensor | None, dtype: torch.dtype = torch.float32) -> int | None:
            if tensor is None:
                return None
            used.append(tensor.detach().to("cpu", dtype).contiguous())
            return used[-1].data_ptr()

        def linear(name: str, place: str, rows: Tensor | None = None) -> dict[str, int | None]:
            layer: Any = block.get_submodule(place)
            weight, bias = layer.weight, layer.bias
            if place in scales:
                weight = weight / scales[place]
            if rows is not None:
                weight, bias = weight * rows[:, None], None if bias is None else bias * rows
            fields = {f"{name}_bias": pointer(bias)}
            if place in smoothing.outliers:
                weight, outlier_weights = split_outliers(weight, smoothing.outliers[place])
                fields[f"{name}_outlier_weights"] = pointer(outlier_weights)
            return fields | {name: pointer(weight)}

        def norm(name: str, layer: nn.Module) -> dict[str, int | None]:
            if isinstance(layer, nn.Identity):
                return {}
            return {name: pointer(layer.weight), f"{name}_bias": pointer(layer.bias)}  # type: ignore[arg-type]

        tables, values = _tables(positions, attention, config), None
        if "attention.out" in scales:  # attention is linear in values, so scale the values instead of its output
            values = torch.cat((torch.ones(2 * config.width), scales["attention.out"]))
        fields: dict[str, Any] = {
            **linear("qkv", "attention.qkv", values), **linear("out", "attention.out"),
            **linear("up", "mlp.up"), **linear("down", "mlp.down"),
            **norm("attention_norm", block.attention_norm),
            **norm("mlp_norm", block.mlp_norm),
        }  # fmt: skip
        copied = len(used)
        fields |= {
            name: pointer(table, torch.int32 if name == "distance_rows" else torch.float32)
            for name, table in tables.items()
        }
        layers = (("qkv", "attention.qkv"), ("up", "mlp.up"), ("down", "mlp.down"))
        fields |= {f"{name}_smoothing": pointer(scales.get(place)) for name, place in layers} | {
            f"{name}_outliers": pointer(smoothing.outliers.get(place), torch.int32) for name, place in layers
        }
        spec = BlockSpec(
            **fields, width=config.width, heads=config.heads, inner=config.inner,
            activation=ACTIVATIONS[name_of_activation], gated=config.gated, norm_first=config.norm_first,
            local=attention.local, max_positions=config.positions, eps=config.eps, attention_scale=attention.scale,
            num_distances=len(tables.get("distance_keys", tables.get("distance_queries", ()))),
        )  # fmt: skip
        if self.library.berthead_encoder_add_block(self.handle, ctypes.byref(spec)) != 0:
            raise MemoryError("no memory for the encoder's weights")
        self._kept += used[copied:]
        self._count += 1
        return NativeBlock(self._count - 1)

    def run(
        self, numbers: Sequence[int], pack: TensorPack, hidden: Tensor | None, embedding: EmbeddingSpec | None,
        selected: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Rows through blocks.

        Args:
            numbers: of the blocks, in order.
            pack: the rows.
            hidden: the input of the first block, float32 [tokens, width]; None: from the embedding.
            embedding: the embedding tables.
            selected: the tokens whose vectors the head reads, int64, ascending; None: all.

        Returns:
            float32 [tokens, width] after the last; values of tokens that are not selected are undefined.
        """
        order = (ctypes.c_int32 * len(numbers))(*numbers)
        tokens = len(pack.ids)
        check_rows(pack, self.config)  # the kernels do not check bounds
        starts = torch.cat((pack.starts, torch.tensor([tokens])))
        output = torch.empty(tokens, self.config.width)
        before = None if hidden is None else hidden.contiguous()
        failed = self.library.berthead_encoder_run(
            self.handle, order, len(numbers), None if embedding is None else ctypes.byref(embedding),
            pack.ids.data_ptr(), pack.segments.data_ptr(), None if before is None else before.data_ptr(),
            output.data_ptr(), starts.data_ptr(), len(starts) - 1, None if selected is None else selected.data_ptr(),
            0 if selected is None else len(selected), torch.get_num_threads(),
        )  # fmt: skip
        if failed:
            raise MemoryError("no memory for the activations of a pack")
        return output


class NativeEncoder(nn.Module):
    """An encoder whose blocks, and usually embeddings, are computed by our kernels.

    Args:
        encoder: it is not changed, and its embedding tables are shared.
        precision: `fp32`, `bf16` or `int8`.
        memo: parts already packed or copied, by the id of the torch module.
        reads: the tokens of a pack whose last vectors the head reads, ascending; None: all.
    """

    def __init__(
        self, encoder: Encoder, precision: str, memo: dict[Any, Any] | None = None, reads: Reads = lambda pack: None
    ) -> None:
        super().__init__()
        self.reads = reads
        known = {} if memo is None else memo
        known |= {id(tensor): tensor for tensor in encoder.parameters()}
        self.config, self.order = encoder.config, encoder.order
        if "native" not in known:
            known["native"] = NativeBlocks(precision, encoder.config)
        self.native: NativeBlocks = known["native"]
        new = any(id(block) not in known for block in encoder.blocks)
        found = smoothing(encoder) if precision == "int8" and new else [Smoothing() for _ in encoder.blocks]
        for block, its in zip(encoder.blocks, found, strict=True):
            if id(block) not in known:
                assert isinstance(block, Block)
                known[id(block)] = self.native.add(block, encoder.positions, its)
        self.blocks: list[NativeBlock] = [known[id(block)] for block in encoder.blocks]
        self.embeddings = copy.deepcopy(encoder.embeddings, known)
        self.positions = copy.deepcopy(encoder.positions, known)
        self.final_norm = copy.deepcopy(encoder.final_norm, known)
        self.table = _embedding_table(encoder.embeddings)

    def begin(self, pack: TensorPack) -> tuple[Tensor, None]:
        """The embeddings' vectors, float32 [tokens, width]; the kernels compute positions themselves."""
        return self._run([], pack, None if self.table else self.embeddings(pack).float()), None

    def through(self, hidden: Tensor, pack: TensorPack, positions: None, first: int, last: int) -> Tensor:
        """Vectors [tokens, width] after the layers from `first` to below `last`."""
        return self._run(self.order[first:last], pack, hidden)

    def forward(self, pack: TensorPack) -> Tensor:
        """The last layer's vectors, float32 [tokens, width]; those that the head does not read are undefined."""
        hidden = None if self.table else self.embeddings(pack).float()
        normed: Tensor = self.final_norm(self._run(self.order, pack, hidden, self.reads(pack)))
        return normed

    def _run(
        self, order: Sequence[int], pack: TensorPack, hidden: Tensor | None, selected: Tensor | None = None
    ) -> Tensor:
        numbers = [self.blocks[number].number for number in order]
        return self.native.run(numbers, pack, hidden, None if hidden is not None else self.table, selected)


def _embedding_table(embeddings: nn.Module) -> EmbeddingSpec | None:
    """The embedding tables, if embeddings are a sum and a norm; None: torch computes them."""
    if type(embeddings) is not Embeddings or embeddings.project is not None or not is_layer_norm(embeddings.norm):
        return None
    parts: dict[str, Any] = {"word": embeddings.word, "position": embeddings.position, "segment": embeddings.segment}
    tables = {name: layer.weight for name, layer in parts.items() if layer is not None}
    tables |= {"norm": embeddings.norm.weight}
    if embeddings.norm.bias is not None:
        tables["norm_bias"] = embeddings.norm.bias
    if any(table.dtype != torch.float32 or not table.is_contiguous() for table in tables.values()):
        return None
    pointers = {name: table.data_ptr() for name, table in tables.items()}
    first, width = embeddings.first_position or 0, embeddings.word.embedding_dim
    return EmbeddingSpec(**pointers, width=width, first_position=first, eps=embeddings.norm.eps)


def _tables(positions: nn.Module, attention: Attention, config: EncoderConfig) -> dict[str, Tensor]:
    """The position tables of attention, for all distances that a row can have."""
    if isinstance(positions, Rotary):
        assert attention.base is not None
        cos, sin = positions.waves(torch.arange(config.positions), attention.base)
        return {"cosines": cos, "sines": sin}
    if isinstance(positions, RelativeBias):
        return {"distance_bias": positions.bias.weight[positions.buckets(_distances(config).neg())].T}
    if isinstance(positions, Disentangled):
        sides = positions.sides(positions.norm(positions.embeddings.weight), attention)
        names = ("distance_queries", "distance_keys")
        found = {name: side for name, side in zip(names, sides, strict=True) if side is not None}
        return found | {"distance_rows": positions.rows(_distances(config))}
    if isinstance(positions, NoPositions):
        return {}
    raise TypeError(f"the kernels do not support the positions {type(positions).__name__}")


def _distances(config: EncoderConfig) -> Tensor:
    """All distances between two tokens of a row, ascending, int64 [2 * positions - 1]."""
    return torch.arange(1 - config.positions, config.positions)


def pack_weights(model: Model, precision: str, memo: dict[Any, Any] | None = None) -> Model:
    """A model whose encoder is computed by our kernels; parameters of its head are shared.

    Args:
        model: the fitted model; it is not changed.
        precision: `fp32`, `bf16` or `int8`.
        memo: parts already packed for other models; shared parts are packed once.

    Returns:
        The prepared model, in evaluation mode.
    """
    head = copy.deepcopy(model.head, {id(tensor): tensor for tensor in model.head.parameters()})
    with torch.no_grad():
        reads = getattr(head, "reads", lambda pack: None)
        encoder: Any = NativeEncoder(model.encoder, precision, memo, reads)
    return Model(encoder, head).eval()
