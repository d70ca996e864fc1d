"""BERT_theta as an ONNX graph, for rows of one length: [rows, tokens] to vectors [rows, tokens, width]."""

from __future__ import annotations

from typing import Any

from torch import nn

from berthead.errors import ModelError
from berthead.export.graph import Graph
from berthead.export.positions import GraphPositions
from berthead.model.capabilities import Supported
from berthead.model.encoder import Attention, Block, Embeddings, Encoder, Gated

SUPPORTED = Supported(embeddings=True)


def vectors(graph: Graph, encoder: Encoder, ids: str, segments: str) -> str:
    """The last layer's vectors.

    Args:
        graph: the graph to add to.
        encoder: the encoder to export.
        ids: token numbers, int64 [rows, tokens].
        segments: token types, the same shape; used if the encoder has token types.

    Returns:
        float32 [rows, tokens, width].

    Raises:
        ModelError: the encoder has a part that cannot be exported.
    """
    if part := SUPPORTED.why_not(encoder):
        raise ModelError("encoder", f"{part}, which ONNX export does not support", "the parts of a supported family")
    positions = GraphPositions(graph, encoder, ids)
    hidden = _embedded(graph, encoder.embeddings, ids, segments, positions)
    for number in encoder.order:
        block: Block = encoder.blocks[number]  # type: ignore[assignment]
        hidden = _block(graph, f"encoder.blocks.{number}", block, hidden, positions)
    return graph.norm("encoder.final_norm", encoder.final_norm, hidden)


def _embedded(graph: Graph, part: Embeddings, ids: str, segments: str, positions: GraphPositions) -> str:
    name = "encoder.embeddings"
    summed = graph.add("Gather", graph.weight(f"{name}.word", part.word.weight), ids)
    if part.segment is not None:
        table = graph.weight(f"{name}.segment", part.segment.weight)
        summed = graph.add("Add", summed, graph.add("Gather", table, segments))
    if part.position is not None:
        table = graph.weight(f"{name}.position", part.position.weight[part.first_position :])
        summed = graph.add("Add", summed, graph.add("Gather", table, positions.numbers))
    if part.project is None:
        return graph.norm(f"{name}.norm", part.norm, summed)
    if part.projects_first:
        return graph.norm(f"{name}.norm", part.norm, graph.linear(f"{name}.project", part.project, summed))
    return graph.linear(f"{name}.project", part.project, graph.norm(f"{name}.norm", part.norm, summed))


def _block(graph: Graph, name: str, block: Block, hidden: str, positions: GraphPositions) -> str:
    def attended(values: str) -> str:
        return _attended(graph, f"{name}.attention", block.attention, values, positions)

    def fed(values: str) -> str:
        return _fed(graph, f"{name}.mlp", block.mlp, values)

    for norm, part in (("attention_norm", attended), ("mlp_norm", fed)):
        layer: nn.Module = getattr(block, norm)
        if block.norm_first:
            hidden = graph.add("Add", hidden, part(graph.norm(f"{name}.{norm}", layer, hidden)))
        else:
            hidden = graph.norm(f"{name}.{norm}", layer, graph.add("Add", hidden, part(hidden)))
    return hidden


def _attended(graph: Graph, name: str, attention: Attention, hidden: str, positions: GraphPositions) -> str:
    heads, width = attention.heads, attention.qkv.in_features
    shape = graph.whole(0, 0, heads, width // heads)
    split = graph.parts("Split", 3, graph.linear(f"{name}.qkv", attention.qkv, hidden), axis=-1)
    query, key, value = (graph.add("Transpose", graph.add("Reshape", part, shape), perm=[0, 2, 1, 3]) for part in split)
    query, key = positions.rotated(query, attention), positions.rotated(key, attention)
    query = graph.add("Mul", query, graph.number(attention.scale))
    scores = graph.add("MatMul", query, graph.add("Transpose", key, perm=[0, 1, 3, 2]))
    weights = graph.add("Softmax", positions.scored(name, attention, query, key, scores), axis=-1)
    mixed = graph.add("Transpose", graph.add("MatMul", weights, value), perm=[0, 2, 1, 3])
    return graph.linear(f"{name}.out", attention.out, graph.add("Reshape", mixed, graph.whole(0, 0, width)))


def _fed(graph: Graph, name: str, mlp: nn.Sequential, hidden: str) -> str:
    layers: dict[str, Any] = dict(mlp.named_children())
    function, inner = layers["activation"], graph.linear(f"{name}.up", layers["up"], hidden)
    if isinstance(function, Gated):
        first, second = graph.parts("Split", 2, inner, axis=-1)
        inner = graph.add("Mul", graph.activation(function.function, first), second)
    else:
        inner = graph.activation(function, inner)
    return graph.linear(f"{name}.down", layers["down"], inner)
