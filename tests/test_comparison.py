"""Two functions on the same rows: against scikit-learn, scipy and sums done by hand."""

from __future__ import annotations

import json
from functools import partial
from math import comb

import numpy as np
import pandas as pd
import pytest
from conftest import make_bert, toy_rows, write_csv, write_jsonl
from scipy.stats import rankdata
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from toy_tasks import ROWS, choose_rows, fit_task, span_rows, tag_rows

import berthead
from berthead.errors import DataError, ModelError, OutputError, UsageError
from berthead.records import Span
from berthead.tasks import Answer, Task

KINDS = {"classify": ("label", {}), "multilabel": ("tags", {"task": "multilabel"}), "regress": ("stars", {"task": "regress"})}  # fmt: skip # noqa: E501


def mixed_rows() -> list[dict]:
    """Rows on which two fits differ."""
    words = ["good", "bad", "fine", "poor", "great", "awful", "cat", "dog", "mat", "red", "blue", "ran"]
    draw = np.random.default_rng(3)
    rows = []
    for number in range(80):
        text = " ".join(draw.choice(words, 1 + number % 5))
        label = ("positive", "negative")[int(draw.integers(2))]
        rows.append({"text": text, "label": label, "tags": draw.choice(["nice|short", "nasty", "nice", ""]),
                     "stars": str(float(draw.integers(1, 6)))})  # fmt: skip
    return rows


def two(fit_toy, kind: str = "classify"):
    """A function that was fitted well, and one that hardly was."""
    label, options = KINDS[kind]
    fits = ({"epochs": 10, "seed": 1}, {"epochs": 1, "lr": 1e-4, "seed": 4})
    return [fit_toy(label=label, precision="fp32", **one, **options) for one in fits]


def mcnemar_by_hand(b: int, c: int) -> float:
    """Both tails of a fair coin, summed as the textbook does."""
    n, k = b + c, min(b, c)
    return min(1.0, 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n) if n else 1.0


# Labels


def test_labels_metrics_and_the_test_are_those_of_scikit_learn_and_a_sum_by_hand(fit_toy, tmp_path):
    folders, rows = two(fit_toy), mixed_rows()
    found = berthead.compare(*folders, write_csv(tmp_path / "data.csv", rows))
    gold = [row["label"] for row in rows]
    said = [[one.answer for one in berthead.load(folder).predict([row["text"] for row in rows])] for folder in folders]
    other = [place for place in range(80) if said[0][place] != said[1][place]]
    assert other, "the two functions have to differ"
    assert (found.rows, found.skipped, found.scored, found.task) == (80, 0, 80, "classify")
    assert found.agreement == pytest.approx(1 - len(other) / 80)
    assert [one.where for one in found.flips] == [f"{tmp_path / 'data.csv'}:{place + 2}" for place in other]
    for flip, place in zip(found.flips, other, strict=True):
        assert (flip.text, flip.a, flip.b, flip.target) == (
            rows[place]["text"], said[0][place], said[1][place], gold[place],
        )  # fmt: skip
        assert (flip.a_right, flip.b_right) == (said[0][place] == gold[place], said[1][place] == gold[place])
    right = [np.array([answer == wanted for answer, wanted in zip(one, gold, strict=True)]) for one in said]
    only_a, only_b = int((right[0] & ~right[1]).sum()), int((~right[0] & right[1]).sum())
    assert (found.right.only_a, found.right.only_b) == (only_a, only_b)
    assert (found.right.both, found.right.neither) == ((right[0] & right[1]).sum(), (~right[0] & ~right[1]).sum())
    assert found.test.name == "McNemar, exact"
    assert found.test.p == pytest.approx(mcnemar_by_hand(only_a, only_b), rel=1e-12)
    for side, answers in zip("ab", said, strict=True):
        assert found.metrics["accuracy"][side] == pytest.approx(accuracy_score(gold, answers))
        parts = precision_recall_fscore_support(gold, answers, labels=["negative", "positive"], zero_division=0)
        for number, change in enumerate(found.per_label):
            shares = getattr(change, side)
            assert list(shares.values()) == pytest.approx([part[number] for part in parts[:3]])
            assert change.support == parts[3][number]
    never = [[label for label in ("negative", "positive") if label not in answers] for answers in said]
    told = [f'{name}: never predicted: "{one[0]}"' for name, one in zip("AB", never, strict=True) if one]
    assert found.notes == told


