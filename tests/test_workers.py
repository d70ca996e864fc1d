"""Fits of several processes: the same steps as one process takes, and an end with a reason when one of them is gone."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist
from conftest import all_bytes, daily, make_bert, shell_env, toy_rows, write_csv
from hypothesis import given
from hypothesis import strategies as st
from processes import Forked
from toy_tasks import without_head_dropout

import berthead
from berthead.errors import MachineError, UsageError
from berthead.train.team import Team
from berthead.train.workers import is_writer

# What a worker imports before all else: the tests change workers through it.
SITE = """
import os
if os.environ.get("NO_HEAD_DROPOUT"):
    from berthead.tasks import Task
    from berthead.train import settings
    Task.head_dropout = settings.FROZEN_DROPOUT = 0.0
if "MOST_TOKENS" in os.environ:
    from berthead.train import modes
    real = modes.FullModel._hidden
    def hidden(self, pack):
        if self.team.rank and len(pack.ids) > int(os.environ["MOST_TOKENS"]):
            raise MemoryError
        return real(self, pack)
    modes.FullModel._hidden = hidden
"""


@pytest.fixture
def changed(tmp_path, monkeypatch):
    """Workers do what SITE says of variables that are set."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))


@pytest.fixture(scope="module")
def calm(tmp_path_factory) -> str:
    """A tiny BERT without dropout."""
    folder = tmp_path_factory.mktemp("workers") / "calm"
    return str(make_bert(folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_hidden_layers=3))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Rows of very different lengths, some of several windows."""
    rows = [row | {"text": f"{row['text']} " * (1 + 3 * (number % 5 == 0))} for number, row in enumerate(toy_rows(4))]
    return write_csv(tmp_path_factory.mktemp("rows") / "toy.csv", rows)


def options_of(encoder: str, **more) -> dict:
    return {"encoder": encoder, "epochs": 2, "batch": 8, "lr": 3e-3, "threads": 2, "valid": 0.25, "quiet": True,
            "precision": "fp32"} | more  # fmt: skip


# Shares


@given(lengths=st.lists(st.integers(1, 500), max_size=40), size=st.integers(1, 5))
def test_every_row_has_one_process_and_all_have_about_as_many_tokens(lengths, size):
    shares = [Team(rank, size).share(lengths) for rank in range(size)]
    assert sorted(row for share in shares for row in share.tolist()) == list(range(len(lengths)))
    loads = [sum(lengths[row] for row in share) for share in shares]
    assert max(loads) - min(loads) <= max(lengths, default=0)


def test_threads_are_shared_out():
    assert [Team(0, size, 0, size).threads(8) for size in (1, 2, 3, 16)] == [8, 4, 2, 1]


def test_each_process_draws_other_numbers_and_the_same_ones_again():
    drawn = []
    for rank, step in ((0, 1), (1, 1), (0, 2), (0, 1)):
        Team(rank, 2).seed(7, step)
        drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[3]
    assert len({tuple(one) for one in drawn}) == 3


# The same fit


def losses_of(monkeypatch, **options) -> tuple[list[float], berthead.Fitted]:
    """The loss of every step."""
    losses, real = [], Team.sum

    def watched(self, optimiser, loss, read):
        losses.append(real(self, optimiser, loss, read))
        return losses[-1]

    with monkeypatch.context() as patch:
        patch.setattr(Team, "sum", watched)
        return losses, berthead.fit(**options)


KINDS = {
    "full": {"epochs": 3},
    "lower precision": {"epochs": 2, "precision": "bf16"},
    "unfrozen block by block": {"epochs": 9, "unfreeze": True, "layer_decay": 0.8, "max_tokens": 10},
}


@pytest.mark.parametrize("kind", daily(KINDS, "full"))
def test_two_processes_take_the_steps_of_one(kind, calm, data, changed, monkeypatch):
    monkeypatch.setenv("NO_HEAD_DROPOUT", "1")
    without_head_dropout(monkeypatch)
    options = options_of(calm, data=data, **KINDS[kind])
    one, alone = losses_of(monkeypatch, **options | {"threads": 1})
    two, together = losses_of(monkeypatch, workers=2, **options)
    assert len(one) == len(two) == 6 * options["epochs"]
    rounding = 5e-3 if kind == "lower precision" else 1e-4
    assert two[:50] == pytest.approx(one[:50], abs=8 * rounding)  # the sum of 8 rows
    runs = [model.info()["run"] for model in (alone, together)]
    assert runs[1]["workers"] == 2
    assert runs[1]["threads"] == 1
    assert "workers" not in runs[0]
    for before, after in zip(runs[0]["epochs"], runs[1]["epochs"], strict=True):
        assert after == pytest.approx(before, abs=rounding)
    assert dist.is_available()
    assert not dist.is_initialized()


@pytest.mark.parametrize("cache", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("adapt", daily(["frozen", "top:1"], "frozen"))
def test_what_is_computed_once_is_computed_together(adapt, cache, calm, data, changed, monkeypatch, tmp_path):
    monkeypatch.setenv("NO_HEAD_DROPOUT", "1")
    without_head_dropout(monkeypatch)
    options = options_of(calm, data=data, adapt=adapt)
    more = [{"cache": tmp_path / name} if cache else {} for name in ("one", "two")]
    one = berthead.fit(**options | more[0] | {"threads": 1})
    two = berthead.fit(**options | more[1], workers=2)
    if adapt == "frozen":  # the head is fitted by one process
        assert one.info()["parameters"] == two.info()["parameters"]
        assert one.info()["run"] == {key: value for key, value in two.info()["run"].items() if key != "workers"}
    for before, after in zip(one.info()["run"]["epochs"], two.info()["run"]["epochs"], strict=True):
        assert after == pytest.approx(before, abs=1e-4)
    if cache:
        assert all_bytes(tmp_path / "one") == all_bytes(tmp_path / "two")


@pytest.fixture(scope="module")
def by_workers(tiny_bert, data, forks, tmp_path_factory) -> tuple[list[object], Path, str, str]:
    """Flags of a fit, the folder of a model that two workers fitted with them, and what they said."""
    folder = tmp_path_factory.mktemp("by-workers")
    flags = ["--encoder", tiny_bert, "--epochs", 20, "--precision", "fp32"]
    words = ["fit", data, "--out", "model", *flags, "--workers", 2, "--threads", 2]
    process = forks.start(*words, cwd=folder, env=shell_env())
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return flags, folder / "model", out, err


@pytest.mark.exhaustive
def test_torchrun_fits_what_workers_fit(by_workers, data, tmp_path):
    flags, model, *said_by_workers = by_workers
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2, "-m", "berthead", "fit", data]
    done = subprocess.run(
        [*map(str, [*launcher, "--out", "model", *flags])],
        cwd=tmp_path, capture_output=True, text=True, env=shell_env(), timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = [(out, err.count("epoch 20/20")) for out, err in ((done.stdout, done.stderr), said_by_workers)]
    assert said[0] == said[1]
    assert said[0][0].count("fitted ") == said[0][1] == 1
    assert all_bytes(tmp_path / "model") == all_bytes(model)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


PROGRAM = """
import os, sys
os.environ["BERTHEAD_LR"] = "0." + "0" * int(os.environ["RANK"]) + "1"
from berthead.cli import main
main()
"""


@pytest.mark.exhaustive
def test_processes_that_were_given_different_fits_do_not_fit(tiny_bert, data, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    flags = [
        "--nproc-per-node",
        2,
        tmp_path / "program.py",
        "fit",
        data,
        "--encoder",
        tiny_bert,
        "--out",
        tmp_path / "m",
    ]
    command = [sys.executable, "-m", "torch.distributed.run", *flags]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=shell_env(), timeout=280)
    assert done.returncode == 1
    assert "berthead: fit: the processes were not given the same data, encoder and options" in done.stderr
    assert not (tmp_path / "m").exists()


# One of them is gone


def workers_of(process: Forked) -> list[psutil.Process]:
    return [one for one in psutil.Process(process.pid).children() if "workers" in " ".join(one.cmdline())]


def all_end(workers: list[psutil.Process]) -> bool:
    gone, _ = psutil.wait_procs(workers, timeout=60)
    return len(gone) == len(workers)


def test_whoever_is_killed_the_others_end_and_the_fit_goes_on(by_workers, data, tmp_path, cli, forks):
    fitted, whole = by_workers[:2]

    def started(*words: object) -> Forked:
        return forks.start("fit", *words, cwd=tmp_path, env=shell_env())

    flags = [*fitted, "--checkpoint-minutes", 0, "--workers", 2, "--threads", 2]
    first = started(data, "--out", "model", *flags)
    assert first.stderr.readline().startswith("epoch 2/20")
    workers = workers_of(first)
    assert len(workers) == 1
    first.kill()
    assert all_end(workers)
    first.communicate()

    second = started(data, "--out", "model", *flags, "--resume")
    assert second.stderr.readline().startswith("resumed after ")
    second.stderr.readline()
    (worker,) = workers_of(second)
    worker.kill()
    out, err = second.communicate(timeout=60)
    assert (second.returncode, out) == (1, "")
    said = rf"berthead: fit: worker 1 \(process {worker.pid}\) was ended by SIGKILL. "
    said += "Memory may be too small for all of them: "
    assert re.search(said + "give a lower --workers. To continue, run the same command with --resume.\n$", err), err
    assert "Traceback" not in err

    third = started(data, "--out", "model", *flags, "--resume")
    assert third.stderr.readline().startswith("resumed after ")
    third.stderr.readline()
    workers = workers_of(third)
    third.send_signal(signal.SIGINT)
    out, err = third.communicate(timeout=60)
    assert (third.returncode, out) == (130, ""), err
    assert "is kept in model.interrupted. To continue, run the same command with --resume.\n" in err
    assert all_end(workers)

    alone = cli("fit", data, "--out", tmp_path / "model", *flags[:-4], "--threads", 1, "--resume")
    assert alone.code == 2
    assert ": workers was 2 and is 1. Use" in alone.err

    last = started(data, "--out", "model", *flags, "--resume")
    err = last.communicate(timeout=120)[1]
    assert last.returncode == 0, err
    assert all_bytes(tmp_path / "model") == all_bytes(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.interrupted"]


@pytest.mark.parametrize("most", daily([4, 30], 4))
def test_a_worker_that_is_short_of_memory_computes_smaller_parts_or_says_so(most, calm, data, changed, monkeypatch):
    monkeypatch.setenv("NO_HEAD_DROPOUT", "1")
    without_head_dropout(monkeypatch)
    options = options_of(calm, data=data, epochs=1, valid=0)
    monkeypatch.setenv("MOST_TOKENS", str(most))
    if most == 4:
        with pytest.raises(
            MachineError, match=r"worker 1 of 1: .*toy.csv:\d+: the memory is too small for a row of \d+ tokens"
        ):
            berthead.fit(workers=2, **options)
        return
    one, two = berthead.fit(**options | {"threads": 1}), berthead.fit(workers=2, **options)
    losses = [model.info()["run"]["epochs"][0]["train_loss"] for model in (one, two)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_an_error_of_all_is_told_once(calm, data, tmp_path, capfd):
    with pytest.raises(UsageError, match=r"the training loss is (nan|inf)"):
        berthead.fit(workers=2, out=tmp_path / "model", **options_of(calm, data=data, lr=1e30, clip=1e30, valid=0))
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in capfd.readouterr().err


# What cannot be


TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_workers_within_torchrun_are_refused(calm, data, monkeypatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"workers=2: torchrun has already started the processes\. Leave it out\."):
        berthead.fit(workers=2, **options_of(calm, data=data))
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(UsageError, match="RANK: is 'first'; expected a whole number, as torchrun sets it"):
        berthead.fit(**options_of(calm, data=data))


def test_one_process_of_torchrun_is_a_plain_fit(calm, data, monkeypatch, tmp_path):
    for name, value in (TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"}).items():
        monkeypatch.setenv(name, value)
    assert berthead.fit(out=tmp_path / "m", **options_of(calm, data=data, epochs=1)).info()["run"]["best_epoch"] == 1
    assert (tmp_path / "m").is_dir()


@pytest.mark.parametrize("left_out", TORCHRUN)
def test_variables_that_others_set_make_no_torchrun(left_out):
    assert not is_writer(TORCHRUN)
    assert is_writer({name: value for name, value in TORCHRUN.items() if name != left_out})


def test_torchs_own_group_is_left_alone(calm, data):
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        with pytest.raises(
            UsageError, match=r"workers: torch\.distributed is already in use in this process; expected workers=1"
        ):
            berthead.fit(workers=2, **options_of(calm, data=data))
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(torch.cuda.device_count() > 1, reason="there are several GPUs")
def test_more_workers_than_gpus_are_refused(calm, data):
    with pytest.raises(UsageError, match=r'device="cuda": torch sees no CUDA device|process 2 has none'):
        berthead.fit(workers=2, device="cuda", **options_of(calm, data=data))
