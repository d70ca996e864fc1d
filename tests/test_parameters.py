"""Theta and omega as values: against numpy on the safetensors files themselves."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from conftest import daily, make_bert, toy_rows
from safetensors.numpy import load_file
from test_families import KINDS, with_tokenizer
from toy_tasks import fit_task, tag_rows

import berthead
import berthead.function.artifact
from berthead.errors import ModelError, UsageError
from berthead.function.parameters import Parameters, layer_of
from berthead.predict.inputs import examples_of

TEXTS = ["good cat", "the awful dog sat, red.", "b a d " * 40, "poor mat"]


@pytest.fixture(scope="module")
def one(fit_toy):
    return berthead.load(fit_toy(epochs=6))


@pytest.fixture(scope="module")
def other(fit_toy):
    return berthead.load(fit_toy(epochs=6, seed=1))


def in_file(folder, *, theta: bool) -> dict[str, np.ndarray]:
    """Theta or omega as they stand in model.safetensors, theta's names without their prefix."""
    stored = load_file(folder / "model.safetensors")
    # A head that no class of transformers has lies under a name that none of them reads.
    own = {name.removeprefix("berthead."): value for name, value in stored.items() if name.startswith("berthead.")}
    head = {name: value for name, value in stored.items() if name.startswith(("classifier.", "bert.pooler."))}
    if not theta:
        return own or head
    encoder = {name: value for name, value in stored.items() if name.startswith("bert.") and name not in head}
    return {name.removeprefix("bert."): value for name, value in encoder.items()}


def proba(fitted) -> np.ndarray:
    return fitted.predict_proba(TEXTS)


@pytest.mark.parametrize("pooling", ["mean", "pooler"])
@pytest.mark.parametrize("theta", [True, False])
def test_they_are_what_the_file_holds(fit_toy, theta, pooling):
    folder = fit_toy(epochs=1, pooling=pooling)
    fitted = berthead.load(folder)
    held, wanted = fitted.theta if theta else fitted.omega, in_file(folder, theta=theta)
    assert set(held) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_array_equal(held[name].numpy(), value)
    said = fitted.info()["parameters"]
    key = "theta" if theta else "omega"
    assert (held.sha256, held.n_parameters) == (said[f"{key}_sha256"], said[f"{key}_parameters"])
    assert held.n_parameters == sum(value.size for value in wanted.values())
    assert (len(held), "nothing" in held) == (len(wanted), False)


def test_nothing_that_is_done_to_a_tensor_changes_them(one):
    theta = one.theta
    before, name = theta.sha256, next(iter(theta))
    theta[name].zero_()
    assert Parameters(theta).sha256 == before
    source = {"w": torch.ones(2)}
    held = Parameters(source)
    source["w"].zero_()
    assert held["w"].tolist() == [1, 1]
    with pytest.raises(TypeError):
        theta[name] = torch.zeros(1)
    assert not theta[name].requires_grad


def test_equal_ones_are_equal_and_can_be_keys(one, other):
    assert one.theta == one.theta
    assert one.theta != other.theta
    assert one.theta != dict(one.theta)
    assert len({one.theta, one.theta, other.theta}) == 2
    assert pickle.loads(pickle.dumps(one.omega)) == one.omega
    assert repr(one.omega).startswith("Parameters(4 tensors, 1,122 parameters, sha256 ")


def test_the_difference_is_the_one_that_numpy_finds(fit_toy, one, other):
    a, b = (in_file(fit_toy(epochs=6, **seed), theta=True) for seed in ({}, {"seed": 1}))
    groups = {"embeddings": "embeddings.", "block 0": "encoder.layer.0.", "block 1": "encoder.layer.1."}
    found = one.theta.difference(other.theta)
    assert list(found) == list(groups)
    for layer, prefix in groups.items():
        names = [name for name in a if name.startswith(prefix)]
        flat = [np.concatenate([part[name].ravel() for name in names]).astype(np.float64) for part in (a, b)]
        wanted = np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1])
        assert wanted > 0
        assert found[layer] == pytest.approx(wanted, rel=1e-9)
    assert set(one.theta.difference(one.theta).values()) == {0.0}
    assert list(one.omega.difference(other.omega)) == ["pooler", "head"]


