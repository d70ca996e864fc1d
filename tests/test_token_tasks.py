"""Tag, span, choose and joint: losses and decoding against plain computations, fits that learn, windows pooled."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_bert, tries
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_tasks import QUICK, choose_rows, fit_task, span_rows, tag_rows, without_head_dropout

import berthead
from berthead.data.labels import Labels
from berthead.errors import DataError, GateError, ModelError, UsageError
from berthead.function.artifact import plain_logits
from berthead.function.head_record import make_head
from berthead.model.checkpoint import read_checkpoint
from berthead.model.heads import TokenHead, pool_windows
from berthead.model.model import Model
from berthead.model.tensors import TensorPack
from berthead.predict.predictor import Predictor
from berthead.records import Example
from berthead.tasks import Batch, Choose, Classify, Extract, Joint, Tag
from berthead.tasks.choose import Choice, choice_of
from berthead.tasks.crf import marginals
from berthead.tasks.joint import TagsAndLabel
from berthead.tasks.span import Gold
from berthead.tasks.viterbi import allowed
from berthead.text.layout import Layout
from berthead.text.packing import pack
from berthead.text.tokenizer import Tokenizer
from berthead.text.windows import LengthPolicy, read_texts
from berthead.train import modes
from berthead.train.fold import Fold
from berthead.train.settings import Settings

BIO = ("O", "B-X", "I-X", "B-Y", "I-Y")
KINDS = ("tag", "span", "choose", "joint")


def field(tags, seed: int, scale: float = 2.0) -> Tag:
    """A task with a conditional random field of random scores."""
    head = TokenHead(4, len(tags), crf=True)
    generator = torch.Generator().manual_seed(seed)
    for parameter in (head.first, head.last, head.step):
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale
    return Tag(tuple(tags), "BIO" if "O" in tags else "plain").bound(head)


def every_path(task: Tag, rows: np.ndarray) -> dict[tuple[int, ...], float]:
    """The score of each tag sequence that can be."""
    start, step = allowed(task.tags)
    first, last, onward = (part.detach().numpy().astype(float) for part in (task.head.first, task.head.last,
                                                                            task.head.step))  # fmt: skip
    found = {}
    for path in itertools.product(range(len(task.tags)), repeat=len(rows)):
        steps = list(itertools.pairwise(path))
        if start[path[0]] and all(step[one] for one in steps):
            emitted = sum(float(rows[place, tag]) for place, tag in enumerate(path))
            found[path] = first[path[0]] + emitted + sum(onward[one] for one in steps) + last[path[-1]]
    return found


def drawn(data, words: int, tags: int, largest: float = 5.0) -> np.ndarray:
    numbers = st.floats(-largest, largest, width=32)
    cells = data.draw(st.lists(numbers, min_size=words * tags, max_size=words * tags))
    return np.array(cells, dtype=np.float32).reshape(words, tags)


# Losses


@given(st.data())
@settings(deadline=None, max_examples=tries(50))
def test_the_loss_of_tags_is_torch_s_cross_entropy_of_the_words(data):
    sizes = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any))
    weighted = data.draw(st.booleans())
    logits = torch.from_numpy(drawn(data, sum(sizes), len(BIO))).requires_grad_()
    targets = torch.tensor(data.draw(st.lists(st.integers(0, 4), min_size=sum(sizes), max_size=sum(sizes))))
    weights = torch.tensor([0.5, 1.0, 2.0, 3.0, 0.1]) if weighted else None
    losses = Tag(BIO).loss(logits, targets, weights, sizes)
    each = F.cross_entropy(logits, targets, weight=weights, reduction="none")
    assert losses.shape == (len(sizes),)
    # The mean over the examples is the mean over the words: no example counts more because it is short.
    assert losses.mean().item() == pytest.approx(each.mean().item(), rel=1e-5, abs=1e-6)
    wanted = [part.sum().item() * len(sizes) / sum(sizes) for part in each.split(sizes)]
    assert losses.tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("tags", [("O", "B-X", "I-X"), BIO, ("DET", "NOUN", "VERB")])
@given(data=st.data(), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=tries(15))
def test_the_field_s_loss_marginals_and_path_are_those_of_all_sequences(tags, data, seed):
    task = field(tags, seed)
    sizes = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=3).filter(any))
    rows = [drawn(data, size, len(tags)) for size in sizes]
    wanted, gold = [], []
    for row in rows:
        if not len(row):
            wanted.append(0.0)
            continue
        scores = every_path(task, row)
        target = data.draw(st.sampled_from(sorted(scores)))
        gold += target
        total = np.logaddexp.reduce(list(scores.values()))
        wanted.append(total - scores[target])
        path, shares = task.path(row)
        assert scores[tuple(path)] == pytest.approx(max(scores.values()), abs=1e-4)
        chances = np.zeros(row.shape)
        for other, score in scores.items():
            chances[np.arange(len(row)), other] += np.exp(score - total)
        np.testing.assert_allclose(shares, chances[np.arange(len(row)), path], atol=1e-4)
        start, step = allowed(tags)
        rules = np.where(start, task.head.first.detach(), -1e4), np.where(step, task.head.step.detach(), -1e4)
        np.testing.assert_allclose(marginals(row, *rules, task.head.last.detach().numpy()), chances, atol=1e-4)
    losses = task.loss(torch.from_numpy(np.concatenate(rows)), torch.tensor(gold), None, sizes)
    share = len(sizes) / sum(sizes)
    assert (losses / share).tolist() == pytest.approx(wanted, rel=1e-4, abs=2e-3)


@pytest.mark.parametrize("task", [Tag(BIO), field(BIO, 0)], ids=["linear", "crf"])
def test_texts_without_a_word_have_no_loss(task):
    logits = torch.zeros(0, len(BIO), requires_grad=True)
    losses = task.loss(logits, torch.zeros(0, dtype=torch.int64), None, [0, 0])
    assert losses.tolist() == [0, 0]
    losses.sum().backward()


def test_the_field_s_scores_get_gradients_and_impossible_steps_get_none():
    task = field(BIO, 3)
    logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    task.loss(logits, torch.tensor([1, 2, 0, 3, 0, 0, 1]), None, [4, 3]).sum().backward()
    start, step = map(torch.from_numpy, allowed(BIO))
    assert (task.head.first.grad[start] != 0).all()
    assert (task.head.step.grad[step] != 0).all()
    assert (task.head.last.grad != 0).any()
    assert (task.head.first.grad[~start] == 0).all()
    assert (task.head.step.grad[~step] == 0).all()
    assert logits.grad.isfinite().all()


@given(st.data())
@settings(deadline=None, max_examples=tries(50))
def test_the_loss_of_spans_is_the_cross_entropy_of_each_window(data):
    windows = data.draw(st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3), min_size=1, max_size=4))
    total = sum(map(sum, windows))
    logits = torch.from_numpy(drawn(data, total, 2, 30.0))
    targets, wanted, at = np.zeros((total, 3), dtype=np.int64), [], 0
    for of_example in windows:
        losses = []
        for number, size in enumerate(of_example):
            start = data.draw(st.integers(0, size - 1))
            end = data.draw(st.integers(start, size - 1))
            targets[at : at + size, 2] = number
            targets[at + start, 0] = targets[at + end, 1] = 1
            part = logits[at : at + size]
            losses += [float(F.cross_entropy(part[None, :, n], torch.tensor([p]))) for n, p in enumerate((start, end))]
            at += size
        wanted.append(np.mean(losses))
    sizes = [sum(of_example) for of_example in windows]
    found = Extract(100).loss(logits, torch.from_numpy(targets), None, sizes)
    assert found.tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-5)


@given(st.data())
@settings(deadline=None, max_examples=tries(50))
def test_the_loss_of_choices_is_the_cross_entropy_of_each_question(data):
    sizes = data.draw(st.lists(st.integers(2, 6), min_size=1, max_size=5))
    logits = torch.from_numpy(drawn(data, sum(sizes), 1, 30.0)).requires_grad_()
    right = [data.draw(st.integers(0, size - 1)) for size in sizes]
    targets = Choose().targets([Choice(size, (("number", number),)) for number, size in zip(right, sizes, strict=True)])
    found = Choose().loss(logits, torch.from_numpy(np.concatenate(targets)), None, sizes)
    wanted = torch.stack([F.cross_entropy(part.T, torch.tensor([number]))
                          for part, number in zip(logits.split(sizes), right, strict=True)])  # fmt: skip
    np.testing.assert_allclose(found.detach(), wanted.detach(), rtol=1e-4, atol=1e-5)
    ours, theirs = (torch.autograd.grad(one.sum(), logits)[0] for one in (found, wanted))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("crf", [False, True])
def test_the_loss_of_joint_is_the_sum_of_both(crf, tiny_bert):
    task = Joint(field(("O", "B-X", "I-X"), 1) if crf else Tag(("O", "B-X", "I-X")), Classify(Labels(("a", "b"))))
    lengths = [3, 20, 1]
    examples = [Example("", words=("cat",) * length) for length in lengths]
    inputs = task.encode(Tokenizer.from_folder(tiny_bert), examples, LengthPolicy(10))
    assert [one.n_windows for one in inputs] == [1, 3, 1]
    draw = np.random.default_rng(0)
    values = [TagsAndLabel(("B-X", *("I-X",) * (length - 1)), "ab"[length % 2]) for length in lengths]
    targets = task.targets(values, inputs)
    sizes = [one.n_units for one in inputs]
    assert sizes == [4, 23, 2]
    logits = torch.from_numpy(draw.normal(size=(sum(sizes), 5)).astype(np.float32))
    found = task.loss(logits, torch.from_numpy(np.concatenate(targets)), None, sizes)
    whole = torch.from_numpy(np.concatenate([one.units.start < 0 for one in inputs]))
    tags = torch.tensor([task.tag.tags.index(tag) for value in values for tag in value.tags])
    of_words = task.tag.loss(logits[~whole, :3], tags, None, lengths)
    labels = [torch.full((one.n_windows,), number) for one, number in zip(inputs, [1, 0, 1], strict=True)]
    windows = logits[whole, 3:].split([one.n_windows for one in inputs])
    of_labels = torch.stack([F.cross_entropy(part, label) for part, label in zip(windows, labels, strict=True)])
    np.testing.assert_allclose(found.detach(), (of_words + of_labels).detach(), rtol=1e-5)
    weights = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.2])
    found = task.loss(logits, torch.from_numpy(np.concatenate(targets)), weights, sizes)
    of_words = task.tag.loss(logits[~whole, :3], tags, weights[:3], lengths)
    of_labels = of_labels * weights[3:][[1, 0, 1]]
    np.testing.assert_allclose(found.detach(), (of_words + of_labels).detach(), rtol=1e-5)


# Decoding


@pytest.mark.parametrize("crf", [False, True])
@given(data=st.data(), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=tries(50))
def test_a_decoded_sequence_is_one_that_can_be(crf, data, seed):
    task = field(BIO, seed, scale=20.0) if crf else Tag(BIO)
    rows = drawn(data, data.draw(st.integers(0, 8)), len(BIO), 50.0)
    path, shares = task.path(rows)
    start, step = allowed(BIO)
    assert len(path) == len(shares) == len(rows)
    assert not len(path) or start[path[0]]
    assert all(step[one] for one in itertools.pairwise(path))
    assert ((shares >= -1e-6) & (shares <= 1 + 1e-6)).all()


def test_an_impossible_best_tag_gives_way_to_the_best_sequence():
    """By themselves: O I-X O. Of the sequences that can be, B-X I-X O has the highest probability."""
    chances = np.array([[0.5, 0.4, 0.1], [0.1, 0.1, 0.8], [0.8, 0.1, 0.1]])
    path, shares = Tag(("O", "B-X", "I-X")).path(np.log(chances).astype(np.float32))
    assert path.tolist() == [1, 2, 0]
    assert shares.tolist() == pytest.approx([0.4, 0.8, 0.8], abs=1e-6)


def two_answers(logits, *, longest: int = 100, unanswerable: bool = False, threshold: float = 0.0):
    """Answers of span where the context "red cat ran" was read in one window: no answer, then the three words."""
    units = {"window": [0] * 4, "token": [0, 3, 4, 5], "start": [-1, 0, 4, 8], "end": [-1, 3, 7, 11]}
    one = berthead.text.windows.EncodedExample(
        (berthead.text.tokenizer.Encoded(np.zeros(7, int), np.zeros(7, int), 7, False),), 7, False,
        units=berthead.text.windows.Units(**{name: np.array(value) for name, value in units.items()}),
    )  # fmt: skip
    batch = Batch([Example("?", "red cat ran")], [one])
    return Extract(longest, unanswerable, threshold).decode(np.array(logits, dtype=np.float32), batch)[0]


def test_an_answer_ends_where_it_begins_or_later_and_is_not_too_long():
    logits = [[0, 0], [0, 9], [1, 2], [8, 3]]
    best = two_answers(logits)
    assert (best.answer, best.spans[0].start, best.spans[0].end) == ("ran", 8, 11)
    logits = [[0, 0], [9, 0], [1, 2], [0, 8]]
    assert two_answers(logits).answer == "red cat ran"
    assert two_answers(logits, longest=10).answer == "red cat"
    assert two_answers(logits, longest=3).answer == "red"


def test_the_threshold_says_how_much_better_an_answer_must_be_than_none():
    logits = [[3, 3], [4, 1], [1, 4], [0, 0]]
    for threshold, answer in ((1.9, "red cat"), (2.0, "red cat"), (2.1, "")):
        found = two_answers(logits, unanswerable=True, threshold=threshold)
        assert found.answer == answer
        assert found.spans[0].text == "red cat"
    scores = np.exp([8, 5, 5, 4, 1, 0, 6])  # red cat, the other spans, no answer
    found = two_answers(logits, unanswerable=True, threshold=0)
    assert found.score == found.spans[0].score == pytest.approx(scores[0] / scores.sum(), rel=1e-5)
    assert [span.text for span in found.spans] == ["red cat", "red", "cat", "red cat ran", "cat ran"]
    found = two_answers(logits, unanswerable=True, threshold=9)
    assert found.score == pytest.approx(scores[-1] / scores.sum(), rel=1e-5)
    assert two_answers(logits, threshold=99.0).answer == "red cat"  # every question had an answer at fit
    assert two_answers([[9, 9], [0, 0], [0, 0], [0, 0]], unanswerable=True).answer == ""


def test_probabilities_of_choices_are_their_softmax_at_the_temperature():
    examples = [Example("?", choices=("a", "b", "c")), Example("?", choices=("d", "e"))]
    inputs = [berthead.text.windows.EncodedExample((None,) * n, 5, False, groups=tuple(range(n))) for n in (3, 2)]
    logits = np.array([[1.0], [3.0], [2.0], [5.0], [4.0]], dtype=np.float32)
    for style, answers in (("number", [1, 0]), ("letter", ["B", "A"]), ("text", ["b", "d"])):
        found = Choose(style, 2.0).decode(logits, Batch(examples, inputs))
        assert [one.answer for one in found] == answers
        for one, rows in zip(found, ([1.0, 3.0, 2.0], [5.0, 4.0]), strict=True):
            wanted = np.exp(np.array(rows) / 2) / np.exp(np.array(rows) / 2).sum()
            assert list(one.probabilities) == list(range(len(rows)))
            assert list(one.probabilities.values()) == pytest.approx(wanted, rel=1e-5)
            assert one.score == max(one.probabilities.values())


# Fits


@pytest.mark.parametrize(
    ("task", "head", "adapt"),
    [
        ("tag", "auto", "full"), ("tag", "crf", "full"), ("span", "auto", "full"), ("choose", "auto", "full"),
        ("joint", "auto", "full"), ("joint", "crf", "full"), ("span", "auto", "frozen"), ("choose", "auto", "frozen"),
    ],
)  # fmt: skip
def test_a_rule_that_stands_in_the_words_is_learnt_whole(task, head, adapt, tiny_bert):
    frozen = {"adapt": "frozen", "epochs": 30, "lr": 1e-2} if adapt == "frozen" else {}
    fitted = fit_task(tiny_bert, task, **({"head": head} if head != "auto" else {}), **frozen)
    scores = fitted.evaluate(
        {"tag": tag_rows, "joint": tag_rows, "span": span_rows, "choose": choose_rows}[task](40, 9)
    )
    for name in {"tag": ["f1", "token_accuracy"], "span": ["exact", "f1"], "choose": ["accuracy"],
                 "joint": ["f1", "token_accuracy", "intent_accuracy", "exact_match"]}[task]:  # fmt: skip
        assert scores[name] == 1.0, name
    assert scores["rows"] == 40


def test_frozen_tags_are_learnt_too(tiny_bert):
    fitted = fit_task(tiny_bert, "tag", tag_rows(200), adapt="frozen", epochs=40, lr=1e-2)
    assert fitted.evaluate(tag_rows(40, 9))["token_accuracy"] == 1.0
    assert fitted.info()["parameters"]["theta_is_pretrained"]


def test_questions_without_an_answer_get_none(tiny_bert):
    fitted = fit_task(tiny_bert, "span", span_rows(90, unanswerable=True), valid=0.2, epochs=12)
    assert fitted.artifact.task.unanswerable
    scores = fitted.evaluate(span_rows(45, 9, unanswerable=True))
    assert (scores["exact"], scores["no_answer_accuracy"], scores["rows_without_answer"]) == (1.0, 1.0, 15)
    none, some = fitted.predict([("the dog ?", "a cat sat on the mat ."), ("the dog ?", "a cat sat red mat .")])
    assert (none.answer, some.answer) == ("", "red")
    assert none.spans
    assert 0.5 < none.score <= 1
    task = fitted.artifact.task
    for threshold, answers in ((1e6, ["", ""]), (-1e6, [none.spans[0].text, "red"])):
        other = replace(fitted.artifact, task=replace(task, threshold=threshold))
        examples = [Example("the dog ?", "a cat sat on the mat ."), Example("the dog ?", "a cat sat red mat .")]
        assert [one.answer for one in Predictor(other).predict(examples)] == answers


@pytest.mark.parametrize("threshold", [-40.0, 0.0, 25.0])
def test_the_threshold_is_tuned_on_held_out_rows(threshold, tiny_bert):
    """Logits are made so that only one threshold, far from 0, tells the answered from the others."""
    rows = [Example("?", "red cat ran", (Gold("red", 0),)), Example("?", "red cat ran", ())] * 3
    task = Extract(100, True)
    inputs = task.encode(Tokenizer.from_folder(tiny_bert), rows, LengthPolicy(20))
    logits = []
    for number, row in enumerate(rows):
        margin = threshold + (2 if row.target else -2) + number / 10
        logits += [[0, 0], [margin / 2, margin / 2], [-99, -99], [-99, -99]]
    logits = np.array(logits, dtype=np.float32)
    batch = Batch(rows, inputs)
    tuned = task.tuned(logits, task.targets([row.target for row in rows], inputs), batch)
    assert tuned.threshold == pytest.approx(threshold, abs=1.9)
    assert [one.answer for one in tuned.decode(logits, batch)] == ["red", ""] * 3


@pytest.mark.parametrize("task", KINDS)
def test_the_head_alone_learns_what_it_would_learn_in_the_whole_model(task, tiny_bert, monkeypatch):
    """The vectors of a frozen encoder may be kept or computed anew: same steps, same logits."""
    options = {"adapt": "frozen", "epochs": 3, "lr": 1e-2, "seed": 5}
    without_head_dropout(monkeypatch)
    # Without its scale, which is a matter of the optimiser, both learn from the same numbers.
    monkeypatch.setattr("berthead.train.modes.CachedFeatures._scaled", lambda self, vectors: vectors)
    monkeypatch.setattr("berthead.train.modes.CachedFeatures.finish", lambda self: None)
    kept = fit_task(tiny_bert, task, max_tokens=12, **options)
    monkeypatch.setattr(modes, "MOST_CACHED_BYTES", 0)
    anew = fit_task(tiny_bert, task, max_tokens=12, on_long="window", **options)
    examples = [Example("the cat", "a good red dog sat on the mat , the cat ran fine", choices=("good cat", "bad"))]
    ours, theirs = kept.predictor.logits(examples), anew.predictor.logits(examples)
    assert np.ptp(ours) > 1e-2
    if task in ("span", "choose"):  # what is added to all of them changes nothing: its gradient is rounding
        ours, theirs = ours - ours.mean(0), theirs - theirs.mean(0)
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("task", KINDS)
def test_a_training_step_sees_the_logits_that_predict_gives(task, tiny_bert, monkeypatch):
    """Both ways of training, without dropout, and the prepared model: long inputs in several windows."""
    monkeypatch.setattr(modes, "MOST_WINDOWS", 1000)  # of more windows each step takes a part
    checkpoint, draw = read_checkpoint(str(tiny_bert)), np.random.default_rng(0)
    tokenizer, joint = Tokenizer.from_folder(tiny_bert), Joint(Tag(BIO), Classify(Labels(("a", "b"))))
    kind = {"tag": Tag(BIO), "span": Extract(100), "choose": Choose(), "joint": joint}[task]
    torch.manual_seed(0)
    record = {"outputs": kind.outputs, "dropout": 0.0, "crf": False, "pooling": "mean", "windows": "mean", "tags": 5}
    head = make_head(record | {"kind": {"joint": "joint", "choose": "row"}.get(task, "token")}, 32)
    model = Model(checkpoint.encoder(), head)
    words = [" ".join(draw.choice(["the", "cat", "good", "bad"], length)) for length in (1, 40, 3, 17, 90)]
    examples = [Example(text if kind.form.startswith("words") else text[:30], f"{text} dog",
                        choices=(text, "a dog", "bad " * len(text))) for text in words]  # fmt: skip
    inputs = kind.encode(tokenizer, examples, LengthPolicy(24))
    most = max(one.n_windows for one in inputs)
    assert most > 3
    fold = Fold(examples, inputs, np.zeros(len(inputs)))
    bare = Settings(1, 8, 1e-3, 0.0, 0.0, 1.0, "loss", "fp32", 0, False)
    wanted = np.concatenate([plain_rows(model, kind, one) for one in inputs])
    ways = [
        modes.FullModel(model, kind.outputs, fold, fold, bare),
        modes.CachedFeatures(model, fold, fold, bare, True),
    ]
    for part in ways:
        np.testing.assert_allclose(part.valid_logits() if part is ways[0] else unscaled(part).valid_logits(), wanted,
                                   atol=1e-5)  # fmt: skip
        rows, found = np.array([3, 0, 4, 1, 2]), {}
        for logits, places, sizes in part.training_logits(rows):
            for place, values in zip(places, logits.detach().split(sizes), strict=True):
                found[int(rows[place])] = values
        ordered = torch.cat([found[number] for number in range(len(inputs))])
        np.testing.assert_allclose(ordered, wanted, atol=1e-5)


def test_the_style_of_a_choice_is_the_one_that_all_rows_can_be_read_in():
    rows = [("1", ["2", "1", "0"]), ("0", ["red", "blue"]), ("2", ["a", "b", "c"])]
    read = [choice_of(label, choices) for label, choices in rows]
    task = Choose.from_targets(read, "data")
    assert task.style == "number"
    assert [int(row.argmax()) for row in task.targets(read)] == [1, 0, 2]
    as_text = Choose.from_targets(read[:1], "data")
    assert (as_text.style, int(as_text.targets(read[:1])[0].argmax())) == ("text", 1)
    mixed = [choice_of("red", ["red", "blue"]), choice_of("B", ["red", "blue"])]
    task = Choose.from_targets(mixed, "data")
    assert (task.style, [int(row.argmax()) for row in task.targets(mixed)]) == ("text", [0, 1])


@pytest.mark.parametrize("task", ["span", "choose", "tag", "joint"])
def test_a_batch_computed_in_parts_has_the_loss_of_the_whole(task, tmp_path, monkeypatch):
    """Short and long texts in one batch: however it is divided, the same step is taken."""
    calm = make_bert(tmp_path / "calm", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    without_head_dropout(monkeypatch)
    rows = {"tag": tag_rows, "joint": tag_rows, "span": span_rows, "choose": choose_rows}[task](12)
    longer = {"tag": "tokens", "joint": "tokens", "span": "context", "choose": "question"}[task]
    for row in rows[::3]:
        row[longer] = row[longer] + (["cat"] * 40 if longer == "tokens" else " cat" * 30)
        if "tags" in row:
            row["tags"] = row["tags"] + ["O"] * 40
    found = []
    for tokens in (1, 60, 10**6):
        monkeypatch.setattr(modes, "MICRO_TOKENS", tokens)
        bert = dict(encoder=str(calm), epochs=1, batch=12, lr=1e-3, warmup=0, clip=1e9, valid=0, seed=2)
        fitted = berthead.fit(rows, task=task, quiet=True, threads=1, precision="fp32", weight_decay=0, **bert)
        found.append(fitted.info()["run"]["epochs"][0]["train_loss"])
    assert found == pytest.approx([found[-1]] * 3, rel=1e-5)


def unscaled(part):
    part.mean, part.deviation = torch.zeros(1), torch.ones(1)
    return part


def plain_rows(model, task, one) -> np.ndarray:
    """Logits of one input's units, each row alone through the plain model."""
    with torch.no_grad():
        rows = [model(TensorPack.from_pack(pack([row], np.array([0])))).numpy() for row in one.rows]
    if one.units is not None:
        return np.stack([rows[window][token] for window, token in zip(one.units.window, one.units.token, strict=True)])
    groups = np.array(one.groups if one.groups is not None else [0] * len(rows))
    return np.stack([np.concatenate(rows)[groups == group].mean(0) for group in range(one.n_units)])


