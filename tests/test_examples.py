"""Rows to examples, what is said of bad ones, and the hold-out split."""

from __future__ import annotations

import math
import random
from collections import Counter
from datetime import date
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from conftest import tries, write_csv, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

import berthead
from berthead.data.column_names import find_column
from berthead.data.examples import Columns, rows_of, sound_examples, to_example
from berthead.data.forms import SYNONYMS
from berthead.data.labels import Labels
from berthead.data.split import hold_out
from berthead.errors import DataError
from berthead.formats.readers import open_rows
from berthead.records import Example, Row
from berthead.tasks import Classify

QUICK = settings(max_examples=tries(150), deadline=None)
NOTHINGS = [None, math.nan, np.float64("nan"), pd.NA, pd.NaT, "", "  ", "\u00a0\t\n"]


def example(values, columns=None, read=None):
    return to_example(Row(values, "a.csv:7"), columns or Columns("text"), read)


# Columns


def test_the_given_column_is_taken_and_nothing_else():
    assert find_column("text", "body", ["text", "body"], "a.csv") == "body"
    with pytest.raises(DataError) as error:
        find_column("text", "txet", ["text", "label"], "a.csv")
    assert (
        str(error.value)
        == 'a.csv: has no column "txet"; expected one of its columns: text, label. Did you mean "text"?'
    )


@pytest.mark.parametrize(("role", "name"), [(role, name) for role, names in SYNONYMS.items() for name in names])
def test_the_usual_names_of_a_column_are_found(role, name):
    assert find_column(role, None, ["id", name, "other"], "a.csv") == name


def test_our_own_name_comes_before_its_synonyms():
    assert find_column("text", None, ["sentence", "review", "text"], "a.csv") == "text"
    assert find_column("label", None, ["score", "label"], "a.csv") == "label"


def test_no_column_for_a_role_says_how_to_name_one():
    with pytest.raises(DataError) as error:
        find_column("label", None, ["id", "text", "answer"], "a.csv")
    message = (
        "a.csv: has no column for the label; expected one of its columns: id, text, answer. Name one: --label COLUMN."
    )
    assert str(error.value) == message


def test_a_column_that_is_like_no_other_gets_a_hint_all_the_same():
    with pytest.raises(DataError) as error:
        find_column("text", "zzz", [f"c{number}" for number in range(30)], "a.csv")
    assert "c19 and 10 more. Name one: --text COLUMN." in str(error.value)
    with pytest.raises(DataError, match=r'Did you mean "Texts"\?'):
        find_column("text", "text", ["Texts", "label"], "a.csv")


# Rows


def test_a_row_becomes_an_example_in_the_users_own_terms():
    columns = Columns("body", "reply", "queue")
    row = {"body": " kept as it is ", "reply": "NA", "queue": "None", "id": 3}
    made = example(row, columns, Classify.read)
    assert made == Example(" kept as it is ", "NA", "None", "a.csv:7")


@pytest.mark.parametrize("column", ["text", "pair"])
@pytest.mark.parametrize("value", NOTHINGS, ids=repr)
def test_a_blank_text_is_an_error_of_that_row(column, value):
    made = example({"text": "a", "pair": "b"} | {column: value}, Columns("text", "pair"))
    assert (made.text, made.where, made.error) == ("", "a.csv:7", f'column "{column}" is blank; expected a text')


@pytest.mark.parametrize("word", ["None", "NA", "null", "nan", "0", "."])
def test_words_for_nothing_are_texts(word):
    assert example({"text": word}) == Example(word, where="a.csv:7")


def test_a_missing_column_is_not_the_same_as_a_blank_cell():
    assert example({"other": "a"}).error == 'column "text" is missing; expected a text'
    wanted = 'column "pair" is missing; expected a text'
    assert example({"text": "a"}, Columns("text", "pair")).error == wanted


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"a": "é"}, '{"a": "é"}'),
        (["a", 1], '["a", 1]'),
        (("a", "b"), '["a", "b"]'),
        (np.array(["a", "b"]), None),
        ({"a"}, None),
        (b"abc", None),
    ],
    ids=repr,
)
def test_a_cell_that_is_no_text_is_an_error_that_shows_it(value, shown):
    made = example({"text": value})
    assert made.text == ""
    assert made.error.startswith(f'column "text" is {shown or ""}')
    assert made.error.endswith("; expected a text")


