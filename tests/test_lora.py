"""LoRA: the layer, the fit step by step beside PEFT, the adapter folder in both programs, merging, broken folders."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from conftest import daily, make_bert, toy_rows, tries, unsealed
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from in_transformers import pooled
from safetensors.torch import load_file, save_file
from test_train import Plain, fold_of, logits_of, problem, settings, spied, state_of, their_inputs
from torch import nn

import berthead
from berthead.engine.cpu import CpuEngine
from berthead.errors import ModelError, OutputError, UsageError
from berthead.model import lora
from berthead.model.adapt import Adapt, adapt
from berthead.model.checkpoint import read_checkpoint
from berthead.model.heads import RowHead
from berthead.model.model import Model, sha256_of
from berthead.options import LORA_TARGETS
from berthead.records import Example
from berthead.text.layout import Layout
from berthead.text.packing import pack
from berthead.text.tokenizer import Tokenizer

FILES = ["adapter_config.json", "adapter_model.safetensors", "berthead.json", "config.json", "tokenizer.json",
         "tokenizer_config.json"]  # fmt: skip
TEXTS = ["good cat", "the awful dog sat, red.", "b a d " * 15, "😀", "Zoë ran!"]
QUICK = {"epochs": 2, "batch": 8, "lr": 1e-2, "threads": 1, "valid": 0.25, "on_long": "truncate", "quiet": True}


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """A tiny BERT without dropout."""
    folder = tmp_path_factory.mktemp("calm") / "tiny"
    return make_bert(folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


@pytest.fixture(scope="module")
def fit_lora(tmp_path_factory, calm):
    """Adapter folders, each fitted once; copy one before changing it."""
    folders = {}

    def fitted(text="lora:4", rows=None, **options) -> Path:
        key = json.dumps([text, rows, options], sort_keys=True)
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("adapters") / "adapter"
            berthead.fit(rows or toy_rows(2), encoder=str(calm), adapt=text, out=folders[key], **QUICK | options)
        return folders[key]

    return fitted


@pytest.fixture
def copied(fit_lora, tmp_path) -> Path:
    """An adapter folder of one's own, to be spoilt."""
    return Path(shutil.copytree(fit_lora(), tmp_path / "model"))


def changed(folder, text="lora:4", random_b=True):
    """A model with LoRA layers whose B is not zero."""
    model = Model(read_checkpoint(str(folder)).encoder(), RowHead(32, 2, "mean"))
    torch.manual_seed(3)
    adapt(model, Adapt.parse(text))
    if random_b:
        lora.fill(model, {name: torch.randn_like(t) * 0.1 for name, t in lora.lora_tensors(model).items()})
    return model.eval()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# The layer


@given(
    width=st.integers(1, 12), rows=st.integers(1, 5), count=st.integers(1, 3), rank=st.integers(1, 4),
    scale=st.floats(0.1, 4), seed=st.integers(0, 99), data=st.data(),
)  # fmt: skip
@hypothesis_settings(deadline=None, max_examples=tries(40))
def test_a_merged_layer_is_the_layer(width, rows, count, rank, scale, seed, data):
    parts = tuple(data.draw(st.lists(st.sampled_from([None, "x"]), min_size=count, max_size=count)))
    parts = tuple(f"{name}{number}" if name else None for number, name in enumerate(parts))
    if not any(parts):
        return
    torch.manual_seed(seed)
    linear = nn.Linear(width, rows * count)
    layer = lora.LoraLinear(linear, parts, rank, scale)
    x = torch.randn(7, width)
    torch.testing.assert_close(layer(x), linear(x))  # B is zero
    for tensor in layer.B.values():
        nn.init.normal_(tensor)
    before = linear.weight.clone()
    torch.testing.assert_close(layer.merged()(x), layer(x), atol=1e-5, rtol=1e-5)
    assert torch.equal(linear.weight, before)
    moved = [
        not torch.equal(a, b) for a, b in zip(layer.merged().weight.chunk(count), before.chunk(count), strict=True)
    ]
    assert moved == [name is not None for name in parts]


