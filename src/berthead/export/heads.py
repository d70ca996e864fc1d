"""Predict_omega as an ONNX graph: vectors [rows, tokens, width] to logits."""

from __future__ import annotations

from torch import nn

from berthead.errors import ModelError
from berthead.export.graph import Graph
from berthead.model.heads import JointHead, RowHead, TokenHead

_ACTIVATIONS: dict[str, nn.Module] = {"tanh": nn.Tanh(), "gelu": nn.GELU(), "relu": nn.ReLU()}


def logits(graph: Graph, head: nn.Module, hidden: str) -> str:
    """What a head says.

    Args:
        graph: where to.
        head: what to write down.
        hidden: the encoder's vectors, float32 [rows, tokens, width].

    Returns:
        float32 [rows, outputs] of rows (with a column more where windows attend), [rows, tokens, outputs] of tokens.

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
    raise ModelError("head", saw, "linear, crf", "Its package knows how it computes; berthead writes its own heads.")


def _row(graph: Graph, name: str, head: RowHead, hidden: str) -> str:
    if head.pooling == "mean":
        pooled = graph.add("ReduceMean", hidden, axes=[1], keepdims=0)
    else:
        first = graph.add("Squeeze", graph.whole(0), graph.whole(0))
        pooled = graph.add("Gather", hidden, first, axis=1)
    if head.dense is not None:
        pooled = graph.activation(_ACTIVATIONS[head.pooled], graph.linear(f"{name}.dense", head.dense, pooled))
    found = graph.linear(f"{name}.out", head.out, pooled)
    if head.attend is None:
        return found
    return graph.add("Concat", found, graph.linear(f"{name}.attend", head.attend, pooled), axis=-1)
