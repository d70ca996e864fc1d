"""The model folder on disk: one fitted function, whole or absent; safetensors and JSON only."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from berthead.checks import RECORD, check_record, golden_example, refuse_strange_files
from berthead.errors import GateError, ModelError, OutputError, listed
from berthead.model import families
from berthead.model.checkpoint import (
    WEIGHTS,
    build_encoder,
    check_shapes,
    plain_shapes,
    read_json,
    read_tensors,
)
from berthead.model.families import EncoderConfig
from berthead.model.heads import RowHead
from berthead.model.model import Model, sha256_of
from berthead.model.tensors import TensorPack, shapes_only
from berthead.records import Example, FloatArray
from berthead.tasks import TASKS, Task
from berthead.text.packing import pack
from berthead.text.tokenizer import Tokenizer

FORMAT_VERSION = 1
# Golden logits are replayed on other processors and in other orders: float32 noise, relative to their size.
GOLDEN_TOLERANCE = 1e-4

_NATIVE = "AutoModelForSequenceClassification gives this folder's logits."
_BY_TOKEN = (
    "transformers has no sequence-classification class with {0} pooling. AutoModelForTokenClassification loads this "
    "folder, and {1} is this folder's logits. AutoModelForSequenceClassification would put a random pooler in between."
)
TRANSFORMERS = {
    "pooler": {"class": "BertForSequenceClassification", "note": _NATIVE},
    "mean": {
        "class": "BertForTokenClassification",
        "note": _BY_TOKEN.format("mean", "the mean of its token logits over a row's tokens"),
    },
    "cls": {"class": "BertForTokenClassification", "note": _BY_TOKEN.format("cls", "its logits at the first token")},
}


@dataclass(frozen=True, slots=True)
class Artifact:
    """A fitted function and everything needed to apply it.

    Args:
        model: theta-tilde and omega-tilde.
        tokenizer: text to token numbers.
        task: the meaning of the logits.
        columns: the columns it was fitted on: `text`, `pair` (or None), `label`.
        max_tokens: longest input in tokens; the rest is cut and counted.
        raw_config: the encoder's config.json.
        pretrained: `name` of the encoder and `theta_sha256` of theta-hat.
        adapt: what learnt: `full` or `frozen`.
        run: options, data, seed, versions and metrics of the fit.
        golden: inputs with their logits, which `verify` replays.
    """

    model: Model
    tokenizer: Tokenizer
    task: Task
    columns: dict[str, str | None]
    max_tokens: int
    raw_config: dict[str, Any]
    pretrained: dict[str, str]
    adapt: str
    run: dict[str, Any] = field(default_factory=dict)
    golden: tuple[dict[str, Any], ...] = ()

    def theta(self) -> dict[str, Tensor]:
        """The encoder's parameters under their checkpoint names."""
        return families.to_checkpoint(self.model.encoder.state_dict(), self.model.encoder.config.layers)

    def omega(self) -> dict[str, Tensor]:
        """The head's parameters under their checkpoint names."""
        return omega_names(self.model.head.state_dict())

    def parameters(self) -> dict[str, Any]:
        """Hashes and sizes of theta and omega, and whether theta is still the pre-trained one."""
        theta, omega = self.theta(), self.omega()
        theta_sha256 = sha256_of(theta)
        return {
            "theta_sha256": theta_sha256,
            "omega_sha256": sha256_of(omega),
            "theta_parameters": sum(tensor.numel() for tensor in theta.values()),
            "omega_parameters": sum(tensor.numel() for tensor in omega.values()),
            "pretrained": self.pretrained,
            "adapt": self.adapt,
            "theta_is_pretrained": theta_sha256 == self.pretrained["theta_sha256"],
        }

    def describe(self) -> dict[str, Any]:
        """What berthead.json says, golden examples left out."""
        head = self.model.head
        return {
            "format_version": FORMAT_VERSION,
            "task": {"name": self.task.name, **self.task.to_json()},
            "head": {"kind": "row", "pooling": head.pooling, "outputs": self.task.outputs, "dropout": head.dropout.p},
            "columns": self.columns,
            "max_tokens": self.max_tokens,
            "on_long": "truncate",
            "parameters": self.parameters(),
            "transformers": TRANSFORMERS[head.pooling],
            "run": self.run,
        }


def omega_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The head's tensors under the names that transformers gives them."""
    names = {f"{name}": f"bert.{plain}" for name, plain in families.POOLER.items()}
    names |= {"out.weight": "classifier.weight", "out.bias": "classifier.bias"}
    return {names[name]: tensor for name, tensor in state.items()}


def head_state(tensors: Mapping[str, Tensor], pooling: str) -> dict[str, Tensor]:
    """The inverse of `omega_names`."""
    state = {"out.weight": tensors["classifier.weight"], "out.bias": tensors["classifier.bias"]}
    if pooling == "pooler":
        state |= {name: tensors[f"bert.{plain}"] for name, plain in families.POOLER.items()}
    return state


