"""A pre-trained checkpoint in Hugging Face layout: checked and read, strictly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from berthead.errors import ModelError, UsageError
from berthead.model import families
from berthead.model.config import EncoderConfig
from berthead.model.encoder import Encoder
from berthead.model.encoder_folders import find_encoder
from berthead.model.heads import POOLINGS
from berthead.model.model import sha256_of
from berthead.model.stored_tensors import check_finite, check_shapes, read_tensors
from berthead.model.tensors import shapes_only
from berthead.storage.model_files import ADAPTER_CONFIG, WEIGHTS, read_json

_PEFT_TASKS = {
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
    "FEATURE_EXTRACTION": "ForFeatureExtraction",
}
# The encoder's hash, as `sha256_of` computes it: known, because the file's hash is.
MINILM_THETA_SHA256 = "f36c96378a67ae66557d2b17a7686ad6103a1439d8d3cf92eebc7ae7efbe4a19"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A pre-trained encoder: theta-hat and what belongs to it.

    Args:
        name: the user's name for it.
        folder: its folder.
        config: sizes.
        raw_config: config.json, unchanged.
        weights: our name to float32 tensor.
        pooler: the checkpoint's own pooler (`dense.weight`, `dense.bias`), or None.
        trained_pooling: how the checkpoint was trained to make one vector a row: one of POOLINGS, or what
            sentence-transformers calls another.
        left_out: names of the pre-training heads that are not part of the encoder.
    """

    name: str
    folder: Path
    config: EncoderConfig
    raw_config: dict[str, Any]
    weights: dict[str, Tensor]
    pooler: dict[str, Tensor] | None
    trained_pooling: str
    left_out: tuple[str, ...]

    @property
    def label(self) -> str:
        """The name without the path on this machine."""
        return self.name if self.name == "minilm" else self.folder.resolve().name

    @property
    def theta_sha256(self) -> str:
        """The hash of theta-hat."""
        if self.name == "minilm":
            return MINILM_THETA_SHA256
        return sha256_of(families.to_checkpoint(self.weights, self.config))

    def encoder(self) -> Encoder:
        """A new encoder with theta-hat."""
        return build_encoder(self.config, self.weights)


def build_encoder(config: EncoderConfig, weights: Mapping[str, Tensor]) -> Encoder:
    """An encoder that holds copies of these weights.

    Args:
        config: the sizes.
        weights: our name to tensor; complete.

    Returns:
        The encoder, in evaluation mode.
    """
    with shapes_only():
        encoder = Encoder(config)
    encoder.load_state_dict({name: tensor.clone() for name, tensor in weights.items()}, assign=True)
    return encoder.eval()


def read_checkpoint(name: str) -> Checkpoint:
    """An encoder with all its weights, none missing and none left over.

    Args:
        name: `minilm`, a local folder, or a name that was pulled.

    Returns:
        The checkpoint.

    Raises:
        ModelError: a missing, left-over or misshapen weight, by name; or a file that cannot be trusted.
    """
    folder = find_encoder(name)
    _refuse_adapter(folder)
    raw_config = read_json(folder / "config.json")
    config = families.read_config(raw_config, str(folder / "config.json"))
    # Empty tensors keep transformers from loading a fitted folder into another head; they are not weights.
    stored = {name: tensor for name, tensor in read_tensors(folder).items() if tensor.shape != (0,)}
    names = {families.plain_name(full, config.family): full for full in stored}
    _refuse_prefix(names, plain_shapes(config), folder)
    if len(names) < len(stored):
        raise ModelError(str(folder), "holds the same weight under two names", "one name for each weight")
    kept = {plain: stored[full] for plain, full in names.items() if families.is_encoder_name(plain, config)}
    left_out = tuple(sorted(full for plain, full in names.items() if plain not in kept))
    pooler_names = families.FAMILIES[config.family].pooler or {}
    pooler = {ours: kept.pop(plain) for ours, plain in pooler_names.items() if plain in kept}
    check_shapes(kept, plain_shapes(config), str(folder))
    if pooler:
        square = {"dense.weight": (config.width, config.width), "dense.bias": (config.width,)}
        check_shapes(pooler, square, f"{folder}: pooler")
    weights = our_weights({key: value.read() for key, value in kept.items()}, config)
    check_finite(weights, str(folder))
    return Checkpoint(
        name=name,
        folder=folder,
        config=config,
        raw_config=raw_config,
        weights=weights,
        pooler={key: value.read().float() for key, value in pooler.items()} or None,
        trained_pooling=_trained_pooling(folder, bool(pooler) and families.FAMILIES[config.family].has_trained_pooler),
        left_out=left_out,
    )


