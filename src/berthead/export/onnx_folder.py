"""Writing the folder of an exported function: an ONNX graph, the tokenizer, and what its answers need."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from berthead.export import encoder, heads
from berthead.export.graph import OPSET, Graph
from berthead.function.artifact import Artifact
from berthead.function.checks import golden_input
from berthead.function.golden import as_written
from berthead.function.onnx_folder import EXPORT_VERSION, GRAPH
from berthead.function.record import read_record, sealed
from berthead.model.heads import JointHead, TokenHead
from berthead.options import PredictOptions
from berthead.predict.graph_engine import read_onnx
from berthead.predict.predictor import Predictor
from berthead.storage.files import write_json
from berthead.storage.folders import made_whole
from berthead.storage.hashes import file_sha256
from berthead.storage.model_files import RECORD, TOKENIZER
from berthead.tasks.crf import as_array


def write_onnx(artifact: Artifact, folder: Path, overwrite: bool = False) -> float:
    """Write a function as an ONNX folder, compare its answers in ONNX Runtime, and rename it into place.

    Args:
        artifact: the fitted function.
        folder: the target folder.
        overwrite: replace a folder that exists.

    Returns:
        The largest relative difference of a golden example's logit.

    Raises:
        ModelError: the head is of another package.
        UsageError: `onnx` or `onnxruntime` is not installed.
        OutputError: the place cannot be written; nothing is left there.
        GateError: it gives other answers; nothing is left there.
    """
    with made_whole(folder, overwrite) as aside:
        _write_graph(artifact, aside / GRAPH)
        artifact.tokenizer.backend.save(str(aside / TOKENIZER))
        write_json(aside / RECORD, sealed(_record(artifact, aside)))
        options = PredictOptions(threads=torch.get_num_threads())
        return read_onnx(aside, read_record(aside), options)[1].verify()


@torch.no_grad()
def _write_graph(artifact: Artifact, path: Path) -> None:
    graph, model = Graph(path), artifact.model.eval()
    names = ["ids", "segments"] if model.encoder.config.segments else ["ids"]
    hidden = encoder.vectors(graph, model.encoder, "ids", "segments")
    logits = heads.logits(graph, model.head, hidden)
    axes: list[str | int] = ["rows", "tokens"] if model.head.level == "token" else ["rows"]
    about = _about(artifact, names)
    graph.save({name: ["rows", "tokens"] for name in names}, logits, [*axes, len(json.loads(about["outputs"]))], about)


def _about(artifact: Artifact, names: list[str]) -> dict[str, str]:
    """The graph's metadata, for readers that have only this file."""
    task, policy = artifact.task, artifact.policy
    each = "token" if artifact.model.head.level == "token" else "row"
    doc = (
        f"A fitted function of the task {task.name}. {' and '.join(names)}: int64 [rows, tokens], rows of one length "
        f"without padding, special tokens included. logits: for each {each} the numbers that the metadata name under "
        "outputs; beside them stand the task with its labels and activation, the columns, and how long texts are read."
    )
    attends = getattr(artifact.model.head, "windows", "") == "attention"
    values = {
        "task": {"name": task.name, **task.to_json()},
        "outputs": task.output_texts + ["weight of the window"] * attends,
        "columns": artifact.columns,
        "reading": {"max_tokens": policy.max_tokens, "on_long": policy.on_long, "stride": policy.stride},
    }
    return {"doc": doc} | {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}


def _record(artifact: Artifact, folder: Path) -> dict[str, Any]:
    """berthead.json: that of the model folder, and entries for the export."""
    said = replace(artifact, adapter=None).describe() | {"kind": "onnx"}
    del said["transformers"]
    said["run"] = {name: value for name, value in said["run"].items() if name != "gate"}  # of other arithmetic
    files = (GRAPH, f"{GRAPH}.data", TOKENIZER)
    config = artifact.model.encoder.config
    export: dict[str, Any] = {
        "kind": "onnx", "version": EXPORT_VERSION if artifact.task.format_version > 1 else 1, "opset": OPSET,
        "positions": config.positions, "vocabulary": config.vocabulary, "segments": config.segments,
        "sha256": {name: file_sha256(folder / name) for name in files},
    }  # fmt: skip
    head = artifact.model.head.tokens if isinstance(artifact.model.head, JointHead) else artifact.model.head
    if isinstance(head, TokenHead) and head.crf:
        said["crf"] = {name: as_array(getattr(head, name)).tolist() for name in ("first", "last", "step")}
    predictor = Predictor(artifact)
    golden = [
        one | {"prediction": as_written(answer)}
        for one, answer in zip(artifact.golden, predictor.predict(map(golden_input, artifact.golden)), strict=True)
    ]
    return said | {"export": export, "golden": golden}
