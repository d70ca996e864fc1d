"""Children of a fork answer as their parent does: what threads it had, they do not have."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import all_bytes, daily, make_bert, shell_env, toy_rows

import berthead
from berthead.engine import cuda, forks
from berthead.engine.cpu import CPU, CpuEngine, has_fast_bf16, use_threads
from berthead.errors import BertheadError, MachineError, ModelError
from berthead.kernels import library
from berthead.predict import reading
from berthead.records import Example

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")

# What hangs, hangs for ever; what answers, does so within a few seconds.
DEADLINE_S = 60
WORDS = ["the", "cat", "sat", "on", "mat", "good", "bad", "fine", "poor", "great", "awful", "red", "blue"]
# Of five tokens to two thousand: torch shares out what is long, and a model of 512 positions reads it in windows.
TEXTS = [
    " ".join(WORDS[(place * place + size) % len(WORDS)] for place in range(size)) for size in (3, 60, 130, 500, 1990)
]
MANY = [" ".join(WORDS[(place * size) % len(WORDS)] for place in range(3 + size % 40)) for size in range(100)]


def in_child(work: Callable[[], Any], seconds: int = DEADLINE_S) -> Any:
    """What a child of a fork says; an error of berthead is raised here."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        # Not Python's handler: it would not be called where the hang is in C.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        try:
            said = pickle.dumps((True, work()))
        except BertheadError as error:
            said = pickle.dumps((False, error))
        except BaseException as error:
            said = pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))
        with os.fdopen(writable, "wb") as file:
            file.write(said)
        os._exit(0)
    os.close(writable)
    with os.fdopen(readable, "rb") as file:
        said = file.read()
    _, status = os.waitpid(child, 0)
    assert status != signal.SIGALRM, "the child hangs"
    assert status == 0
    is_answer, value = pickle.loads(said)
    if not is_answer:
        raise value
    return value


def answers(model: Any) -> list[Any]:
    """All that a function says of each text alone, of all texts, and of many."""
    every = [model.predict(text) for text in TEXTS] + model.predict(TEXTS) + model.predict(MANY)
    return [{name: one.to_dict() for name, one in answer.items()} if isinstance(answer, dict) else answer.to_dict()
            for answer in every]  # fmt: skip


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def wide_bert(tmp_path_factory) -> Path:
    """As wide as MiniLM, so that torch shares out what it computes of eighty tokens and more."""
    sizes = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 256, "max_position_embeddings": 512}
    sizes |= {"num_hidden_layers": 1}
    return make_bert(tmp_path_factory.mktemp("encoders") / "wide-bert", **sizes)


@pytest.fixture(scope="module")
def wide(wide_bert, tmp_path_factory) -> Path:
    """A model folder on that encoder."""
    folder = tmp_path_factory.mktemp("models") / "wide"
    berthead.fit(
        toy_rows(1), out=folder, encoder=str(wide_bert), adapt="frozen", epochs=5, valid=0, threads=1, quiet=True
    )
    return folder


ENGINES = [("", "fp32"), ("", "int8"), ("", "bf16"), ("torch", "fp32"), ("torch", "bf16")]


@pytest.mark.parametrize("used_before", daily([True, False], True), ids=["used", "unused"])
@pytest.mark.parametrize("threads", daily([1, 2], 2))
@pytest.mark.parametrize(("kernels", "precision"), ENGINES)
def test_a_child_answers_as_its_parent(wide, kernels, precision, threads, used_before, monkeypatch):
    if kernels:
        monkeypatch.setenv(library.SWITCH, kernels)
    elif not library.kernels():
        pytest.skip("no kernels of our own here")
    if precision == "bf16" and not has_fast_bf16():
        pytest.skip("this processor does not multiply bfloat16")
    model = berthead.load(wide, precision=precision, threads=threads)
    if used_before:
        answers(model)
    found = in_child(lambda: (answers(model), torch.get_num_threads()))
    assert found == (answers(model), threads)
    assert in_child(lambda: in_child(lambda: answers(model))) == found[0]