def test_the_difference_from_nothing_is_infinite_and_of_nothing_is_none():
    zero, ones = Parameters({"head.w": torch.zeros(2)}), Parameters({"head.w": torch.ones(2)})
    assert ones.difference(zero) == {"head": float("inf")}
    assert zero.difference(zero) == {"head": 0.0}
    assert zero.difference(ones) == {"head": 1.0}


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("embeddings.word_embeddings.weight", "embeddings"),
        ("encoder.layer.11.attention.self.query.weight", "block 11"),
        ("transformer.layer.3.ffn.lin1.bias", "block 3"),
        ("layers.7.mlp.Wi.weight", "block 7"),
        ("encoder.layers.4.norm1.weight", "block 4"),
        ("encoder.albert_layer_groups.0.albert_layers.0.ffn.weight", "block 0"),
        ("encoder.embedding_hidden_mapping_in.weight", "embeddings"),
        ("emb_ln.weight", "embeddings"),
        ("final_norm.weight", "final_norm"),
        ("encoder.rel_embeddings.weight", "rel_embeddings"),
        ("albert.pooler.weight", "pooler"),
        ("pooler.dense.weight", "pooler"),
        ("pre_classifier.weight", "head"),
        ("classifier.dense.weight", "head"),
        ("bert.pooler.dense.bias", "pooler"),
        ("classifier.weight", "head"),
        ("qa_outputs.bias", "head"),
        ("label_classifier.bias", "head"),
        ("crf.step", "head"),
        ("head.layers.0.weight", "head"),
    ],
)
def test_every_tensor_has_a_layer(name, layer):
    assert layer_of(name) == layer


def test_the_mean_is_the_one_that_numpy_finds(fit_toy, one, other):
    third = berthead.load(fit_toy(epochs=6, seed=2))
    files = [in_file(fit_toy(epochs=6, **seed), theta=True) for seed in ({}, {"seed": 1}, {"seed": 2})]
    mean = Parameters.mean([one.theta, other.theta, third.theta])
    for name, tensor in mean.items():
        wanted = np.mean([file[name].astype(np.float64) for file in files], axis=0).astype(np.float32)
        np.testing.assert_array_equal(tensor.numpy(), wanted)


@pytest.mark.parametrize("times", [1, 2, 3, 7])
def test_the_mean_of_equal_ones_is_that_one_bit_for_bit(one, times):
    assert Parameters.mean([one.theta] * times) == one.theta


def test_there_is_no_mean_of_none():
    with pytest.raises(UsageError, match="mean: got no parameters; expected at least one set"):
        Parameters.mean([])


# Put in place


@pytest.mark.parametrize("which", ["theta", "omega", "both"])
def test_a_function_with_other_parameters_is_another_function(one, other, which, tmp_path):
    given = {} if which == "omega" else {"theta": other.theta}
    given |= {} if which == "theta" else {"omega": other.omega}
    before = proba(one)
    mixed = one.with_parameters(**given)
    np.testing.assert_array_equal(proba(one), before)
    assert mixed.theta == (one if which == "omega" else other).theta
    assert mixed.omega == (one if which == "theta" else other).omega
    if which == "both":
        logits = [fitted.predictor.logits(mixed_inputs(fitted)) for fitted in (mixed, other)]
        np.testing.assert_array_equal(*logits)
    else:
        assert np.abs(proba(mixed) - before).max() > 1e-4
    mixed.save(tmp_path / "mixed")
    again = berthead.load(tmp_path / "mixed")
    assert again.verify() < 1e-4
    assert len(again.artifact.golden) == len(one.artifact.golden) > 0
    np.testing.assert_allclose(proba(again), proba(mixed), atol=1e-6)
    assert again.info() == mixed.info()
    said = again.info()["parameters"]
    assert (said["theta_sha256"], said["omega_sha256"]) == (mixed.theta.sha256, mixed.omega.sha256)


def mixed_inputs(fitted):
    return list(examples_of(TEXTS, fitted.reader))


