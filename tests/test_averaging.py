"""Soups: against numpy on the safetensors files, and against a greedy recipe written down once more."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT, daily, make_bert, toy_rows, write_csv
from safetensors.numpy import load_file
from sklearn.metrics import accuracy_score, f1_score
from test_plugins import put_package
from toy_tasks import ROWS, fit_task, span_rows

import berthead
from berthead.errors import DataError, ModelError, UsageError
from berthead.records import Example

KINDS = {
    "classify": {},
    "multilabel": {"task": "multilabel", "label": "tags"},
    "regress": {"task": "regress", "label": "stars"},
}


def held_out() -> list[dict]:
    """Rows that short fits of the toy rows disagree on."""
    words = ["good", "bad", "fine", "poor", "great", "awful", "cat", "dog", "mat"]
    draw = np.random.default_rng(5)
    rows = []
    for number in range(70):
        chosen = list(draw.choice(words, 1 + number % 4))
        good = sum(word in ("good", "fine", "great") for word in chosen)
        bad = sum(word in ("bad", "poor", "awful") for word in chosen)
        rows.append({"text": " ".join(chosen), "label": "positive" if good >= bad else "negative",
                     "tags": "nice|short" if good >= bad else "nasty", "stars": 3.0 + good - bad})  # fmt: skip
    return rows


@pytest.fixture(scope="module")
def members(fit_toy, tmp_path_factory):
    """Folders of one architecture: two fitted well, one of them once more, one hardly fitted, and one turned around."""
    well = fit_toy(epochs=8, seed=1, precision="fp32")
    fitted = berthead.load(well)
    around = tmp_path_factory.mktemp("models") / "around"
    # In a mean its head outweighs those of all others: it has no place in a soup.
    # Not its pooler too: tanh is odd, so both turned around would be the same function.
    turned = {name: -90 * tensor if name.startswith("classifier") else tensor for name, tensor in fitted.omega.items()}
    fitted.with_parameters(omega=turned).save(around)
    return [
        fit_toy(epochs=1, lr=1e-4, precision="fp32"),
        well,
        fit_toy(epochs=8, seed=2, precision="fp32"),
        well,
        around,
    ]


def tensors_of(folder) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def mean_of(folders) -> dict[str, np.ndarray]:
    files = [tensors_of(folder) for folder in folders]
    return {name: np.mean([file[name].astype(np.float64) for file in files], 0).astype(np.float32) for name in files[0]}


def by_hand(folders):
    """The mean of folders, put together from numpy's means of the files."""
    first, mean = berthead.load(folders[0]), {k: torch.from_numpy(v) for k, v in mean_of(folders).items()}
    theta = {name: mean[f"bert.{name}"] for name in first.theta}
    return first.with_parameters(theta, {name: mean[name] for name in first.omega})


def accuracy(fitted, rows) -> float:
    answers = [one.answer for one in fitted.predict([row["text"] for row in rows])]
    return accuracy_score([row["label"] for row in rows], answers)


# What it is


def test_the_uniform_soup_is_the_mean_of_the_files(members, tmp_path):
    made = berthead.soup(members, uniform=True)
    made.save(tmp_path / "soup")
    stored, wanted = tensors_of(tmp_path / "soup"), mean_of(members)
    assert stored.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(stored[name], value)
    again = berthead.load(tmp_path / "soup")
    assert again.verify() < 1e-4
    assert again.info() == made.info()
    assert "metrics" not in made.info()["run"]
    assert made.artifact.task.to_json() == berthead.load(members[0]).artifact.task.to_json()


def test_transformers_gives_the_logits_of_a_soup(members, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    made = berthead.soup(members[1:], uniform=True)
    made.save(tmp_path / "soup")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "soup").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "soup")
    for text in ("good cat", "the awful dog sat, red.", "poor mat"):
        with torch.inference_mode():
            wanted = theirs(**tokenizer(text, return_tensors="pt")).logits
        np.testing.assert_allclose(made.predictor.logits([Example(text)]), wanted.numpy(), atol=1e-5)


