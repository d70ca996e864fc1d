"""The engine gives the plain model's logits, changes nothing, and uses the threads that this process may use."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_bert, shell_env
from torch import nn

from berthead.engine import cpu as engine_module
from berthead.engine import prepacked as prepacked_module
from berthead.engine import threads as threads_module
from berthead.engine.cpu import CpuEngine, has_fast_bf16, use_threads
from berthead.engine.prepacked import CastLinear, PackedLinear
from berthead.engine.threads import available_threads
from berthead.errors import ModelError, UsageError
from berthead.fitted import load
from berthead.kernels import library
from berthead.model.checkpoint import read_checkpoint
from berthead.model.heads import RowHead
from berthead.model.model import Model
from berthead.model.tensors import TensorPack
from berthead.options import PredictOptions
from berthead.records import Pack
from berthead.text.packing import pack
from berthead.text.tokenizer import Encoded

TOLERANCE = 1e-5
LENGTHS = [50, 50, 17, 3, 3, 1]

needs_onednn = pytest.mark.skipif(not prepacked_module.has_onednn(), reason="this torch has no oneDNN")


@pytest.fixture
def by_torch(monkeypatch):
    monkeypatch.setenv(library.SWITCH, "torch")


@pytest.fixture
def without_onednn(monkeypatch, by_torch):
    monkeypatch.setattr(prepacked_module, "has_onednn", lambda *_: False)
    monkeypatch.setattr(engine_module, "has_onednn", lambda *_: False)


@pytest.fixture(params=["torch", *library.kernels()])
def kernels(request, monkeypatch) -> str:
    """Each of what may compute the encoder here."""
    monkeypatch.setenv(library.SWITCH, request.param)
    return request.param


def a_model(name: str | Path, pooling: str = "mean") -> Model:
    """The encoder with a random head of three outputs."""
    checkpoint = read_checkpoint(str(name))
    torch.manual_seed(1)
    head = RowHead(checkpoint.config.width, 3, pooling)
    nn.init.normal_(head.out.weight, std=0.1)
    nn.init.normal_(head.out.bias)
    return Model(checkpoint.encoder(), head).eval()


def a_pack(lengths=LENGTHS, vocabulary=80, seed=0) -> Pack:
    random = np.random.default_rng(seed)
    encoded = [
        Encoded(random.integers(1, vocabulary, n), (np.arange(n) > n // 2).astype(np.int64), n, False) for n in lengths
    ]
    return pack(encoded, np.arange(len(lengths)))


def plain_logits(model: Model, one: Pack) -> np.ndarray:
    with torch.no_grad():
        return model(TensorPack.from_pack(one)).numpy()


def linears(engine: CpuEngine) -> list[nn.Module]:
    """What stands in the place of each linear layer of the encoder."""
    return [
        layer
        for block in engine.model.encoder.blocks
        for layer in (block.attention.qkv, block.attention.out, block.mlp.up, block.mlp.down)
    ]


# --- float32 ---


@pytest.mark.parametrize("name", ["tiny", "minilm"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
def test_fp32_equals_the_plain_model(tiny_bert, name, pooling, kernels):
    model = a_model(tiny_bert if name == "tiny" else name, pooling)
    one = a_pack(LENGTHS if name == "tiny" else [200, 40, 40, 9])
    engine = CpuEngine(model)
    assert engine.kernels == {"torch": "oneDNN" if prepacked_module.has_onednn() else "torch"}.get(kernels, kernels)
    logits = engine.logits(one)
    assert (logits.dtype, logits.shape) == (np.float32, (len(one.row), 3))
    np.testing.assert_allclose(logits, plain_logits(model, one), atol=TOLERANCE, rtol=0)


def test_fp32_equals_transformers(tiny_bert):
    from transformers import BertModel

    model, theirs = a_model(tiny_bert, "cls"), BertModel.from_pretrained(tiny_bert).eval()
    one = a_pack([31])
    with torch.no_grad():
        inputs = {"input_ids": torch.from_numpy(one.ids)[None], "token_type_ids": torch.from_numpy(one.segments)[None]}
        wanted = model.head.out(theirs(**inputs).last_hidden_state[:, 0])
    np.testing.assert_allclose(CpuEngine(model).logits(one), wanted.detach().numpy(), atol=TOLERANCE, rtol=0)


@needs_onednn
@pytest.mark.parametrize("lengths", [[1], [2, 1], [64] * 33], ids=["1 token", "3 tokens", "over 2048 tokens"])
def test_packs_far_from_the_typical_size_are_computed_alike(tiny_bert, by_torch, lengths):
    model, one = a_model(tiny_bert), a_pack(lengths)
    engine = CpuEngine(model)
    assert all(isinstance(layer, PackedLinear) for layer in linears(engine))
    np.testing.assert_allclose(engine.logits(one), plain_logits(model, one), atol=TOLERANCE, rtol=0)


ACTIVATIONS = {
    "gelu": ("gelu", "none"), "gelu_new": ("gelu", "tanh"), "gelu_pytorch_tanh": ("gelu", "tanh"),
    "relu": ("relu", "none"), "silu": None, "swish": None, "tanh": None,
}  # fmt: skip


@needs_onednn
@pytest.mark.parametrize(("name", "fused"), ACTIVATIONS.items())
def test_every_activation_equals_the_plain_model_and_is_fused_where_it_can_be(tmp_path, by_torch, name, fused):
    model, one = a_model(make_bert(tmp_path / "bert", hidden_act=name)), a_pack()
    engine = CpuEngine(model)
    np.testing.assert_allclose(engine.logits(one), plain_logits(model, one), atol=TOLERANCE, rtol=0)
    for prepared, block in zip(engine.model.encoder.blocks, model.encoder.blocks, strict=True):
        assert prepared.mlp.up.fused == (fused or ("none", "none"))
        assert type(prepared.mlp.activation) is (nn.Identity if fused else type(block.mlp.activation))
        assert list(dict(prepared.mlp.named_children())) == ["up", "activation", "down"]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_without_onednn_every_activation_equals_the_plain_model(tmp_path, without_onednn, name):
    model, one = a_model(make_bert(tmp_path / "bert", hidden_act=name)), a_pack()
    engine = CpuEngine(model)
    assert engine.kernels == "torch"
    assert {type(layer) for layer in linears(engine)} == {CastLinear}
    np.testing.assert_allclose(engine.logits(one), plain_logits(model, one), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_equals_the_plain_model_in_every_kernel(tmp_path, kernels, name):
    model, one = a_model(make_bert(tmp_path / "bert", hidden_act=name)), a_pack()
    np.testing.assert_allclose(CpuEngine(model).logits(one), plain_logits(model, one), atol=TOLERANCE, rtol=0)


def test_pooled_is_what_the_head_reads(tiny_bert, kernels):
    for pooling in ("mean", "cls", "pooler"):
        model, one = a_model(tiny_bert, pooling), a_pack()
        tensors = TensorPack.from_pack(one)
        with torch.no_grad():
            wanted = model.head.pool(model.encoder(tensors), tensors).numpy()
            pooled = CpuEngine(model).pooled(one)
            np.testing.assert_allclose(pooled, wanted, atol=TOLERANCE, rtol=0)
            logits = model.head.classify(torch.from_numpy(pooled)).numpy()
        np.testing.assert_allclose(logits, CpuEngine(model).logits(one), atol=TOLERANCE, rtol=0)


def test_packed_equals_one_by_one(tiny_bert, kernels):
    engine, random = CpuEngine(a_model(tiny_bert)), np.random.default_rng(3)
    encoded = [Encoded(random.integers(1, 80, n), np.zeros(n, np.int64), int(n), False) for n in range(1, 40)]
    together = engine.logits(pack(encoded, np.arange(39)))
    alone = np.concatenate([engine.logits(pack(encoded, np.array([row]))) for row in range(39)])
    np.testing.assert_allclose(together, alone, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("repeats", [20, pytest.param(200, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_threads_on_one_row_wait_for_each_other(tiny_bert, pooling, repeats):
    engine, random = CpuEngine(a_model(tiny_bert, pooling)), np.random.default_rng(4)
    rows = [Encoded(random.integers(1, 80, n), np.zeros(n, np.int64), int(n), False) for n in (64, 3, 47)]
    before = torch.get_num_threads()
    try:
        for row in rows:
            one = pack([row], np.arange(1))
            torch.set_num_threads(1)
            alone = engine.logits(one)
            for count in (2, 4):
                torch.set_num_threads(count)
                for _ in range(repeats):
                    np.testing.assert_allclose(engine.logits(one), alone, atol=TOLERANCE, rtol=0)
    finally:
        torch.set_num_threads(before)


# --- bfloat16 ---


@pytest.mark.parametrize("onednn", [pytest.param(True, marks=needs_onednn), False])
def test_bf16_is_near_and_is_bf16(tiny_bert, monkeypatch, by_torch, onednn):
    if not onednn:
        monkeypatch.setattr(prepacked_module, "has_onednn", lambda *_: False)
    model, one = a_model(tiny_bert), a_pack()
    engine = CpuEngine(model, "bf16")
    seen = []
    for module in (*linears(engine), engine.model.head):
        module.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    logits, plain = engine.logits(one), plain_logits(model, one)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, plain, atol=5e-2, rtol=0)
    assert float(np.abs(logits - plain).max()) > 1e-6  # it is another arithmetic
    assert seen[:-1] == [(torch.bfloat16, torch.bfloat16)] * 8
    assert seen[-1] == (torch.bfloat16, torch.float32)  # the head computes in float32


@pytest.mark.parametrize(("precision", "far"), [("bf16", 5e-2), ("int8", 0.2)])
def test_low_precision_of_minilm_is_near(kernels, precision, far):
    if (precision, kernels) == ("int8", "torch"):
        pytest.skip("torch does not support int8")
    model = a_model("minilm")
    one = a_pack([60, 9], vocabulary=30522)
    logits, plain = CpuEngine(model, precision).logits(one), plain_logits(model, one)
    np.testing.assert_allclose(logits, plain, atol=far, rtol=0)
    assert float(np.abs(logits - plain).max()) > 1e-4  # it is another arithmetic


def test_int8_is_refused_where_only_torch_computes(tiny_bert, by_torch):
    with pytest.raises(UsageError, match=r"torch does not support int8.*expected fp32 or bf16"):
        CpuEngine(a_model(tiny_bert), "int8")


def test_int8_gives_the_same_numbers_in_every_kernel(tiny_bert, monkeypatch):
    """Sums of integers are exact: what differs is rounded elsewhere."""
    if not library.kernels():
        pytest.skip("this machine has no kernels of ours")
    model, one = a_model(tiny_bert), a_pack()
    found = []
    for name in library.kernels():
        monkeypatch.setenv(library.SWITCH, name)
        found.append(CpuEngine(model, "int8").logits(one))
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=2e-2, rtol=0)


@pytest.mark.parametrize("ids", [[5, 10**6], [-1, 5], [5] * 65], ids=["number too large", "negative", "row too long"])
def test_rows_that_the_encoder_has_no_vectors_for_are_errors_in_every_kernel(tiny_bert, kernels, ids):
    row = Encoded(np.array(ids), np.zeros(len(ids), np.int64), len(ids), False)
    with pytest.raises(ModelError):
        CpuEngine(a_model(tiny_bert)).logits(pack([row], np.arange(1)))


def test_kernels_that_are_not_here_are_named(tiny_bert, monkeypatch):
    monkeypatch.setenv(library.SWITCH, "avx9")
    with pytest.raises(UsageError, match=r"BERTHEAD_KERNELS.*'avx9'.*torch"):
        CpuEngine(a_model(tiny_bert))


def test_without_the_extension_torch_computes(tiny_bert, monkeypatch):
    monkeypatch.setattr(library, "loaded", lambda: None)
    monkeypatch.setattr("berthead.kernels.native.loaded", lambda: None)
    engine = CpuEngine(a_model(tiny_bert))
    assert engine.kernels in ("oneDNN", "torch")
    with pytest.raises(UsageError, match=r"not built"):
        CpuEngine(a_model(tiny_bert), "int8")


FORKED = """
import os, sys, torch
from berthead.kernels.native import NativeEncoder
from berthead.model.checkpoint import read_checkpoint
from test_engine import TensorPack, a_pack
torch.set_num_threads(2)
encoder, rows = NativeEncoder(read_checkpoint(sys.argv[1]).encoder().eval(), "fp32"), TensorPack.from_pack(a_pack())
with torch.inference_mode():
    wanted = encoder(rows)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(encoder(rows), wanted) else 3)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not library.kernels(), reason="this machine has no kernels of ours")