def plain_shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every weight of the encoder, by its plain name in the checkpoint."""
    return {name: tuple(t.shape) for name, t in families.to_checkpoint(_state(config), config).items()}


def our_weights(tensors: Mapping[str, Tensor], config: EncoderConfig) -> dict[str, Tensor]:
    """Convert the checkpoint's tensors, by plain name, to ours: name to float32 tensor."""
    return families.from_checkpoint(tensors, config, _state(config))


def _refuse_adapter(folder: Path) -> None:
    """Refuse a folder that only changes an encoder, as PEFT writes it."""
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file():
        config = read_json(folder / ADAPTER_CONFIG)
        base, task = config.get("base_model_name_or_path"), _PEFT_TASKS.get(str(config.get("task_type")), "")
        fix = (
            f'Write the merged encoder, with peft installed: python -c "from peft import AutoPeftModel{task} as M; '
            f"M.from_pretrained('{folder}').merge_and_unload().save_pretrained('merged')\"; add its tokenizer"
        )
        raise ModelError(str(folder), f"is an adapter of {base}, made by PEFT", "a whole encoder", fix)


def _refuse_prefix(found: Iterable[str], wanted: Iterable[str], folder: Path) -> None:
    """Refuse weights that only have other words before their names, and say how to drop them."""
    there = set(found)
    lacking = [name for name in wanted if name not in there]
    if not lacking:
        return
    prefixes = {name.removesuffix(lacking[0]) for name in there if name.endswith(f".{lacking[0]}")}
    for prefix in sorted(prefixes):
        if all(f"{prefix}{name}" in there for name in lacking):
            place = folder / WEIGHTS
            fix = (
                'Rename them: python -c "from safetensors.torch import load_file, save_file; save_file({name.'
                f"removeprefix('{prefix}'): one for name, one in load_file('{place}').items()}}, '{place}')\""
            )
            saw = f"has weights whose names begin with {prefix}, as a wrapper of the model wrote them"
            raise ModelError(str(folder), saw, "the names of transformers", fix)


def _state(config: EncoderConfig) -> Mapping[str, Tensor]:
    """Names and shapes of the encoder's weights."""
    with shapes_only():
        return Encoder(config).state_dict()


_MODE = "pooling_mode_"


def _trained_pooling(folder: Path, has_pooler: bool) -> str:
    """As recorded by sentence-transformers; else BERT's own pooler if it was saved; else the mean."""
    path = folder / "1_Pooling" / "config.json"
    modes = read_json(path) if path.is_file() else {}
    said = [key.removeprefix(_MODE) for key, value in modes.items() if key.startswith(_MODE) and value is True]
    said += [str(modes["pooling_mode"])] if modes.get("pooling_mode") else []
    if said:
        known = {one.sentence_transformers: name for name, one in POOLINGS.items() if one.sentence_transformers}
        return known.get(said[0], said[0]) if len(said) == 1 else " and ".join(said)
    return "pooler" if has_pooler else "mean"


def choose_pooling(wanted: str, checkpoint: Checkpoint) -> str:
    """The pooling to use: what the user asked for, or what the checkpoint was trained with.

    Args:
        wanted: `auto`, `cls`, `mean` or `pooler`.
        checkpoint: the encoder.

    Returns:
        `cls`, `mean` or `pooler`.

    Raises:
        UsageError: `pooler` for a checkpoint without one, or `auto` for one that was trained with another pooling.
    """
    others = " or ".join(name for name, one in POOLINGS.items() if one.normalised)
    if wanted == "auto":
        if checkpoint.trained_pooling in POOLINGS:
            return checkpoint.trained_pooling
        saw = f"{checkpoint.name} was trained with {checkpoint.trained_pooling} pooling, which berthead does not have"
        raise UsageError("--pooling auto", saw, f"{others} by name")
    family = families.FAMILIES[checkpoint.config.family]
    if wanted == "pooler" and (family.row is None or (family.has_trained_pooler and checkpoint.pooler is None)):
        raise UsageError("--pooling pooler", f"{checkpoint.name} has no pooler weights", others)
    return wanted
