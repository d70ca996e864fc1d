"""The model folder on disk: one fitted function; safetensors and JSON only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from berthead.errors import ModelError, UsageError, counted, shown
from berthead.function.adapter import THETA, PeftNames, find_base, lora_shapes, read_adapter
from berthead.function.artifact import BLOCKED_VERSION, FORMAT_VERSION, Artifact, plain_logits
from berthead.function.checks import check_record, golden_example, refuse_other_weights
from berthead.function.golden import has_units, reads_pairs, replay
from berthead.function.head_record import StoredHead, make_head, omega_names, transformers_class, wrapped_before_4
from berthead.function.record import check_seal, read_record, sealed
from berthead.model import families
from berthead.model.adapt import Adapt
from berthead.model.checkpoint import build_encoder, our_weights, plain_shapes
from berthead.model.config import EncoderConfig
from berthead.model.encoder import Encoder
from berthead.model.model import Model, sha256_of
from berthead.model.stored_tensors import check_finite, check_shapes, file_tensors, read_tensors
from berthead.model.tensors import shapes_only
from berthead.storage import tensors as storage
from berthead.storage.files import write_json
from berthead.storage.folders import made_whole
from berthead.storage.hashes import file_sha256
from berthead.storage.model_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    PART,
    RECORD,
    TOKENIZER,
    WEIGHTS,
    read_json,
)
from berthead.tasks import find_task
from berthead.text.bounds import check_tokenizer
from berthead.text.tokenizer import Tokenizer
from berthead.text.windows import LengthPolicy

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")


def save(artifact: Artifact, folder: Path, overwrite: bool = False) -> None:
    """Write the model folder under another name, load it, compare, and rename it into place.

    Args:
        artifact: the fitted function.
        folder: the target folder.
        overwrite: replace a model folder that exists.

    Raises:
        OutputError: the place cannot be written, or the disk is full; nothing is left there.
        GateError: the written folder does not give the same logits.
    """
    with made_whole(folder, overwrite) as aside:
        write(artifact, aside)
        check_written(aside, str(artifact.adapter.place) if artifact.adapter else None)


def check_written(folder: Path, base: str | None = None) -> None:
    """Load a folder that was written, and replay its golden examples.

    Args:
        folder: the model folder.
        base: its encoder, if not in the folder.

    Raises:
        GateError: it does not give the same logits.
    """
    written = load(folder, base)
    if written.golden:
        replay(written, lambda examples: plain_logits(written, examples))


def load(folder: Path, base: str | None = None) -> Artifact:
    """Read a model folder, and refuse one that is broken or not to be trusted.

    Args:
        folder: the model folder.
        base: the encoder of an adapter folder; None: where it was, or beside the folder.

    Returns:
        The fitted function.

    Raises:
        ModelError: the folder is broken, or its encoder is missing.
        UsageError: `base` for a folder that needs none.
    """
    record = read_record(folder)
    if record["kind"] in ("onnx", "joined"):
        saw = f"its kind is {record['kind']}"
        raise ModelError(str(folder), saw, "the folder of one function with its parameters")
    return read(folder, record, base)


def read(folder: Path, record: Mapping[str, Any], base: str | None = None) -> Artifact:
    """Read a model folder after its berthead.json.

    Args:
        folder: the model folder.
        record: as `read_record` gives it, of the kind `model`, `adapter` or `part`.
        base: the encoder of an adapter folder; None: where it was, or beside the folder.

    Returns:
        The fitted function.

    Raises:
        ModelError: the folder is broken, or its encoder is missing.
        UsageError: `base` for a folder that needs none.
    """
    where = str(folder / RECORD)
    version = record.get("format_version")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        fix = "Install a newer berthead." if isinstance(version, int) and version > FORMAT_VERSION else ""
        raise ModelError(
            where, f"has format_version {version!r}", f"1 to {FORMAT_VERSION}, which this berthead reads", fix
        )
    raw_config = read_json(folder / "config.json")
    config = families.read_config(raw_config, str(folder / "config.json"))
    try:
        check_record(record, config.positions)
        task = find_task(record["task"]["name"], record["task"].get("package")).from_json(record["task"])
        head_says = record["head"]
        if head_says["outputs"] != task.outputs:
            raise ValueError(
                f"the head has {counted(head_says['outputs'], 'output')}; expected {task.outputs}, as the task"
            )
        # The caller's random state is left as it was. A head of another package may hold more than its weights.
        with torch.random.fork_rng(devices=[]) if head_says["kind"] == "own" else shapes_only():
            head = make_head(head_says, config.width)
        tags = task.needed_head().get("tags")
        if head_says["kind"] != "own" and tags is not None and head_says["tags"] != tags:
            raise ValueError(f"the head has {head_says['tags']} outputs for tags; expected {tags}, as the task")
        if head.level != task.level:
            raise ValueError(f"the head answers each {head.level}; expected each {task.level}, as the task")
        parameters = record["parameters"]
        changed = _change(record, config)
        # What a change is merged into differs in its last digits between processors: the change itself is compared.
        hashes = (record["adapter"]["sha256"] if changed else parameters["theta_sha256"]), parameters["omega_sha256"]
        columns, adapt, run = dict(record["columns"]), parameters["adapt"], record["run"]
        policy = LengthPolicy(record["max_tokens"], record["on_long"], record.get("stride"))
        pretrained, dropout = dict(parameters["pretrained"]), float(head_says["dropout"])
        golden = tuple(golden_example(one, task.outputs, task.form, many=has_units(task)) for one in record["golden"])
        own_head = head_says["name"] if head_says["kind"] == "own" else None
    except ModelError as error:  # a task or a head that is not installed
        raise ModelError(f"{where}: {error.where}", error.saw, error.expected, error.fix) from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ModelError(where, f"is not a whole record ({type(error).__name__}: {error})") from error
    about = head, task.problem_type, config.family
    names = omega_names(*about)
    omega_shapes = {names[name]: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    stored = StoredHead.of(*about) if version >= 4 else StoredHead({name: name for name in omega_shapes})
    file = ADAPTER_WEIGHTS if changed else PART if "base" in record and version >= 4 else WEIGHTS
    refuse_other_weights(folder, file)
    adapter, place = None, folder
    if changed:
        its_class = transformers_class(*about)["class"] if version >= 4 else wrapped_before_4(*about)
        peft = PeftNames(its_class, families.FAMILIES[config.family].prefix, names, stored)
        adapter, bert, omega = read_adapter(folder, record, config, changed, peft, omega_shapes, base)
        is_part = adapter.base == THETA and not (folder / "tokenizer.json").exists()
        place = adapter.place if is_part else folder
    elif "base" in record:
        bert, omega, place = _read_part(folder / file, record, config, omega_shapes, stored, base)
    elif base is not None:
        raise UsageError(f"--base {base}", f"{folder} holds an encoder of its own", "", "Leave it out.")
    else:
        bert, omega = _read_whole(folder, config, omega_shapes, stored)
    head.load_state_dict({ours: omega[theirs].clone() for ours, theirs in names.items()}, assign=True)
    artifact = Artifact(
        Model(bert, head).eval(), Tokenizer.from_folder(place), task.bound(head), columns=columns, policy=policy,
        raw_config=raw_config, pretrained=pretrained, adapt=adapt, run=run, golden=golden, own_head=own_head,
        dropout=dropout, adapter=adapter,
    )  # fmt: skip
    theta = adapter.tensors if adapter else artifact.theta()
    if (sha256_of(theta), sha256_of(artifact.omega())) != hashes:
        raise ModelError(str(folder / file), f"does not match the sha256 in {RECORD}", "", "Copy the folder again.")
    check_finite(artifact.theta() | artifact.omega(), str(folder / file))
    pairs = reads_pairs(artifact.task, artifact.columns)
    check_tokenizer(artifact.tokenizer, config, str(folder), pairs=pairs)
    _check_unchanged(record, config, folder, place)
    return artifact


def _check_unchanged(record: Mapping[str, Any], config: EncoderConfig, folder: Path, place: Path) -> None:
    """Check what is hashed besides the weights; older folders hold no such hashes."""
    check_seal(record, str(folder / RECORD))
    fix = "Copy the folder again."
    said, now = record.get("encoder", {}), json.loads(json.dumps(asdict(config)))
    for key in sorted(said.keys() & now.keys()):
        if said[key] != now[key]:
            saw = f"describes an encoder whose {key} is {shown(now[key])[:60]}"
            raise ModelError(str(folder / "config.json"), saw, f"{shown(said[key])[:60]}, as in {RECORD}", fix)
    if "tokenizer_sha256" in record and file_sha256(place / TOKENIZER) != record["tokenizer_sha256"]:
        raise ModelError(str(place / TOKENIZER), f"does not match the sha256 in {RECORD}", "", fix)


def _change(record: Mapping[str, Any], config: EncoderConfig) -> Adapt | None:
    """Rank, alpha and targets of an adapter folder; ValueError, TypeError or KeyError if missing or wrong."""
    if "adapter" not in record:
        return None
    what, said = Adapt.parse(record["parameters"]["adapt"]), record["adapter"]
    if what.kind != "lora" or not isinstance(said["base"], str) or not isinstance(said["sha256"], str):
        raise ValueError("adapter does not say what is changed; expected lora, base and sha256")
    lora_shapes(config, what)
    return what


def _read_whole(
    folder: Path, config: EncoderConfig, omega_shapes: Mapping[str, tuple[int, ...]], head: StoredHead
) -> tuple[Encoder, dict[str, Tensor]]:
    """The encoder and the head's tensors, from a folder that holds both."""
    prefix, plain = families.FAMILIES[config.family].prefix, plain_shapes(config)
    stored = read_tensors(folder)
    shapes = {f"{prefix}.{name}": shape for name, shape in plain.items()} | _shapes(omega_shapes, head)
    check_shapes(stored, shapes, str(folder / WEIGHTS))
    theta = {name: stored[f"{prefix}.{name}"].read().float() for name in plain}
    omega = {name: stored[head.names[name]].read().float() for name in omega_shapes}
    return build_encoder(config, our_weights(theta, config)), omega


