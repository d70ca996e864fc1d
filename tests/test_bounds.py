"""Nothing is looked up beside an encoder's tables: tokenizers are refused at load, packs before they are computed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_bert, shell_env, toy_rows, unsealed
from test_cuda import PLAIN
from test_engine import a_model, by_torch, kernels, without_onednn  # noqa: F401 - fixtures
from tokenizers import Tokenizer as Backend

import berthead
from berthead.engine.cpu import CpuEngine, DeviceEngine
from berthead.engine.cuda import CudaEngine
from berthead.errors import ModelError
from berthead.kernels import library, native, training
from berthead.model.tensors import TensorPack, check_rows
from berthead.predict.joined import JoinedEngine
from berthead.records import Pack
from berthead.storage.hashes import file_sha256
from berthead.text.bounds import TableSizes, check_pack
from berthead.text.packing import pack
from berthead.text.tokenizer import Encoded, Tokenizer
from berthead.train.embedding_table import EmbeddingTable, learns_by_row

CPU = torch.device("cpu")
needs_kernels = pytest.mark.skipif(not library.kernels(), reason="this machine has no kernels of ours")


# --- tokenizers ---


def type_id(where: str, kind: str, number: int):
    """Every special token's, or every text's, token type in the template of one text or of a pair."""

    def change(tokenizer: dict[str, Any]) -> None:
        for piece in tokenizer["post_processor"][where]:
            if kind in piece:
                piece[kind]["type_id"] = number

    return change


def special_id(tokenizer: dict[str, Any]) -> None:
    for token in tokenizer["post_processor"]["special_tokens"].values():
        token["ids"] = [4_000_000_000]


def far_number(tokenizer: dict[str, Any]) -> None:
    """One token fewer, and the largest number far away: the count says nothing."""
    vocabulary = tokenizer["model"]["vocab"]
    del vocabulary["##z"]
    vocabulary["mat"] = 1_000_000


def added(tokenizer: dict[str, Any]) -> None:
    count = max(tokenizer["model"]["vocab"].values()) + 1
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    tokenizer["added_tokens"].append({"id": count, "content": "zebra"} | plain)


def many_special(tokenizer: dict[str, Any]) -> None:
    single = tokenizer["post_processor"]["single"]
    single[:1] = single[:1] * 65


SPOILT = {
    "special type 9": (
        type_id("single", "SpecialToken", 9), "token type 9 in a text.*expected 0 to 1: type_vocab_size is 2",
    ),
    "special type 4000000000": (type_id("single", "SpecialToken", 4_000_000_000), "token type 4000000000 in a text"),
    "text's type 9": (type_id("single", "Sequence", 9), "token type 9 in a text"),
    "text's type 4000000000": (type_id("single", "Sequence", 4_000_000_000), "token type 4000000000 in a text"),
    "special number": (
        special_id, "token numbers up to 4000000000.*expected at most 81: the table of tokens has 82 rows",
    ),
    "a gap": (far_number, "token numbers up to 1000000.*expected at most 81"),
    "an added token": (added, "token numbers up to 82.*expected at most 81"),
    "special tokens": (many_special, "66 special tokens around a text.*expected fewer than the 64 of a row"),
}  # fmt: skip
FIX = "Use the tokenizer that was saved with this encoder"


def spoil(folder: Path, change) -> Path:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    change(tokenizer)
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder


def spoil_export(folder: Path, change) -> Path:
    """A spoilt tokenizer whose hash is right."""
    spoil(folder, change)
    path = folder / "berthead.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["export"]["sha256"]["tokenizer.json"] = file_sha256(folder / "tokenizer.json")
    path.write_text(json.dumps(unsealed(record)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def exported(toy_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    berthead.load(toy_model).export_onnx(folder)
    return folder


@pytest.fixture(params=SPOILT)
def spoilt(request):
    return SPOILT[request.param]


def refused(load, where: Path | str, words: str) -> None:
    with pytest.raises(ModelError, match=rf"its tokenizer .*{words}.*{FIX}") as caught:
        load()
    assert str(where) in caught.value.where


def test_a_model_folder_is_refused(spoilt, toy_model, tmp_path):
    change, words = spoilt
    folder = spoil(Path(shutil.copytree(toy_model, tmp_path / "m")), change)
    refused(lambda: berthead.load(folder), folder, words)


def test_an_exported_folder_is_refused(spoilt, exported, tmp_path):
    change, words = spoilt
    folder = spoil_export(Path(shutil.copytree(exported, tmp_path / "m")), change)
    refused(lambda: berthead.load(folder), folder, words)


def test_an_encoder_is_refused(spoilt, tiny_bert, tmp_path):
    change, words = spoilt
    folder = spoil(Path(shutil.copytree(tiny_bert, tmp_path / "m")), change)
    refused(lambda: berthead.fit(toy_rows(1), encoder=str(folder), epochs=1, quiet=True), folder, words)


@pytest.mark.parametrize("number", [9, 4_000_000_000])
@pytest.mark.parametrize("kind", ["SpecialToken", "Sequence"])
def test_a_pairs_types_are_checked_where_pairs_are_read(kind, number, fit_toy, tmp_path):
    one = spoil(Path(shutil.copytree(fit_toy(), tmp_path / "one")), type_id("pair", kind, number))
    record = json.loads((one / "berthead.json").read_text(encoding="utf-8"))
    (one / "berthead.json").write_text(json.dumps(unsealed(record)), encoding="utf-8")
    assert berthead.load(one).verify() < 1e-5  # no pair is ever made
    two = spoil(Path(shutil.copytree(fit_toy(pair="pair"), tmp_path / "two")), type_id("pair", kind, number))
    refused(lambda: berthead.load(two), two, f"token type {number} in a pair")


def test_the_tokenizer_of_a_joined_folder_is_checked(tiny_bert, tmp_path):
    options = {"encoder": str(tiny_bert), "epochs": 1, "threads": 1, "valid": 0, "adapt": "frozen", "quiet": True}
    members = {name: berthead.fit(toy_rows(1), seed=seed, **options) for seed, name in enumerate(("one", "two"))}
    berthead.join(members, tmp_path / "both")
    spoil(tmp_path / "both" / "theta", type_id("single", "SpecialToken", 9))
    refused(lambda: berthead.load(tmp_path / "both"), tmp_path / "both", "token type 9")


def test_the_largest_number_is_that_of_all_tokens(tiny_bert, tmp_path):
    for number, change in enumerate((lambda tokenizer: None, far_number, added)):
        folder = Path(shutil.copytree(tiny_bert, tmp_path / str(number)))
        backend = Backend.from_file(str(spoil(folder, change) / "tokenizer.json"))
        assert Tokenizer.from_folder(folder).largest_id == max(backend.get_vocab(with_added_tokens=True).values())


def test_an_encoder_without_token_types_reads_none(tmp_path):
    """What is not looked up cannot lie beside a table."""
    from test_families import with_tokenizer

    encoder = spoil(with_tokenizer(tmp_path / "distilbert", "distilbert"), type_id("single", "SpecialToken", 9))
    options = {"encoder": str(encoder), "epochs": 1, "threads": 1, "valid": 0, "quiet": True}
    assert berthead.fit(toy_rows(1), **options).predict("good cat").answer in ("positive", "negative")


@pytest.mark.parametrize("change", [type_id("single", "SpecialToken", 9), far_number], ids=["type", "number"])
def test_an_export_of_before_is_checked_by_the_runtime(change, exported, tmp_path):
    """It does not say how large its tables are."""
    folder = Path(shutil.copytree(exported, tmp_path / "m"))
    record = json.loads((folder / "berthead.json").read_text(encoding="utf-8"))
    for name in ("segments", "vocabulary"):
        del record["export"][name]
    (folder / "berthead.json").write_text(json.dumps(unsealed(record)), encoding="utf-8")
    assert berthead.load(folder).verify() < 1e-4
    spoil_export(folder, change)
    with pytest.raises(ModelError, match=r"does not compute these tokens .*Export the function again"):
        berthead.load(folder).predict("the mat")


def test_more_positions_than_the_graph_has_are_an_error(exported, tmp_path):
    folder = Path(shutil.copytree(exported, tmp_path / "m"))
    record = json.loads((folder / "berthead.json").read_text(encoding="utf-8"))
    record["export"]["positions"] = record["max_tokens"] = 1000
    (folder / "berthead.json").write_text(json.dumps(unsealed(record)), encoding="utf-8")
    with pytest.raises(ModelError, match=r"model\.onnx: does not compute these tokens"):
        berthead.load(folder).predict("good cat " * 80)


@pytest.mark.parametrize(
    ("size", "value"), [("vocabulary", 0), ("vocabulary", "9"), ("segments", -1), ("positions", None)]
)
def test_sizes_that_no_graph_has_are_refused(size, value, exported, tmp_path):
    folder = Path(shutil.copytree(exported, tmp_path / "m"))
    record = json.loads((folder / "berthead.json").read_text(encoding="utf-8"))
    record["export"][size] = value
    (folder / "berthead.json").write_text(json.dumps(unsealed(record)), encoding="utf-8")
    with pytest.raises(ModelError, match=f"is not a whole record .*{size} is"):
        berthead.load(folder)


# --- packs ---


def a_pack() -> Pack:
    """Three rows of 3, 2 and 1 tokens."""
    rows = [Encoded(np.arange(5, 5 + n), np.arange(n) % 2, n, False) for n in (3, 2, 1)]
    return pack(rows, np.arange(3))


def at(values: np.ndarray, place: int, value: int) -> np.ndarray:
    changed = values.copy()
    changed[place] = value
    return changed


ONE = a_pack()
BAD_PACKS = {
    "number": (replace(ONE, ids=at(ONE.ids, 4, 10**6)), "row 1 .*token 1 has the token number 1000000.*0 to 81"),
    "number at the edge": (replace(ONE, ids=at(ONE.ids, 0, 82)), "row 0 .*token 0 has the token number 82.*0 to 81"),
    "number below 0": (replace(ONE, ids=at(ONE.ids, 5, -1)), "row 2 .*token 0 has the token number -1"),
    "type 9": (replace(ONE, segments=at(ONE.segments, 3, 9)), "row 1 .*token 0 has the token type 9.*0 to 1"),
    "type 4000000000": (replace(ONE, segments=at(ONE.segments, 0, 4 * 10**9)), "token type 4000000000"),
    "type below 0": (replace(ONE, segments=at(ONE.segments, 2, -(2**60))), "token 2 has the token type -1152"),
    "position": (replace(ONE, positions=at(ONE.positions, 2, 64)), "token 2 has the position 64.*0 to 63"),
    "position below 0": (replace(ONE, positions=at(ONE.positions, 2, -1)), "token 2 has the position -1"),
    "row too long": (
        pack([Encoded(np.full(65, 5), np.zeros(65, int), 65, False)], np.arange(1)), "row 0 .*65 tokens.*1 to 64",
    ),
    "empty row": (replace(ONE, starts=np.array([0, 3, 3, 6])), "row 1 of the pack: has 0 tokens"),
    "row that ends before it starts": (replace(ONE, starts=np.array([0, 4, 2, 6])), "row 1 of the pack: has -2 tokens"),
    "starts beyond the tokens": (replace(ONE, starts=np.array([0, 3, 5, 60])), "expected int64 from 0 to the number"),
    "starts before them": (replace(ONE, starts=np.array([-3, 3, 5, 6])), "expected int64 from 0 to the number"),
    "no rows": (replace(ONE, starts=np.array([0])), "for one row or more"),
    "other integers": (replace(ONE, ids=ONE.ids.astype(np.int32)), r"int32 \[6\].*expected int64 \[6\]"),
    "too few types": (replace(ONE, segments=ONE.segments[:4]), r"int64 \[4\].*expected int64 \[6\]"),
}  # fmt: skip


@pytest.fixture(params=BAD_PACKS)
def bad(request) -> tuple[Pack, str]:
    return BAD_PACKS[request.param]


def test_a_pack_is_refused_with_row_and_token(bad):
    one, words = bad
    with pytest.raises(ModelError, match=words) as caught:
        check_pack(one, TableSizes(82, 2, 64))
    assert caught.value.expected
    assert caught.value.fix


def test_a_sound_pack_is_not(tiny_bert):
    check_pack(ONE, a_model(tiny_bert).encoder.config)
    # Of no table nothing is read.
    check_pack(BAD_PACKS["type 9"][0], TableSizes(82, 0, 64))


def test_our_kernels_and_torch_refuse_it(bad, tiny_bert, kernels):  # noqa: F811
    for precision in ("fp32", "bf16", "int8"):
        if precision != "int8" or kernels != "torch":
            engine = CpuEngine(a_model(tiny_bert), precision)
            for compute in (engine.logits, engine.pooled):
                with pytest.raises(ModelError, match=bad[1]):
                    compute(bad[0])


def test_plain_torch_refuses_it(bad, tiny_bert, without_onednn):  # noqa: F811
    with pytest.raises(ModelError, match=bad[1]):
        CpuEngine(a_model(tiny_bert)).logits(bad[0])


def test_the_engines_of_devices_refuse_it(bad, tiny_bert):
    model = a_model(tiny_bert)
    for engine in (CudaEngine(model, "fp32", CPU, PLAIN, None), DeviceEngine(model, CPU)):
        for compute in (engine.logits, engine.pooled):
            with pytest.raises(ModelError, match=bad[1]):
                compute(bad[0])


def test_the_engine_of_joined_functions_refuses_it(bad, tiny_bert):
    with pytest.raises(ModelError, match=bad[1]):
        JoinedEngine([a_model(tiny_bert), a_model(tiny_bert, "cls")]).logits(bad[0], [0, 1])


def test_the_runtime_of_exported_functions_never_sees_it(bad, exported):
    with pytest.raises(ModelError, match=bad[1]):
        berthead.load(exported).predictor.engine.logits(bad[0])


# Tensors cannot be made of a pack whose arrays have other lengths; `starts` have no end of their own.
TENSORS = [
    "number", "number below 0", "type 9", "type 4000000000", "type below 0", "position", "row too long", "empty row",
    "row that ends before it starts", "other integers", "too few types",
]  # fmt: skip


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_are_refused_as_packs_are(name, tiny_bert):
    one, words = BAD_PACKS[name]
    tensors, model = TensorPack.from_pack(one), a_model(tiny_bert)
    with pytest.raises(ModelError, match=words):
        check_rows(tensors, model.encoder.config)


@needs_kernels
@pytest.mark.parametrize("name", TENSORS)
def test_the_kernels_themselves_refuse_tensors(name, tiny_bert):
    one, words = BAD_PACKS[name]
    tensors, model = TensorPack.from_pack(one), a_model(tiny_bert)
    with pytest.raises(ModelError, match=words):
        native.pack_weights(model, "fp32").encoder(tensors)
    assert training.supports_training(model.encoder, "fp32", CPU)
    table = EmbeddingTable(model.encoder.embeddings.word, decay=0.01)
    try:
        with pytest.raises(ModelError, match=words):
            training.hidden(model.encoder, tensors, "fp32")
    finally:
        table.close()


@needs_kernels
@pytest.mark.parametrize("rows", [[0, 5], [-1, 3]])
def test_a_table_that_learns_is_not_read_beside_its_rows(rows):
    embedding = torch.nn.Embedding(5, 4)
    assert learns_by_row(embedding)
    table = EmbeddingTable(embedding, decay=0.01)
    embedding(torch.tensor([1, 3])).sum().backward()
    table.step(1e-3)
    with pytest.raises(IndexError, match="expected 0 to 4"):
        table.bring_up(torch.tensor(rows))
    table.close()


# --- in a process of its own: what reads other memory ends it ---

ATTACK = """
import sys
import numpy as np
import berthead
from berthead.engine.cpu import CpuEngine
from berthead.errors import ModelError
from berthead.model.heads import RowHead
from berthead.model.checkpoint import read_checkpoint
from berthead.model.model import Model
from berthead.records import Pack
checkpoint = read_checkpoint(sys.argv[1])
engine = CpuEngine(Model(checkpoint.encoder(), RowHead(checkpoint.config.width, 2, "mean")))
refused = 0
for name in ("ids", "segments", "positions"):
    for value in (9_000, 4_000_000_000, 2**62, -1, -4_000_000_000):
        arrays = {"ids": np.array([2, 5, 3]), "segments": np.zeros(3, int), "positions": np.arange(3)}
        arrays[name][1] = value
        try:
            engine.logits(Pack(**arrays, starts=np.array([0, 3]), row=np.array([0])))
        except ModelError:
            refused += 1
print(refused)
"""


@pytest.mark.parametrize("computes", ["torch", *library.kernels()])
def test_no_pack_ends_the_process(computes, tiny_bert):
    done = subprocess.run(
        [sys.executable, "-c", ATTACK, str(tiny_bert)], capture_output=True, encoding="utf-8", timeout=240,
        env=shell_env(BERTHEAD_KERNELS=computes),
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, "15"), done.stderr


@pytest.mark.parametrize("number", [9, 4_000_000_000])
def test_no_tokenizer_ends_a_command(number, toy_model, exported, toy_csv, tmp_path, shell):
    change = type_id("single", "SpecialToken", number)
    model = spoil(Path(shutil.copytree(toy_model, tmp_path / "m")), change)
    graph = spoil_export(Path(shutil.copytree(exported, tmp_path / "g")), change)
    encoder = spoil(make_bert(tmp_path / "e"), change)
    for words in (["predict", model, "good cat"], ["predict", graph, "good cat"],
                  ["fit", toy_csv, "--encoder", encoder, "--out", tmp_path / "out"]):  # fmt: skip
        done = shell(*words)
        assert done.code == 2, done.err
        assert f"token type {number} in a text" in " ".join(done.err.split())
        assert "Traceback" not in done.err