def plain_logits(artifact: Artifact, examples: Sequence[Example]) -> FloatArray:
    """Logits by the plain model, one row at a time: the slow path that every faster one is compared with.

    Args:
        artifact: the fitted function.
        examples: texts or pairs.

    Returns:
        float32 [rows, outputs].
    """
    pairs = [example.pair or "" for example in examples] if artifact.columns["pair"] else None
    encoded = artifact.tokenizer.encode([example.text for example in examples], pairs, artifact.max_tokens)
    artifact.model.eval()
    with torch.inference_mode():
        rows = [
            artifact.model(TensorPack.from_pack(pack(encoded, np.array([row])))).numpy() for row in range(len(encoded))
        ]
    return np.concatenate(rows)


def with_golden(artifact: Artifact, examples: Sequence[Example]) -> Artifact:
    """The artifact with these inputs and their logits as its golden examples."""
    logits = plain_logits(artifact, examples) if examples else np.empty((0, 0))
    golden = tuple(
        {"text": example.text, "pair": example.pair, "logits": [float(x) for x in row]}
        for example, row in zip(examples, logits, strict=True)
    )
    return replace(artifact, golden=golden)


def replay(artifact: Artifact, logits_of: Callable[[list[Example]], FloatArray]) -> float:
    """Compare the golden examples' logits with what a path gives now.

    Args:
        artifact: the fitted function.
        logits_of: the path: examples to logits [rows, outputs].

    Returns:
        The largest difference, relative to the logits' size in the task's unit.

    Raises:
        GateError: it is above the tolerance, or there is nothing to replay.
    """
    if not artifact.golden:
        raise GateError("verify", "the model holds no golden examples", "", "Fit it again.")
    examples = [Example(one["text"], one["pair"]) for one in artifact.golden]
    wanted = np.array([one["logits"] for one in artifact.golden], dtype=np.float64)
    unit, middle = artifact.task.affine()
    apart = np.abs(logits_of(examples) - wanted) / np.maximum(unit, np.abs(wanted - middle))
    if not apart.max() <= GOLDEN_TOLERANCE:
        row = int(apart.max(1).argmax())
        saw = f"logits differ by {apart.max():.2g} on {json.dumps(examples[row].text[:60], ensure_ascii=False)}"
        fix = "The weights, the tokenizer or the arithmetic changed: take a whole copy of the folder."
        raise GateError(f"golden example {row + 1}", saw, f"at most {GOLDEN_TOLERANCE:g} (relative)", fix)
    return float(apart.max())


def check_out(folder: Path, overwrite: bool) -> None:
    """Whether a model can be saved there, before any work is done.

    Args:
        folder: the model folder to be.
        overwrite: replace a model folder that exists.

    Raises:
        OutputError: something is there already, or the place cannot be written.
    """
    try:
        _refuse_taken(folder, overwrite)
        aside = _aside(folder)
        shutil.rmtree(aside, ignore_errors=True)  # from a process that was killed and had this number
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside.mkdir()
        aside.rmdir()
    except OSError as error:
        raise OutputError(str(folder), f"cannot be created ({error.strerror})", "", "Give another --out.") from error


def _refuse_taken(folder: Path, overwrite: bool) -> None:
    if folder.name in ("", ".."):
        raise OutputError(str(folder), "has no name of its own", "a new folder", "Give another --out.")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise OutputError(str(folder), "is not a folder", "", "Give another --out.")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / RECORD).is_file():
            raise OutputError(str(folder), "holds other files", "a new or empty folder", "Give another --out.")
        if not overwrite:
            raise OutputError(str(folder), "holds a model already", "", "Give another --out, or add --overwrite.")


