"""The measures of SQuAD, against values worked out by hand from the published definition; the no-answer threshold."""

from __future__ import annotations

import math
import string

import numpy as np
import pytest
from conftest import tries
from hypothesis import given, settings
from hypothesis import strategies as st

from berthead.tasks.answer_scores import answer_scores, best_threshold, exact, f1, normalised

QUICK = settings(max_examples=tries(200), deadline=None)
WORD = st.sampled_from(["the", "a", "an", "cat", "Cat", "cats", "dog", "dog.", "-", "...", "“dog”", "U.S.", "theatre"])
ANSWER = st.one_of(st.lists(WORD, max_size=5).map(" ".join), st.text(max_size=8))


# Normalisation


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", ""),
        ("  \t\n", ""),
        ("The Cat", "cat"),
        ("theatre an annex", "theatre annex"),
        ("a", ""),
        ("A. The an!", ""),
        ("...", ""),
        ("U.S.A.", "usa"),  # punctuation goes first, and so no article "a" is left
        ("the-cat", "thecat"),
        ("cat's  a\u00a0dog", "cats dog"),
        ("“The Cat”", "“ cat”"),  # not in string.punctuation, and so it stays; but it ends a word
        ("3–4 €5", "3–4 €5"),
        ("$5 & 10%", "5 10"),
        ("É a È", "é è"),
        ("àa", "àa"),  # a letter, and so no word ends there
        ("a_the", "athe"),
        ("ÇA", "ça"),
    ],
)
def test_normalised(text, wanted):
    assert normalised(text) == wanted


@QUICK
@given(text=ANSWER)
def test_normalised_texts_are_clean_and_their_white_space_does_not_matter(text):
    clean = normalised(text)
    assert not set(string.punctuation) & set(clean)
    assert clean == " ".join(clean.split())
    assert not {"a", "an", "the"} & set(clean.split())
    assert normalised(f" \n{text}\t") == clean


# One answer


@pytest.mark.parametrize(
    ("answer", "golds", "same", "share"),
    [
        ("cat", ["cat"], 1, 1),
        ("The cat.", ["a CAT"], 1, 1),
        ("dog", ["cat"], 0, 0),
        ("black cat", ["cat"], 0, 2 / 3),  # 1/2 and 1
        ("cat", ["the big black cat"], 0, 1 / 2),  # 1 and 1/3
        ("cat black", ["black cat"], 0, 1),  # the order of words does not count in F1
        ("cat cat", ["cat"], 0, 2 / 3),  # a repeated word counts once where gold has it once
        ("cat cat dog", ["cat cat"], 0, 4 / 5),  # 2/3 and 1
        ("black cat", ["dog", "a black cat", "cat"], 1, 1),  # the best gold answer counts
        ("black cat", ["dog", "cat", "big black cat"], 0, 4 / 5),
        ("cat", ["cat's"], 0, 0),
        ("“cat”", ["cat"], 0, 0),
        ("", [], 1, 1),
        ("", [""], 1, 1),
        ("...", [""], 1, 1),
        ("the", [], 1, 1),
        ("cat", [], 0, 0),
        ("cat", [""], 0, 0),
        ("", ["cat"], 0, 0),
        ("the", ["cat"], 0, 0),
        ("", ["...", "the"], 1, 1),  # all blank when normalised: as if there were no answer
        ("cat", ["..."], 0, 0),
        ("", ["...", "cat"], 0, 0),  # blank gold answers do not count beside others
        ("cat", ["...", "cat"], 1, 1),
    ],
)
def test_exact_and_f1_by_hand(answer, golds, same, share):
    assert exact(answer, golds) == same
    assert f1(answer, golds) == pytest.approx(share)


@QUICK
@given(answer=ANSWER, golds=st.lists(ANSWER, max_size=4), more=ANSWER, data=st.data())
def test_what_holds_for_all_answers(answer, golds, more, data):
    assert exact(answer, golds) in (0.0, 1.0)
    assert 0 <= exact(answer, golds) <= f1(answer, golds) <= 1
    shuffled = data.draw(st.permutations(golds))
    assert (exact(answer, shuffled), f1(answer, shuffled)) == (exact(answer, golds), f1(answer, golds))
    assert exact(answer, [answer]) == f1(answer, [answer]) == 1
    if any(map(normalised, golds)):
        assert f1(answer, [*golds, more]) >= f1(answer, golds)
    assert f1(answer, [more]) == pytest.approx(f1(more, [answer]))


@QUICK
@given(answer=st.lists(st.sampled_from("wxyz"), min_size=1), gold=st.lists(st.sampled_from("wxyz"), min_size=1))
def test_f1_is_twice_the_common_words_over_all_words(answer, gold):
    left = list(gold)
    common = sum(1 for word in answer if word in left and not left.remove(word))
    assert f1(" ".join(answer), [" ".join(gold)]) == pytest.approx(2 * common / (len(answer) + len(gold)))


# All answers


