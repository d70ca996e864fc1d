"""The adapter of a LoRA fit, in PEFT's format: the update of theta-hat, and which theta-hat it belongs to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from berthead.errors import ModelError
from berthead.function.head_record import StoredHead
from berthead.model import lora
from berthead.model.adapt import Adapt
from berthead.model.checkpoint import Checkpoint, read_checkpoint
from berthead.model.config import EncoderConfig
from berthead.model.encoder import Encoder
from berthead.model.model import Model, sha256_of
from berthead.model.stored_tensors import check_shapes, file_tensors
from berthead.model.tensors import shapes_only
from berthead.storage.model_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_json

# The encoder within a joined folder, beside the functions that need it: their tokenizer too.
THETA = "theta"
_PREFIX = "base_model.model."
# PEFT's wrapper for questions leaves token_type_ids out: without a task type its plain one is used.
_TASK_TYPES = {"TokenClassification": "TOKEN_CLS", "SequenceClassification": "SEQ_CLS"}
_LORA_A = ".lora_A.weight"


@dataclass(frozen=True, slots=True)
class Adapter:
    """A low-rank update of theta-hat.

    Args:
        base: theta-hat as the user named it.
        place: its current folder.
        tensors: A and B of each layer, by the checkpoint's plain name of the layer and PEFT's name of the tensor.
    """

    base: str
    place: Path
    tensors: dict[str, Tensor]

    def record(self) -> dict[str, Any]:
        """Its entry in berthead.json."""
        count = sum(tensor.numel() for tensor in self.tensors.values())
        return {"base": self.base, "sha256": sha256_of(self.tensors), "parameters": count}


def taken_out(model: Model, base: str, place: Path) -> Adapter:
    """Take the updates out of a fitted model, and merge them into its weights.

    Args:
        model: with LoRA layers; changed in place to plain layers.
        base: theta-hat as the user named it.
        place: its folder.

    Returns:
        The updates.
    """
    tensors = {name: tensor.detach().clone() for name, tensor in lora.lora_tensors(model).items()}
    lora.merge(model)
    return Adapter(base, place, tensors)


def lora_shapes(config: EncoderConfig, what: Adapt) -> dict[str, tuple[int, ...]]:
    """The shapes of A and B of every layer with a LoRA update.

    Args:
        config: of the encoder.
        what: rank and targets.

    Returns:
        Name as in `Adapter.tensors` to shape.

    Raises:
        UsageError: the encoder does not support it.
    """
    with shapes_only():
        model = Model(Encoder(config), nn.Identity())
        what.check(model.encoder)
        lora.insert(model, what.rank, what.alpha, what.targets)
    return {name: tuple(tensor.shape) for name, tensor in lora.lora_tensors(model).items()}


@dataclass(frozen=True, slots=True)
class PeftNames:
    """PEFT's names for the content of an adapter folder.

    Args:
        wrapped: the class of transformers that PEFT wraps.
        prefix: that class's name of its encoder.
        omega: our names of the head's weights to those of transformers.
        stored: their names in the file.
    """

    wrapped: str
    prefix: str
    omega: Mapping[str, str]
    stored: StoredHead

    def of_theta(self, name: str) -> str:
        """PEFT's name of a tensor of the encoder, from its plain one."""
        return f"{_PREFIX}{name}" if self._bare else f"{_PREFIX}{self.prefix}.{name}"

    def of_omega(self, name: str) -> str:
        """PEFT's name of a tensor of the head, from its full one."""
        return f"{_PREFIX}{self.stored.names[name]}"

    @property
    def empty(self) -> tuple[str, ...]:
        """The names of the empty tensors; PEFT does not remove prefixes."""
        return tuple(f"{_PREFIX}{layer}.weight" for layer in self.stored.blocked)

    def tensors(self, theta: Mapping[str, Tensor], omega: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The content of adapter_model.safetensors."""
        changes = {self.of_theta(name): tensor for name, tensor in theta.items()}
        head = {self.of_omega(name): tensor for name, tensor in omega.items()}
        return changes | head | {name: torch.empty(0) for name in self.empty}

    def config(self, adapter: Adapter, what: Adapt) -> dict[str, Any]:
        """The content of adapter_config.json: PEFT's LoraConfig.

        Args:
            adapter: the update.
            what: its rank and alpha.

        Returns:
            A JSON object.
        """
        layers = [theirs.rpartition(".")[0] for ours, theirs in self.omega.items() if _is_shared(ours)]
        changed = [name.removesuffix(_LORA_A) for name in adapter.tensors if name.endswith(_LORA_A)]
        return {
            "peft_type": "LORA",
            "task_type": _TASK_TYPES.get(self.wrapped.partition("For")[2]),
            "base_model_name_or_path": adapter.base,
            "r": what.rank,
            "lora_alpha": int(what.alpha) if what.alpha == int(what.alpha) else what.alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": changed,
            "modules_to_save": [] if self._bare else list(dict.fromkeys(layers)),
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
        }

    @property
    def _bare(self) -> bool:
        """Whether it is an encoder without a head."""
        return self.wrapped.endswith("Model")


def _is_shared(name: str) -> bool:
    """Whether a head's weight is in a layer that the transformers class has too."""
    return name.rpartition(".")[0] in ("out", "dense", "tokens.out")


def read_adapter(
    folder: Path, record: Mapping[str, Any], config: EncoderConfig, what: Adapt, peft: PeftNames,
    omega_shapes: Mapping[str, tuple[int, ...]], given: str | None,
) -> tuple[Adapter, Encoder, dict[str, Tensor]]:  # fmt: skip
    """The tensors of an adapter folder, and the encoder merged from theta-hat and them.

    Args:
        folder: the adapter folder.
        record: its berthead.json.
        config: its sizes.
        what: its rank, alpha and targets.
        peft: names.
        omega_shapes: of the head's weights, by full name.
        given: the folder of theta-hat from the user; None: search for it.

    Returns:
        The update, theta-hat with the update merged, and the head's tensors by full name.

    Raises:
        ModelError: the folder is broken, or theta-hat is missing.
    """
    path, base = folder / ADAPTER_WEIGHTS, record["adapter"]["base"]
    if not path.is_file():
        raise ModelError(str(folder), f"holds no {ADAPTER_WEIGHTS}", "the LoRA weights", "Copy the folder again.")
    stored = file_tensors(path)
    theta = {name: (peft.of_theta(name), shape) for name, shape in lora_shapes(config, what).items()}
    omega = {name: (peft.of_omega(name), shape) for name, shape in omega_shapes.items()}
    check_shapes(stored, dict([*theta.values(), *omega.values()]) | dict.fromkeys(peft.empty, (0,)), str(path))
    changes, head = (
        {name: stored[theirs].read().float() for name, (theirs, _) in part.items()} for part in (theta, omega)
    )
    checkpoint = find_base(folder, base, record["parameters"]["pretrained"]["theta_sha256"], given)
    if checkpoint.config != config:
        saw = f"describes another encoder than {checkpoint.folder / 'config.json'}"
        raise ModelError(str(folder / "config.json"), saw, "the same architecture", "Copy the folder again.")
    adapter = Adapter(base, checkpoint.folder, changes)
    _check_config(read_json(folder / ADAPTER_CONFIG), peft.config(adapter, what), folder / ADAPTER_CONFIG)
    return adapter, _changed(checkpoint.encoder(), what, changes), head


def _check_config(said: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """Check that adapter_config.json agrees with berthead.json, so that PEFT and berthead read the same function."""
    for key in sorted(said.keys() | wanted.keys()):
        if key not in wanted:
            raise ModelError(str(path), f'holds "{key[:80]}"', "only the keys that berthead writes")
        if key not in said or said[key] != wanted[key]:
            saw = f"{key} is {json.dumps(said.get(key))[:80]}"
            raise ModelError(str(path), saw, f"{json.dumps(wanted[key])[:200]}, as berthead.json says")


def find_base(folder: Path, base: str, theta_sha256: str, given: str | None) -> Checkpoint:
    """The theta-hat that an adapter folder was fitted on.

    The search looks under the name given to the fit, and beside the adapter folder.

    Args:
        folder: the adapter folder.
        base: the name.
        theta_sha256: of theta-hat.
        given: its folder from the user; None: search for it.

    Returns:
        The checkpoint.

    Raises:
        ModelError: it is missing, or another one.
    """
    seen = ""
    beside = str(folder.resolve().parent / Path(base).name)
    # A function of a joined folder belongs first to the encoder in it, whatever the working folder holds.
    names = [given] if given is not None else [beside, base] if base == THETA else [base, beside]
    for name in names:
        try:
            checkpoint = read_checkpoint(name)
        except ModelError:
            if given is not None:
                raise
            continue
        found = checkpoint.theta_sha256
        if found == theta_sha256:
            return checkpoint
        seen = seen or f'its encoder "{name}" has sha256 {found}'
    allowed = f"the encoder that the adapter was fitted on, of sha256 {theta_sha256}"
    fix = "Give it with --base FOLDER, or make a folder that needs none with berthead merge."
    raise ModelError(str(folder), seen or f'its encoder "{base}" was not found', allowed, fix)


def _changed(encoder: Encoder, what: Adapt, changes: Mapping[str, Tensor]) -> Encoder:
    """The encoder with the updates merged into its weights."""
    model = Model(encoder, nn.Identity())
    # The first values of A are not kept, and the caller's random state is left as it was.
    with torch.random.fork_rng(devices=[]):
        lora.insert(model, what.rank, what.alpha, what.targets)
    lora.fill(model, changes)
    lora.merge(model)
    return encoder