def test_the_record_does_not_keep_scores_of_other_parameters(one, other):
    run = one.with_parameters(theta=other.theta).info()["run"]
    assert not {"metrics", "baselines", "epochs", "best_epoch", "held_out_rows"} & set(run)
    assert run["replaced"] == {"theta_sha256": one.theta.sha256, "omega_sha256": one.omega.sha256}
    twice = one.with_parameters(theta=other.theta).with_parameters(omega=other.omega).info()["run"]
    assert twice["replaced"] == run["replaced"]
    assert run["data_sha256"] == one.info()["run"]["data_sha256"]


def test_its_own_parameters_give_the_same_function(one):
    assert one.with_parameters().info() == one.info()
    assert one.with_parameters(one.theta, one.omega).info() == one.info()


def test_the_decision_stays_as_it_was_fitted(tiny_bert):
    fitted = [
        berthead.fit(toy_rows(20), encoder=str(tiny_bert), task="multilabel", label="tags", epochs=epochs, lr=3e-3,
                     threads=1, quiet=True, valid=0.4)
        for epochs in (1, 2)
    ]  # fmt: skip
    tasks = [one.artifact.task.to_json() for one in fitted]
    assert tasks[0]["thresholds"] != tasks[1]["thresholds"]
    assert fitted[0].with_parameters(fitted[1].theta, fitted[1].omega).artifact.task.to_json() == tasks[0]


def test_theta_hat_in_place_of_theta_tilde_is_recorded_as_such(fit_toy, one):
    frozen = berthead.load(fit_toy(adapt="frozen", epochs=1))
    back = one.with_parameters(theta=frozen.theta)
    assert one.info()["parameters"]["theta_is_pretrained"] is False
    assert back.info()["parameters"]["theta_is_pretrained"] is True


def test_plain_tensors_will_do(one, other):
    mixed = one.with_parameters(theta={name: tensor.double() for name, tensor in other.theta.items()})
    assert mixed.theta == other.theta


def test_tags_of_a_random_field_are_decoded_with_the_new_head(tiny_bert, tmp_path):
    a = fit_task(tiny_bert, "tag", head="crf")
    b = fit_task(tiny_bert, "tag", head="crf", seed=2)
    mixed = a.with_parameters(b.theta, b.omega)
    words = [{"tokens": row["tokens"]} for row in tag_rows(20, seed=5)]
    assert [one.tags for one in mixed.predict(words)] == [one.tags for one in b.predict(words)]
    assert mixed.artifact.task.head is mixed.artifact.model.head
    mixed.save(tmp_path / "crf")
    assert berthead.load(tmp_path / "crf").verify() < 1e-4


def lacking(tensors: dict) -> dict:
    return dict(list(tensors.items())[1:])


def misshapen(tensors: dict) -> dict:
    name = "embeddings.LayerNorm.weight"
    return tensors | {name: tensors[name][:5]}


