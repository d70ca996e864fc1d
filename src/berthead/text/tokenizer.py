"""Text or pair to token numbers, with the checkpoint's tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from berthead.errors import ModelError, listed
from berthead.records import IntArray
from berthead.text.pieces import Pieces, by_words, pieces_of
from berthead.text.special_tokens import check_templates, template_of
from berthead.text.tokenizer_config import follow, read_object

# How tokenizers are saved that only Python code can read.
_SLOW_FILES = (
    "spiece.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "spm.model",
    "vocab.json",
    "merges.txt",
)
_CONVERT = "python -c \"from transformers import AutoTokenizer as T; T.from_pretrained('{0}').save_pretrained('{0}')\""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One input as token numbers.

    Args:
        ids: token numbers, special ones included, int64 [tokens].
        segments: token types, int64 [tokens].
        n_tokens: tokens of the whole input, before any were cut.
        truncated: whether tokens were cut.
    """

    ids: IntArray
    segments: IntArray
    n_tokens: int
    truncated: bool


class Tokenizer:
    """A checkpoint's tokenizer, without the padding and truncation that its file may configure.

    Args:
        backend: a `tokenizers.Tokenizer`.
        config: tokenizer_config.json, to be saved with it.
    """

    def __init__(self, backend: Any, config: dict[str, Any]) -> None:
        backend.no_padding()
        backend.no_truncation()
        self.backend = backend
        self.config = config
        check_templates(backend)
        self._single = template_of(backend, pair=False)
        self._pair = template_of(backend, pair=True)
        # BERT's own rule for words; others leave punctuation at a word, or a whole sentence without spaces in one.
        self._finds_words = type(backend.pre_tokenizer).__name__ == "BertPreTokenizer"
        self._of_words: Any = None

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """The tokenizer of tokenizer.json, or of vocab.txt alone.

        Args:
            folder: the checkpoint or model folder.

        Returns:
            The tokenizer.

        Raises:
            ModelError: there is none, or it cannot be read.
        """
        from tokenizers import Tokenizer as Backend

        config = read_object(folder / "tokenizer_config.json")
        path = folder / "tokenizer.json"
        try:
            if path.is_file():
                return cls(Backend.from_file(str(path)), config)
            if (folder / "vocab.txt").is_file():
                return cls(_wordpiece(folder / "vocab.txt", config), config)
        except BaseException as error:
            if not _is_of_the_library(error):
                raise
            raise ModelError(str(path), f"cannot be read ({error})", "a tokenizer file of this encoder") from error
        saw, fix = "holds no tokenizer", ""
        if files := [name for name in _SLOW_FILES if (folder / name).is_file()]:
            saw = f"holds its tokenizer only as {listed(files)}"
            fix = f"Write the other form, with transformers and sentencepiece installed: {_CONVERT.format(folder)}"
        raise ModelError(str(folder), saw, "tokenizer.json, or vocab.txt", fix)

    @classmethod
    def from_checkpoint(cls, folder: Path) -> Tokenizer:
        """The tokenizer of a pre-trained checkpoint, as transformers reads all of its files.

        Args:
            folder: the checkpoint. A fitted function's folder has a tokenizer.json that says everything: `from_folder`.

        Returns:
            The tokenizer.

        Raises:
            ModelError: there is none, it cannot be read, or its files contradict each other.
        """
        made = cls.from_folder(folder)
        return cls(made.backend, follow(made.backend, made.config, folder))

    @property
    def largest_id(self) -> int:
        """The largest token number that it can return; numbers may have gaps, so their count is not enough."""
        size: int = self.backend.get_vocab_size(with_added_tokens=True)
        # Without gaps it is the last one. Asking for each costs half of what all tokens by name cost.
        if all(token is not None for token in map(self.backend.id_to_token, range(size))):
            largest = size - 1
        else:
            largest = max(self.backend.get_vocab(with_added_tokens=True).values())
        # Special tokens have numbers of their own in the template, whatever the vocabulary says.
        return max([largest, *self._single.special_tokens, *self._pair.special_tokens])

    def token_types(self, *, pair: bool) -> set[int]:
        """The token types in a row of one text, or of a pair."""
        return (self._pair if pair else self._single).types

    def special_tokens(self, *, pair: bool) -> int:
        """The number of special tokens around one text, or a pair."""
        return len((self._pair if pair else self._single).special_tokens)

    @property
    def sha256(self) -> str:
        """The hash of everything that affects its output, in hexadecimal."""
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None, max_tokens: int) -> list[Encoded]:
        """Token numbers of texts or pairs.

        Args:
            texts: the first texts.
            pairs: the second texts, as many; or None.
            max_tokens: longest input in tokens, special ones included; the longer side of a pair is cut first.

        Returns:
            One record an input, in order.
        """
        first = self.ids(texts)
        if pairs is None:
            room = self.room(max_tokens, pair=False)
            return [self.row(ids[:room], None, len(ids)) for ids in first]
        room = self.room(max_tokens, pair=True)
        rows = []
        for one, other in zip(first, self.ids(pairs), strict=True):
            a, b = _fit_pair(len(one), len(other), room)
            rows.append(self.row(one[:a], other[:b], len(one) + len(other)))
        return rows

    def room(self, max_tokens: int, *, pair: bool) -> int:
        """How many tokens of the user's text fit in a row beside the special ones."""
        return max(0, max_tokens - self.special_tokens(pair=pair))

    def first_token(self, *, pair: bool) -> int:
        """The index of the first text's first token in a row."""
        return len((self._pair if pair else self._single).before[0])

    def gap(self) -> int:
        """Special tokens between the two texts of a pair."""
        return len(self._pair.between[0])

    def row(self, first: list[int], second: list[int] | None, length: int) -> Encoded:
        """A row of tokens with the special ones around it.

        Args:
            first: token numbers of the first text.
            second: of the second text, or None.
            length: tokens of both before any were cut.

        Returns:
            The row.
        """
        template = self._single if second is None else self._pair
        tokens = [*template.before[0], *first, *template.between[0], *(second or ()), *template.after[0]]
        segments = [
            *template.before[1], *[template.segment] * len(first), *template.between[1],
            *[template.pair_segment] * len(second or ()), *template.after[1],
        ]  # fmt: skip
        kept = len(first) + len(second or ())
        return Encoded(np.array(tokens), np.array(segments), length + len(template.special_tokens), kept < length)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token numbers of texts, without special tokens."""
        clean = [_text(text) for text in texts]
        with _readable():
            return [encoding.ids for encoding in self.backend.encode_batch_fast(clean, add_special_tokens=False)]

    def pieces(self, texts: Sequence[str]) -> list[Pieces]:
        """Tokens of texts with their positions, without special tokens."""
        clean = [_text(text) for text in texts]
        with _readable():
            encodings = self.backend.encode_batch(clean, add_special_tokens=False)
        found = [pieces_of(encoding) for encoding in encodings]
        if self._finds_words:
            return found
        return [by_words(one, text) for one, text in zip(found, clean, strict=True)]

    def word_ids(self, words: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        """Token numbers of each word of texts given as words; a word without a token gets the unknown token."""
        clean = [[_text(word) for word in text] for text in words]
        with _readable():
            encodings = self._spaced.encode_batch(clean, is_pretokenized=True, add_special_tokens=False)
        unknown = self._unknown()
        texts = []
        for text, encoding in zip(clean, encodings, strict=True):
            found: list[list[int]] = [[] for _ in text]
            for token, word in zip(encoding.ids, encoding.word_ids, strict=True):
                found[word].append(token)
            texts.append([tokens or unknown for tokens in found])
        return texts

    @property
    def _spaced(self) -> Any:
        """The tokenizer for single words, which reads each as in a text: after a space."""
        # Python 3.11's cached_property holds a lock, which a child of a fork may find taken for ever.
        if self._of_words is None:
            self._of_words = self._made_spaced()
        return self._of_words

    def _made_spaced(self) -> Any:
        from tokenizers import Tokenizer as Backend

        if self._finds_words:
            return self.backend
        written = json.loads(self.backend.to_str())
        first = written.get("pre_tokenizer") or {}
        for part in first.get("pretokenizers", [first]):
            if "add_prefix_space" in part:
                part["add_prefix_space"] = True
            if "prepend_scheme" in part:
                part["prepend_scheme"] = "always"
        return Backend.from_str(json.dumps(written))

    def _unknown(self) -> list[int]:
        token = getattr(self.backend.model, "unk_token", None)
        number = self.backend.token_to_id(token) if token else None
        return [number if number is not None else 0]

    def save(self, folder: Path, max_tokens: int) -> None:
        """Write tokenizer.json and tokenizer_config.json, as transformers reads them.

        Args:
            folder: the target folder.
            max_tokens: longest input in tokens.
        """
        self.backend.save(str(folder / "tokenizer.json"))
        names = {"tokenizer_class": "BertTokenizer"} | self.config | {"model_max_length": max_tokens}
        # Paths and truncation settings of whoever made the checkpoint do not belong to the fitted function.
        for key in ("name_or_path", "_name_or_path", "auto_map", "max_length", "stride", "truncation_strategy"):
            names.pop(key, None)
        (folder / "tokenizer_config.json").write_text(json.dumps(names, indent=2, ensure_ascii=False) + "\n", "utf-8")


@contextmanager
def _readable() -> Iterator[None]:
    """Errors of the library about a text as ours; ModelError."""
    try:
        yield
    except BaseException as error:
        if not _is_of_the_library(error):
            raise
        fix = "Use the tokenizer that was saved with this encoder."
        raise ModelError("the tokenizer", f"cannot read a text ({error})", "one that reads every text", fix) from error


def _is_of_the_library(error: BaseException) -> bool:
    """Whether an error is the library's: it raises bare Exceptions, and panics, which are none."""
    if isinstance(error, ModelError | MemoryError):
        return False
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _wordpiece(vocab: Path, config: dict[str, Any]) -> Any:
    """BERT's tokenizer from its vocabulary file: lower-casing as tokenizer_config.json says, or by default."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

    backend = Backend(models.WordPiece.from_file(str(vocab), unk_token="[UNK]", max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=config.get("do_lower_case", True),
        strip_accents=config.get("strip_accents"),
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    lacking = [token for token in ("[UNK]", "[CLS]", "[SEP]") if backend.token_to_id(token) is None]
    if lacking:
        raise ModelError(str(vocab), f"lacks {lacking[0]}", "BERT's vocabulary, with [UNK], [CLS] and [SEP]")
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=special
    )
    backend.decoder = decoders.WordPiece(prefix="##")
    present = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    backend.add_special_tokens([token for token in present if backend.token_to_id(token) is not None])
    return backend


def _text(text: str) -> str:
    """Replace lone surrogates by question marks, because the library refuses them."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _fit_pair(first: int, second: int, room: int) -> tuple[int, int]:
    """Lengths of both texts after cutting the longer one until both fit."""
    room = max(0, room)
    if first + second <= room:
        return first, second
    shorter = min(first, second, room // 2)
    return (shorter, room - shorter) if first <= second else (room - shorter, shorter)