def test_metrics_of_both_sides_are_those_of_evaluate(fit_toy):
    rows = mixed_rows()
    for kind, (label, _) in KINDS.items():
        folders = two(fit_toy, kind)
        found = berthead.compare(*folders, rows, label=label)
        for side, folder in zip("ab", folders, strict=True):
            alone = berthead.load(folder).evaluate(rows, label=label)
            numbers = {name: value for name, value in alone.items() if isinstance(value, float)}
            assert {name: one[side] for name, one in found.metrics.items()} == pytest.approx(numbers)


def test_many_labels_are_right_where_all_of_them_are(fit_toy):
    folders, rows = two(fit_toy, "multilabel"), mixed_rows()
    found = berthead.compare(*folders, rows, label="tags")
    texts = [row["text"] for row in rows]
    said = [[set(one.answer) for one in berthead.load(folder).predict(texts)] for folder in folders]
    gold = [set(filter(None, row["tags"].split("|"))) for row in rows]
    right = [[answer == wanted for answer, wanted in zip(one, gold, strict=True)] for one in said]
    assert found.right.only_a == sum(a and not b for a, b in zip(*right, strict=True))
    assert found.right.only_b == sum(b and not a for a, b in zip(*right, strict=True))
    assert len(found.flips) == sum(a != b for a, b in zip(*said, strict=True)) > 0
    assert [change.label for change in found.per_label] == ["nasty", "nice", "short"]
    assert sorted(found.flips[0].target) == sorted(gold[int(found.flips[0].where.split()[1]) - 1])


def test_a_function_agrees_with_itself(fit_toy, toy_csv):
    folder = fit_toy(epochs=6)
    found = berthead.compare(folder, berthead.load(folder), toy_csv)
    assert (found.agreement, found.flips) == (1.0, [])
    assert (found.right.only_a, found.right.only_b, found.test.p) == (0, 0, 1.0)
    assert set(found.moved.values()) == {0.0}
    assert found.a == found.b


# Numbers


def wilcoxon_by_hand(a: np.ndarray, b: np.ndarray, gold: np.ndarray) -> float:
    """The normal approximation with its correction for ties, from the ranks."""
    apart = np.abs(a - gold) - np.abs(b - gold)
    apart = apart[apart != 0]
    ranks, n = rankdata(np.abs(apart)), len(apart)
    w = ranks[apart > 0].sum()
    ties = np.unique(ranks, return_counts=True)[1]
    deviation = np.sqrt(n * (n + 1) * (2 * n + 1) / 24 - (ties**3 - ties).sum() / 48)
    from math import erfc

    return erfc(abs(w - n * (n + 1) / 4) / deviation / np.sqrt(2))


def test_numbers_are_compared_by_their_errors(fit_toy):
    folders, rows = two(fit_toy, "regress"), mixed_rows()
    found = berthead.compare(*folders, rows, label="stars")
    texts, gold = [row["text"] for row in rows], np.array([float(row["stars"]) for row in rows])
    a, b = (np.array([one.answer for one in berthead.load(folder).predict(texts)]) for folder in folders)
    assert (found.right, found.test.name) == (None, "Wilcoxon signed-rank")
    assert found.test.p == pytest.approx(wilcoxon_by_hand(a, b, gold), rel=1e-6)
    assert found.metrics["mae"] == pytest.approx({"a": np.abs(a - gold).mean(), "b": np.abs(b - gold).mean()})
    gaps = [abs(one.a - one.b) for one in found.flips]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] == pytest.approx(np.abs(a - b).max())
    alike = [f"{x:.6g}" == f"{y:.6g}" for x, y in zip(a, b, strict=True)]
    assert found.agreement == pytest.approx(np.mean(alike))


