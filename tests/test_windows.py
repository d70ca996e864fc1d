"""Long inputs as windows: every token is read, every word is answered once, where it has most context."""

from __future__ import annotations

import unicodedata
from itertools import pairwise

import numpy as np
import pytest
from conftest import WORDS, tries
from hypothesis import example, given, settings
from hypothesis import strategies as st
from toy_tasks import fit_task, span_rows

import berthead
from berthead.errors import UsageError
from berthead.records import Example
from berthead.text.layout import Layout, ranges
from berthead.text.packing import pack, plan
from berthead.text.tokenizer import Tokenizer
from berthead.text.windows import (
    EncodedExample,
    LengthPolicy,
    owners,
    read_choices,
    read_questions,
    read_texts,
    read_words,
    whole_characters,
    window_starts,
    windows_in_parts,
)

# Words of one token each, all different: where a token of a row comes from is never in doubt.
SINGLE = [word for word in WORDS if not word.startswith("##")]
distinct = st.permutations(SINGLE)
most_tokens = st.integers(8, 24)
any_word = st.text(st.sampled_from("abcxyz.!?éß漢字🙂 "), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def tokenizer(tiny_bert) -> Tokenizer:
    return Tokenizer.from_folder(tiny_bert)


def starts_in(row, ids: list[int], first: int, end: int) -> int:
    """Where the part of a row begins in the tokens it was cut from."""
    part = row.ids[first:end].tolist()
    start = ids.index(part[0])
    assert part == ids[start : start + len(part)]
    return start


def check_windows(starts: list[int], length: int, room: int, shared: int) -> None:
    assert starts[0] == 0
    if length <= room:
        assert starts == [0]
        return
    assert starts[-1] + room == length
    assert all(0 < after - before <= room - shared for before, after in pairwise(starts))
    assert len(starts) == -(-(length - shared) // (room - shared))  # as few as there must be


# The arithmetic


@given(length=st.integers(0, 3000), room=st.integers(1, 80), data=st.data())
@example(length=10**6, room=509, data=None)
@settings(deadline=None, max_examples=tries(100))
def test_windows_are_full_and_share_what_they_should(length, room, data):
    shared = data.draw(st.integers(0, room - 1)) if data else 127
    starts = window_starts(length, room, shared)
    check_windows(starts, length, room, shared)
    gaps = {after - before for before, after in pairwise(starts)}
    assert not gaps or max(gaps) - min(gaps) <= 1  # evenly spaced


@given(length=st.integers(1, 400), room=st.integers(1, 40), data=st.data())
@settings(deadline=None, max_examples=tries(100))
def test_the_owner_is_the_window_with_most_context_on_the_shorter_side(length, room, data):
    starts = window_starts(length, room, data.draw(st.integers(0, room - 1)))
    places = np.arange(length)
    found = owners(starts, room, places)
    for place, window in enumerate(found):
        context = [min(place - start, start + room - 1 - place) for start in starts]  # below 0: not inside
        assert context[window] == max(context) >= 0 or len(starts) == 1
    assert (np.diff(found) >= 0).all()


@given(
    text=st.lists(st.sampled_from(["a", "e\u0301", "\u0301", "\u200d", "ก", "ิ", " ", "\u093e", "🙂", "\ufe0f"])).map(
        "".join
    )
)
@settings(deadline=None, max_examples=tries(100))
def test_ends_move_behind_marks_and_never_behind_the_next_start(text):
    kept = [n for n, char in enumerate(text) if unicodedata.category(char)[0] not in "MZC"]
    starts, ends = np.array(kept, dtype=np.int64), np.array(kept, dtype=np.int64) + 1
    before = ends.copy()
    moved = whole_characters(text, starts, ends)
    assert (ends == before).all()
    for place, (end, new) in enumerate(zip(ends, moved, strict=True)):
        limit = starts[place + 1] if place + 1 < len(starts) else len(text)
        passed = text[end:new]
        assert all(unicodedata.category(char) in ("Mn", "Mc", "Me", "Cf") for char in passed)
        assert new == limit or unicodedata.category(text[new]) not in ("Mn", "Mc", "Me", "Cf")
        assert new <= limit


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)), max_size=6))
@settings(deadline=None)
def test_ranges_are_the_numbers_from_first_to_end(pairs):
    firsts, sizes = (np.array([pair[n] for pair in pairs], dtype=np.int64) for n in (0, 1))
    wanted = [number for first, size in pairs for number in range(first, first + size)]
    assert ranges(firsts, firsts + sizes).tolist() == wanted


# Whole texts and pairs


