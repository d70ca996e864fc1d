"""An exported function: a folder with an ONNX graph, read and applied without torch."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from berthead.answering import Answering
from berthead.engine.onnx import OnnxEngine
from berthead.errors import GateError, ModelError, UsageError
from berthead.function.checks import check_record, golden_example, golden_input, refuse_strange_files
from berthead.function.function import GOLDEN_TOLERANCE, has_units, identity_of, reads_pairs, replay
from berthead.model.units import Combine, pooled
from berthead.options import PredictOptions
from berthead.predict.predictor import TOKEN_BUDGET, Applier
from berthead.records import FloatArray, Prediction
from berthead.storage.hashes import file_sha256
from berthead.storage.model_files import RECORD, read_json
from berthead.tasks import Task, find_task
from berthead.text.tables import TableSizes, check_tokenizer
from berthead.text.tokenizer import Tokenizer
from berthead.text.windows import Reading

GRAPH, TOKENIZER = "model.onnx", "tokenizer.json"
EXPORT_VERSION = 1
# No table is as large.
_UNKNOWN = 2**40


@dataclass(frozen=True, slots=True)
class GraphFunction:
    """What the folder of an exported function says of it.

    Args:
        tokenizer: text to token numbers.
        task: the meaning of the logits.
        columns: the columns it was fitted on.
        reading: how long inputs are read.
        golden: inputs with their logits and their answers.
        record: the rest of berthead.json.
    """

    tokenizer: Tokenizer
    task: Task
    columns: dict[str, Any]
    reading: Reading
    golden: tuple[dict[str, Any], ...]
    record: dict[str, Any]

    def identity(self) -> dict[str, Any]:
        """Everything that decides its answers, as JSON: that of the function which was exported."""
        return identity_of(self, self.record["parameters"], self.record["head"])


class Exported(Answering):
    """An exported function, computed by ONNX Runtime; safe to call from many threads.

    Args:
        folder: that `berthead export` wrote.
        options: token budget and threads.

    Attributes:
        choice: None, as of a precision that a user named: there is nothing that `--precision auto` could choose from.

    Raises:
        ModelError: the folder is broken, or not to be trusted.
        UsageError: an option that it cannot have, or ONNX Runtime is not installed.

    Example:
        >>> model = load("tickets-onnx")  # doctest: +SKIP
        >>> model.predict("My parcel never came").answer  # doctest: +SKIP
        'delivery'
    """

    choice = None

    def __init__(self, folder: Path, options: PredictOptions | None = None) -> None:
        self.options = options or PredictOptions()
        if self.options.precision not in ("fp32", "auto"):
            raise UsageError(f"--precision {self.options.precision}", f"{folder} holds a graph in float32", "fp32")
        if self.options.device != "cpu":
            raise UsageError(f"--device {self.options.device}", f"{folder} is computed by ONNX Runtime on CPUs", "cpu")
        if self.options.base is not None:
            saw = f"{folder} holds an encoder of its own"
            raise UsageError(f"--base {self.options.base}", saw, "", "Leave it out.")
        refuse_strange_files(folder)
        record = read_json(folder / RECORD)
        hashes = _Hashes(folder, _hashes(record, folder))
        self._function = _read(folder, record)
        outputs = self._function.task.outputs
        engine = OnnxEngine(folder / GRAPH, _tables(record["export"]), self.options.threads)
        combine = _combine(record["head"], outputs)
        self._predictor = Applier(self._function, engine, combine, self.options.token_budget or TOKEN_BUDGET)
        hashes.check()

    @property
    def function(self) -> GraphFunction:
        """What the folder says of it."""
        return self._function

    @property
    def predictor(self) -> Applier:
        """The function with its graph."""
        return self._predictor

    def info(self) -> dict[str, Any]:
        """The formula as fitted: task, head, hashes of the parameters, labels, metrics, versions; and the export."""
        return self._function.record

    def verify(self) -> float:
        """Replay the golden examples: their logits and their answers.

        Returns:
            The largest relative difference of a logit.

        Raises:
            GateError: a difference is above the tolerance.
        """
        largest = replay(self._function, self.predictor.logits)
        for number, golden in enumerate(self._function.golden, 1):
            found, wanted = as_written(next(self.predictor.predict([golden_input(golden)]))), golden["prediction"]
            for key in found:
                if key not in wanted or not _alike(found[key], wanted[key]):
                    saw, said = (repr(side.get(key))[:100] for side in (found, wanted))
                    raise GateError(f"golden example {number}", f"its {key} is {saw}", f"{RECORD} says {said}")
        return largest


def is_exported(folder: Path) -> bool:
    """Whether a folder is one that `berthead export --onnx` wrote."""
    try:
        return "export" in read_json(folder / RECORD)
    except ModelError:
        return False


def as_written(prediction: Prediction) -> dict[str, Any]:
    """A prediction as berthead.json holds it; of two windows that decide alike, rounding says which did."""
    left_out = ("where", "error", "window")
    return {key: value for key, value in prediction.to_dict().items() if key not in left_out}


class _Hashes:
    """Hashes of a folder's files, computed while the graph is read."""

    def __init__(self, folder: Path, wanted: Mapping[str, str]) -> None:
        self.folder, self.wanted = folder, wanted
        self._found: dict[str, str] = {}
        self._thread = threading.Thread(target=self._compute, daemon=True)
        self._thread.start()

    def _compute(self) -> None:
        for name in self.wanted:
            try:
                self._found[name] = file_sha256(self.folder / name)
            except OSError:
                self._found[name] = ""

    def check(self) -> None:
        self._thread.join()
        for name, sha256 in self.wanted.items():
            if self._found[name] != sha256:
                where = str(self.folder / name)
                raise ModelError(where, f"does not match the sha256 in {RECORD}", "", "Copy the folder again.")


