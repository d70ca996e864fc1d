"""What the tests share: no network, tiny encoders made on the spot, and models fitted once."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest

hypothesis.settings.register_profile("suite", deadline=None)  # nothing here is timed
hypothesis.settings.load_profile("suite")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
# Threads of tiny products wait for each other; beside other busy processes that takes twenty times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

ROOT = Path(__file__).resolve().parent.parent
SLOW = ROOT / "tests" / "slow.txt"  # measured: tools/slow_tests.py
SAMPLE = ROOT / "sample" / "tickets"
WORDS = [
    "the", "cat", "dog", "sat", "on", "mat", "ran", "good", "bad", "fine", "poor", "great", "awful", "red", "blue",
    "##s", "##ing", "##ed", "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q", "r",
    "s", "t", "u", "v", "w", "x", "y", "z", "##a", "##b", "##c", "##d", "##e", "##f", "##g", "##h", "##i", "##j",
    "##k", "##l", "##m", "##n", "##o", "##p", "##q", "##r", "##t", "##u", "##v", "##w", "##x", "##y", "##z", ".", ",",
    "!", "?", "0", "1", "2", "3",
]  # fmt: skip
# They go first, so that no process works on one of them for minutes when the others have nothing left.
LONG_FILES = {
    "test_instruction_sets.py", "test_kills.py", "test_memory.py", "test_ray.py", "test_resume.py", "test_wheel.py",
    "test_workers.py",
}  # fmt: skip


def tries(examples: int) -> int:
    """How many examples hypothesis tries: all of them in `make test-all`, an eighth on other days, never below ten."""
    return examples if os.environ.get("BERTHEAD_TESTS") == "all" else max(10, examples // 8)


def daily(cases: Iterable[Any], *kept: Any) -> list[Any]:
    """Cases of a parametrised test: `make test` runs those kept, `make test-all` the others too."""
    return [pytest.param(one, marks=() if one in kept else pytest.mark.exhaustive) for one in cases]


@pytest.hookimpl(tryfirst=True)  # before -m is looked at
def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONG_FILES)
    slow = set(SLOW.read_text(encoding="utf-8").splitlines())
    for item in items:
        if item.nodeid.removeprefix("tests/") in slow:
            item.add_marker(pytest.mark.slow)


def needs_gpus(count: int = 1):
    """Marks a test that computes on so many NVIDIA GPUs, and skips it elsewhere; `pytest -m gpu` runs those alone."""
    import torch

    there = torch.cuda.device_count()
    skip = pytest.mark.skipif(there < count, reason=f"torch sees {there} CUDA devices, and {count} are needed")
    return lambda test: pytest.mark.gpu(skip(test))


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[str, object, Callable[[Path], object]], Path]:
    """Folders that are made once for all processes of a test run: once(name, key, make) -> folder.

    Whichever process comes first makes it, the others wait for it. Nobody may change it: copy it.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    shared.mkdir(exist_ok=True)

    def folder(name: str, key: object, make: Callable[[Path], object]) -> Path:
        place = shared / hashlib.sha256(json.dumps([name, key], sort_keys=True).encode()).hexdigest()[:16]
        with place.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (place / "whole").exists():
                shutil.rmtree(place, ignore_errors=True)  # of a test that failed while it was made
                place.mkdir()
                make(place / "made" / name)
                (place / "whole").touch()
        return place / "made" / name

    return folder


