"""Every span is a part of the user's own text, whatever characters it holds and however long it is."""

from __future__ import annotations

import csv
import json
import random
import unicodedata
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import tries, write_csv, write_jsonl
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from toy_tasks import FILLERS, TAGS, fit_task, span_rows, tag_rows

import berthead
from berthead.data.labels import Labels
from berthead.errors import ModelError
from berthead.jobs.files import predict_file
from berthead.model.checkpoint import read_checkpoint
from berthead.options import PredictOptions
from berthead.records import Example
from berthead.tasks import Batch, Classify, Extract, Joint, Tag
from berthead.tasks.joint import TagsAndLabel
from berthead.tasks.marks import Mark
from berthead.tasks.span import Gold
from berthead.text.tokenizer import Tokenizer
from berthead.text.windows import LengthPolicy

# Whole words of a user, of the kinds that offsets go wrong at.
WORDS = [
    "👨‍👩‍👧‍👦", "🇩🇪", "👍🏽", "1️⃣", "❤️", "e\u0301te\u0301", "a\u0323\u0302", "Zoë", "مُحَمَّد", "שָׁלוֹם", "سلام", "漢字",
    "ｶﾞ", "한국어", "\u1112\u1161\u11ab", "नमस्ते", "க்ஷி", "นี้", "ﬁn", "ﬃ", "İstanbul", "Straße", "ǆ", "𝕏𝔸", "x\u200by",
    "so\u00adft", "ke\ufe0fy", "good", "great", "bad", "red", "cat", "unheard", "C\u0327a",
]  # fmt: skip
BLANKS = [" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "\u0085", " \u200b "]
OTHERS = [
    "\u200d", "\ufeff", "\x00", "\x07", "\ufffd", "\ud800",
    "\udc00", "\ue000", "\u0301", "\u200f", "\u202e", "[SEP]", "[MASK]",
    "##a", ".", "-", "“", "،", "。", "½", "Ⅳ", "a" * 120,
]  # fmt: skip
any_text = st.lists(st.sampled_from(WORDS + BLANKS + OTHERS) | st.text(max_size=4), min_size=1, max_size=14).map(
    "".join
)
file_text = any_text.map(lambda text: text.encode("utf-8", "ignore").decode().replace("\x00", "")).filter(str.strip)
TAG = Tag(("O", "B-X", "I-X", "B-Y", "I-Y"))
JOINT = Joint(TAG, Classify(Labels(("a", "b"))))


@pytest.fixture(scope="module", params=["tiny", "minilm"])
def tokenizer(request, tiny_bert) -> Tokenizer:
    """The tokenizer of the tiny encoder, which knows few words, and that of the packaged one."""
    try:
        return Tokenizer.from_folder(tiny_bert if request.param == "tiny" else read_checkpoint("minilm").folder)
    except ModelError as error:
        pytest.skip(str(error))


def check(text: str, spans, *, ordered: bool = True) -> None:
    for span in spans:
        assert span.text == text[span.start : span.end]
        assert span.text.strip()
        assert 0 <= span.start < span.end <= len(text)
        assert span.score is None or -1e-6 <= span.score <= 1 + 1e-6
    if ordered:
        assert all(one.end <= other.start for one, other in pairwise(spans))


def answers_to(task, tokenizer: Tokenizer, examples: list[Example], seed: int, most: int = 12):
    """What the task makes of random logits."""
    inputs = task.encode(tokenizer, examples, LengthPolicy(most))
    units = sum(one.n_units for one in inputs)
    logits = np.random.default_rng(seed).normal(size=(units, task.outputs), scale=3).astype(np.float32)
    return task.decode(logits, Batch(examples, inputs))


# Decoding alone: any logits


@pytest.mark.parametrize("task", [TAG, JOINT, Tag(("A", "B", "C"), "plain")], ids=["tag", "joint", "plain"])
@given(texts=st.lists(any_text, min_size=1, max_size=4), seed=st.integers(0, 99))
@example(texts=["\u0301", "\u200b", "e\u0301"], seed=1)
@example(texts=["\ud83d good \ude00cat", "\r\n\r\nbad\r\n"], seed=0)
@settings(deadline=None, max_examples=tries(60))
def test_spans_of_words_are_parts_of_the_text(task, texts, seed, tokenizer):
    examples = [Example(text) for text in texts]
    for text, answer in zip(texts, answers_to(task, tokenizer, examples, seed), strict=True):
        check(text, answer.spans)
        assert answer.tags is None


@given(texts=st.lists(st.tuples(any_text, any_text), min_size=1, max_size=4), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=tries(60))
def test_answers_are_parts_of_the_context(texts, seed, tokenizer):
    examples = [Example(question, context) for question, context in texts]
    for unanswerable in (False, True):
        task = Extract(30, unanswerable)
        for one, answer in zip(examples, answers_to(task, tokenizer, examples, seed), strict=True):
            check(one.pair, answer.spans, ordered=False)
            assert len({(span.start, span.end) for span in answer.spans}) == len(answer.spans) <= 5
            scores = [span.score for span in answer.spans]
            assert scores == sorted(scores, reverse=True)
            assert answer.answer in ("", *(span.text for span in answer.spans[:1]))
            assert bool(answer.answer) or unanswerable or not answer.spans


@pytest.mark.parametrize("task", [TAG, JOINT], ids=["tag", "joint"])
@given(words=st.lists(any_text.filter(bool), min_size=1, max_size=9), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=tries(60))
def test_spans_of_tokens_are_parts_of_the_tokens_joined_by_spaces(task, words, seed, tokenizer):
    text = " ".join(words)
    (answer,) = answers_to(task, tokenizer, [Example(text, words=tuple(words))], seed)
    assert len(answer.tags) == len(words)
    for span in answer.spans:
        assert span.text == text[span.start : span.end]
    edges = np.cumsum([0, *(len(word) + 1 for word in words)])
    starts, ends = edges[:-1].tolist(), (edges[1:] - 1).tolist()
    found = [(starts.index(span.start), ends.index(span.end), span.label) for span in answer.spans]
    tags = ["O"] * len(words)
    for first, last, label in found:
        tags[first : last + 1] = [f"B-{label}"] + [f"I-{label}"] * (last - first)
    assert answer.tags == tags


# Gold spans and back


def certain(task: Tag, targets) -> np.ndarray:
    return (np.eye(task.outputs)[targets] * 20).astype(np.float32)


@given(
    words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=9),
    blanks=st.lists(st.sampled_from(BLANKS[:8]), min_size=10, max_size=10),
    drawn=st.data(),
)
@settings(deadline=None, max_examples=tries(100))
def test_gold_spans_over_whole_words_come_back_as_they_were(words, blanks, drawn, tokenizer):
    text, places = blanks[0], []
    for word, blank in zip(words, blanks[1:], strict=False):
        places.append((len(text), len(text) + len(word)))
        text += word + blank
    cuts = sorted(drawn.draw(st.sets(st.integers(0, len(words)), max_size=6)))
    marks = [Mark(places[a][0], places[b - 1][1], drawn.draw(st.sampled_from("XY"))) for a, b in pairwise(cuts)]
    case = Example(text, target=tuple(marks), where="row 1")
    (one,) = TAG.encode(tokenizer, [case], LengthPolicy(12))
    assert TAG.misfits([case], [one]) == []
    (targets,) = TAG.targets([case.target], [one])
    (answer,) = TAG.decode(certain(TAG, targets), Batch([case], [one]))
    assert [Mark(span.start, span.end, span.label) for span in answer.spans] == marks
    assert [span.score for span in answer.spans] == pytest.approx([1.0] * len(marks), abs=1e-5)
    case = replace(case, target=TagsAndLabel(case.target, "b"))
    (one,) = JOINT.encode(tokenizer, [case], LengthPolicy(12))
    (targets,) = JOINT.targets([case.target], [one])
    assert (targets[targets[:, 1] >= 0, 1] == 1).all()
    logits = np.zeros((len(targets), JOINT.outputs), dtype=np.float32)
    words_of = targets[:, 0] >= 0
    logits[words_of, :5], logits[~words_of, 6] = certain(TAG, targets[words_of, 0]), 9
    (answer,) = JOINT.decode(logits, Batch([case], [one]))
    assert [Mark(span.start, span.end, span.label) for span in answer.spans] == marks
    assert answer.answer == "b"