@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize("adapt", ["full", "frozen"])
def test_the_same_seed_gives_the_same_bytes(task, adapt, tiny_bert, tmp_path):
    rows = {"tag": tag_rows, "joint": tag_rows, "span": span_rows, "choose": choose_rows}[task](24)
    head = {"head": "crf"} if task in ("tag", "joint") else {}
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        berthead.fit(rows, out=tmp_path / name, task=task, encoder=str(tiny_bert), adapt=adapt, epochs=2, lr=3e-3,
                     threads=1, seed=seed, valid=0.25, quiet=True, **head)  # fmt: skip
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    weights = "model.safetensors"
    assert (tmp_path / "a" / weights).read_bytes() != (tmp_path / "c" / weights).read_bytes()


@pytest.mark.parametrize(
    ("task", "head"), [("tag", "auto"), ("tag", "crf"), ("span", "auto"), ("choose", "auto"), ("joint", "crf")]
)
def test_what_was_saved_is_loaded_and_passes_its_golden_examples(task, head, tiny_bert, tmp_path):
    fitted = fit_task(tiny_bert, task, **({"head": head} if head != "auto" else {}))
    fitted.save(tmp_path / "m")
    loaded = berthead.load(tmp_path / "m")
    assert loaded.verify() < 1e-5
    assert loaded.info() == fitted.info()
    assert type(loaded.artifact.task) is type(fitted.artifact.task)
    assert loaded.artifact.task.to_json() == fitted.artifact.task.to_json()
    inputs = {
        "span": [("a b", "the red cat ."), ("a b", "x " * 90 + "red")],
        "choose": [("the cat ?", ["good", "bad"])],
    }
    texts = inputs.get(task, ["the good great cat", {"tokens": ["bad", "dog"]}, "good " * 90])
    assert loaded.predict(texts) == fitted.predict(texts)
    loaded.save(tmp_path / "again")
    for path in (tmp_path / "m").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    with torch.no_grad():  # a changed weight is noticed
        loaded.artifact.model.encoder.blocks[0].attention.out.weight.mul_(-1)
    with pytest.raises(GateError):
        berthead.Fitted(loaded.artifact).verify()