def greedy_by_hand(folders, rows) -> list:
    """Recipe 1 of Wortsman et al. 2022 with scikit-learn's accuracy."""
    order = sorted(folders, key=lambda folder: -accuracy(berthead.load(folder), rows))
    chosen, best = [order[0]], accuracy(berthead.load(order[0]), rows)
    for folder in order[1:]:
        score = accuracy(by_hand([*chosen, folder]), rows)
        if score >= best:
            chosen, best = [*chosen, folder], score
    return chosen


def test_the_greedy_soup_is_the_one_of_the_paper(members, tmp_path):
    rows = held_out()
    made = berthead.soup(members, rows)
    chosen = greedy_by_hand(members, rows)
    assert 1 < len(chosen) < len(members)
    told = made.info()["run"]["soup"]
    assert [one["chosen"] for one in told["members"]] == [folder in chosen for folder in members]
    made.save(tmp_path / "soup")
    stored = tensors_of(tmp_path / "soup")
    for name, value in mean_of(chosen).items():
        np.testing.assert_array_equal(stored[name], value)
    scores = [accuracy(berthead.load(folder), rows) for folder in members]
    assert [one["score"] for one in told["members"]] == pytest.approx(scores)
    assert made.info()["run"]["metrics"]["accuracy"] == pytest.approx(accuracy(made, rows))
    assert accuracy(made, rows) >= max(scores)
    assert berthead.load(tmp_path / "soup").verify() < 1e-4


@pytest.mark.parametrize("kind", daily(KINDS, "classify", "regress"))
def test_it_is_never_worse_than_its_best_member_in_any_metric(fit_toy, kind):
    options = {"precision": "fp32"} | KINDS[kind]
    folders = [fit_toy(epochs=epochs, seed=seed, **options) for epochs, seed in ((1, 7), (3, 1), (3, 2))]
    rows, label = held_out(), KINDS[kind].get("label", "label")
    alone = [berthead.load(folder).evaluate(rows, label=label) for folder in folders]
    task = berthead.load(folders[0]).artifact.task
    for metric, sign in task.metrics.items():
        made = berthead.soup(folders, rows, metric=metric, label=label)
        # The loss of numbers is in a unit of each member's own; the error is in the user's.
        told = "rmse" if kind == "regress" and metric == "loss" else metric
        score = made.evaluate(rows, label=label)[told]
        assert sign * score >= max(sign * one[told] for one in alone) - 1e-9, metric


@pytest.mark.parametrize("task", daily(ROWS, "tag", "span"))
def test_every_other_task_makes_soup(tiny_bert, task, tmp_path):
    fitted = [fit_task(tiny_bert, task, epochs=epochs, seed=seed) for epochs, seed in ((8, 1), (2, 3))]
    rows = ROWS[task](40, seed=9)
    made = berthead.soup(fitted, rows)
    metric = next(iter(made.artifact.task.metrics))
    alone = [one.evaluate(rows)[metric] for one in fitted]
    assert made.evaluate(rows)[metric] >= max(alone)
    made.save(tmp_path / "soup")
    assert berthead.load(tmp_path / "soup").verify() < 1e-4


