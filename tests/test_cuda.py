"""Prediction on GPUs: all but their own kernels is shown on a CPU, with attention by plain softmax in their place."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import numpy as np
import parity
import pytest
import torch
from conftest import make_bert, needs_gpus, toy_rows
from test_engine import a_model, a_pack
from torch import Tensor, nn
from toy_tasks import fit_task

import berthead
from berthead.engine import cpu as engine_module
from berthead.engine import machine
from berthead.engine.cpu import CpuEngine, applied, find_device
from berthead.engine.cuda import CudaEngine, Engines, all_gpus
from berthead.engine.cuda_attention import (
    KERNELS,
    Kernel,
    Rows,
    VarlenAttention,
    agrees,
    efficient,
    flash,
    kernel_for,
    prepared,
)
from berthead.engine.cuda_graphs import MOST_ROWS, MOST_TOKENS, Graphs, padded, recorded, rounded
from berthead.errors import ModelError, UsageError
from berthead.model import heads
from berthead.model.config import EncoderConfig
from berthead.model.encoder import Encoder
from berthead.model.heads import JointHead, RowHead, TokenHead
from berthead.model.model import Model
from berthead.model.sharing import shared
from berthead.model.tensors import TensorPack
from berthead.model.units import by_row
from berthead.options import PredictOptions
from berthead.predict import precision as gate
from berthead.predict import predictor as predict_module
from berthead.predict.joined import JoinedEngine
from berthead.predict.predictor import GPU_TOKEN_BUDGET, TOKEN_BUDGET, Predictor
from berthead.records import Example
from berthead.text.packing import pack
from berthead.text.tokenizer import Encoded

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TOLERANCE = 1e-5
TEXTS = [row["text"] for row in toy_rows()]

has_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


def plain(query: Tensor, key: Tensor, value: Tensor, rows: Rows, scale: float, local: int) -> Tensor:
    """Attention as the paper writes it, row by row."""
    mixed = torch.zeros_like(query)
    edges = rows.edges.tolist()
    assert rows.edges.dtype == torch.int32
    assert max(np.diff(edges)) <= rows.longest
    for first, last in pairwise(edges):
        q, k, v = (side[first:last].float().transpose(0, 1) for side in (query, key, value))  # [heads, length, size]
        scores = scale * (q @ k.transpose(1, 2))
        if local:
            places = torch.arange(last - first)
            scores = scores.masked_fill((places[:, None] - places).abs() > local, -torch.inf)
        mixed[first:last] = (scores.softmax(-1) @ v).transpose(0, 1).to(value.dtype)
    return mixed


PLAIN = Kernel("plain", plain)


def recalled(function):
    """A stand-in for a recording: what it gives lies in one place, as a graph's output does."""
    result = function().clone()

    def replay():
        return result.copy_(function())

    return replay


def engine_of(model, precision="fp32", kernel=PLAIN, record=None) -> CudaEngine:
    """The GPU's engine, on this processor."""
    return CudaEngine(model, precision, CPU, kernel, record)


# --- attention ---


@pytest.mark.parametrize("name", parity.CASES)
def test_a_family_computes_what_transformers_computes(tmp_path, name):
    case = parity.CASES[name]
    ours, theirs = parity.both(parity.make(tmp_path / "encoder", case), case)
    called = []

    def attend(*given):
        called.append(given[-1])
        return plain(*given)

    kernel = Kernel("plain", attend) if agrees(PLAIN, ours, "fp32", CPU) else None
    assert (kernel is None) == name.startswith(("mpnet", "deberta"))  # what is added to the scores is not read
    with torch.inference_mode():
        encoder = prepared(Model(ours, nn.Identity()), "fp32", CPU, kernel).encoder
        vectors = encoder(parity.packed(parity.rows(), ours))
        wanted = theirs(**parity.padded(parity.rows(), theirs)).last_hidden_state
    assert parity.apart(vectors, parity.unpadded(wanted, parity.rows())) <= TOLERANCE
    assert len(called) == (ours.config.layers if kernel else 0)
    assert set(called) == set(ours.config.local or (0,)) or kernel is None