@pytest.mark.parametrize("task", KINDS)
def test_packed_logits_are_those_of_one_input_at_a_time(task, tiny_bert):
    artifact = fit_task(tiny_bert, task).artifact
    texts = ["good cat", "the " * 200, "a", "bad dog , good great mat " * 30, "!", "\u200b", "good " * 63]
    examples = [Example(text, f"{text} red", choices=(text, "good", f"{text} bad")) for text in texts]
    alone = np.concatenate([plain_logits(artifact, [example]) for example in examples])
    assert len(alone) > len(texts)
    for budget in (1, 100, 2048):
        predictor = Predictor(artifact, token_budget=budget)
        np.testing.assert_allclose(predictor.logits(examples), alone, rtol=0, atol=1e-5)
    one_by_one = [next(Predictor(artifact).predict([example])) for example in examples]
    for ours, theirs in zip(Predictor(artifact).predict(examples), one_by_one, strict=True):
        if task == "choose":  # of choices that score alike rounding takes one
            assert theirs.probabilities[ours.answer] == pytest.approx(theirs.score, abs=1e-5)
        else:
            assert ours.answer == theirs.answer or [replace(a, score=0) for a in ours.answer] == [
                replace(a, score=0) for a in theirs.answer
            ]
        assert (ours.n_tokens, ours.n_windows, ours.truncated) == (theirs.n_tokens, theirs.n_windows, theirs.truncated)


