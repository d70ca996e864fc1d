"""Token numbers as transformers' AutoTokenizer gives them: singles and pairs, cut and whole, over any unicode text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import tries
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from berthead.errors import ModelError
from berthead.model.encoder_folders import find_encoder
from berthead.text.tokenizer import Tokenizer

SAMPLES = [
    "", " ", "the cat sat on the mat.", "Unbelievably, antidisestablishmentarianism!", "é", "e\u0301 a\u0308\u0323",
    "😀👍🏽👨\u200d👩\u200d👧 ok", "中文字 and 日本語 한국어", "مرحبا بالعالم", "שלום", "line\r\nline\rline\nline",
    "a\u00a0b\u2003c\u200bd", "\x00\x01\x1f\x7f\x85", "tab\tand\x0bmore", "\ufeffBOM \ufffd", "##ing ##s",
    "[CLS] [SEP] [MASK] [PAD] [UNK] [mask]", "x" * 99, "x" * 100, "x" * 101, "dog " * 30, "ﬁ ﬂ ① Ⅷ ẞ ß İ ı",
    "\u202eright\u202c", "𝕳𝖊𝖑𝖑𝖔 𐍈", "don't 3.14 U.S.A. @you #tag",
]  # fmt: skip

pieces = st.sampled_from([*SAMPLES, "the", "cat", "##s", "[SEP]", "\r\n", "\u00a0", "\u0301", "😀", "字", "ب", "."])
texts = st.lists(st.one_of(pieces, st.text(max_size=8)), max_size=6).map("".join)
limits = st.one_of(st.integers(4, 12), st.sampled_from([16, 33, 64]))
many = settings(
    max_examples=tries(150),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module", params=["tiny", "minilm"])
def both(request, tiny_bert):
    """Our tokenizer of a folder, and transformers'."""
    from transformers import AutoTokenizer

    folder = tiny_bert if request.param == "tiny" else find_encoder("minilm")
    return Tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder)


def assert_equal(both, text: str, pair: str | None, max_tokens: int) -> None:
    """Ids, types, whole length and whether it was cut, as transformers says."""
    ours, theirs = both
    # Lists: called with two strings, transformers takes an empty second text for none.
    texts_, pairs = [text], None if pair is None else [pair]
    (mine,) = ours.encode(texts_, pairs, max_tokens)
    cut = theirs(texts_, pairs, truncation="longest_first", max_length=max_tokens)
    whole = len(theirs(texts_, pairs, truncation=False)["input_ids"][0])
    assert mine.ids.tolist() == cut["input_ids"][0]
    assert mine.segments.tolist() == cut["token_type_ids"][0]
    assert mine.n_tokens == whole
    assert mine.truncated == (whole > max_tokens)
    assert len(mine.ids) == len(mine.segments) <= max_tokens


@many
@given(text=texts, max_tokens=limits)
def test_single_texts_equal_transformers(both, text, max_tokens):
    assert_equal(both, text, None, max_tokens)


@many
@given(text=texts, pair=texts, max_tokens=limits)
def test_pairs_equal_transformers(both, text, pair, max_tokens):
    assert_equal(both, text, pair, max_tokens)


@pytest.mark.parametrize("text", SAMPLES)
def test_known_texts_equal_transformers_at_every_small_limit(both, text):
    for max_tokens in (2, 3, 4, 5, 8, 512):
        assert_equal(both, text, None, max_tokens)
    for max_tokens in (3, 4, 5, 6, 9, 512):
        assert_equal(both, text, "the dog ran", max_tokens)
        assert_equal(both, "the dog ran", text, max_tokens)


def test_pairs_are_cut_longest_first_at_every_limit(both):
    for first in range(0, 9):
        for second in range(0, 9):
            for max_tokens in range(3, 20):
                assert_equal(both, "cat " * first, "dog " * second, max_tokens)


def test_a_batch_equals_its_texts_one_by_one_in_order(both):
    ours, _ = both
    reversed_ = SAMPLES[::-1]
    for pairs in (None, reversed_):
        together = ours.encode(SAMPLES, pairs, 16)
        assert len(together) == len(SAMPLES)
        for number, mine in enumerate(together):
            (alone,) = ours.encode(SAMPLES[number : number + 1], pairs and pairs[number : number + 1], 16)
            assert mine.ids.tolist() == alone.ids.tolist()
            assert mine.segments.tolist() == alone.segments.tolist()
    assert ours.encode([], None, 16) == ours.encode([], [], 16) == []


def test_texts_and_pairs_of_different_number_are_refused(both):
    with pytest.raises(ValueError, match="zip"):
        both[0].encode(["a", "b"], ["c"], 16)


@many
@given(text=st.text(st.one_of(st.characters(categories=["Cs"]), st.sampled_from("the cat")), min_size=1, max_size=20))
def test_a_lone_surrogate_is_read_as_a_question_mark(both, text):
    clean = "".join("?" if 0xD800 <= ord(letter) <= 0xDFFF else letter for letter in text)
    ours, theirs = both
    single, wanted = ours.encode([text], None, 64)[0], theirs(clean)["input_ids"]
    assert single.ids.tolist() == wanted
    pair = ours.encode(["the cat"], [text], 64)[0]
    assert pair.ids.tolist() == theirs("the cat", clean)["input_ids"]