WRONG = {
    "missing": (
        lacking, r"theta: lacks 1 tensor: embeddings\.word_embeddings\.weight; expected the same tensors in both"
    ),
    "left over": (lambda tensors: tensors | {"more": torch.zeros(1)}, r"theta: holds 1 unknown tensor: more;"),
    "misshapen": (misshapen, r"theta: embeddings\.LayerNorm\.weight has shape \[5\]; expected \[32\]"),
    "not finite": (lambda tensors: tensors | {"embeddings.LayerNorm.weight": torch.full((32,), torch.nan)},
                   r"embeddings\.LayerNorm\.weight: holds a value that is not finite; expected finite numbers"),
    "nothing": (lambda tensors: {}, "theta: lacks 37 tensors"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_parameters_that_do_not_fit_are_refused(one, kind):
    change, message = WRONG[kind]
    with pytest.raises(ModelError, match=message):
        one.with_parameters(theta=change(dict(one.theta)))


def test_the_head_of_another_architecture_is_refused(fit_toy, one):
    without_pooler = berthead.load(fit_toy(epochs=1, pooling="mean"))
    with pytest.raises(ModelError, match=r"omega: holds 2 unknown tensors: bert\.pooler\.dense\.weight"):
        without_pooler.with_parameters(omega=one.omega)
    with pytest.raises(ModelError, match=r"difference: lacks \d+ tensors"):
        one.omega.difference(one.theta)


@pytest.mark.parametrize("name", daily(KINDS, "bert", "roberta", "albert", "deberta-v2, as v3", "modernbert"))
def test_every_family_takes_other_parameters_and_finds_its_theta_hat(name, tmp_path, monkeypatch):
    encoder = with_tokenizer(tmp_path / "hat", name)
    options = {"encoder": str(encoder), "epochs": 1, "lr": 1e-3, "threads": 1, "quiet": True, "valid": 0}
    a, b = (berthead.fit(toy_rows(1), seed=seed, **options) for seed in (1, 2))
    assert a.with_parameters(b.theta, b.omega).predict(TEXTS) == b.predict(TEXTS)
    mean = berthead.soup([a, b], uniform=True)
    mean.save(tmp_path / "mean")
    again = berthead.load(tmp_path / "mean")
    assert again.verify() < 1e-4
    for tensor, parts in ((again.theta[one], (a.theta[one], b.theta[one])) for one in a.theta):
        np.testing.assert_array_equal(tensor, np.mean([part.double().numpy() for part in parts], 0).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    moved = berthead.function.artifact.moved(again.artifact)
    assert moved["embeddings"] > 0
    assert moved["block 0"] > 0
    assert "head" not in moved
    assert "head" in a.omega.difference(b.omega)


# What info says of them


def test_info_says_how_far_theta_went_from_theta_hat(cli, fit_toy, tiny_bert, monkeypatch):
    monkeypatch.chdir(tiny_bert.parent)
    folder = fit_toy(epochs=6)
    fitted, hat = in_file(folder, theta=True), load_file(tiny_bert / "model.safetensors")
    names = [name for name in fitted if name.startswith("encoder.layer.1.")]
    a, b = (np.concatenate([part[name].ravel() for name in names]).astype(np.float64) for part in (fitted, hat))
    wanted = np.linalg.norm(a - b) / np.linalg.norm(b)
    told = json.loads(cli("info", folder, "--json").out)["moved"]
    assert list(told) == ["embeddings", "block 0", "block 1"]
    assert told["block 1"] == pytest.approx(wanted, rel=1e-9)
    ran = cli("info", folder)
    assert (ran.code, ran.err) == (0, "")
    assert f"block 1 {100 * wanted:.3g} %" in ran.out


def test_info_says_that_theta_hat_is_not_at_hand(cli, fit_toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BERTHEAD_HOME", str(tmp_path / "home"))
    folder = fit_toy(epochs=6)
    assert json.loads(cli("info", folder, "--json").out)["moved"] is None
    assert "not shown: the encoder tiny-bert with that sha256 was not found" in cli("info", folder).out
    make_bert(tmp_path / "tiny-bert", seed=9)  # another encoder of that name
    assert json.loads(cli("info", folder, "--json").out)["moved"] is None
    (tmp_path / "tiny-bert" / "model.safetensors").write_bytes(b"spoilt")
    assert json.loads(cli("info", folder, "--json").out)["moved"] is None


def test_an_encoder_that_was_pulled_is_at_hand(cli, fit_toy, tiny_bert, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BERTHEAD_HOME", str(tmp_path / "home"))
    shutil.copytree(tiny_bert, tmp_path / "home" / "encoders" / "tiny-bert")
    assert json.loads(cli("info", fit_toy(epochs=6), "--json").out)["moved"]["block 0"] > 0


def test_info_of_a_frozen_encoder_needs_no_theta_hat(cli, fit_toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = fit_toy(adapt="frozen", epochs=1)
    assert set(json.loads(cli("info", folder, "--json").out)["moved"].values()) == {0.0}
    assert "θ̃ − θ̂" not in cli("info", folder).out


def test_info_says_that_parameters_were_put_in_place(cli, one, other, tmp_path):
    one.with_parameters(other.theta).save(tmp_path / "mixed")
    ran = cli("info", tmp_path / "mixed")
    assert ran.code == 0, ran.err
    assert "θ and ω were replaced after the fit" in ran.out
    assert "held out" not in ran.out