@pytest.mark.exhaustive
def test_a_forked_process_makes_threads_of_its_own(shell, tiny_bert):
    ran = shell(tiny_bert, program=FORKED, env=shell_env(PYTHONPATH=str(Path(__file__).parent)))
    assert ran.code == 0, ran.err


def test_bf16_gives_the_answers_of_a_fitted_model(toy_model):
    exact, fast = load(toy_model), load(toy_model, precision="bf16")
    texts = ["good cat", "bad cat", "the dog sat, fine", "awful red mat ran a b", "great great dog", "poor poor cat"]
    wanted, answers = exact.predict(texts), fast.predict(texts)
    assert {answer.answer for answer in wanted} == {"positive", "negative"}
    assert [answer.answer for answer in answers] == [answer.answer for answer in wanted]
    np.testing.assert_allclose([a.score for a in answers], [a.score for a in wanted], atol=5e-2)
    assert fast.predictor.engine.precision == PredictOptions(precision="bf16").precision


def test_fast_bf16_is_what_the_processor_says():
    path = Path("/proc/cpuinfo")
    flags = set(path.read_text().split()) if path.is_file() else set()
    if not flags & {"flags", "Features"}:
        pytest.skip("this machine does not list its processor's features")
    assert has_fast_bf16() == bool(flags & {"avx512_bf16", "amx_tile"})


