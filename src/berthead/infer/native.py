"""The encoder's blocks in kernels of our own: weights laid out once, rows computed by threads that share nothing."""

from __future__ import annotations

import copy
import ctypes
import importlib.util
import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from berthead.errors import UsageError
from berthead.infer.smoothing import Channels, apart_from, channels
from berthead.model.config import EncoderConfig
from berthead.model.encoder import Attention, Block, Embeddings, Encoder
from berthead.model.model import Model
from berthead.model.positions import Disentangled, NoPositions, RelativeBias, Rotary
from berthead.model.tensors import TensorPack, check_rows

# Chooses the kernels: `torch` for none of ours, or the name of an instruction set that this processor has.
SWITCH = "BERTHEAD_KERNELS"
Reads = Callable[[TensorPack], Tensor | None]
PRECISIONS = {"fp32": 0, "bf16": 1, "int8": 2}
_EXTENSION = "berthead.infer._native"
# As many as an encoder has layers, mostly.
MOST_TAPES = 24
# Columns of the widest tile of any kernel.
WIDEST_TILE = 32
_POINTER = ctypes.c_void_p


WEIGHTS = (
    "qkv", "qkv_bias", "out", "out_bias", "attention_norm", "attention_norm_bias", "up", "up_bias", "down", "down_bias",
    "mlp_norm", "mlp_norm_bias",
)  # fmt: skip
"""The parameters of a block, in the order of csrc/engine.h."""


class _BlockSpec(ctypes.Structure):
    """BlockSpec in csrc/engine.h."""

    _fields_ = [
        *((name, _POINTER) for name in (
            *WEIGHTS, "cosines", "sines", "distance_bias", "distance_keys", "distance_queries", "distance_rows",
            "qkv_shrink", "up_shrink", "down_shrink", "qkv_apart", "up_apart", "down_apart", "qkv_columns",
            "up_columns", "down_columns",
        )),
        *((name, ctypes.c_int32) for name in (
            "width", "heads", "inner", "activation", "gated", "norm_first", "local", "reach", "distances",
        )),
        ("eps", ctypes.c_float),
        ("scale", ctypes.c_float),
    ]  # fmt: skip


class TrainingSpec(ctypes.Structure):
    """TrainingSpec in csrc/engine.h: a block that learns."""

    _fields_ = [
        *((name, _POINTER) for name in WEIGHTS),
        *((name, ctypes.c_int32) for name in ("width", "heads", "inner", "activation")),
        *((name, ctypes.c_float) for name in ("eps", "scale", "attention_dropout", "output_dropout", "mlp_dropout")),
        ("seed", ctypes.c_uint32),
    ]


class TrainingGrads(ctypes.Structure):
    """TrainingGrads in csrc/engine.h: where gradients go."""

    _fields_ = [(name, _POINTER) for name in WEIGHTS]


class _Training(ctypes.Structure):
    """Training in csrc/engine.h."""

    _fields_ = [
        *((name, _POINTER) for name in ("input", "output", "starts", "wanted", "wanted_starts")),
        *((name, ctypes.c_int32) for name in ("tokens", "going", "rows", "wants_input")),
        *((name, _POINTER) for name in ("tape", "arena")),
        ("grads", TrainingGrads),
    ]


class TableSteps(ctypes.Structure):
    """TableSteps in csrc/engine.h: rows of a table that learns."""

    _fields_ = [
        *((name, _POINTER) for name in ("weights", "first", "second", "done", "moved", "chosen", "grads")),
        *((name, _POINTER) for name in ("shrink", "rate", "root", "shrunk")),
        *((name, ctypes.c_double) for name in ("beta1", "beta2")),
        *((name, ctypes.c_int32) for name in ("count", "width", "step")),
        ("eps", ctypes.c_float),
    ]


class _EmbeddingSpec(ctypes.Structure):
    """EmbeddingSpec in csrc/engine.h."""

    _fields_ = [
        *((name, _POINTER) for name in ("word", "position", "segment", "norm", "norm_bias")),
        ("width", ctypes.c_int32),
        ("first_position", ctypes.c_int32),
        ("eps", ctypes.c_float),
    ]