@pytest.mark.parametrize("adapt", ["full", "frozen", "lora:2"])
def test_a_child_fits_what_its_parent_would(wide_bert, wide, adapt, tmp_path):
    berthead.load(wide, threads=2).predict(TEXTS)

    def fit(folder: Path) -> dict[str, bytes]:
        berthead.fit(
            toy_rows(3), out=folder, encoder=str(wide_bert), adapt=adapt, epochs=2, valid=0.25, threads=2, quiet=True
        )
        return all_bytes(folder)

    before = fit(tmp_path / "before")
    assert in_child(lambda: fit(tmp_path / "child")) == before


def test_joined_functions_answer_in_a_child(wide, wide_bert, tmp_path):
    other = berthead.fit(
        [row | {"label": row["text"][:1]} for row in toy_rows(1)], encoder=str(wide_bert), adapt="frozen", epochs=5,
        valid=0, threads=2, quiet=True,
    )  # fmt: skip
    both = berthead.join({"mood": berthead.load(wide, threads=2), "letter": other})
    before = answers(both)
    assert in_child(lambda: answers(both)) == before


_shared: Any = None


def _answers_of_shared(number: int) -> list[Any]:
    return answers(_shared)


def test_children_of_a_pool_answer(wide):
    model = berthead.load(wide, threads=2)
    before = answers(model)
    global _shared
    _shared = model  # pickled it would be made anew: the children have it from the fork
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map_async(_answers_of_shared, range(4)).get(DEADLINE_S)
    assert found == [before] * 4


# --- what other threads hold ---


def test_children_answer_while_other_threads_predict(wide):
    model, stopped, wrong = berthead.load(wide, threads=2), threading.Event(), []
    before = answers(model)

    def predict() -> None:
        while not stopped.is_set():
            if answers(model) != before:
                wrong.append(True)

    others = [threading.Thread(target=predict) for _ in range(3)]
    for one in others:
        one.start()
    try:
        for _ in range(8):
            assert in_child(lambda: answers(model)) == before
    finally:
        stopped.set()
        for one in others:
            one.join()
    assert not wrong


def test_a_fork_waits_for_weights_that_are_being_laid_out(wide, monkeypatch):
    begun, real = threading.Event(), CpuEngine.__init__

    def slow(self, *arguments, **more):
        begun.set()
        time.sleep(0.5)
        real(self, *arguments, **more)

    monkeypatch.setattr(CpuEngine, "__init__", slow)
    model = berthead.load(wide)
    other = threading.Thread(target=lambda: model.predictor)
    other.start()
    begun.wait()
    assert in_child(lambda: model.predict("the good cat").answer) == model.predict("the good cat").answer
    other.join()


def test_a_thread_that_holds_a_lock_may_fork():
    lock = forks.fork_lock()
    with lock:
        assert in_child(lambda: lock.acquire(timeout=5))


def test_two_threads_may_fork_at_once(wide):
    model = berthead.load(wide, threads=1)
    before, found = answers(model), []

    def fork() -> None:
        for _ in range(3):
            found.append(in_child(lambda: answers(model)) == before)

    others = [threading.Thread(target=fork) for _ in range(3)]
    for one in others:
        one.start()
    for one in others:
        one.join()
    assert found == [True] * 9


def test_answers_that_were_begun_before_a_fork_are_refused_in_the_child(wide):
    model = berthead.load(wide, threads=1)
    texts = TEXTS[:1] * (2 * reading.CHUNK_ROWS + 1)
    begun = model.predictor.predict(Example(text) for text in texts)
    first = next(begun)
    message = r"predict: was begun before this process was forked\. Begin it in the child\."
    with pytest.raises(MachineError, match=message):
        in_child(lambda: list(begun))
    assert [first.answer, *(one.answer for one in begun)] == [model.predict(TEXTS[0]).answer] * len(texts)


# --- what does not survive ---

NO_GPU = (
    r"device.\W?cuda\W*: this process was forked from one that used the GPU.*method \"spawn\", and load the function"
)


def test_where_openmp_cannot_be_paused_a_child_computes_in_one_thread(wide, monkeypatch):
    monkeypatch.setenv(library.SWITCH, "torch")
    monkeypatch.setattr(forks, "_pause_openmp", lambda: False)
    model = berthead.load(wide, threads=2)
    before = [one.score for one in model.predict(TEXTS)]

    def work() -> tuple[list[float], list[int]]:
        counts = [torch.get_num_threads(), use_threads(2)]
        scores = [one.score for one in model.predict(TEXTS)]
        return scores, [*counts, torch.get_num_threads()]

    scores, counts = in_child(work)
    assert scores == pytest.approx(before, abs=1e-5)
    assert counts == [1, 1, 1]
    assert use_threads(2) == 2


