"""Processes killed with SIGKILL, at random moments and at every one of their steps: what comes out is the same."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import zstandard
from conftest import WORDS, shell_env, write_csv, write_jsonl

PLAIN = [word for word in WORDS if word.isalpha()]
# Starts processes quickly: all is imported, and the model read, before it forks.
STARTER = """
import json, os, signal, sys, time
import pandas, pyarrow.parquet
import berthead
from berthead.jobs.files import predict_file
from berthead.options import PredictOptions

STEPS = ("open", "os.rename", "os.remove", "os.rmdir", "os.link", "os.mkdir", "fcntl.flock")
predictor = berthead.load(sys.argv[1], threads=1).predictor
print("ready", flush=True)


def job(last, source, target, options):
    done = 0

    def watch(event, args):
        nonlocal done
        if event in STEPS:
            done += 1
            if done == last:
                os.kill(os.getpid(), signal.SIGKILL)

    if last is not None:
        sys.addaudithook(watch)
    summary = predict_file(predictor, source, target, PredictOptions(**options), quiet=True)
    print(done if last is not None else summary.rows, flush=True)


for line in sys.stdin:
    folder, killed_after, *arguments = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.chdir(folder)
        os.dup2(os.open("said", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 1)
        os.dup2(1, 2)
        job(*arguments)
        os._exit(0)
    begun, ended = time.monotonic(), 0
    while killed_after is not None and not ended and time.monotonic() < begun + killed_after:
        time.sleep(0.001)
        ended, status = os.waitpid(pid, os.WNOHANG)
    if killed_after is not None and not ended:
        os.kill(pid, signal.SIGKILL)
    if not ended:
        _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Starter:
    """Starts processes in a folder, one at a time."""

    def __init__(self, model: Path) -> None:
        self.folder = Path()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(
            [sys.executable, "-c", STARTER, model], env=shell_env(BERTHEAD_THREADS="1"), **pipes
        )
        assert self.process.stdout.readline() == "ready\n"

    def run(
        self, source: str, target: str, *, last: int | None = None, killed_after: float | None = None, **options
    ) -> tuple[int, str]:
        """How a job ended, and what it said; it kills itself at its last step, or is killed after so many seconds."""
        self.process.stdin.write(json.dumps([str(self.folder), killed_after, last, source, target, options]) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline()), (self.folder / "said").read_text()


@pytest.fixture(scope="module")
def started(fit_toy):
    made = Starter(fit_toy(epochs=6))
    yield made
    made.process.stdin.close()
    made.process.wait()


@pytest.fixture
def starter(started, tmp_path):
    started.folder = tmp_path
    return started


def some_rows(count: int) -> list[dict[str, str]]:
    """Rows of different lengths, some without a text."""
    texts = [" ".join(PLAIN[(n * 7 + k) % len(PLAIN)] for k in range(1 + n % 9)) for n in range(count)]
    return [{"id": str(n), "text": "" if n % 50 == 7 else text} for n, text in enumerate(texts)]


def write_source(pattern: str, folder: Path, rows: list[dict[str, str]]) -> None:
    """The input that the pattern names: one file, or several."""
    if pattern == "*.tsv.zst":
        for number in range(3):
            some = rows[number * len(rows) // 3 : (number + 1) * len(rows) // 3]
            table = pd.DataFrame(some).to_csv(index=False, sep="\t").encode()
            (folder / f"{number}.tsv.zst").write_bytes(zstandard.compress(table))
    elif pattern == "in.parquet":
        pd.DataFrame(rows).to_parquet(folder / pattern, row_group_size=300, index=False)
    else:
        {"in.csv": write_csv, "in.jsonl": write_jsonl}[pattern](folder / pattern, rows)


def left(folder: Path, target: str) -> dict[str, bytes]:
    """What a job has left in the folder, and takes it away."""
    found = {}
    for path in sorted(folder.iterdir()):
        if target in path.name:
            found[path.name] = path.read_bytes()
            path.unlink()
    return found


KINDS = {
    "out.csv": "in.csv",
    "out.jsonl.gz": "in.jsonl",
    "out.csv.zst": "*.tsv.zst",
    "out.parquet": "in.parquet",
    "typed.parquet": "in.jsonl",
    "out.xlsx": "in.csv",
}


# At random moments


# One of text and one of tables that are made of many parts; each has its own way of being put together.
DAILY = ("typed.parquet",)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        *(pytest.param(name, 2000, marks=pytest.mark.exhaustive) for name in DAILY),
        *(pytest.param(name, 8000, marks=pytest.mark.exhaustive) for name in KINDS),
    ],
)
def test_a_job_killed_four_times_at_random_writes_the_same_bytes(name, count, starter, tmp_path):
    chance = random.Random(name)
    write_source(KINDS[name], tmp_path, some_rows(count))
    rows, all_done = count // 32, (0, f"{count}\n")
    begun = time.monotonic()
    assert starter.run(KINDS[name], name, part_rows=rows) == all_done
    seconds = time.monotonic() - begun
    wanted = left(tmp_path, name)
    assert list(wanted) == [name, f"{name}.errors.jsonl"]
    killed, parts = 0, []
    while killed < 4:
        moment = chance.uniform(0, seconds)
        code, said = starter.run(KINDS[name], name, part_rows=rows, resume=True, killed_after=moment)
        if code == -signal.SIGKILL:
            killed += 1
            there = len(list((tmp_path / f"{name}.parts").glob("0*[0-9].json")))
            print(f"killed after {moment:.2f} of {seconds:.2f} s, with {there} parts")
            if not (tmp_path / name).exists():
                parts.append(there)
            else:  # killed while the parts were removed
                assert (tmp_path / name).read_bytes() == wanted[name]
        else:
            assert (code, said) == all_done
            assert left(tmp_path, name) == wanted
            parts.clear()
    assert parts == sorted(parts)  # what was whole stayed
    assert starter.run(KINDS[name], name, part_rows=rows, resume=True) == all_done
    assert left(tmp_path, name) == wanted


