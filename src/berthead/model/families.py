"""Families: the checkpoint's config.json and weight names to ours and back, strictly."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from berthead.errors import ModelError, did_you_mean, listed
from berthead.model import config_json
from berthead.model.config import EncoderConfig
from berthead.model.config_json import Reader

Names = dict[str, tuple[str, ...]]

_QKV = ("query", "key", "value")
# Ours -> the checkpoint's. Several names: they are stacked along the first axis.
_EMBEDDINGS: Names = {
    "embeddings.word": ("embeddings.word_embeddings",),
    "embeddings.position": ("embeddings.position_embeddings",),
    "embeddings.segment": ("embeddings.token_type_embeddings",),
    "embeddings.norm": ("embeddings.LayerNorm",),
}
_BLOCK: Names = {
    "attention.qkv": tuple(f"attention.self.{part}" for part in _QKV),
    "attention.out": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "mlp.up": ("intermediate.dense",),
    "mlp.down": ("output.dense",),
    "mlp_norm": ("output.LayerNorm",),
}
_LAYER = "encoder.layer.{layer}."
_POOLER = {"dense.weight": "pooler.dense.weight", "dense.bias": "pooler.dense.bias"}
_HEADS = ("SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice")

# Not parameters of the encoder: buffers, and the heads of the pre-training or of another task.
_NOT_ENCODER = re.compile(
    r"embeddings\.position_ids$|rotary_emb\.|"
    r"(cls|classifier|pre_classifier|qa_outputs|label_classifier|window_attention|crf|head|berthead|lm_head|decoder|"
    r"vocab_transform|vocab_layer_norm|vocab_projector|discriminator_predictions|generator_predictions|"
    r"generator_lm_head|predictions|sop_classifier|lm_predictions|mask_predictions|sequence_summary)\."
)


@dataclass(frozen=True, slots=True)
class Family:
    """A family of encoders: a table of names, and a reader of config.json.

    Args:
        stem: the prefix of its classes in transformers.
        prefix: the prefix of its weights in a model with a head.
        read: config.json to sizes and parts.
        whole: our layers outside the blocks to the checkpoint's.
        block: our layers in a block.
        layer: the prefix of a block's weights, with `layer`, or `group` and `inner`.
        pooler: our names of the pooler's weights to the checkpoint's.
        pooled: the pooler's activation, if rows are classified by a pooled vector.
        row: the dense and the last layer of transformers' class for rows; empty: none like ours.
        choice: the same for multiple choice.
        classes: the suffixes of the classes whose last layer is one linear layer.
        renamed: transformers' layer names differ from the checkpoint's, so PEFT does not find them.
    """

    stem: str
    prefix: str
    read: Callable[[Reader], EncoderConfig]
    whole: Names = field(default_factory=lambda: _EMBEDDINGS)
    block: Names = field(default_factory=lambda: _BLOCK)
    layer: str = _LAYER
    pooler: Mapping[str, str] | None = None
    pooled: str = "tanh"
    row: tuple[str, str] | None = None
    choice: tuple[str, str] | None = None
    classes: tuple[str, ...] = _HEADS
    renamed: bool = False

    @property
    def has_trained_pooler(self) -> bool:
        """Whether the pooler is pre-trained; else its dense layer belongs to the head alone."""
        return self.row is not None and self.row[0].startswith(f"{self.prefix}.")


def _roberta(stem: str, name: str) -> Family:
    return Family(
        stem, "roberta", config_json.roberta(name), pooler=_POOLER, row=("classifier.dense", "classifier.out_proj"),
        choice=("roberta.pooler.dense", "classifier"),
    )  # fmt: skip


FAMILIES: dict[str, Family] = {
    "bert": Family(
        "Bert", "bert", config_json.bert, pooler=_POOLER, row=("bert.pooler.dense", "classifier"),
        choice=("bert.pooler.dense", "classifier"),
    ),
    "roberta": _roberta("Roberta", "roberta"),
    "xlm-roberta": _roberta("XLMRoberta", "xlm-roberta"),
    "camembert": _roberta("Camembert", "camembert"),
    "distilbert": Family(
        "DistilBert", "distilbert", config_json.distilbert, layer="transformer.layer.{layer}.", pooled="relu",
        row=("pre_classifier", "classifier"), choice=("pre_classifier", "classifier"),
        block={
            "attention.qkv": ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
            "attention.out": ("attention.out_lin",),
            "attention_norm": ("sa_layer_norm",),
            "mlp.up": ("ffn.lin1",),
            "mlp.down": ("ffn.lin2",),
            "mlp_norm": ("output_layer_norm",),
        },
    ),
    "electra": Family(
        "Electra", "electra", config_json.electra, whole=_EMBEDDINGS | {"embeddings.project": ("embeddings_project",)},
        pooled="gelu", row=("classifier.dense", "classifier.out_proj"),
        choice=("sequence_summary.summary", "classifier"),
    ),
    "albert": Family(
        "Albert", "albert", config_json.albert,
        whole=_EMBEDDINGS | {"embeddings.project": ("encoder.embedding_hidden_mapping_in",)},
        layer="encoder.albert_layer_groups.{group}.albert_layers.{inner}.",
        pooler={"dense.weight": "pooler.weight", "dense.bias": "pooler.bias"},
        row=("albert.pooler", "classifier"), choice=("albert.pooler", "classifier"),
        block={
            "attention.qkv": tuple(f"attention.{part}" for part in _QKV),
            "attention.out": ("attention.dense",),
            "attention_norm": ("attention.LayerNorm",),
            "mlp.up": ("ffn",),
            "mlp.down": ("ffn_output",),
            "mlp_norm": ("full_layer_layer_norm",),
        },
    ),
    "mpnet": Family(
        "MPNet", "mpnet", config_json.mpnet,
        whole=_EMBEDDINGS | {"positions.bias": ("encoder.relative_attention_bias",)},
        pooler=_POOLER, row=("classifier.dense", "classifier.out_proj"), choice=("mpnet.pooler.dense", "classifier"),
        block=_BLOCK | {
            "attention.qkv": ("attention.attn.q", "attention.attn.k", "attention.attn.v"),
            "attention.out": ("attention.attn.o",),
            "attention_norm": ("attention.LayerNorm",),
        },
    ),
    "deberta-v2": Family(
        "DebertaV2", "deberta", config_json.deberta, pooler=_POOLER, pooled="gelu",
        row=("pooler.dense", "classifier"), choice=("pooler.dense", "classifier"),
        whole=_EMBEDDINGS | {
            "embeddings.project": ("embeddings.embed_proj",),
            "positions.embeddings": ("encoder.rel_embeddings",),
            "positions.norm": ("encoder.LayerNorm",),
        },
        block=_BLOCK | {
            "attention.qkv": tuple(f"attention.self.{part}_proj" for part in _QKV),
            "attention.distance_query": ("attention.self.pos_query_proj",),
            "attention.distance_key": ("attention.self.pos_key_proj",),
        },
    ),
    "modernbert": Family(
        "ModernBert", "model", config_json.modernbert, layer="layers.{layer}.", classes=(),
        whole={
            "embeddings.word": ("embeddings.tok_embeddings",),
            "embeddings.norm": ("embeddings.norm",),
            "final_norm": ("final_norm",),
        },
        block={
            "attention.qkv": ("attn.Wqkv",),
            "attention.out": ("attn.Wo",),
            "attention_norm": ("attn_norm",),
            "mlp.up": ("mlp.Wi",),
            "mlp.down": ("mlp.Wo",),
            "mlp_norm": ("mlp_norm",),
        },
    ),
    "nomic_bert": Family(
        "NomicBert", "nomic_bert", config_json.nomic, layer="encoder.layers.{layer}.", pooler=_POOLER,
        row=("nomic_bert.pooler.dense", "classifier"), classes=("SequenceClassification", "TokenClassification"),
        renamed=True,
        whole=_EMBEDDINGS | {"embeddings.norm": ("emb_ln",)},
        block={
            "attention.qkv": ("attn.Wqkv",),
            "attention.out": ("attn.out_proj",),
            "attention_norm": ("norm1",),
            "mlp.up": ("mlp.fc12", "mlp.fc11"),
            "mlp.down": ("mlp.fc2",),
            "mlp_norm": ("norm2",),
        },
    ),
}  # fmt: skip


def read_config(config: Mapping[str, Any], where: str) -> EncoderConfig:
    """Sizes and parts from a config.json.

    Args:
        config: the parsed file.
        where: its path, for errors.

    Returns:
        What the encoder is made of.

    Raises:
        ModelError: another family, a missing key, or an unsupported value.
    """
    family = config.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        hint = did_you_mean(str(family), FAMILIES)
        raise ModelError(where, f'model_type is "{family}"', f"one of {listed(FAMILIES, len(FAMILIES))}", hint)
    return FAMILIES[family].read(Reader(config, where))


def plain_name(name: str, family: str) -> str:
    """A weight's name without the family's prefix and with today's layer-norm names."""
    name = name.removeprefix(f"{FAMILIES[family].prefix}.")
    return re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))