def test_a_begins_as_in_peft_and_b_at_zero(calm):
    model = changed(calm, random_b=False)
    theirs = peft.get_peft_model(
        transformers.BertModel.from_pretrained(calm),
        peft.LoraConfig(r=4, target_modules=["query", "intermediate.dense"]),
    )
    for name, tensor in lora.lora_tensors(model).items():
        if "lora_B" in name:
            assert not tensor.any()
        else:
            bound = 1 / math.sqrt(tensor.shape[1])  # kaiming uniform with a = sqrt(5)
            assert bound * 0.7 < tensor.abs().max() <= bound
    for name, tensor in theirs.named_parameters():
        if "lora_A" in name:
            assert tensor.abs().max() <= 1 / math.sqrt(tensor.shape[1])


@pytest.mark.parametrize("text", ["lora:4", "lora:1,alpha=3,targets=query+value", "lora:8,targets=down"])
def test_a_merged_model_is_the_model_and_has_plain_layers(calm, text):
    model = changed(calm, text)
    _, _, fold, _ = problem(calm, held_out=0, pooling="mean")
    wanted = logits_of(model, fold)
    before = state_of(model)
    plain = lora.merged(model)
    assert not any(isinstance(module, lora.LoraLinear) for module in plain.modules())
    assert plain.encoder.state_dict().keys() == read_checkpoint(str(calm)).encoder().state_dict().keys()
    assert np.abs(logits_of(lora.merged(changed(calm, text, random_b=False)), fold) - wanted).max() > 1e-3
    np.testing.assert_allclose(logits_of(plain, fold), wanted, rtol=0, atol=1e-5)
    rows = Layout(fold.inputs).rows
    np.testing.assert_allclose(CpuEngine(plain).logits(pack(rows, np.arange(len(rows)))), wanted, rtol=0, atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert plain.encoder.embeddings.word.weight is model.encoder.embeddings.word.weight  # nothing is copied
    lora.merge(model)
    np.testing.assert_allclose(logits_of(model, fold), wanted, rtol=0, atol=1e-5)
    assert lora.merged(model) is model


def test_targets_are_the_layers_they_name(calm):
    theirs = {
        "query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value",
        "attention-out": "attention.output.dense", "up": "intermediate.dense", "down": "output.dense",
    }  # fmt: skip
    for target in LORA_TARGETS:
        found = {name.rsplit(".", 2)[0] for name in lora.lora_tensors(changed(calm, f"lora:2,targets={target}"))}
        assert found == {f"encoder.layer.{layer}.{theirs[target]}" for layer in (0, 1)}
    assert len(lora.lora_tensors(changed(calm, "lora:2"))) == 2 * 6 * 2


# The fit


@pytest.mark.parametrize("text", ["lora:4", "lora:2,alpha=1,targets=key+up"])
def test_every_step_is_that_of_peft_with_plain_torch(calm, monkeypatch, text):
    what = Adapt.parse(text)
    model, made, train, valid = problem(calm, strategy=text)
    begin = {name: tensor.detach().clone() for name, tensor in lora.lora_tensors(model).items()}
    chosen = settings(clip=0.5, lr=1e-2, epochs=6)
    base = transformers.BertForSequenceClassification.from_pretrained(calm, num_labels=2)
    base.classifier.load_state_dict(model.head.out.state_dict())
    targets_of = sorted({name.rsplit(".", 2)[0] for name in begin})
    their = peft.get_peft_model(
        base,
        peft.LoraConfig(r=what.rank, lora_alpha=what.alpha, target_modules=targets_of,
                        modules_to_save=["classifier", "bert.pooler.dense"]),
    ).train()  # fmt: skip
    state = their.state_dict()
    for name, tensor in begin.items():
        state[f"base_model.model.bert.{name.replace('.weight', '.default.weight')}"].copy_(tensor)
    inputs = their_inputs(calm, [row["text"] for row in toy_rows(2)])
    wanted = torch.from_numpy(train.targets)

    def loss_of(rows):
        logits = their(**{name: tensor[8:][rows] for name, tensor in inputs.items()}).logits
        return nn.functional.cross_entropy(logits, wanted[rows])

    named = [(name, one) for name, one in their.named_parameters() if one.requires_grad]
    assert len(named) == len(begin) + 4
    plain = Plain(named, chosen, len(wanted)).fit(loss_of)
    calls = spied(monkeypatch, "_passes")
    theta = {name: t for name, t in state_of(model.encoder).items() if ".A." not in name and ".B." not in name}
    fit_model_quietly(model, made, train, None, chosen)
    assert [total / len(args[3]) for args, total in calls] == pytest.approx(plain.losses, rel=5e-4)
    assert all(torch.equal(model.encoder.state_dict()[name], tensor) for name, tensor in theta.items())
    their.eval()
    with torch.no_grad():
        logits = their(**{name: tensor[:8] for name, tensor in inputs.items()}).logits
    np.testing.assert_allclose(logits_of(model, valid), logits.numpy(), atol=2e-3)


def fit_model_quietly(model, made, train, valid, chosen):
    from berthead.train.loop import fit_model

    return fit_model(model, made, train, valid, chosen, quiet=True)


def test_held_out_rows_are_scored_with_the_change(calm):
    model, made, train, valid = problem(calm, strategy="lora:4", pooling="mean")
    history = fit_model_quietly(model, made, train, valid, settings(epochs=3, lr=2e-2, metric="loss"))
    again = made.evaluate(logits_of(model, valid), valid.targets)
    assert history.epochs[history.best_epoch - 1]["loss"] == pytest.approx(again["loss"], rel=1e-4)
    assert history.epochs[0]["loss"] != history.epochs[-1]["loss"]


def test_a_rank_over_the_width_is_refused(calm):
    with pytest.raises(UsageError, match='adapt="lora:33": the rank is above the encoder\'s width, 32'):
        berthead.fit(toy_rows(1), encoder=str(calm), adapt="lora:33", **QUICK)


# The folder


def test_the_folder_holds_the_change_and_not_the_encoder(fit_lora, calm):
    folder = fit_lora()
    assert names(folder) == FILES
    record = json.loads((folder / "berthead.json").read_text(encoding="utf-8"))
    assert record["format_version"] == 3
    assert record["adapter"]["base"] == str(calm)
    assert record["parameters"]["pretrained"]["name"] == calm.name
    assert record["parameters"]["theta_is_pretrained"] is False
    assert (
        sum(path.stat().st_size for path in folder.glob("*.safetensors")) < (calm / "model.safetensors").stat().st_size
    )
    plain = berthead.fit(toy_rows(1), encoder=str(calm), adapt="top:1", **QUICK)
    assert plain.info()["format_version"] == 2


def test_loaded_it_is_the_fitted_function_again(calm, tmp_path):
    fitted = berthead.fit(toy_rows(2), encoder=str(calm), adapt="lora:4", out=tmp_path / "m", **QUICK)
    again = berthead.load(tmp_path / "m")
    examples = [Example(text) for text in TEXTS]
    np.testing.assert_array_equal(again.predictor.logits(examples), fitted.predictor.logits(examples))
    assert again.verify() < 1e-5
    assert again.info() == fitted.info()
    again.save(tmp_path / "again")
    assert all((tmp_path / "again" / name).read_bytes() == (tmp_path / "m" / name).read_bytes() for name in FILES)
    other = pickle.loads(pickle.dumps(again))
    np.testing.assert_array_equal(other.predictor.logits(examples), again.predictor.logits(examples))


def test_the_same_seed_gives_the_same_bytes_and_the_caller_keeps_its_random_state(calm, tmp_path):
    for name in ("one", "two"):
        berthead.fit(toy_rows(1), encoder=str(calm), adapt="lora:2", out=tmp_path / name, **QUICK)
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in FILES)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    berthead.load(tmp_path / "one")
    assert torch.equal(torch.get_rng_state(), before)


