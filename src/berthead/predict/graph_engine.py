"""An ONNX function computed by ONNX Runtime, read from its folder without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from berthead.engine.onnx import OnnxEngine
from berthead.errors import UsageError
from berthead.function.onnx_folder import GRAPH, GraphFunction, opened, tables_of
from berthead.options import PredictOptions
from berthead.predict.predictor import TOKEN_BUDGET, Applier


class GraphEngine:
    """What computes an ONNX function; safe to call from many threads.

    Args:
        function: everything except the graph.
        graph: the loaded graph.
        options: token budget and threads.

    Attributes:
        choice: None: there is only one precision, so `--precision auto` has no choice.
    """

    choice = None

    def __init__(self, function: GraphFunction, graph: OnnxEngine, options: PredictOptions) -> None:
        self.options = options
        self.predictor = Applier(function, graph, function.combine, options.token_budget or TOKEN_BUDGET)

    def verify(self) -> float:
        """Replay the golden examples: the largest relative difference of a logit; GateError: an answer differs."""
        return self.predictor.verify()


def read_onnx(folder: Path, record: Mapping[str, Any], options: PredictOptions) -> tuple[GraphFunction, GraphEngine]:
    """Read the folder of an ONNX function.

    Args:
        folder: written by `berthead export`.
        record: its berthead.json, as `berthead.function.record.read_record` gives it.
        options: token budget and threads.

    Returns:
        The function, and what computes it.

    Raises:
        ModelError: the folder is broken, or not to be trusted.
        UsageError: an option that it does not support, or ONNX Runtime is not installed.
    """
    if options.precision not in ("fp32", "auto"):
        raise UsageError(f"--precision {options.precision}", f"{folder} holds a graph in float32", "fp32")
    if options.device != "cpu":
        raise UsageError(f"--device {options.device}", f"{folder} is computed by ONNX Runtime on CPUs", "cpu")
    if options.base is not None:
        raise UsageError(f"--base {options.base}", f"{folder} holds an encoder of its own", "", "Leave it out.")
    with opened(folder, record) as function:
        graph = OnnxEngine(folder / GRAPH, tables_of(record["export"]), options.threads)
        engine = GraphEngine(function, graph, options)
    return function, engine
