"""Tag schemes and spans, against seqeval; the best path, against every path there is."""

from __future__ import annotations

import re
import warnings
from itertools import pairwise, product

import numpy as np
import pytest
from conftest import tries
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import BILOU, IOB1, IOB2, IOBES, IOE2, Tokens

from berthead.data.entities import Entity, entities, strict_entities, to_tags, unclosed
from berthead.data.tag_schemes import STANDARD, SchemeError, from_bio, letters_of, scheme_of, to_bio
from berthead.tasks.viterbi import allowed, viterbi

QUICK = settings(max_examples=tries(200), deadline=None)
LETTERS = {"BIO": "BI", "IOB1": "BI", "BIOES": "BIES"}
THEIRS = {"BIO": IOB2, "IOB1": IOB1, "BIOES": IOBES, "IOE2": IOE2}
LABELS = ["PER", "LOC", "A-B", "x_y", "-"]


def tag_of(letters, labels=LABELS):
    return st.one_of(st.just("O"), st.builds("{}-{}".format, st.sampled_from(letters), st.sampled_from(labels)))


def rows_of(letters, labels=LABELS, least=0):
    return st.lists(tag_of(letters, labels), min_size=least, max_size=12)


@st.composite
def spans(draw, labels=("PER", "LOC")):
    """Spans that do not overlap, in order, and the number of words."""
    found, words = [], 0
    for gap, length, label in draw(
        st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), st.sampled_from(labels)), max_size=5)
    ):
        found.append(Entity(label, words + gap, words + gap + length))
        words += gap + length
    return found, words + draw(st.integers(0, 2))


def written(found, words, scheme, letters=STANDARD):
    return from_bio(to_tags(found, words), scheme, letters)


def seqeval_entities(tags):
    """What seqeval's default mode finds."""
    return [Entity(label, first, last + 1) for label, first, last in get_entities(tags)]


def seqeval_strict(tags, scheme):
    """What its strict mode finds."""
    return [Entity(one.tag, one.start, one.end) for one in Tokens(tags, scheme).entities]


# The scheme


@pytest.mark.parametrize(
    ("rows", "scheme"),
    [
        ([["B-PER", "I-PER", "O"]], "BIO"),
        ([["B-PER", "O", "B-LOC"]], "BIO"),
        ([["I-PER", "O"], ["B-PER"]], "BIO"),  # B- at the start of a row is not behind an entity
        ([["I-PER", "O", "B-PER"]], "BIO"),
        ([["I-PER", "B-LOC"]], "BIO"),  # behind an entity, but of another label
        ([["B-PER", "I-PER", "B-PER"], ["I-LOC"]], "BIO"),
        ([["I-PER", "I-PER", "O"]], "IOB1"),
        ([["I-PER", "B-PER", "B-PER", "I-LOC"]], "IOB1"),
        ([["I-", "O", "B-"]], "BIO"),
        ([["S-PER", "O"]], "BIOES"),
        ([["B-PER", "E-PER"]], "BIOES"),
        ([["B-PER", "L-PER"], ["U-LOC"]], "BIOES"),
        ([["B-PER", "M-PER", "E-PER", "W-LOC"]], "BIOES"),
        ([["B_PER", "I_PER"]], "BIO"),
        ([["B-first_name", "I-first_name"]], "BIO"),
        ([["DET", "NOUN"]], "plain"),
        ([["V", "N", "O"]], "plain"),  # a letter of its own, such as a part of speech
        ([["PER", "PER", "O"]], "IO"),
        ([["I-PER", "E-PER", "O", "E-LOC"]], "IOE2"),
        ([["I-PER", "E-PER", "I-PER", "O", "I-LOC"]], "IOE1"),
        ([["S", "B", "E", "O"]], "BIOES"),
        ([["I", "B", "O"], ["I", "O"]], "IOB1"),
        ([["-LRB-", "NN", "PRP$", ",", "``"]], "plain"),
        ([["O", "O"]], "plain"),
        ([["B", "I", "O"]], "BIO"),
        ([["B", "I", "I"]], "plain"),
        ([["V-PST", "N-SG"]], "plain"),
        ([[]], "plain"),
        ([], "plain"),
    ],
)
def test_the_scheme_is_read_off_all_rows(rows, scheme):
    assert scheme_of(rows) == scheme
    assert scheme_of(iter(rows)) == scheme


