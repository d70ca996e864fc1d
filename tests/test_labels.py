"""Labels as people have them: lists in cells, other separators, spellings, types, numbers, repetitions."""

import io
import re

import numpy as np
import pandas as pd
import pytest
from conftest import GOOD, toy_rows, write_csv, write_jsonl

import berthead
import berthead.records
from berthead.data.examples import Columns
from berthead.data.label_notes import label_notes, overlap_note, repetition_notes, separator_note
from berthead.data.labels import Labels
from berthead.data.lists import labels_in, list_in
from berthead.errors import DataError, UsageError
from berthead.records import Example
from berthead.tasks import Classify, Multilabel

TAGS = [["late", "angry"], ["refund"], ["late"], ["lost", "angry"], ["refund", "late"], ["lost"]] * 4
TEXTS = [f"{GOOD[number % 7]} {'abcd'[number // 7]}" for number in range(len(TAGS))]


# Lists in cells of text


@pytest.mark.parametrize(
    "value",
    [
        ["late", "angry"], ("late",), ("late", "angry"), {"late"}, frozenset({"late"}), set(), (), [],
        ["it's", 'says "no"'], ["a, b", "c\nd", "e\\f"], [np.str_("late")], [True, False], [1, 2.5],
        np.array(["late", "it's"]), np.array(["late", "angry"], dtype=object), np.array(["x" * 40] * 9),
        np.array([True, False]), np.array([1.0, 0.5]), np.array([3, 12]),
    ],
)  # fmt: skip
def test_what_pandas_writes_of_a_list_is_read_as_that_list(value):
    written = pd.DataFrame({"tags": [value]}, dtype=object).to_csv(index=False)
    cell = pd.read_csv(io.StringIO(written))["tags"][0]
    wanted = value.tolist() if isinstance(value, np.ndarray) else list(value)
    assert list_in(cell) == wanted
    assert [type(one) for one in list_in(cell)] == [str if isinstance(one, str) else type(one) for one in wanted]


@pytest.mark.parametrize(
    "text", ["late", "(late)", "[late]", "{late}", "{'a': 1}", "a (b, c)", "(", "", "[", "[1", "it's"]
)
def test_other_text_is_no_list(text):
    assert list_in(text) is None


def test_a_list_with_a_missing_label_or_cut_off_is_refused():
    for cell in ("['late', nan]", "[None]", "['a' ... 'b']", "[late, angry]", "{'late': 1}"):
        with pytest.raises(ValueError, match="expected"):
            Multilabel.read(cell)
    assert Multilabel.read("[urgent]") == ["[urgent]"]  # a name in brackets


@pytest.mark.parametrize("kind", [list, tuple, set, np.array])
def test_lists_that_pandas_wrote_are_fitted_as_lists_in_data_frames(fit, tmp_path, kind):
    table = pd.DataFrame({"text": TEXTS, "tags": pd.Series(map(kind, TAGS), dtype=object)})
    table.to_csv(tmp_path / "tags.csv", index=False)
    by_file = fit(tmp_path / "tags.csv", task="multilabel", label="tags", valid=0)
    assert by_file.labels == ["angry", "late", "lost", "refund"] == fit(table, task="multilabel", label="tags").labels


def test_tokens_and_choices_in_cells_are_read_in_pythons_form_too(fit, tmp_path):
    rows = [{"tokens": ["the", "cat", "'s"], "tags": '["O", "B-PER", "O"]'}] * 4
    pd.DataFrame(rows).to_csv(tmp_path / "words.csv", index=False)
    model = fit(tmp_path / "words.csv", task="tag")
    assert len(model.predict({"tokens": "('the', 'dog')"}).tags) == 2


@pytest.mark.parametrize("cells", [[[1, 0], [0, 1]], [["0", "1"], ["1", "1"]], [[True, False], [False, False]],
                                   [[1.0, 0.0, 0.0]]])  # fmt: skip
def test_rows_of_a_matrix_in_cells_are_refused_with_what_to_give(cells):
    with pytest.raises(DataError, match=r"look like 0 or 1 for each label; .*late\|angry.* --label late,angry,refund"):
        Multilabel.from_targets(cells, "a.csv")


def test_lists_of_the_labels_0_and_1_are_lists():
    assert Multilabel.from_targets([[1], [0, 1], [0]], "a.csv").labels.names == (0, 1)


# A column for each label, and other separators


def test_a_0_1_column_a_label_is_fitted_as_their_list(fit, tmp_path):
    names = ["angry", "late", "lost", "refund"]
    matrix = pd.DataFrame([[int(name in tags) for name in names] for tags in TAGS], columns=names)
    columns = pd.concat([pd.Series(TEXTS, name="text"), matrix], axis=1)
    columns.to_csv(tmp_path / "columns.csv", index=False)
    listed = fit(pd.DataFrame({"text": TEXTS, "tags": TAGS}), task="multilabel", label="tags", valid=0)
    for data in (tmp_path / "columns.csv", columns, columns.astype({"late": bool, "lost": float})):
        for label in ("angry,late,lost,refund", names):
            model = fit(data, task="multilabel", label=label, valid=0)
            assert model.omega == listed.omega
    model.save(tmp_path / "model")
    scores = berthead.load(tmp_path / "model").evaluate(tmp_path / "columns.csv")
    assert scores["per_label"] == listed.evaluate(pd.DataFrame({"text": TEXTS, "tags": TAGS}))["per_label"]


