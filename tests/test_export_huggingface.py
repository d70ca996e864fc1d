"""Plain transformers folders: their Auto classes load them whole and give our logits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import parity
import pytest
import torch
from conftest import WORDS, write_vocab
from in_transformers import by_the_note
from safetensors.torch import load_file
from toy_tasks import fit_task
from transformers import (
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

import berthead
from berthead.records import Example

TEXTS = ["good great cat", "a", "Zoë ran; DOG?", "unheard-of wörds 12 3", " good  cat\n", "🙂 !", "cat."]
FILES = ["README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


def plain(fitted, folder: Path, auto):
    """Its plain folder in transformers, of which nothing is missing or left over; the tokenizer; what was said."""
    lines = fitted.export_hf(folder)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    model, report = auto.from_pretrained(folder, output_loading_info=True)
    empty = {name for name, tensor in load_file(folder / "model.safetensors").items() if tensor.numel() == 0}
    assert [name for names in report.values() for name in names if name not in empty] == []
    assert lines[0].startswith(type(model).__name__)
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert all(f"- {line}\n" in page for line in lines)
    return model.eval(), AutoTokenizer.from_pretrained(folder), "\n".join(lines)


@torch.no_grad()
def logits_of(model, tokenizer, text, pair=None, **options):
    return model(**tokenizer(text, pair, return_tensors="pt", **options)).logits.numpy()


def ours(fitted, *texts: str, pair: str | None = None) -> np.ndarray:
    return fitted.predictor.logits([Example(text, pair) for text in texts])


@pytest.mark.parametrize("pair", [None, "pair"])
def test_an_adapter_is_merged(fit_toy, tmp_path, pair):
    fitted = berthead.load(fit_toy(adapt="lora:2", pooling="pooler", pair=pair, on_long="truncate"))
    model, tokenizer, said = plain(fitted, tmp_path / "hf", AutoModelForSequenceClassification)
    assert "gives this folder's logits" in said
    other = "the dog" if pair else None
    for text in TEXTS:
        found = logits_of(model, tokenizer, text, other)
        np.testing.assert_allclose(found, ours(fitted, text, pair=other), rtol=0, atol=1e-5)
    assert model.config.id2label == {0: "negative", 1: "positive"}


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_poolings_without_a_class_are_named(fit_toy, tmp_path, pooling):
    fitted = berthead.load(fit_toy(pooling=pooling, task="multilabel", label="tags", windows="attention"))
    said = "\n".join(fitted.export_hf(tmp_path / "hf"))
    assert sorted(path.name for path in (tmp_path / "hf").iterdir()) == FILES
    assert "Classes of transformers with a head do not give this folder's logits, and refuse it" in said
    assert "berthead.classifier.weight and .bias, applied to" in said
    assert "Left out" not in said
    assert f"in their order: {list(fitted.artifact.task.thresholds)}" in said
    assert "Of over 64 tokens berthead reads all, in windows." in said
    theirs, tokenizer = by_the_note(tmp_path / "hf", pooling), AutoTokenizer.from_pretrained(tmp_path / "hf")
    for text in TEXTS:
        found = theirs(**tokenizer(text, return_tensors="pt")).numpy()
        np.testing.assert_allclose(found, ours(fitted, text)[:, :3], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("task", "left_out"), [("tag", "crf.first, crf.last, crf.step"), ("joint", "label_classifier.weight")]
)
def test_tags(tiny_bert, tmp_path, task, left_out):
    fitted = fit_task(tiny_bert, task, **({"head": "crf", "epochs": 4} if task == "tag" else {}))
    model, tokenizer, said = plain(fitted, tmp_path / "hf", AutoModelForTokenClassification)
    assert left_out in said
    assert list(model.config.id2label.values()) == ["O", "B-NEG", "I-NEG", "B-POS", "I-POS"]
    for text in TEXTS:
        words = tokenizer(text).word_ids()
        first = [n for n, word in enumerate(words) if word is not None and word != words[n - 1]]
        first = [0, *first] if task == "joint" else first  # of a joint row the first unit is the whole text
        found = logits_of(model, tokenizer, text)[0, first]
        np.testing.assert_allclose(found, ours(fitted, text)[:, :5], rtol=0, atol=1e-5)


def test_answers_and_choices(tiny_bert, tmp_path):
    fitted = fit_task(tiny_bert, "span")
    model, tokenizer, _ = plain(fitted, tmp_path / "span", AutoModelForQuestionAnswering)
    batch = tokenizer("a b", "the red cat sat.", return_tensors="pt")
    with torch.no_grad():
        found = model(**batch)
    found = torch.stack([found.start_logits[0], found.end_logits[0]], 1)
    place = [0, *(n for n, side in enumerate(batch.sequence_ids(0)) if side == 1)]
    mine = fitted.predictor.logits([Example("a b", "the red cat sat.")])
    np.testing.assert_allclose(found.numpy()[place], mine, rtol=0, atol=1e-5)
    fitted = fit_task(tiny_bert, "choose", pooling="pooler")
    model, tokenizer, _ = plain(fitted, tmp_path / "choose", AutoModelForMultipleChoice)
    choices = ["good cat", "bad", "a b !"]
    batch = tokenizer(["the dog ?"] * 3, choices, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model(**{key: value[None] for key, value in batch.items()}).logits[0]
    mine = fitted.predictor.logits([Example("the dog ?", choices=tuple(choices))])[:, 0]
    np.testing.assert_allclose(found.numpy(), mine, rtol=0, atol=1e-5)


def test_a_family_without_a_class_is_an_encoder(toy_csv, tmp_path):
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    encoder = parity.make(tmp_path / "encoder", parity.CASES["modernbert"], vocab_size=len(vocabulary))
    write_vocab(encoder, vocabulary)
    fitted = berthead.fit(toy_csv, encoder=str(encoder), epochs=1, valid=0, threads=1, pooling="mean", quiet=True)
    said = fitted.export_hf(tmp_path / "hf")
    assert "AutoModel loads the encoder; the head is berthead's own." in said[0]
    found = by_the_note(tmp_path / "hf", "mean")(**AutoTokenizer.from_pretrained(tmp_path / "hf")(
        "good great cat", return_tensors="pt"
    ))  # fmt: skip
    np.testing.assert_allclose(found.numpy(), ours(fitted, "good great cat"), rtol=0, atol=1e-5)


def test_no_text_of_the_user_is_in_it(toy_model, tmp_path, cli):
    fitted, folder = berthead.load(toy_model), tmp_path / "hf"
    done = cli("export", toy_model, "--hf", folder, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["hf"]["out"] == str(folder)
    golden = [one["text"] for one in fitted.artifact.golden]
    for name in ("README.md", "config.json", "tokenizer_config.json"):
        assert not any(text in (folder / name).read_text(encoding="utf-8") for text in golden)
    assert cli("export", toy_model, "--hf", folder).code == 6
    shutil.rmtree(folder)
    folder.mkdir()
    assert cli("export", toy_model, "--hf", folder).code == 0
