"""ONNX graphs of every encoder family and head: ONNX Runtime computes what transformers and torch compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import parity
import pytest
import torch
from conftest import daily, toy_rows
from exports import TOLERANCE, exported, run_graph, same, session
from toy_tasks import choose_rows, fit_task, span_rows, tag_rows

import berthead
from berthead.export import encoder as encoder_graph
from berthead.export.graph import Graph
from berthead.model.heads import pool_windows
from berthead.model.units import pooled

TEXTS = ["good great cat", "a", "Zoë ran; DOG?", "unheard-of wörds 12 3", " good  cat\n", "🙂 !", "cat.", "bad " * 30]
LONG = [" ".join(["good cat ran", "bad dog sat on the mat", "a red mat , fine !"] * times) for times in (8, 20, 61)]


@pytest.mark.parametrize("name", parity.CASES)
def test_a_familys_graph_computes_what_transformers_computes(tmp_path, name):
    import onnx

    ours, theirs = parity.both(parity.make(tmp_path / "encoder", parity.CASES[name]), parity.CASES[name])
    axes = ["rows", "tokens"]
    with torch.no_grad():
        graph = Graph(tmp_path / "model.onnx")
        hidden = encoder_graph.vectors(graph, ours, "ids", "segments")
    inputs = {"ids": axes, "segments": axes} if ours.config.segments else {"ids": axes}
    graph.save(inputs, hidden, [*axes, ours.config.width], {"doc": "an encoder"})
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    runtime = session(tmp_path / "model.onnx")
    for one in parity.rows():
        segments = one.segments if ours.config.segments > 1 else one.segments * 0
        with torch.no_grad():
            wanted = theirs(**parity.padded([one], theirs)).last_hidden_state.numpy()
        found = run_graph(runtime, np.stack([one.ids] * 2), np.stack([segments] * 2))
        np.testing.assert_allclose(found, np.concatenate([wanted] * 2), rtol=0, atol=TOLERANCE)


ROW_KINDS = {
    "classify, mean": {"pooling": "mean"},
    "classify, pooler": {"pooling": "pooler", "epochs": 6},
    "classify, windows attend": {"pooling": "cls", "windows": "attention"},
    "multilabel, windows max": {"task": "multilabel", "label": "tags", "windows": "max"},
    "regress, in windows of 16": {"task": "regress", "label": "stars", "max_tokens": 16, "stride": 4},
    "classify, cut": {"on_long": "truncate", "max_tokens": 12},
}


@pytest.mark.parametrize("kind", ROW_KINDS)
def test_answers_to_texts_are_the_same(fit_toy, tmp_path, kind):
    model = berthead.load(fit_toy(**ROW_KINDS[kind]))
    texts = [*TEXTS, *LONG]
    ours = model.predict(texts)
    assert same(ours, exported(model, tmp_path / "onnx").predict(texts)) == len(texts)
    assert max(one.n_windows for one in ours) > 3 or ours[-1].truncated


def test_answers_to_pairs_are_the_same(fit_toy, tmp_path):
    model = berthead.load(fit_toy(pair="pair"))
    pairs = [(one, other) for one in [*TEXTS, LONG[0]] for other in ("the cat", LONG[1])]
    again = exported(model, tmp_path / "onnx")
    assert same(model.predict(pairs), again.predict(pairs)) == len(pairs)
    np.testing.assert_allclose(model.predict_proba(pairs), again.predict_proba(pairs), rtol=0, atol=TOLERANCE)
    assert again.labels == model.labels


def inputs_of(task: str) -> list:
    """Inputs of a task in every form, short and long."""
    if task in ("tag", "joint"):
        return [*TEXTS, *LONG, {"tokens": ["good", "great", "cat"]}, {"tokens": ["bad"] * 90}]
    if task == "span":
        found = [(row["question"], row["context"]) for row in span_rows(10, seed=3, unanswerable=True)]
        return [*found, ("a b", "red " + LONG[2]), ("a b", LONG[1] + " red")]
    return [(row["question"], row["choices"]) for row in choose_rows(10, seed=3)] + [("a ?", ["good", LONG[1]])]


OTHER_KINDS = {
    "tag": {}, "tag, crf": {"head": "crf", "epochs": 4}, "joint": {}, "joint, crf": {"head": "crf", "epochs": 4},
    "span": {"rows": span_rows(80, unanswerable=True), "valid": 0.25}, "choose": {},
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_answers_of_the_other_tasks_are_the_same(tiny_bert, tmp_path, kind):
    task = kind.partition(",")[0]
    model = fit_task(tiny_bert, task, **OTHER_KINDS[kind])
    again = exported(model, tmp_path / "onnx")
    inputs = inputs_of(task)
    ours = model.predict(inputs)
    assert same(ours, again.predict(inputs)) == len(inputs)
    assert max(one.n_windows for one in ours) > 2
    assert len({str(one.answer) for one in ours}) > 1


def test_parts_of_speech_come_back(tiny_bert, tmp_path):
    rows = [row | {"tags": [{"O": "WORD"}.get(tag, tag[2:]) for tag in row["tags"]]} for row in tag_rows(40)]
    model = fit_task(tiny_bert, "tag", rows, epochs=1)
    same(model.predict(TEXTS), exported(model, tmp_path / "onnx").predict(TEXTS))


def test_a_function_is_scored_alike(fit_toy, tmp_path):
    model = berthead.load(fit_toy(pooling="mean"))
    ours, theirs = model.evaluate(toy_rows(1)), exported(model, tmp_path / "onnx").evaluate(toy_rows(1))
    assert theirs["loss"] == pytest.approx(ours["loss"], abs=1e-5)
    assert ours | {"loss": 0, "calibration_error": 0} == theirs | {"loss": 0, "calibration_error": 0}


@pytest.mark.parametrize("adapt", ["lora:2", "top:1"])
def test_what_was_adapted_is_in_the_graph(fit_toy, tmp_path, adapt):
    model = berthead.load(fit_toy(adapt=adapt))
    same(model.predict(TEXTS), exported(model, tmp_path / "onnx").predict(TEXTS))


def test_rows_are_computed_by_length_and_come_back_in_order(fit_toy, tmp_path):
    model = berthead.load(fit_toy(pooling="mean"))
    again = exported(model, tmp_path / "onnx")
    small = berthead.load(tmp_path / "onnx", token_budget=20, threads=1)
    texts = [" ".join(["good", "bad", "cat"][: n % 4] * (n % 5)) + " a" for n in range(50)]
    alone = [again.predict(text) for text in texts]
    for some in (again, small):
        assert same(alone, some.predict(texts)) == 50


@pytest.mark.parametrize("how", ["mean", "max", "attention"])
def test_windows_are_pooled_as_torch_pools_them(how):
    random = np.random.default_rng(5)
    unit = np.repeat(np.arange(6), [1, 3, 1, 1, 7, 2])
    rows = (random.standard_normal((15, 4)) * 5).astype(np.float32)
    parts = (torch.from_numpy(rows[:, :3]), torch.from_numpy(unit), 6, how, torch.from_numpy(rows[:, 3:]))
    np.testing.assert_allclose(pooled(rows, unit, 6, how, 3), pool_windows(*parts).numpy(), rtol=0, atol=1e-6)


SAMPLES = {
    "classify": ("tickets/test.csv", {"label": "queue"}),
    "multilabel": ("tickets/test.csv", {"label": "tags"}),
    "regress": ("tickets/test.csv", {"label": "urgency"}),
    "tag": ("tasks/commands-train.jsonl", {"label": "tags", "head": "crf"}),
    "joint": ("tasks/commands-train.jsonl", {"label": "tags", "intent": "intent"}),
    "span": ("tasks/shops-train.json", {}),
    "choose": ("tasks/replies-train.jsonl", {}),
}


@pytest.mark.parametrize(
    "task",
    daily(SAMPLES, "tag"),
)
def test_the_samples_are_answered_alike_by_a_real_encoder(tmp_path, task):
    from conftest import ROOT

    from berthead.predict.rows import labelled_rows

    file, options = SAMPLES[task]
    data: Path = ROOT / "sample" / file
    model = berthead.fit(data, task=task, adapt="frozen", epochs=3, lr=5e-3, max_tokens=96, quiet=True, **options)
    again = exported(model, tmp_path / "onnx")
    examples = labelled_rows(data, [model.function]).examples[:80]
    long = [one for one in examples if one.words is None and one.choices is None][:3]
    examples += [type(one)(" ".join([one.text] * 30), one.pair and one.pair * 20) for one in long]
    same(model.predictor.predict(examples), again.predictor.predict(examples))