@given(
    words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=12),
    blank=st.sampled_from(BLANKS[:8]),
    drawn=st.data(),
)
@settings(deadline=None, max_examples=tries(100))
def test_gold_answers_of_whole_words_come_back_as_they_were(words, blank, drawn, tokenizer):
    first = drawn.draw(st.integers(0, len(words) - 1))
    last = drawn.draw(st.integers(first, min(first + 2, len(words) - 1)))
    context = blank.join(words)
    start = len(blank.join(words[:first]) + blank * bool(first))
    gold = Gold(blank.join(words[first : last + 1]), start)
    assert context[start:].startswith(gold.text)
    case, task = Example("a b", context, (gold,), "row 1"), Extract(500)
    policy = LengthPolicy(64)
    (one,) = task.encode(tokenizer, [case], policy)
    (targets,) = task.targets([case.target], [one])
    assume(not task.misfits([case], [one]))
    assert one.n_windows == 1 or len(one.units.token) > 40
    logits = np.where(targets[:, :2] > 0, 20.0, 0.0).astype(np.float32)
    logits[one.units.start < 0] -= 10  # a window without the answer says so more weakly
    (answer,) = task.decode(logits, Batch([case], [one]))
    assert answer.answer == gold.text
    assert (answer.spans[0].start, answer.spans[0].end) == (start, start + len(gold.text))


