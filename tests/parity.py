"""Every encoder family beside transformers: `python tests/parity.py` prints the table that stands in docs/families.md.

Tiny random checkpoints, saved by transformers and read by berthead; transformers computes padded rows with a mask, here
they are packed. Each figure is the largest difference of all hidden states, or of all gradients relative to their size.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from berthead.engine.prepacked import prepacked
from berthead.kernels import native
from berthead.model import attention as attention_module
from berthead.model import dropout as dropout_module
from berthead.model.checkpoint import read_checkpoint
from berthead.model.encoder import Encoder
from berthead.model.model import Model
from berthead.model.tensors import TensorPack
from berthead.text.packing import pack
from berthead.text.tokenizer import Encoded

VOCABULARY = 90
LENGTHS = (23, 4, 4, 11, 1, 60, 37)
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 70, "pad_token_id": 0,
}  # fmt: skip
DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3}


@dataclass(frozen=True)
class Case:
    """A tiny checkpoint: the classes' stem in transformers, and what differs from SIZES."""

    stem: str
    changes: dict[str, Any] = field(default_factory=dict)
    usual: bool = True

    @property
    def config(self) -> dict[str, Any]:
        return (SIZES | DROPOUT if self.usual else {}) | self.changes


_DISTIL = {
    "vocab_size": VOCABULARY, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 70,
    "dropout": 0.2, "attention_dropout": 0.3,
}  # fmt: skip
_DEBERTA = {"relative_attention": True, "max_position_embeddings": 64}
_MODERN = {"local_attention": 10, "bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
CASES = {
    "bert": Case("Bert"),
    "roberta": Case("Roberta", {"pad_token_id": 1, "type_vocab_size": 1}),
    "xlm-roberta": Case("XLMRoberta", {"pad_token_id": 1, "type_vocab_size": 1}),
    "camembert": Case("Camembert", {"pad_token_id": 1, "type_vocab_size": 1}),
    "distilbert": Case("DistilBert", _DISTIL, usual=False),
    "electra": Case("Electra", {"embedding_size": 32}),
    "electra, narrow embeddings": Case("Electra", {"embedding_size": 16}),
    "albert": Case("Albert", {"embedding_size": 16}),
    "albert, groups of blocks": Case("Albert", {"embedding_size": 16, "num_hidden_groups": 2, "inner_group_num": 2}),
    "mpnet": Case("MPNet", {"pad_token_id": 1}),
    "deberta-v2, as v3": Case("DebertaV2", _DEBERTA | {
        "position_buckets": 16, "norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": "p2c|c2p",
        "position_biased_input": False, "type_vocab_size": 0,
    }),
    "deberta-v2, own layers": Case("DebertaV2", _DEBERTA | {
        "position_buckets": -1, "max_relative_positions": 20, "share_att_key": False, "pos_att_type": ["c2p", "p2c"],
        "position_biased_input": True, "type_vocab_size": 2, "embedding_size": 16,
    }),
    "modernbert": Case("ModernBert", _MODERN | {"mlp_dropout": 0.1, "embedding_dropout": 0.2}),
    "modernbert, with biases": Case("ModernBert", _MODERN | {
        "attention_bias": True, "mlp_bias": True, "norm_bias": True, "attention_dropout": 0.3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    }),
    "nomic_bert": Case("NomicBert"),
}  # fmt: skip


def make(folder: Path, case: Case, *, head: str = "Model", seed: int = 0, **more: Any) -> Path:
    """A tiny random checkpoint as transformers saves it, all its weights far from their first values."""
    import transformers

    torch.manual_seed(seed)
    config = getattr(transformers, f"{case.stem}Config")(**(case.config | more))
    model = getattr(transformers, case.stem + head)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder


def both(folder: Path, case: Case) -> tuple[Encoder, nn.Module]:
    """Our encoder and transformers' model of one folder, in evaluation mode."""
    import transformers

    model = getattr(transformers, f"{case.stem}Model")
    theirs = model.from_pretrained(folder, attn_implementation="eager").eval()
    return read_checkpoint(str(folder)).encoder(), theirs


def rows(seed: int = 0) -> list[Encoded]:
    """Random tokens behind the special ones; the second half of a row is of the second kind."""
    random = np.random.default_rng(seed)
    ids = [random.integers(5, VOCABULARY, length) for length in LENGTHS]
    return [Encoded(one, (np.arange(len(one)) * 2 // len(one)).astype(np.int64), len(one), False) for one in ids]


def packed(some: list[Encoded], ours: Encoder) -> TensorPack:
    if ours.config.segments < 2:
        some = [replace(one, segments=one.segments * 0) for one in some]
    return TensorPack.from_pack(pack(some, np.arange(len(some))))


def padded(some: list[Encoded], model: nn.Module) -> dict[str, Tensor]:
    """The rows as transformers wants them."""
    longest, pad = max(len(one.ids) for one in some), model.config.pad_token_id or 0
    inputs = {"input_ids": torch.full((len(some), longest), pad), "attention_mask": torch.zeros(len(some), longest)}
    kinds = getattr(model.config, "type_vocab_size", 0)
    if kinds:
        inputs["token_type_ids"] = torch.zeros(len(some), longest, dtype=torch.long)
    for number, one in enumerate(some):
        inputs["input_ids"][number, : len(one.ids)] = torch.from_numpy(one.ids)
        inputs["attention_mask"][number, : len(one.ids)] = 1
        if kinds > 1:
            inputs["token_type_ids"][number, : len(one.ids)] = torch.from_numpy(one.segments)
    return inputs


def unpadded(hidden: Tensor, some: list[Encoded]) -> Tensor:
    """[rows, longest, width] -> [tokens, width]."""
    return torch.cat([hidden[number, : len(one.ids)] for number, one in enumerate(some)])


def apart(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).detach().abs().max())


@torch.no_grad()
def forward_gap(ours: Encoder, theirs: nn.Module) -> float:
    """Of all hidden states, each row alone."""
    largest = 0.0
    for one in rows():
        states = theirs(**padded([one], theirs), output_hidden_states=True).hidden_states
        mine = ours.hidden_states(packed([one], ours))
        # ALBERT's embeddings are told before they are widened; transformers counts states by its own layers.
        pairs = zip(reversed(mine), reversed([unpadded(state, [one]) for state in states]), strict=False)
        largest = max(largest, *(apart(a, b) for a, b in pairs if a.shape == b.shape))
    return largest


@torch.no_grad()
def packed_gap(ours: Encoder, theirs: nn.Module) -> float:
    """Of the last vectors: all rows in one pack, beside all rows padded to the longest."""
    return apart(ours(packed(rows(), ours)), unpadded(theirs(**padded(rows(), theirs)).last_hidden_state, rows()))


@torch.no_grad()
def engine_gap(ours: Encoder, theirs: nn.Module) -> float:
    """Of the last vectors by torch's prepacked layers in fp32."""
    engine = prepacked(Model(ours, nn.Identity()), "fp32").encoder
    return apart(engine(packed(rows(), ours)), unpadded(theirs(**padded(rows(), theirs)).last_hidden_state, rows()))


@torch.no_grad()
def kernels_gap(ours: Encoder, theirs: nn.Module) -> float:
    """Of the last vectors by the best of our own kernels in fp32."""
    engine = native.pack_weights(Model(ours, nn.Identity()), "fp32").encoder
    return apart(engine(packed(rows(), ours)), unpadded(theirs(**padded(rows(), theirs)).last_hidden_state, rows()))


def gradient_gap(ours: Encoder, theirs: nn.Module) -> float:
    """Of every weight's gradient, relative to the weight's largest where that is above 1."""
    some = rows()
    weights = torch.randn(sum(LENGTHS), 32, generator=torch.Generator().manual_seed(5))
    for model in (ours, theirs):
        model.zero_grad()
    mine, wanted = ours(packed(some, ours)), unpadded(theirs(**padded(some, theirs)).last_hidden_state, some)
    for hidden in (mine, wanted):
        (hidden.square() * weights).sum().backward()
    gradients = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    assert gradients.keys() == dict(ours.named_parameters()).keys()
    theirs_ = _gradients_by_our_name(theirs, ours)
    return max(apart(gradients[name], one) / max(1.0, float(one.abs().max())) for name, one in theirs_.items())


def _gradients_by_our_name(theirs: nn.Module, ours: Encoder) -> dict[str, Tensor]:
    """transformers' gradients, saved and read as if they were weights."""
    with torch.no_grad():
        kept = {name: parameter.clone() for name, parameter in theirs.named_parameters()}
        for parameter in theirs.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
        with tempfile.TemporaryDirectory() as folder:
            theirs.save_pretrained(folder)
            gradients = read_checkpoint(folder).weights
        for name, parameter in theirs.named_parameters():
            parameter.copy_(kept[name])
    assert gradients.keys() == ours.state_dict().keys()
    return gradients


@contextmanager
def even_dropout() -> Iterator[None]:
    """Dropout that scales all values by (1 - share): the same places and shares show, without random numbers."""
    plain, mask = nn.functional.dropout, dropout_module.keep_mask

    def scaled(values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return values * (1 - p) if training else values

    def even(shape: Any, share: float, device: Any = "cpu") -> Tensor:
        return torch.full(tuple(shape), (1 - share) ** 2)

    nn.functional.dropout = scaled
    dropout_module.keep_mask = attention_module.keep_mask = even
    try:
        yield
    finally:
        nn.functional.dropout = plain
        dropout_module.keep_mask = attention_module.keep_mask = mask


def train_gap(ours: Encoder, theirs: nn.Module) -> float:
    """In train mode, vectors and gradients, with dropout that is the same on both sides."""
    with even_dropout():
        for model in (ours, theirs):
            model.train()
        mine, wanted = ours(packed(rows(), ours)), unpadded(theirs(**padded(rows(), theirs)).last_hidden_state, rows())
        largest = max(apart(mine, wanted), gradient_gap(ours, theirs))
    for model in (ours, theirs):
        model.eval()
    return largest


GAPS: dict[str, Callable[[Encoder, nn.Module], float]] = {
    "forward": forward_gap, "gradient": gradient_gap, "packed": packed_gap, "train mode": train_gap,
    "engine, torch": engine_gap, "engine, kernels": kernels_gap,
}  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    print(f"| family | {' | '.join(GAPS)} |")
    print("| --- |" + " --- |" * len(GAPS))
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            pair = both(make(Path(folder), case), case)
        print(f"| {name} | {' | '.join(f'{gap(*pair):.1e}' for gap in GAPS.values())} |", flush=True)


if __name__ == "__main__":
    main()