# Windows of whole texts


LONG = ["good cat " * 60, "bad dog", "the cat sat on the mat , " * 15 + "awful", "fine " * 200, "a"]


def long_texts(tiny_bert, windows: str, adapt: str = "full", **options):
    texts = (("good cat the mat " * 8, "x"), ("bad dog ran " * 9, "y"), ("red fine", "z"))
    rows = [{"text": text * (1 + n % 3), "label": label} for n in range(12) for text, label in texts]
    return fit_task(tiny_bert, "classify", rows, windows=windows, adapt=adapt, max_tokens=16, epochs=2, **options)


def windows_alone(fitted, text: str) -> np.ndarray:
    """What the head says of each window of a text, alone."""
    artifact = fitted.artifact
    (one,) = read_texts(artifact.tokenizer, [text], None, artifact.policy)
    with torch.no_grad():
        rows = [artifact.model(TensorPack.from_pack(pack([row], np.array([0])))).numpy()[0] for row in one.rows]
    return np.stack(rows)


@pytest.mark.parametrize("adapt", ["full", "frozen"])
@pytest.mark.parametrize("windows", ["mean", "max", "attention"])
def test_windows_become_one_answer_as_their_logits_say(windows, adapt, tiny_bert, tmp_path):
    fitted = long_texts(tiny_bert, windows, adapt)
    fitted.save(tmp_path / "m")
    for model in (fitted, berthead.load(tmp_path / "m")):
        found = model.predictor.logits([Example(text) for text in LONG])
        for text, logits, prediction in zip(LONG, found, model.predict(LONG), strict=True):
            rows = windows_alone(model, text)
            own, deciding = rows[:, :3], rows[:, :3]
            if windows == "mean":
                wanted = own.mean(0)
            elif windows == "max":
                wanted = own.max(0)
            else:
                assert rows.shape[1] == 4
                shares = np.exp(rows[:, 3] - rows[:, 3].max())
                wanted = (own * (shares / shares.sum())[:, None]).sum(0)
                deciding = np.repeat(rows[:, 3:], 3, 1)
            np.testing.assert_allclose(logits, wanted, atol=1e-5)
            assert prediction.answer == "xyz"[int(wanted.argmax())]
            assert prediction.n_windows == len(rows)
            best = deciding[:, int(wanted.argmax())]
            assert best[prediction.window] == pytest.approx(best.max(), abs=1e-5)
            assert not prediction.truncated
        assert max(one.n_windows for one in model.predict(LONG)) > 10


