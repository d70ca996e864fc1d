"""Jobs on Ray: the bytes of a local job, whoever is killed; and what is said where there is no Ray."""

from __future__ import annotations

import importlib.util
import io
import json
import pickle
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from conftest import WORDS, shell_env, write_csv

import berthead
from berthead.cli import _words
from berthead.errors import DataError, UsageError
from berthead.formats.output import Output
from berthead.formats.table import Table
from berthead.function.joined import JoinedFunctions
from berthead.jobs.files import predict_file
from berthead.jobs.job import computed_by
from berthead.jobs.ray import _Crew, room
from berthead.jobs.work import Work, compute_part
from berthead.options import PredictOptions
from berthead.predict.torch_engine import TorchEngine

PLAIN = [word for word in WORDS if word.isalpha()]
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="no Ray: pip install 'berthead[ray]'")


def some_rows(folder: Path, count: int) -> Path:
    """Rows of different lengths, some without a text."""
    texts = [" ".join(PLAIN[(n * 7 + k) % len(PLAIN)] for k in range(1 + n % 9)) for n in range(count)]
    rows = [{"id": str(n), "text": "" if n % 50 == 7 else text} for n, text in enumerate(texts)]
    return write_csv(folder / "in.csv", rows)


# What goes to a cluster


def test_an_error_is_the_same_in_another_process():
    sent = DataError("rows.csv:3", "is blank", "a text", "Write one.").about(4)
    got = pickle.loads(pickle.dumps(sent))
    assert (type(got), str(got), got.where, got.fix, got.row) == (DataError, str(sent), "rows.csv:3", "Write one.", 4)


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_work_that_was_sent_gives_the_same_bytes(tmp_path, fit_toy, joined, precision):
    one = berthead.load(fit_toy(epochs=6), precision=precision, threads=1)
    options = PredictOptions(precision=precision)
    functions = JoinedFunctions({"a": one.artifact, "b": berthead.load(fit_toy()).artifact})
    both = berthead.Fitted(functions, TorchEngine(functions, options))
    table = Table([str(some_rows(tmp_path, 120))])
    work = Work.plan((both if joined else one).predictor, PredictOptions(), table.columns, table.name)
    output = Output.of("csv", table.format, table.columns, table.schema, work.added)
    rows = list(table)
    sent_work, sent_output, sent_rows = pickle.loads(pickle.dumps((work, output, rows)))
    assert sent_work.predictor.engine is not work.predictor.engine
    assert sent_work.predictor.engine.precision == precision
    assert computed_by(sent_work) == computed_by(work)
    here, there = (io.BytesIO(), io.BytesIO()), (io.BytesIO(), io.BytesIO())
    counts = compute_part(work, output, work.read(rows), *here)
    assert compute_part(sent_work, sent_output, sent_work.read(sent_rows), *there) == counts
    assert [one.getvalue() for one in there] == [one.getvalue() for one in here]
    assert counts.rows == 120
    assert counts.failed == 3


# Flags and errors


def test_the_flag_needs_no_address():
    assert _words(["predict", "m", "in.csv", "--ray"]) == ["predict", "m", "in.csv", "--ray", "local"]
    assert _words(["predict", "--ray", "-q", "m"]) == ["predict", "--ray", "local", "-q", "m"]
    assert _words(["predict", "--ray", "auto", "m"]) == ["predict", "--ray", "auto", "m"]


def test_actors_fill_the_nodes():
    nodes = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 5.0}, {"memory": 1e9}]
    assert room(nodes, PredictOptions(threads=2)) == (2, 6)
    assert room(nodes, PredictOptions(threads=6)) == (6, 1)
    assert room(nodes, PredictOptions(threads=2, device="cuda")) == (2, 2)
    with pytest.raises(UsageError, match=r"--threads: is 9; expected at most 8, the processors of the largest node"):
        room(nodes, PredictOptions(threads=9))
    with pytest.raises(UsageError, match="no node of the cluster has a processor"):
        room([{"memory": 1e9}], PredictOptions())
    with pytest.raises(UsageError, match="no node of the cluster has a GPU"):
        room([{"CPU": 8.0}], PredictOptions(device="cuda"))


