"""config.json to the sizes and parts of an encoder, one function a family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from berthead.errors import ModelError, listed
from berthead.model.config import EncoderConfig, Relative

ACTIVATIONS = (
    "gelu", "gelu_new", "gelu_fast", "gelu_python", "gelu_pytorch_tanh", "relu", "silu", "swish", "tanh"
)  # fmt: skip


class Reader:
    """Reads config.json key by key; a missing key or an unsupported value is a ModelError.

    Args:
        config: the parsed file.
        where: its path, for errors.
    """

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self.config, self.where = config, where

    def refuse(self, key: str, allowed: str) -> ModelError:
        """The error for the value of a key."""
        return ModelError(self.where, f"{key} is {self.config.get(key)!r}", allowed)

    def whole(self, key: str, most: int, default: int | None = None, least: int = 1) -> int:
        """A whole number."""
        value = self.config.get(key, default)
        if type(value) is not int or not least <= value <= most:
            raise self.refuse(key, f"a whole number from {least} to {most}")
        return value

    def share(self, key: str, default: float = 0.1) -> float:
        """A number from 0 to below 1."""
        value = self.config.get(key, default)
        if type(value) not in (int, float) or not 0 <= value < 1:
            raise self.refuse(key, "a number from 0 to below 1")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.config.get(key, default)
        if type(value) is not bool:
            raise self.refuse(key, "true or false")
        return value

    def activation(self, key: str, default: str = "gelu") -> str:
        """The name of an activation."""
        value = self.config.get(key, default)
        if value not in ACTIVATIONS:
            raise ModelError(self.where, f'{key} is "{value}"', f"one of {listed(ACTIVATIONS)}")
        return str(value)

    def only(self, key: str, *allowed: Any) -> None:
        """One of these values, the first of which is the default."""
        value = self.config.get(key, allowed[0])
        if value not in allowed and not (value is None and allowed[0] != value):
            raise ModelError(self.where, f"{key} is {_shown(value)}", f"{' or '.join(map(_shown, allowed))}")


def _shown(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


def _usual(read: Reader, family: str, **parts: Any) -> EncoderConfig:
    """Sizes under the keys that most families share; `parts` are those of this family."""
    read.only("is_decoder", False)
    read.only("add_cross_attention", False)
    dropout, attention = read.share("hidden_dropout_prob"), read.share("attention_probs_dropout_prob")
    return _checked(read, ("hidden_size", "num_attention_heads"), **{
        "family": family,
        "vocabulary": read.whole("vocab_size", 10_000_000),
        "width": read.whole("hidden_size", 65_536),
        "layers": read.whole("num_hidden_layers", 1_000),
        "heads": read.whole("num_attention_heads", 1_024),
        "inner": read.whole("intermediate_size", 1_000_000),
        "positions": read.whole("max_position_embeddings", 1_000_000),
        "segments": parts["segments"] if "segments" in parts else read.whole("type_vocab_size", 1_000),
        "activation": read.activation("hidden_act"),
        "eps": read.share("layer_norm_eps", 1e-12),
        "dropout": dropout,
        "attention_dropout": attention,
        "output_dropout": (dropout, dropout),
    } | parts)  # fmt: skip


def _checked(read: Reader, keys: tuple[str, str], **fields: Any) -> EncoderConfig:
    sizes = EncoderConfig(**fields)
    if sizes.width % sizes.heads:
        raise ModelError(
            read.where, f"{keys[0]} {sizes.width} is not a multiple of {keys[1]}", f"a multiple of {sizes.heads}"
        )
    return sizes


def bert(read: Reader) -> EncoderConfig:
    """BERT: Devlin et al. 2019."""
    read.only("position_embedding_type", "absolute")
    return _usual(read, "bert")


def roberta(family: str) -> Callable[[Reader], EncoderConfig]:
    """RoBERTa (Liu et al. 2019), XLM-R and CamemBERT: positions start after the padding token."""

    def config(read: Reader) -> EncoderConfig:
        read.only("position_embedding_type", "absolute")
        first = read.whole("pad_token_id", 1_000, 1, least=0) + 1
        table = read.whole("max_position_embeddings", 1_000_000)
        if table <= first:
            raise read.refuse("max_position_embeddings", f"a number above {first}, pad_token_id + 1")
        return _usual(read, family, first_position=first, positions=table - first)

    return config


def distilbert(read: Reader) -> EncoderConfig:
    """DistilBERT: Sanh et al. 2019; no segments, its own names."""
    read.only("sinusoidal_pos_embds", False, True)  # the table is in the checkpoint either way
    dropout = read.share("dropout")
    return _checked(
        read, ("dim", "n_heads"), family="distilbert", vocabulary=read.whole("vocab_size", 10_000_000),
        width=read.whole("dim", 65_536), layers=read.whole("n_layers", 1_000), heads=read.whole("n_heads", 1_024),
        inner=read.whole("hidden_dim", 1_000_000), positions=read.whole("max_position_embeddings", 1_000_000),
        segments=0, activation=read.activation("activation"), dropout=dropout,
        attention_dropout=read.share("attention_dropout"), output_dropout=(0.0, dropout),
    )  # fmt: skip


def electra(read: Reader) -> EncoderConfig:
    """ELECTRA: Clark et al. 2020; small ones have narrow embeddings."""
    read.only("position_embedding_type", "absolute")
    size, width = read.whole("embedding_size", 65_536, 128), read.whole("hidden_size", 65_536)
    return _usual(read, "electra", embedding=size, projection="after" if size != width else None)


def albert(read: Reader) -> EncoderConfig:
    """ALBERT: Lan et al. 2020; narrow embeddings, and layers that share their block."""
    read.only("position_embedding_type", "absolute")
    layers, groups = read.whole("num_hidden_layers", 1_000), read.whole("num_hidden_groups", 1_000, 1)
    inner = read.whole("inner_group_num", 1_000, 1)
    if layers * inner > 1_000:
        raise read.refuse("inner_group_num", f"at most {1_000 // layers}, as num_hidden_layers is {layers}")
    if groups > layers:
        raise read.refuse("num_hidden_groups", f"at most {layers}, num_hidden_layers")
    dropout = read.share("hidden_dropout_prob", 0.0)
    order = tuple(int(i / (layers / groups)) * inner + j for i in range(layers) for j in range(inner))
    return _usual(
        read, "albert", activation=read.activation("hidden_act", "gelu_new"), layers=len(order), order=order,
        group=inner,        embedding=read.whole("embedding_size", 65_536, 128), projection="after", dropout=dropout,
        output_dropout=(dropout, 0.0), attention_dropout=read.share("attention_probs_dropout_prob", 0.0),
    )  # fmt: skip


def mpnet(read: Reader) -> EncoderConfig:
    """MPNet: Song et al. 2020; no segments, relative position biases."""
    read.only("relative_attention_num_buckets", 32)
    table = read.whole("max_position_embeddings", 1_000_000)
    if table <= 2:
        raise read.refuse("max_position_embeddings", "a number above 2")
    relative = Relative("bias", buckets=32, max_distance=128)
    return _usual(read, "mpnet", segments=0, first_position=2, positions=table - 2, relative=relative)


def deberta(read: Reader) -> EncoderConfig:
    """DeBERTa-v2 and v3: He et al. 2021; disentangled attention."""
    read.only("relative_attention", True)
    read.only("conv_kernel_size", 0)
    terms = read.config.get("pos_att_type") or ()
    terms = terms.lower().split("|") if isinstance(terms, str) else terms
    if not isinstance(terms, list) or not terms or any(term not in ("c2p", "p2c") for term in terms):
        raise read.refuse("pos_att_type", '"c2p", "p2c" or both')
    width, longest = read.whole("hidden_size", 65_536), read.whole("max_position_embeddings", 1_000_000, 512)
    furthest = read.whole("max_relative_positions", 1_000_000, -1, least=-1)
    relative = Relative(
        "disentangled", buckets=max(0, read.whole("position_buckets", 1_000_000, -1, least=-1)), terms=tuple(terms),
        max_distance=furthest if furthest > 0 else longest, shared=read.flag("share_att_key", False),
        normed="layer_norm" in str(read.config.get("norm_rel_ebd", "none")).lower(),
    )  # fmt: skip
    size = read.whole("embedding_size", 65_536, width)
    return _usual(
        read, "deberta-v2", relative=relative, segments=read.whole("type_vocab_size", 1_000, 0, least=0),
        first_position=0 if read.flag("position_biased_input", True) else None, eps=read.share("layer_norm_eps", 1e-7),
        embedding=size, projection="before" if size != width else None,
    )  # fmt: skip


def modernbert(read: Reader) -> EncoderConfig:
    """ModernBERT: Warner et al. 2024; rotary positions, gated networks, layers with an attention window."""
    layers = read.whole("num_hidden_layers", 1_000)
    every = read.whole("global_attn_every_n_layers", 1_000, 3)
    kinds = read.config.get("layer_types") or [
        "sliding_attention" if i % every else "full_attention" for i in range(layers)
    ]
    known = ("full_attention", "sliding_attention")
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in known for kind in kinds):
        raise read.refuse("layer_types", '"full_attention" or "sliding_attention" for each layer')
    # Half of the window on each side, and at least 1: 0 would mean all tokens.
    near = max(1, read.whole("local_attention", 1_000_000, 128) // 2)
    bases = {
        "full_attention": _base(read, "full_attention", "global_rope_theta", 160_000.0),
        "sliding_attention": _base(read, "sliding_attention", "local_rope_theta", 10_000.0),
    }
    attention = read.share("attention_dropout", 0.0)
    return _usual(
        read, "modernbert", segments=0, first_position=None, norm_first=True, gated=True,
        activation=read.activation("hidden_activation"), eps=read.share("norm_eps", 1e-5),
        attention_bias=read.flag("attention_bias", False), mlp_bias=read.flag("mlp_bias", False),
        norm_bias=read.flag("norm_bias", False), rotary=tuple(bases[kind] for kind in kinds),
        local=tuple(near if kind == "sliding_attention" else 0 for kind in kinds),
        dropout=read.share("embedding_dropout", 0.0), attention_dropout=attention, output_dropout=(attention, 0.0),
        inner_dropout=read.share("mlp_dropout", 0.0),
    )  # fmt: skip


def nomic(read: Reader) -> EncoderConfig:
    """NomicBERT: Nussbaum et al. 2024; rotary positions and gated networks."""
    layers = read.whole("num_hidden_layers", 1_000)
    width, heads = read.whole("hidden_size", 65_536), read.whole("num_attention_heads", 1_024)
    read.only("head_dim", None, width // heads)
    dropout = read.share("hidden_dropout_prob", 0.0)
    return _usual(
        read, "nomic_bert", first_position=None, gated=True, activation=read.activation("hidden_act", "silu"),
        attention_bias=False, mlp_bias=False, rotary=(_base(read, None, "rotary_emb_base", 1_000.0),) * layers,
        dropout=dropout, output_dropout=(dropout, dropout),
        attention_dropout=read.share("attention_probs_dropout_prob", 0.0),
    )  # fmt: skip


def _base(read: Reader, kind: str | None, old: str, default: float) -> float:
    """The base of the rotary positions, under transformers' newer or older keys."""
    stored = read.config.get("rope_parameters") or {}
    stored = (stored.get(kind) or {}) if kind and isinstance(stored, dict) else stored
    if (
        not isinstance(stored, dict)
        or stored.get("rope_type", "default") != "default"
        or read.config.get("rope_scaling")
    ):
        raise ModelError(read.where, "has scaled rotary positions", 'rope_type "default" and no rope_scaling')
    base = stored.get("rope_theta") or read.config.get(old) or default
    if type(base) not in (int, float) or not 1 < base < 1e12:
        raise ModelError(read.where, f"the base of the rotary positions is {base!r}", "a number above 1")
    return float(base)
