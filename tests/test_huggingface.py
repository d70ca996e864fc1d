"""A model folder is a transformers folder: the same logits, ids, labels and answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SAMPLE, daily, toy_rows, tries
from hypothesis import given, settings
from hypothesis import strategies as st
from in_transformers import by_the_note
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

import berthead
from berthead.cli.reports import info_text
from berthead.predict.rows import read_rows
from berthead.records import Example
from berthead.text.layout import Layout
from berthead.text.windows import LengthPolicy, read_texts

KINDS = {
    "classify": {},
    "multilabel": {"task": "multilabel", "label": "tags"},
    "regress": {"task": "regress", "label": "stars"},
}
PROBLEMS = {
    "classify": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regress": "regression",
}
TEXTS = [
    *(row["text"] for row in toy_rows(1)),
    "a",
    "!",
    "🙂",
    "Zoë ran; poor DOG?",
    "unheard-of wörds 12 3 4",
    " good  cat\n",
    "the cat sat on the mat. " * 30,
    *("awful " * count for count in (61, 62, 63)),
    "猫 good 犬",
    "[SEP] good [MASK] cat",
]
SECOND = ["the dog", "the cat sat, fine", "q " * 80, "?", "great red mat " * 9]


def inputs_of(folder: Path) -> list[Example]:
    pairs = berthead.load(folder).artifact.columns["pair"]
    return [Example(text, SECOND[n % len(SECOND)] if pairs else None) for n, text in enumerate(TEXTS)]


def tokens_of(folder: Path, examples, **options):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    second = [one.pair for one in examples] if examples[0].pair is not None else None
    return tokenizer([one.text for one in examples], second, truncation=True, **options)


def their_model(folder: Path):
    """Logits as berthead.json tells a transformers user to compute them; nothing may be missing or left over."""
    record = json.loads((folder / "berthead.json").read_text(encoding="utf-8"))
    if record["head"]["pooling"] != "pooler":
        assert record["transformers"]["class"] == "BertModel"
        return by_the_note(folder, record["head"]["pooling"])
    model, report = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert {name: list(keys) for name, keys in report.items() if keys} == {}
    assert type(model).__name__ == record["transformers"]["class"] == "BertForSequenceClassification"
    return lambda **batch: model.eval()(**batch).logits


def rows_read(model, examples):
    """What the model reads of examples whose ends are cut: one row each."""
    artifact = model.artifact
    layout = Layout(artifact.task.encode(artifact.tokenizer, examples, artifact.policy))
    assert layout.plain
    return layout.rows


@torch.no_grad()
def their_logits(folder: Path, model, examples) -> np.ndarray:
    return model(**tokens_of(folder, examples, padding=True, return_tensors="pt")).numpy()


@pytest.mark.parametrize("pair", daily([None, "pair"], "pair"))
@pytest.mark.parametrize("pooling", ["pooler", "mean", "cls"])
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_gives_our_logits(kind, pooling, pair, fit_toy):
    folder = fit_toy(pooling=pooling, pair=pair, on_long="truncate", **KINDS[kind])
    examples = inputs_of(folder)
    ours = berthead.load(folder).predictor.logits(examples)
    theirs = their_model(folder)
    assert np.ptp(ours, axis=0).min() > 1e-3  # logits that are all alike would prove nothing
    np.testing.assert_allclose(ours, their_logits(folder, theirs, examples), rtol=0, atol=1e-5)
    alone = np.concatenate([their_logits(folder, theirs, [example]) for example in examples])
    np.testing.assert_allclose(ours, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pair", [None, "pair"])
@pytest.mark.parametrize("max_tokens", [None, 12])
def test_the_tokenizer_of_the_folder_gives_our_ids(pair, max_tokens, fit_toy):
    folder = fit_toy(pooling="mean", pair=pair, max_tokens=max_tokens, on_long="truncate")
    examples = inputs_of(folder)
    ours = rows_read(berthead.load(folder), examples)
    theirs = tokens_of(folder, examples)
    assert max(len(ids) for ids in theirs["input_ids"]) == (max_tokens or 64)
    assert [one.ids.tolist() for one in ours] == theirs["input_ids"]
    assert [one.segments.tolist() for one in ours] == theirs["token_type_ids"]


@settings(deadline=None, max_examples=tries(60))
@given(
    lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=8), room=st.integers(8, 40)
)
def test_long_pairs_are_cut_as_transformers_cuts_them(lengths, room, fit_toy):
    folder = fit_toy(pooling="mean", pair="pair")
    tokenizer = berthead.load(folder).artifact.tokenizer
    policy = LengthPolicy(room, "truncate")
    first = [" ".join("abcdefghijklmnopqrstuvwxyz!?.0123"[n] for n in range(one)) for one, _ in lengths]
    second = [" ".join("zyxwvutsrqponmlkjihgfedcba3210.?!,"[n] for n in range(two)) for _, two in lengths]
    theirs = AutoTokenizer.from_pretrained(folder)(first, second, truncation=True, max_length=room)
    ours = [row for one in read_texts(tokenizer, first, second, policy) for row in one.rows]
    for mine, encoded in zip(ours, tokenizer.encode(first, second, room), strict=True):
        assert (mine.ids.tolist(), mine.segments.tolist()) == (encoded.ids.tolist(), encoded.segments.tolist())
        assert (mine.n_tokens, mine.truncated) == (encoded.n_tokens, encoded.truncated)
    assert [one.ids.tolist() for one in ours] == theirs["input_ids"]
    assert [one.segments.tolist() for one in ours] == theirs["token_type_ids"]


@pytest.mark.parametrize("pooling", ["pooler", "mean"])
@pytest.mark.parametrize("kind", KINDS)
def test_config_names_the_users_labels_and_the_problem(kind, pooling, fit_toy):
    folder = fit_toy(pooling=pooling, **KINDS[kind])
    config = AutoConfig.from_pretrained(folder)
    labels = berthead.load(folder).labels
    assert config.id2label == dict(enumerate(labels or ["value"]))
    assert config.label2id == {label: number for number, label in config.id2label.items()}
    assert config.problem_type == PROBLEMS[kind]
    assert not any(name.startswith("LABEL_") for name in config.id2label.values())


def test_labels_that_read_alike_are_told_apart_in_config(tiny_bert, tmp_path):
    rows = [{"text": row["text"], "label": ["0", 0, 1, True][n % 4]} for n, row in enumerate(toy_rows())]
    berthead.fit(
        rows, out=tmp_path / "m", encoder=str(tiny_bert), epochs=1, adapt="frozen", valid=0, quiet=True, threads=1
    )
    config = AutoConfig.from_pretrained(tmp_path / "m")
    assert len(set(config.id2label.values())) == config.num_labels == 4
    their_model(tmp_path / "m")


def test_the_pipeline_gives_our_label_and_score(fit_toy):
    folder = fit_toy(pooling="pooler", epochs=6, on_long="truncate")
    model = berthead.load(folder)
    assert model.artifact.task.temperature == 1
    answers = pipeline("text-classification", str(folder), device="cpu")(TEXTS, truncation=True)
    ours = model.predict(TEXTS)
    assert [one["label"] for one in answers] == [one.answer for one in ours]
    assert [one["score"] for one in answers] == pytest.approx([one.score for one in ours], abs=1e-5)
    assert {one.answer for one in ours} == {"positive", "negative"}


def test_the_pipeline_gives_our_label_and_score_for_pairs(fit_toy):
    folder = fit_toy(pooling="pooler", pair="pair", on_long="truncate")
    examples = inputs_of(folder)
    apply = pipeline("text-classification", str(folder), device="cpu")
    answers = [apply({"text": one.text, "text_pair": one.pair}, truncation=True) for one in examples]
    ours = berthead.load(folder).predict([(one.text, one.pair) for one in examples])
    assert [one["label"] for one in answers] == [one.answer for one in ours]
    assert [one["score"] for one in answers] == pytest.approx([one.score for one in ours], abs=1e-5)


def test_the_pipeline_gives_our_probabilities_and_numbers(fit_toy):
    folder = fit_toy(pooling="pooler", on_long="truncate", **KINDS["multilabel"])
    answers = pipeline("text-classification", str(folder), device="cpu")(TEXTS, truncation=True, top_k=None)
    for theirs, ours in zip(answers, berthead.load(folder).predict(TEXTS), strict=True):
        assert {one["label"]: one["score"] for one in theirs} == pytest.approx(ours.probabilities, abs=1e-5)
    folder = fit_toy(pooling="pooler", on_long="truncate", **KINDS["regress"])
    answers = pipeline("text-classification", str(folder), device="cpu")(TEXTS, truncation=True)
    ours = berthead.load(folder).predict(TEXTS)
    # Ours stay in the fitted range, 1.5 to 4.5.
    assert np.clip([one["score"] for one in answers], 1.5, 4.5) == pytest.approx([one.answer for one in ours], abs=1e-5)


@pytest.mark.parametrize(
    ("pooling", "words"),
    [
        ("pooler", ["BertForSequenceClassification", "gives this folder's logits"]),
        ("mean", ["BertModel", "and refuse it", "applied to the mean of a row's vectors"]),
        ("cls", ["BertModel", "and refuse it", "applied to a row's first vector"]),
    ],
)
def test_info_says_which_class_loads_the_folder(pooling, words, fit_toy):
    folder = fit_toy(pooling=pooling)
    record = berthead.load(folder).info()
    text = info_text(record, str(folder))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert record["transformers"]["class"] == words[0]
    assert config["architectures"] == (words[:1] if pooling == "pooler" else [])
    for word in words:
        assert word in text
        assert word in " ".join(record["transformers"].values())


@pytest.mark.exhaustive
def test_the_packaged_encoder_fitted_frozen_gives_our_logits_in_transformers(tmp_path):
    """Real weights, real texts from a few words to over 512 tokens, mean pooling as that encoder was trained."""
    rows = [row.values for row in read_rows(SAMPLE / "test.csv")[1]][:60]
    folder = tmp_path / "tickets"
    model = berthead.fit(
        rows, out=folder, text="text", label="queue", adapt="frozen", epochs=3, threads=2, valid=0, quiet=True,
        on_long="truncate",
    )  # fmt: skip
    assert model.info()["head"]["pooling"] == "mean"
    texts = sorted((row["text"] for row in rows), key=len)
    chosen = [*texts[::6], " ".join(texts[:20]), " ".join(texts)]
    examples = [Example(text) for text in chosen]
    ours = model.predictor.logits(examples)
    theirs = their_model(folder)
    np.testing.assert_allclose(ours, their_logits(folder, theirs, examples), rtol=0, atol=1e-5)
    alone = np.concatenate([their_logits(folder, theirs, [example]) for example in examples])
    np.testing.assert_allclose(ours, alone, rtol=0, atol=1e-5)
    ids = tokens_of(folder, examples)["input_ids"]
    encoded = rows_read(model, examples)
    assert [one.ids.tolist() for one in encoded] == ids
    assert max(one.n_tokens for one in encoded) > model.artifact.max_tokens == 512
