"""What users get wrong: each mistake has a message with where, what was seen, what is allowed and what to do."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import pickle
import re
import shlex
import shutil
import signal
import sys
import termios
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import make_bert, shell_env, toy_rows, write_csv, write_jsonl
from processes import Forked

import berthead

TOY = "text,label\n" + "".join(f"{row['text'].replace(',', '')},{row['label']}\n" for row in toy_rows())
STARS = TOY.replace("negative", "1").replace("positive", "4.5")
JSON_LINE = '{"text": "good cat", "label": "positive"}\n{"text": "bad cat", "label": "negative"}\n'


@dataclass(frozen=True)
class Case:
    """Files to write, a command with {placeholders}, its exit code, and what its message has to say."""

    command: str
    code: int
    says: tuple[str, ...]
    files: dict[str, str | bytes] = field(default_factory=dict)
    silent: tuple[str, ...] = ()


FIT = "fit data.csv --out out --encoder {encoder}"
CASES = {
    # columns
    "missing column": Case(
        FIT, 3, ("data.csv: has no column for the label", "one of its columns: text, mood", "Name one: --label COLUMN"),
        {"data.csv": "text,mood\na,b\n"},
    ),
    "mistyped column": Case(
        FIT + " --label lable", 3, ('data.csv: has no column "lable"', "text, label", 'Did you mean "label"?'),
        {"data.csv": TOY},
    ),
    "mistyped column at predict": Case(
        "predict {model} data.csv", 3,
        ('data.csv: has no column "text"', "expected one of its columns: texts, id", 'Did you mean "texts"?'),
        {"data.csv": "texts,id\na,1\n"},
    ),
    "mistyped column of a valid file": Case(
        FIT + " --valid valid.csv", 3, ('valid.csv: has no column "label"', "expected one of its columns: text, lable"),
        {"data.csv": TOY, "valid.csv": "text,lable\na,positive\n"},
    ),
    # files
    "no such file": Case(
        "fit dta.csv --out out", 3, ("dta.csv: does not exist", 'Did you mean "data.csv"?'), {"data.csv": TOY}
    ),
    "no such file at predict": Case(
        "predict {model} dta.csv", 3, ("dta.csv: does not exist", 'Did you mean "data.csv"?'), {"data.csv": TOY}
    ),
    "unknown extension": Case("fit data.docx --out out", 2, ('".docx"', ".csv", ".parquet"), {"data.docx": b"PK"}),
    "empty file": Case(FIT, 3, ("data.csv: is empty",), {"data.csv": ""}),
    "empty file at predict": Case("predict {model} data.csv", 3, ("data.csv: is empty",), {"data.csv": ""}),
    "header only": Case(
        FIT, 3, ("data.csv: holds no labelled row", "2 to 1,000 classes"), {"data.csv": "text,label\n"}
    ),
    "header only at eval": Case(
        "eval {model} data.csv", 3, ("data.csv: holds no rows", "a text and a label"), {"data.csv": "text,label\n"}
    ),
    "ragged row": Case(
        FIT, 3, ("data.csv:58: has 3 fields; expected 2, as in the header",), {"data.csv": TOY + "a,b,c\n"}
    ),
    "unclosed quote": Case(
        FIT, 3, ("data.csv:58: ", "the quote opened at line 58 is never closed"), {"data.csv": TOY + '"a,b\nc,d\n'}
    ),
    "invalid JSON line": Case(
        "fit data.jsonl --out out --encoder {encoder}", 3,
        ("data.jsonl:3: is not a JSON object", "column 10", "--skip-bad-rows"), {"data.jsonl": JSON_LINE + '{"text": '},
    ),
    # labels
    "one class only": Case(
        FIT, 3, ('data.csv: holds only the class "a"', "2 to 1,000 classes", "Add rows of another class"),
        {"data.csv": "text,label\nx,a\ny,a\n"},
    ),
    "too many classes": Case(
        FIT, 3, ("data.csv: holds 1,001 classes", "2 to 1,000 classes", "--task regress"),
        {"data.csv": "text,label\n" + "".join(f"a,{n}\n" for n in range(1001))},
    ),
    "no tags at all": Case(
        FIT + " --task multilabel", 3, ("data.csv: holds 0 labels", '"a|b"'), {"data.csv": "text,label\nx,\ny,\n"}
    ),
    "blank label": Case(
        FIT, 3, ('data.csv:58: column "label" is blank', "expected a label", "--skip-bad-rows"),
        {"data.csv": TOY + "a,\n"},
    ),
    "label unseen at eval": Case(
        "eval {model} data.csv", 3,
        ('data.csv:3: column "label" is "positiv"', "expected one of 2 known labels", '"negative", "positive"',
         'Did you mean "positive"?', "--skip-bad-rows"),
        {"data.csv": "text,label\ngood cat,positive\nbad cat,positiv\n"},
    ),
    "label unseen in a valid file": Case(
        FIT + " --valid valid.csv", 3,
        ('valid.csv:3: the target is "neutral"', '2 known labels: "negative", "positive"', "Correct the row"),
        {"data.csv": TOY, "valid.csv": "text,label\na,positive\nb,neutral\n"},
    ),
    "number where a text label was fitted": Case(
        "eval {model} data.jsonl", 3, ('data.jsonl:1: column "label" is 1', '"negative", "positive"'),
        {"data.jsonl": '{"text": "a", "label": 1}\n'},
    ),
    "words to be regressed": Case(
        FIT + " --task regress", 3, ('data.csv:58: column "label" is "ten"', "finite number such as 3.5"),
        {"data.csv": STARS + "a,ten\n"},
    ),
    "infinity to be regressed": Case(
        FIT + " --task regress", 3, ('data.csv:58: column "label" is "inf"', "finite number"),
        {"data.csv": STARS + "a,inf\n"},
    ),
    "one number only": Case(
        FIT + " --task regress", 3, ("data.csv: holds only the number 3", "at least two different numbers"),
        {"data.csv": "text,label\na,3\nb,3\n"},
    ),
    # texts
    "blank texts": Case(
        FIT, 3,
        ('data.csv:58: column "text" is blank; expected a text', "2 such rows: data.csv:58, data.csv:60",
         "--skip-bad-rows"),
        {"data.csv": TOY + ",positive\nfine,positive\n  ,negative\n"},
    ),
    "NaN and null texts": Case(
        "fit data.jsonl --out out --encoder {encoder}", 3,
        ('data.jsonl:3: column "text" is blank', "3 such rows: data.jsonl:3, data.jsonl:4, data.jsonl:5"),
        {"data.jsonl": JSON_LINE + '{"text": NaN, "label": "positive"}\n{"text": null, "label": "positive"}\n'
                       '{"label": "positive"}\n'},
    ),
    "a list as text": Case(
        "fit data.jsonl --out out --encoder {encoder}", 3, ('data.jsonl:3: column "text" is ["a"]', "expected a text"),
        {"data.jsonl": JSON_LINE + '{"text": ["a"], "label": "positive"}\n'},
    ),
    "one blank text": Case("predict {model} ''", 3, ("is blank", "expected a text")),
    "one text for pairs": Case("predict {pairs} 'good cat'", 2, ("this model reads pairs", 'predict MODEL "a" "b"')),
    "two texts for single texts": Case("predict {model} good cat", 2, ("a single text", "quotes")),
    "pair column for single texts": Case(
        "predict {model} data.csv --pair label", 2, ("--pair: this model was fitted on single texts", "Leave --pair out"),  # noqa: E501
        {"data.csv": TOY},
    ),
    # flags
    "unknown flag": Case(FIT + " --epocs 3", 2, ("--epocs", "--epochs", "Try: berthead fit --help")),
    "unknown command": Case("fti data.csv", 2, ("fti", "Try: berthead --help")),
    "missing argument": Case("fit --out out", 2, ("got no data", "Try: berthead fit --help")),
    "missing flag": Case("fit data.csv", 2, ("--out", "Try: berthead fit --help")),
    "unknown choice": Case(
        FIT + " --task clasify", 2, ('--task: is "clasify"', "classify, multilabel, regress", 'Did you mean "classify"')
    ),
    "word for a number": Case(FIT + " --epochs three", 2, ('--epochs: is "three"', "a whole number")),
    "NaN for a number": Case(FIT + " --lr nan", 2, ('--lr: is "nan"', "a number")),
    "number out of range": Case(FIT + " --epochs 0", 2, ("--epochs: is 0", "at least 1")),
    "unknown metric": Case(
        FIT + " --metric acuracy", 2, ('--metric: is "acuracy"', "macro_f1", 'Did you mean "accuracy"?'),
        {"data.csv": TOY},
    ),
    "metric of another task": Case(
        FIT + " --metric pearson", 2, ("expected a metric of classify: accuracy",), {"data.csv": TOY}
    ),
    "valid share too large": Case(FIT + " --valid 1.5", 2, ("--valid: is 1.5", "0 to 0.9"), {"data.csv": TOY}),
    "valid share NaN": Case(FIT + " --valid nan", 2, ("--valid: is nan", "0 to 0.9"), {"data.csv": TOY}),
    "valid share in per cent": Case(FIT + " --valid 10%", 2, ('--valid: is "10%"', "such as 0.1"), {"data.csv": TOY}),
    "no such valid file": Case(
        FIT + " --valid vald.csv", 3, ("vald.csv: does not exist", 'Did you mean "valid.csv"?'),
        {"data.csv": TOY, "valid.csv": TOY},
    ),
    "more tokens than the encoder reads": Case(
        FIT + " --max-tokens 65", 2, ("--max-tokens: is 65", "at most 64, the tokens"), {"data.csv": TOY}
    ),
    "balanced regression": Case(
        FIT + " --task regress --class-weight balanced", 2, ("--class-weight balanced", "no classes"),
        {"data.csv": STARS},
    ),
    "json beside rows on stdout": Case("predict {model} data.csv --json", 2, ("--json", "--out"), {"data.csv": TOY}),
    # config files
    "unknown key in YAML": Case(
        FIT + " --config fit.yaml", 2, ("fit.yaml: epocs: is not an option", 'Did you mean "epochs"?'),
        {"fit.yaml": "epocs: 3\n"},
    ),
    "broken YAML": Case(
        FIT + " --config fit.yaml", 2, ("fit.yaml: cannot be read as YAML", "options to values"),
        {"fit.yaml": "epochs: [3\n"},
    ),
    "YAML list": Case(
        FIT + " --config fit.yaml", 2, ("fit.yaml: does not hold a mapping", "`epochs: 3`"), {"fit.yaml": "- epochs\n"}
    ),
    "wrong value in YAML": Case(
        FIT + " --config fit.yaml", 2, ('fit.yaml: epochs: is "many"', "a whole number"), {"fit.yaml": "epochs: many\n"}
    ),
    "no such YAML": Case(FIT + " --config fit.yaml", 2, ("fit.yaml: cannot be read", "No such file")),
    # encoders
    "unknown encoder": Case(
        "fit data.csv --out out --encoder minilmm", 2, ("--encoder minilmm: was not found", 'Did you mean "minilm"?'),
        {"data.csv": TOY},
    ),
    "encoder that was not pulled": Case(
        "fit data.csv --out out --encoder google-bert/bert-base-uncased", 2,
        ("--encoder google-bert/bert-base-uncased: was not found", "berthead pull google-bert/bert-base-uncased"),
        {"data.csv": TOY},
    ),
    "encoder is a file": Case(
        "fit data.csv --out out --encoder data.csv", 2, ("data.csv: is a file", "a folder with config.json"),
        {"data.csv": TOY},
    ),
    "encoder with pickles only": Case(
        "fit data.csv --out out --encoder {pickle_encoder}", 2,
        ("only as pytorch_model.bin", "pickles can run code and are refused", "write the other form with transformers"),
        {"data.csv": TOY},
    ),
    "encoder that lacks a weight": Case(
        "fit data.csv --out out --encoder {lacking_encoder}", 2,
        ("lacks 1 weight: encoder.layer.1.output.dense.bias", "config.json's architecture"), {"data.csv": TOY},
    ),
    "encoder of another family": Case(
        "fit data.csv --out out --encoder {gpt2}", 2, ("config.json", "gpt2", "bert", "roberta"), {"data.csv": TOY}
    ),
    # model folders
    "no model folder": Case("info nothing", 2, ("nothing: does not exist", "a model folder made by berthead fit")),
    "model is a file": Case("info data.csv", 2, ("data.csv: is a file", "a model folder"), {"data.csv": TOY}),
    "model is an encoder": Case("info {encoder}", 2, ("holds no berthead.json", "berthead fit --encoder FOLDER")),
    "model with a pickle": Case("predict {pickle_model} a", 2, ("holds extra.pkl", "pickles and code are refused")),
    "model that lacks a weight": Case(
        "predict {lacking_model} a", 2, ("model.safetensors", "lacks 1 weight: classifier.bias")
    ),
    "model of other weights": Case("verify {changed_model}", 2, ("does not match the sha256", "Copy the folder again")),
    # outputs
    "output below a file": Case(
        "fit data.csv --out data.csv/out --encoder {encoder}", 6,
        ("data.csv/out: cannot be created", "Give another folder"), {"data.csv": TOY},
    ),
    "answers below a file": Case(
        "predict {model} data.csv --out data.csv/out.csv", 6, ("data.csv/out.csv: cannot be written",),
        {"data.csv": TOY},
    ),
    "answers to a folder": Case("predict {model} data.csv --out .", 2, ("has no extension",), {"data.csv": TOY}),
    "answers in no folder": Case(
        "predict {model} data.csv --out there/out.csv", 6,
        ("there/out.csv: its folder does not exist", "mkdir -p there"), {"data.csv": TOY},
    ),
    "output is a file": Case(
        "fit data.csv --out data.csv --encoder {encoder}", 6, ("data.csv: is not a folder", "Give another folder"),
        {"data.csv": TOY},
    ),
    "output holds a model": Case(
        "fit data.csv --out {model} --encoder {encoder}", 6, ("holds a model already", "--overwrite"), {"data.csv": TOY}
    ),
    "output holds other files": Case(
        "fit data.csv --out full --encoder {encoder} --overwrite", 6, ("full: holds other files", "another folder"),
        {"data.csv": TOY, "full/precious.txt": "mine"},
    ),
}  # fmt: skip


@pytest.fixture(scope="session")
def places(tmp_path_factory, fit_toy, tiny_bert) -> dict[str, Path]:
    """Encoders and model folders, sound and broken."""
    from safetensors.torch import load_file, save_file

    base = tmp_path_factory.mktemp("places")
    found = {
        "encoder": tiny_bert,
        "model": fit_toy(threads=1, precision="fp32"),
        "pairs": fit_toy(threads=1, precision="fp32", adapt="frozen", pair="pair"),
    }
    for name, source in (
        ("pickle_encoder", "encoder"), ("lacking_encoder", "encoder"), ("gpt2", "encoder"),
        ("pickle_model", "model"), ("lacking_model", "model"), ("changed_model", "model"),
    ):  # fmt: skip
        found[name] = Path(shutil.copytree(found[source], base / name))
    (found["pickle_encoder"] / "model.safetensors").rename(found["pickle_encoder"] / "pytorch_model.bin")
    (found["pickle_model"] / "extra.pkl").write_bytes(pickle.dumps({"a": 1}))
    config = json.loads((found["gpt2"] / "config.json").read_text())
    (found["gpt2"] / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    for name, weight in (
        ("lacking_encoder", "encoder.layer.1.output.dense.bias"),
        ("lacking_model", "classifier.bias"),
    ):
        tensors = load_file(found[name] / "model.safetensors")
        del tensors[weight]
        save_file(tensors, found[name] / "model.safetensors", metadata={"format": "pt"})
    tensors = load_file(found["changed_model"] / "model.safetensors")
    tensors["classifier.bias"] += 1
    save_file(tensors, found["changed_model"] / "model.safetensors", metadata={"format": "pt"})
    return found


def snapshot(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_answered_with_what_to_do_and_leaves_nothing(cli, places, tmp_path, monkeypatch, name):
    case = CASES[name]
    monkeypatch.chdir(tmp_path)
    for path, content in case.files.items():
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_bytes(content.encode() if isinstance(content, str) else content)
    before = snapshot(tmp_path)
    words = [word.strip("'").format(**places) for word in split(case.command)]
    ran = cli(*words)
    assert ran.code == case.code, ran.err
    assert ran.out == ""
    message = ran.err.split("berthead: ")[-1]
    for part in case.says:
        assert part in message
    assert "Traceback" not in ran.err
    assert snapshot(tmp_path) == before


def split(command: str) -> list[str]:
    """Words, quotes kept together."""
    return next(csv.reader([command], delimiter=" ", quotechar="'"))


# What is odd, and is no mistake


def fit_flags(encoder: Path) -> list:
    return ["--encoder", encoder, "--adapt", "frozen", "--epochs", 2, "--precision", "fp32", "--quiet"]


def answers(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_bad_rows_are_left_out_and_told_where_that_is_wanted(cli, tiny_bert, tmp_path):
    data = tmp_path / "data.csv"
    data.write_text(TOY + ",positive\na,b,c\nfine,\nfine dog,positive\n")
    ran = cli("fit", data, "--out", tmp_path / "m", "--skip-bad-rows", "--valid", 0, *fit_flags(tiny_bert))
    assert ran.code == 0, ran.err
    for line, what in ((58, 'column "text" is blank'), (59, "has 3 fields"), (60, 'column "label" is blank')):
        assert f"note: left out: {data}:{line}: {what}" in ran.err
    assert berthead.load(tmp_path / "m").info()["run"]["rows"] == 57


def test_predict_puts_every_kind_of_bad_row_aside_and_answers_the_rest(cli, places, tmp_path):
    data, out = tmp_path / "data.jsonl", tmp_path / "out.jsonl"
    data.write_text(
        '{"text": "good"}\n{"text": NaN}\n{"text": null}\n{"a": 1}\nnonsense\n{"text": ["a"]}\n{"text": 5}\n'
    )
    ran = cli("predict", places["model"], data, "--out", out)
    assert ran.code == 4
    kept = [json.loads(line)["text"] for line in out.read_text().splitlines()]
    assert kept == ["good", 5]
    aside = [json.loads(line) for line in (tmp_path / "out.jsonl.errors.jsonl").read_text().splitlines()]
    assert [one["where"] for one in aside] == [f"{data}:{line}" for line in (2, 3, 4, 5, 6)]
    assert f"5 of 7 rows have no answer; see {out}.errors.jsonl" in ran.err
    for one in aside:
        assert f"{one['where']}: {one['error']}" in ran.err


def test_a_byte_order_mark_is_no_part_of_the_first_column(cli, places, tmp_path):
    data = tmp_path / "data.csv"
    data.write_bytes("text,label\ngood cat,positive\n".encode("utf-8-sig"))
    ran = cli("predict", places["model"], data)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("text,label,prediction")


def test_latin1_is_read_and_told_at_fit_eval_and_predict(cli, places, tiny_bert, tmp_path):
    data = tmp_path / "data.csv"
    data.write_bytes((TOY + "café,positive\n").encode("latin-1"))
    for ran in (
        cli("fit", data, "--out", tmp_path / "m", *fit_flags(tiny_bert)),
        cli("eval", places["model"], data),
        cli("predict", places["model"], data, "--out", tmp_path / "out.csv"),
    ):
        assert ran.code == 0, ran.err
        assert f"note: {data}: 1 line is not UTF-8; it was read as Latin-1 (Windows-1252)" in ran.err
    assert answers((tmp_path / "out.csv").read_text(encoding="utf-8"))[-1]["text"] == "café"


def test_line_numbers_count_quoted_newlines(cli, places, tmp_path):
    data = tmp_path / "data.csv"
    data.write_text('text,label\n"two\nlines",positive\n"three\n\nlines",negative\n,positive\n')
    ran = cli("predict", places["model"], data)
    assert ran.code == 4
    assert f"{data}:7: column" in ran.err
    assert [row["text"] for row in answers(ran.out)] == ["two\nlines", "three\n\nlines"]


@pytest.mark.parametrize("word", ["None", "NA", "null", "nan", "N/A", "-", "0", "False"])
def test_words_that_look_like_nothing_stay_text_and_labels(cli, tiny_bert, tmp_path, word):
    data = write_csv(
        tmp_path / "data.csv", [row | {"label": row["label"].replace("negative", word)} for row in toy_rows()]
    )
    ran = cli("fit", data, "--out", tmp_path / "m", *fit_flags(tiny_bert))
    assert ran.code == 0, ran.err
    model = berthead.load(tmp_path / "m")
    assert sorted(model.labels) == sorted([word, "positive"])
    words = write_csv(tmp_path / "words.csv", [{"text": word, "label": word}])
    assert answers(cli("predict", tmp_path / "m", words).out)[0]["text"] == word
    assert cli("eval", tmp_path / "m", words).code == 0


def test_a_digit_is_a_text_from_csv_and_a_number_from_json(cli, tiny_bert, tmp_path):
    rows = [row | {"label": int(row["label"] == "positive")} for row in toy_rows()]
    for name, write, labels in (("a.csv", write_csv, ["0", "1"]), ("a.jsonl", write_jsonl, [0, 1])):
        data, folder = write(tmp_path / name, rows), tmp_path / f"{name}.model"
        assert cli("fit", data, "--out", folder, *fit_flags(tiny_bert)).code == 0
        assert berthead.load(folder).labels == labels
        assert [type(label) for label in berthead.load(folder).labels] == [type(label) for label in labels]
    text = json.loads(cli("predict", tmp_path / "a.csv.model", "good cat", "--json").out)["answer"]
    number = json.loads(cli("predict", tmp_path / "a.jsonl.model", "good cat", "--json").out)["answer"]
    assert (type(text), type(number)) == (str, int)


@pytest.mark.parametrize(
    ("flags", "what", "truncated"),
    [(["--on-long", "truncate"], "were truncated", 2), ([], "were read in windows", 0)],
    ids=["truncate", "window"],
)
def test_texts_over_the_limit_are_counted_at_fit_eval_and_predict(cli, tmp_path, flags, what, truncated):
    encoder = make_bert(tmp_path / "encoder", max_position_embeddings=512)
    rows = (
        toy_rows()[:30]
        + [{"text": "good cat " * 300, "label": "positive"}] * 2
        + [{"text": "a " * 510, "label": "negative"}]
    )
    data = write_csv(tmp_path / "data.csv", [{key: row[key] for key in ("text", "label")} for row in rows])
    told = f"note: 2 of 33 rows (6.1 %) have over 512 tokens and {what}"
    for ran in (
        cli("fit", data, "--out", tmp_path / "m", *fit_flags(encoder), *flags),
        cli("eval", tmp_path / "m", data),
        cli("predict", tmp_path / "m", data, "--out", tmp_path / "out.csv"),
    ):
        assert ran.code == 0, ran.err
        assert told in ran.err
    summary = cli("predict", tmp_path / "m", data, "--out", tmp_path / "out.csv", "--json")
    assert json.loads(summary.out)["truncated"] == truncated


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("command", ["fit {data} --out {locked}/m --encoder {encoder}",
                                     "predict {model} {data} --out {locked}/out.csv"])  # fmt: skip
def test_a_folder_without_permission_is_told_before_any_work(cli, places, tmp_path, command):
    locked, data = tmp_path / "locked", tmp_path / "data.csv"
    data.write_text(TOY)
    locked.mkdir(mode=0o500)
    ran = cli(*(word.format(locked=locked, data=data, **places) for word in command.split()))
    assert ran.code == 6
    assert "Permission denied" in ran.err
    assert "Traceback" not in ran.err


# Full disks


@pytest.mark.parametrize("name", ["out.csv", "out.csv.gz", "out.jsonl", "out.parquet"])
def test_a_full_disk_at_predict_is_told_and_leaves_nothing(shell, places, tmp_path, name):
    rows = [{"text": f"good cat {n}", "note": os.urandom(20).hex()} for n in range(200)]
    data = write_csv(tmp_path / "data.csv", rows)
    ran = shell("predict", places["model"], data, "--out", name, largest_file=3000)
    assert (ran.code, ran.out) == (6, "")
    assert f"{name}: the file exceeds the allowed size" in ran.err
    assert "Traceback" not in ran.err
    assert snapshot(tmp_path) == {"data.csv"}


def test_a_full_disk_at_fit_is_told_and_leaves_nothing(shell, tiny_bert, tmp_path):
    (tmp_path / "data.csv").write_text(TOY)
    flags = fit_flags(tiny_bert)
    ran = shell("fit", "data.csv", "--out", "model", *flags, largest_file=20_000)
    assert (ran.code, ran.out) == (6, "")
    assert "model: could not be written" in ran.err
    assert "File too large" in ran.err
    assert "Traceback" not in ran.err
    assert snapshot(tmp_path) == {"data.csv"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("command", ["predict {model} data.csv", "info {model} --json", "predict {model} cat"])
def test_a_full_disk_behind_stdout_is_an_error_and_not_silence(shell, places, tmp_path, command):
    (tmp_path / "data.csv").write_text(TOY)
    with open("/dev/full", "w") as full:
        ran = shell(*command.format(**places).split(), stdout=full.fileno())
    assert ran.code == 6
    assert ran.err.startswith("berthead: stdout: ")
    assert ran.err.count("\n") == 1


# Ctrl-C


@pytest.fixture
def started(forks, tmp_path):
    """Starts a command, which hears SIGINT as from a terminal."""
    return lambda words, stdin=None: forks.start(*words, cwd=tmp_path, env=shell_env(), stdin=stdin)


def test_ctrl_c_in_fit_keeps_the_best_epoch_and_says_where(started, tiny_bert, tmp_path):
    (tmp_path / "data.csv").write_text(TOY)
    flags = ["--encoder", tiny_bert, "--epochs", 200, "--precision", "fp32", "--batch", 4, "--valid", 0.1]
    process = started(["fit", "data.csv", "--out", "model", *flags])
    assert process.stderr.readline().startswith("epoch 20/200")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, ""), err
    said = r"berthead: fit: stopped after \d+ whole epochs?\. The best .* is kept in model.interrupted."
    assert re.search(rf"{said} To continue, run the same command with --resume.\n", err)
    assert "Traceback" not in err
    kept = berthead.load(tmp_path / "model.interrupted")
    assert kept.verify() < 1e-4
    run = kept.info()["run"]
    assert run["interrupted"] is True
    assert 20 <= len(run["epochs"]) < 200
    scores = [epoch["accuracy"] for epoch in run["epochs"]]
    assert scores[run["best_epoch"] - 1] == max(scores)
    assert {path.name for path in tmp_path.iterdir()} == {"data.csv", "model.fit", "model.interrupted"}


def test_ctrl_c_in_predict_keeps_whole_parts_and_says_the_command_that_goes_on(started, places, tmp_path):
    rows = [{"text": f"good cat {n % 4}", "n": str(n)} for n in range(20_000)]
    write_csv(tmp_path / "data.csv", rows)
    command = ["predict", places["model"], "data.csv", "--out", "out.csv", "--part-rows", "500"]
    process = started(command)
    wait_until(lambda: (tmp_path / "out.csv.parts" / "000003.json").exists(), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, ""), err
    said = re.fullmatch(r"berthead: data.csv: stopped; ([\d,]+) rows are kept in out.csv.parts. To go on: (.*)\n", err)
    done = int(said[1].replace(",", ""))
    assert 1500 <= done < len(rows)  # the fourth part may not be counted yet
    assert done % 500 == 0
    assert {path.name for path in tmp_path.iterdir()} == {"data.csv", "out.csv.parts"}
    again = shlex.split(said[2])
    assert again == ["berthead", *map(str, command), "--resume"]
    process = started(again[1:])
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "20,000 rows written to out.csv\n")
    kept = answers((tmp_path / "out.csv").read_text(encoding="utf-8"))
    assert [row["n"] for row in kept] == [row["n"] for row in rows]
    assert {row["prediction"] for row in kept} <= {"positive", "negative"}
    assert {path.name for path in tmp_path.iterdir()} == {"data.csv", "out.csv"}


@pytest.mark.parametrize("command", ["fit data.csv --out out --encoder {encoder}",
                                     "predict {model} data.csv --out out.csv"])  # fmt: skip
def test_ctrl_c_before_anything_is_done_leaves_nothing(started, places, tmp_path, command):
    os.mkfifo(tmp_path / "data.csv")
    process = started(command.format(**places).split())
    # A pipe that nobody fills: the process waits in it until it is interrupted.
    pipe = wait_until(lambda: opened_for_writing(tmp_path / "data.csv"), process)
    os.write(pipe, b"text,label\n")
    wait_until(lambda: is_read(pipe), process)
    process.send_signal(signal.SIGINT)
    try:
        out, err = process.communicate(timeout=30)
    finally:
        os.close(pipe)
        process.kill()
    assert (process.returncode, out) == (130, ""), err
    assert err.startswith("berthead: ")
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("source", ["data.csv", "-"])
def test_ctrl_c_while_rows_are_awaited_ends_at_once_and_keeps_what_is_done(started, places, tmp_path, source):
    os.mkfifo(tmp_path / "data.csv")
    # Open for both, so that neither side waits for the other, and no end of file comes.
    pipe = os.open(tmp_path / "data.csv", os.O_RDWR)
    process = started(["predict", places["model"], source, "--out", "out.csv"], stdin=pipe)
    try:
        rows = b"text,n\n" + b"".join(b"good cat,%d\n" % n for n in range(10_000))
        writing = threading.Thread(target=os.write, args=(pipe, rows), daemon=True)
        writing.start()
        wait_until(lambda: any(path.stat().st_size for path in tmp_path.glob(".out.csv.part-*")), process)
        wait_until(lambda: not writing.is_alive() and is_read(pipe), process)  # it waits for more
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        os.close(pipe)
    assert (process.returncode, out) == (130, ""), err
    assert err.count("\n") == 1, err
    kept = answers((tmp_path / "out.csv.partial").read_text(encoding="utf-8"))
    assert [row["n"] for row in kept] == [str(n) for n in range(len(kept))]
    assert kept


def is_read(pipe: int) -> bool:
    """Whether a pipe holds nothing that is still to be read."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder) == 0


def opened_for_writing(path: Path) -> int | None:
    try:
        return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:  # nobody reads yet
        return None


def wait_until(ready, process: Forked):
    """What `ready` gives as soon as it is something."""
    while (found := ready()) is None or found is False:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return found