SPANS = [{"question": f"who {verb}", "context": f"the {who} {verb} on the mat", "answers": who}
         for who in ("cat", "dog") for verb in ("sat", "ran")] * 4  # fmt: skip
TAGGED = [{"tokens": ["the", who, "sat", word], "tags": ["O", "B-who", "O", "B-is"], "intent": word}
          for who in ("cat", "dog") for word in ("good", "bad", "red")] * 3  # fmt: skip
CHOICES = [{"question": f"the {word}", "choices": ["good cat", "bad dog"], "label": number}
           for number, word in enumerate(("cat", "dog"))] * 8  # fmt: skip
TASKS = {
    "classify-mean": ({"pooling": "mean"}, None, "", []),
    "classify-cls": ({"pooling": "cls", "pair": "pair"}, None, "", []),
    "classify-pooler": ({"pooling": "pooler"}, None, "SequenceClassification", ["bert.pooler.dense", "classifier"]),
    "regress": ({"task": "regress", "label": "stars", "pooling": "pooler", "pair": "pair"}, None,
                "SequenceClassification", ["bert.pooler.dense", "classifier"]),
    "attention": ({"pooling": "mean", "windows": "attention"}, None, "", []),
    "span": ({"task": "span"}, SPANS, "QuestionAnswering", ["qa_outputs"]),
    "tag": ({"task": "tag"}, TAGGED, "TokenClassification", ["classifier"]),
    "crf": ({"task": "tag", "head": "crf"}, TAGGED, "TokenClassification", ["classifier"]),
    "joint": ({"task": "joint", "intent": "intent", "pooling": "mean"}, TAGGED, "TokenClassification", ["classifier"]),
    "choose": ({"task": "choose", "pooling": "pooler"}, CHOICES, "MultipleChoice", ["bert.pooler.dense", "classifier"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", daily(TASKS, "classify", "crf", "joint", "choose", "span"))
def test_peft_loads_the_folder_and_gives_our_logits(kind, fit_lora, calm):
    options, rows, auto, saved = TASKS[kind]
    folder = fit_lora("lora:3,alpha=5", rows, **options)
    model = berthead.load(folder)
    record = model.info()
    assert record["transformers"]["class"] == (f"BertFor{auto}" if auto else "BertModel")
    assert record["format_version"] == (4 if auto == "" or kind == "joint" else 3)
    assert "PeftModel.from_pretrained" in record["transformers"]["note"]
    assert sorted(json.loads((folder / "adapter_config.json").read_text())["modules_to_save"]) == saved
    config = transformers.AutoConfig.from_pretrained(folder)
    base = getattr(transformers, f"AutoModelFor{auto}" if auto else "AutoModel").from_pretrained(calm, config=config)
    theirs = peft.PeftModel.from_pretrained(base, str(folder)).eval()
    assert {name for name, one in theirs.named_parameters() if "lora" in name and not one.any()} == set()
    inputs = model.artifact.task.encode(
        model.artifact.tokenizer, [golden_example_of(one) for one in model.artifact.golden], model.artifact.policy
    )
    layout = Layout(inputs)
    for number, row in enumerate(layout.rows):
        one = pack(layout.rows, np.array([number]))
        with torch.no_grad():
            hidden = model.artifact.model.encoder(tensor_pack(one))
            batch = {
                "input_ids": torch.from_numpy(one.ids)[None],
                "token_type_ids": torch.from_numpy(one.segments)[None],
            }
            batch |= {"attention_mask": torch.ones_like(batch["input_ids"])}
            if auto == "MultipleChoice":
                batch = {name: tensor[None] for name, tensor in batch.items()}
            said = theirs(**batch)
            ours = model.artifact.model.head(hidden, tensor_pack(one))
        assert len(row.ids) == len(one.ids)
        if auto == "QuestionAnswering":
            logits = torch.stack([said.start_logits[0], said.end_logits[0]], 1)
        elif auto:
            logits = said.logits[0] if auto == "TokenClassification" else said.logits
        else:
            vector = pooled(said.last_hidden_state, batch["attention_mask"], record["head"]["pooling"])
            stored = load_file(folder / "adapter_model.safetensors")
            weight, bias = (stored[f"base_model.model.berthead.classifier.{part}"] for part in ("weight", "bias"))
            logits = vector @ weight.T + bias
        torch.testing.assert_close(ours[:, : logits.shape[1]], logits, atol=1e-5, rtol=0)


def golden_example_of(one):
    from berthead.function.checks import golden_input

    return golden_input(one)


def tensor_pack(one):
    from berthead.model.tensors import TensorPack

    return TensorPack.from_pack(one)


def test_what_peft_writes_back_are_the_tensors_we_wrote(fit_lora, calm, tmp_path):
    folder = fit_lora("lora:3,alpha=5", **TASKS["classify-pooler"][0])
    config = transformers.AutoConfig.from_pretrained(folder)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(calm, config=config)
    theirs = peft.PeftModel.from_pretrained(base, str(folder))
    theirs.save_pretrained(tmp_path / "theirs")
    ours, written = (load_file(place / "adapter_model.safetensors") for place in (folder, tmp_path / "theirs"))
    assert ours.keys() == written.keys()
    assert all(torch.equal(tensor, written[name]) for name, tensor in ours.items())
    merged = theirs.merge_and_unload().eval()
    berthead.load(folder).merged().save(tmp_path / "merged")
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, atol=1e-6, rtol=0)


# Merging


def test_merge_writes_a_folder_that_needs_no_other(fit_lora, tmp_path, cli):
    folder = fit_lora()
    ran = cli("merge", folder, "--out", tmp_path / "merged")
    assert (ran.code, ran.err) == (0, "")
    assert "model.safetensors" in names(tmp_path / "merged")
    assert not {"adapter_config.json", "adapter_model.safetensors"} & set(names(tmp_path / "merged"))
    merged, adapter = berthead.load(tmp_path / "merged"), berthead.load(folder)
    examples = [Example(text) for text in TEXTS]
    np.testing.assert_allclose(merged.predictor.logits(examples), adapter.predictor.logits(examples), atol=1e-5)
    assert merged.verify() < 1e-5
    assert "adapter" not in merged.info()
    assert merged.info()["parameters"] == adapter.info()["parameters"]
    again = cli("merge", folder, "--out", tmp_path / "merged")
    assert (again.code, "add --overwrite" in again.err) == (6, True)
    assert cli("merge", folder, "--out", tmp_path / "merged", "--overwrite").code == 0
    for models, words in (
        ([tmp_path / "merged"], "not an adapter folder; expected one made by --adapt lora"),
        ([folder, folder], "got 2 models"),
    ):
        refused = cli("merge", *models, "--out", tmp_path / "other")
        assert (refused.code, words in refused.err) == (2, True)
    assert names(tmp_path) == ["merged"]


@pytest.mark.parametrize("verb", ["info", "verify", "eval", "predict"])
def test_every_verb_takes_an_adapter_folder(verb, fit_lora, toy_csv, calm, cli):
    more = {"eval": [toy_csv], "predict": ["good cat"]}.get(verb, [])
    plain, given = cli(verb, fit_lora(), *more), cli(verb, fit_lora(), *more, "--base", calm)
    assert plain.code == 0
    assert plain == given
    if verb == "info":
        assert f"a change of {calm}" in plain.out
        assert "θ̃ ≠ θ̂ (lora:4 of θ and ω were fitted)" in plain.out


# Where theta-hat is


def moved(fit_lora, calm, tmp_path) -> tuple[Path, Path]:
    """An adapter fitted on an encoder that is no longer where it was, and where that lies now."""
    encoder = Path(shutil.copytree(calm, tmp_path / "at-fit" / "enc"))
    berthead.fit(toy_rows(1), encoder=str(encoder), adapt="lora:2", out=tmp_path / "m", **QUICK)
    return tmp_path / "m", encoder.rename(tmp_path / "elsewhere")


def test_theta_hat_is_found_beside_the_folder_and_where_the_user_says(fit_lora, calm, tmp_path, monkeypatch):
    folder, encoder = moved(fit_lora, calm, tmp_path)
    with pytest.raises(ModelError) as error:
        berthead.load(folder)
    assert error.value.where == str(folder)
    assert error.value.saw == f'its encoder "{tmp_path}/at-fit/enc" was not found'
    assert "of sha256" in error.value.expected
    assert "--base FOLDER" in error.value.fix
    assert "berthead merge" in error.value.fix
    model = berthead.load(folder, base=encoder)
    assert model.verify() < 1e-5
    model.save(tmp_path / "saved")  # read back from where the encoder lies now
    encoder.rename(tmp_path / "enc")
    assert berthead.load(folder).verify() < 1e-5
    monkeypatch.chdir(folder)
    assert berthead.load(".").verify() < 1e-5


def test_another_encoder_is_refused(fit_lora, calm, tmp_path):
    folder, encoder = moved(fit_lora, calm, tmp_path)
    other = make_bert(tmp_path / "enc", seed=9)
    for base in (None, other):
        with pytest.raises(ModelError, match=rf'its encoder "{other}" has sha256 .*fitted on, of sha256 .*base'):
            berthead.load(folder, base=base)
    make_bert(tmp_path / "at-fit" / "enc", seed=9)
    shutil.rmtree(other)
    encoder.rename(other)
    assert berthead.load(folder).verify() < 1e-5  # the one beside it is the right one
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        berthead.load(folder, base=tmp_path / "at-fit")
    berthead.load(folder).merged().save(tmp_path / "merged")
    with pytest.raises(UsageError, match=r"base .*: .* holds an encoder of its own"):
        berthead.load(tmp_path / "merged", base=other)


def test_a_pulled_encoder_and_the_packaged_one_are_found_by_name(calm, tmp_path, monkeypatch):
    monkeypatch.setenv("BERTHEAD_HOME", str(tmp_path / "home"))
    shutil.copytree(calm, tmp_path / "home" / "encoders" / "some--name")
    berthead.fit(toy_rows(1), encoder="some/name", adapt="lora:2", out=tmp_path / "m", **QUICK)
    assert json.loads((tmp_path / "m" / "adapter_config.json").read_text())["base_model_name_or_path"] == "some/name"
    assert berthead.load(tmp_path / "m").verify() < 1e-5


def test_the_packaged_encoder(tmp_path):
    rows = toy_rows(1)
    options = QUICK | {"epochs": 1, "max_tokens": 32}
    berthead.fit(rows, adapt="lora:8", out=tmp_path / "m", **options)
    model = berthead.load(tmp_path / "m")
    assert model.verify() < 1e-5
    base = transformers.AutoModel.from_pretrained(
        read_checkpoint("minilm").folder, config=transformers.AutoConfig.from_pretrained(tmp_path / "m")
    )
    omega = model.artifact.omega()
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "m")).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    for row in rows[:4]:
        with torch.no_grad():
            vector = theirs(**tokenizer(row["text"], return_tensors="pt")).last_hidden_state[0].mean(0)
        logits = vector @ omega["classifier.weight"].T + omega["classifier.bias"]
        ours = model.predictor.logits([Example(row["text"])])[0]
        np.testing.assert_allclose(logits.numpy(), ours, atol=1e-5, rtol=0)