@pytest.mark.parametrize("most", [12, 16, 24])
def test_a_gold_answer_is_whole_in_every_window_that_marks_it(most, tokenizer):
    draw = random.Random(0)
    for _ in range(60):
        words = draw.choices(["good", "bad", "cat", "漢字", "👍🏽", "unheard"], k=draw.randint(1, 40))
        first = draw.randrange(len(words))
        answer = " ".join(words[first : first + draw.randint(1, 3)])
        start = len("".join(word + " " for word in words[:first]))
        case, task = Example("?", " ".join(words), (Gold(answer, start),)), Extract(500)
        (one,) = task.encode(tokenizer, [case], LengthPolicy(most))
        (targets,) = task.targets([case.target], [one])
        for window in range(one.n_windows):
            inside = one.units.window == window
            starts, ends = one.units.start[inside][1:], one.units.end[inside][1:]
            marked = targets[inside]
            assert marked[:, :2].sum(0).tolist() == [1, 1]
            place, last = marked[:, 0].argmax(), marked[:, 1].argmax()
            if starts[0] <= start and start + len(answer) <= ends[-1]:
                assert (starts[place - 1], ends[last - 1]) == (start, start + len(answer))
            else:
                assert (place, last) == (0, 0)
        room = tokenizer.room(most, pair=True) - 1
        if len(tokenizer.ids([answer])[0]) <= room // 4:  # what neighbours share
            assert task.misfits([case], [one]) == []


def test_an_answer_that_is_cut_off_is_no_answer(tiny_bert):
    """Where the end of a context is not read, an answer that reaches beyond it is not half an answer."""
    context = "the cat sat on the mat good great red"
    case, task = Example("?", context, (Gold("good great red", context.index("good")),), "row 1"), Extract(100)
    tokenizer = Tokenizer.from_folder(tiny_bert)
    for most in (6, 11, 12):
        (one,) = task.encode(tokenizer, [case], LengthPolicy(most, "truncate"))
        (targets,) = task.targets([case.target], [one])
        assert one.truncated
        assert targets[0].tolist() == [1, 1, 0], most
        assert len(task.misfits([case], [one])) == 1


# Whole functions


def wild(fitted):
    """The function with a head that finds many spans anywhere."""
    artifact = fitted.artifact
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = artifact.model.head
        tokens = getattr(head, "tokens", head)
        for parameter in (tokens.out.weight, tokens.out.bias):
            parameter.data = torch.randn(parameter.shape)
    return berthead.Fitted(artifact)


@pytest.fixture(scope="module")
def functions(tiny_bert):
    """Functions fitted for one epoch."""
    options = {"epochs": 1, "max_tokens": 24, "seed": 7}
    return {
        "tag": wild(fit_task(tiny_bert, "tag", **options)),
        "joint": wild(fit_task(tiny_bert, "joint", **options)),
        "span": fit_task(tiny_bert, "span", **options),
        "unanswerable": fit_task(tiny_bert, "span", span_rows(40, unanswerable=True), **options),
    }


