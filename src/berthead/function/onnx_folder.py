"""Reading the folder of an ONNX function, without torch: a graph with what its answers need."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from berthead.errors import ModelError, counted
from berthead.function.checks import check_record, golden_example
from berthead.function.golden import has_units, reads_pairs
from berthead.function.protocol import identity_of
from berthead.function.record import check_seal
from berthead.model.units import Combine, pooled
from berthead.records import FloatArray
from berthead.storage.hashes import file_sha256
from berthead.storage.model_files import RECORD, TOKENIZER
from berthead.tasks import Task, find_task
from berthead.text.bounds import TableSizes, check_tokenizer
from berthead.text.tokenizer import Tokenizer
from berthead.text.windows import LengthPolicy

GRAPH, WEIGHTS = "model.onnx", "model.onnx.data"
EXPORT_VERSION = 2
# No table is as large.
_UNKNOWN = 2**40


@dataclass(frozen=True, slots=True)
class GraphFunction:
    """A fitted function computed by a graph: everything except the graph.

    Args:
        tokenizer: text to token numbers.
        task: the meaning of the logits.
        columns: the columns it was fitted on.
        policy: how long inputs are handled.
        golden: inputs with their logits and their answers.
        record: the rest of berthead.json.
    """

    kind: ClassVar[str] = "onnx"

    tokenizer: Tokenizer
    task: Task
    columns: dict[str, Any]
    policy: LengthPolicy
    golden: tuple[dict[str, Any], ...]
    record: dict[str, Any]

    def identity(self) -> dict[str, Any]:
        """Everything that decides its answers, as JSON; that of the exported function."""
        return identity_of(self, self.record["parameters"], self.record["head"])

    def describe(self) -> dict[str, Any]:
        """The content of berthead.json without golden examples, and about the export."""
        return self.record

    @property
    def combine(self) -> Combine | None:
        """Combines the windows of a long text into one answer, from the head's record; None: the mean of logits."""
        head = self.record["head"]
        return partial(pooled, how=head["windows"], outputs=self.task.outputs) if head["kind"] == "row" else None


@contextmanager
def opened(folder: Path, record: Mapping[str, Any]) -> Iterator[GraphFunction]:
    """Read the folder of an ONNX function; its weights are hashed in parallel while the block reads the graph.

    Args:
        folder: written by `berthead export`.
        record: its berthead.json, as `read_record` gives it.

    Yields:
        The function.

    Raises:
        ModelError: the folder is broken, or not to be trusted; wrong hashes are raised at the end of the block.

    Example:
        >>> with opened(folder, read_record(folder)) as function:  # doctest: +SKIP
        ...     engine = OnnxEngine(folder / GRAPH, tables_of(record["export"]))
    """
    wanted = _hashes(record, folder)
    # What ONNX Runtime makes of a damaged graph nobody knows: it does not see one.
    _Hashes(folder, {name: sha256 for name, sha256 in wanted.items() if name != WEIGHTS}, aside=False).check()
    hashes = _Hashes(folder, {WEIGHTS: wanted[WEIGHTS]})
    yield _read(folder, record)
    hashes.check()


class _Hashes:
    """Hashes of a folder's files, computed in a thread aside, or at once."""

    def __init__(self, folder: Path, wanted: Mapping[str, str], *, aside: bool = True) -> None:
        self.folder, self.wanted = folder, wanted
        self._found: dict[str, str] = {}
        self._thread = threading.Thread(target=self._compute, daemon=True)
        try:
            if aside:
                self._thread.start()
            else:
                self._compute()
        except RuntimeError:  # the system gives no more threads
            self._compute()

    def _compute(self) -> None:
        for name in self.wanted:
            try:
                self._found[name] = file_sha256(self.folder / name)
            except OSError:
                self._found[name] = ""

    def check(self) -> None:
        if self._thread.ident is not None:
            self._thread.join()
        for name, sha256 in self.wanted.items():
            if self._found[name] != sha256:
                where = str(self.folder / name)
                raise ModelError(where, f"does not match the sha256 in {RECORD}", "", "Copy the folder again.")