# Broken and hostile folders


def edit_json(path: Path, change) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    change(record)
    path.write_text(json.dumps(unsealed(record)), encoding="utf-8")


def edit_tensors(folder: Path, change, *, with_hash: bool = False) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    if with_hash:
        theta = {n.removeprefix("base_model.model.bert."): t for n, t in tensors.items() if "lora" in n}
        edit_json(folder / "berthead.json", lambda record: record["adapter"].update(sha256=sha256_of(theta)))


A = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"
B = A.replace("lora_A", "lora_B")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(A), "lacks 1 weight: .*query.lora_A"),
        (lambda t: (t.pop(A), t.pop(B)), "lacks 2 weights"),
        (lambda t: t.pop("base_model.model.classifier.bias"), "lacks 1 weight: base_model.model.classifier.bias"),
        (lambda t: t.update({A: torch.zeros(4, 31)}), r"has shape \[4, 31\]"),
        (lambda t: t.update({A: torch.zeros(5, 32), B: torch.zeros(32, 5)}), r"has shape \[5, 32\]"),
        (lambda t: t.update({A: torch.zeros(4)}), r"has shape \[4\]"),
        (lambda t: t.update({A.replace("query", "other"): torch.zeros(4, 32)}), "holds 1 unknown weight"),
        (lambda t: t.update({A.replace("lora_A", "base_layer"): torch.zeros(32, 32)}), "holds 1 unknown weight"),
        (lambda t: t.update({A.replace("layer.0", "layer.7"): torch.zeros(4, 32)}), "holds 1 unknown weight"),
        (lambda t: t[A].add_(1e-3), "does not match the sha256"),
        (lambda t: t["base_model.model.classifier.weight"].add_(1e-3), "does not match the sha256"),
    ],
)
def test_tensors_that_are_not_what_the_record_says_are_refused(change, words, copied):
    edit_tensors(copied, change)
    with pytest.raises(ModelError, match=words):
        berthead.load(copied)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(r=5), "r is 5"),
        (lambda c: c.update(r="4"), 'r is "4"'),
        (lambda c: c.update(lora_alpha=80), "lora_alpha is 80"),
        (lambda c: c.update(target_modules=["query"]), "target_modules is"),
        (lambda c: c["target_modules"].append("embeddings.word_embeddings"), "target_modules is"),
        (lambda c: c.update(use_dora=True), 'holds "use_dora"'),
        (lambda c: c.update(auto_mapping={"base_model_class": "x"}), 'holds "auto_mapping"'),
        (lambda c: c.update(peft_type="LOHA"), "peft_type is"),
        (lambda c: c.update(bias="all"), "bias is"),
        (lambda c: c.update(base_model_name_or_path="other"), "base_model_name_or_path is"),
        (lambda c: c.pop("modules_to_save"), "modules_to_save is null"),
        (lambda c: c.clear(), "base_model_name_or_path is null"),
    ],
)
def test_an_adapter_config_that_says_something_else_is_refused(change, words, copied):
    edit_json(copied / "adapter_config.json", change)
    with pytest.raises(ModelError, match=words):
        berthead.load(copied)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r["parameters"].update(adapt="lora:5"), r"adapter_model.safetensors: .* has shape \[4, 32\]"),
        (lambda r: r["parameters"].update(adapt="lora:4,alpha=99"), "lora_alpha is 8"),
        (lambda r: r["parameters"].update(adapt="lora:4,targets=query"), "unknown weight"),
        (lambda r: r["parameters"].update(adapt="lora:4,targets=quary"), "is not a whole record"),
        (lambda r: r["parameters"].update(adapt="lora:9999"), "is not a whole record"),
        (lambda r: r["parameters"].update(adapt="full"), "is not a whole record"),
        (lambda r: r.update(adapter=None), "is not a whole record"),
        (lambda r: r.update(adapter=[]), "is not a whole record"),
        (lambda r: r["adapter"].update(base=7), "is not a whole record"),
        (lambda r: r["adapter"].pop("base"), "is not a whole record"),
        (lambda r: r["adapter"].update(sha256=None), "is not a whole record"),
        (lambda r: r["adapter"].update(sha256="0" * 64), "does not match the sha256"),
        (lambda r: r["adapter"].update(base="\0"), "was not found"),
        (lambda r: r["adapter"].update(base="x" * 9999), 'its encoder "xxx'),
        (lambda r: r["adapter"].update(base=""), "was not found"),
        (lambda r: r.pop("adapter"), 'its kind is "adapter", but it holds the keys of "model"'),
        (lambda r: [r.pop("adapter"), r.pop("kind")], "adapter_model.safetensors"),
        (lambda r: r["parameters"]["pretrained"].update(theta_sha256="0" * 64), "has sha256"),
    ],
)
def test_a_record_that_lies_is_refused(change, words, copied):
    edit_json(copied / "berthead.json", change)
    with pytest.raises(ModelError, match=words):
        berthead.load(copied)