def is_encoder_name(name: str, config: EncoderConfig) -> bool:
    """Whether a plain name belongs to the encoder or its pooler, and not to another head."""
    # DeBERTa's decoder reads a table of positions that the encoder does not.
    unread = config.first_position is None and name == "embeddings.position_embeddings.weight"
    return not unread and _NOT_ENCODER.match(name) is None


def checkpoint_names(config: EncoderConfig, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Our weight names to the checkpoint's plain names in stacking order.

    Args:
        config: of the encoder.
        names: of its weights, ours.

    Returns:
        In the order given.
    """
    family, found = FAMILIES[config.family], {}
    for name in names:
        layer, _, part = name.rpartition(".")
        prefix, theirs = "", family.whole.get(layer)
        if theirs is None:
            _, number, layer = layer.split(".", 2)
            group, inner = divmod(int(number), config.group)
            prefix, theirs = family.layer.format(layer=number, group=group, inner=inner), family.block[layer]
        found[name] = tuple(f"{prefix}{one}.{part}" for one in theirs)
    return found


def from_checkpoint(tensors: Mapping[str, Tensor], config: EncoderConfig, names: Iterable[str]) -> dict[str, Tensor]:
    """Convert the checkpoint's tensors (plain names) to ours, float32.

    Args:
        tensors: plain name to tensor; complete.
        config: of the encoder.
        names: of its weights, ours.

    Returns:
        Our name to tensor.
    """
    return {
        ours: torch.cat([tensors[name].float() for name in theirs]) if len(theirs) > 1 else tensors[theirs[0]].float()
        for ours, theirs in checkpoint_names(config, names).items()
    }


def to_checkpoint(weights: Mapping[str, Tensor], config: EncoderConfig) -> dict[str, Tensor]:
    """Convert our tensors to the checkpoint's plain names: the inverse of `from_checkpoint`.

    Args:
        weights: our name to tensor.
        config: of the encoder.

    Returns:
        Plain name to tensor.
    """
    tensors: dict[str, Tensor] = {}
    for ours, theirs in checkpoint_names(config, weights).items():
        parts = weights[ours].chunk(len(theirs)) if len(theirs) > 1 else (weights[ours],)
        tensors |= dict(zip(theirs, parts, strict=True))
    return tensors
