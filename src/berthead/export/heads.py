"""Predict_omega as an ONNX graph: vectors [rows, tokens, width] to logits."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from berthead.errors import ModelError
from berthead.export.graph import Graph
from berthead.model.heads import JointHead, RowHead, TokenHead

_ACTIVATIONS: dict[str, nn.Module] = {"tanh": nn.Tanh(), "gelu": nn.GELU(), "relu": nn.ReLU()}


def _mean(graph: Graph, hidden: str) -> str:
    return graph.add("ReduceMean", hidden, axes=[1], keepdims=0)


def _first(graph: Graph, hidden: str) -> str:
    return graph.add("Gather", hidden, graph.add("Squeeze", graph.whole(0), graph.whole(0)), axis=1)


def _of_length_1(pool: Callable[[Graph, str], str]) -> Callable[[Graph, str], str]:
    """A pooling whose vectors are divided by their lengths."""

    def pooled(graph: Graph, hidden: str) -> str:
        vector = pool(graph, hidden)
        length = graph.add("ReduceL2", vector, axes=[1], keepdims=1)
        return graph.add("Div", vector, graph.add("Max", length, graph.number(1e-12)))

    return pooled


# From vectors [rows, tokens, width] to [rows, width].
_POOLINGS: dict[str, Callable[[Graph, str], str]] = {
    "cls": _first,
    "mean": _mean,
    "pooler": _first,
    "cls_normalised": _of_length_1(_first),
    "mean_normalised": _of_length_1(_mean),
}


def logits(graph: Graph, head: nn.Module, hidden: str) -> str:
    """The logits of a head.

    Args:
        graph: the graph to add to.
        head: the head to export.
        hidden: the encoder's vectors, float32 [rows, tokens, width].

    Returns:
        float32 [rows, outputs] for rows (one column more for window attention), [rows, tokens, outputs] for tokens.

    Raises:
        ModelError: the head is of another package.
    """
    if isinstance(head, RowHead):
        return _row(graph, "head", head, hidden)
    if isinstance(head, TokenHead):
        return graph.linear("head.out", head.out, hidden)
    if isinstance(head, JointHead):
        tokens = graph.linear("head.tokens.out", head.tokens.out, hidden)
        row = graph.add("Unsqueeze", _row(graph, "head.row", head.row, hidden), graph.whole(1))
        shape = graph.add("Concat", graph.add("Shape", tokens, start=0, end=2), graph.whole(1), axis=0)
        return graph.add("Concat", tokens, graph.add("Expand", row, shape), axis=-1)
    saw = f"is {type(head).__name__}, of another package"
    raise ModelError("head", saw, "linear or crf", "Only berthead's own heads can be exported.")


def _row(graph: Graph, name: str, head: RowHead, hidden: str) -> str:
    if head.pooling not in _POOLINGS:
        saw, known = f"has the pooling {head.pooling}, which ONNX export does not support", ", ".join(_POOLINGS)
        raise ModelError("head", saw, f"one of {known}")
    pooled = _POOLINGS[head.pooling](graph, hidden)
    if head.dense is not None:
        pooled = graph.activation(_ACTIVATIONS[head.pooled], graph.linear(f"{name}.dense", head.dense, pooled))
    found = graph.linear(f"{name}.out", head.out, pooled)
    if head.attend is None:
        return found
    return graph.add("Concat", found, graph.linear(f"{name}.attend", head.attend, pooled), axis=-1)
