"""The formula: y = Predict_omega(BERT_theta(x))."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from berthead.model.encoder import Encoder
from berthead.model.tensors import TensorPack


class Model(nn.Module):
    """A prediction network on an encoder.

    Args:
        encoder: BERT_theta.
        head: Predict_omega, a torch module as `heads.Head` describes it.
    """

    def __init__(self, encoder: Encoder, head: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, pack: TensorPack) -> Tensor:
        """Logits of the pack's rows, float32 [rows, outputs]."""
        logits: Tensor = self.head(self.encoder(pack), pack)
        return logits


def sha256_of(weights: Mapping[str, Tensor]) -> str:
    """The hash of a parameter set: its names, shapes and float32 bytes, in the order of the names.

    Args:
        weights: name to tensor.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> import torch
        >>> sha256_of({"w": torch.zeros(2)})[:8]
        '7d5af3ed'
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().float().cpu().contiguous()
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).numpy().data)
    return digest.hexdigest()