def test_a_head_and_a_task_of_another_package(tiny_bert, tmp_path, monkeypatch):
    code = (ROOT / "examples" / "ordinal" / "berthead_ordinal.py").read_text(encoding="utf-8")
    points = {"heads": "ordinal = own_ordinal:OrdinalHead", "tasks": "ordinal = own_ordinal:Ordinal"}
    monkeypatch.syspath_prepend(put_package(tmp_path / "site", "own_ordinal", code, **points))
    rows = [{"text": row["text"], "label": 1 + 2 * (row["label"] == "positive")} for row in toy_rows()]
    rows += [{"text": "fine poor", "label": 2}] * 6
    options = {"task": "ordinal", "head": "ordinal", "encoder": str(tiny_bert), "lr": 3e-3, "threads": 1, "quiet": True}
    fitted = [berthead.fit(rows, epochs=3, seed=seed, **options) for seed in (1, 2)]
    made = berthead.soup(fitted, rows)
    assert made.evaluate(rows)["qwk"] >= max(one.evaluate(rows)["qwk"] for one in fitted)
    mean = berthead.soup(fitted, uniform=True)
    mean.save(tmp_path / "mean")
    assert berthead.load(tmp_path / "mean").verify() < 1e-4
    found = berthead.compare(fitted[0], mean, rows)
    gold = [row["label"] for row in rows]
    answers = [one.answer for one in mean.predict([row["text"] for row in rows])]
    assert (found.right.both + found.right.only_b) / len(rows) == pytest.approx(accuracy_score(gold, answers))
    assert list(found.moved) == ["embeddings", "block 0", "block 1", "head"]


def test_the_decision_is_tuned_on_the_held_out_rows(fit_toy):
    options = {"precision": "fp32", **KINDS["multilabel"]}
    folders = [fit_toy(epochs=3, seed=seed, **options) for seed in (1, 2)]
    made = berthead.soup(folders, held_out(), label="tags", metric="macro_f1")
    assert made.artifact.task.thresholds != berthead.load(folders[0]).artifact.task.thresholds
    gold = np.array([[tag in row["tags"].split("|") for tag in made.labels] for row in held_out()])
    answers = [one.answer for one in made.predict([row["text"] for row in held_out()])]
    said = np.array([[tag in answer for tag in made.labels] for answer in answers])
    told = made.info()["run"]["metrics"]["macro_f1"]
    assert told == pytest.approx(f1_score(gold, said, average="macro", zero_division=0))


def test_equal_members_make_themselves(members):
    fitted = berthead.load(members[1])
    made = berthead.soup([fitted, fitted, members[1]], uniform=True)
    assert (made.theta, made.omega) == (fitted.theta, fitted.omega)


def test_members_with_theta_hat_keep_it(fit_toy):
    folders = [fit_toy(adapt="frozen", epochs=2, seed=seed) for seed in (1, 2)]
    said = berthead.soup(folders, uniform=True).info()["parameters"]
    assert (said["theta_is_pretrained"], said["adapt"]) == (True, "frozen")
    mixed = berthead.soup([folders[0], fit_toy(epochs=1)], uniform=True).info()["parameters"]
    assert (mixed["theta_is_pretrained"], mixed["adapt"]) == (False, "full")


def test_the_record_tells_what_it_was_made_of(members):
    run = berthead.soup(members, held_out()).info()["run"]
    told = run["soup"]
    assert (told["recipe"], told["metric"], run["held_out_rows"]) == ("greedy", "accuracy", 70)
    for member, folder in zip(told["members"], members, strict=True):
        fitted = berthead.load(folder)
        assert member["model"] == folder.name
        assert (member["theta_sha256"], member["omega_sha256"]) == (fitted.theta.sha256, fitted.omega.sha256)
        assert (member["seed"], member["data_sha256"]) == (fitted.artifact.run["seed"], run["data_sha256"])
    assert not {"epochs", "best_epoch", "baselines", "replaced"} & set(run)
    assert str(members[0].parent) not in json.dumps(run)


def test_numbers_are_given_in_the_range_of_all_members(tiny_bert):
    rows = [{"text": row["text"], "label": float(row["stars"])} for row in toy_rows()]
    options = {"task": "regress", "encoder": str(tiny_bert), "epochs": 1, "threads": 1, "quiet": True, "valid": 0}
    low = berthead.fit(rows, **options)
    high = berthead.fit([row | {"label": row["label"] + 4} for row in rows], **options)
    task = berthead.soup([low, high], uniform=True).artifact.task
    assert (task.scales[0].low, task.scales[0].high) == (1.5, 8.5)


