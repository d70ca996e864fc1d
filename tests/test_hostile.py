"""One line where a hostile or broken file would cause a traceback, a hang, or a full memory."""

from __future__ import annotations

import json
import os
import resource
import shutil
from pathlib import Path

import pytest
from conftest import shell_env, unsealed, write_csv, write_jsonl

import berthead
from berthead.data import examples
from berthead.errors import DataError, ModelError, UsageError
from berthead.formats import lines, readers
from berthead.formats.readers import open_rows
from berthead.options import FitOptions
from berthead.text.tokenizer import Tokenizer

# A broken tokenizer.json


def charsmap(tokenizer):
    tokenizer["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}


def no_special_tokens(tokenizer):
    tokenizer["post_processor"]["special_tokens"].clear()


def no_length(tokenizer):
    tokenizer["pre_tokenizer"] = {"type": "FixedLength", "length": 0}


def long_prefix(tokenizer):
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    tokenizer["model"] = model | {"continuing_subword_prefix": "###"}


def no_unknown(tokenizer):
    tokenizer["model"]["unk_token"] = "[NOPE]"


def of_another_word(tokenizer):
    del tokenizer["model"]["vocab"]["[UNK]"]
    tokenizer["added_tokens"] = [one for one in tokenizer["added_tokens"] if one["content"] != "[UNK]"]


def spoil(folder: Path, change) -> Path:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    change(tokenizer)
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    record = folder / "berthead.json"
    if record.exists():
        record.write_text(json.dumps(unsealed(json.loads(record.read_text(encoding="utf-8")))), encoding="utf-8")
    return folder


LABELS = ["positive", "negative"]
BROKEN = [charsmap, no_special_tokens, no_length, long_prefix, no_unknown, of_another_word]


@pytest.mark.parametrize("change", BROKEN, ids=[one.__name__ for one in BROKEN])
def test_a_tokenizer_at_which_its_library_fails_is_a_model_error(change, toy_model, tiny_bert, tmp_path, cli):
    folder = spoil(Path(shutil.copytree(toy_model, tmp_path / "m")), change)
    rows = write_csv(tmp_path / "rows.csv", [{"text": "good ẞ cat", "label": label} for label in LABELS * 6])
    for words in (("predict", folder, "good ẞ cat"), ("predict", folder, rows), ("eval", folder, rows)):
        ran = cli(*words)
        assert ran.code == 2
        # The library itself reports its panics on stderr, before ours.
        (line,) = [line for line in ran.err.splitlines() if line.startswith("berthead:")]
        assert "tokenizer" in line
        assert "Traceback" not in ran.err
    encoder = spoil(Path(shutil.copytree(tiny_bert, tmp_path / "encoder")), change)
    ran = cli("fit", rows, "--encoder", encoder, "--out", tmp_path / "new", "--epochs", 1)
    assert ran.code == 2
    assert "Traceback" not in ran.err
    assert not (tmp_path / "new").exists()


def drops_all(tokenizer):
    """No special tokens, and a normalizer that deletes every digit."""
    tokenizer["post_processor"] = None
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"Regex": "[0-9]"}, "content": ""}


@pytest.mark.parametrize("task", ["classify", "tag", "choose"])
def test_a_row_of_no_token_is_a_row_without_an_answer(task, tiny_bert, tmp_path):
    encoder = spoil(Path(shutil.copytree(tiny_bert, tmp_path / "encoder")), drops_all)
    rows = {
        "classify": [{"text": f"{word} cat", "label": word} for word in ("good", "bad")] * 6,
        "tag": [{"tokens": ["good", "cat"], "tags": ["O", "B-X"]}] * 8,
        "choose": [{"question": "good", "choices": ["cat", "dog"], "answer": n % 2} for n in range(8)],
    }[task]
    options = {"task": task, "encoder": str(encoder), "epochs": 1, "valid": 0, "quiet": True, "threads": 1}
    model = berthead.fit(rows, **options)
    texts = {
        "classify": ["good cat", "0 1", "cat"],
        "tag": ["good cat", "0 1", "cat"],
        "choose": [("good", ["a", "b"]), ("0", ["0", "1"]), ("good", ["a", "b"])],
    }[task]
    found = [one.error for one in model.predict(texts)]
    nothing = "has no tokens: the tokenizer drops all its characters; expected a text that it knows"
    assert found[::2] == [None, None]
    assert found[1] is not None
    assert found[1].endswith(nothing)
    if task == "classify":
        bad = [*rows, {"text": "0 1", "label": "good"}]
        with pytest.raises(DataError, match="has no tokens"):
            berthead.fit(bad, **options)
        assert [line for line in berthead.fit(bad, skip_bad_rows=True, **options).warnings if nothing in line]


# Pipes and devices