def test_the_window_of_a_number_is_the_one_nearest_to_it(tiny_bert):
    rows = [{"text": f"{word} cat the mat " * (1 + n % 9), "label": value + n / 40} for n in range(12)
            for word, value in (("good", 2.0), ("bad", 1.0))]  # fmt: skip
    fitted = fit_task(tiny_bert, "regress", rows, max_tokens=12, epochs=2)
    for text in ("good cat " * 9 + "bad dog " * 20, "bad", "the mat " * 30):
        (prediction,) = fitted.predict([text])
        own = windows_alone(fitted, text)[:, 0]
        gaps = np.abs(own - own.mean())
        assert gaps[prediction.window] == pytest.approx(gaps.min(), abs=1e-5)


def test_the_windows_of_a_choice_are_pooled_among_themselves(tiny_bert):
    fitted = fit_task(tiny_bert, "choose", max_tokens=16, windows="max", epochs=2)
    choices = ["good " * 40, "bad", "the cat " * 30]
    one = fitted.predict(("a b ?", choices))
    assert one.n_windows > 2
    logits = fitted.predictor.logits([Example("a b ?", choices=tuple(choices))])[:, 0]
    for choice, logit in zip(choices, logits, strict=True):
        (read,) = read_texts(fitted.artifact.tokenizer, ["a b ?"], [choice], fitted.artifact.policy)
        with torch.no_grad():
            rows = [float(fitted.artifact.model(TensorPack.from_pack(pack([row], np.array([0]))))) for row in read.rows]
        assert logit == pytest.approx(max(rows), abs=1e-5)
        if choice == choices[one.answer]:
            assert rows[one.window] == pytest.approx(max(rows), abs=1e-5)