def _hashes(record: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """The files that a folder must hold, with their hashes."""
    said, where = record.get("export"), str(folder / RECORD)
    if not isinstance(said, dict) or said.get("kind") != "onnx":
        raise ModelError(
            where, "is not the record of an exported function", "a folder that berthead export --onnx wrote"
        )
    version = said.get("version")
    if type(version) is not int or not 1 <= version <= EXPORT_VERSION:
        fix = "Install a newer berthead." if isinstance(version, int) and version > EXPORT_VERSION else ""
        raise ModelError(where, f"has version {version!r}", f"1 to {EXPORT_VERSION}, which this berthead reads", fix)
    files, sha256 = {GRAPH, WEIGHTS, TOKENIZER}, said.get("sha256")
    if not isinstance(sha256, dict) or sha256.keys() != files or not all(isinstance(x, str) for x in sha256.values()):
        raise ModelError(where, "does not list the sha256 of each file", f"those of {', '.join(sorted(files))}")
    for name in files:
        if not (folder / name).is_file():
            raise ModelError(
                str(folder), f"holds no {name}", "the files that berthead export wrote", "Copy the folder again."
            )
    return dict(sha256)


def _read(folder: Path, record: Mapping[str, Any]) -> GraphFunction:
    where = str(folder / RECORD)
    try:
        tables = tables_of(record["export"])
        check_record(record, tables.positions)
        task = find_task(record["task"]["name"], record["task"].get("package")).from_json(record["task"])
        head, outputs, many = record["head"], task.outputs, has_units(task)
        if head["outputs"] != outputs:
            raise ValueError(f"the head has {counted(head['outputs'], 'output')}; expected {outputs}, as the task")
        if head["kind"] == "row" and head["windows"] not in ("mean", "max", "attention"):
            raise ValueError(f"windows is {head['windows']!r}; expected mean, max or attention")
        golden = tuple(
            golden_example(one, outputs, task.form, many=many) | {"prediction": dict(one["prediction"])}  # of the graph
            for one in record["golden"]
        )
        policy = LengthPolicy(record["max_tokens"], record["on_long"], record.get("stride"))
        bound = task.bound(_bound_to(record.get("crf"), head))
    except ModelError as error:  # a task that is not installed
        raise ModelError(f"{where}: {error.where}", error.saw, error.expected, error.fix) from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ModelError(where, f"is not a whole record ({type(error).__name__}: {error})") from error
    about = {key: value for key, value in record.items() if key not in ("golden", "crf", "record_sha256")}
    tokenizer, columns = Tokenizer.from_folder(folder), dict(record["columns"])
    check_tokenizer(tokenizer, tables, str(folder), pairs=reads_pairs(task, columns))
    check_seal(record, where)
    return GraphFunction(tokenizer, bound, columns, policy, golden, about)


def tables_of(export: Mapping[str, Any]) -> TableSizes:
    """The sizes of the graph's tables; in folders of an older berthead ONNX Runtime checks two of them."""
    sizes = TableSizes(export.get("vocabulary", _UNKNOWN), export.get("segments", _UNKNOWN), export["positions"])
    for name in ("vocabulary", "segments", "positions"):
        value = getattr(sizes, name)
        if type(value) is not int or not (0 if name == "segments" else 1) <= value <= _UNKNOWN:
            raise ValueError(f"{name} is {value!r}; expected a whole number")
    return sizes


def _bound_to(said: Any, head: Mapping[str, Any]) -> Any:
    """The transition scores of a conditional random field, in the form in which heads hold them."""
    if not head.get("crf"):
        return None
    tags = head.get("tags", head["outputs"])
    shapes = {"first": (tags,), "last": (tags,), "step": (tags, tags)}
    scores: dict[str, FloatArray] = {name: np.array(said[name], dtype=np.float32) for name in shapes}
    for name, shape in shapes.items():
        if scores[name].shape != shape or not np.isfinite(scores[name]).all():
            raise ValueError(f"crf.{name} is not an array of numbers; expected the shape {shape}")
    field = SimpleNamespace(crf=True, **scores)
    return SimpleNamespace(tokens=field) if head["kind"] == "joint" else field