def _shapes(omega_shapes: Mapping[str, tuple[int, ...]], head: StoredHead) -> dict[str, tuple[int, ...]]:
    """Shapes of a head's tensors by their names in the weights file, and of the empty tensors."""
    return {head.names[name]: shape for name, shape in omega_shapes.items()} | dict.fromkeys(head.empty, (0,))


def _read_part(
    path: Path, record: Mapping[str, Any], config: EncoderConfig, omega_shapes: Mapping[str, tuple[int, ...]],
    head: StoredHead, given: str | None,
) -> tuple[Encoder, dict[str, Tensor], Path]:  # fmt: skip
    """The encoder, the head's tensors, and the folder of theta-hat, from a folder with only the differences to it."""
    prefix, folder = families.FAMILIES[config.family].prefix, path.parent
    if not path.is_file():
        raise ModelError(str(folder), f"holds no {path.name}", "the head, and the weights that differ from its encoder")
    if record["base"] != THETA:
        raise ModelError(str(folder / RECORD), f"base is {record['base']!r}", f'"{THETA}", beside the folder')
    stored = file_tensors(path)
    own = {f"{prefix}.{name}": shape for name, shape in plain_shapes(config).items() if f"{prefix}.{name}" in stored}
    check_shapes(stored, own | _shapes(omega_shapes, head), str(path))
    checkpoint = find_base(folder, str(record["base"]), record["parameters"]["pretrained"]["theta_sha256"], given)
    if checkpoint.config != config:
        saw = f"describes another encoder than {checkpoint.folder / 'config.json'}"
        raise ModelError(str(folder / "config.json"), saw, "the same architecture", "Copy the folder again.")
    theta = families.to_checkpoint(checkpoint.weights, config)
    theta |= {name.removeprefix(f"{prefix}."): stored[name].read().float() for name in own}
    omega = {name: stored[head.names[name]].read().float() for name in omega_shapes}
    return build_encoder(config, our_weights(theta, config)), omega, checkpoint.folder