def test_arrays_are_whole_numbers_even_where_nothing_is_left(both):
    for one in both[0].encode(["", "a"], None, 2) + both[0].encode([""], [""], 3):
        assert one.ids.dtype == one.segments.dtype == np.int64


def test_the_vocabulary_is_transformers(both):
    assert both[0].largest_id == len(both[1]) - 1


# --- settings in the file ---


def baked(folder: Path, tmp_path: Path, **settings_) -> Path:
    """The tokenizer with other settings in tokenizer.json."""
    target = tmp_path / "baked"
    shutil.copytree(folder, target)
    path = target / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings_))
    return target


def test_minilms_own_file_asks_for_padding_and_truncation_and_neither_is_done():
    folder = find_encoder("minilm")
    asked = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert asked["truncation"]["max_length"] == 128
    assert asked["padding"]["strategy"] == {"Fixed": 128}
    ours = Tokenizer.from_folder(folder)
    short, long = ours.encode(["cat", "cat " * 300], None, 512)
    assert (len(short.ids), len(long.ids)) == (3, 302)
    assert (long.n_tokens, long.truncated) == (302, False)


def test_padding_and_truncation_in_any_tokenizer_file_are_ignored(tiny_bert, tmp_path):
    truncation = {"max_length": 5, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    padding = {
        "strategy": {"Fixed": 32}, "direction": "Left", "pad_to_multiple_of": 8, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "[PAD]",
    }  # fmt: skip
    plain = Tokenizer.from_folder(tiny_bert)
    strange = Tokenizer.from_folder(baked(tiny_bert, tmp_path, truncation=truncation, padding=padding))
    for pairs in (None, ["the dog"] * len(SAMPLES)):
        for mine, wanted in zip(strange.encode(SAMPLES, pairs, 40), plain.encode(SAMPLES, pairs, 40), strict=True):
            assert mine.ids.tolist() == wanted.ids.tolist()
            assert (mine.n_tokens, mine.truncated) == (wanted.n_tokens, wanted.truncated)


# --- saving ---


def test_a_saved_tokenizer_is_transformers_and_ours(both, tmp_path):
    from transformers import AutoTokenizer

    ours, theirs = both
    ours.save(tmp_path, 20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    again, loaded = Tokenizer.from_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.model_max_length == 20
    assert (loaded.pad_token, loaded.sep_token) == (theirs.pad_token, theirs.sep_token)
    for text in SAMPLES:
        for pair in (None, "the dog ran"):
            wanted = theirs(text, pair)["input_ids"]
            assert loaded(text, pair)["input_ids"] == wanted
            assert again.encode([text], pair and [pair], 512)[0].ids.tolist() == wanted
            # transformers cuts at the same place by itself
            cut = loaded(text, pair, truncation=True)
            mine = again.encode([text], pair and [pair], 20)[0]
            assert (cut["input_ids"], cut["token_type_ids"]) == (mine.ids.tolist(), mine.segments.tolist())


@pytest.mark.parametrize("config", [None, {"do_lower_case": False}, {"strip_accents": False}], ids=str)
def test_a_tokenizer_from_vocab_alone_is_saved_whole(tmp_path, config):
    from transformers import AutoTokenizer

    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    shutil.copy(find_encoder("minilm") / "vocab.txt", source)
    if config:
        (source / "tokenizer_config.json").write_text(json.dumps(config))
    ours = Tokenizer.from_folder(source)
    ours.save(target, 64)
    loaded = AutoTokenizer.from_pretrained(target)
    for text in SAMPLES:
        for pair in (None, "The DOG ran"):
            mine = ours.encode([text], pair and [pair], 64)[0]
            got = loaded(text, pair, truncation=True)
            assert (got["input_ids"], got["token_type_ids"]) == (mine.ids.tolist(), mine.segments.tolist()), text


def test_what_belongs_to_the_checkpoints_maker_is_not_saved(tiny_bert, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    shutil.copytree(tiny_bert, source)
    target.mkdir()
    path = source / "tokenizer_config.json"
    strange = {"name_or_path": "/home/me", "auto_map": {"AutoTokenizer": "evil.T"}, "stride": 3, "max_length": 7}
    path.write_text(json.dumps(json.loads(path.read_text()) | strange | {"model_max_length": 7}))
    Tokenizer.from_folder(source).save(target, 64)
    saved = json.loads((target / "tokenizer_config.json").read_text())
    assert not set(strange) & set(saved)
    assert saved["model_max_length"] == 64


# --- files that cannot be used ---


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"holds no tokenizer; expected tokenizer\.json, or vocab\.txt"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "{}", "[1]", '{"version": "1.0", "model": {"type": "Evil"}}'])
def test_a_broken_tokenizer_file_is_refused(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ModelError, match=r"tokenizer\.json: cannot be read"):
        Tokenizer.from_folder(tmp_path)


def test_a_broken_tokenizer_config_is_refused(tiny_bert, tmp_path):
    shutil.copy(tiny_bert / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_bytes(b"\xff{")
    with pytest.raises(ModelError, match=r"tokenizer_config\.json: cannot be read as JSON"):
        Tokenizer.from_folder(tmp_path)
