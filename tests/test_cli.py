"""The command line as users meet it: every verb, what it prints where, and how it ends."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import shell_env, toy_rows, unsealed, write_csv, write_jsonl
from scipy.stats import pearsonr
from sklearn.metrics import accuracy_score, f1_score

import berthead
from berthead.options import FitOptions, PredictOptions
from berthead.options.base import flag

METRICS = {
    "classify": {"accuracy", "macro_f1", "micro_f1", "loss", "calibration_error", "per_label"},
    "multilabel": {"average_precision", "micro_f1", "macro_f1", "exact_match", "loss", "per_label"},
    "regress": {"pearson", "spearman", "mae", "rmse", "loss"},
}
RECORD = {
    "format_version", "kind", "task", "head", "columns", "max_tokens", "on_long", "stride", "parameters",
    "transformers", "run",
}  # fmt: skip


@pytest.fixture(scope="session")
def frozen(tiny_bert) -> list:
    """Flags of a fit that takes a moment."""
    return [
        "--encoder", tiny_bert, "--adapt", "frozen", "--epochs", 10, "--lr", 0.1, "--precision", "fp32", "--valid", 0.1,
    ]  # fmt: skip


@pytest.fixture
def model(fit_toy):
    """A model folder: classify, short of training; do not change it."""
    return fit_toy(threads=1, precision="fp32")


def records(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


# Real processes: what only they can show


def test_a_users_day_from_fit_to_verify(fresh, shell, frozen, toy_csv, tmp_path):
    fit = fresh("fit", toy_csv, "--out", "model", *frozen)
    assert fit.code == 0, fit.err
    assert fit.out.startswith("fitted ")
    assert "model folder: model" in fit.out
    assert "epoch 10/10" in fit.err
    assert "epoch 10/10" not in fit.out
    assert not re.search("[\r\x1b━█]", fit.err), "a progress bar where there is no terminal"

    evaluation = shell("eval", "model", toy_csv)
    assert evaluation.code == 0, evaluation.err
    assert re.search(r"^accuracy +\d\.\d{4}$", evaluation.out, re.MULTILINE)

    predict = fresh("predict", "model", toy_csv, "--out", "answers.csv")
    assert predict.code == 0, predict.err
    assert predict.out == ""
    assert predict.err == "56 rows written to answers.csv\n"
    answers = pd.read_csv(tmp_path / "answers.csv")
    assert answers["text"].tolist() == [row["text"] for row in toy_rows()]
    told = float(re.search(r"^accuracy +(\S+)$", evaluation.out, re.MULTILINE)[1])
    assert told == pytest.approx(accuracy_score(answers["label"], answers["prediction"]), abs=1e-4)

    verify = shell("verify", "model")
    assert verify.code == 0, verify.err
    assert "golden examples give the same logits" in verify.out
    assert verify.err == ""


def test_stdin_to_stdout_in_a_pipe(shell, model, toy_csv):
    piped = shell("predict", model, "-", stdin=toy_csv.read_text(encoding="utf-8"))
    assert piped.code == 0, piped.err
    assert piped.err == ""
    assert [row["text"] for row in records(piped.out)] == [row["text"] for row in toy_rows()]


def test_a_reader_that_closes_early_is_no_error(forks, model, tmp_path):
    rows = write_csv(tmp_path / "many.csv", [{"text": f"good cat {n % 4}", "note": "n" * 50} for n in range(6000)])
    process = forks.start("predict", model, rows, cwd=tmp_path, env=shell_env())
    assert process.stdout.readline() == "text,note,prediction,score\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 0


def test_info_into_a_closed_pipe_is_no_error(model):
    command = f'"{sys.executable}" -m berthead info "{model}" --json | true; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=shell_env(), timeout=60)
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.fixture
def on_a_terminal(forks, tmp_path):
    """Runs a command with a terminal as stderr: its exit code and what was shown there."""

    def run(*words: object) -> tuple[int, str]:
        ours, theirs = pty.openpty()
        env = shell_env(TERM="xterm-256color", COLUMNS="120", LINES="40")
        process = forks.start(*words, cwd=tmp_path, env=env, stderr=theirs)
        os.close(theirs)
        shown = b""
        while True:
            try:
                some = os.read(ours, 4096)
            except OSError:  # Linux: the other side is closed
                break
            if not some:
                break
            shown += some
        os.close(ours)
        return process.wait(60), re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())

    return run


def test_a_terminal_sees_progress_with_rate_and_time_left(on_a_terminal, tiny_bert, toy_csv):
    options = ["--epochs", 40, "--batch", 4, "--precision", "fp32", "--valid", 0]
    code, shown = on_a_terminal("fit", toy_csv, "--out", "model", "--encoder", tiny_bert, *options)
    assert code == 0, shown
    assert re.search(r"fit [━╸╺ ]+ \d+/2240 rows [\d,]+/s \d:\d\d:\d\d", shown), shown
    assert "epoch 40/40" in shown


def test_quiet_shows_no_progress_on_a_terminal(on_a_terminal, frozen, toy_csv):
    code, shown = on_a_terminal("fit", toy_csv, "--out", "model", "--quiet", *frozen)
    assert code == 0, shown
    assert "rows" not in re.sub("note: .*", "", shown)


def test_help_imports_neither_torch_nor_numpy_and_says_berthead():
    script = (
        "import sys; sys.argv = ['berthead', *sys.argv[1:]]\n"
        "from berthead.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'numpy', 'sklearn', 'pyarrow', 'tokenizers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    for arguments in (["--help"], ["fit", "--help"]):
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("Usage: berthead ")


def test_a_usage_error_of_a_real_process_has_no_traceback(shell):
    ran = shell("fit", "data.csv", "--out", "model", "--epocs", 3)
    assert (ran.code, ran.out) == (2, "")
    assert "--epocs" in ran.err
    assert "--epochs" in ran.err
    assert "Traceback" not in ran.err


# Every task and every format, in this process


def lists(rows: list[dict]) -> list[dict]:
    return [row | {"tags": row["tags"].split("|"), "stars": float(row["stars"])} for row in rows]


def write_parquet(path, rows):
    pd.DataFrame(rows).to_parquet(path)
    return path


FLOWS = {
    "classify-csv": ("classify", write_csv, toy_rows, "data.csv", ["--label", "label"]),
    "multilabel-jsonl": ("multilabel", write_jsonl, lambda: lists(toy_rows()), "data.jsonl", ["--label", "tags"]),
    "multilabel-csv": ("multilabel", write_csv, toy_rows, "data.csv", ["--label", "tags"]),
    "regress-parquet": ("regress", write_parquet, lambda: lists(toy_rows()), "data.parquet", ["--label", "stars"]),
    "pair-jsonl": ("classify", write_jsonl, toy_rows, "data.jsonl", ["--pair", "pair"]),
    "pair-parquet": ("classify", write_parquet, toy_rows, "data.parquet", ["--pair", "pair"]),
}


@pytest.mark.parametrize("flow", FLOWS)
def test_fit_eval_predict_verify_agree_with_each_other_and_with_python(cli, frozen, tmp_path, flow):
    task, write, make, name, flags = FLOWS[flow]
    rows = make()
    data, folder = write(tmp_path / name, rows), tmp_path / "model"

    fit = cli("fit", data, "--out", folder, "--task", task, "--json", *flags, *frozen)
    assert fit.code == 0, fit.err
    record = json.loads(fit.out)
    assert record.keys() == {"model", "warnings"} | RECORD
    assert record["task"]["name"] == task
    assert record["run"]["metrics"].keys() == METRICS[task]
    assert record["run"]["baselines"].keys() == {"majority", "tfidf"}

    evaluation = cli("eval", folder, data, "--json")
    assert evaluation.code == 0, evaluation.err
    scores = json.loads(evaluation.out)
    assert scores.keys() == {"rows", "skipped", "warnings"} | METRICS[task]
    assert (scores["rows"], scores["skipped"]) == (56, 0)

    predict = cli("predict", folder, data, "--out", tmp_path / "answers.jsonl", "--json", "--quiet")
    assert predict.code == 0, predict.err
    assert json.loads(predict.out) == {
        "out": str(tmp_path / "answers.jsonl"), "rows": 56, "failed": 0, "truncated": 0, "windowed": 0, "errors": None,
    }  # fmt: skip
    written = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [{key: row[key] for key in rows[0]} for row in written] == rows
    answers = [row["prediction"] for row in written]

    texts = [(row["text"], row["pair"]) if "--pair" in flags else row["text"] for row in rows]
    in_python = berthead.load(folder).predict(texts)
    if task == "regress":
        np.testing.assert_allclose(answers, [one.answer for one in in_python], rtol=1e-6)
    else:
        assert answers == [one.answer for one in in_python]
    check_scores(task, scores, rows, answers)

    verify = cli("verify", folder, "--json")
    assert verify.code == 0, verify.err
    told = json.loads(verify.out)
    assert told.keys() == {"golden", "largest_difference", "passed"}
    assert told["golden"] > 0
    assert told["passed"] is True

    info = cli("info", folder, "--json")
    told = json.loads(info.out)
    assert told.keys() == RECORD | {"moved"}
    assert {key: told[key] for key in RECORD} == {key: record[key] for key in RECORD}


def check_scores(task: str, scores: dict, rows: list[dict], answers: list) -> None:
    """What eval said, against scikit-learn and scipy on what predict wrote."""
    if task == "classify":
        gold = [row["label"] for row in rows]
        assert scores["accuracy"] == pytest.approx(accuracy_score(gold, answers))
        assert scores["macro_f1"] == pytest.approx(f1_score(gold, answers, average="macro", zero_division=0))
    elif task == "multilabel":
        labels = ["nasty", "nice", "short"]
        parts = [row["tags"] if isinstance(row["tags"], list) else row["tags"].split("|") for row in rows]
        gold, said = (np.array([[one in row for one in labels] for row in table]) for table in (parts, answers))
        assert scores["micro_f1"] == pytest.approx(f1_score(gold, said, average="micro", zero_division=0))
        assert scores["exact_match"] == pytest.approx(accuracy_score(gold, said))
    else:
        gold = [row["stars"] for row in rows]
        assert scores["pearson"] == pytest.approx(pearsonr(gold, answers)[0], abs=1e-5)
        assert scores["mae"] == pytest.approx(np.abs(np.subtract(gold, answers)).mean(), abs=1e-6)


@pytest.mark.parametrize("name", ["answers.csv", "answers.tsv", "answers.csv.gz", "answers.jsonl", "answers.parquet"])
def test_predict_writes_the_format_that_the_name_says(cli, model, toy_csv, tmp_path, name):
    ran = cli("predict", model, toy_csv, "--out", tmp_path / name, "--quiet")
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    readers = {"csv": pd.read_csv, "tsv": lambda path: pd.read_csv(path, sep="\t"), "parquet": pd.read_parquet,
               "jsonl": lambda path: pd.read_json(path, lines=True), "gz": pd.read_csv}  # fmt: skip
    table = readers[name.rpartition(".")[2]](tmp_path / name)
    assert list(table) == ["text", "pair", "label", "tags", "stars", "prediction", "score"]
    assert table["prediction"].tolist() == [one.answer for one in berthead.load(model).predict(table["text"].tolist())]


def test_predict_answers_stdin_in_the_format_it_came_in(cli, model):
    ran = cli("predict", model, "-", stdin=b'{"text": "good cat", "n": 1}\n{"text": "bad cat", "n": 2}\n')
    assert (ran.code, ran.err) == (0, "")
    rows = [json.loads(line) for line in ran.out.splitlines()]
    assert [row["n"] for row in rows] == [1, 2]
    assert all(row["prediction"] in ("positive", "negative") for row in rows)
    table = cli("predict", model, "-", stdin=b"text\tn\ngood cat\t1\n")
    assert table.out.splitlines()[0] == "text\tn\tprediction\tscore"


def test_predict_probabilities_are_columns_that_sum_to_one(cli, model, toy_csv):
    ran = cli("predict", model, toy_csv, "--probabilities")
    rows = records(ran.out)
    assert [float(row["p(negative)"]) + float(row["p(positive)"]) for row in rows] == pytest.approx([1] * len(rows))
    assert all(float(row["score"]) == float(row[f"p({row['prediction']})"]) for row in rows)


def test_predict_reads_the_column_that_text_names(cli, model, tmp_path):
    data = write_csv(tmp_path / "data.csv", [{"body": "good cat", "text": "bad dog"}])
    body = records(cli("predict", model, data, "--text", "body").out)[0]
    assert float(body["score"]) == pytest.approx(berthead.load(model).predict("good cat").score, abs=1e-6)


def test_predict_one_text_prints_its_label_and_score(cli, model):
    ran = cli("predict", model, "good cat")
    expected = berthead.load(model).predict("good cat")
    assert (ran.code, ran.out, ran.err) == (0, f"{expected.answer}  {expected.score:.4f}\n", "")


def test_predict_one_text_with_probabilities_prints_every_label(cli, model):
    expected = berthead.load(model).predict("good cat").probabilities
    ran = cli("predict", model, "good cat", "--probabilities")
    assert ran.out.splitlines()[1:] == [f"  p({label})  {share:.4f}" for label, share in expected.items()]


def test_predict_one_text_as_json_is_the_whole_prediction(cli, model):
    told = json.loads(cli("predict", model, "good cat", "--json").out)
    expected = berthead.load(model).predict("good cat").to_dict()
    assert told == expected
    assert [one["label"] for one in told["probabilities"]] == ["negative", "positive"]


def test_predict_a_pair_of_texts(cli, fit_toy):
    folder = fit_toy(threads=1, precision="fp32", adapt="frozen", pair="pair")
    ran = cli("predict", folder, "good cat", "the dog", "--json")
    expected = berthead.load(folder).predict(("good cat", "the dog"))
    assert (ran.code, json.loads(ran.out)["score"]) == (0, expected.score)
    assert expected.score != berthead.load(folder).predict(("good cat", "bad bad mat")).score


def test_predict_a_text_longer_than_a_file_name_can_be(cli, model, fit_toy):
    ran = cli("predict", model, "good cat " * 40)
    assert (ran.code, ran.err) == (0, "")
    cutting = fit_toy(threads=1, precision="fp32", adapt="frozen", on_long="truncate")
    ran = cli("predict", cutting, "good cat " * 40)
    assert ran.code == 0, ran.err
    assert ran.err == "note: the text has 82 tokens; only the first 64 were read\n"


def test_predict_takes_a_second_text_for_no_file(cli, model, toy_csv):
    ran = cli("predict", model, toy_csv, "answers.csv")
    assert (ran.code, ran.out) == (2, "")
    assert "--out answers.csv" in ran.err


def test_info_names_the_formula_and_the_hashes(cli, model):
    ran = cli("info", model)
    record = berthead.load(model).info()
    for part in ("Predict_ω̃( BERT_θ̃(x) )", '"negative", "positive"', record["parameters"]["omega_sha256"], "seed 0"):
        assert part in ran.out


# Options


def test_flags_beat_the_environment_which_beats_the_file(cli, tiny_bert, toy_csv, tmp_path, monkeypatch):
    config = tmp_path / "fit.yaml"
    config.write_text("epochs: 2\nbatch: 4\nseed: 7\nadapt: frozen\nmax-tokens: 20\nprecision: fp32\n")
    monkeypatch.setenv("BERTHEAD_BATCH", "5")
    monkeypatch.setenv("BERTHEAD_SEED", "8")
    monkeypatch.setenv("BERTHEAD_ENCODER", str(tiny_bert))
    ran = cli("fit", toy_csv, "--out", tmp_path / "model", "--config", config, "--seed", 9, "--json", "--quiet")
    assert ran.code == 0, ran.err
    record = json.loads(ran.out)
    settings = record["run"]["settings"]
    assert (settings["epochs"], settings["batch"], settings["seed"]) == (2, 5, 9)
    assert (record["parameters"]["adapt"], record["max_tokens"]) == ("frozen", 20)
    assert record["parameters"]["pretrained"]["name"] == "tiny-bert"


def test_the_environment_reaches_predict_too(cli, model, toy_csv, monkeypatch):
    monkeypatch.setenv("BERTHEAD_PROBABILITIES", "true")
    assert "p(negative)" in records(cli("predict", model, toy_csv).out)[0]


def flags_in_help(text: str) -> set[str]:
    return set(re.findall(r"^ +(?:-\w, )?(--[a-z][a-z-]*)", text, re.MULTILINE))


def test_help_of_fit_lists_every_option_with_its_words(cli):
    ran = cli("fit", "--help")
    assert (ran.code, ran.err) == (0, "")
    own = {"--out", "--shared", "--name", "--config", "--print-config", "--json", "--quiet", "--help"}
    assert flags_in_help(ran.out) == {flag(spec.name) for spec in fields(FitOptions)} | own
    flat = " ".join(ran.out.split())
    for spec in fields(FitOptions):
        assert spec.metadata["help"] in flat
        for choice in spec.metadata["choices"] or ():
            assert choice in flat


def test_help_of_predict_and_eval_lists_every_predict_option(cli):
    shown = flags_in_help(cli("predict", "--help").out) | flags_in_help(cli("eval", "--help").out)
    assert shown == {flag(spec.name) for spec in fields(PredictOptions)} | {"--out", "--json", "--quiet", "--help"}


def test_every_flag_of_fit_reaches_the_options(cli, tiny_bert, tmp_path, monkeypatch):
    given = {
        "task": "classify", "text": "text", "pair": "pair", "label": "label", "valid": "0.2", "encoder": str(tiny_bert),
        "adapt": "frozen", "pooling": "mean", "epochs": 2, "batch": 7, "lr": 0.5, "weight_decay": 0.0, "warmup": 0.5,
        "clip": 2.0, "class_weight": "balanced", "metric": "loss", "max_tokens": 30, "precision": "fp32", "seed": 3,
        "threads": 1, "skip_bad_rows": True, "overwrite": True, "head": "linear", "on_long": "error", "stride": 5,
        "windows": "max", "device": "cuda", "choices": "a,b", "intent": "intent", "separator": ";",
        "tag_unit": "word", "tag_names": "a,b", "labels": "labels.yaml",
        "head_lr": 0.25, "layer_decay": 0.75,
        "unfreeze": True, "cache": "kept", "workers": 2, "resume": True, "checkpoint_minutes": 0.5,
    }  # fmt: skip
    assert given.keys() == {spec.name for spec in fields(FitOptions)}
    seen = {}

    def fit(data, *, out, config, quiet, **options):
        seen.update(FitOptions.from_sources(options).to_dict())
        raise berthead.DataError("seen", "enough")

    monkeypatch.setattr("berthead.verbs.fit.fit", fit)
    words = [word for key, value in given.items() for word in (flag(key), value) if word is not True]
    assert cli("fit", "data.csv", "--out", tmp_path / "m", *words).code == 3
    assert seen == given


# How it ends


def test_version(cli):
    ran = cli("--version")
    assert (ran.code, ran.out, ran.err) == (0, f"berthead {berthead.__version__}\n", "")


def test_no_command_shows_help_on_stderr_and_is_a_usage_error(cli):
    ran = cli()
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("Usage: berthead")
    assert "predict" in ran.err


def test_predict_with_bad_rows_ends_with_4_and_puts_them_aside(cli, model, tmp_path):
    data = write_csv(tmp_path / "data.csv", [{"text": "good cat"}, {"text": " "}, {"text": "bad cat"}])
    ran = cli("predict", model, data, "--out", tmp_path / "answers.csv", "--json")
    assert ran.code == 4
    told = json.loads(ran.out)
    assert (told["rows"], told["failed"]) == (3, 1)
    assert [row["text"] for row in records((tmp_path / "answers.csv").read_text())] == ["good cat", "bad cat"]
    aside = [json.loads(line) for line in Path(told["errors"]).read_text(encoding="utf-8").splitlines()]
    assert [(one["where"], one["row"]) for one in aside] == [(f"{data}:3", {"text": " "})]
    assert f'{data}:3: column "text" is blank; expected a text' in ran.err


def test_errors_of_an_earlier_run_do_not_stay(cli, model, tmp_path):
    data, out = tmp_path / "data.csv", tmp_path / "answers.csv"
    write_csv(data, [{"text": "good cat"}, {"text": " "}])
    assert cli("predict", model, data, "--out", out).code == 4
    write_csv(data, [{"text": "good cat"}])
    assert cli("predict", model, data, "--out", out).code == 0
    assert not (tmp_path / "answers.csv.errors.jsonl").exists()


def test_eval_that_left_rows_out_ends_with_4(cli, model, tmp_path):
    data = write_csv(tmp_path / "data.csv", [{"text": "a", "label": "positive"}, {"text": "", "label": "negative"}])
    ran = cli("eval", model, data, "--skip-bad-rows", "--json")
    assert ran.code == 4
    assert (json.loads(ran.out)["rows"], json.loads(ran.out)["skipped"]) == (1, 1)
    assert f"note: left out: {data}:3" in ran.err


def test_verify_of_changed_answers_ends_with_5(cli, model, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    record = json.loads((folder / "berthead.json").read_text(encoding="utf-8"))
    record["golden"][0]["logits"][0] += 0.01
    (folder / "berthead.json").write_text(json.dumps(unsealed(record)), encoding="utf-8")
    ran = cli("verify", folder)
    assert (ran.code, ran.out) == (5, "")
    assert "golden example 1: logits differ by 0.01" in ran.err


def test_ctrl_c_anywhere_ends_with_130_and_no_traceback(cli, model, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("berthead.function.folder.read", stop)
    ran = cli("info", model)
    assert (ran.code, ran.out, ran.err) == (130, "", "berthead: interrupted\n")


def test_an_unexpected_error_is_not_hidden(monkeypatch, model):
    from berthead.cli import main

    def fail(*_, **__):
        raise RuntimeError("a defect of ours")

    monkeypatch.setattr("berthead.function.folder.read", fail)
    monkeypatch.setattr(sys, "argv", ["berthead", "info", str(model)])
    with pytest.raises(RuntimeError, match="a defect of ours"):
        main()


def test_long_lists_of_bad_rows_are_cut_on_stderr_and_whole_in_json(cli, frozen, tmp_path):
    rows = toy_rows() + [{"text": "", "label": "positive"}] * 30
    data = write_csv(tmp_path / "data.csv", rows)
    ran = cli("fit", data, "--out", tmp_path / "model", "--skip-bad-rows", "--json", "--quiet", *frozen)
    assert ran.code == 0, ran.err
    assert ran.err.count("left out: ") == 11
    assert "note: left out: 20 more rows" in ran.err
    assert sum(line.startswith("left out: ") for line in json.loads(ran.out)["warnings"]) == 30


def test_fit_reports_the_baselines_beside_the_model(cli, frozen, toy_csv, tmp_path):
    ran = cli("fit", toy_csv, "--out", tmp_path / "model", *frozen)
    shown = dict(re.findall(r"^(baseline: majority|baseline: TF-IDF \+ linear|this model) +accuracy (\S+)$", ran.out,
                            re.MULTILINE))  # fmt: skip
    assert shown.keys() == {"baseline: majority", "baseline: TF-IDF + linear", "this model"}
    held_out = berthead.load(tmp_path / "model").info()["run"]
    assert float(shown["this model"]) == pytest.approx(held_out["metrics"]["accuracy"], abs=1e-4)
    assert float(shown["baseline: majority"]) == pytest.approx(held_out["baselines"]["majority"], abs=1e-4)


def test_pull_without_network_says_so_and_leaves_nothing(shell, tmp_path):
    started = time.monotonic()
    ran = shell("pull", "someone/some-encoder", env=shell_env(BERTHEAD_HOME=str(tmp_path / "home")))
    assert ran.code == 2, ran.err
    assert ran.err.startswith("berthead: berthead pull")
    assert "Traceback" not in ran.err
    assert not list((tmp_path / "home").rglob("*.*")), f"after {time.monotonic() - started:.0f} s"
