"""What the tests of transformers folders share: logits by AutoModel, as a folder's own note says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel


def pooled(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """One vector a row, from those of its tokens."""
    return (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True) if pooling == "mean" else hidden[:, 0]


def by_the_note(folder: Path, pooling: str) -> Callable[..., Tensor]:
    """From what the tokenizer gives to logits: AutoModel's vectors, pooled, through the head that lies beside them."""
    model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    stored = load_file(folder / "model.safetensors")
    others = [name for name in report["unexpected_keys"] if not name.startswith("berthead.")]
    assert all(stored[name].numel() == 0 for name in others)
    assert all("pooler" in name for name in report["missing_keys"])
    weight, bias = stored["berthead.classifier.weight"], stored["berthead.classifier.bias"]

    @torch.no_grad()
    def logits(**batch: Any) -> Tensor:
        hidden = model.eval()(**batch).last_hidden_state
        return pooled(hidden, batch["attention_mask"], pooling) @ weight.T + bias

    return logits
