"""Files beside a checkpoint's tokenizer: read as transformers reads them, or refused; what is written agrees."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import transformers
from conftest import make_bert, toy_rows
from test_families import with_tokenizer

import berthead
from berthead.errors import ModelError
from berthead.text.tokenizer import Tokenizer

TEXTS = ["The Cat SAT", "a Zoë 猫 good", "[MASK] cat [NEW] good", "naïve Good", "x [new] y <spec>", "<mask> a"]
KEYS = [
    {}, {"do_lower_case": False}, {"do_lower_case": True}, {"strip_accents": False}, {"strip_accents": True},
    {"tokenize_chinese_chars": False}, {"do_lower_case": False, "strip_accents": True},
]  # fmt: skip


def edit(path: Path, **changes) -> None:
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    record |= changes
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not None}), encoding="utf-8")


@pytest.fixture
def folder(tmp_path, tmp_path_factory) -> Path:
    """A checkpoint with a lower-casing tokenizer.json."""
    return Path(shutil.copytree(make_bert(tmp_path / "made"), tmp_path / "encoder"))


def vocabulary_alone(folder: Path) -> None:
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in sorted(vocabulary, key=vocabulary.get)))


def check(folder: Path, tmp_path: Path) -> None:
    """Our numbers are those of transformers, for the folder and for what we write of it."""
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = Tokenizer.from_checkpoint(folder)
    wanted = [theirs(text)["input_ids"] for text in TEXTS]
    assert [row.ids.tolist() for row in ours.encode(TEXTS, None, 200)] == wanted
    written = tmp_path / "written"
    written.mkdir()
    ours.save(written, 64)
    shutil.copy(folder / "config.json", written)
    again = Tokenizer.from_folder(written)
    assert [row.ids.tolist() for row in again.encode(TEXTS, None, 200)] == wanted
    there = transformers.AutoTokenizer.from_pretrained(written)
    assert [there(text)["input_ids"] for text in TEXTS] == wanted


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("keys", KEYS, ids=str)
@pytest.mark.parametrize("kind", ["BertTokenizer", "BertTokenizerFast", "PreTrainedTokenizerFast", None])
def test_settings_are_those_that_transformers_takes(folder, tmp_path, kind, keys, lowercase):
    record = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    record["normalizer"]["lowercase"] = lowercase
    (folder / "tokenizer.json").write_text(json.dumps(record), encoding="utf-8")
    edit(
        folder / "tokenizer_config.json",
        **{"tokenizer_class": kind, "do_lower_case": None, "strip_accents": None} | keys,
    )
    check(folder, tmp_path)


@pytest.mark.parametrize("keys", KEYS, ids=str)
def test_a_vocabulary_alone_is_read_by_the_same_settings(folder, tmp_path, keys):
    vocabulary_alone(folder)
    edit(folder / "tokenizer_config.json", **keys)
    check(folder, tmp_path)


@pytest.mark.parametrize("config", [True, False])
@pytest.mark.parametrize("alone", [True, False])
def test_added_tokens_are_read_from_their_files(folder, tmp_path, alone, config):
    if alone:
        vocabulary_alone(folder)
    if not config:
        (folder / "tokenizer_config.json").unlink()
    (folder / "added_tokens.json").write_text(json.dumps({"<spec>": 83, "[NEW]": 82}))
    check(folder, tmp_path)


def test_added_tokens_are_read_from_the_settings(folder, tmp_path):
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "special": False, "normalized": False}
    edit(folder / "tokenizer_config.json", added_tokens_decoder={"82": {"content": "[NEW]", **flags}})
    check(folder, tmp_path)


def test_special_tokens_are_read_from_their_map(folder, tmp_path):
    (folder / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": ["<spec>"]}))
    check(folder, tmp_path)


@pytest.mark.parametrize("name", ["roberta", "distilbert", "mpnet", "electra", "nomic_bert"])
@pytest.mark.parametrize(
    "keys", [{"add_prefix_space": True}, {"add_prefix_space": False}, {"do_lower_case": False}], ids=str
)
def test_other_families_follow_their_settings_too(tmp_path, name, keys):
    folder = with_tokenizer(tmp_path / "encoder", name)
    kind = {"roberta": "RobertaTokenizer", "distilbert": "DistilBertTokenizer", "mpnet": "MPNetTokenizer"}
    edit(folder / "tokenizer_config.json", tokenizer_class=kind.get(name, "BertTokenizer"), **keys)
    check(folder, tmp_path)


def test_a_fitted_folder_is_read_alike_by_both(folder, tmp_path):
    edit(folder / "tokenizer_config.json", do_lower_case=False)
    model = berthead.fit(toy_rows(1), encoder=str(folder), epochs=1, valid=0, out=tmp_path / "m", quiet=True)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    ours = berthead.load(tmp_path / "m").artifact.tokenizer
    assert [row.ids.tolist() for row in ours.encode(TEXTS, None, 60)] == [theirs(text)["input_ids"] for text in TEXTS]
    assert model.predict("The Cat").answer == berthead.load(tmp_path / "m").predict("The Cat").answer


def test_a_resized_table_reads_added_tokens(folder, tmp_path):
    model = transformers.BertModel.from_pretrained(folder)
    (folder / "added_tokens.json").write_text(json.dumps({"[NEW]": 82}))
    with pytest.raises(ModelError, match="82"):  # its table has no such row
        berthead.fit(toy_rows(1), encoder=str(folder), epochs=1, valid=0, quiet=True)
    model.resize_token_embeddings(83)
    model.save_pretrained(folder)
    fitted = berthead.fit(toy_rows(1), encoder=str(folder), epochs=1, valid=0, quiet=True)
    assert 82 in fitted.artifact.tokenizer.encode(["a [NEW] cat"], None, 20)[0].ids


@pytest.mark.parametrize(
    ("file", "changes", "saw"),
    [
        ("tokenizer_config.json", {"cls_token": "good"}, 'has cls_token "good", but tokenizer.json puts'),
        ("special_tokens_map.json", {"sep_token": {"content": "good"}}, 'has sep_token "good"'),
        ("added_tokens.json", {"[NEW]": 90}, 'gives "[NEW]" the number 90, but tokenizer.json or vocab.txt 82'),
        ("added_tokens.json", {"good": 3}, 'gives "good" the number 3'),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {}}}, 'added_tokens_decoder has "x"'),
    ],
)
def test_contradictions_are_refused(folder, file, changes, saw):
    edit(folder / file, **changes | ({"sep_token": changes.get("sep_token")} if "sep_token" in changes else {}))
    if file == "special_tokens_map.json":
        edit(folder / "tokenizer_config.json", sep_token=None)
    with pytest.raises(ModelError) as refused:
        Tokenizer.from_checkpoint(folder)
    assert saw in str(refused.value)


@pytest.mark.parametrize("files", [["spiece.model"], ["vocab.json", "merges.txt"]])
def test_a_tokenizer_without_its_json_says_how_to_write_it(folder, files):
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)
    for name in files:
        (folder / name).write_bytes(b"x")
    with pytest.raises(
        ModelError, match=rf"only as {files[0]}.*from transformers import AutoTokenizer.*save_pretrained"
    ):
        berthead.fit(toy_rows(1), encoder=str(folder), quiet=True)
