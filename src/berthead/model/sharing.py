"""Sharing equal parts of models: finding them, and models in which they are one part."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import nn

from berthead.model.model import Model, sha256_of


def shared(models: Sequence[Model]) -> list[Model]:
    """Copies of models in which equal parts are one part.

    Args:
        models: of one architecture; they are not changed.

    Returns:
        Models that share their heads' and parts' parameters with those given.
    """
    known: dict[str, nn.Module] = {}

    def first(part: nn.Module, name: str) -> nn.Module:
        return known.setdefault(f"{name} {sha256_of(part.state_dict())}", part)

    joined = []
    for model in models:
        # Only the encoder object is copied; its parts are shared.
        encoder = copy.deepcopy(model.encoder, {id(part): part for part in model.encoder.children()})
        # Embeddings and positions are shared together, or not at all.
        both = nn.ModuleList([encoder.embeddings, encoder.positions])
        encoder.embeddings, encoder.positions = first(both, "embeddings")  # type: ignore[misc]
        encoder.blocks = nn.ModuleList(first(block, f"block {n}") for n, block in enumerate(encoder.blocks))
        joined.append(Model(encoder, model.head))
    return joined


def shared_layers(models: Sequence[Model]) -> int:
    """How many layers, from the bottom up, all models share; -1: not even the embeddings."""
    parts = [[model.encoder.embeddings, *(model.encoder.blocks[n] for n in model.encoder.order)]
             for model in shared(models)]  # fmt: skip
    depth = 0
    while depth < len(parts[0]) and all(one[depth] is parts[0][depth] for one in parts):
        depth += 1
    return depth - 1