@pytest.mark.exhaustive
def test_the_command_as_users_run_it_is_killed_and_resumed(fit_toy, shell, forks, tmp_path):
    write_source("in.csv", tmp_path, some_rows(3000))
    command = ["predict", fit_toy(epochs=6), "in.csv", "--out", "out.csv", "--part-rows", "128", "--quiet"]
    assert shell(*command).code == 4
    wanted = left(tmp_path, "out.csv")
    for parts in (2, 9):
        process = forks.start(*command, *(["--resume"] if parts > 2 else []), cwd=tmp_path, env=shell_env())
        while not (tmp_path / "out.csv.parts" / f"{parts:06}.json").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.wait()
    assert shell(*command).code == 2  # there are parts, and it is not said to go on
    assert shell(*command, "--resume").code == 4
    assert left(tmp_path, "out.csv") == wanted


def test_shards_at_work_at_once_share_a_folder_and_one_of_them_is_killed(fit_toy, shell, forks, tmp_path):
    write_source("in.csv", tmp_path, some_rows(3000))
    command = ["predict", fit_toy(epochs=6), "in.csv", "--part-rows", "100", "--quiet", "--out"]
    assert shell(*command, "whole.csv").code == 4
    command.append("out.csv")
    shards = [forks.start(*command, "--shard", f"{n}/3", cwd=tmp_path, env=shell_env()) for n in (1, 2, 3)]
    while not (tmp_path / "out.csv.parts" / "000004.json").exists():  # of the second
        assert shards[1].poll() is None
        time.sleep(0.01)
    shards[1].kill()
    assert [shard.wait() for shard in shards] == [4, -signal.SIGKILL, 4]
    assert shell("gather", "out.csv").code == 2
    assert shell(*command, "--shard", "2/3", "--resume").code == 4
    assert shell("gather", "out.csv").code == 4
    wanted = left(tmp_path, "whole.csv")
    assert [content for _, content in sorted(left(tmp_path, "out.csv").items())] == list(wanted.values())


# At every step


@pytest.mark.parametrize(
    ("name", "every"),
    [
        ("out.csv", 9),
        ("out.parquet", 9),
        pytest.param("out.xlsx", 9, marks=pytest.mark.exhaustive),
        pytest.param("out.csv", 1, marks=pytest.mark.exhaustive),
    ],
)
def test_a_job_killed_at_any_step_goes_on_to_the_same_bytes(name, every, starter, tmp_path):
    source = KINDS[name]
    write_source(source, tmp_path, some_rows(90))
    code, said = starter.run(source, name, last=0, part_rows=40)
    assert code == 0, said
    last, wanted = int(said), left(tmp_path, name)
    assert list(wanted) == [name, f"{name}.errors.jsonl"]
    assert last > 60
    for step in [*range(1, last, every), last]:
        assert starter.run(source, name, last=step, part_rows=40)[0] == -signal.SIGKILL
        assert starter.run(source, name, part_rows=40, resume=True) == (0, "90\n")
        assert left(tmp_path, name) == wanted, step


def test_whoever_does_not_resume_is_told_or_begins_anew(starter, tmp_path):
    write_source("in.csv", tmp_path, some_rows(90))
    last, outcomes = int(starter.run("in.csv", "out.csv", last=0, part_rows=40)[1]), set()
    wanted = left(tmp_path, "out.csv")
    for step in range(5, last, 19):
        assert starter.run("in.csv", "out.csv", last=step, part_rows=40)[0] == -signal.SIGKILL
        code, said = starter.run("in.csv", "out.csv", part_rows=40)
        if code == 0:
            assert left(tmp_path, "out.csv") == wanted, step
        else:
            assert "of an interrupted job. Go on with --resume, or start over: rm -r" in said
            shutil.rmtree(tmp_path / "out.csv.parts")
            left(tmp_path, "out.csv")
        outcomes.add(code)
    assert outcomes == {0, 1}