def test_a_number_without_any_difference_has_p_1(fit_toy):
    folder = two(fit_toy, "regress")[0]
    assert berthead.compare(folder, folder, mixed_rows(), label="stars").test.p == 1.0


# Tags, answers, choices


@pytest.fixture(scope="module")
def weak(tiny_bert):
    """For each task a function that was fitted well and one that was not."""
    return {
        task: [fit_task(tiny_bert, task, epochs=epochs, seed=seed) for epochs, seed in ((8, 1), (2, 3))]
        for task in ROWS
    }


def test_tags_are_right_where_all_spans_are(weak):
    rows = tag_rows(60, seed=7)
    found = berthead.compare(*weak["tag"], rows)
    right = [
        np.array([one.tags == row["tags"] for one, row in zip(fitted.predict(rows_in(rows)), rows, strict=True)])
        for fitted in weak["tag"]
    ]  # fmt: skip
    assert found.right.only_a == (right[0] & ~right[1]).sum() > 0
    assert found.right.both == (right[0] & right[1]).sum()
    assert found.test.p == pytest.approx(mcnemar_by_hand(found.right.only_a, found.right.only_b))
    assert {change.label for change in found.per_label} == {"POS", "NEG"}
    flip = found.flips[0]
    assert flip.target == rows[int(flip.where.split()[1]) - 1]["tags"]
    assert all(flip.text[one["start"] : one["end"]] == one["text"] for one in flip.a + flip.b)


def rows_in(rows: list[dict]) -> list[dict]:
    return [{"tokens": row["tokens"]} for row in rows]


def test_spans_of_characters_are_compared_as_tags_are(weak):
    rows = tag_rows(60, seed=7)
    marked = []
    for row in rows:
        spans, place = [], 0
        for word, tag in zip(row["tokens"], row["tags"], strict=True):
            if tag.startswith("I-"):
                spans[-1]["end"] = place + len(word)
            elif tag != "O":
                spans.append({"start": place, "end": place + len(word), "label": tag[2:]})
            place += len(word) + 1
        marked.append({"text": " ".join(row["tokens"]), "spans": spans})
    by_words, by_characters = berthead.compare(*weak["tag"], rows), berthead.compare(*weak["tag"], marked)
    assert by_words.right == by_characters.right
    assert by_characters.flips[0].target == marked[int(by_characters.flips[0].where.split()[1]) - 1]["spans"]


def test_joint_rows_are_right_where_tags_and_label_are(weak):
    rows = tag_rows(60, seed=7)
    found = berthead.compare(*weak["joint"], rows)
    scores = [fitted.evaluate(rows)["exact_match"] for fitted in weak["joint"]]
    assert (found.right.both + found.right.only_a) / 60 == pytest.approx(scores[0])
    assert (found.right.both + found.right.only_b) / 60 == pytest.approx(scores[1])
    assert {change.label for change in found.per_intent} == {"yes", "no"}
    assert found.flips[0].a.keys() == found.flips[0].target.keys() == {"label", "spans"}


def test_answers_are_right_as_squad_counts_them(weak):
    rows = span_rows(40, seed=7)
    found = berthead.compare(*weak["span"], rows)
    assert (found.right.both + found.right.only_a) / 40 == pytest.approx(weak["span"][0].evaluate(rows)["exact"])
    assert (found.right.both + found.right.only_b) / 40 == pytest.approx(weak["span"][1].evaluate(rows)["exact"])
    if found.flips:
        assert found.flips[0].target == ["red"]
        assert found.flips[0].pair == rows[int(found.flips[0].where.split()[1]) - 1]["context"]


def test_choices_are_compared_by_their_place(weak, tiny_bert):
    rows = choose_rows(40, seed=7)
    lettered = fit_task(tiny_bert, "choose", [row | {"label": "ABCD"[row["label"]]} for row in choose_rows(80)])
    found = berthead.compare(weak["choose"][0], weak["choose"][1], rows)
    accuracy = [fitted.evaluate(rows)["accuracy"] for fitted in weak["choose"]]
    assert (found.right.both + found.right.only_a) / 40 == pytest.approx(accuracy[0])
    assert (found.right.both + found.right.only_b) / 40 == pytest.approx(accuracy[1])
    same = berthead.compare(weak["choose"][0], lettered, rows)
    assert same.agreement == 1.0
    assert same.metrics["accuracy"]["a"] == same.metrics["accuracy"]["b"]