def test_what_windows_attend_to_is_learnt(tiny_bert):
    """Gradients reach the attention's weights and each window's logits as in a softmax of torch's own."""
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(7, 3, generator=draw, requires_grad=True)
    scores = torch.randn(7, 1, generator=draw, requires_grad=True)
    unit = torch.tensor([0, 0, 0, 1, 2, 2, 2])
    wanted = torch.stack([(values[unit == n] * scores[unit == n].softmax(0)).sum(0) for n in range(3)])
    found = pool_windows(values, unit, 3, "attention", scores)
    torch.testing.assert_close(found, wanted)
    mark = torch.randn(3, 3, generator=draw)
    ours = torch.autograd.grad((found * mark).sum(), (values, scores))
    theirs = torch.autograd.grad((wanted * mark).sum(), (values, scores))
    torch.testing.assert_close(ours, theirs)
    assert (ours[1][unit != 1].abs() > 1e-6).all()
    for adapt in ("full", "frozen"):
        heads = [long_texts(tiny_bert, "attention", adapt, lr=rate).artifact.model.head for rate in (1e-9, 3e-3)]
        moved = heads[1].attend.weight - heads[0].attend.weight
        assert (moved.abs() > 1e-6).float().mean() > 0.9
    apart = torch.linspace(-3e4, 3e4, 7)[:, None]  # very different ones do not overflow
    one = torch.zeros(7, dtype=torch.int64)
    assert pool_windows(torch.arange(7.0)[:, None], one, 1, "attention", apart).tolist() == [[6.0]]