def test_label_columns_hold_0_and_1_and_belong_to_lists_of_labels(fit, tmp_path):
    rows = [{"text": text, "late": "1", "lost": "0"} for text in TEXTS]
    rows[3]["lost"] = "x"
    data = write_csv(tmp_path / "a.csv", rows)
    with pytest.raises(DataError, match=r'a\.csv:5: column "lost" is "x"; expected 0 or 1'):
        fit(data, task="multilabel", label="late,lost")
    with pytest.raises(UsageError, match='task="multilabel"'):
        fit(data, label="late,lost")
    with pytest.raises(DataError, match='no column "gone"'):
        fit(data, task="multilabel", label=["late", "gone"])
    with pytest.raises(UsageError, match="each column once"):
        fit(data, task="multilabel", label="late,late")
    with pytest.raises(UsageError, match="without commas"):
        fit(data, task="multilabel", label=["late,lost"])


def test_a_column_with_a_comma_in_its_name_is_one_column(fit):
    assert fit([{"text": "a", "x,y": "l"}, {"text": "b", "x,y": "k"}], label="x,y").labels == ["k", "l"]


@pytest.mark.parametrize("mark", [",", ";", "/"])
def test_another_separator_is_noted_and_obeyed(fit, tmp_path, mark):
    rows = [{"text": text, "tags": f"{mark} ".join(tags)} for text, tags in zip(TEXTS, TAGS, strict=True)]
    data = write_csv(tmp_path / "a.csv", rows)
    note = [one for one in fit(data, task="multilabel", label="tags").warnings if "separator" in one]
    assert len(note) == 1
    assert "12 rows" in note[0]
    assert f'"{mark}"' in note[0]
    model = fit(data, out=tmp_path / "model", task="multilabel", label="tags", separator=mark)
    assert model.labels == ["angry", "late", "lost", "refund"]
    assert not any("separator" in one for one in model.warnings)
    again = berthead.load(tmp_path / "model")
    assert again.evaluate(data)["per_label"] == model.evaluate(pd.DataFrame({"text": TEXTS, "tags": TAGS}))["per_label"]
    piped = [{"text": text, "tags": "|".join(tags)} for text, tags in zip(TEXTS, TAGS, strict=True)]
    assert again.evaluate(write_csv(tmp_path / "b.csv", piped), separator="|")["per_label"]


def test_a_separator_belongs_to_lists_of_labels(fit, toy_csv):
    with pytest.raises(UsageError, match="reads no lists of labels"):
        fit(toy_csv, separator=",")
    with pytest.raises(UsageError, match="a mark such as"):
        fit(toy_csv, task="multilabel", label="tags", separator=" ")


def test_a_mark_within_names_is_no_separator():
    assert separator_note([["food, drink"], ["and/or"], ["a|b"], ["art"], []]) == []
    assert labels_in("a, b", ",") == ["a", "b"]
    assert labels_in('["a, b"]', ",") == ["a, b"]


# Spellings, types, numbers, repetitions


def test_labels_that_differ_in_spelling_only_are_noted_with_counts(fit, tmp_path):
    spelt = ["billing", "Billing", " billing ", "tech-nical", "tech nical", "lost"]
    rows = [{"text": text, "label": spelt[number % 6]} for number, text in enumerate(TEXTS)]
    note = next(one for one in fit(write_csv(tmp_path / "a.csv", rows)).warnings if "blanks" in one)
    assert '" billing " (4 rows), "Billing" (4 rows), "billing" (4 rows); "tech nical" (4 rows), "tech-nical"' in note
    assert "lost" not in note


@pytest.mark.parametrize("labels", [["C", "C++", "C#"], ["A", "A-", "A+"], ["1", "-1"], ["+", "-"], ["<5", ">5"]])
def test_marks_that_mean_something_are_no_spelling(labels):
    assert label_notes(labels * 9) == []


def test_labels_of_two_types_that_read_the_same_are_noted(fit, tmp_path):
    rows = [{"text": text, "label": ("1", 2, 1, "2")[number % 4]} for number, text in enumerate(TEXTS)]
    model = fit(write_jsonl(tmp_path / "a.jsonl", rows))
    assert len(model.labels) == 4
    note = next(one for one in model.warnings if "in type" in one)
    assert '"1" of type text (6 rows), 1 of type integer (6 rows); ' in note


def test_numbers_that_are_fitted_as_classes_are_noted_unless_they_number_the_classes():
    assert "--task regress" in label_notes([f"{0.37 * number:.2f}" for number in range(100)])[0]
    assert "--task regress" in label_notes([1990 + number for number in range(30)] * 9)[0]
    assert label_notes(list(range(77)) * 5) == []  # numbered classes
    assert label_notes(["0.5", "1", "1.5"] * 9) == []
    assert label_notes(["yes", "no"]) == []