def test_answers_are_written_as_json():
    # Of a task that says nothing of it.
    written = partial(Task.written, object())
    span = Span(0, 3, "cat", "PET", 0.5)
    assert written(Answer([span], spans=[span])) == [{"start": 0, "end": 3, "label": "PET", "text": "cat"}]
    assert written(Answer(["NOUN"], spans=[], tags=["NOUN"])) == ["NOUN"]
    assert written(Answer([], spans=[])) == []
    assert written(Answer("cat", 0.5, None, [span])) == "cat"
    assert written(Answer("yes", 0.5, {"yes": 0.5}, [span]))["label"] == "yes"


# Without targets, with other labels, with other architectures


def test_without_targets_answers_are_compared_and_not_scored(fit_toy):
    rows = [{"text": row["text"]} for row in mixed_rows()]
    found = berthead.compare(*two(fit_toy), rows)
    assert (found.right, found.test, found.metrics, found.per_label, found.scored) == (None, None, {}, [], 0)
    assert found.notes == ["there is no column of targets: answers are compared but not scored"]
    assert found.flips[0].target is None
    assert found.flips[0].a_right is None
    with_targets = berthead.compare(*two(fit_toy), mixed_rows())
    assert [one.where for one in found.flips] == [one.where for one in with_targets.flips]


def test_a_label_that_was_named_has_to_be_there(fit_toy):
    with pytest.raises(DataError, match=r'has no column "queue"'):
        berthead.compare(*two(fit_toy), mixed_rows(), label="queue")


def test_functions_of_other_labels_are_compared_and_it_is_said(fit_toy, tiny_bert):
    rows = [row | {"label": "neutral" if "mat" in row["text"] else row["label"]} for row in toy_rows()]
    three = berthead.fit(rows, encoder=str(tiny_bert), epochs=2, lr=3e-3, threads=1, quiet=True, seed=1)
    two_labels = two(fit_toy)[0]
    found = berthead.compare(two_labels, three, rows)
    strange = sum(row["label"] == "neutral" for row in rows)
    assert 'their labels differ: only B knows "neutral"' in found.notes
    assert (
        f"{strange} rows have a target that A does not know: it is wrong there, and no metric counts them"
        in found.notes
    )
    assert (found.rows, found.scored) == (56, 56 - strange)
    kept = [row for row in rows if row["label"] != "neutral"]
    assert found.metrics["accuracy"]["a"] == pytest.approx(berthead.load(two_labels).evaluate(kept)["accuracy"])
    assert found.metrics["accuracy"]["b"] == pytest.approx(three.evaluate(kept)["accuracy"])
    change = next(one for one in found.per_label if one.label == "neutral")
    assert (change.a, change.b["recall"], change.support) == (None, 0.0, 0)
    assert list(found.moved) == ["embeddings", "block 0", "block 1"]
    with pytest.raises(DataError, match='is "odd"; expected one of 2 known labels'):
        berthead.compare(two_labels, three, [*rows, {"text": "good", "label": "odd"}])


def test_what_no_row_shares_is_not_scored(fit_toy, tiny_bert):
    rows = [row | {"label": row["label"].upper()} for row in toy_rows()]
    upper = berthead.fit(rows, encoder=str(tiny_bert), epochs=1, threads=1, quiet=True)
    found = berthead.compare(two(fit_toy)[0], upper, rows)
    assert (found.scored, found.metrics, found.agreement) == (0, {}, 0.0)
    assert found.right.both == found.right.only_a == 0