@pytest.mark.parametrize(
    ("rows", "seen"),
    [
        ([["O", "B-PER"], ["NN", "I-PER"]], ['"B-PER"', '"NN"', "prefix"]),
        ([["NN", "S-PER"]], ['"S-PER"', '"NN"', "prefix"]),
        ([["B-PER"], ["I_PER"]], ['"B-PER"', '"I_PER"', '"-"']),
        ([["U-PER"], ["O", "S-PER"]], ['"U-PER"', '"S-PER"', "mean the same"]),
        ([["B-PER", "E-PER"], ["B-LOC", "L-LOC"]], ['"E-PER"', '"L-LOC"', "mean the same"]),
    ],
)
def test_a_mixture_is_refused_with_examples_of_both(rows, seen):
    with pytest.raises(ValueError, match="are mixed") as refused:
        scheme_of(rows)
    assert all(part in str(refused.value) for part in seen)


@pytest.mark.parametrize(
    ("row", "seen"),
    [
        (["I-PER", "O"], '"I-PER"'),
        (["O", "B-PER", "O"], '"B-PER"'),
        (["B-PER", "I-PER"], '"B-PER I-PER"'),
        (["E-PER"], '"E-PER"'),
        (["B-PER", "I-PER", "I-PER", "I-PER", "I-PER", "B-LOC", "E-LOC"], '"B-PER I-PER I-PER I-PER ..."'),
        (["B-PER", "E-LOC"], '"B-PER"'),
    ],
)
def test_entities_of_another_scheme_are_refused_where_ends_have_letters(row, seen):
    with pytest.raises(ValueError, match=re.escape(f'{seen} is not a whole entity beside tags such as "S-')):
        scheme_of([["S-MISC", "O"], row])


@pytest.mark.parametrize(
    ("rows", "letters"),
    [
        ([], "BIES-"),
        ([["DET"]], "BIES-"),
        ([["B-A", "I-A"]], "BIES-"),
        ([["B-A", "I-A", "L-A", "U-A"]], "BILU-"),
        ([["B_A", "M_A", "E_A", "W_A"]], "BMEW_"),
    ],
)
def test_the_letters_in_use(rows, letters):
    assert letters_of(rows) == letters


# There and back


@QUICK
@given(drawn=spans(), scheme=st.sampled_from([*THEIRS, "IOE1"]))
def test_well_formed_tags_come_back(drawn, scheme):
    found, words = drawn
    tags = written(found, words, scheme)
    assert entities(tags) == found
    assert to_bio(tags, scheme) == to_tags(found, words)
    assert from_bio(to_bio(tags, scheme), scheme) == tags


@QUICK
@given(drawn=spans(), scheme=st.sampled_from([*LETTERS, "IOE2"]))  # its IOE1 knows no single word before another
def test_well_formed_tags_are_so_to_seqeval(drawn, scheme):
    found, words = drawn
    assert seqeval_strict(written(found, words, scheme), THEIRS[scheme]) == found


@QUICK
@given(drawn=st.lists(spans(), min_size=1, max_size=4))
def test_the_scheme_of_written_spans_is_found(drawn):
    found = [one for row, _ in drawn for one in row]
    bioes = [written(row, words, "BIOES") for row, words in drawn]
    assert scheme_of(bioes) == ("BIOES" if found else "plain")
    assert scheme_of([written(row, words, "BIO") for row, words in drawn]) == ("BIO" if found else "plain")
    assert scheme_of([written(row, words, "IOB1") for row, words in drawn]) == ("IOB1" if found else "plain")
    assert scheme_of([written(row, words, "IOE2") for row, words in drawn]) == ("IOE2" if found else "plain")


@given(drawn=spans())
@QUICK
def test_tags_without_letters_come_back_where_no_two_touch(drawn):
    found, words = drawn
    tags = written(found, words, "IO")
    assert tags == [tag[2:] or tag for tag in to_tags(found, words)]
    merged = to_bio(tags, "IO")
    assert from_bio(merged, "IO") == tags
    if all(one.end < other.first or one.label != other.label for one, other in pairwise(found)):
        assert merged == to_tags(found, words)


@pytest.mark.parametrize("scheme", ["BIO", "IOB1", "BIOES"])
@given(drawn=spans(labels=("_",)))
@QUICK
def test_letters_alone_come_back(scheme, drawn):
    found, words = drawn
    tags = written(found, words, scheme, "BIES ")
    assert set(tags) <= set("BIESO")
    assert to_bio(tags, scheme) == to_tags(found, words)
    assert from_bio(to_bio(tags, scheme), scheme, "BIES ") == tags