@cache
def _library() -> ctypes.CDLL | None:
    found = importlib.util.find_spec(_EXTENSION)
    if found is None or found.origin is None:
        return None
    library = ctypes.CDLL(found.origin)
    library.berthead_kernels.restype = ctypes.c_char_p
    library.berthead_open.restype = _POINTER
    library.berthead_open.argtypes = [ctypes.c_char_p, ctypes.c_int]
    library.berthead_add.argtypes = [_POINTER, ctypes.POINTER(_BlockSpec)]
    library.berthead_run.argtypes = [
        _POINTER, _POINTER, ctypes.c_int, ctypes.POINTER(_EmbeddingSpec), _POINTER, _POINTER, _POINTER, _POINTER,
        _POINTER, ctypes.c_int, _POINTER, ctypes.c_int, ctypes.c_int,
    ]  # fmt: skip
    library.berthead_peak.restype = ctypes.c_double
    library.berthead_peak.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_double]
    library.berthead_close.argtypes = [_POINTER]
    library.berthead_tape_bytes.restype = ctypes.c_size_t
    library.berthead_tape_bytes.argtypes = [
        ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(TrainingSpec), ctypes.c_int, ctypes.c_int,
    ]  # fmt: skip
    library.berthead_train.argtypes = [
        ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(TrainingSpec), ctypes.POINTER(_Training), ctypes.c_int,
        ctypes.c_int,
    ]  # fmt: skip
    library.berthead_close.restype = None
    library.berthead_advance.restype = None
    library.berthead_advance.argtypes = [ctypes.c_char_p, ctypes.POINTER(TableSteps), ctypes.c_int]
    return library


def built() -> bool:
    """Whether the kernels were built when this package was installed."""
    return _library() is not None


def kernels() -> list[str]:
    """Names of the kernels that this processor can run, the best last; none where they were not built."""
    library, names = _library(), list[str]()
    if library is not None:
        while (name := library.berthead_kernels(len(names))) is not None:
            names.append(name.decode())
    return names


def chosen() -> str:
    """The kernels that are used: the best, or what the environment variable BERTHEAD_KERNELS says.

    Returns:
        One of `kernels()`, or `torch`.

    Raises:
        UsageError: the variable names kernels that are not here.
    """
    usable, wanted = ["torch", *kernels()], os.environ.get(SWITCH, "")
    if wanted and wanted not in usable:
        raise UsageError(SWITCH, f"says {wanted!r}", ", ".join(usable), "Unset it: the best kernels are used.")
    return wanted or usable[-1]


