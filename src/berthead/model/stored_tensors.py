"""Tensors in safetensors files: opened, and checked before they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from berthead.errors import ModelError, counted, listed
from berthead.storage.model_files import INDEX, PICKLES, WEIGHTS, read_json


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file that is open but not read yet, so that its shape is checked first."""

    file: Any
    name: str
    shape: tuple[int, ...]

    def read(self) -> Tensor:
        """The tensor."""
        tensor: Tensor = self.file.get_tensor(self.name)
        return tensor


def read_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of model.safetensors, or of the shards that the index names.

    Args:
        folder: the checkpoint.

    Returns:
        Full name to stored tensor.

    Raises:
        ModelError: no safetensors, only pickles, a broken file, or a wrong index.
    """
    if (folder / WEIGHTS).is_file():
        return file_tensors(folder / WEIGHTS)
    if (folder / INDEX).is_file():
        return _shard_tensors(folder)
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        fix = (
            'Where you trust it, write the other form with transformers: python -c "from transformers import '
            f"AutoModel as M; M.from_pretrained('{folder}').save_pretrained('{folder}')\""
        )
        raise ModelError(
            str(folder),
            f"holds weights only as {listed(pickles)}",
            "safetensors: pickles can run code and are refused",
            fix,
        )
    raise ModelError(str(folder), f"holds no {WEIGHTS}", f"{WEIGHTS}, or {INDEX} and its shards")


def file_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file, by name; ModelError if it is broken."""
    from safetensors import SafetensorError, safe_open

    try:
        # It stays open for its tensors: to open it for each would read all their names each time.
        file: Any = safe_open(path, framework="pt")
        return {name: StoredTensor(file, name, tuple(file.get_slice(name).get_shape())) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(
            str(path), f"cannot be read ({error})", "a whole safetensors file", "Copy it again."
        ) from error


def _shard_tensors(folder: Path) -> dict[str, StoredTensor]:
    index = read_json(folder / INDEX)
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ModelError(str(folder / INDEX), "holds no weight_map", "a mapping of weight names to shard files")
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(map(str, places.values()))):
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise ModelError(str(folder / INDEX), f'names the shard "{shard}"', "a file in the same folder")
        tensors |= file_tensors(folder / shard)
    if set(tensors) != set(places):
        odd = sorted(set(tensors) ^ set(places))
        raise ModelError(
            str(folder / INDEX), f"disagrees with its shards on {listed(odd, 5)}", "the same names in both"
        )
    return tensors


def check_shapes(found: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Compare names and shapes both ways.

    Args:
        found: name to anything with a shape.
        wanted: name to shape.
        where: the location, for errors.

    Raises:
        ModelError: a weight is missing, left over or misshapen; it is named.
    """
    missing, left_over = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing:
        raise ModelError(
            where,
            f"lacks {counted(len(missing), 'weight')}: {listed(missing, 5)}",
            "every weight of config.json's architecture",
        )
    if left_over:
        raise ModelError(
            where,
            f"holds {counted(len(left_over), 'unknown weight')}: {listed(left_over, 5)}",
            "only the weights of config.json's architecture",
        )
    for name, shape in wanted.items():
        seen = tuple(found[name].shape)
        if seen != shape:
            raise ModelError(where, f"{name} has shape {list(seen)}", f"{list(shape)}, as config.json says")


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Check that weights are finite.

    Args:
        tensors: by name.
        where: the location, for errors.

    Raises:
        ModelError: a weight holds NaN or infinity; it is named.
    """
    for name, tensor in tensors.items():
        if tensor.numel() and not torch.stack(torch.aminmax(tensor)).isfinite().all():
            saw = f"{name} holds a value that is not finite"
            raise ModelError(where, saw, "finite numbers", "Copy it again; if it is as it was made, its fit diverged.")