def test_engines_on_gpus_are_refused_in_a_child(wide):
    model = berthead.load(wide)
    model.predictor.engine = cuda.Engines(lambda device: CpuEngine(model.artifact.model), [CPU])
    assert model.predict("the good cat").answer
    with pytest.raises(MachineError, match=NO_GPU):
        in_child(lambda: model.predict("the good cat").answer)


def test_joined_engines_on_a_gpu_are_refused_in_a_child(wide):
    both = berthead.join({"one": berthead.load(wide), "other": berthead.load(wide)})
    both.predictor.engine.device = torch.device("cuda")
    with pytest.raises(MachineError, match=NO_GPU):
        in_child(lambda: both.predict("the good cat"))


def test_a_gpu_is_refused_where_the_parent_used_it(wide, monkeypatch):
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    with pytest.raises(MachineError, match=NO_GPU):
        berthead.load(wide, device="cuda")
    assert berthead.load(wide).predict("the good cat").answer


# --- exported functions ---


@pytest.fixture(scope="module")
def exported(wide, tmp_path_factory) -> Path:
    """The function as a graph."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("exports") / "wide"
    berthead.load(wide).export_onnx(folder)
    return folder


@pytest.mark.parametrize("used_before", [True, False], ids=["used", "unused"])
@pytest.mark.parametrize("threads", daily([1, 2], 2))
def test_an_exported_function_answers_in_a_child(exported, threads, used_before, monkeypatch):
    monkeypatch.chdir(exported.parent)
    model = berthead.load(exported.name, threads=threads)
    if used_before:
        answers(model)
    monkeypatch.chdir("/")
    found = in_child(lambda: answers(model))
    assert found == answers(model)
    assert in_child(lambda: in_child(lambda: answers(model))) == found


def test_an_exported_function_whose_file_has_changed_is_refused_in_a_child(exported, tmp_path):
    folder = Path(shutil.copytree(exported, tmp_path / "copy"))
    model = berthead.load(folder, threads=2)
    weights = folder / "model.onnx.data"
    message = r"model\.onnx: was changed or removed between loading it and forking.*Load the function again"
    weights.rename(tmp_path / "aside")
    with pytest.raises(ModelError, match=message):
        in_child(lambda: model.predict("the good cat"))
    shutil.copy(tmp_path / "aside", weights)
    with pytest.raises(ModelError, match=message):
        in_child(lambda: model.predict("the good cat"))
    assert model.predict("the good cat").answer == berthead.load(folder).predict("the good cat").answer


# --- how a child ends ---

ENDS = """
import os, signal, sys
import berthead
model = berthead.load(sys.argv[1], threads=2)
texts = ["the good cat sat on the mat " * 60] * 2
before = model.predict(texts)[0].score
for _ in range(3):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        sys.exit(0 if sys.argv[2] == "nothing" or model.predict(texts)[0].score == before else 3)
    if os.waitpid(child, 0)[1]:
        sys.exit("a child ended otherwise")
"""


@pytest.mark.parametrize(
    ("engine", "does"),
    [
        ("kernels", "answers"), pytest.param("torch", "answers", marks=pytest.mark.exhaustive), ("onnx", "answers"),
        *(pytest.param(engine, "nothing", marks=pytest.mark.exhaustive) for engine in ("kernels", "torch", "onnx")),
    ],
)  # fmt: skip
def test_a_child_ends_as_any_process_does(wide, exported, engine, does):
    """Threads that are not there are not waited for at its end either, nor are those of ONNX Runtime's telemetry."""
    environment = shell_env(**({library.SWITCH: "torch"} if engine == "torch" else {}))
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    folder = exported if engine == "onnx" else wide
    done = subprocess.run(
        [sys.executable, "-c", ENDS, str(folder), does], env=environment, capture_output=True, encoding="utf-8",
        timeout=240, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