def write(
    artifact: Artifact, folder: Path, base: str | None = None, theta_hat: Mapping[str, Tensor] | None = None
) -> None:
    """Write a function's files.

    Args:
        artifact: the fitted function.
        folder: an existing empty folder.
        base: the name of the encoder beside the folder; then only differing tensors are written, and no
            tokenizer; None: write everything.
        theta_hat: the parameters of that encoder, by plain name.
    """
    prefix = families.FAMILIES[artifact.family].prefix
    theta = {f"{prefix}.{name}": one for name, one in artifact.theta().items()
             if theta_hat is None or not torch.equal(one, theta_hat[name])}  # fmt: skip
    head, file, record = artifact.stored_head, WEIGHTS, artifact.describe()
    tensors = theta | {head.names[name]: one for name, one in artifact.omega().items()}
    tensors |= {name: torch.empty(0) for name in head.empty}
    if artifact.adapter:
        if base:
            artifact = replace(artifact, adapter=replace(artifact.adapter, base=base))
            record = artifact.describe()
        assert artifact.adapter is not None
        about = artifact.model.head, artifact.task.problem_type, artifact.family
        peft = PeftNames(transformers_class(*about)["class"], prefix, omega_names(*about), head)
        tensors, file = peft.tensors(artifact.adapter.tensors, artifact.omega()), ADAPTER_WEIGHTS
        write_json(folder / ADAPTER_CONFIG, peft.config(artifact.adapter, Adapt.parse(artifact.adapt)))
    elif base:
        file, record = (
            PART,
            record | {"format_version": max(BLOCKED_VERSION, artifact.format_version), "kind": "part", "base": base},
        )
    write_tensors(tensors, folder / file)
    write_json(folder / "config.json", transformers_config(artifact))
    if base is None:
        artifact.tokenizer.save(folder, artifact.max_tokens)
    tokenizer = (folder if base is None else folder.parent / base) / TOKENIZER
    record |= {
        "encoder": asdict(artifact.model.encoder.config),
        "tokenizer_sha256": file_sha256(tokenizer),
        "golden": list(artifact.golden),
    }
    write_json(folder / RECORD, sealed(record))


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Tensors as a safetensors file, in float32."""
    whole = {name: tensor.detach().float().contiguous() for name, tensor in tensors.items()}
    storage.write_tensors(whole, path, {"format": "pt"})


def public_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """An encoder's config.json without paths of its maker's machine and without names of code to run."""
    left_out = ("_name_or_path", "auto_map", "quantization_config", "dtype", "torch_dtype", "transformers_version")
    return {key: value for key, value in raw.items() if key not in left_out}


def transformers_config(artifact: Artifact) -> dict[str, Any]:
    """config.json as transformers reads it."""
    names = artifact.task.label_texts
    its_class = transformers_class(artifact.model.head, artifact.task.problem_type, artifact.family)["class"]
    return public_config(artifact.raw_config) | {
        # A pipeline whose own class refuses the folder takes the one that is named here, which would answer otherwise.
        "architectures": [] if artifact.stored_head.blocked else [its_class],
        "model_type": artifact.family,
        # Of other tasks transformers knows no problem_type, and refuses it.
        "problem_type": artifact.task.problem_type if artifact.task.problem_type in PROBLEM_TYPES else None,
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
        "classifier_dropout": artifact.dropout,
        "dtype": "float32",
    }
