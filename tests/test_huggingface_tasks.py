"""Folders of tag, span, choose and joint are transformers folders: the same logits, labels and answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_bert
from in_transformers import by_the_note
from safetensors.torch import load_file
from toy_tasks import fit_task, span_rows, tag_rows
from transformers import (
    AutoConfig,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
    AutoTokenizer,
    pipeline,
)

import berthead
from berthead.model.checkpoint import read_checkpoint
from berthead.records import Example

AUTO = {
    "BertForTokenClassification": AutoModelForTokenClassification,
    "BertForQuestionAnswering": AutoModelForQuestionAnswering,
    "BertForMultipleChoice": AutoModelForMultipleChoice,
}
TEXTS = [
    "good great cat", "a", "Zoë ran; DOG?", "unheard-of wörds 12 3", " good  cat\n", "bad " * 40, "🙂 !", "cat."
]  # fmt: skip
CONTEXTS = ["the red cat sat.", "a", "red " * 50, "Zoë; unheard-of wörds", "🙂 red!", "cat\n\nred"]
CHOICES = [("good cat", "bad"), ("a", "b ! c", "good " * 30), ("unheard", "Zoë", "red", "🙂")]


@pytest.fixture(scope="module")
def pooled_bert(tmp_path_factory) -> Path:
    """A tiny encoder with a pooler, which choose begins with."""
    return make_bert(tmp_path_factory.mktemp("encoders") / "pooled", seed=4)


def saved(fitted, folder: Path) -> Path:
    fitted.save(folder)
    return folder


def their_model(folder: Path):
    """The model as berthead.json tells a transformers user to load it; what may be left over is our own part."""
    record = json.loads((folder / "berthead.json").read_text(encoding="utf-8"))
    said = record["transformers"]
    model, report = AUTO[said["class"]].from_pretrained(folder, output_loading_info=True)
    empty = {name for name, tensor in load_file(folder / "model.safetensors").items() if tensor.numel() == 0}
    left = [name for names in report.values() for name in names if name not in empty]
    architectures = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]
    assert architectures == ([] if empty else [said["class"]])
    return model.eval(), sorted(map(str, left)), said


def tokens_of(folder: Path, first, second=None, **options):
    return AutoTokenizer.from_pretrained(folder)(first, second, truncation=True, return_tensors="pt", **options)


def token_logits(folder: Path, model, text: str, outputs: int) -> np.ndarray:
    """Their logits at the first token of each word."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(text, return_tensors="pt")
    words = batch.word_ids(0)
    with torch.no_grad():
        logits = model(**batch).logits[0].numpy()
    assert logits.shape[1] == outputs
    first = [n for n, word in enumerate(words) if word is not None and word != words[n - 1]]
    return logits[first]


@pytest.mark.parametrize("head", ["auto", "crf"])
def test_token_classification_gives_our_logits_and_labels(head, tiny_bert, tmp_path):
    fitted = fit_task(tiny_bert, "tag", **({"head": head} if head != "auto" else {}))
    folder = saved(fitted, tmp_path / "m")
    model, left, said = their_model(folder)
    assert said["class"] == "BertForTokenClassification"
    assert left == ([] if head == "auto" else ["crf.first", "crf.last", "crf.step"])
    assert ("conditional random field" in said["note"]) == (head == "crf")
    config = AutoConfig.from_pretrained(folder)
    assert list(config.id2label.values()) == ["O", "B-NEG", "I-NEG", "B-POS", "I-POS"]
    assert config.label2id == {label: number for number, label in config.id2label.items()}
    ours = [berthead.load(folder).predictor.logits([Example(text)]) for text in TEXTS]
    assert np.ptp(np.concatenate(ours)) > 1
    for text, logits in zip(TEXTS, ours, strict=True):
        np.testing.assert_allclose(logits, token_logits(folder, model, text, 5), rtol=0, atol=1e-5)
    # In one batch, and given as words.
    words = [["good", "great", "cat"], ["unheard-of", "bad"], ["the"] * 30]
    batch = tokens_of(folder, words, is_split_into_words=True, padding=True)
    with torch.no_grad():
        theirs = model(**batch).logits
    for number, row in enumerate(words):
        ids = batch.word_ids(number)
        first = [ids.index(word) for word in range(len(row))]
        logits = fitted.predictor.logits([Example(" ".join(row), words=tuple(row))])
        np.testing.assert_allclose(logits, theirs[number, first], rtol=0, atol=1e-5)


def test_their_pipeline_finds_our_entities(tiny_bert, tmp_path):
    fitted = fit_task(tiny_bert, "tag")
    folder = saved(fitted, tmp_path / "m")
    apply = pipeline("token-classification", str(folder), device="cpu", aggregation_strategy="first")
    texts = ["the good great cat", "bad dog , good cat .", "the mat", "a good great b bad c"]
    for text, theirs in zip(texts, apply(texts), strict=True):
        found = [(one["start"], one["end"], one["entity_group"]) for one in theirs]
        assert found == [(span.start, span.end, span.label) for span in fitted.predict(text).spans]