@pytest.mark.parametrize("task", ["tag", "joint"])
@given(texts=st.lists(any_text, min_size=1, max_size=3))
@settings(deadline=None, max_examples=tries(25))
def test_entities_are_parts_of_any_text(task, texts, functions):
    for text, one in zip(texts, functions[task].predict(texts), strict=True):
        if not text.strip():
            assert "blank" in one.error
            continue
        assert one.error is None
        check(text, one.spans)
        assert one.tags is None
        assert one.answer == one.spans if task == "tag" else one.answer in ("yes", "no")
        tokens = text.split()
        listed = functions[task].predict({"tokens": tokens})
        assert len(listed.tags) == len(tokens)
        check(" ".join(tokens), listed.spans)


@pytest.mark.parametrize("task", ["span", "unanswerable"])
@given(texts=st.lists(st.tuples(any_text, any_text), min_size=1, max_size=3))
@settings(deadline=None, max_examples=tries(25))
def test_answers_are_parts_of_any_context(task, texts, functions):
    for (question, context), one in zip(texts, functions[task].predict(texts), strict=True):
        if not question.strip() or not context.strip():
            assert "blank" in one.error
            continue
        assert one.error is None
        check(context, one.spans, ordered=False)
        assert one.answer == "" or one.answer == one.spans[0].text