def test_a_label_for_nearly_every_row_is_noted():
    assert "nearly every row" in label_notes([f"ID-{number}x" for number in range(30)] + ["ID-0x"])[0]
    assert label_notes([f"intent {number}" for number in range(30)] * 3) == []


def test_repetitions_and_contradictions_are_noted_with_counts(fit, tmp_path):
    rows = toy_rows(2)
    rows = [*rows, rows[0], rows[0], rows[1] | {"label": "positive"}, rows[2] | {"label": "negative"}]
    notes = fit(write_csv(tmp_path / "a.csv", rows)).warnings
    assert "2 rows repeat the text and the target of another" in notes
    where = re.escape(f"{tmp_path / 'a.csv'}:3")
    assert any(re.fullmatch(rf'2 texts have different targets, such as {where} \("negative"\) and .*:32 \("positive"\)',
                            one) for one in notes)  # fmt: skip


def test_pairs_repeat_only_as_pairs_and_numbers_do_not_contradict():
    rows = [Example("a", "b", "x"), Example("a", "c", "y"), Example("b", "a", "x")]
    assert repetition_notes(rows) == []
    numbers = [Example("a", target=1.0), Example("a", target=2.0)]
    assert repetition_notes(numbers, contradict=False) == []
    assert len(repetition_notes(numbers)) == 1


def test_held_out_rows_that_are_fitted_too_are_noted(fit, tmp_path):
    data, valid = write_csv(tmp_path / "a.csv", toy_rows(2)), write_csv(tmp_path / "b.csv", toy_rows(1)[:3])
    assert (
        "3 of 3 held-out rows have the text of a fitted row: the scores are too high" in fit(data, valid=valid).warnings
    )
    assert overlap_note([Example("a")], [Example("b")]) == []


# Labels of another type


@pytest.mark.parametrize(
    ("fitted", "scored"),
    [
        (["1", "2", "3"], [1, 2, 3]), ([1, 2, 3], ["1", "2", "3"]), (["1", "2", "3"], [1.0, 2.0, 3.0]),
        ([1.0, 2.0, 2.5], ["1", "2", "2.5"]), (["1.0", "2.0", "2.50"], [1, 2, 2.5]), ([1.0, 2.0], [1, 2]),
        ([True, False], ["True", "False"]), (["true", "false"], [True, False]), (["TRUE", "FALSE"], [True, False]),
    ],
)  # fmt: skip
def test_labels_match_across_types_where_they_read_the_same(fitted, scored):
    task = Classify(Labels(fitted))
    for label, other in zip(fitted, scored, strict=True):
        task.check(other)
        assert task.targets([other]) == task.targets([label])
    several = Multilabel(Labels(fitted), (0.5,) * len(fitted))
    assert (several.targets([scored[:2]]) == several.targets([fitted[:2]])).all()


@pytest.mark.parametrize(
    ("fitted", "label", "message"),
    [
        (
            ["0", 0],
            0.0,
            r'is 0.0 \(float\); expected a label of one type: the known labels "0" \(text\) and 0 \(integer\)',
        ),
        (["1", "1.0"], 1, r'is 1 \(integer\); expected a label of one type: .*"1" \(text\) and "1.0" \(text\)'),
        (["0", "1"], True, r"is true \(boolean; the labels are of type text\)"),
        (["007"], 7, r"is 7 \(integer; the labels are of type text\)"),
    ],
)
def test_labels_that_read_like_two_or_none_are_refused_with_their_types(fitted, label, message):
    with pytest.raises(ValueError, match=message):
        Classify(Labels(fitted)).check(label)


def test_a_model_fitted_from_a_csv_is_scored_from_frames_parquet_and_jsonl_and_the_reverse(fit, tmp_path):
    table = pd.DataFrame({"text": TEXTS, "stars": [1, 2, 3] * 8})
    csv, parquet, jsonl = (tmp_path / f"stars.{end}" for end in ("csv", "parquet", "jsonl"))
    table.to_csv(csv, index=False)
    table.to_parquet(parquet)
    table.to_json(jsonl, orient="records", lines=True)
    by_text, by_number = fit(csv, label="stars", epochs=3), fit(table, label="stars", epochs=3)
    assert (by_text.labels, by_number.labels) == (["1", "2", "3"], [1, 2, 3])
    for data in (csv, table, table.astype({"stars": float}), table.astype({"stars": "Int64"}), parquet, jsonl):
        for model in (by_text, by_number):
            assert model.evaluate(data)["accuracy"] == by_text.evaluate(csv)["accuracy"]
    found = berthead.compare(by_text, by_number, parquet)
    assert found.right.both + found.right.neither == 24  # right or wrong, whatever the type
    assert fit(csv, label="stars", valid=parquet).artifact.run["held_out_rows"] == 24


def test_label_columns_are_read_from_rows_of_any_type():
    columns = Columns("text", label="a,b")
    for cells in ((1, 0), (True, False), ("1", "0"), (1.0, 0.0), ("True", "FALSE"), (np.int64(1), np.bool_(False))):
        row = berthead.records.Row({"text": "x", "a": cells[0], "b": cells[1]}, "row 1")
        assert columns.target_cell(row) == ["a"]