def test_a_layout_of_all_kinds_of_inputs_counts_units_and_rows(tiny_bert):
    tokenizer, policy = Tokenizer.from_folder(tiny_bert), LengthPolicy(12)
    examples = [Example("cat " * n, "dog " * (3 * n), choices=("a " * n, "b")) for n in (1, 30, 4)]
    for task in (Tag(BIO), Extract(9), Choose(), Joint(Tag(BIO), Classify(Labels(("a", "b"))))):
        layout = Layout(task.encode(tokenizer, examples, policy))
        assert layout.by_token == (task.level == "token")
        assert np.diff(layout.unit_starts).tolist() == [one.n_units for one in task.encode(tokenizer, examples, policy)]


def test_rows_without_a_word_are_fitted_and_answered_but_cannot_be_scored(tiny_bert, tmp_path):
    rows = [{"text": "\u200b", "spans": [], "intent": "a"}, {"text": "cat", "spans": [[0, 3, "X"]], "intent": "b"}]
    for task, head in (("tag", "auto"), ("tag", "crf"), ("joint", "crf")):
        for adapt in ("full", "frozen"):
            fitted = fit_task(tiny_bert, task, rows, head=head, adapt=adapt, batch=1, epochs=1)
            fitted.save(tmp_path / f"{task}-{head}-{adapt}")
            assert berthead.load(tmp_path / f"{task}-{head}-{adapt}").verify() < 1e-5
            assert fitted.predict("\u200b").spans == []
            assert fitted.evaluate(rows)["rows"] == 2
            with pytest.raises(DataError, match="hold no words to score"):
                fitted.evaluate(rows[:1])