def computes(encoder: Encoder, precision: str) -> bool:
    """Whether our kernels compute an encoder in this precision, here.

    Args:
        encoder: of any family.
        precision: `fp32`, `bf16` or `int8`.
    """
    name, config = chosen(), encoder.config
    if name == "torch" or (precision == "bf16" and not has_bf16(name)):
        return False
    sizes = config.width % 4 == 0 and config.inner % 4 == 0 and (config.width // config.heads) % 2 == 0
    blocks = len(encoder.blocks) > 0 and all(map(_is_plain, encoder.blocks))
    return sizes and blocks and config.activation in ACTIVATIONS


def why_not(encoder: Encoder) -> str:
    """What keeps our kernels from computing an encoder that they do not compute in int8."""
    if not built():
        return "the kernels were not built when berthead was installed: there was no C++ compiler"
    if not kernels():
        return "this processor has not the instructions of any kernel"
    return f"{SWITCH} says torch" if chosen() == "torch" else "its sizes are not those that the kernels compute"


def _is_plain(block: nn.Module) -> bool:
    """Whether a block's linear layers are just that: no changes of low rank beside them."""
    layers = ("attention.qkv", "attention.out", "mlp.up", "mlp.down")
    return all(isinstance(block.get_submodule(layer), nn.Linear) for layer in layers)


def has_bf16(name: str) -> bool:
    """Whether kernels multiply bfloat16 in hardware."""
    return name.endswith("bf16")


def peak(precision: str, threads: int, seconds: float = 0.1) -> float:
    """What this machine multiplies at most: a tile's product in the nearest cache, by the kernels that are chosen.

    Args:
        precision: `fp32`, `bf16` or `int8`, which they compute.
        threads: that multiply at once.
        seconds: how long.

    Returns:
        Operations a second of all threads; an addition and a multiplication are two.
    """
    library = _library()
    assert library is not None
    rate: float = library.berthead_peak(chosen().encode(), PRECISIONS[precision], threads, seconds)
    assert rate > 0, (chosen(), precision)
    return rate


ACTIVATIONS = {
    "gelu": 0, "gelu_python": 0, "gelu_new": 1, "gelu_fast": 1, "gelu_pytorch_tanh": 1, "relu": 2, "silu": 3,
    "swish": 3, "tanh": 4,
}  # fmt: skip


class NativeBlock:
    """One block of NativeBlocks, which stands where the torch module stood."""

    def __init__(self, number: int) -> None:
        self.number = number


class NativeBlocks:
    """Blocks laid out for one precision and instruction set; safe to call from many threads.

    Args:
        precision: `fp32`, `bf16` or `int8`.
        config: of the encoders.
    """

    def __init__(self, precision: str, config: EncoderConfig) -> None:
        library = _library()
        assert library is not None
        self.library, self.name, self.precision, self.config = library, chosen(), precision, config
        self.handle = library.berthead_open(self.name.encode(), PRECISIONS[precision])
        assert self.handle, (self.name, precision)
        # Tables that the kernels read where they lie.
        self._kept: list[Tensor] = []
        self._count = 0

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.library.berthead_close(self.handle)

    def add(self, block: Block, places: nn.Module, channels: Channels) -> NativeBlock:
        """Lay a block's weights out.

        Args:
            block: it is not changed.
            places: what its attention reads places from.
            channels: how those before its layers are rounded.
        """
        attention, config, used = block.attention, self.config, list[Tensor]()
        shrinks = channels.shrinks

        def pointer(tensor: Tensor | None, dtype: torch.dtype = torch.float32) -> int | None:
            if tensor is None:
                return None
            used.append(tensor.detach().to("cpu", dtype).contiguous())
            return used[-1].data_ptr()

        def linear(name: str, place: str, rows: Tensor | None = None) -> dict[str, int | None]:
            layer: Any = block.get_submodule(place)
            weight, bias = layer.weight, layer.bias
            if place in shrinks:
                weight = weight / shrinks[place]
            if rows is not None:
                weight, bias = weight * rows[:, None], None if bias is None else bias * rows
            fields = {f"{name}_bias": pointer(bias)}
            if place in channels.apart:
                weight, columns = apart_from(weight, channels.apart[place])
                fields[f"{name}_columns"] = pointer(columns)
            return fields | {name: pointer(weight)}

        def norm(name: str, layer: nn.Module) -> dict[str, int | None]:
            if isinstance(layer, nn.Identity):
                return {}
            return {name: pointer(layer.weight), f"{name}_bias": pointer(layer.bias)}  # type: ignore[arg-type]

        tables, values = _tables(places, attention, config), None
        if "attention.out" in shrinks:  # attention mixes values, so what its output is multiplied with they can be
            values = torch.cat((torch.ones(2 * config.width), shrinks["attention.out"]))
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
        fields |= {f"{name}_shrink": pointer(shrinks.get(place)) for name, place in layers} | {
            f"{name}_apart": pointer(channels.apart.get(place), torch.int32) for name, place in layers
        }
        spec = _BlockSpec(
            **fields, width=config.width, heads=config.heads, inner=config.inner,
            activation=ACTIVATIONS[config.activation], gated=config.gated, norm_first=config.norm_first,
            local=attention.local, reach=config.positions, eps=config.eps, scale=attention.scale,
            distances=len(tables.get("distance_keys", tables.get("distance_queries", ()))),
        )  # fmt: skip
        if self.library.berthead_add(self.handle, ctypes.byref(spec)) != 0:
            raise MemoryError("no memory for the encoder's weights")
        self._kept += used[copied:]
        self._count += 1
        return NativeBlock(self._count - 1)

    def run(
        self, numbers: Sequence[int], pack: TensorPack, hidden: Tensor | None, embedding: _EmbeddingSpec | None,
        wanted: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Rows through blocks.

        Args:
            numbers: of the blocks, in order.
            pack: the rows.
            hidden: float32 [tokens, width] before the first of them; None: it comes from the embedding.
            embedding: the tables that ids are looked up in.
            wanted: the tokens whose vectors are read, int64, ascending; None: all.

        Returns:
            float32 [tokens, width] after the last; of tokens that are not wanted without meaning.
        """
        order = (ctypes.c_int32 * len(numbers))(*numbers)
        tokens = len(pack.ids)
        check_rows(pack, self.config, ids=embedding is not None)  # the kernels read where they are told to
        starts = torch.cat((pack.starts, torch.tensor([tokens])))
        output = torch.empty(tokens, self.config.width)
        before = None if hidden is None else hidden.contiguous()
        failed = self.library.berthead_run(
            self.handle, order, len(numbers), None if embedding is None else ctypes.byref(embedding),
            pack.ids.data_ptr(), pack.segments.data_ptr(), None if before is None else before.data_ptr(),
            output.data_ptr(), starts.data_ptr(), len(starts) - 1, None if wanted is None else wanted.data_ptr(),
            0 if wanted is None else len(wanted), torch.get_num_threads(),
        )  # fmt: skip
        if failed:
            raise MemoryError("no memory for the activations of a pack")
        return output


class NativeEncoder(nn.Module):
    """An encoder of which our kernels compute the blocks, and mostly the embeddings.

    Args:
        encoder: it is not changed, and its embedding tables are shared.
        precision: `fp32`, `bf16` or `int8`.
        memo: what was laid out or copied already, by the id of the torch module.
        reads: the tokens of a pack whose last vectors are read, ascending; None: all.
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
        found = channels(encoder) if precision == "int8" and new else [Channels() for _ in encoder.blocks]
        for block, its in zip(encoder.blocks, found, strict=True):
            if id(block) not in known:
                assert isinstance(block, Block)
                known[id(block)] = self.native.add(block, encoder.places, its)
        self.blocks: list[NativeBlock] = [known[id(block)] for block in encoder.blocks]
        self.embeddings = copy.deepcopy(encoder.embeddings, known)
        self.places = copy.deepcopy(encoder.places, known)
        self.final_norm = copy.deepcopy(encoder.final_norm, known)
        self.table = _embedding_table(encoder.embeddings)

    def begin(self, pack: TensorPack) -> tuple[Tensor, None]:
        """The embeddings' vectors, float32 [tokens, width]; the kernels know the places themselves."""
        return self._run([], pack, None if self.table else self.embeddings(pack).float()), None

    def through(self, hidden: Tensor, pack: TensorPack, places: None, first: int, last: int) -> Tensor:
        """Vectors [tokens, width] after the layers from `first` to below `last`."""
        return self._run(self.order[first:last], pack, hidden)

    def forward(self, pack: TensorPack) -> Tensor:
        """The last layer's vectors, float32 [tokens, width]; those that are not read have no meaning."""
        hidden = None if self.table else self.embeddings(pack).float()
        normed: Tensor = self.final_norm(self._run(self.order, pack, hidden, self.reads(pack)))
        return normed

    def _run(
        self, order: Sequence[int], pack: TensorPack, hidden: Tensor | None, wanted: Tensor | None = None
    ) -> Tensor:
        numbers = [self.blocks[number].number for number in order]
        return self.native.run(numbers, pack, hidden, None if hidden is not None else self.table, wanted)


def _embedding_table(embeddings: nn.Module) -> _EmbeddingSpec | None:
    """The tables of embeddings that are a sum and a norm; None: torch computes them."""
    if type(embeddings) is not Embeddings or embeddings.project is not None:
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
    return _EmbeddingSpec(**pointers, width=width, first_position=first, eps=embeddings.norm.eps)


def _tables(places: nn.Module, attention: Attention, config: EncoderConfig) -> dict[str, Tensor]:
    """What attention reads of places, for all distances that a row can have."""
    if isinstance(places, Rotary):
        assert attention.base is not None
        cos, sin = places.waves(torch.arange(config.positions), attention.base)
        return {"cosines": cos, "sines": sin}
    if isinstance(places, RelativeBias):
        return {"distance_bias": places.bias.weight[places.buckets(_apart(config).neg())].T}
    if isinstance(places, Disentangled):
        sides = places.sides(places.norm(places.embeddings.weight), attention)
        names = ("distance_queries", "distance_keys")
        found = {name: side for name, side in zip(names, sides, strict=True) if side is not None}
        return found | {"distance_rows": places.rows(_apart(config))}
    assert isinstance(places, NoPositions)
    return {}


def _apart(config: EncoderConfig) -> Tensor:
    """All distances between two tokens of a row, from the least, int64 [2 * positions - 1]."""
    return torch.arange(1 - config.positions, config.positions)


def laid_out(model: Model, precision: str, memo: dict[Any, Any] | None = None) -> Model:
    """A model of which our kernels compute the encoder; parameters of its head are shared.

    Args:
        model: the fitted model; it is not changed.
        precision: `fp32`, `bf16` or `int8`.
        memo: what was laid out of other models: parts that models share are laid out once.

    Returns:
        The prepared model, in evaluation mode.
    """
    head = copy.deepcopy(model.head, {id(tensor): tensor for tensor in model.head.parameters()})
    with torch.no_grad():
        reads = getattr(head, "reads", lambda pack: None)
        encoder: Any = NativeEncoder(model.encoder, precision, memo, reads)
    return Model(encoder, head).eval()


def advance(steps: TableSteps) -> None:
    """Bring rows of a table up to a step; no row twice."""
    library = _library()
    assert library is not None
    library.berthead_advance(chosen().encode(), ctypes.byref(steps), torch.get_num_threads())


def forget_tapes() -> None:
    """Free the memory that is kept for the next passes of blocks that learn."""
    Pass._tapes.clear()


class Pass:
    """Passes of blocks that learn over the same rows.

    Args:
        precision: of the products, `fp32` or `bf16`.
        starts: the first token of each row, and the end of the last, int64 [rows + 1].
        wanted: the tokens of which the block's output is wanted, int64, ascending; None: all.
    """

    # Tapes of passes that are over: fresh memory costs more than what is written to it.
    _tapes: ClassVar[list[Tensor]] = []

    def __init__(self, precision: str, starts: Tensor, wanted: Tensor | None = None) -> None:
        library = _library()
        assert library is not None
        self.library, self.name, self.precision = library, chosen().encode(), PRECISIONS[precision]
        self.starts, self.wanted, self.tokens = starts, wanted, int(starts[-1])
        self.going = self.tokens if wanted is None else len(wanted)
        self.wanted_starts = None if wanted is None else torch.searchsorted(wanted, starts)

    def forward(self, spec: TrainingSpec, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The block's output, float32 [wanted tokens, width], and what the way back needs."""
        sizes = self.tokens, self.going
        size = self.library.berthead_tape_bytes(self.name, self.precision, ctypes.byref(spec), *sizes) + 64
        fitting = [number for number, tape in enumerate(self._tapes) if size <= len(tape)]
        tape = self._tapes.pop(fitting[-1]) if fitting else torch.empty(size, dtype=torch.uint8)
        output = hidden.new_empty(self.going, hidden.shape[1])
        self._run(spec, hidden, output, tape, TrainingGrads(), wants_input=False, forward=True)
        return output, tape

    def backward(
        self, spec: TrainingSpec, grad: Tensor, tape: Tensor, grads: TrainingGrads, wants_input: bool
    ) -> Tensor:
        """The gradient of the block's input, float32 [tokens, width]; without meaning where it is not wanted.

        The tape is used up.
        """
        output = grad.new_empty(self.tokens, grad.shape[1])
        self._run(spec, grad, output, tape, grads, wants_input=wants_input, forward=False)
        self._tapes.append(tape)
        del self._tapes[:-MOST_TAPES]
        return output

    def _run(
        self, spec: TrainingSpec, given: Tensor, output: Tensor, tape: Tensor, grads: TrainingGrads, *,
        wants_input: bool, forward: bool,
    ) -> None:  # fmt: skip
        work = _Training(
            input=given.data_ptr(), output=output.data_ptr(), starts=self.starts.data_ptr(), tokens=self.tokens,
            wanted=None if self.wanted is None else self.wanted.data_ptr(),
            wanted_starts=None if self.wanted_starts is None else self.wanted_starts.data_ptr(), going=self.going,
            rows=len(self.starts) - 1, wants_input=wants_input, tape=-(-tape.data_ptr() // 64) * 64, grads=grads,
        )  # fmt: skip
        failed = self.library.berthead_train(
            self.name, self.precision, ctypes.byref(spec), ctypes.byref(work), forward, torch.get_num_threads()
        )
        if failed:
            raise MemoryError("no memory for the gradients of a pass")
