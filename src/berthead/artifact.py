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

from berthead import plugins
from berthead.checks import (
    RECORD,
    check_record,
    golden_example,
    golden_input,
    refuse_other_weights,
    refuse_strange_files,
)
from berthead.errors import GateError, ModelError, OutputError, UsageError
from berthead.model import families
from berthead.model.adapt import Adapt
from berthead.model.adapter import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    Adapter,
    PeftNames,
    lora_shapes,
    read_adapter,
)
from berthead.model.book import head_record, make_head, omega_names, state_named, transformers_class
from berthead.model.checkpoint import (
    WEIGHTS,
    build_encoder,
    check_shapes,
    our_weights,
    plain_shapes,
    read_json,
    read_tensors,
)
from berthead.model.config import EncoderConfig
from berthead.model.encoder import Encoder
from berthead.model.model import Model, sha256_of
from berthead.model.tensors import TensorPack, shapes_only
from berthead.model.units import unit_logits
from berthead.records import Example, FloatArray
from berthead.tasks import TASKS, Batch, Joint, Task, find_task
from berthead.text.layout import Layout
from berthead.text.tokenizer import Tokenizer
from berthead.text.windows import Reading

# 1: one answer a row, long texts cut. 2: every task, and windows. 3: a change of theta-hat in place of theta-tilde.
FORMAT_VERSION = 3
# What needs no newer berthead is written so that an older one reads it.
PLAIN_VERSION = 2
# Golden logits are replayed on other processors and in other orders: float32 noise, relative to their size.
GOLDEN_TOLERANCE = 1e-4

# Units of a golden example that are kept and compared: a long text has thousands.
GOLDEN_UNITS = 64
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")


@dataclass(frozen=True, slots=True)
class Artifact:
    """A fitted function and everything needed to apply it.

    Args:
        model: theta-tilde and omega-tilde.
        tokenizer: text to token numbers.
        task: the meaning of the logits.
        columns: the columns it was fitted on: `text`, `pair` (or None), `label`, and what else the task reads.
        reading: how long inputs are read.
        raw_config: the encoder's config.json.
        pretrained: `name` of the encoder and `theta_sha256` of theta-hat.
        adapt: what learnt, as `Adapt.parse` reads it.
        run: options, data, seed, versions and metrics of the fit.
        golden: inputs with their logits, which `verify` replays.
        own_head: the name of a head of another package, or None.
        dropout: of the head, in training.
        adapter: the change of theta-hat that is written in place of theta-tilde; None: theta-tilde is.
    """

    model: Model
    tokenizer: Tokenizer
    task: Task
    columns: dict[str, Any]
    reading: Reading
    raw_config: dict[str, Any]
    pretrained: dict[str, str]
    adapt: str
    run: dict[str, Any] = field(default_factory=dict)
    golden: tuple[dict[str, Any], ...] = ()
    own_head: str | None = None
    dropout: float = 0.0
    adapter: Adapter | None = None

    @property
    def max_tokens(self) -> int:
        """The longest row in tokens."""
        return self.reading.max_tokens

    def theta(self) -> dict[str, Tensor]:
        """The encoder's parameters under their checkpoint names."""
        return families.to_checkpoint(self.model.encoder.state_dict(), self.model.encoder.config)

    def omega(self) -> dict[str, Tensor]:
        """The head's parameters under their checkpoint names."""
        head = self.model.head
        return state_named(head.state_dict(), omega_names(head, self.task.problem_type, self.family))

    @property
    def family(self) -> str:
        """The encoder's family."""
        return self.model.encoder.config.family

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
        its_class = transformers_class(head, self.task.problem_type, self.family)
        if self.adapter:
            note = _RENAMED_NOTE if families.FAMILIES[self.family].renamed else _PEFT_NOTE
            its_class["note"] = f"{note} {its_class['note']}"
        return {
            "format_version": FORMAT_VERSION if self.adapter else PLAIN_VERSION,
            "task": {"name": self.task.name, **_package(self.task.name), **self.task.to_json()},
            "head": head_record(head, self.own_head, self.task.outputs, self.dropout),
            "columns": self.columns,
            "max_tokens": self.reading.max_tokens,
            "on_long": self.reading.on_long,
            "stride": self.reading.stride,
            "parameters": self.parameters(),
            **({"adapter": self.adapter.record()} if self.adapter else {}),
            "transformers": its_class,
            "run": self.run,
        }


