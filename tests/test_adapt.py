"""What learns and how fast: the option's grammar, the marked parameters, the rates, gradual unfreezing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import make_bert, toy_rows
from hypothesis import given
from hypothesis import strategies as st
from test_train import Plain, problem, same, settings, spied, state_of, their_inputs, their_model
from torch import nn

import berthead
from berthead.errors import UsageError
from berthead.kernels import library
from berthead.model.adapt import Adapt, adapt, frozen_parts, stages
from berthead.model.checkpoint import read_checkpoint
from berthead.model.heads import RowHead
from berthead.model.model import Model
from berthead.options import LORA_TARGETS, FitOptions
from berthead.tasks import Classify
from berthead.train.loop import fit_model
from berthead.train.optim import adamw, peak_rate, unfrozen
from berthead.train.settings import settings_for


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """A tiny BERT of four blocks without dropout."""
    folder = tmp_path_factory.mktemp("calm") / "four"
    return make_bert(folder, num_hidden_layers=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


@pytest.fixture(scope="module")
def lively(tmp_path_factory):
    """The same with dropout."""
    return make_bert(tmp_path_factory.mktemp("lively") / "four", num_hidden_layers=4)


def marked(folder, text, pooling="mean"):
    """A model with the parameters that learn marked."""
    checkpoint = read_checkpoint(str(folder))
    model = Model(checkpoint.encoder(), RowHead(32, 2, pooling))
    adapt(model, Adapt.parse(text))
    return model


def learning(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


# The option


@pytest.mark.parametrize(
    ("text", "record"),
    [
        ("full", Adapt("full")),
        ("frozen", Adapt("frozen")),
        ("bitfit", Adapt("bitfit")),
        ("top:3", Adapt("top", blocks=3)),
        ("lora:8", Adapt("lora", rank=8, alpha=16.0, targets=LORA_TARGETS)),
        ("lora:4,alpha=4", Adapt("lora", rank=4, alpha=4.0, targets=LORA_TARGETS)),
        ("lora:1,alpha=0.5,targets=value", Adapt("lora", rank=1, alpha=0.5, targets=("value",))),
        ("lora:2,targets=down+query", Adapt("lora", rank=2, alpha=4.0, targets=("query", "down"))),
    ],
)
def test_the_option_is_read_into_a_record(text, record):
    assert Adapt.parse(FitOptions(adapt=text).adapt) == record


@pytest.mark.parametrize(
    "text",
    ["", "Full", "top", "top:", "top:0", "top:-1", "top:1.5", "top:1,2", "frozen:1", "lora", "lora:0", "lora:8,",
     "lora:8,alpha", "lora:8,alpha=", "lora:8,alpha=0", "lora:8,alpha=0.0", "lora:8,alpha=-1", "lora:8,alpha=nan",
     "lora:8,targets=", "lora:8,targets=quary", "lora:8,targets=query+", "lora:8,targets=query,alpha=4", "lora:8 ",
     "lora:8\n", "top:٣", "lora:8,dropout=0.1", "lora:999999", "top:99999", "full,frozen"],
    ids=repr,
)  # fmt: skip
def test_another_text_is_refused_before_anything_is_read(text, tmp_path, monkeypatch):
    for fit in (
        lambda: Adapt.parse(text),
        lambda: berthead.fit("no-such-file.csv", adapt=text),
        lambda: berthead.TextClassifier(adapt=text).fit(["a", "b"], [0, 1]),
    ):
        with pytest.raises(UsageError) as error:
            fit()
        assert (error.value.where.rstrip(":"), error.value.saw) == ("--adapt", f'is "{text}"')
        assert "lora:R[,alpha=A][,targets=a+b]" in error.value.expected
    monkeypatch.setenv("BERTHEAD_ADAPT", text)
    with pytest.raises(UsageError, match="BERTHEAD_ADAPT"):
        FitOptions.from_sources({})


@given(
    rank=st.integers(1, 9999), alpha=st.none() | st.integers(1, 99999) | st.just(0.25),
    targets=st.none() | st.lists(st.sampled_from(LORA_TARGETS), min_size=1),
)  # fmt: skip
def test_every_lora_text_is_read_back(rank, alpha, targets):
    text = f"lora:{rank}" + (f",alpha={alpha}" if alpha else "")
    text += f",targets={'+'.join(targets)}" if targets else ""
    record = Adapt.parse(text)
    assert (record.rank, record.alpha) == (rank, alpha or 2 * rank)
    assert set(record.targets) == set(targets or LORA_TARGETS)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"adapt": "top:5"}, 'adapt="top:5": the encoder has 4 blocks; expected top:1 to top:4'),
        ({"adapt": "lora:33"}, 'adapt="lora:33": the rank is above the encoder\'s width, 32'),
        ({"adapt": "frozen", "unfreeze": True}, 'unfreeze: adapt="frozen" fits the head only'),
        ({"adapt": "frozen", "layer_decay": 0.5}, 'layer_decay=0.5: adapt="frozen" fits the head only'),
        ({"unfreeze": True, "epochs": 1}, "unfreeze: there is 1 epoch; expected epochs=2 or more"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, words, calm):
    with pytest.raises(UsageError) as error:
        berthead.fit(toy_rows(1), encoder=str(calm), threads=1, quiet=True, **options)
    assert str(error.value).startswith(words)


# What learns


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("full", lambda name: True),
        ("frozen", lambda name: name.startswith("head.")),
        ("top:1", lambda name: name.startswith(("head.", "encoder.blocks.3."))),
        ("top:4", lambda name: name.startswith(("head.", "encoder.blocks."))),
        ("bitfit", lambda name: name.startswith("head.") or name.endswith(".bias")),
    ],
)
def test_what_is_asked_for_learns_and_nothing_else(calm, text, wanted):
    model, made, train, valid = problem(calm, strategy=text, pooling="mean")
    names = {name for name, _ in model.named_parameters()}
    assert learning(model) == {name for name in names if wanted(name)}
    before = state_of(model)
    fit_model(model, made, train, valid, settings(), quiet=True)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == learning(model)


def test_what_does_not_learn_gets_no_gradient_and_no_optimiser_state(calm, monkeypatch):
    for text in ("top:1", "bitfit"):
        with monkeypatch.context() as patch:
            made_optimisers = spied(patch, "_optimiser")
            model, made, train, _ = problem(calm, strategy=text, pooling="mean")
            fit_model(model, made, train, None, settings(epochs=1), quiet=True)
        ((_, optimiser),) = made_optimisers
        wanted = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        assert {id(parameter) for parameter in optimiser.adamw.state} == wanted
        assert {id(one) for one in model.parameters() if one.grad is not None} == wanted


@pytest.mark.parametrize("text", ["top:2", "bitfit"])
def test_every_step_is_that_of_transformers_with_plain_torch(calm, monkeypatch, text):
    model, made, train, _ = problem(calm, strategy=text)
    chosen = settings(clip=0.5)
    their = their_model(calm, model.head, 2)
    for name, parameter in their.named_parameters():
        above = name.startswith(("bert.encoder.layer.2.", "bert.encoder.layer.3."))
        learns = above if text == "top:2" else name.endswith(".bias")
        parameter.requires_grad_(learns or name.startswith(("classifier.", "bert.pooler.")))
    inputs = their_inputs(calm, [row["text"] for row in toy_rows(2)[8:]])
    targets = torch.from_numpy(train.targets)

    def loss_of(rows):
        logits = their(**{name: tensor[rows] for name, tensor in inputs.items()}).logits
        return nn.functional.cross_entropy(logits, targets[rows])

    named = [(name, one) for name, one in their.named_parameters() if one.requires_grad]
    plain = Plain(named, chosen, len(targets)).fit(loss_of)
    calls = spied(monkeypatch, "_passes")
    fit_model(model, made, train, None, chosen, quiet=True)
    losses = [total / len(args[3]) for args, total in calls]
    assert losses == pytest.approx(plain.losses, rel=2e-4)


def test_below_what_learns_nothing_is_dropped(lively, monkeypatch):
    for text, count in (("full", 0), ("bitfit", 0), ("top:4", 2), ("top:3", 3), ("frozen", 6)):
        model = marked(lively, text)
        assert len(frozen_parts(model.encoder)) == count
    model, made, train, _ = problem(lively, strategy="top:3", pooling="mean")
    monkeypatch.setenv(library.SWITCH, "torch")  # whose blocks can be watched; the kernels are told what they tell
    training = []
    real = model.encoder.blocks[0].forward

    def forward(*args):
        encoder = model.encoder
        training.append([part.training for part in (encoder.embeddings, *encoder.blocks)])
        return real(*args)

    monkeypatch.setattr(model.encoder.blocks[0], "forward", forward)
    model.encoder.blocks[0].requires_grad_(False)
    from berthead.train.modes import FullModel

    part = FullModel(model, made.outputs, train, None, settings())
    part.train()
    list(part.training_logits(np.arange(4)))
    assert training == [[False, False, True, True, True]]


# Rates


def test_each_block_learns_slower_than_the_one_above(calm):
    model = marked(calm, "full")

    def peak(name):
        return peak_rate(name, 4, 1e-3, 7e-3, 0.5)

    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {}
    for group in adamw(model, 1e-3, 0.1, peak).param_groups:
        assert group["lr"] == group["peak"]
        for parameter in group["params"]:
            assert (group["weight_decay"] == 0.1) == (parameter.ndim >= 2)
            rates[names[id(parameter)]] = group["peak"]
    assert set(rates) == set(names.values())
    for name, rate in rates.items():
        place = name.removeprefix("encoder.")
        wanted = {"embe": 1e-3 / 16, "head": 7e-3}.get(place[:4])
        assert rate == pytest.approx(wanted or 1e-3 * 0.5 ** (3 - int(place.split(".")[1])))


def test_a_step_moves_each_part_at_its_own_rate(calm):
    # Adam's first step moves every weight that has a gradient by the rate.
    model, made, train, _ = problem(calm, pooling="mean")
    before = state_of(model)
    chosen = settings(
        epochs=1, batch=len(train.targets), weight_decay=0.0, warmup=0.0, lr=1e-3, head_lr=4e-3, layer_decay=0.5
    )
    fit_model(model, made, train, None, chosen, quiet=True)
    wanted = {"head.out": 4e-3, "encoder.blocks.3.mlp.up": 1e-3, "encoder.blocks.1.mlp.up": 2.5e-4,
              "encoder.embeddings.norm": 6.25e-5}  # fmt: skip
    for layer, rate in wanted.items():
        name = f"{layer}.weight"
        moved = (model.state_dict()[name] - before[name]).abs()
        assert moved.max().item() == pytest.approx(rate, rel=1e-2)


@pytest.mark.parametrize("adapt", ["frozen", "top:1"])
def test_the_rate_of_the_head_is_its_own(calm, adapt, monkeypatch):
    made_optimisers = spied(monkeypatch, "_optimiser")
    model, made, train, _ = problem(calm, strategy=adapt, pooling="mean")
    fit_model(model, made, train, None, settings(epochs=1, head_lr=0.5), quiet=True)
    ((_, optimiser),) = made_optimisers
    of_head = {id(parameter) for parameter in model.head.parameters()}
    rates = {group["peak"] for group in optimiser.adamw.param_groups if id(group["params"][0]) in of_head}
    assert rates == {0.5}


# Gradual unfreezing


@given(epochs=st.integers(2, 60), count=st.integers(0, 30))
def test_unfreezing_begins_with_the_head_ends_with_all_and_never_turns_back(epochs, count):
    opened = [unfrozen(epoch, epochs, count) for epoch in range(epochs)]
    assert (opened[0], opened[-1]) == (0, count)
    assert opened == sorted(opened)
    if epochs > count:
        assert opened[: count + 1] == list(range(count + 1))


def test_stages_go_from_the_top_block_to_the_embeddings(calm):
    def named(text):
        model = marked(calm, text)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        return [{".".join(names[id(one)].split(".")[1:3]) for one in group} for group in stages(model)]

    blocks = [{f"blocks.{number}"} for number in (3, 2, 1, 0)]
    assert [*named("full")[:4]] == blocks
    assert all(name.startswith("embeddings") for name in named("full")[4])
    assert named("top:2") == blocks[:2]
    assert len(named("bitfit")) == 5
    assert named("frozen") == []


def test_each_epoch_unfreezes_more(lively, monkeypatch):
    calls = spied(monkeypatch, "_passes")
    model, made, train, _ = problem(lively, strategy="full", pooling="mean")
    states, learnt = [state_of(model)], []

    def copy(tensors):
        states.append(state_of(model))
        learnt.append(learning(model))
        return {}

    monkeypatch.setattr("berthead.train.steps._copy", copy)
    fit_model(model, made, train, None, settings(epochs=6, unfreeze=True), quiet=True)
    assert len(calls) == 18
    parts = ["head.", *(f"encoder.blocks.{number}." for number in (3, 2, 1, 0)), "encoder.embeddings."]
    for epoch in range(6):
        moved = {name for name in states[0] if not torch.equal(states[epoch][name], states[epoch + 1][name])}
        assert moved <= learnt[epoch] == {n for n in states[0] if n.startswith(tuple(parts[: epoch + 1]))}
        assert {part for part in parts if any(name.startswith(part) for name in moved)} == set(parts[: epoch + 1])


def test_the_best_epoch_of_an_unfreezing_fit_is_restored_whole(calm, monkeypatch):
    model, made, train, valid = problem(calm, pooling="mean")
    states = []

    def evaluate(self, logits, targets, batch=None):
        states.append(state_of(model))
        return dict.fromkeys(self.metrics, 0.0) | {"accuracy": [0.1, 0.9, 0.2][len(states) - 1], "loss": 1.0}

    monkeypatch.setattr(Classify, "evaluate", evaluate)
    history = fit_model(model, made, train, valid, settings(unfreeze=True), quiet=True)
    assert history.best_epoch == 2
    assert same(state_of(model), states[1])


# The whole fit


@pytest.mark.parametrize("text", ["top:1", "bitfit"])
def test_a_folder_says_what_learnt(text, lively, tmp_path, cli):
    options = {"encoder": str(lively), "threads": 1, "quiet": True, "lr": 3e-3, "batch": 8, "head_lr": 1e-2,
               "layer_decay": 0.9, "unfreeze": True, "epochs": 8, "valid": 0.1}  # fmt: skip
    berthead.fit(toy_rows(), adapt=text, out=tmp_path / "m", **options)
    model = berthead.load(tmp_path / "m")
    record = model.info()
    assert record["parameters"]["adapt"] == text
    assert record["parameters"]["theta_is_pretrained"] is False
    assert {"head_lr": 1e-2, "layer_decay": 0.9, "unfreeze": True}.items() <= record["run"]["settings"].items()
    assert model.verify() < 1e-5
    assert f"θ̃ ≠ θ̂ ({text} of θ and ω were fitted)" in cli("info", tmp_path / "m").out
    rows = toy_rows(1)
    assert np.mean([model.predict(row["text"]).answer == row["label"] for row in rows]) > 0.6


def test_the_settings_hold_what_the_options_say():
    chosen = settings_for(FitOptions(adapt="top:1", head_lr=0.1, layer_decay=0.5, unfreeze=True), Classify, 384)
    assert (chosen.head_lr, chosen.layer_decay, chosen.unfreeze) == (0.1, 0.5, True)
