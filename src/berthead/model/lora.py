"""LoRA: low-rank updates beside the linear layers of a finished model, and merging them.

Source: Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models".
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from berthead.model import families
from berthead.model.encoder import Encoder
from berthead.model.model import Model
from berthead.model.tensors import shapes_only

# A target: a layer of a block, and its part if the layer stacks several layers of the checkpoint.
_TARGETS = {
    "query": ("attention.qkv", 0), "key": ("attention.qkv", 1), "value": ("attention.qkv", 2),
    "attention-out": ("attention.out", None), "up": ("mlp.up", None), "down": ("mlp.down", None),
}  # fmt: skip


class LoraLinear(nn.Module):
    """A linear layer with an update of rank R: (W + scale B A) x + b; only A and B are trained.

    If the layer stacks several layers of the checkpoint, each part has its own A and B.

    Args:
        linear: the layer that it replaces.
        parts: names of the stacked layers in order; None: no update for this one.
        rank: R.
        scale: alpha / R.

    Example:
        >>> layer = LoraLinear(nn.Linear(8, 6), ("query", None, "value"), rank=2, scale=2.0)
        >>> {name: list(tensor.shape) for name, tensor in layer.lora_tensors().items()}["value.lora_B.weight"]
        [2, 2]
    """

    def __init__(self, linear: nn.Linear, parts: tuple[str | None, ...], rank: int, scale: float) -> None:
        super().__init__()
        self.linear, self.parts, self.scale = linear, parts, scale
        self.rows = linear.out_features // len(parts)
        changed = [number for number, name in enumerate(parts) if name]
        like = linear.weight
        self.A = nn.ParameterDict({str(n): like.new_empty(rank, linear.in_features) for n in changed})
        self.B = nn.ParameterDict({str(n): like.new_zeros(self.rows, rank) for n in changed})
        for one in self.A.values():
            nn.init.kaiming_uniform_(one, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Activations [tokens, in] -> [tokens, out]."""
        y: Tensor = self.linear(x)
        changes = [
            F.linear(F.linear(x, self.A[str(number)]), self.B[str(number)]) if name else y.new_zeros(len(x), self.rows)
            for number, name in enumerate(self.parts)
        ]  # each [tokens, out / parts]
        return y + self.scale * (changes[0] if len(changes) == 1 else torch.cat(changes, 1))

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain layer with the weight W + scale B A."""
        weight = self.linear.weight.detach().clone()
        for number, change in self.A.items():
            part = weight[int(number) * self.rows : (int(number) + 1) * self.rows]
            part.add_(self.B[number] @ change, alpha=self.scale)
        with shapes_only():
            linear = nn.Linear(self.linear.in_features, self.linear.out_features, self.linear.bias is not None)
        linear.weight, linear.bias = nn.Parameter(weight, requires_grad=False), self.linear.bias
        return linear.train(self.training)

    def lora_tensors(self) -> dict[str, nn.Parameter]:
        """A and B of each part, under PEFT's names."""
        return {
            f"{name}.lora_{letter}.weight": pairs[str(number)]
            for number, name in enumerate(self.parts)
            for letter, pairs in (("A", self.A), ("B", self.B))
            if name
        }


def insert(model: Model, rank: int, alpha: float, targets: tuple[str, ...]) -> None:
    """Add updates to linear layers of the encoder; B starts at zero, so the function is unchanged.

    Args:
        model: it is changed in place.
        rank: R.
        alpha: the scale of the update is alpha / R.
        targets: which layers of each block: `query`, `key`, `value`, `attention-out`, `up`, `down`.
    """
    encoder = model.encoder
    for name, parts in _layers(encoder, targets).items():
        linear = encoder.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        encoder.set_submodule(name, LoraLinear(linear, parts, rank, alpha / rank))


def lora_tensors(model: Model) -> dict[str, Tensor]:
    """A and B of every layer with an update, under the checkpoint's name of the layer and PEFT's of the tensor."""
    found: dict[str, Tensor] = {}
    for _, layer in _changed(model):
        found |= layer.lora_tensors()
    return found


@torch.no_grad()
def fill(model: Model, tensors: Mapping[str, Tensor]) -> None:
    """Set A and B of every layer with an update: the inverse of `lora_tensors`."""
    for name, parameter in lora_tensors(model).items():
        parameter.copy_(tensors[name])


def merge(model: Model) -> None:
    """Merge the updates into the weights, in place; the layers become plain ones again."""
    for name, layer in _changed(model):
        model.encoder.set_submodule(name, layer.merged())


def merged(model: Model) -> Model:
    """The same function with plain layers: the model itself if it has no LoRA, else a copy that shares the rest.

    Args:
        model: it is not changed.

    Returns:
        A model that the engine can prepare.
    """
    if not _changed(model):
        return model
    plain = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    merge(plain)
    return plain


def _changed(model: Model) -> list[tuple[str, LoraLinear]]:
    return [(name, layer) for name, layer in model.encoder.named_modules() if isinstance(layer, LoraLinear)]


def _layers(encoder: Encoder, targets: tuple[str, ...]) -> dict[str, tuple[str | None, ...]]:
    """Our name of each linear layer with an update, and the checkpoint's names of its updated parts."""
    wanted = [_TARGETS[target] for target in targets]
    found = {}
    for ours, theirs in families.checkpoint_names(encoder.config, encoder.state_dict()).items():
        layer, _, kind = ours.rpartition(".")
        numbers = [number for tail, number in wanted if kind == "weight" and layer.endswith(f".{tail}")]
        if numbers:
            # A checkpoint with several layers in one matrix has one update for it.
            whole = len(theirs) == 1 or None in numbers
            names = [name.removesuffix(".weight") for name in theirs]
            found[layer] = tuple(name if whole or n in numbers else None for n, name in enumerate(names))
    return found
