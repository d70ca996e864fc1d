"""What data, names and records hold reaches a terminal as letters, never as commands."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import toy_rows, unsealed, write_csv, write_jsonl

import berthead
from berthead.errors import DataError, printable
from berthead.progress import Progress

RED = "\x1b[31mred\x1b]0;title\x07\x9b2J\u202ered\r"
SHOWN = r"\u001b[31mred\u001b]0;title\u0007\u009b2J\u202ered\u000d"
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")


@pytest.fixture(scope="module")
def model(tiny_bert, tmp_path_factory) -> Path:
    """A function with such labels, columns and records."""
    folder = tmp_path_factory.mktemp("red") / "m"
    rows = [{f"text{RED}": row["text"], RED: f"{row['label']}{RED}"} for row in toy_rows(2)]
    berthead.fit(
        rows,
        out=folder,
        encoder=str(tiny_bert),
        epochs=1,
        threads=1,
        valid=0.25,
        quiet=True,
        text=f"text{RED}",
        label=RED,
    )
    record = json.loads((folder / "berthead.json").read_text(encoding="utf-8"))
    record["parameters"]["pretrained"]["name"] = RED
    record["run"]["versions"]["torch"] = RED
    (folder / "berthead.json").write_text(json.dumps(unsealed(record)), encoding="utf-8")
    return folder


def test_letters_stay_and_commands_are_shown():
    assert printable(RED) == SHOWN
    plain = "café 日本 \t\n 😀 שלום\u200f e\u0301\u200d"
    assert printable(plain) == plain
    assert json.loads(printable(json.dumps(RED, ensure_ascii=False))) == RED
    assert str(DataError(RED, RED, RED, RED)).count(SHOWN) == 4
    assert DataError(RED, RED).saw == RED


def test_no_command_prints_them_raw(model, tmp_path, cli):
    rows = [{f"text{RED}": row["text"], RED: f"{row['label']}{RED}"} for row in toy_rows(1)]
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    named = Path(shutil.copy(data, tmp_path / f"a{RED}.jsonl"))
    other = write_csv(tmp_path / "other.csv", [{f"text{RED}": "good", f"label{RED}": "?"}])
    bad = write_jsonl(tmp_path / "bad.jsonl", [*rows, {f"text{RED}": " ", RED: RED}, {f"text{RED}": "cat", RED: RED}])
    runs = [
        ("info", model), ("info", model, "--json"), ("predict", model, f"good {RED}"), ("verify", model),
        ("predict", model, "good", "--probabilities"), ("predict", model, "good", "--json"),
        ("eval", model, data), ("eval", model, data, "--json"), ("eval", model, named), ("eval", model, other),
        ("eval", model, bad), ("eval", model, bad, "--skip-bad-rows"), ("compare", model, model, data),
        ("predict", model, tmp_path / f"missing{RED}.csv"), ("predict", model, bad, "--out", tmp_path / f"{RED}.jsonl"),
        ("info", tmp_path / RED), ("info", RED), (RED,), ("info", model, f"--{RED}"), ("bench", model, data, "--quiet"),
        ("fit", bad, "--out", tmp_path / "new", "--text", RED), ("fit", bad, "--out", tmp_path / RED / RED),
        ("export", model, "--onnx", tmp_path / "onnx"), ("merge", model, tmp_path / f"m{RED}"),
    ]  # fmt: skip
    shown = 0
    for words in runs:
        ran = cli(*words)
        assert not RAW.search(ran.out), words
        assert not RAW.search(ran.err.replace("\r\n", "\n")), words
        assert "Traceback" not in ran.err, words
        shown += SHOWN in ran.out + ran.err or r"\u001b" in ran.out + ran.err
    assert shown > 15


def test_progress_says_them_as_letters(capsys):
    with Progress("predict", total=2) as progress:
        progress.say(RED)
    assert capsys.readouterr().err == f"{SHOWN}\n"


def test_a_message_is_no_longer_than_anybody_reads():
    error = DataError("a.xlsx", "x" * 100_000, "a workbook", "Save it again.")
    assert len(str(error)) < 1400
    assert str(error).endswith("x ...; expected a workbook. Save it again.")
    assert len(error.saw) == 100_000