@pytest.mark.parametrize(
    ("rows", "saw", "row"),
    [
        ([["o"], ["b-per", "i-per", "o"]], 'tags such as "b-per" are of no scheme; expected "B-per", and "O"', 1),
        ([["O"], ["PER-B", "PER-I", "O"]], 'tags such as "PER-B" are of no scheme; expected the letter before', 1),
        ([["B-PER"], ["O"], ["NN"]], '"B-PER" and "NN" are mixed', 2),
        ([["S-PER"], ["B-PER", "O"], ["S-LOC", "B-X"]], '"B-PER" is not a whole entity', 1),
    ],
)
def test_tags_of_no_scheme_are_told_with_their_row(rows, saw, row):
    with pytest.raises(SchemeError, match=re.escape(saw)) as refused:
        scheme_of(rows)
    assert refused.value.row == row


def test_a_few_entities_without_an_end_tag_are_read_as_in_other_schemes():
    rows = [["B-PER", "E-PER", "O", "S-LOC"]] * 3 + [["B-PER", "O"]]
    assert scheme_of(rows) == "BIOES"
    assert unclosed(rows[-1]) == [Entity("PER", 0, 1)]
    assert from_bio(to_bio(rows[-1], "BIOES"), "BIOES") == ["S-PER", "O"]


@pytest.mark.parametrize("letters", ["BILU-", "BMEW-", "BMES-", "BIES_", "BILU_"])
@given(drawn=spans())
@QUICK
def test_other_letters_come_back(letters, drawn):
    found, words = drawn
    tags = written(found, words, "BIOES", letters)
    assert entities(tags) == found == strict_entities(tags, "BIOES")
    assert from_bio(to_bio(tags, "BIOES"), "BIOES", letters) == tags
    assert {tag[0] for tag in tags} <= set(letters) | {"O"}


@given(tags=rows_of("BIES"))
@QUICK
def test_ill_formed_tags_are_read_as_seqeval_reads_them(tags):
    bio = to_bio(tags, "BIOES")
    assert len(bio) == len(tags)
    assert get_entities(bio) == get_entities(tags)
    assert entities(bio) == seqeval_entities(bio)


@given(tags=rows_of("BI"))
@QUICK
def test_every_bio_text_can_be_said_in_every_scheme(tags):
    for scheme in LETTERS:
        again = from_bio(tags, scheme)
        assert entities(again) == entities(tags)


def test_plain_tags_stay():
    tags = ["DET", "NOUN", "I", "O"]
    assert to_bio(tags, "plain") == tags == from_bio(tags, "plain")


@pytest.mark.parametrize("call", [to_bio, from_bio, strict_entities])
def test_an_unknown_scheme_is_refused(call):
    with pytest.raises(ValueError, match=r'"IOB2"; expected one of BIO, IOB1, BIOES'):
        call(["O"], "IOB2")


# Entities


@QUICK
@given(tags=rows_of("BIES"))
def test_entities_are_those_of_seqeval(tags):
    assert entities(tags) == seqeval_entities(tags)


@QUICK
@given(tags=st.lists(st.text("BIESO-PX.", min_size=1, max_size=5), max_size=10))
def test_even_of_no_sort_of_tags(tags):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = seqeval_entities(tags)
    assert entities(tags) == theirs


@pytest.mark.parametrize("scheme", list(LETTERS))
@given(data=st.data())
@QUICK
def test_strict_entities_are_those_of_seqeval(scheme, data):
    tags = data.draw(rows_of(LETTERS[scheme], ["PER", "LOC", "A-", "-"]))
    assert strict_entities(tags, scheme) == seqeval_strict(tags, THEIRS[scheme])


@QUICK
@given(tags=rows_of("BILU", ["PER", "LOC"]))
def test_strict_bilou_is_that_of_seqeval(tags):
    assert strict_entities(tags, "BIOES") == seqeval_strict(tags, BILOU)


@pytest.mark.parametrize(("tags", "scheme"), [(["E-PER"], "BIO"), (["O", "S-PER"], "IOB1"), (["NN"], "BIOES")])
def test_strict_entities_refuse_letters_of_another_scheme(tags, scheme):
    with pytest.raises(ValueError, match=f'"{tags[-1]}" is not a {scheme} tag; expected one of the prefixes'):
        strict_entities(tags, scheme)