def test_the_longest_answer_is_that_of_any_member(tiny_bert):
    short = fit_task(tiny_bert, "span", epochs=1)
    words = " ".join(["red"] * 40)
    rows = [*span_rows(20), {"question": "a b", "context": words, "answers": [{"text": words, "answer_start": 0}]}]
    long = fit_task(tiny_bert, "span", rows, epochs=1)
    assert long.artifact.task.longest > short.artifact.task.longest
    assert berthead.soup([short, long], uniform=True).artifact.task.longest == len(words)


# What does not go together


def other_labels(rows):
    return [row | {"label": row["label"].upper()} for row in rows]


DIFFER = {
    "task": ({"task": "regress", "label": "stars"}, 'differ in the task: "classify" and "regress"'),
    "pairs": ({"pair": "pair"}, 'differ in what is read: "single texts" and "pairs"'),
    "head": ({"pooling": "mean"}, 'differ in the head\'s pooling: "pooler" and "mean"'),
    "reading": ({"max_tokens": 40}, "differ in the reading's max_tokens: 64 and 40"),
}


@pytest.mark.parametrize("kind", DIFFER)
def test_members_that_differ_are_refused_by_name(fit_toy, members, kind):
    options, message = DIFFER[kind]
    other = fit_toy(epochs=1, **options)
    with pytest.raises(ModelError) as caught:
        berthead.soup([*members, other], uniform=True)
    assert str(caught.value).startswith(f"{members[0]} and {other}: {message}; expected members of one architecture")


def test_other_labels_encoders_and_tokenizers_are_refused(members, tiny_bert, tmp_path):
    def fit(encoder, rows=None):
        return berthead.fit(rows or toy_rows(), encoder=str(encoder), epochs=1, threads=1, quiet=True)

    first = members[0]
    with pytest.raises(ModelError, match=r"member 2: differ in the task's labels: \[\"negative\", \"positive\"\] and"):
        berthead.soup([first, fit(tiny_bert, other_labels(toy_rows()))], uniform=True)
    with pytest.raises(ModelError, match="differ in the encoder's layers: 2 and 1"):
        berthead.soup([first, fit(make_bert(tmp_path / "small", num_hidden_layers=1))], uniform=True)
    with pytest.raises(
        ModelError, match=r'differ in the pre-trained encoder: "tiny-bert, sha256 .* and "other, sha256'
    ):
        berthead.soup([first, fit(make_bert(tmp_path / "other", seed=4))], uniform=True)
    shutil.copytree(tiny_bert, tmp_path / "tiny-bert")
    path = tmp_path / "tiny-bert" / "tokenizer_config.json"
    path.write_text(path.read_text("utf-8").replace('"do_lower_case": true', '"do_lower_case": false'), "utf-8")
    with pytest.raises(ModelError, match='differ in the tokenizer: "sha256'):
        berthead.soup([first, fit(tmp_path / "tiny-bert")], uniform=True)


@pytest.mark.parametrize("given", [[], ["model"], "model"], ids=str)
def test_one_member_is_none(given):
    with pytest.raises(UsageError, match="soup: got fewer than two members; expected two model folders or more"):
        berthead.soup(given, uniform=True)


def test_without_data_it_has_to_be_uniform(members):
    with pytest.raises(UsageError, match=r"valid: is not given; .*uniform=True"):
        berthead.soup(members)
    with pytest.raises(UsageError, match="metric: needs held-out rows; expected valid=DATA"):
        berthead.soup(members, uniform=True, metric="loss")
    with pytest.raises(UsageError, match=r'metric: is "acuracy".*Did you mean "accuracy"'):
        berthead.soup(members, held_out(), metric="acuracy")


