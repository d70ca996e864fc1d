"""Every family adapted: the encoder in parts, LoRA merged and in PEFT, and vectors that are looked up."""

from __future__ import annotations

import json

import numpy as np
import parity
import peft
import pytest
import torch
import transformers
from conftest import daily, toy_rows
from in_transformers import pooled
from test_families import KINDS, encoder_of, their_batch  # noqa: F401 - encoder_of is a fixture
from torch import nn

import berthead
from berthead.model import lora
from berthead.model.adapt import Adapt, adapt, frozen_parts, stages
from berthead.model.checkpoint import read_checkpoint
from berthead.model.heads import RowHead
from berthead.model.model import Model
from berthead.records import Example
from berthead.train import modes
from berthead.train.optim import peak_rate

TEXTS = ["good cat", "the awful dog sat, red.", "b a d " * 9, "fine"]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """An encoder of each case, made once."""
    made = {}

    def of(name):
        if name not in made:
            folder = parity.make(tmp_path_factory.mktemp("family"), parity.CASES[name])
            made[name] = read_checkpoint(str(folder))
        return made[name].encoder()

    return of


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
@pytest.mark.parametrize("name", parity.CASES)
def test_one_part_after_the_other_is_the_encoder(encoders, name, cut):
    encoder = encoders(name)
    layers = len(encoder.order)
    tensors = parity.packed(parity.rows(), encoder)
    lower, upper = encoder.part(0, min(cut, layers)), encoder.part(min(cut, layers), layers)
    with torch.no_grad():
        hidden = lower(tensors)
        upper.embeddings = nn.Module()
        upper.embeddings.forward = lambda pack: hidden
        assert torch.equal(upper(tensors), encoder(tensors))


@pytest.mark.parametrize("name", parity.CASES)
def test_lora_is_merged_exactly(encoders, name):
    model = Model(encoders(name), RowHead(32, 2, "mean")).eval()
    torch.manual_seed(0)
    adapt(model, Adapt.parse("lora:3"))
    tensors = parity.packed(parity.rows(), model.encoder)
    with torch.no_grad():
        before = model(tensors)
        lora.fill(model, {key: torch.randn_like(one) * 0.1 for key, one in lora.lora_tensors(model).items()})
        after = model(tensors)
        plain = lora.merged(model)
        assert (after - before).abs().max() > 1e-3
        torch.testing.assert_close(plain(tensors), after, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", parity.CASES)
def test_each_part_has_a_stage_and_a_rate(encoders, name):
    model = Model(encoders(name), RowHead(32, 2, "mean"))
    adapt(model, Adapt.parse("full"))
    blocks = len(model.encoder.blocks)
    staged = [id(one) for group in stages(model) for one in group]
    assert sorted(staged) == sorted(id(one) for one in model.encoder.parameters())
    names = {id(one): key for key, one in model.named_parameters()}
    rates = [{peak_rate(names[id(one)], blocks, 1.0, 9.0, 0.5) for one in group} for group in stages(model)]
    assert rates == [{0.5**depth} for depth in range(blocks + 1)]
    adapt(model, Adapt.parse("top:1"))
    learning = [key for key, one in model.encoder.named_parameters() if one.requires_grad]
    assert all(key.startswith((f"blocks.{blocks - 1}.", "final_norm.")) for key in learning)
    assert len(frozen_parts(model.encoder)) == 2 + model.encoder.order.index(blocks - 1)


@pytest.mark.parametrize("name", daily(KINDS, "bert", "roberta", "albert", "deberta-v2, as v3", "modernbert"))
def test_peft_gives_the_logits_of_an_adapter_folder(encoder_of, tmp_path, name):  # noqa: F811
    encoder = encoder_of(name)
    options = {"epochs": 2, "batch": 8, "lr": 1e-2, "valid": 0, "threads": 1, "pooling": "mean", "quiet": True}
    berthead.fit(toy_rows(1), out=tmp_path / "m", encoder=str(encoder), adapt="lora:3", **options)
    model = berthead.load(tmp_path / "m")
    assert model.verify() < 1e-5
    said = json.loads((tmp_path / "m" / "berthead.json").read_text(encoding="utf-8"))["transformers"]
    if name == "nomic_bert":
        assert "PEFT does not know" in said["note"]
        return
    config = transformers.AutoConfig.from_pretrained(tmp_path / "m")
    base = getattr(transformers, said["class"]).from_pretrained(encoder, config=config)
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "m")).eval()
    changed = {key: one for key, one in theirs.named_parameters() if "lora_B" in key}
    assert len(changed) == len(model.artifact.adapter.tensors) / 2
    assert all(one.any() for one in changed.values())
    batch = their_batch(tmp_path / "m", TEXTS)
    assert said["class"].endswith("Model")  # the head is ours alone
    with torch.no_grad():
        vectors = pooled(theirs(**batch).last_hidden_state, batch["attention_mask"], "mean")
        wanted = model.artifact.model.head.classify(vectors)
    ours = model.predictor.logits([Example(text) for text in TEXTS])
    np.testing.assert_allclose(ours, wanted.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_a_fit_on_looked_up_vectors_is_the_fit(encoder_of, name, monkeypatch):  # noqa: F811
    options = {"epochs": 3, "batch": 8, "lr": 1e-3, "valid": 0.25, "threads": 1, "quiet": True, "precision": "fp32"}
    losses, kept = [], []
    for _ in range(2):
        fitted = berthead.fit(toy_rows(1), encoder=str(encoder_of(name)), adapt="top:1", **options)
        run = fitted.info()["run"]
        losses.append([epoch[key] for epoch in run["epochs"] for key in ("train_loss", "loss")])
        kept.append("kept" in run)
        monkeypatch.setattr(modes, "frozen_layers", lambda model: 0)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    encoder = fitted.artifact.model.encoder
    assert kept == [encoder.order.index(len(encoder.blocks) - 1) > 0, False]