def test_an_underscore_is_a_separator_too():
    tags = ["B_PER", "I_PER", "O", "I_x-y"]
    assert entities(tags) == [Entity("PER", 0, 2), Entity("x-y", 3, 4)]
    assert strict_entities(tags, "BIO") == [Entity("PER", 0, 2)]
    assert from_bio(to_bio(tags, "BIO"), "BIO", "BIES_") == ["B_PER", "I_PER", "O", "B_x-y"]


# Spans


@QUICK
@given(drawn=spans(), data=st.data())
def test_spans_come_back_from_tags(drawn, data):
    found, words = drawn
    assert entities(to_tags(data.draw(st.permutations(found)), words)) == found


def test_overlapping_spans_are_refused_by_name():
    with pytest.raises(ValueError, match='"PER" over words 0 to 2 and "LOC" over words 2 to 3 overlap'):
        to_tags([Entity("LOC", 2, 4), Entity("PER", 0, 3)], 5)


@pytest.mark.parametrize("span", [(-1, 2), (2, 2), (3, 2), (4, 6)])
def test_spans_that_are_none_are_refused(span):
    with pytest.raises(ValueError, match="is not in the row; expected a span within its 5 words"):
        to_tags([Entity("PER", *span)], 5)


# Paths


def test_what_may_follow_what():
    tags = ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]
    start, step = allowed(tags)
    assert start.tolist() == [True, True, False, False, True]
    assert step[:, [0, 1, 4]].all()
    assert [tags[i] for i in np.flatnonzero(step[:, 2])] == ["B-LOC", "I-LOC"]
    assert [tags[i] for i in np.flatnonzero(step[:, 3])] == ["B-PER", "I-PER"]


@pytest.mark.parametrize("tags", [["DET", "NOUN", "I", "O"], ["O"], []])
def test_plain_tags_follow_each_other_freely(tags):
    start, step = allowed(tags)
    assert start.shape == (len(tags),)
    assert step.shape == (len(tags), len(tags))
    assert start.dtype == step.dtype == bool
    assert start.all()
    assert step.all()


@QUICK
@given(tags=rows_of("BI", ["PER", "LOC"], least=1))
def test_what_is_allowed_is_what_is_well_formed(tags):
    names = sorted(set(tags))
    start, step = allowed(names)
    numbers = [names.index(tag) for tag in tags]
    fine = start[numbers[0]] and all(step[a, b] for a, b in pairwise(numbers))
    assert fine == (to_bio(tags, "BIO") == tags)


# eighths add up without rounding, so equal paths are equal
SCORE = st.one_of(st.integers(-8, 8).map(lambda number: number / 8), st.just(-np.inf))


@QUICK
@given(data=st.data(), words=st.integers(1, 4), tags=st.integers(1, 3))
def test_viterbi_finds_the_best_of_all_paths(data, words, tags):
    def some(*shape):
        size = int(np.prod(shape))
        return np.array(data.draw(st.lists(SCORE, min_size=size, max_size=size))).reshape(shape)

    emissions, start, step, end = some(words, tags), some(tags), some(tags, tags), some(tags)

    def score(path):
        steps = sum(step[a, b] for a, b in pairwise(path))
        return start[path[0]] + sum(emissions[word, tag] for word, tag in enumerate(path)) + steps + end[path[-1]]

    paths = list(product(range(tags), repeat=words))
    best = max(map(score, paths))
    got = viterbi(emissions, start, step, end)
    assert got.dtype == np.int64
    assert score(tuple(got)) == best
    if best > -np.inf:
        assert tuple(got) == min((path for path in paths if score(path) == best), key=lambda path: path[::-1])


def test_viterbi_without_rules_is_argmax():
    emissions = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    zeros = np.zeros(7, dtype=np.float32)
    assert viterbi(emissions, zeros, np.zeros((7, 7)), zeros).tolist() == emissions.argmax(1).tolist()


def test_viterbi_of_no_word_is_no_path():
    assert viterbi(np.zeros((0, 3)), np.zeros(3), np.zeros((3, 3)), np.zeros(3)).tolist() == []


def test_viterbi_under_rules_writes_well_formed_tags():
    tags = ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]
    start, step = (np.where(rule, 0.0, -np.inf) for rule in allowed(tags))
    random = np.random.default_rng(1)
    for _ in range(50):
        path = viterbi(random.normal(size=(9, 5)), start, step, np.zeros(5))
        names = [tags[number] for number in path]
        assert to_bio(names, "BIO") == names