@pytest.mark.parametrize("name", ["bert", "modernbert", "mpnet", "deberta-v2, as v3"])
def test_bf16_stays_near(tmp_path, name):
    case = parity.CASES[name]
    ours, _ = parity.both(parity.make(tmp_path / "encoder", case), case)
    kernel = PLAIN if agrees(PLAIN, ours, "bf16", CPU) else None
    with torch.inference_mode():
        encoder = prepared(Model(ours, nn.Identity()), "bf16", CPU, kernel).encoder
        vectors, wanted = (one(parity.packed(parity.rows(), ours)) for one in (encoder, ours))
    assert vectors.dtype == torch.bfloat16
    assert 1e-4 < parity.apart(vectors.float(), wanted) < 0.15
    assert all(parameter.dtype == torch.float32 for parameter in ours.parameters())


def test_a_kernel_is_taken_only_where_it_agrees(tmp_path):
    case = parity.CASES["modernbert"]
    local, _ = parity.both(parity.make(tmp_path / "encoder", case), case)

    def blind(query, key, value, rows, scale, local):
        return plain(query, key, value, rows, scale, 0)

    def unscaled(query, key, value, rows, scale, local):
        return plain(query, key, value, rows, 1.0, local)

    def fails_with(error):
        def attend(*given):
            raise error

        return attend

    errors = (
        ImportError("no module named varlen"),
        TypeError("varlen_attn() got an unexpected keyword argument 'scale'"),
        AttributeError("'_OpNamespace' 'aten' object has no attribute '_efficient_attention_forward'"),
        NotImplementedError("it sees all tokens of a row"),
        RuntimeError("FlashAttention only supports Ampere GPUs or newer."),
        ValueError("head sizes up to 256"),
    )
    for precision in ("fp32", "bf16"):
        assert agrees(PLAIN, local, precision, CPU)
        for wrong in (blind, unscaled, *map(fails_with, errors)):
            assert not agrees(Kernel("wrong", wrong), local, precision, CPU)
        # torch has these kernels for GPUs only.
        assert kernel_for(local, precision, CPU) is None


def test_torch_is_called_as_its_kernels_are_declared():
    """Tensors without values: names, order and shapes of the arguments are checked, nothing is computed."""
    rows = Rows(torch.zeros(4, dtype=torch.int32, device="meta"), 9)
    for kernel, dtype, local in ((flash, torch.bfloat16, 0), (flash, torch.bfloat16, 3), (efficient, torch.float32, 0)):
        qkv = torch.zeros(20, 3, 4, 8, dtype=dtype, device="meta")
        query, key, value = qkv.unbind(1)
        mixed = kernel(query, key, value, rows, 0.3, local)
        assert (mixed.shape, mixed.dtype) == (query.shape, dtype)
    with pytest.raises(NotImplementedError):
        efficient(query, key, value, rows, 0.3, 3)


# --- the engine ---


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
@pytest.mark.parametrize("record", [None, recalled], ids=["eager", "recorded"])
def test_the_engine_gives_the_cpu_engines_numbers(tiny_bert, pooling, record):
    model = a_model(tiny_bert, pooling)
    engine, usual = engine_of(model, record=record), CpuEngine(model)
    for one in (a_pack(), a_pack([7]), a_pack([64] * 9)):
        np.testing.assert_allclose(engine.logits(one), usual.logits(one), atol=TOLERANCE, rtol=0)
        np.testing.assert_allclose(engine.pooled(one), usual.pooled(one), atol=TOLERANCE, rtol=0)
    assert engine.kernels == "cuda varlen plain"
    assert engine_of(model, kernel=None).kernels == "cuda torch"


def test_heads_of_tokens_read_their_own_rows(tiny_bert):
    encoder = a_model(tiny_bert).encoder
    torch.manual_seed(3)
    tokens, row = TokenHead(32, 3), RowHead(32, 2, "mean")
    for head in (tokens, JointHead(tokens, row)):
        model, one = Model(encoder, head.eval()), a_pack([9, 9, 4, 1])
        for record in (None, recalled):
            found = engine_of(model, record=record).logits(one)
            np.testing.assert_allclose(found, CpuEngine(model).logits(one), atol=TOLERANCE, rtol=0)