def test_bad_held_out_rows_end_it_or_are_left_out(members):
    rows = [*held_out(), {"text": "", "label": "positive"}, {"text": "cat", "label": "odd"}]
    with pytest.raises(DataError, match="row 71"):
        berthead.soup(members[:2], rows)
    made = berthead.soup(members[:2], rows, skip_bad_rows=True)
    assert [line for line in made.warnings if line.startswith("left out: row 7")] == made.warnings[:2]
    with pytest.raises(DataError, match="has no column"):
        berthead.soup(members[:2], [{"text": "cat"}])


def test_uniform_with_data_is_scored_too(members):
    rows = held_out()
    made = berthead.soup(members, rows, uniform=True)
    run = made.info()["run"]
    assert all(one["chosen"] for one in run["soup"]["members"])
    assert run["metrics"]["accuracy"] == pytest.approx(accuracy(made, rows))


# On the command line


def test_merge_makes_what_python_makes(cli, members, tmp_path):
    data = write_csv(tmp_path / "valid.csv", held_out())
    ran = cli("merge", *members, "--soup", "--valid", data, "--out", tmp_path / "soup")
    assert ran.code == 0, ran.err
    made = berthead.soup(members, data)
    assert berthead.load(tmp_path / "soup").info() == made.info()
    told = made.info()["run"]
    for folder, member in zip(members, told["soup"]["members"], strict=True):
        line = next(line for line in ran.out.splitlines() if line.startswith(f"{folder} "))
        assert line.split()[2] == f"{member['score']:.4f}"
        assert line.endswith("in the soup") == member["chosen"]
    assert f"accuracy {told['metrics']['accuracy']:.4f}" in ran.out
    count = sum(one["chosen"] for one in told["soup"]["members"])
    assert f"(the mean of {count} of 5 functions, greedy)" in ran.out
    assert cli("verify", tmp_path / "soup").code == 0
    assert f"soup          the mean of {count} of 5 functions, greedy" in cli("info", tmp_path / "soup").out


def test_merge_in_json_and_uniform(cli, members, tmp_path):
    ran = cli("merge", *members[:2], "--soup", "--uniform", "--out", tmp_path / "soup", "--json")
    assert (ran.code, ran.err) == (0, "")
    told = json.loads(ran.out)
    assert (told["model"], told["run"]["soup"]["recipe"]) == (str(tmp_path / "soup"), "uniform")
    assert "in the soup" in cli("merge", *members[:2], "--soup", "--uniform", "-o", tmp_path / "again").out


def test_merge_replaces_no_model_unasked(cli, members, tmp_path):
    words = ["merge", *members[:2], "--soup", "--uniform", "--out", tmp_path / "soup"]
    assert cli(*words).code == 0
    ran = cli(*words)
    assert (ran.code, ran.out) == (6, "")
    assert "--overwrite" in ran.err
    assert cli(*words, "--overwrite").code == 0


WRONG = {
    "no way": (["{a}", "{b}"], 2, "merge: got 2 models; expected one adapter folder, or --soup to average them"),
    "one": (["{a}", "--soup", "--uniform"], 2, "fewer than two members"),
    "no data": (["{a}", "{b}", "--soup"], 2, "--valid: is not given"),
    "no such data": (["{a}", "{b}", "--soup", "--valid", "nowhere.csv"], 3, "nowhere.csv"),
    "no such model": (["{a}", "nowhere", "--soup", "--uniform"], 2, "nowhere: does not exist"),
    "a metric of another task": (["{a}", "{b}", "--soup", "--valid", "{v}", "--metric", "mae"], 2, "--metric"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_merge_that_cannot_be_leaves_nothing(cli, members, tmp_path, kind):
    words, code, message = WRONG[kind]
    data = write_csv(tmp_path / "valid.csv", held_out())
    named = [word.format(a=members[0], b=members[1], v=data) for word in words]
    ran = cli("merge", *named, "--out", tmp_path / "soup")
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err
    assert not (tmp_path / "soup").exists()