@given(words=distinct, length=st.integers(1, 49), most=most_tokens, stride=st.none() | st.integers(0, 5))
@settings(deadline=None, max_examples=tries(60))
def test_a_long_text_is_read_whole(words, length, most, stride, tokenizer):
    text = " ".join(words[:length])
    ids = tokenizer.ids([text])[0]
    (one,) = read_texts(tokenizer, [text], None, LengthPolicy(most, "window", stride))
    room = most - 2
    assert all(len(row.ids) == min(most, length + 2) for row in one.rows)
    assert all((row.ids[0], row.ids[-1]) == (one.rows[0].ids[0], one.rows[0].ids[-1]) for row in one.rows)
    check_windows([starts_in(row, ids, 1, -1) for row in one.rows], length, room, stride or 0)
    assert (one.n_tokens, one.truncated, one.error) == (length + 2, False, None)
    assert (one.n_units, one.n_windows) == (1, len(one.rows))


@given(words=distinct, first=st.integers(1, 40), second=st.integers(1, 40), most=most_tokens)
@settings(deadline=None, max_examples=tries(100))
def test_of_a_long_pair_the_shorter_side_stands_in_every_window(words, first, second, most, tokenizer):
    second = min(second, len(words) - first)
    pair = " ".join(words[:first]), " ".join(words[first : first + second])
    a, b = (tokenizer.ids([text])[0] for text in pair)
    (one,) = read_texts(tokenizer, [pair[0]], [pair[1]], LengthPolicy(most, "window", 0))
    room = most - 3
    assert one.n_tokens == first + second + 3
    if first + second <= room:
        assert len(one.rows) == 1
    still, moving = (b, a) if first > second else (a, b)
    kept = still if first + second <= room else still[: room // 2]
    assert one.truncated == (len(kept) < len(still))
    starts = []
    for row in one.rows:
        ids, segments = row.ids.tolist(), row.segments.tolist()
        assert len(ids) <= most
        left = ids[1 : segments.index(1) - 1]
        right = ids[segments.index(1) : -1]
        assert (right if first > second else left) == kept
        part = left if first > second else right
        start = moving.index(part[0])
        assert part == moving[start : start + len(part)]
        starts.append(start)
    check_windows(starts, len(moving), room - len(kept), 0)


@given(words=distinct, first=st.integers(1, 40), second=st.integers(0, 40), most=most_tokens)
@example(words=SINGLE, first=9, second=9, most=20)
@settings(deadline=None, max_examples=tries(60))
def test_truncated_texts_keep_their_first_tokens(words, first, second, most, tokenizer):
    second = min(second, len(words) - first)
    texts, pairs = [" ".join(words[:first])], [" ".join(words[first : first + second])] if second else None
    (one,) = read_texts(tokenizer, texts, pairs, LengthPolicy(most, "truncate"))
    (wanted,) = tokenizer.encode(texts, pairs, most)
    (row,) = one.rows
    assert row.ids.tolist() == wanted.ids.tolist()
    assert row.segments.tolist() == wanted.segments.tolist()
    assert (one.n_tokens, one.truncated, one.error) == (wanted.n_tokens, wanted.truncated, None)
    (refused,) = read_texts(tokenizer, texts, pairs, LengthPolicy(most, "error"))
    assert bool(refused.error) == wanted.truncated
    if refused.error:
        room = most - (3 if pairs else 2)
        assert refused.error == f"is too long: {first + second} tokens where {room} fit (--on-long error)"


@given(
    words=distinct, question=st.integers(1, 12), lengths=st.lists(st.integers(1, 18), min_size=2, max_size=3),
    on_long=st.sampled_from(["window", "truncate", "error"]),
)  # fmt: skip
@settings(deadline=None, max_examples=tries(60))
def test_each_choice_is_read_as_a_pair_with_its_question(words, question, lengths, on_long, tokenizer):
    asked, rest = " ".join(words[:question]), words[question:]
    choices = [" ".join(rest[:length]) for length in lengths]
    policy = LengthPolicy(16, on_long)
    (one,) = read_choices(tokenizer, [Example(asked, choices=tuple(choices))], policy)
    alone = [read_texts(tokenizer, [asked], [choice], policy)[0] for choice in choices]
    assert [row.ids.tolist() for row in one.rows] == [row.ids.tolist() for pair in alone for row in pair.rows]
    assert one.groups == tuple(n for n, pair in enumerate(alone) for _ in pair.rows)
    assert one.n_units == len(choices)
    assert one.n_windows == max(len(pair.rows) for pair in alone)
    assert one.n_tokens == max(pair.n_tokens for pair in alone)
    assert one.truncated == any(pair.truncated for pair in alone)
    wrong = [n for n, pair in enumerate(alone, 1) if pair.error]
    assert (one.error or "").startswith(f"choice {wrong[0]}: is too long" if wrong else "")
    assert bool(one.error) == bool(wrong)


# Words


def most_context(starts: list[int], room: int, place: int) -> int:
    context = [min(place - start, start + room - 1 - place) for start in starts]
    return max(context)


@given(
    words=distinct,
    length=st.integers(1, 49),
    most=most_tokens,
    stride=st.none() | st.integers(0, 5),
    whole=st.booleans(),
)
@settings(deadline=None, max_examples=tries(100))
def test_every_word_of_a_text_is_answered_once(words, length, most, stride, whole, tokenizer):
    text = " ".join(words[:length])
    ids, room = tokenizer.ids([text])[0], most - 2
    (one,) = read_words(tokenizer, [Example(text)], LengthPolicy(most, "window", stride), whole=whole)
    starts = [starts_in(row, ids, 1, -1) for row in one.rows]
    check_windows(starts, length, room, room // 4 if stride is None else stride)
    assert (one.n_tokens, one.truncated, one.error) == (length + 2, False, None)
    units = list(zip(*(getattr(one.units, name).tolist() for name in ("window", "token", "start", "end")), strict=True))
    assert one.units.window.tolist() == sorted(one.units.window)
    wholes = [unit for unit in units if unit[2] < 0]
    assert wholes == ([(n, 0, -1, -1) for n in range(len(starts))] if whole else [])
    answered = [unit for unit in units if unit[2] >= 0]
    assert [text[start:end] for _, _, start, end in answered] == list(words[:length])
    for place, (window, token, _, _) in enumerate(answered):
        assert one.rows[window].ids[token] == ids[place]
        if length > room:
            context = min(place - starts[window], starts[window] + room - 1 - place)
            assert context == most_context(starts, room, place)
    if whole:
        firsts = [units.index(unit) for unit in wholes]
        assert all(units[first][0] > units[first - 1][0] for first in firsts[1:])


@given(words=st.lists(any_word, min_size=1, max_size=20), most=most_tokens, whole=st.booleans())
@settings(deadline=None, max_examples=tries(100))
def test_every_given_word_is_answered_once_at_its_first_token(words, most, whole, tokenizer):
    text, room = " ".join(words), most - 2
    (one,) = read_words(tokenizer, [Example(text, words=tuple(words))], LengthPolicy(most), whole=whole)
    pieces = tokenizer.word_ids([words])[0]
    assert all(pieces)
    firsts = np.cumsum([0, *map(len, pieces)])
    starts = window_starts(int(firsts[-1]), room, room // 4)
    words_alone = one.units.start >= 0
    assert [text[a:b] for a, b in zip(one.units.start[words_alone], one.units.end[words_alone], strict=True)] == words
    window, token = one.units.window[words_alone], one.units.token[words_alone]
    assert len(one.rows) == len(starts)
    for number, piece in enumerate(pieces):
        assert one.rows[window[number]].ids[token[number]] == piece[0]
        assert starts[window[number]] + token[number] - 1 == firsts[number]
        if len(starts) > 1:
            start = starts[window[number]]
            found = min(firsts[number] - start, start + room - 1 - firsts[number])
            assert found == most_context(starts, room, int(firsts[number]))
    assert one.n_tokens == firsts[-1] + 2


@given(words=distinct, length=st.integers(1, 49), most=most_tokens, given_words=st.booleans(), whole=st.booleans())
@settings(deadline=None, max_examples=tries(60))
def test_of_truncated_words_the_first_are_answered(words, length, most, given_words, whole, tokenizer):
    text = " ".join(words[:length])
    case = Example(text, words=tuple(words[:length]) if given_words else None)
    (one,) = read_words(tokenizer, [case], LengthPolicy(most, "truncate"), whole=whole)
    read = min(length, most - 2)
    assert len(one.rows) == 1
    assert one.truncated == (read < length)
    assert one.n_units == read + whole
    assert len(one.units.start) == length + whole  # all words keep their places, for tags that are given
    assert [text[a:b] for a, b in zip(one.units.start[whole:], one.units.end[whole:], strict=True)] == words[:length]
    assert one.rows[0].ids[one.units.token[whole:]].tolist() == tokenizer.ids([text])[0][:read]
    (refused,) = read_words(tokenizer, [case], LengthPolicy(most, "error"), whole=whole)
    assert bool(refused.error) == (read < length)


def test_a_word_of_many_windows_is_answered_at_its_first_token(tokenizer):
    (one,) = read_words(tokenizer, [Example("a", words=("cat", "b" * 90, "dog"))], LengthPolicy(12), whole=True)
    assert one.n_windows > 8
    assert one.units.start[one.units.start >= 0].tolist() == [0, 4, 95]
    assert one.units.window[one.units.start >= 0].tolist() == [0, 0, one.n_windows - 1]
    assert one.units.window[one.units.start < 0].tolist() == list(range(one.n_windows))


@pytest.mark.parametrize("text", ["\u200b", "\u0301", "\x07"])
def test_a_text_without_a_token_has_a_row_and_no_word(text, tokenizer):
    (one,) = read_words(tokenizer, [Example(text)], LengthPolicy(12), whole=False)
    assert (len(one.rows), one.n_units, one.n_tokens, one.error) == (1, 0, 2, None)
    (one,) = read_questions(tokenizer, [Example("cat", text)], LengthPolicy(12))
    assert (len(one.rows), one.units.start.tolist()) == (1, [-1])


# Questions


@given(
    words=distinct, question=st.integers(1, 20), context=st.integers(1, 40), most=st.integers(10, 24),
    stride=st.none() | st.integers(0, 2),
)  # fmt: skip
@settings(deadline=None, max_examples=tries(100))
def test_every_token_of_a_context_is_in_a_window_and_the_question_in_none_of_the_units(
    words, question, context, most, stride, tokenizer
):
    context = min(context, len(words) - question)
    asked, text = " ".join(words[:question]), " ".join(words[question : question + context])
    a, b = tokenizer.ids([asked, text])
    (one,) = read_questions(tokenizer, [Example(asked, text)], LengthPolicy(most, "window", stride))
    room = most - 3
    kept = a[: max(room // 2, room - context)]
    left = room - len(kept)
    starts, seen = [], set()
    for number, row in enumerate(one.rows):
        ids = row.ids.tolist()
        assert len(ids) <= most
        assert ids[1 : 1 + len(kept)] == kept
        begins = 2 + len(kept)
        starts.append(starts_in(row, b, begins, -1))
        inside = one.units.window == number
        token, start, end = (getattr(one.units, name)[inside] for name in ("token", "start", "end"))
        assert (token[0], start[0], end[0]) == (0, -1, -1)
        assert token[1:].tolist() == list(range(begins, len(ids) - 1))
        assert (row.segments[token[1:]] == 1).all()
        for place, first, last in zip(token[1:], start[1:], end[1:], strict=True):
            assert tokenizer.ids([text[first:last]])[0] == [ids[place]]
            seen.add((first, last))
    check_windows(starts, context, left, left // 4 if stride is None else stride)
    assert [text[first:last] for first, last in sorted(seen)] == words[question : question + context]
    assert (one.n_tokens, one.truncated) == (question + context + 3, len(kept) < question)
    assert (one.units.window == sorted(one.units.window)).all()


@given(words=distinct, question=st.integers(1, 30), context=st.integers(1, 39))
@example(words=SINGLE, question=30, context=1)
@settings(deadline=None, max_examples=tries(60))
def test_of_a_truncated_context_the_first_tokens_are_read(words, question, context, tokenizer):
    asked, text = " ".join(words[:question]), " ".join(words[question : question + context])
    (one,) = read_questions(tokenizer, [Example(asked, text)], LengthPolicy(24, "truncate"))
    context = min(context, len(words) - question)
    asked_whole = question <= max(10, 21 - context)
    read = min(context, 21 - question if asked_whole else 21 - max(10, 21 - context))
    assert len(one.rows) == 1
    assert [text[a:b] for a, b in zip(one.units.start, one.units.end, strict=True) if a >= 0] == words[question:][:read]
    assert one.truncated == (question + context > 21)
    (refused,) = read_questions(tokenizer, [Example(asked, text)], LengthPolicy(24, "error"))
    assert bool(refused.error) == one.truncated


# Parts and layouts


def inputs_of_all_kinds(tokenizer: Tokenizer, lengths: list[int], kind: str) -> list[EncodedExample]:
    examples = [Example("cat " * n, "dog " * (2 * n) + "ran", choices=("a " * n, "b")) for n in lengths]
    policy = LengthPolicy(12)
    if kind == "texts":
        return read_texts(tokenizer, [one.text for one in examples], None, policy)
    if kind == "questions":
        return read_questions(tokenizer, examples, policy)
    if kind == "choices":
        return read_choices(tokenizer, examples, policy)
    return read_words(tokenizer, examples, policy, whole=kind == "joint")


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6), budget=st.integers(1, 200),
    kind=st.sampled_from(["texts", "questions", "choices", "words", "joint"]),
)  # fmt: skip
@settings(deadline=None, max_examples=tries(60))
def test_a_layout_finds_each_unit_in_one_pack(lengths, budget, kind, tokenizer):
    inputs = inputs_of_all_kinds(tokenizer, lengths, kind)
    layout = Layout(inputs)
    assert [row.ids.tolist() for row in layout.rows] == [row.ids.tolist() for one in inputs for row in one.rows]
    assert np.diff(layout.row_starts).tolist() == [len(one.rows) for one in inputs]
    assert np.diff(layout.unit_starts).tolist() == [one.n_units for one in inputs]
    assert layout.n_units == sum(one.n_units for one in inputs)
    assert layout.by_token == (kind in ("questions", "words", "joint"))
    assert layout.plain == (kind == "texts" and all(len(one.rows) == 1 for one in inputs))
    chosen = np.array([len(inputs) - 1, 0])
    for name in ("row", "unit"):
        edges = getattr(layout, f"{name}_starts")
        wanted = [number for one in chosen for number in range(edges[one], edges[one + 1])]
        assert getattr(layout, f"{name}s_of")(chosen).tolist() == wanted
    if not layout.by_token:
        units = [first + group for first, one in zip(layout.unit_starts, inputs, strict=False)
                 for group in (one.groups or (0,) * len(one.rows))]  # fmt: skip
        assert layout.unit_of_row.tolist() == units
        return
    answered = {}
    for rows in plan([len(row.ids) for row in layout.rows], budget):
        packed = pack(layout.rows, rows)
        units, tokens = layout.units_in(packed)
        for unit, token in zip(units.tolist(), tokens.tolist(), strict=True):
            assert unit not in answered
            row = int(np.searchsorted(packed.starts, token, side="right")) - 1
            answered[unit] = int(packed.row[row]), token - int(packed.starts[row])
    wanted, before, number = {}, 0, 0
    for one in inputs:
        for window, token in zip(one.units.window.tolist(), one.units.token.tolist(), strict=True):
            wanted[number] = before + window, token
            number += 1
        before += len(one.rows)
    assert answered == wanted


def test_a_layout_of_nothing_is_empty():
    layout = Layout([])
    assert (layout.n_units, layout.rows, layout.plain) == (0, [], True)


@given(length=st.integers(1, 200), most=st.integers(1, 5), kind=st.sampled_from(["questions", "words", "joint"]))
@settings(deadline=None, max_examples=tries(60))
def test_parts_of_very_long_inputs_are_the_whole(length, most, kind, tokenizer):
    (one,) = inputs_of_all_kinds(tokenizer, [length], kind)
    targets = np.arange(one.n_units * 2).reshape(-1, 2)
    parts = windows_in_parts(one, targets, most)
    assert all(1 <= len(part.rows) <= most for part, _ in parts)
    rows = [row for part, _ in parts for row in part.rows]
    assert [row.ids.tolist() for row in rows] == [row.ids.tolist() for row in one.rows]
    assert np.concatenate([target for _, target in parts]).tolist() == targets.tolist()
    assert all(len(target) == part.n_units for part, target in parts)
    offsets = np.cumsum([0, *(len(part.rows) for part, _ in parts)])
    window = [part.units.window + offset for (part, _), offset in zip(parts, offsets, strict=False)]
    assert np.concatenate(window).tolist() == one.units.window.tolist()
    for name in ("token", "start", "end"):
        found = np.concatenate([getattr(part.units, name) for part, _ in parts])
        assert found.tolist() == getattr(one.units, name).tolist()


# Strides


def test_a_stride_that_leaves_no_room_is_a_usage_error(tiny_bert):
    with pytest.raises(UsageError, match=r"stride: is 13, but a window holds 13 tokens .* 0 to 12"):
        berthead.fit(span_rows(9), task="span", encoder=str(tiny_bert), max_tokens=16, stride=13, epochs=1, quiet=True)


def test_a_question_that_leaves_less_than_the_stride_is_read_in_windows_that_share_half(tiny_bert):
    model = fit_task(tiny_bert, "span", max_tokens=24, stride=12, epochs=1)
    rows = [("a b", "red cat " * 20), ("the dog " * 10, "red cat " * 20), ("a b", "red")]
    predictions = model.predict(rows)
    assert [one.error for one in predictions] == [None, None, None]
    assert [one.n_windows for one in predictions] == [1 + -(-(40 - 19) // (19 - 12)), 1 + -(-(40 - 11) // (11 - 5)), 1]