def test_the_model_given_stays_as_it_is(tiny_bert):
    model = a_model(tiny_bert)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    engine = engine_of(model.train(), "bf16")
    engine.logits(a_pack())
    assert model.training
    assert not engine.model.training
    assert not any(isinstance(part, VarlenAttention) for part in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    mine = {tensor.data_ptr() for tensor in engine.model.parameters()}
    assert mine.isdisjoint(tensor.data_ptr() for tensor in model.parameters())


def test_memory_that_does_not_suffice_is_an_error_that_says_what_helps(tiny_bert):
    def full(*given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model, full_kernel = a_model(tiny_bert), Kernel("full", full)
    joined = JoinedEngine([model])
    joined.models = [prepared(model, "fp32", CPU, full_kernel)]
    for compute in (engine_of(model, kernel=full_kernel).logits, lambda one: joined.logits(one, [0])):
        with pytest.raises(UsageError, match=r"has too little memory to compute 124 tokens at once.*--token-budget"):
            compute(a_pack())


@pytest.mark.parametrize("ids", [[5, 10**6], [-1, 5], [5] * 65], ids=["number too large", "negative", "row too long"])
def test_rows_that_the_encoder_has_no_vectors_for_never_reach_the_gpu(tiny_bert, ids):
    row = Encoded(np.array(ids), np.zeros(len(ids), np.int64), len(ids), False)
    one = pack([row], np.arange(1))
    with pytest.raises(ModelError):
        engine_of(a_model(tiny_bert)).logits(one)
    with pytest.raises(ModelError):
        JoinedEngine([a_model(tiny_bert)]).logits(one, [0])


def test_means_of_rows_in_one_launch_are_the_means():
    one = TensorPack.from_pack(a_pack([9, 9, 4, 1]))
    hidden = torch.randn(23, 8, generator=torch.Generator().manual_seed(1))
    found = heads.segment_means(hidden, one.lengths)
    torch.testing.assert_close(found, heads.row_means(hidden, one), atol=1e-6, rtol=0)
    wanted = torch.stack([row.mean(0) for row in hidden.split(one.lengths.tolist())])
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_functions_on_one_encoder_share_what_is_prepared(tiny_bert):
    one = a_model(tiny_bert)
    other = Model(one.encoder, RowHead(32, 2, "cls").eval())
    memo: dict = {}
    first, second = (prepared(model, "fp32", CPU, PLAIN, memo) for model in shared([one, other]))
    assert first.encoder.positions is second.encoder.positions
    assert [*first.encoder.blocks] == [*second.encoder.blocks]
    assert isinstance(first.encoder.blocks[0].attention, VarlenAttention)
    engine, tried = JoinedEngine([one, other]), a_pack()
    engine.models = [first, second]
    for found, model in zip(engine.logits(tried, [0, 1]), (one, other), strict=True):
        np.testing.assert_allclose(found, CpuEngine(model).logits(tried), atol=TOLERANCE, rtol=0)


# --- recordings ---


def test_a_padded_pack_holds_the_same_rows_and_one_more():
    one = a_pack([5, 3, 3])
    more = padded(one, 64)
    assert len(more.ids) == len(more.segments) == len(more.positions) == 64
    assert more.lengths.tolist() == [5, 3, 3, 53] + [0] * (MOST_ROWS - 3)
    for mine, given in ((more.ids, one.ids), (more.segments, one.segments), (more.positions, one.positions)):
        assert mine[:11].tolist() == given.tolist()
        assert not mine[11:].any()
    full = padded(a_pack([16] * 4), 64)
    assert full.lengths.tolist() == [16] * 4 + [0] * (MOST_ROWS - 3)


def test_sizes_are_rounded_up_to_a_few():
    assert [rounded(tokens) for tokens in (1, 63, 64, 65, MOST_TOKENS)] == [64, 64, 64, 128, MOST_TOKENS]
    assert len({rounded(tokens) for tokens in range(1, MOST_TOKENS + 1)}) == 8


def test_each_size_is_recorded_once_and_larger_packs_are_not(tiny_bert):
    model, random = a_model(tiny_bert), np.random.default_rng(2)
    sizes, replays = [], []

    def record(function):
        replay = recalled(function)
        sizes.append(len(function()))

        def counted():
            replays.append(sizes[-1])
            return replay()

        return counted

    engine, usual, small = engine_of(model, record=record), CpuEngine(model), 0
    for number in range(40):
        lengths = sorted(random.integers(1, 65, random.integers(1, 40)).tolist(), reverse=True)
        one = a_pack(lengths, seed=number)
        small += sum(lengths) <= MOST_TOKENS and len(lengths) <= MOST_ROWS
        np.testing.assert_allclose(engine.logits(one), usual.logits(one), atol=TOLERANCE, rtol=0)
    assert 5 < small < 40
    assert len(replays) == small
    assert len(sizes) == len(set(sizes)) <= 8
    assert all(size % 64 == 0 and size <= MOST_TOKENS for size in sizes)


def test_what_is_replayed_reads_the_new_rows_only(tiny_bert):
    """A long row's tokens are still in the recording when a short one comes."""
    engine = engine_of(a_model(tiny_bert), record=recalled)
    short = a_pack([3], seed=5)
    alone = engine.logits(short)
    engine.logits(a_pack([30, 20, 10]))
    np.testing.assert_array_equal(engine.logits(short), alone)


def test_what_cannot_be_recorded_is_computed_all_the_same(tiny_bert):
    model, tried = a_model(tiny_bert), []

    def record(function):
        tried.append(function)
        raise RuntimeError("operation not permitted when stream is capturing")

    engine = engine_of(model, record=record)
    for _ in range(3):
        np.testing.assert_allclose(engine.logits(a_pack()), CpuEngine(model).logits(a_pack()), atol=TOLERANCE, rtol=0)
    assert len(tried) == 1


def test_without_a_kernel_nothing_is_recorded(tiny_bert):
    def record(function):
        raise AssertionError("shapes change with the rows' lengths")

    model = a_model(tiny_bert)
    found = engine_of(model, kernel=None, record=record).logits(a_pack())
    np.testing.assert_allclose(found, CpuEngine(model).logits(a_pack()), atol=TOLERANCE, rtol=0)


# --- several devices ---


def test_two_engines_give_the_answers_of_one_in_input_order(toy_model):
    fitted = berthead.load(toy_model, token_budget=16)
    usual = fitted.predict(TEXTS)
    fitted.predictor.engine = Engines(lambda device: CpuEngine(fitted.artifact.model), [CPU, CPU])
    found = fitted.predict(TEXTS)
    assert [one.answer for one in found] == [one.answer for one in usual]
    np.testing.assert_allclose([one.score for one in found], [one.score for one in usual], atol=TOLERANCE)


class Meeting:
    """An engine that waits in each pack until another one computes too."""

    precision, kernels = "fp32", "none"

    def __init__(self, model, barrier):
        self.model, self.barrier, self.threads = model, barrier, set()

    def logits(self, one):
        self.threads.add(threading.get_ident())
        self.barrier.wait(30)
        return one.ids[one.starts[:-1], None].astype(np.float32)


def test_devices_compute_at_the_same_time_each_in_a_thread(tiny_bert):
    model, barrier, made = a_model(tiny_bert), threading.Barrier(2), []

    def make(device):
        made.append(Meeting(model, barrier))
        return made[-1]

    engines = Engines(make, [CPU, CPU])
    assert (engines.workers, len(made)) == (2, 1)
    rows = [Encoded(np.array([number, 1]), np.zeros(2, np.int64), 2, False) for number in range(8)]
    found = by_row(rows, engines.logits, 1, 2, workers=engines.workers)
    assert found[:, 0].tolist() == list(range(8))
    assert len(made) == 2
    assert len({*made[0].threads, *made[1].threads}) == 2


def test_one_pack_after_another_needs_one_device(tiny_bert):
    model, made = a_model(tiny_bert), []

    def make(device):
        made.append(device)
        return CpuEngine(model)

    engines = Engines(make, [torch.device("cpu", 0), torch.device("meta")])
    for _ in range(4):
        np.testing.assert_array_equal(engines.logits(a_pack()), CpuEngine(model).logits(a_pack()))
    np.testing.assert_array_equal(engines.pooled(a_pack()), CpuEngine(model).pooled(a_pack()))
    assert made == [torch.device("cpu", 0)]


def test_an_error_of_one_device_is_raised_and_the_others_go_on(tiny_bert):
    engine = engine_of(a_model(tiny_bert))
    engines = Engines(lambda device: engine, [CPU, CPU])
    bad = Encoded(np.array([10**6]), np.zeros(1, np.int64), 1, False)
    with pytest.raises(ModelError):
        by_row([bad] * 6, engines.logits, 3, 1, workers=2)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(engines.logits, [a_pack()] * 8))
    assert all(np.array_equal(one, found[0]) for one in found)


def test_tasks_of_tokens_are_shared_out_too(tiny_bert):
    artifact = fit_task(tiny_bert, "tag").artifact
    examples = [Example(text) for text in TEXTS]
    usual, shared_out = Predictor(artifact, token_budget=16), Predictor(artifact, token_budget=16)
    shared_out.engine = Engines(lambda device: CpuEngine(artifact.model), [CPU, CPU, CPU])
    np.testing.assert_allclose(shared_out.logits(examples), usual.logits(examples), atol=TOLERANCE)


# --- the option ---


def test_the_cpu_is_the_default_and_each_device_has_its_budget(toy_model, monkeypatch):
    assert PredictOptions().device == "cpu"
    fitted = berthead.load(toy_model)
    assert (fitted.predictor.device, fitted.predictor.token_budget) == (CPU, TOKEN_BUDGET)
    assert isinstance(applied(fitted.artifact.model, "fp32", CPU), CpuEngine)
    assert predict_module.budget_of(CUDA) == GPU_TOKEN_BUDGET
    monkeypatch.setattr(engine_module, "applied", lambda model, precision, device: device)
    assert Predictor(fitted.artifact, device=CUDA).token_budget == GPU_TOKEN_BUDGET
    assert Predictor(fitted.artifact, token_budget=99, device=CUDA).token_budget == 99
    assert Predictor(fitted.artifact, device=CUDA).engine == CUDA


def test_the_option_names_the_budgets_that_are_taken():
    said = PredictOptions.__dataclass_fields__["token_budget"].metadata["help"]
    assert f"[default: {TOKEN_BUDGET}; cuda: {GPU_TOKEN_BUDGET}]" in said


@has_gpu
def test_a_gpu_that_is_not_there_is_an_error_before_anything_is_read(cli, toy_model):
    for words in (["predict", toy_model, "a text"], ["eval", toy_model, "rows.csv"], ["bench", toy_model]):
        ran = cli(*words, "--device", "cuda")
        assert (ran.code, ran.out) == (2, "")
        assert ran.err.startswith("berthead: --device cuda: torch sees no CUDA device; expected cpu")
    with pytest.raises(UsageError, match="torch sees no CUDA device"):
        berthead.load(toy_model, device="cuda")


def test_int8_is_no_precision_of_a_gpu(cli, toy_model):
    ran = cli("predict", toy_model, "good cat", "--device", "cuda", "--precision", "int8")
    assert ran.code == 2
    assert "--precision int8: is not supported with --device cuda; expected fp32 or bf16" in ran.err


def test_another_device_is_refused(cli, toy_model):
    ran = cli("predict", toy_model, "good cat", "--device", "tpu")
    assert (ran.code, "expected one of cpu, cuda" in ran.err) == (2, True)


def test_a_pickle_keeps_the_device(toy_model):
    fitted = berthead.load(toy_model)
    fitted.engine.options = replace(fitted.options, device="cuda")
    assert pickle.loads(pickle.dumps(fitted)).options.device == "cuda"


# --- the gate ---


def test_a_gpu_takes_float32_until_bf16_was_measured_on_it(toy_model, monkeypatch):
    artifact = berthead.load(toy_model).artifact
    monkeypatch.setattr(gate, "has_fast_bf16", lambda device=None: True)
    monkeypatch.setattr(machine, "gpus", lambda: "2 x Some GPU")
    assert gate.candidates(artifact.model, CUDA) == ["bf16"]
    assert gate.computed_by(artifact.model, "bf16", CUDA) == "cuda"
    choice = gate.choose({"": artifact}, CUDA)
    assert choice.precision == "fp32"
    assert "not measured" in choice.reason
    assert "berthead bench MODEL DATA --device cuda measures them" in choice.reason
    assert machine.key_of(artifact, CUDA)["gpus"] == "2 x Some GPU"
    assert "cpu" not in machine.key_of(artifact, CUDA)


def test_a_precision_report_of_a_gpu_counts_on_gpus_alone(toy_model, monkeypatch, tmp_path):
    monkeypatch.setenv("BERTHEAD_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(gate, "has_fast_bf16", lambda device=None: True)
    monkeypatch.setattr(machine, "gpus", lambda: "1 x Some GPU")
    monkeypatch.setattr("berthead.function.precision_report.LEAST_ROWS", 1)  # the golden examples are few
    # Two precisions of the GPU's engine, on this processor.
    monkeypatch.setattr(
        engine_module,
        "applied",
        lambda model, precision, device: Engines(lambda _: engine_of(model, precision), [CPU]),
    )
    monkeypatch.setattr(machine, "speeds", lambda engines, one: {"fp32": 100.0, "bf16": 250.0})
    artifact = berthead.load(toy_model).artifact
    batch = gate.golden_batch(artifact)
    report = gate.measure(artifact, batch, None, "given", device=CUDA)
    assert {name: one.by for name, one in report.verdicts.items()} == {"bf16": "cuda"}
    assert report.verdicts["bf16"].passed
    machine.keep(machine.key_of(artifact, CUDA), {"receipt": report.to_json()})
    choice = gate.choose({"": artifact}, CUDA)
    assert (choice.precision, choice.reason[:18]) == ("bf16", "2.50 x fp32 here; ")
    assert machine.measured(machine.key_of(artifact)) == {}


def test_a_gpu_without_bfloat16_computes_float32(toy_model, monkeypatch):
    monkeypatch.setattr(gate, "has_fast_bf16", lambda device=None: False)
    choice = gate.choose({"": berthead.load(toy_model).artifact}, CUDA)
    assert str(choice) == "precision fp32: no lower precision is supported here: this GPU has no bfloat16 in hardware"


# --- where there is a GPU ---


@needs_gpus()
@pytest.mark.parametrize("name", parity.CASES)
def test_a_gpu_computes_what_the_cpu_computes(tmp_path, name):
    case = parity.CASES[name]
    ours, _ = parity.both(parity.make(tmp_path / "encoder", case), case)
    torch.manual_seed(0)
    model = Model(ours, RowHead(32, 5, "mean")).eval()
    if ours.config.segments < 2:
        ones = [replace(one, segments=one.segments * 0) for one in parity.rows()]
    else:
        ones = parity.rows()
    some = pack(ones, np.arange(len(ones)))
    wanted = CpuEngine(model).logits(some)
    for precision, tolerance in (("fp32", 1e-4), ("bf16", 0.1)):
        found = all_gpus(model, precision).logits(some)
        np.testing.assert_allclose(found, wanted, atol=tolerance, rtol=tolerance)


@needs_gpus()
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("width", "local"), [(384, 0), (768, 0), (768, 64)], ids=["minilm", "base", "modernbert"])
def test_torchs_kernels_are_taken_on_a_gpu(precision, width, local):
    config = EncoderConfig(vocabulary=90, width=width, layers=6, heads=12, inner=64, positions=512, segments=2)
    taken = kernel_for(Encoder(replace(config, local=(local,) * 6)), precision, CUDA)
    assert taken is (None if local and precision == "fp32" else KERNELS[precision])


@needs_gpus()
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_a_gpu_replays_is_what_it_computes(tmp_path, precision):
    sizes = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536, "vocab_size": 30000}
    made = make_bert(tmp_path / "wide", num_hidden_layers=6, max_position_embeddings=512, **sizes)
    model, random = a_model(made), np.random.default_rng(0)
    kernel, first = kernel_for(model.encoder, precision, CUDA), torch.device("cuda", 0)
    failed = []

    def record(function):
        try:
            return recorded(function)
        except RuntimeError as error:
            failed.append(error)
            raise

    engines = [CudaEngine(model, precision, first, kernel, how) for how in (None, record)]
    for number in range(12):
        lengths = sorted(random.integers(1, 129, random.integers(1, 9)).tolist(), reverse=True)
        one = a_pack(lengths, vocabulary=30000, seed=number)
        eager, replayed = (engine.logits(one) for engine in engines)
        np.testing.assert_allclose(replayed, eager, atol=1e-4 if precision == "fp32" else 0.1)  # logits of up to 5
    assert not failed