def _hashes(record: dict[str, Any], folder: Path) -> dict[str, str]:
    """The files that a folder has to hold, each with its hash."""
    said, where = record.get("export"), str(folder / RECORD)
    if not isinstance(said, dict) or said.get("kind") != "onnx":
        raise ModelError(where, "is not of an exported function", "a folder that berthead export --onnx wrote")
    version = said.get("version")
    if type(version) is not int or not 1 <= version <= EXPORT_VERSION:
        fix = "Install a newer berthead." if isinstance(version, int) and version > EXPORT_VERSION else ""
        raise ModelError(where, f"has version {version!r}", f"this berthead reads 1 to {EXPORT_VERSION}", fix)
    files, sha256 = {GRAPH, f"{GRAPH}.data", TOKENIZER}, said.get("sha256")
    if not isinstance(sha256, dict) or sha256.keys() != files or not all(isinstance(x, str) for x in sha256.values()):
        raise ModelError(where, "does not say the sha256 of each file", f"those of {', '.join(sorted(files))}")
    for name in files:
        if not (folder / name).is_file():
            raise ModelError(str(folder), f"holds no {name}", "what berthead export wrote", "Copy the folder again.")
    return dict(sha256)


def _read(folder: Path, record: dict[str, Any]) -> GraphFunction:
    where = str(folder / RECORD)
    try:
        tables = _tables(record["export"])
        check_record(record, tables.positions)
        task = find_task(record["task"]["name"], record["task"].get("package")).from_json(record["task"])
        head, outputs, many = record["head"], task.outputs, has_units(task)
        if head["outputs"] != outputs:
            raise ValueError(f"the head has {head['outputs']} outputs, the task {outputs}")
        if head["kind"] == "row" and head["windows"] not in ("mean", "max", "attention"):
            raise ValueError(f"windows is {head['windows']!r}")
        golden = tuple(
            golden_example(one, outputs, task.form, many=many) | {"prediction": dict(one["prediction"])}
            for one in record["golden"]
        )
        reading = Reading(record["max_tokens"], record["on_long"], record.get("stride"))
        bound = task.bound(_bound_to(record.get("crf"), head))
    except ModelError as error:  # a task that is not installed
        raise ModelError(f"{where}: {error.where}", error.saw, error.allowed, error.fix) from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ModelError(where, f"is not a whole record ({type(error).__name__}: {error})") from error
    about = {key: value for key, value in record.items() if key not in ("golden", "crf")}
    tokenizer, columns = Tokenizer.from_folder(folder), dict(record["columns"])
    check_tokenizer(tokenizer, tables, str(folder), pairs=reads_pairs(task, columns))
    return GraphFunction(tokenizer, bound, columns, reading, golden, about)


def _tables(export: Mapping[str, Any]) -> TableSizes:
    """The sizes of the graph's tables; folders of an older berthead leave two to ONNX Runtime, which checks them."""
    sizes = TableSizes(export.get("vocabulary", _UNKNOWN), export.get("segments", _UNKNOWN), export["positions"])
    for name in ("vocabulary", "segments", "positions"):
        value = getattr(sizes, name)
        if type(value) is not int or not (0 if name == "segments" else 1) <= value <= _UNKNOWN:
            raise ValueError(f"{name} is {value!r}")
    return sizes


def _combine(head: Mapping[str, Any], outputs: int) -> Combine | None:
    """How the windows of a long text become one answer, as the head's record says."""
    return partial(pooled, how=head["windows"], outputs=outputs) if head["kind"] == "row" else None


def _bound_to(said: Any, head: Mapping[str, Any]) -> Any:
    """What a task reads of its head: the scores of a conditional random field, as its own heads hold them."""
    if not head.get("crf"):
        return None
    tags = head.get("tags", head["outputs"])
    shapes = {"first": (tags,), "last": (tags,), "step": (tags, tags)}
    scores: dict[str, FloatArray] = {name: np.array(said[name], dtype=np.float32) for name in shapes}
    for name, shape in shapes.items():
        if scores[name].shape != shape or not np.isfinite(scores[name]).all():
            raise ValueError(f"crf.{name} does not hold {shape} numbers")
    field = SimpleNamespace(crf=True, **scores)
    return SimpleNamespace(tokens=field) if head["kind"] == "joint" else field


def _alike(found: Any, wanted: Any) -> bool:
    """Whether two written values are the same but for float32 noise."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(_alike(value, wanted[key]) for key, value in found.items())
    if isinstance(found, list | tuple) and isinstance(wanted, list | tuple):
        return len(found) == len(wanted) and all(map(_alike, found, wanted))
    if isinstance(found, float) and isinstance(wanted, int | float):
        return abs(found - wanted) <= GOLDEN_TOLERANCE * max(1.0, abs(wanted))
    return bool(found == wanted)
