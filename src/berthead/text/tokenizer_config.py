"""What stands beside tokenizer.json in a checkpoint, and changes what transformers reads from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from berthead.errors import ModelError, shown

ADDED, SPECIAL = "added_tokens.json", "special_tokens_map.json"
# The classes of transformers that make BERT's normalizer anew, as tokenizer_config.json says; by default they
# lower-case. A checkpoint without a class has the one of its model type.
_WORDPIECE = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MPNetTokenizer")
_WORDPIECE_TYPES = ("bert", "distilbert", "electra", "mpnet", "nomic_bert")
_BYTE_LEVEL, _BYTE_LEVEL_TYPES = ("RobertaTokenizer",), ("roberta",)


def follow(backend: Any, config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Change a checkpoint's tokenizer as transformers does when it reads the same folder.

    Args:
        backend: a `tokenizers.Tokenizer`, which is changed.
        config: tokenizer_config.json.
        folder: the checkpoint.

    Returns:
        tokenizer_config.json in agreement with the tokenizer, to be written with it.

    Raises:
        ModelError: the files contradict each other in another way, so it is not known what was meant.
    """
    agreed = dict(config)
    kind, model_type = str(config.get("tokenizer_class") or "").removesuffix("Fast"), _model_type(folder)
    is_wordpiece = kind in _WORDPIECE or (not kind and model_type in _WORDPIECE_TYPES)
    if is_wordpiece and type(backend.normalizer).__name__ == "BertNormalizer":
        agreed |= _normalized(backend, config)
    is_byte_level = kind in _BYTE_LEVEL or (not kind and model_type in _BYTE_LEVEL_TYPES)
    if is_byte_level and type(backend.pre_tokenizer).__name__ == "ByteLevel":
        agreed["add_prefix_space"] = backend.pre_tokenizer.add_prefix_space = bool(
            config.get("add_prefix_space", False)
        )
    special = read_object(folder / SPECIAL)
    _check_special(backend, {**special, **config}, folder)
    _add(backend, config, special, folder)
    if not kind:
        agreed["tokenizer_class"] = "BertTokenizer" if is_wordpiece else "PreTrainedTokenizerFast"
    return agreed


def _normalized(backend: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Set how BERT's normalizer reads capitals, accents and Chinese; returns the same as settings."""
    settings = {
        "do_lower_case": bool(config.get("do_lower_case", True)),
        "strip_accents": config.get("strip_accents"),
        "tokenize_chinese_chars": bool(config.get("tokenize_chinese_chars", True)),
    }
    normalizer = backend.normalizer
    normalizer.lowercase, normalizer.strip_accents = settings["do_lower_case"], settings["strip_accents"]
    normalizer.handle_chinese_chars = settings["tokenize_chinese_chars"]
    return settings


def _check_special(backend: Any, named: Mapping[str, Any], folder: Path) -> None:
    """Refuse a first or last token that the tokenizer does not put there."""
    around = backend.encode("").tokens
    for key in ("cls_token", "sep_token"):
        token = _content(named.get(key))
        if token and around and token not in around:
            saw = f"has {key} {shown(token)}, but tokenizer.json puts {' '.join(around)} around a text"
            raise ModelError(
                str(folder / "tokenizer_config.json"), saw, "the same tokens in both", "Correct one of them."
            )


def _add(backend: Any, config: Mapping[str, Any], special: Mapping[str, Any], folder: Path) -> None:
    """Add the tokens that other files name, under the numbers that they say."""
    from tokenizers import AddedToken

    decoder = config.get("added_tokens_decoder")
    numbered = [
        (int(number), AddedToken(**flags), "tokenizer_config.json") for number, flags in _decoder(decoder, folder)
    ]
    numbered += [
        (number, AddedToken(token, normalized=True, special=False), ADDED)
        for token, number in read_object(folder / ADDED).items()
        if isinstance(number, int)
    ]
    for number, token, file in sorted(numbered, key=lambda one: one[0]):
        if backend.token_to_id(token.content) is None:
            (backend.add_special_tokens if token.special else backend.add_tokens)([token])
        if (found := backend.token_to_id(token.content)) != number:
            saw = f"gives {shown(token.content)} the number {number}, but tokenizer.json or vocab.txt {found}"
            raise ModelError(
                str(folder / file), saw, "one number for each token", "Use the files that were saved together."
            )
    names = ("additional_special_tokens", "extra_special_tokens")
    extra = [one for source in (special, config) for name in names for one in _listed(source.get(name))]
    backend.add_special_tokens([one for one in map(_content, extra) if one and backend.token_to_id(one) is None])


def _decoder(value: Any, folder: Path) -> list[tuple[int, dict[str, Any]]]:
    known = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    found = []
    for number, flags in value.items() if isinstance(value, dict) else ():
        if not str(number).isdecimal() or not isinstance(flags, dict) or not isinstance(flags.get("content"), str):
            saw = f"added_tokens_decoder has {shown(number)}: {shown(flags)[:60]}"
            raise ModelError(str(folder / "tokenizer_config.json"), saw, 'a number, and {"content": "..."}')
        found.append((int(number), {key: flags[key] for key in known if key in flags}))
    return found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else []


def _content(token: Any) -> str | None:
    """The text of a token, which may be written as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _model_type(folder: Path) -> str:
    return str(read_object(folder / "config.json").get("model_type", ""))


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object beside the tokenizer; empty if there is none."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(str(path), f"cannot be read as JSON ({error})") from error
    return value if isinstance(value, dict) else {}