def test_a_long_cell_that_is_no_text_is_shown_short():
    assert len(example({"text": ["a" * 10_000]}).error) < 120


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5, "5"),
        (0, "0"),
        (2.5, "2.5"),
        (np.int64(7), "7"),
        (np.str_("a"), "a"),
        (Decimal("1.50"), "1.50"),
        (date(2020, 1, 2), "2020-01-02"),
    ],
)
def test_a_number_becomes_its_text(value, text):
    made = example({"text": value, "pair": value}, Columns("text", "pair"))
    assert (made.text, made.pair, made.error) == (text, text, None)
    assert type(made.text) is str


def test_a_target_that_cannot_be_read_is_an_error_of_its_column():
    columns = Columns("text", label="queue")
    assert example({"text": "a", "queue": ""}, columns, Classify.read).error == (
        'column "queue" is blank; expected a label'
    )
    assert example({"text": "a"}, columns, Classify.read).error.startswith('column "queue" is blank')
    assert example({"text": "a", "queue": ["b"]}, columns, Classify.read).error == (
        'column "queue" is ["b"]; expected a text or a number'
    )


def test_targets_are_not_read_where_none_are_wanted():
    assert example({"text": "a", "queue": ""}, Columns("text", label="queue")).error is None
    assert example({"text": "a", "queue": ""}, Columns("text"), Classify.read).target is None


def test_a_row_that_could_not_be_read_keeps_its_reason():
    made = to_example(Row({}, "a.jsonl:3", "is not JSON"), Columns("text"), Classify.read)
    assert made == Example("", where="a.jsonl:3", error="is not JSON")


def test_rows_in_memory_are_numbered_from_one():
    assert [(row.where, row.values) for row in rows_of([{"a": 1}, {"a": 2}])] == [
        ("row 1", {"a": 1}),
        ("row 2", {"a": 2}),
    ]


# Bad rows


def test_one_bad_row_ends_the_work_with_its_file_and_line(tmp_path):
    path = write_csv(tmp_path / "a.csv", [{"text": "a\nb"}, {"text": " "}, {"text": "c"}])
    with pytest.raises(DataError) as error:
        sound_examples((to_example(row, Columns("text"), None) for row in open_rows(path)), skip_bad_rows=False)
    assert str(error.value) == (
        f'{path}:4: column "text" is blank; expected a text. Correct them, or leave them out with --skip-bad-rows.'
    )


def test_many_bad_rows_are_counted_and_the_first_ones_listed():
    rows = [Example("", where=f"a.csv:{line}", error="is blank; expected a text") for line in range(2, 9)]
    with pytest.raises(DataError) as error:
        sound_examples([*rows, Example("a", where="a.csv:9")], skip_bad_rows=False)
    assert str(error.value) == (
        "a.csv:2: is blank; expected a text (7 such rows: a.csv:2, a.csv:3, a.csv:4, a.csv:5, a.csv:6 and 2 more). "
        "Correct them, or leave them out with --skip-bad-rows."
    )


def test_a_file_name_with_a_colon_stays_whole():
    rows = [Example("", where=f"data: new.csv:{line}", error="is blank") for line in (2, 3)]
    with pytest.raises(DataError) as error:
        sound_examples(rows, skip_bad_rows=False)
    assert error.value.where == "data: new.csv:2"
    assert "(2 such rows: data: new.csv:2, data: new.csv:3)" in str(error.value)


def test_bad_rows_that_are_skipped_are_handed_back_as_lines():
    rows = [Example("a"), Example("", where="a.csv:3", error="is blank"), Example("b")]
    assert sound_examples(rows, skip_bad_rows=True) == ([rows[0], rows[2]], ["a.csv:3: is blank"])