@needs_gpus()
def test_a_file_job_on_a_gpu_gives_the_cpus_answers(toy_model, toy_csv, cli, tmp_path):
    outs = {}
    for device in ("cpu", "cuda"):
        outs[device] = tmp_path / f"{device}.csv"
        assert cli("predict", toy_model, toy_csv, "--out", outs[device], "--device", device).code == 0
    answers = {device: [line.split(",")[-2] for line in out.read_text().splitlines()] for device, out in outs.items()}
    assert answers["cpu"] == answers["cuda"]
    labels = [one.answer for one in berthead.load(toy_model, device="cuda", precision="bf16").predict(TEXTS)]
    assert labels == [one.answer for one in berthead.load(toy_model).predict(TEXTS)]
    assert berthead.load(toy_model, device="cuda").verify() < 1e-4


@needs_gpus()
def test_a_gpu_is_measured(toy_model, toy_csv, monkeypatch, tmp_path):
    monkeypatch.setenv("BERTHEAD_HOME", str(tmp_path / "home"))
    found = berthead.bench(berthead.load(toy_model, device="cuda"), toy_csv)
    assert found.gpus == machine.gpus() != ""
    assert all(one.kernels.startswith("cuda ") and 0 < one.share_of_peak < 1 for one in found.runs)


@needs_gpus()
def test_joined_functions_answer_on_a_gpu(fit_toy):
    members = {"one": berthead.load(fit_toy(adapt="frozen")), "two": berthead.load(fit_toy(adapt="frozen", seed=1))}
    both = berthead.join(members)
    there = JoinedEngine([one.artifact.model for one in members.values()], device=CUDA)
    for found, wanted in zip(
        there.logits(a_pack(), [0, 1]), both.predictor.engine.logits(a_pack(), [0, 1]), strict=True
    ):
        np.testing.assert_allclose(found, wanted, atol=1e-4)


@needs_gpus(2)
def test_several_gpus_give_the_answers_of_one(toy_model):
    fitted = berthead.load(toy_model, device="cuda", token_budget=64)
    assert fitted.predictor.engine.workers == torch.cuda.device_count()
    usual = berthead.load(toy_model).predict(TEXTS * 20)
    assert [one.answer for one in fitted.predict(TEXTS * 20)] == [one.answer for one in usual]


@needs_gpus()
def test_float32_is_float32_on_a_gpu(tiny_bert):
    torch.set_float32_matmul_precision("high")
    try:
        all_gpus(a_model(tiny_bert), "fp32")
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_cpus_engine_is_found_by_its_name():
    assert find_device("cpu", "int8") == CPU
    assert Graphs(None, CPU, recalled).encoded(a_pack([64] * 9)) is None