_PEFT_NOTE = (
    "The folder is an adapter of PEFT: load the encoder with config=AutoConfig.from_pretrained(FOLDER), and then "
    "PeftModel.from_pretrained(model, FOLDER)."
)
# transformers loads such a checkpoint into layers of other names.
_RENAMED_NOTE = "PEFT does not know the names of this family's layers: make a plain folder first, with berthead merge."


def _package(task: str) -> dict[str, str]:
    """The package of a task that is not berthead's own."""
    return {} if task in TASKS else {"package": plugins.package(plugins.TASKS, task)}


def plain_logits(artifact: Artifact, examples: Sequence[Example]) -> FloatArray:
    """Logits by the plain model, one row at a time: the slow path that every faster one is compared with.

    Args:
        artifact: the fitted function.
        examples: what the task reads.

    Returns:
        float32 [units, outputs].
    """
    model = artifact.model.eval()
    layout = Layout(artifact.task.inputs(artifact.tokenizer, examples, artifact.reading))
    with torch.inference_mode():
        return unit_logits(
            layout, lambda one: model(TensorPack.from_pack(one)).numpy(), model.head, artifact.task.outputs,
            token_budget=1,
        )[0]  # fmt: skip


def with_golden(artifact: Artifact, examples: Sequence[Example]) -> Artifact:
    """The artifact with these inputs and their logits as its golden examples."""
    golden = []
    for example, rows in zip(examples, _by_example(artifact, examples, plain_logits(artifact, examples)), strict=True):
        kept = rows[:GOLDEN_UNITS].tolist()
        one = {"text": example.text, "pair": example.pair, "logits": kept if has_units(artifact.task) else kept[0]}
        one |= {"words": list(example.words)} if example.words is not None else {}
        golden.append(one | ({"choices": list(example.choices)} if example.choices is not None else {}))
    return replace(artifact, golden=tuple(golden))


def has_units(task: Task) -> bool:
    """Whether an example may get several rows of logits."""
    return task.form != "text" or task.level != "row"


def _by_example(artifact: Artifact, examples: Sequence[Example], logits: FloatArray) -> list[FloatArray]:
    inputs = artifact.task.inputs(artifact.tokenizer, examples, artifact.reading)
    return Batch(examples, inputs).split(logits)