def test_parts_of_speech_are_labels_of_the_config_as_they_are(tiny_bert, tmp_path):
    rows = [row | {"tags": [{"O": "WORD"}.get(tag, tag[2:]) for tag in row["tags"]]} for row in tag_rows(40)]
    folder = saved(fit_task(tiny_bert, "tag", rows, epochs=1), tmp_path / "m")
    model, left, _ = their_model(folder)
    assert (list(model.config.id2label.values()), left) == (["NEG", "POS", "WORD"], [])
    logits = berthead.load(folder).predictor.logits([Example("bad cat")])
    np.testing.assert_allclose(logits, token_logits(folder, model, "bad cat", 3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("unanswerable", [False, True])
def test_question_answering_gives_our_logits(unanswerable, tiny_bert, tmp_path):
    fitted = fit_task(tiny_bert, "span", span_rows(80, unanswerable=unanswerable))
    folder = saved(fitted, tmp_path / "m")
    model, left, said = their_model(folder)
    assert (said["class"], left) == ("BertForQuestionAnswering", [])
    assert "AutoModelForQuestionAnswering gives" in said["note"]
    for question in ("the dog ?", "a"):
        for context in CONTEXTS:
            batch = tokens_of(folder, question, context)
            with torch.no_grad():
                out = model(**batch)
            theirs = torch.stack([out.start_logits[0], out.end_logits[0]], 1).numpy()
            sides = batch.sequence_ids(0)
            units = [0, *(place for place, side in enumerate(sides) if side == 1)]
            ours = fitted.predictor.logits([Example(question, context)])
            assert len(ours) == len(units)
            np.testing.assert_allclose(ours, theirs[units], rtol=0, atol=1e-5)


def test_their_offsets_and_logits_give_our_answer(tiny_bert, tmp_path):
    fitted = fit_task(tiny_bert, "span")
    folder = saved(fitted, tmp_path / "m")
    model, _, _ = their_model(folder)
    for row in span_rows(6, seed=8):
        question, context = row["question"], f"Zoë 🙂, {row['context']}"
        batch = tokens_of(folder, question, context, return_offsets_mapping=True)
        offsets = batch.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            out = model(**batch)
        inside = [place for place, side in enumerate(batch.sequence_ids(0)) if side == 1]
        pairs = [(a, b) for a in inside for b in inside if a <= b]
        first, last = max(pairs, key=lambda pair: float(out.start_logits[0, pair[0]] + out.end_logits[0, pair[1]]))
        best = fitted.predict((question, context)).spans[0]
        assert (best.start, best.end) == (offsets[first][0], offsets[last][1])


def test_multiple_choice_gives_our_logits(pooled_bert, tmp_path):
    fitted = fit_task(pooled_bert, "choose", pooling="pooler")
    folder = saved(fitted, tmp_path / "m")
    model, left, said = their_model(folder)
    assert (said["class"], left) == ("BertForMultipleChoice", [])
    assert "AutoModelForMultipleChoice gives" in said["note"]
    for question in ("the cat ?", "Zoë"):
        for choices in CHOICES:
            batch = tokens_of(folder, [question] * len(choices), list(choices), padding=True)
            with torch.no_grad():
                theirs = model(**{name: value[None] for name, value in batch.items()}).logits[0]
            ours = fitted.predictor.logits([Example(question, choices=choices)])[:, 0]
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
            shares = list(fitted.predict((question, list(choices))).probabilities.values())
            assert shares == pytest.approx(theirs.softmax(0).tolist(), abs=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_choices_pooled_otherwise_are_said_to_have_no_class(pooling, tiny_bert, tmp_path):
    fitted = fit_task(tiny_bert, "choose", pooling=pooling, epochs=2)
    folder = saved(fitted, tmp_path / "m")
    said = json.loads((folder / "berthead.json").read_text(encoding="utf-8"))["transformers"]
    assert said["class"] == "BertModel"
    assert "Classes of transformers with a head do not give this folder's logits, and refuse it" in said["note"]
    theirs = by_the_note(folder, pooling)
    for choices in CHOICES:
        ours = fitted.predictor.logits([Example("a b", choices=choices)])
        batch = tokens_of(folder, ["a b"] * len(choices), list(choices), padding=True)
        np.testing.assert_allclose(ours, theirs(**batch).numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("head", ["auto", "crf"])
def test_the_tags_of_a_joint_folder_are_those_of_token_classification(head, tiny_bert, tmp_path):
    fitted = fit_task(tiny_bert, "joint", **({"head": head} if head != "auto" else {}))
    folder = saved(fitted, tmp_path / "m")
    model, left, said = their_model(folder)
    assert said["class"] == "BertForTokenClassification"
    assert "label's part of the head is berthead's own" in said["note"]
    own = {f"berthead.label_classifier.{part}" for part in ("bias", "weight")}
    own |= {f"berthead.crf.{part}" for part in ("first", "last", "step")} if head == "crf" else set()
    assert set(left) == own | {f"berthead.bert.pooler.dense.{part}" for part in ("bias", "weight")}
    assert list(model.config.id2label.values()) == ["O", "B-NEG", "I-NEG", "B-POS", "I-POS"]
    for text in TEXTS:
        ours = fitted.predictor.logits([Example(text)])
        assert ours.shape[1] == 7
        np.testing.assert_allclose(ours[1:, :5], token_logits(folder, model, text, 5), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("task", "options"),
    [("tag", {}), ("tag", {"head": "crf"}), ("span", {}), ("choose", {}), ("choose", {"windows": "attention"}),
     ("joint", {}), ("joint", {"head": "crf"})],
)  # fmt: skip
def test_a_saved_folder_is_an_encoder_to_fit_on(task, options, tiny_bert, tmp_path):
    """Its encoder's weights are read, and the head that was fitted is left."""
    fitted = fit_task(tiny_bert, task, **options)
    checkpoint = read_checkpoint(str(saved(fitted, tmp_path / "m")))
    theta = fitted.artifact.model.encoder.state_dict()
    again = checkpoint.encoder().state_dict()
    assert theta.keys() == again.keys()
    assert all(torch.equal(theta[name], again[name]) for name in theta)