# --- the model it was made from ---


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_model_is_not_changed(tiny_bert, precision):
    model, one = a_model(tiny_bert).train(), a_pack()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = [(name, type(module), id(module)) for name, module in model.named_modules()]
    CpuEngine(model, precision).logits(one)
    assert [(name, type(module), id(module)) for name, module in model.named_modules()] == modules
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    model.eval()(TensorPack.from_pack(one)).sum().backward()  # it can still learn
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_engine_is_in_evaluation_mode_whatever_the_model_is(tiny_bert):
    model, one = a_model(tiny_bert), a_pack()
    wanted = plain_logits(model, one)
    engine = CpuEngine(model.train())
    assert not any(module.training for module in engine.model.modules())
    np.testing.assert_allclose(engine.logits(one), wanted, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_embeddings_and_head_are_shared_and_linear_layers_are_not_kept_twice(tiny_bert, precision):
    model = a_model(tiny_bert, "pooler")
    engine = CpuEngine(model, precision)
    own = {parameter.data_ptr() for parameter in model.parameters()}
    kept = dict(engine.model.named_parameters())
    assert {parameter.data_ptr() for parameter in kept.values()} <= own
    assert sum(name.endswith("word.weight") for name in kept) == 1
    assert not any("qkv" in name or "mlp.up" in name for name in kept)
    with torch.no_grad():
        model.encoder.embeddings.word.weight.neg_()
    assert not np.allclose(CpuEngine(a_model(tiny_bert, "pooler")).logits(a_pack()), engine.logits(a_pack()), atol=1e-3)


def test_many_threads_get_the_same_answers(tiny_bert):
    engine = CpuEngine(a_model(tiny_bert))
    packs = [a_pack([20, 7, 3], seed=seed) for seed in range(16)]
    wanted = [engine.logits(one) for one in packs]
    with ThreadPoolExecutor(16) as pool:
        for _ in range(3):
            for logits, expected in zip(pool.map(engine.logits, packs), wanted, strict=True):
                np.testing.assert_array_equal(logits, expected)


# --- threads ---


def fake_quota(monkeypatch, tmp_path, text: str | None) -> None:
    """The control group's file holds `text`; None: there is no such file."""
    fake = tmp_path / "cpu.max"
    if text is not None:
        fake.write_text(text)

    def path(name):
        return fake if name == "/sys/fs/cgroup/cpu.max" else Path(name)

    monkeypatch.setattr(threads_module, "Path", path)


def use_affinity(monkeypatch, processors: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors)), raising=False)