def test_a_fit_names_the_line_of_a_bad_row(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": 1}, {"text": None, "label": 2}])
    with pytest.raises(DataError, match=r'a\.jsonl:2: column "text" is blank; expected a text\. Correct them'):
        berthead.fit(path, quiet=True)


# Hold-out


def rows_with(counts):
    """Examples of different texts, `counts` of each class, shuffled."""
    made = [Example(f"{label!r} {number}", target=label) for label, count in counts.items() for number in range(count)]
    random.Random(0).shuffle(made)
    return made


@st.composite
def some_examples(draw):
    """Examples with repeated texts and pairs, also ones that carry different labels."""
    text, pair = st.sampled_from("abcdefgh"), st.sampled_from([None, "x", "y"])
    label = st.sampled_from(["0", 0, "rare", "common", "common", "common"])
    rows = draw(st.lists(st.tuples(text, pair, label), min_size=1, max_size=40))
    return [Example(t, p, label, f"row {n}") for n, (t, p, label) in enumerate(rows)]


@QUICK
@given(rows=some_examples(), share=st.floats(0.01, 0.99), seed=st.integers(0, 2**32))
def test_a_split_is_a_partition_that_keeps_order_and_equal_texts_together(rows, share, seed):
    fitted, held = hold_out(rows, share, seed, lambda one: one.target)
    assert sorted([*fitted, *held], key=rows.index) == rows
    for side in (fitted, held):
        places = [int(one.where.split()[1]) for one in side]
        assert places == sorted(places)
    assert not {(one.text, one.pair) for one in fitted} & {(one.text, one.pair) for one in held}


@QUICK
@given(rows=some_examples(), share=st.floats(0.01, 0.99), seed=st.integers(0, 2**32))
def test_no_class_is_wholly_held_out(rows, share, seed):
    fitted, _ = hold_out(rows, share, seed, lambda one: one.target)
    assert {repr(one.target) for one in fitted} == {repr(one.target) for one in rows}


@QUICK
@given(
    counts=st.dictionaries(st.sampled_from(["a", "b", "c", 1, "1"]), st.integers(1, 60), min_size=1),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 99),
)
def test_every_class_gives_its_share_within_rounding(counts, share, seed):
    _, held = hold_out(rows_with(counts), share, seed, lambda one: one.target)
    seen = Counter(repr(one.target) for one in held)
    for label, count in counts.items():
        wanted = min(share * count, count - 1)
        assert abs(seen[repr(label)] - wanted) < 1 + 1e-9


def test_many_small_classes_give_their_share_together():
    _, held = hold_out(rows_with({f"class {number}": 4 for number in range(100)}), 0.1, 0, lambda one: one.target)
    assert len(held) == 40


def test_without_classes_the_share_is_of_all_rows():
    _, held = hold_out(rows_with({"a": 70, "b": 30}), 0.25, 0, lambda one: None)
    assert len(held) == 25


def test_a_class_with_one_row_is_fitted_whatever_the_share():
    for seed in range(20):
        fitted, _ = hold_out(rows_with({"a": 30, "b": 1}), 0.9, seed, lambda one: one.target)
        assert "b" in {one.target for one in fitted}


def test_rows_of_one_text_are_never_divided():
    rows = [Example("same", None, "a"), Example("same", "pair", "a"), Example("same", None, "b")]
    for seed in range(10):
        fitted, held = hold_out(rows, 0.5, seed, lambda one: None)
        assert rows[0] in fitted or rows[2] in held
        assert (rows[0] in fitted) == (rows[2] in fitted)
        assert held  # the pair differs, so that there is something to choose from


def test_the_seed_alone_decides_the_split():
    rows = rows_with({"a": 40, "b": 20})
    splits = [hold_out(rows, 0.3, seed, lambda one: one.target) for seed in (0, 0, 1, 2)]
    np.random.seed(5)
    random.seed(5)
    assert splits[0] == splits[1] == hold_out(rows, 0.3, 0, lambda one: one.target)
    assert splits[0][1] != splits[2][1] != splits[3][1]


def test_the_held_out_rows_are_spread_over_all_rows():
    rows = [Example(str(number), target="a") for number in range(400)]
    _, held = hold_out(rows, 0.5, 0, lambda one: one.target)
    early = sum(int(one.text) < 200 for one in held)
    assert 70 < early < 130  # half of 200, within six standard deviations


# Labels that are not known


def test_an_unknown_label_is_shown_with_the_known_ones_and_the_nearest():
    labels = Labels(["negative", "neutral", "positive"])
    assert labels.unknown("neutal") == (
        'is "neutal"',
        'expected one of 3 known labels: "negative", "neutral", "positive". Did you mean "neutral"?',
    )
    assert labels.unknown("zzz")[1] == 'expected one of 3 known labels: "negative", "neutral", "positive"'


def test_an_unknown_label_shows_its_type():
    labels = Labels(["0", "1"])
    assert labels.unknown(2)[0] == "is 2 (integer; the labels are of type text)"
    assert labels.unknown("é")[0] == 'is "é"'
    assert Labels([True, 0]).unknown(False)[1].startswith("expected one of 2 known labels: true, 0")


def test_a_thousand_known_labels_are_listed_short():
    seen, known = Labels([f"l{number}" for number in range(1000)]).unknown("l1000")
    assert seen == 'is "l1000"'
    assert 'expected one of 1,000 known labels: "l0", ' in known
    assert "and 990 more" in known


def test_a_label_stands_once():
    with pytest.raises(DataError, match="a label occurs twice"):
        Labels(["a", "b", "a"])