def replay(artifact: Artifact, logits_of: Callable[[list[Example]], FloatArray]) -> float:
    """Compare the golden examples' logits with what a path gives now.

    Args:
        artifact: the fitted function.
        logits_of: the path: examples to logits [units, outputs].

    Returns:
        The largest difference, relative to the logits' size in the task's unit.

    Raises:
        GateError: it is above the tolerance, or there is nothing to replay.
    """
    if not artifact.golden:
        raise GateError("verify", "the model holds no golden examples", "", "Fit it again.")
    examples = [golden_input(one) for one in artifact.golden]
    unit, middle = artifact.task.affine()
    largest = 0.0
    found = _by_example(artifact, examples, logits_of(examples))
    for number, (example, golden, rows) in enumerate(zip(examples, artifact.golden, found, strict=True), 1):
        wanted = np.array(golden["logits"], dtype=np.float64).reshape(-1, artifact.task.outputs)
        if len(wanted) != min(len(rows), GOLDEN_UNITS):
            apart = np.inf  # other words or tokens than were found at fit
        else:
            gaps = np.abs(rows[: len(wanted)] - wanted) / np.maximum(unit, np.abs(wanted - middle))
            apart = float(gaps.max()) if gaps.size else 0.0
        if not apart <= GOLDEN_TOLERANCE:
            saw = f"logits differ by {apart:.2g} on {json.dumps(example.text[:60], ensure_ascii=False)}"
            fix = "The weights, the tokenizer or the arithmetic changed: take a whole copy of the folder."
            raise GateError(f"golden example {number}", saw, f"at most {GOLDEN_TOLERANCE:g} (relative)", fix)
        largest = max(largest, apart)
    return largest


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
        written = load(aside, str(artifact.adapter.place) if artifact.adapter else None)
        if artifact.golden:
            replay(written, lambda examples: plain_logits(written, examples))
        _put_in_place(aside, folder)
    except (OSError, SafetensorError) as error:
        fix = "Free some space or give another place."
        reason = getattr(error, "strerror", None) or error
        raise OutputError(str(folder), f"could not be written ({reason})", "", fix) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def load(folder: Path, base: str | None = None) -> Artifact:
    """Read a model folder, and refuse one that is broken or not to be trusted.

    Args:
        folder: the model folder.
        base: where the encoder of an adapter folder lies; None: where it was, or beside the folder.

    Returns:
        The fitted function.

    Raises:
        ModelError: what is wrong with the folder, or its encoder is not there.
        UsageError: `base` is given of a folder that needs none.
    """
    refuse_strange_files(folder)
    record = read_json(folder / RECORD)
    where = str(folder / RECORD)
    version = record.get("format_version")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        fix = "Install a newer berthead." if isinstance(version, int) and version > FORMAT_VERSION else ""
        raise ModelError(where, f"has format_version {version!r}", f"this berthead reads 1 to {FORMAT_VERSION}", fix)
    raw_config = read_json(folder / "config.json")
    config = families.read_config(raw_config, str(folder / "config.json"))
    try:
        check_record(record, config.positions)
        task = find_task(record["task"]["name"], record["task"].get("package")).from_json(record["task"])
        head_says = record["head"]
        if head_says["outputs"] != task.outputs:
            raise ValueError(f"the head has {head_says['outputs']} outputs, the task {task.outputs}")
        # The caller's random state is left as it was. A head of another package may hold more than its weights.
        with torch.random.fork_rng(devices=[]) if head_says["kind"] == "own" else shapes_only():
            head = make_head(head_says, config.width)
        if isinstance(task, Joint) and head_says["tags"] != task.tag.outputs:
            raise ValueError(f"the head has {head_says['tags']} outputs for tags, the task {task.tag.outputs}")
        if head.level != task.level:
            raise ValueError(f"the head answers each {head.level}, the task each {task.level}")
        parameters = record["parameters"]
        changed = _change(record, config)
        # What a change is merged into differs in its last digits between processors: the change itself is compared.
        hashes = (record["adapter"]["sha256"] if changed else parameters["theta_sha256"]), parameters["omega_sha256"]
        artifact_fields = {
            "columns": dict(record["columns"]),
            "reading": Reading(record["max_tokens"], record["on_long"], record.get("stride")),
            "pretrained": dict(parameters["pretrained"]),
            "adapt": parameters["adapt"],
            "run": record["run"],
            "golden": tuple(
                golden_example(one, task.outputs, task.form, many=has_units(task)) for one in record["golden"]
            ),
            "own_head": head_says["name"] if head_says["kind"] == "own" else None,
            "dropout": float(head_says["dropout"]),
        }
    except ModelError as error:  # a task or a head that is not installed
        raise ModelError(f"{where}: {error.where}", error.saw, error.allowed, error.fix) from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ModelError(where, f"is not a whole record ({type(error).__name__}: {error})") from error
    names = omega_names(head, task.problem_type, config.family)
    omega_shapes = {names[name]: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    refuse_other_weights(folder, adapter=changed is not None)
    adapter = None
    if changed:
        its_class = transformers_class(head, task.problem_type, config.family)["class"]
        peft = PeftNames(its_class, families.FAMILIES[config.family].prefix, names)
        adapter, bert, omega = read_adapter(folder, record, config, changed, peft, omega_shapes, base)
    elif base is not None:
        raise UsageError(f"--base {base}", f"{folder} holds an encoder of its own", "", "Leave it out.")
    else:
        bert, omega = _read_whole(folder, config, omega_shapes)
    head.load_state_dict({ours: omega[theirs].clone() for ours, theirs in names.items()}, assign=True)
    artifact = Artifact(
        Model(bert, head).eval(), Tokenizer.from_folder(folder), task.bound(head), raw_config=raw_config,
        adapter=adapter, **artifact_fields,
    )  # fmt: skip
    theta, file = (adapter.tensors, ADAPTER_WEIGHTS) if adapter else (artifact.theta(), WEIGHTS)
    if (sha256_of(theta), sha256_of(artifact.omega())) != hashes:
        raise ModelError(str(folder / file), f"does not match the sha256 in {RECORD}", "", "Copy the folder again.")
    if artifact.tokenizer.vocabulary > config.vocabulary:
        raise ModelError(str(folder), "its tokenizer and config.json do not fit together")
    return artifact


def _change(record: Mapping[str, Any], config: EncoderConfig) -> Adapt | None:
    """What an adapter folder changes of theta-hat; ValueError, TypeError or KeyError where it does not say so."""
    if "adapter" not in record:
        return None
    what, said = Adapt.parse(record["parameters"]["adapt"]), record["adapter"]
    if what.kind != "lora" or not isinstance(said["base"], str) or not isinstance(said["sha256"], str):
        raise ValueError("adapter does not say what is changed of which encoder")
    lora_shapes(config, what)
    return what


def _read_whole(
    folder: Path, config: EncoderConfig, omega_shapes: dict[str, tuple[int, ...]]
) -> tuple[Encoder, dict[str, Tensor]]:
    """The encoder and the head's tensors of a folder that holds both."""
    prefix, plain = families.FAMILIES[config.family].prefix, plain_shapes(config)
    stored = read_tensors(folder)
    shapes = {f"{prefix}.{name}": shape for name, shape in plain.items()} | omega_shapes
    check_shapes(stored, shapes, str(folder / WEIGHTS))
    tensors = {name: tensor.read().float() for name, tensor in stored.items()}
    theta = {name: tensors[f"{prefix}.{name}"] for name in plain}
    return build_encoder(config, our_weights(theta, config)), tensors


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

    prefix = families.FAMILIES[artifact.family].prefix
    theta = {f"{prefix}.{name}": tensor for name, tensor in artifact.theta().items()}
    tensors, file = theta | artifact.omega(), WEIGHTS
    if artifact.adapter:
        about = artifact.model.head, artifact.task.problem_type, artifact.family
        peft = PeftNames(transformers_class(*about)["class"], prefix, omega_names(*about))
        tensors, file = peft.tensors(artifact.adapter.tensors, artifact.omega()), ADAPTER_WEIGHTS
        _write_json(folder / ADAPTER_CONFIG, peft.config(artifact.adapter, Adapt.parse(artifact.adapt)))
    whole = {name: tensor.detach().float().contiguous() for name, tensor in tensors.items()}
    save_file(whole, folder / file, metadata={"format": "pt"})
    _write_json(folder / "config.json", _transformers_config(artifact))
    shutil.copymode(folder / "config.json", folder / file)  # safetensors lets the owner alone read
    artifact.tokenizer.save(folder, artifact.max_tokens)
    _write_json(folder / RECORD, artifact.describe() | {"golden": list(artifact.golden)})
    for path in folder.iterdir():
        with path.open("rb+") as written:
            os.fsync(written.fileno())


def _transformers_config(artifact: Artifact) -> dict[str, Any]:
    # auto_map would name code to be fetched and run.
    left_out = ("_name_or_path", "auto_map", "quantization_config", "torch_dtype", "transformers_version")
    config = {key: value for key, value in artifact.raw_config.items() if key not in left_out}
    names = artifact.task.label_texts
    return config | {
        "architectures": [
            transformers_class(artifact.model.head, artifact.task.problem_type, artifact.family)["class"]
        ],
        "model_type": artifact.family,
        # Of other tasks transformers knows no problem_type, and refuses it.
        "problem_type": artifact.task.problem_type if artifact.task.problem_type in PROBLEM_TYPES else None,
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
        "classifier_dropout": artifact.dropout,
        "dtype": "float32",
    }


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", errors="backslashreplace")