@given(texts=st.lists(file_text, min_size=1, max_size=4), kind=st.sampled_from(["tag", "joint"]))
@settings(deadline=None, max_examples=tries(15))
def test_spans_in_files_are_parts_of_the_texts_in_them(texts, kind, functions, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    predictor, key = functions[kind].predictor, "prediction" if kind == "tag" else "spans"
    rows = [{"text": text} for text in texts]
    sources = [write_jsonl(folder / "in.jsonl", rows), write_csv(folder / "in.csv", rows)]
    found = []
    for source in sources:
        target = folder / f"out{source.suffix}"
        summary = predict_file(predictor, str(source), str(target), PredictOptions(), quiet=True)
        assert (summary.rows, summary.failed) == (len(texts), 0)
        if source.suffix == ".csv":
            with target.open(encoding="utf-8", newline="") as file:
                written = [row | {key: json.loads(row[key])} for row in csv.DictReader(file)]
        else:
            with target.open(encoding="utf-8", newline="\n") as file:
                written = [json.loads(line) for line in file]
        assert [row["text"] for row in written] == texts
        for row in written:
            for span in row[key]:
                assert row["text"][span["start"] : span["end"]] == span["text"]
                assert span["text"].strip()
        found.append([[span | {"score": 0} for span in row[key]] for row in written])
    assert found[0] == found[1]
    answers = functions[kind].predict(texts)
    wanted = [[(span.start, span.end, span.label) for span in one.spans] for one in answers]
    assert [[(span["start"], span["end"], span["label"]) for span in row] for row in found[0]] == wanted


@given(rows=st.lists(st.tuples(file_text, file_text), min_size=1, max_size=4))
@settings(deadline=None, max_examples=tries(15))
def test_answers_in_files_are_parts_of_their_contexts(rows, functions, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    records = [{"question": question, "context": context} for question, context in rows]
    for source in (write_jsonl(folder / "in.jsonl", records), write_csv(folder / "in.csv", records)):
        target = folder / "out.jsonl"
        predict_file(functions["span"].predictor, str(source), str(target), PredictOptions(), quiet=True)
        with target.open(encoding="utf-8", newline="\n") as file:
            written = [json.loads(line) for line in file]
        assert [row["context"] for row in written] == [context for _, context in rows]
        for row in written:
            if row["prediction"]:
                assert row["context"][row["start"] : row["end"]] == row["prediction"]
            else:  # nothing in the context is a token
                assert row["start"] is None


def test_a_lone_surrogate_in_a_file_keeps_the_offsets(functions, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "good \\ud800cat bad\\udfff dog"}\n', encoding="utf-8")
    predict_file(functions["tag"].predictor, str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), PredictOptions())
    (line,) = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    row = json.loads(line)
    assert row["text"] == "good \ud800cat bad\udfff dog"
    for span in row["prediction"]:
        assert row["text"][span["start"] : span["end"]] == span["text"]


def test_tokens_in_files_get_a_tag_each(functions, tmp_path):
    rows = [{"tokens": ["good", "\u0301", "👍🏽", "\u200b"]}, {"tokens": [" ", "bad", "x" * 300]}]
    write_jsonl(tmp_path / "in.jsonl", rows)
    write_csv(tmp_path / "in.csv", [{"tokens": json.dumps(row["tokens"])} for row in rows])
    for name in ("in.jsonl", "in.csv"):
        predict_file(functions["tag"].predictor, str(tmp_path / name), str(tmp_path / "out.jsonl"), PredictOptions())
        with (tmp_path / "out.jsonl").open(encoding="utf-8") as file:
            written = [json.loads(line) for line in file]
        for row, given_row in zip(written, rows, strict=True):
            assert len(row["predicted_tags"]) == len(given_row["tokens"])
            for span in row["prediction"]:
                assert " ".join(given_row["tokens"])[span["start"] : span["end"]] == span["text"]


# Long documents


def long_tags(count: int) -> list[dict]:
    """Toy rows of one to two windows, half of them without a mark."""
    draw, rows = random.Random(3), []
    for row in tag_rows(count, seed=5):
        more = draw.choices(FILLERS, k=draw.randint(20, 80))
        at = draw.randrange(len(more))
        words = [*more[:at], *row["tokens"], *more[at:]]
        rows.append({"tokens": words, "tags": [TAGS.get(word, "O") for word in words]})
    return rows


def filled(before: int, mark: str, total: int) -> str:
    """A text of about so many characters in which the mark stands at this one, and nowhere else."""
    draw = random.Random(1)
    text = ""
    while len(text) < before:
        text += draw.choice(FILLERS) + " "
    text = text[: before - 1].rsplit(" ", 1)[0]
    text += "\n" * (before - len(text)) + mark
    while len(text) < total:
        text += " " + draw.choice(FILLERS)
    return text


@pytest.mark.parametrize("head", ["auto", pytest.param("crf", marks=pytest.mark.exhaustive)])
def test_an_entity_at_character_50000_is_found(head, tiny_bert):
    text = filled(50_000, "good great", 51_000)
    for on_long in ("window", "truncate"):
        fitted = fit_task(tiny_bert, "tag", tag_rows(60) + long_tags(60), on_long=on_long, head=head)
        one = fitted.predict(text)
        if on_long == "truncate":
            assert one.truncated
            assert one.spans == []
            continue
        assert [(span.start, span.end, span.text, span.label) for span in one.spans] == [
            (50_000, 50_010, "good great", "POS")
        ]
        assert not one.truncated
        assert one.n_tokens > 10_000
        assert one.n_windows == -(-(one.n_tokens - 2 - 62 // 4) // (62 - 62 // 4))
        assert one.spans[0].window >= one.n_windows - 10
        words = text.split()
        listed = fitted.predict({"tokens": words})
        assert [tag for tag in listed.tags if tag != "O"] == ["B-POS", "I-POS"]
        assert listed.tags[words.index("good")] == "B-POS"


def test_a_question_whose_answer_stands_at_character_20000_is_answered(tiny_bert):
    draw, rows = random.Random(2), span_rows(60, unanswerable=True)
    for row in span_rows(60, seed=4, unanswerable=True):
        before, after = (" ".join(draw.choices(FILLERS, k=draw.randint(10, 90))) for _ in range(2))
        answers = [answer | {"answer_start": answer["answer_start"] + len(before) + 1} for answer in row["answers"]]
        rows.append(row | {"context": f"{before} {row['context']} {after}", "answers": answers})
    context = filled(20_000, "red", 24_000)
    for on_long in ("window", "truncate"):
        fitted = fit_task(tiny_bert, "span", rows, on_long=on_long, valid=0.2)
        one = fitted.predict(("the dog ?", context))
        if on_long == "truncate":
            assert one.truncated
            assert one.answer == ""
            continue
        assert (one.answer, one.spans[0].start, one.spans[0].end) == ("red", 20_000, 20_003)
        assert one.n_windows > 80
        assert not one.truncated
        assert fitted.predict(("the dog ?", context.replace("red", "cat"))).answer == ""


def test_categories_of_the_words_are_those_that_are_meant():
    """The lists above hold what they say: marks, joiners, flags, scripts from right to left."""
    text = "".join(WORDS)
    assert {"Mn", "Mc", "Cf", "So", "Lo", "Sk", "Me"} <= {unicodedata.category(char) for char in text}
    assert {"R", "AL", "NSM"} <= {unicodedata.bidirectional(char) for char in text}