def test_rows_that_all_have_an_answer():
    scores = answer_scores(["the cat", "black dog", "cow"], [["cat"], ["dog", "white dog"], ["pig"]])
    assert scores == pytest.approx({"exact": 1 / 3, "f1": (1 + 2 / 3) / 3})


def test_some_rows_without_answer():
    scores = answer_scores(["cat", "", "dog", "the", "black dog"], [["cat"], [], [""], [], ["dog"]])
    assert scores == pytest.approx(
        {
            "exact": 3 / 5,
            "f1": (3 + 2 / 3) / 5,
            "has_answer_exact": 1 / 2,
            "has_answer_f1": (1 + 2 / 3) / 2,
            "no_answer_accuracy": 2 / 3,
            "rows_without_answer": 3,
        }
    )


def test_no_row_with_an_answer():
    scores = answer_scores(["", "cat"], [[], ["  "]])
    assert scores == {"exact": 0.5, "f1": 0.5, "no_answer_accuracy": 0.5, "rows_without_answer": 2}


def test_an_answer_of_punctuation_is_an_answer():
    assert answer_scores([""], [["..."]]) == {"exact": 1.0, "f1": 1.0}


@QUICK
@given(rows=st.lists(st.tuples(ANSWER, st.lists(ANSWER, max_size=3)), min_size=1, max_size=6))
def test_the_parts_add_up_to_the_whole(rows):
    answers, golds = zip(*rows, strict=True)
    scores = answer_scores(answers, golds)
    none = scores.get("rows_without_answer", 0)
    parts = none * scores.get("no_answer_accuracy", 0)
    for name in ("exact", "f1"):
        rest = (len(rows) - none) * scores.get(f"has_answer_{name}", scores[name])
        assert scores[name] * len(rows) == pytest.approx(parts + rest)


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match="got 2 answers; expected 1, one for each row"):
        answer_scores(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="no row"):
        answer_scores([], [])


# The threshold


def mean_f1(threshold, margins, right, has_answer):
    rows = zip(margins, right, has_answer, strict=True)
    return np.mean([share if margin >= threshold else float(not has) for margin, share, has in rows])


MARGIN = st.one_of(
    st.integers(-8, 8).map(lambda number: number / 4),
    st.floats(-1e6, 1e6),
    st.sampled_from([math.inf, -math.inf, 1e-320, 1.5e308, -1.5e308, np.nextafter(1.0, 2.0)]),
)


@st.composite
def questions(draw):
    """Margins, F1 if answered, and whether there is an answer."""
    rows = draw(st.lists(st.tuples(MARGIN, st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.booleans()), max_size=12))
    return [m for m, _, _ in rows], [share * has for _, share, has in rows], [has for _, _, has in rows]


@QUICK
@given(rows=questions())
def test_no_threshold_is_better(rows):
    threshold = best_threshold(*rows)
    assert math.isfinite(threshold)
    if not rows[0]:
        return
    finite = [margin for margin in rows[0] if math.isfinite(margin)]
    others = [0.0, *finite, *(np.nextafter(margin, math.inf) for margin in finite)]
    best = max(mean_f1(other, *rows) for other in others)
    assert mean_f1(threshold, *rows) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize(
    ("margins", "right", "has_answer", "wanted"),
    [
        ([1.0, 3.0], [0.0, 1.0], [False, True], 2.0),
        ([3.0, -2.0, 1.0], [1.0, 0.0, 0.0], [True, False, False], 2.0),
        ([4.0, 2.0, 1.0], [1.0, 0.5, 0.0], [True, True, False], 1.5),
        ([5.0, 5.0], [1.0, 0.0], [True, False], 4.995),  # of two equally good ones the one nearer to 0
        ([1.0, 2.0], [1.0, 1.0], [True, True], 0.999),  # all are answered
        ([1.0, 20.0], [0.0, 0.0], [False, False], 20.02),  # none is
        ([-2.0, -1.0], [0.0, 0.0], [False, False], -0.999),
        ([-3.0, -1.0, 1.0, 3.0], [0.0] * 4, [True] * 4, 0.0),  # nothing to choose by
        ([-math.inf, 1.0, math.inf], [0.0, 0.0, 1.0], [False, False, True], 1.001),
        ([math.inf, -math.inf], [0.0, 0.0], [False, True], 0.0),
        ([], [], [], 0.0),
    ],
)
def test_thresholds_by_hand(margins, right, has_answer, wanted):
    assert best_threshold(margins, right, has_answer) == pytest.approx(wanted)
    assert best_threshold(np.array(margins), np.array(right), np.array(has_answer, dtype=bool)) == pytest.approx(wanted)


def test_a_threshold_between_neighbouring_floats_keeps_them_apart():
    low, high = 1.0, float(np.nextafter(1.0, 2.0))
    assert best_threshold([low, high], [0.0, 1.0], [False, True]) == high


def test_the_threshold_needs_a_value_of_each_kind_for_each_question():
    with pytest.raises(ValueError, match="differ in length; expected one value for each question"):
        best_threshold([1.0], [1.0, 0.0], [True])