@pytest.mark.parametrize(
    ("quota", "wanted"),
    [
        (None, 16), ("max 100000\n", 16), ("400000 100000\n", 4), ("150000 100000\n", 1), ("50000 100000\n", 1),
        ("3200000 100000\n", 16), ("100000 50000\n", 2), ("", 16), ("nonsense", 16), ("a b", 16), ("100000 0", 16),
    ],
)  # fmt: skip
def test_the_control_groups_quota_is_respected(monkeypatch, tmp_path, quota, wanted):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    use_affinity(monkeypatch, 16)
    fake_quota(monkeypatch, tmp_path, quota)
    assert available_threads() == wanted


@pytest.mark.parametrize(
    ("words", "wanted"),
    [("3", 3), (" 2 ", 2), ("4,2", 4), ("1", 1), ("99", 8), ("0", 8), ("", 8), ("many", 8), ("-1", 8), ("²", 8)],
)
def test_omp_num_threads_is_respected(monkeypatch, tmp_path, words, wanted):
    use_affinity(monkeypatch, 8)
    fake_quota(monkeypatch, tmp_path, None)
    monkeypatch.setenv("OMP_NUM_THREADS", words)
    assert available_threads() == wanted


def test_the_smallest_limit_counts(monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    for processors, quota, wanted in ((8, "600000 100000", 5), (3, "600000 100000", 3), (8, "200000 100000", 2)):
        use_affinity(monkeypatch, processors)
        fake_quota(monkeypatch, tmp_path, quota)
        assert available_threads() == wanted


def test_without_affinity_all_processors_count(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    fake_quota(monkeypatch, tmp_path, None)
    assert available_threads() == 6


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_affinity_of_a_real_process_is_respected(shell):
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from berthead.engine.cpu import use_threads; import torch; "
        "from berthead.engine.threads import available_threads; "
        "print(available_threads(), use_threads(None), torch.get_num_threads(), use_threads(2))"
    )
    ran = shell(program=code, env={key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"})
    assert ran.out.split() == ["1", "1", "1", "2"], ran.err


def test_threads_asked_for_are_used(monkeypatch, tmp_path):
    use_affinity(monkeypatch, 3)
    fake_quota(monkeypatch, tmp_path, None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    try:
        assert (use_threads(2), torch.get_num_threads()) == (2, 2)
        assert (use_threads(None), torch.get_num_threads()) == (3, 3)
    finally:
        torch.set_num_threads(1)


SHAPES = """
import numpy as np
import torch
from berthead.engine.cpu import CpuEngine
from berthead.model.checkpoint import build_encoder
from berthead.model.encoder import Encoder
from berthead.model.config import EncoderConfig
from berthead.model.heads import RowHead
from berthead.model.model import Model
from berthead.records import Pack

torch.set_num_threads(1)
sizes = EncoderConfig(vocabulary=100, width=384, layers=1, heads=12, inner=1536, positions=512, segments=2)
engine = CpuEngine(Model(Encoder(sizes).eval(), RowHead(384, 2, "mean")), "PRECISION")

def resident_mb():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

def compute(length):
    zeros = np.zeros(length, dtype=np.int64)
    engine.logits(Pack(zeros, zeros, np.arange(length), np.array([0, length]), np.array([0])))

for length in range(100, 164, 3):
    compute(length)
before = resident_mb()
for length in range(164, 500, 3):
    compute(length)
print(resident_mb() - before)
"""


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.exhaustive)])
def test_memory_does_not_grow_with_the_number_of_pack_sizes(shell, precision):
    # By torch: kernels of our own keep nothing for a shape.
    ran = shell(program=SHAPES.replace("PRECISION", precision), env=shell_env(**{library.SWITCH: "torch"}))
    assert ran.code == 0, ran.err
    assert float(ran.out) < 90  # without the limits: over 300