@pytest.fixture(autouse=True)
def one_thread():
    """Torch computes in one thread; what a test sets is undone."""
    yield
    if (torch := sys.modules.get("torch")) and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_network(monkeypatch, request):
    """Connecting anywhere but to this machine fails; so does every look-up of another host's name."""
    real_connect = socket.socket.connect

    def connect(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to reach {address}")
        return real_connect(self, address)

    real_lookup = socket.getaddrinfo

    def lookup(host, *args, **kwargs):
        if host not in (None, "127.0.0.1", "::1", "localhost", b"127.0.0.1"):
            raise AssertionError(f"a test looked up {host}")
        return real_lookup(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", lookup)


def make_bert(folder: Path, *, seed: int = 0, model_class: str = "BertModel", **config) -> Path:
    """A tiny random BERT as transformers saves it, with a WordPiece tokenizer over WORDS."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    sizes = {
        "vocab_size": len(vocab), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "max_position_embeddings": 64, "type_vocab_size": 2, "pad_token_id": 0,
    } | config  # fmt: skip
    torch.manual_seed(seed)
    model = getattr(transformers, model_class)(transformers.BertConfig(**sizes))
    # Real weights are far from their initial values: norms and biases that do nothing would hide mistakes.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    write_vocab(folder, vocab)
    return folder


def write_vocab(folder: Path, vocab: list[str]) -> None:
    """vocab.txt, and the tokenizer.json that transformers makes of it."""
    from transformers import BertTokenizerFast

    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    # transformers 5 takes the vocabulary itself
    numbers = {word: number for number, word in enumerate(vocab)}
    BertTokenizerFast(vocab=numbers, do_lower_case=True).save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_bert(once) -> Path:
    """A tiny random BERT checkpoint: config.json, model.safetensors, vocab.txt, tokenizer.json."""
    return once("tiny-bert", None, make_bert)


GOOD = ["good cat", "great dog", "the cat sat, fine", "fine dog ran", "good good mat", "great red mat", "the fine cat"]
BAD = ["bad cat", "awful dog", "the cat sat, poor", "poor dog ran", "bad bad mat", "awful red mat", "the poor cat"]


def toy_rows(repeats: int = 4) -> list[dict[str, str]]:
    """Rows that a tiny random encoder can learn: text, pair, label, tags, stars."""
    rows = []
    for number in range(repeats):
        for good, bad in zip(GOOD, BAD, strict=True):
            tail = " ".join(["red", "blue", "a", "b"][: number % 5])
            rows.append({"text": f"{good} {tail}".strip(), "pair": "the dog", "label": "positive", "tags": "nice|short", "stars": "4.5"})  # fmt: skip # noqa: E501
            rows.append({"text": f"{bad} {tail}".strip(), "pair": "the cat", "label": "negative", "tags": "nasty", "stars": "1.5"})  # fmt: skip # noqa: E501
    return rows


def write_csv(path: Path, rows: list[dict]) -> Path:
    """Rows as CSV with the keys of the first as header."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    """Rows as JSON Lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def unsealed(record: dict) -> dict:
    """A record as it is changed on purpose: without the hashes of itself and of what it stands beside."""
    return {name: value for name, value in record.items() if name not in ("record_sha256", "tokenizer_sha256", "encoder")}  # fmt: skip # noqa: E501


def all_bytes(folder: Path) -> dict[str, bytes]:
    """What a folder holds, file by file."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="session")
def toy_csv(tmp_path_factory) -> Path:
    """The toy rows as a CSV file."""
    return write_csv(tmp_path_factory.mktemp("data") / "toy.csv", toy_rows())


@pytest.fixture(scope="session")
def toy_model(fit_toy) -> Path:
    """A model folder: classify, fitted on the toy rows with the tiny encoder until it knows them."""
    return fit_toy(epochs=15)


@pytest.fixture
def fit(tiny_bert):
    """Fits for an epoch with the tiny encoder: fit(data, **options)."""

    def fitted(data, **options):
        import berthead

        defaults = {"encoder": str(tiny_bert), "epochs": 1, "batch": 8, "threads": 1, "quiet": True}
        return berthead.fit(data, **(defaults | options))

    return fitted


@pytest.fixture(scope="session")
def sample_model(once, forks) -> Path:
    """A model folder: queues of the sample tickets, fitted by the command line on the packaged encoder, frozen."""

    def fit(folder: Path) -> None:
        words = ["fit", SAMPLE / "train.csv", "--label", "queue", "--adapt", "frozen", "--out", folder]
        process = forks.start(*words, cwd=SAMPLE, env=shell_env())
        err = process.communicate(timeout=240)[1]
        assert process.returncode == 0, err

    return once("sample", None, fit)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets, where this machine has them."""
    folder = Path(os.environ.get("BERTHEAD_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set BERTHEAD_DATA")
    return folder


@pytest.fixture(scope="session")
def fit_toy(once, tiny_bert, toy_csv):
    """Fits on the toy rows with the tiny encoder, once for each set of options; copy a folder before changing it."""

    def fitted(**options) -> Path:
        import berthead

        defaults = {"encoder": str(tiny_bert), "epochs": 2, "batch": 8, "lr": 3e-3, "threads": 1, "valid": 0.25}
        switches = {name: value for name, value in os.environ.items() if name.startswith("BERTHEAD_")}
        return once(
            "toy",
            [options, switches],
            lambda folder: berthead.fit(toy_csv, out=folder, quiet=True, **(defaults | options)),
        )

    return fitted


@dataclass(frozen=True)
class Ran:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(monkeypatch, capsys):
    """The command line inside this process, which is fast: cli("fit", "data.csv", ...) -> Ran."""

    def run(*arguments: object, stdin: bytes = b"") -> Ran:
        from berthead.cli import main

        monkeypatch.setattr(sys, "argv", ["berthead", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        monkeypatch.setenv("BERTHEAD_THREADS", "1")
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return Ran(ended.value.code, said.out, said.err)

    return run


@pytest.fixture(scope="session")
def forks():
    """Starts processes of the command line: forks.start("info", folder, cwd=..., env=...)."""
    from processes import Forks

    started = Forks(shell_env())
    yield started
    started.close()


@pytest.fixture
def shell(tmp_path, forks):
    """The command line in a process of its own in an empty folder: shell("info", folder) -> Ran."""

    def run(*arguments: object, stdin: str = "", **options) -> Ran:
        with tempfile.TemporaryFile() as typed:
            typed.write(stdin.encode())
            typed.seek(0)
            process = forks.start(*arguments, stdin=typed.fileno(), **{"cwd": tmp_path, "env": shell_env()} | options)
            out, err = process.communicate()
        return Ran(process.returncode, out, err)

    return run


@pytest.fixture
def fresh(tmp_path):
    """The same as users run it, in an interpreter of its own, which takes seconds to begin."""

    def run(*arguments: object, **options) -> Ran:
        command = [sys.executable, "-m", "berthead", *map(str, arguments)]
        options = {"cwd": tmp_path, "env": shell_env(), "timeout": 240} | options
        done = subprocess.run(command, capture_output=True, encoding="utf-8", **options)
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


def shell_env(**more: str) -> dict[str, str]:
    """The environment of a subprocess: offline, one thread, so that processes beside it do not slow it down."""
    return os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | more