@pytest.mark.parametrize(
    "name", ["berthead.json", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "x", "a/x"]
)
def test_a_pipe_in_a_model_folder_is_refused_and_not_waited_for(name, toy_model, tmp_path):
    folder = Path(shutil.copytree(toy_model, tmp_path / "m"))
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(ModelError, match=r"is a pipe or a device; expected regular files|holds no berthead\.json"):
        berthead.load(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json"])
def test_a_pipe_in_an_encoder_is_refused_and_not_waited_for(name, tiny_bert, tmp_path):
    encoder = Path(shutil.copytree(tiny_bert, tmp_path / "encoder"))
    if name == "tokenizer.json":
        (encoder / "vocab.txt").unlink()
    (encoder / name).parent.mkdir(exist_ok=True)
    (encoder / name).unlink(missing_ok=True)
    os.mkfifo(encoder / name)
    rows = [{"text": text, "label": text} for text in ("good", "bad")] * 6
    if name == "1_Pooling/config.json":  # is read where it is a file
        assert berthead.fit(rows, encoder=str(encoder), epochs=1, valid=0, quiet=True, threads=1)
        return
    with pytest.raises(ModelError):
        berthead.fit(rows, encoder=str(encoder), epochs=1, valid=0, quiet=True)


# Lines and texts without an end


@pytest.fixture
def short_lines(monkeypatch):
    monkeypatch.setattr(lines, "LONGEST_LINE", 100_000)
    monkeypatch.setattr(readers, "LONGEST_LINE", 100_000)
    monkeypatch.setattr("berthead.formats.format.Source.__init__.__defaults__", ("", "", 100_000))


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.conll", "a.csv.gz"])
def test_a_line_without_an_end_is_refused_before_it_is_in_memory(name, short_lines, tmp_path):
    import gzip

    text = b"text\nfine\n" + b"x" * 300_000
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    with pytest.raises(
        DataError, match=rf"{name}:3: is a line without an end; expected lines of at most 100,000 bytes"
    ):
        list(open_rows(tmp_path / name))


def test_a_document_may_be_one_long_line(short_lines, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"text": "x" * 200}] * 2000))
    assert len(list(open_rows(tmp_path / "a.json"))) == 2000


def test_an_endless_stream_ends_with_a_message(toy_model, tmp_path, forks):
    """In a process that may take no more memory than it needs for the longest line."""
    program = """
import resource, sys
from berthead.cli import main
here = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (here + 2**31, here + 2**31))
main()
"""
    with open("/dev/zero", "rb") as zeros:
        ran = forks.start(
            "predict", toy_model, "-", cwd=tmp_path, env=shell_env(), stdin=zeros.fileno(), program=program
        )
        out, err = ran.communicate()
    assert (ran.returncode, out) == (3, ""), err
    assert err == (
        "berthead: stdin:1: is a line without an end; expected lines of at most 134,217,728 bytes. "
        "Check that this is a file of rows, one a line.\n"
    )
    assert resource.RLIMIT_AS


def test_a_text_that_would_fill_the_memory_is_a_row_without_an_answer(toy_model, tmp_path, monkeypatch):
    monkeypatch.setattr(examples, "LONGEST_TEXT", 1000)
    model = berthead.load(toy_model)
    found = model.predict(["good cat", "x" * 1001, "x" * 1000])
    allowed = "expected at most 1,000: divide it into several rows"
    assert [one.error for one in found] == [None, f"has 1,001 characters; {allowed}", None]
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": "good"}, {"text": "y" * 5000}])
    assert model.predict_file(source, tmp_path / "out.jsonl", quiet=True).failed == 1
    assert json.loads((tmp_path / "out.jsonl.errors.jsonl").read_text())["row"] == {"text": "y" * 5000}


# Configurations


def test_a_configuration_may_not_refer_to_itself(tmp_path, cli):
    bomb = "a: &a [x, x]\n" + "".join(
        f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    path = tmp_path / "config.yaml"
    texts = {
        bomb + "text: *i\n": "line 2 refers to another value by *",
        "text: &a [*a]\n": "line 1 refers to another value by *",
        "[" * 20_000: "cannot be read as YAML",
        "text: " + "x" * 200_000: "is longer than 100,000 characters",
        "seed: 2020-99-99\n": "cannot be read as YAML",
        "text: &here note\n": None,
    }
    for text, said in texts.items():
        path.write_text(text)
        if said is None:
            assert FitOptions.from_sources({}, path).text == "note"
            continue
        with pytest.raises(UsageError) as caught:
            FitOptions.from_sources({}, path)
        assert said in str(caught.value)
        assert len(str(caught.value)) < 1000
    path.write_text("text: [" + "1, " * 20_000 + "1]\n")
    with pytest.raises(UsageError) as caught:
        FitOptions.from_sources({}, path)
    assert len(str(caught.value)) < 1000


def test_an_interruption_in_the_tokenizer_stays_one(toy_model, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    tokenizer = berthead.load(toy_model).artifact.tokenizer
    monkeypatch.setattr(Tokenizer, "backend", type("Backend", (), {"encode_batch_fast": interrupted})(), raising=False)
    object.__delattr__(tokenizer, "backend")
    with pytest.raises(KeyboardInterrupt):
        tokenizer.ids(["good"])


@pytest.mark.parametrize("numbers", [None, [], [3, 3]], ids=["no entry", "no number", "two numbers"])
def test_a_template_without_its_tokens_is_told_in_one_line(tiny_bert, tmp_path, capfd, numbers):
    """The library would print a panic before our line."""
    folder = tmp_path / "encoder"
    shutil.copytree(tiny_bert, folder)
    written = json.loads((folder / "tokenizer.json").read_text())
    known = written["post_processor"]["special_tokens"]
    sep = known.pop("[SEP]")
    if numbers is not None:
        known["[SEP]"] = sep | {"ids": numbers}
    (folder / "tokenizer.json").write_text(json.dumps(written))
    with pytest.raises(ModelError, match=r"tokenizer\.json: cannot be read \(.*\[SEP\]"):
        Tokenizer.from_folder(folder)
    assert "panicked" not in capfd.readouterr().err