def test_a_forged_change_is_found_by_the_golden_examples(copied):
    edit_tensors(copied, lambda tensors: tensors[A].add_(5), with_hash=True)
    with pytest.raises(berthead.errors.GateError, match="golden example"):
        berthead.load(copied).verify()


@pytest.mark.parametrize("name", ["adapter_model.bin", "optimizer.pt", "model.py", "deep/adapter_model.bin"])
def test_pickles_and_code_are_refused(name, copied):
    (copied / name).parent.mkdir(exist_ok=True)
    (copied / name).write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match=f"holds {name}"):
        berthead.load(copied)


def test_a_folder_that_is_two_models_at_once_is_refused(copied, calm, fit_lora, tmp_path):
    shutil.copy(calm / "model.safetensors", copied)
    with pytest.raises(ModelError, match=r"holds model\.safetensors, but berthead\.json says that it is an adapter"):
        berthead.load(copied)
    berthead.load(fit_lora()).merged().save(tmp_path / "merged")
    shutil.copy(copied / "adapter_config.json", tmp_path / "merged")
    with pytest.raises(ModelError, match=r"holds adapter_config\.json"):
        berthead.load(tmp_path / "merged")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_broken_file_is_refused(name, copied):
    content = (copied / name).read_bytes()
    (copied / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError):
        berthead.load(copied)
    (copied / name).unlink()
    if name != "tokenizer_config.json":  # it is for transformers
        with pytest.raises(ModelError):
            berthead.load(copied)