def test_without_ray_the_error_says_what_to_install(tmp_path, cli, fit_toy, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    ran = cli("predict", fit_toy(), some_rows(tmp_path, 3), "--out", tmp_path / "out.csv", "--ray")
    assert ran.code == 2
    assert ran.err.startswith("berthead: --ray: Ray cannot be imported (")
    assert ran.err.endswith("expected the extra `ray`. Install it: pip install 'berthead[ray]'\n")
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


@needs_ray
@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense"])
def test_an_address_without_a_cluster(tmp_path, shell, fit_toy, address):
    some_rows(tmp_path, 3)
    ran = shell("predict", fit_toy(), "in.csv", "--out", "out.csv", "--ray", address)
    assert ran.code == 2
    assert ran.err.startswith(f"berthead: --ray {address}: no Ray cluster answers (")
    assert ran.err.endswith("or auto on a machine of the cluster. Start one: ray start --head\n")
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def test_stdout_is_refused(tmp_path, cli, fit_toy):
    ran = cli("predict", fit_toy(), some_rows(tmp_path, 3), "--ray", "auto")
    assert (ran.code, ran.out) == (2, "")
    assert "--ray: stdout keeps no parts" in ran.err


@pytest.mark.parametrize("words", [("--ray", "auto"), ("--resume",), ("--shard", "1/2")], ids=lambda words: words[0])
def test_what_is_about_files_is_refused_with_a_text(cli, fit_toy, words):
    ran = cli("predict", fit_toy(), "never came", *words)
    assert (ran.code, ran.out) == (2, "")
    assert f"{words[0]}: is for files of rows, but IN is a text" in ran.err


def test_a_cluster_that_is_named_and_not_given_is_refused(tmp_path, fit_toy):
    with pytest.raises(UsageError, match=r"no pool was given.*RayPool"):
        predict_file(berthead.load(fit_toy()).predictor, some_rows(tmp_path, 3), str(tmp_path / "out.csv"),
                     PredictOptions(ray="auto"))  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


# A cluster of one machine

# In a process of its own, because the tests' own may reach nobody. It kills an actor when three parts are done.
KILLING = """
import json, os, signal, sys
from dataclasses import asdict
from pathlib import Path

import ray
import berthead
from berthead.jobs.files import predict_file
from berthead.options import PredictOptions
from berthead.jobs import ray as ours

model, said = sys.argv[1], {"lost": [], "killed": 0, "taken": 0}
predictor = berthead.load(model, threads=1).predictor
lost, taken = ours._Crew._lost, ours._Crew._taken


def counted(crew, member, task, error):
    said["lost"].append(task.number)
    lost(crew, member, task, error)


def kill():
    # One of our actors: its parent is the raylet that we have started.
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            title, status = path.read_text(), path.with_name("status").read_text()
            parent = status.split("PPid:")[1].split()[0]
            started_by = int(Path(f"/proc/{parent}/status").read_text().split("PPid:")[1].split()[0])
        except OSError:
            continue
        if title.startswith("ray::_Actor") and started_by == os.getpid():
            os.kill(int(path.parent.name), signal.SIGKILL)
            said["killed"] += 1
            return


def watched(crew, ref):
    said["taken"] += 1
    # Both are there, and have parts; or one of them does all the work while the other is slow to start.
    if not said["killed"] and (said["taken"] >= 3 if not crew._starting else said["taken"] >= 5):
        kill()
    return taken(crew, ref)


ours._Crew._lost, ours._Crew._taken = counted, watched
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
resumed = PredictOptions(ray="local", threads=1, part_rows=200, resume=True)
said["counts"] = asdict(predict_file(predictor, "in.csv", "killed.parquet", resumed, True, pool=ours.RayPool(resumed)))
said["connected"] = ray.is_initialized()
print(json.dumps(said))
"""


@needs_ray
def test_a_job_on_ray_gives_the_bytes_of_a_local_one(tmp_path, fit_toy, monkeypatch):
    model = fit_toy(epochs=6)
    some_rows(tmp_path, 4_100)
    monkeypatch.setenv("HOME", str(tmp_path))  # where Ray keeps a token
    monkeypatch.chdir(tmp_path)
    predictor = berthead.load(model, threads=1).predictor
    predict_file(predictor, "in.csv", "local.parquet", PredictOptions(part_rows=200), True)
    # Of this one every other part is there, computed here.
    predict_file(predictor, "in.csv", "killed.parquet", PredictOptions(part_rows=200, shard="2/2"), True)

    done = subprocess.run(
        [sys.executable, "-c", KILLING, model],
        cwd=tmp_path,
        env=shell_env(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["killed"] == 1
    assert len(said["lost"]) <= 2  # what it had at once; none where it had just finished that
    assert said["counts"]["rows"] == 4_100
    assert said["connected"], "the cluster of the program stays"
    for name in ("{}.parquet", "{}.parquet.errors.jsonl"):
        assert Path(name.format("killed")).read_bytes() == Path(name.format("local")).read_bytes()
    assert len(pd.read_parquet("killed.parquet")) == 4_100 - said["counts"]["failed"]
    assert not list(tmp_path.glob("*.parts"))


def test_a_node_that_would_compute_other_bytes_is_refused():
    crew = object.__new__(_Crew)
    crew._ray = SimpleNamespace(get=lambda ref: {"kernels": "abacus", "berthead": "1"}, exceptions=SimpleNamespace())
    crew._starting, crew._ready, crew._by = {"ref": None}, [], {"kernels": "avx2", "berthead": "1"}
    message = r"the results of a node would differ: kernels is abacus, here avx2\. Install the same versions"
    with pytest.raises(UsageError, match=message):
        crew._welcome("ref")
    assert crew._ready == []


def actors_of(pid: int) -> set[int]:
    """The actors among the processes that a process has started, and those that these have."""
    found, new = {pid}, {pid}
    while new:
        new = {
            int(child)
            for parent in new
            for tasks in Path(f"/proc/{parent}/task").glob("*/children")
            for child in tasks.read_text().split()
        } - found
        found |= new
    return {one for one in found if Path(f"/proc/{one}/cmdline").read_text().startswith("ray::_Actor")}


@pytest.mark.exhaustive
@needs_ray
def test_a_killed_job_leaves_no_actor_and_is_resumed(tmp_path, fit_toy, shell, forks, monkeypatch):
    model = fit_toy(epochs=6)
    some_rows(tmp_path, 6_400)
    monkeypatch.setenv("HOME", str(tmp_path))  # where Ray keeps a token
    command = ["predict", model, "in.csv", "--threads", "1", "--part-rows", "80", "-q", "--out"]
    assert shell(*command, "local.csv").code == 4  # some rows have no answer
    driver = forks.start(*command, "out.csv", "--ray", cwd=tmp_path, env=shell_env())
    parts, until = tmp_path / "out.csv.parts", time.monotonic() + 120
    while len(list(parts.glob("[0-9]*.json"))) < 3 and driver.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    started = actors_of(driver.pid)
    assert started
    assert not (tmp_path / ".ray").exists(), "clusters that were started without a token would refuse the next job"
    driver.kill()
    driver.wait()
    done = len(list(parts.glob("[0-9]*.json")))
    assert 3 <= done < 80
    refused = shell(*command, "out.csv")
    assert refused.code == 2
    assert "of an interrupted job" in refused.err
    assert shell(*command, "out.csv", "--resume").code == 4
    for name in ("out.csv", "out.csv.errors.jsonl"):
        assert (tmp_path / name).read_bytes() == (tmp_path / name.replace("out", "local")).read_bytes()
    until = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in started) and time.monotonic() < until:
        time.sleep(0.1)
    assert [pid for pid in started if Path(f"/proc/{pid}").exists()] == []