def test_labels_of_another_type_are_other_answers(tiny_bert):
    rows = [{"text": row["text"], "label": number % 2} for number, row in enumerate(toy_rows())]
    options = {"encoder": str(tiny_bert), "epochs": 1, "threads": 1, "quiet": True}
    numbers = berthead.fit(rows, **options)
    texts = berthead.fit([row | {"label": str(row["label"])} for row in rows], **options)
    found = berthead.compare(numbers, texts, [{"text": row["text"]} for row in rows])
    assert found.agreement == 0.0
    assert 'their labels differ: only A knows 0, 1; only B knows "0", "1"' in found.notes


def test_functions_of_another_architecture_have_no_distance(fit_toy, tmp_path_factory, toy_csv):
    small = make_bert(tmp_path_factory.mktemp("encoders") / "small", num_hidden_layers=1)
    other = berthead.fit(toy_csv, encoder=str(small), epochs=1, threads=1, quiet=True)
    found = berthead.compare(two(fit_toy)[0], other, toy_csv)
    assert found.moved is None
    assert found.metrics["accuracy"]["b"] == pytest.approx(other.evaluate(toy_csv)["accuracy"])


def test_the_distance_is_that_of_the_parameters(fit_toy, toy_csv):
    a, b = (berthead.load(folder) for folder in two(fit_toy))
    moved = berthead.compare(a, b, toy_csv).moved
    assert moved == b.theta.difference(a.theta) | b.omega.difference(a.omega)
    assert list(moved) == ["embeddings", "block 0", "block 1", "pooler", "head"]


# What cannot be compared


def test_functions_of_other_questions_are_refused(fit_toy, weak):
    with pytest.raises(UsageError, match="A has the task classify, B the task tag; expected two functions of one task"):
        berthead.compare(two(fit_toy)[0], weak["tag"][0], toy_rows())
    pairs = fit_toy(pair="pair", precision="fp32")
    with pytest.raises(UsageError, match="B reads pairs, A single texts"):
        berthead.compare(two(fit_toy)[0], pairs, toy_rows())
    with pytest.raises(ModelError, match="nothing: does not exist"):
        berthead.compare("nothing", pairs, toy_rows())


def test_bad_rows_end_it_or_are_left_out(fit_toy):
    rows = [*mixed_rows(), {"text": " ", "label": "positive"}, {"text": "cat", "label": "odd"}]
    with pytest.raises(DataError, match='row 81: column "text" is blank'):
        berthead.compare(*two(fit_toy), rows)
    found = berthead.compare(*two(fit_toy), rows, skip_bad_rows=True)
    assert (found.rows, found.skipped) == (80, 2)
    assert [note for note in found.notes if note.startswith("left out: row 81")]
    with pytest.raises(DataError, match="holds no rows that can be scored"):
        berthead.compare(*two(fit_toy), rows[-2:], skip_bad_rows=True)


def test_rows_that_one_of_them_cannot_read(fit_toy):
    short = fit_toy(on_long="error", max_tokens=20, precision="fp32")
    rows = [*mixed_rows(), {"text": "good cat " * 20, "label": "positive"}]
    with pytest.raises(DataError, match="row 81"):
        berthead.compare(two(fit_toy)[0], short, rows)
    assert berthead.compare(two(fit_toy)[0], short, rows, skip_bad_rows=True).skipped == 1


# On the command line


def test_compare_prints_what_python_says(cli, fit_toy, tmp_path):
    folders, data = two(fit_toy), write_csv(tmp_path / "data.csv", mixed_rows())
    ran = cli("compare", *folders, data, "--json")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert told.pop("models") == {"a": str(folders[0]), "b": str(folders[1])}
    assert told == json.loads(json.dumps(berthead.compare(*folders, data).to_dict()))


def test_compare_shows_ten_rows_and_writes_all(cli, fit_toy, tmp_path):
    folders, data = two(fit_toy, "regress"), write_csv(tmp_path / "data.csv", mixed_rows())
    ran = cli("compare", *folders, data, "-o", tmp_path / "flips.csv")
    assert ran.code == 0, ran.err
    found = berthead.compare(*folders, data)
    assert ran.out.count(f"{data}:") == 10
    assert f"... and {len(found.flips) - 10} more in {tmp_path / 'flips.csv'}" in ran.out
    written_rows = pd.read_csv(tmp_path / "flips.csv")
    assert written_rows["where"].tolist() == [one.where for one in found.flips]
    assert written_rows["a"].tolist() == pytest.approx([one.a for one in found.flips])
    assert "Wilcoxon signed-rank: p = " in ran.out
    assert ": --out FILE writes all" in cli("compare", *folders, data).out


