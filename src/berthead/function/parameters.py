"""Theta and omega as values: named, hashed, immutable sets of tensors."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from berthead.errors import BertheadError, ModelError, UsageError, counted, listed
from berthead.model import families
from berthead.model.checkpoint import read_checkpoint
from berthead.model.model import sha256_of

_ALIKE = "the same tensors in both: one architecture"
# As the families call them: ALBERT has groups of layers.
_BLOCK = re.compile(r"(?:^|[._])layers?(?:_groups)?\.(\d+)\.")
_POOLER = re.compile(r"(?:^|\.)pooler\.")
_HEAD = re.compile(r"(pre_|label_)?classifier\.|qa_outputs\.|window_attention\.|sequence_summary\.|crf\.|head\.")


class Parameters(Mapping[str, Tensor]):
    """An immutable set of tensors under their checkpoint names.

    Args:
        tensors: name to tensor; they are copied, as float32 on the CPU.

    Raises:
        ModelError: a value is not finite.

    Example:
        >>> a, b = Parameters({"embeddings.w": torch.ones(4)}), Parameters({"embeddings.w": torch.full((4,), 2.0)})
        >>> a.difference(b)
        {'embeddings': 0.5}
        >>> Parameters.mean([a, b])["embeddings.w"]
        tensor([1.5000, 1.5000, 1.5000, 1.5000])
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        copied = {name: tensor.detach().to("cpu", torch.float32, copy=True) for name, tensor in tensors.items()}
        for name, tensor in copied.items():
            if not torch.isfinite(tensor).all():
                raise ModelError(name, "holds a value that is not finite", "finite numbers")
        self._tensors = copied
        self._sha256 = ""

    def __getitem__(self, name: str) -> Tensor:
        # A copy: whoever writes into it leaves these parameters, and their hash, as they are.
        return self._tensors[name].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Parameters) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __repr__(self) -> str:
        return f"Parameters({len(self)} tensors, {self.n_parameters:,} parameters, sha256 {self.sha256[:12]})"

    @property
    def sha256(self) -> str:
        """The hash of names, shapes and float32 bytes, as in the model folder."""
        self._sha256 = self._sha256 or sha256_of(self._tensors)
        return self._sha256

    @property
    def n_parameters(self) -> int:
        """The total number of parameters."""
        return sum(tensor.numel() for tensor in self._tensors.values())

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor by its name."""
        return {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def check_like(self, other: Parameters, where: str) -> None:
        """Check that both have the same names and shapes.

        Args:
            other: the reference.
            where: the owner of these, for errors.

        Raises:
            ModelError: a tensor is missing, left over or misshapen; it is named.
        """
        missing, left_over = [name for name in other if name not in self], [name for name in self if name not in other]
        if missing:
            raise ModelError(where, f"lacks {counted(len(missing), 'tensor')}: {listed(missing, 3)}", _ALIKE)
        if left_over:
            saw = f"holds {counted(len(left_over), 'unknown tensor')}: {listed(left_over, 3)}"
            raise ModelError(where, saw, _ALIKE)
        own = self.shapes
        for name, shape in other.shapes.items():
            if own[name] != shape:
                saw, allowed = f"{name} has shape {list(own[name])}", f"{list(shape)}, as this architecture has"
                raise ModelError(where, saw, allowed)

    def difference(self, other: Parameters) -> dict[str, float]:
        """How far these parameters are from others, layer by layer.

        Args:
            other: the reference, with the same names and shapes.

        Returns:
            `embeddings`, `block 0` and so on, `pooler`, `head` (if present), each with
            ||these - other|| / ||other||: Euclidean norms over all numbers of the layer. Infinite where the
            reference is 0 and these are not.

        Raises:
            ModelError: the names or shapes differ.
        """
        self.check_like(other, "difference")
        apart, size = defaultdict[str, float](float), defaultdict[str, float](float)
        for name, tensor in self._tensors.items():
            reference = other._tensors[name].double()
            apart[layer_of(name)] += float((tensor.double() - reference).square().sum())
            size[layer_of(name)] += float(reference.square().sum())
        return {layer: _ratio(math.sqrt(apart[layer]), math.sqrt(size[layer])) for layer in apart}

    @classmethod
    def mean(cls, members: Sequence[Parameters]) -> Parameters:
        """The mean of several sets, tensor by tensor.

        Args:
            members: at least one; all with the same names and shapes.

        Returns:
            The mean, summed in float64; the mean of equal sets is that set, bit for bit.

        Raises:
            UsageError: there is none.
            ModelError: the names or shapes differ.
        """
        if not members:
            raise UsageError("mean", "got no parameters", "at least one set")
        for number, member in enumerate(members[1:], 2):
            member.check_like(members[0], f"member {number}")
        means = {}
        for name, tensor in members[0]._tensors.items():
            total = tensor.double()
            for member in members[1:]:
                total += member._tensors[name]
            means[name] = total / len(members)
        return cls(means)


def layer_of(name: str) -> str:
    """The layer that a tensor belongs to, by its checkpoint name.

    Args:
        name: of a tensor of theta or omega.

    Returns:
        `embeddings`, `block N`, `pooler`, `head`, or the encoder's name of another part.

    Example:
        >>> layer_of("encoder.layer.3.output.dense.bias"), layer_of("classifier.weight")
        ('block 3', 'head')
    """
    if _HEAD.match(name):
        return "head"
    if _POOLER.search(name):
        return "pooler"
    if block := _BLOCK.search(name):
        return f"block {block[1]}"
    part = name.removeprefix("encoder.").split(".")[0]
    return "embeddings" if part.startswith("emb") else part


def find_pretrained(name: str, sha256: str) -> Parameters | None:
    """Theta-hat, if its encoder is on this machine.

    Args:
        name: from the model folder: `minilm`, or the name of a folder.
        sha256: of theta-hat.

    Returns:
        The parameters; None: the encoder is not here, or another one has its name.
    """
    try:
        checkpoint = read_checkpoint(name)
    except BertheadError:
        return None
    found = Parameters(families.to_checkpoint(checkpoint.weights, checkpoint.config))
    return found if found.sha256 == sha256 else None


def _ratio(apart: float, size: float) -> float:
    if size:
        return apart / size
    return math.inf if apart else 0.0
