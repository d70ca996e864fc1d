"""Positions for attention in an ONNX graph: rotary positions, relative positions, attention windows."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from berthead.export.graph import Graph
from berthead.model.encoder import Attention, Encoder
from berthead.model.positions import Disentangled, RelativeBias, Rotary


class GraphPositions:
    """Positions of the tokens of a row, as attention reads them; what blocks share is computed once."""

    def __init__(self, graph: Graph, encoder: Encoder, ids: str) -> None:
        self.graph, self.part = graph, encoder.positions
        # No row is longer: tables hold what there is to know of each distance between its tokens.
        self.most = encoder.config.positions
        self.length = graph.add("Shape", ids, start=1, end=2)
        end = graph.add("Squeeze", self.length, graph.whole(0))
        zero, one = (graph.add("Squeeze", graph.whole(value), graph.whole(0)) for value in (0, 1))
        self.numbers = graph.add("Range", zero, end, one)

    def rotated(self, values: str, attention: Attention) -> str:
        """Queries or keys, [rows, heads, tokens, size], rotated by their positions."""
        if not isinstance(self.part, Rotary):
            return values
        graph = self.graph
        cos, sin = self._waves(self.part, attention.base or 0.0)
        first, second = graph.parts("Split", 2, values, axis=-1)
        left = graph.add("Sub", graph.add("Mul", first, cos), graph.add("Mul", second, sin))
        right = graph.add("Add", graph.add("Mul", second, cos), graph.add("Mul", first, sin))
        return graph.add("Concat", left, right, axis=-1)

    def scored(self, name: str, attention: Attention, query: str, key: str, scores: str) -> str:
        """Scores [rows, heads, tokens, tokens] with relative position terms added; queries are already scaled."""
        graph = self.graph
        if isinstance(self.part, RelativeBias):
            scores = graph.add("Add", scores, graph.once("bias", self._bias))
        elif isinstance(self.part, Disentangled):
            for added in self._disentangled(name, self.part, attention, query, key):
                scores = graph.add("Add", scores, added)
        if attention.local:
            scores = graph.add("Add", scores, graph.once(("local", attention.local), lambda: self._near(attention)))
        return scores

    def _waves(self, part: Rotary, base: float) -> tuple[str, str]:
        """Cosines and sines, each [tokens, size / 2]."""
        graph = self.graph

        def angles() -> str:
            turns = base ** -(torch.arange(0, part.size, 2) / part.size)
            column = graph.add("Unsqueeze", graph.add("Cast", self.numbers, to=1), graph.whole(1))
            return graph.add("Mul", column, graph.weight(f"encoder.positions.{base!r}", turns))

        angle = graph.once(("angles", base), angles)
        cos, sin = (graph.once((wave, base), partial(graph.add, wave, angle)) for wave in ("Cos", "Sin"))
        return cos, sin

    def _distances(self) -> str:
        """Query position minus key position, as an index into tables of all distances, [tokens, tokens]."""
        graph = self.graph
        row, column = (graph.add("Unsqueeze", self.numbers, graph.whole(axis)) for axis in (0, 1))
        return graph.add("Add", graph.add("Sub", column, row), graph.whole(self.most - 1))

    def _apart(self) -> torch.Tensor:
        """All distances, in the order of the tables."""
        return torch.arange(1 - self.most, self.most)

    def _bias(self) -> str:
        """The relative position bias of each head, [heads, tokens, tokens]."""
        part: RelativeBias = self.part  # type: ignore[assignment]
        table = part.bias(part.buckets(self._apart())).t()
        weight = self.graph.weight("encoder.positions.bias", table)
        return self.graph.add("Gather", weight, self.graph.once("distances", self._distances), axis=1)

    def _near(self, attention: Attention) -> str:
        """The mask of the attention window: 0 inside, minus infinity outside, [tokens, tokens]."""
        table = np.where(np.abs(self._apart().numpy()) <= attention.local, 0, -np.inf).astype(np.float32)
        weight = self.graph.weight(f"encoder.positions.local.{attention.local}", table)
        return self.graph.add("Gather", weight, self.graph.once("distances", self._distances), axis=0)

    def _disentangled(self, name: str, part: Disentangled, attention: Attention, query: str, key: str) -> list[str]:
        """DeBERTa's content-to-position and position-to-content scores, each [rows, heads, tokens, tokens]."""
        graph, added = self.graph, []
        table = graph.weight("encoder.positions.rows", part.rows(self._apart()))

        def rows() -> str:
            return graph.add("Gather", table, graph.once("distances", self._distances), axis=0)

        def of_all() -> str:  # the same of every row and head
            shape = graph.add("Concat", graph.add("Shape", query, start=0, end=3), self.length, axis=0)
            return graph.add("Expand", graph.once("rows", rows), shape)

        place = graph.once("rows of all", of_all)
        query_side, key_side = part.sides(part.norm(part.embeddings.weight), attention)

        def by_head(side: torch.Tensor) -> torch.Tensor:  # [distances, width] -> [heads, size, distances]
            return side.view(len(side), attention.heads, -1).permute(1, 2, 0)

        if key_side is not None:
            met = graph.add("MatMul", query, graph.weight(f"{name}.c2p", by_head(key_side)))
            added.append(graph.add("GatherElements", met, place, axis=-1))
        if query_side is not None:
            met = graph.add("MatMul", key, graph.weight(f"{name}.p2c", by_head(query_side * attention.scale)))
            flipped = graph.once("rows flipped", lambda: graph.add("Transpose", place, perm=[0, 1, 3, 2]))
            added.append(graph.add("Transpose", graph.add("GatherElements", met, flipped, axis=-1), perm=[0, 1, 3, 2]))
        return added