@pytest.mark.parametrize("choices", [2, 5])
def test_a_step_reads_a_bounded_share_of_long_choices(choices, tiny_bert):
    """Every choice keeps windows of its own, and all of them together no more than a step may hold."""
    tokenizer = Tokenizer.from_folder(tiny_bert)
    example = Example("the cat", choices=tuple("good " * (900 + 50 * n) for n in range(choices)))
    (whole,) = Choose().encode(tokenizer, [example], LengthPolicy(24))
    part = modes._bounded(whole, np.random.default_rng(0))
    assert len(whole.rows) > modes.MOST_WINDOWS >= len(part.rows)
    assert part.n_units == choices
    assert len(part.groups) == len(part.rows)
    for row, group in zip(part.rows, part.groups, strict=True):
        assert any(row is one and group == own for one, own in zip(whole.rows, whole.groups, strict=True))


@pytest.mark.parametrize("task", ["tag", "joint"])
def test_balanced_weights_are_refused_for_a_conditional_random_field(task, tiny_bert):
    with pytest.raises(UsageError, match='class_weight="balanced": head="crf" weighs whole sequences'):
        berthead.fit(tag_rows(12), task=task, head="crf", class_weight="balanced", encoder=str(tiny_bert), **QUICK)


def test_the_loss_of_a_field_is_that_of_its_sequences(tiny_bert):
    """What is moved from the words' scores into the field's own changes neither answers nor loss."""
    fitted = berthead.fit(tag_rows(20), task="tag", head="crf", encoder=str(tiny_bert), quiet=True, **QUICK)
    before, head = fitted.evaluate(tag_rows(20, seed=2)), fitted.artifact.model.head
    moved = torch.tensor([5.0] + [0.0] * (head.out.out_features - 1))
    with torch.no_grad():
        head.out.bias.add_(moved)
        head.first.sub_(moved)
        head.step.sub_(moved[None])
    after = berthead.Fitted(fitted.artifact).evaluate(tag_rows(20, seed=2))
    assert after["loss"] == pytest.approx(before["loss"], abs=1e-4)
    assert after["f1"] == before["f1"]


@pytest.mark.parametrize(
    ("task", "role"), [("tag", "pair"), ("span", "choices"), ("classify", "choices"), ("tag", "intent")]
)
def test_a_column_that_the_task_does_not_read_is_refused(task, role, tiny_bert):
    rows = [row | {"extra": "x"} for row in (choose_rows(8) if task == "choose" else tag_rows(8))]
    with pytest.raises(UsageError, match=f'{role}: is "extra", but this task reads no such column'):
        berthead.fit(rows, task=task, encoder=str(tiny_bert), **{role: "extra"})


def test_too_long_rows_can_be_left_out(tiny_bert):
    rows = [{"text": text, "label": label} for text, label in [("good", "x"), ("bad", "y")] * 6]
    rows.append({"text": "good " * 200, "label": "x"})
    options = {"on_long": "error", "encoder": str(tiny_bert), "epochs": 1, "valid": 0, "quiet": True}
    with pytest.raises(DataError, match=r"row 13: is too long: 200 tokens"):
        berthead.fit(rows, **options)
    fitted = berthead.fit(rows, skip_bad_rows=True, **options)
    assert [line for line in fitted.warnings if line.startswith("left out: row 13: is too long")]
    scores = fitted.evaluate(rows, skip_bad_rows=True)
    assert (scores["rows"], scores["skipped"]) == (12, 1)
    with pytest.raises(DataError, match="is too long"):
        fitted.predictor.logits([Example("good " * 200)])


def test_choose_needs_an_encoder_that_tells_two_texts_apart(tmp_path):
    bert = make_bert(tmp_path / "one", type_vocab_size=1)
    with pytest.raises(UsageError, match="does not tell the second text from the first"):
        berthead.fit(choose_rows(8), task="choose", encoder=str(bert), epochs=1, valid=0)


def test_a_folder_whose_golden_examples_lack_their_choices_is_refused(tiny_bert, tmp_path):
    fit_task(tiny_bert, "choose").save(tmp_path / "m")
    path = tmp_path / "m" / "berthead.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    for change in ({"choices": []}, {"choices": "ab"}, {"words": ["a"], "choices": ["a"]}):
        record["golden"][0] |= change
        path.write_text(json.dumps(record), encoding="utf-8")
        with pytest.raises(ModelError, match="golden example"):
            berthead.load(tmp_path / "m")


def test_a_label_is_a_letter_only_where_it_is_one():
    for label in ("ß", "é", "Z"):
        with pytest.raises(
            ValueError, match="there are 3 choices; expected a number from 0 to 2, a letter from A to C"
        ):
            choice_of(label, ["red", "green", "blue"])
    assert choice_of(" b ", ["red", "green", "blue"]).readings == (("letter", 1),)


def test_plain_tags_given_to_a_model_of_spans_are_named_as_they_stand():
    with pytest.raises(ValueError, match='holds "NOUN"; expected one of 2 known labels: "X", "Y"'):
        Tag(BIO).check(("NOUN", "O"))