def test_compare_shows_both_answers_side_by_side(cli, fit_toy, tmp_path):
    folders, data = two(fit_toy), write_csv(tmp_path / "data.csv", mixed_rows())
    found = berthead.compare(*folders, data)
    ran = cli("compare", *folders, data, "--out", tmp_path / "flips.jsonl")
    first = found.flips[0]
    verdict = {True: "right", False: "wrong"}
    line = f'{first.where}  A "{first.a}" ({verdict[first.a_right]})  B "{first.b}" ({verdict[first.b_right]})  wanted "{first.target}"'  # noqa: E501
    assert line in ran.out
    assert f"McNemar, exact: p = {found.test.p:.4g}" in ran.out
    assert f"from A to B the parameters moved: embeddings {100 * found.moved['embeddings']:.3g} %" in ran.out
    lines = [json.loads(one) for one in (tmp_path / "flips.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines == [one for one in found.to_dict()["flips"]]


@pytest.mark.parametrize("task", ROWS)
def test_compare_of_every_other_task(cli, weak, tmp_path, task):
    for name, fitted in zip("ab", weak[task], strict=True):
        fitted.save(tmp_path / name)
    data = write_jsonl(tmp_path / "data.jsonl", ROWS[task](30, seed=9))
    ran = cli("compare", tmp_path / "a", tmp_path / "b", data, "-o", tmp_path / "flips.csv")
    assert ran.code == 0, ran.err
    assert "rows scored" in ran.out
    assert json.loads(cli("compare", tmp_path / "a", tmp_path / "b", data, "--json").out)["rows"] == 30


def test_compare_says_that_labels_or_architectures_differ(cli, fit_toy, tmp_path_factory, tmp_path):
    small = make_bert(tmp_path_factory.mktemp("encoders") / "small", num_hidden_layers=1)
    rows = [row | {"label": row["label"].upper()} for row in toy_rows()]
    berthead.fit(rows, encoder=str(small), epochs=1, threads=1, quiet=True, out=tmp_path / "other")
    ran = cli("compare", two(fit_toy)[0], tmp_path / "other", write_csv(tmp_path / "data.csv", toy_rows()))
    assert ran.code == 0
    assert "note: their labels differ: only A knows" in ran.err
    assert "not comparable: the architectures differ" in ran.out


def test_compare_that_left_rows_out_ends_with_4(cli, fit_toy, tmp_path):
    data = write_csv(tmp_path / "data.csv", [*toy_rows(), {"text": "", "label": "positive"}])
    ran = cli("compare", *two(fit_toy), data, "--skip-bad-rows", "--json")
    assert (ran.code, json.loads(ran.out)["skipped"]) == (4, 1)
    assert cli("compare", *two(fit_toy), data).code == 3


@pytest.mark.parametrize("out", ["-", "flips.parquet", "flips.xlsx"])
def test_rows_go_to_a_text_file_only(cli, fit_toy, toy_csv, out):
    ran = cli("compare", *two(fit_toy), toy_csv, "--out", out)
    assert (ran.code, ran.out) == (2, "")
    assert out in ran.err


def test_a_place_that_cannot_be_written_is_met_before_the_work(cli, fit_toy, tmp_path, monkeypatch):
    monkeypatch.setattr("berthead.verbs.compare.compare", lambda *_, **__: pytest.fail("work was done"))
    ran = cli("compare", *two(fit_toy), "data.csv", "--out", tmp_path / "nowhere" / "flips.csv")
    assert ran.code == OutputError.exit_code


def test_compare_without_targets_from_stdin(cli, fit_toy):
    ran = cli("compare", *two(fit_toy), "-", "--json", stdin=b"text\ngood cat\nawful dog\n")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["rows"] == 2
    assert "note: there is no column of targets" in ran.err