def test_another_shape_in_config_json_is_refused(copied):
    edit_json(copied / "config.json", lambda config: config.update(layer_norm_eps=1e-3))
    with pytest.raises(ModelError, match="describes another encoder"):
        berthead.load(copied)


def test_a_full_place_leaves_nothing(fit_lora, tmp_path, monkeypatch):
    model = berthead.load(fit_lora())

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OutputError, match="No space left"):
        model.save(tmp_path / "m")
    assert names(tmp_path) == []


def test_the_estimators_fit_and_save_adapters(calm, tmp_path):
    rows = toy_rows(1)
    texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
    classifier = berthead.TextClassifier(encoder=str(calm), adapt="lora:2", epochs=1, valid=0, threads=1)
    classifier.fit(texts, labels).save(tmp_path / "m")
    assert names(tmp_path / "m") == FILES
    again = berthead.load(tmp_path / "m")
    np.testing.assert_allclose(again.predict_proba(texts), classifier.predict_proba(texts), atol=1e-6)


def test_the_tokenizer_of_an_adapter_folder_is_read_from_it(fit_lora):
    folder = fit_lora()
    task = berthead.load(folder).artifact.task
    fold = fold_of(task, Tokenizer.from_folder(folder), [Example("good cat", target="positive")])
    assert fold.inputs[0].n_tokens == 4


@pytest.mark.parametrize("targets", ["value", "query+down", "attention-out"])
def test_a_fit_of_some_parts_runs_in_bfloat16(tiny_bert, targets):
    """A part without a change gets zeros of the type of the others: attention takes one type."""
    fitted = berthead.fit(
        toy_rows(1), encoder=str(tiny_bert), adapt=f"lora:2,targets={targets}", precision="bf16", epochs=1, valid=0,
        threads=1, quiet=True,
    )  # fmt: skip
    assert fitted.predict("good cat").answer in fitted.labels