def save(artifact: Artifact, folder: Path, overwrite: bool = False) -> None:
    """Write the model folder aside, load it again, compare, and rename it into place.

    Args:
        artifact: the fitted function.
        folder: where to.
        overwrite: replace a model folder that exists.

    Raises:
        OutputError: the place cannot be written, or the disk is full; nothing is left there.
        GateError: the written folder does not give the same logits.
    """
    check_out(folder, overwrite)
    aside = _aside(folder)
    try:
        aside.mkdir()
        _write(artifact, aside)
        written = load(aside)
        if artifact.golden:
            replay(written, lambda examples: plain_logits(written, examples))
        _put_in_place(aside, folder)
    except (OSError, SafetensorError) as error:
        fix = "Free some space or give another place."
        reason = getattr(error, "strerror", None) or error
        raise OutputError(str(folder), f"could not be written ({reason})", "", fix) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def load(folder: Path) -> Artifact:
    """Read a model folder, and refuse one that is broken or not to be trusted.

    Args:
        folder: the model folder.

    Returns:
        The fitted function.

    Raises:
        ModelError: what is wrong with the folder.
    """
    refuse_strange_files(folder)
    record = read_json(folder / RECORD)
    where = str(folder / RECORD)
    version = record.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        fix = "Install a newer berthead." if isinstance(version, int) and version > FORMAT_VERSION else ""
        raise ModelError(where, f"has format_version {version!r}", f"this berthead reads {FORMAT_VERSION}", fix)
    raw_config = read_json(folder / "config.json")
    config = EncoderConfig.from_checkpoint(raw_config, str(folder / "config.json"))
    try:
        check_record(record, config.positions)
        task = TASKS[record["task"]["name"]].from_json(record["task"])
        pooling, dropout = record["head"]["pooling"], float(record["head"]["dropout"])
        shapes = _shapes(config, pooling, task.outputs)
        parameters, columns = record["parameters"], record["columns"]
        max_tokens = record["max_tokens"]
        hashes = parameters["theta_sha256"], parameters["omega_sha256"]
        artifact_fields = {
            "columns": {key: columns[key] for key in ("text", "pair", "label")},
            "pretrained": dict(parameters["pretrained"]),
            "adapt": parameters["adapt"],
            "run": record["run"],
            "golden": tuple(golden_example(one, task.outputs) for one in record["golden"]),
        }
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ModelError(where, f"is not a whole record ({type(error).__name__}: {error})") from error
    stored = read_tensors(folder)
    check_shapes(stored, shapes, str(folder / WEIGHTS))
    tensors = {name: tensor.read().float() for name, tensor in stored.items()}
    names = plain_shapes(config)
    theta = {families.plain_name(name): t for name, t in tensors.items() if families.plain_name(name) in names}
    encoder = build_encoder(config, families.from_checkpoint(theta, config.layers))
    with shapes_only():  # no weights are drawn: the caller's random state is left as it was
        head = RowHead(config.width, task.outputs, pooling, dropout)
    head.load_state_dict({name: t.clone() for name, t in head_state(tensors, pooling).items()}, assign=True)
    artifact = Artifact(
        Model(encoder, head).eval(), Tokenizer.from_folder(folder), task, max_tokens=max_tokens, raw_config=raw_config,
        **artifact_fields,
    )  # fmt: skip
    if (sha256_of(artifact.theta()), sha256_of(artifact.omega())) != hashes:
        raise ModelError(str(folder / WEIGHTS), f"does not match the sha256 in {RECORD}", "", "Copy the folder again.")
    if artifact.tokenizer.vocabulary > config.vocabulary:
        raise ModelError(str(folder), "its tokenizer and config.json do not fit together")
    return artifact


def _put_in_place(aside: Path, folder: Path) -> None:
    if not folder.is_dir():
        aside.rename(folder)
        return
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)
    try:
        aside.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.part-{os.getpid()}")


def _write(artifact: Artifact, folder: Path) -> None:
    from safetensors.torch import save_file

    tensors = {f"bert.{name}": tensor for name, tensor in artifact.theta().items()} | artifact.omega()
    whole = {name: tensor.detach().float().contiguous() for name, tensor in tensors.items()}
    save_file(whole, folder / WEIGHTS, metadata={"format": "pt"})
    _write_json(folder / "config.json", _transformers_config(artifact))
    shutil.copymode(folder / "config.json", folder / WEIGHTS)  # safetensors lets the owner alone read
    artifact.tokenizer.save(folder, artifact.max_tokens)
    _write_json(folder / RECORD, artifact.describe() | {"golden": list(artifact.golden)})
    for path in folder.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def _transformers_config(artifact: Artifact) -> dict[str, Any]:
    # auto_map would name code to be fetched and run.
    left_out = ("_name_or_path", "auto_map", "quantization_config", "torch_dtype", "transformers_version")
    config = {key: value for key, value in artifact.raw_config.items() if key not in left_out}
    names = artifact.task.label_texts
    return config | {
        "architectures": [TRANSFORMERS[artifact.model.head.pooling]["class"]],
        "model_type": "bert",
        "problem_type": artifact.task.problem_type,
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
        "classifier_dropout": artifact.model.head.dropout.p,
        "dtype": "float32",
    }


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", errors="backslashreplace")


def _shapes(config: EncoderConfig, pooling: str, outputs: int) -> dict[str, tuple[int, ...]]:
    """The shape of every weight in the model folder, by its full name."""
    if pooling not in TRANSFORMERS:
        raise ValueError(f"pooling is {pooling!r}; allowed: {listed(TRANSFORMERS)}")
    shapes = {f"bert.{name}": shape for name, shape in plain_shapes(config).items()}
    with shapes_only():
        head = RowHead(config.width, outputs, pooling).state_dict()
    return shapes | {name: tuple(tensor.shape) for name, tensor in omega_names(head).items()}
