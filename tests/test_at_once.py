"""Two processes that write to one place at once: both results are kept, or one of them is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import shell_env, toy_rows, write_csv

import berthead
from berthead.errors import OutputError
from berthead.storage.folders import locked, made_whole

# Of two processes that add a function, the first stops before it writes the record, until the other one has either
# ended or waits for its lock, as the system's own list of locks shows.
FIRST = """
import json, sys, time
from pathlib import Path
import berthead
from berthead.function import joined_folder
from berthead.verbs.join import add
folder, name, own, here = sys.argv[1:]
write, here = joined_folder.write_record, Path(here)
def later(*args):
    (here / "ready").touch()
    while not (here / "pid").exists():
        time.sleep(0.01)
    pid = (here / "pid").read_text()
    def waits():
        return any("->" in line and pid in line.split() for line in Path("/proc/locks").read_text().splitlines())
    while not ((here / "ended").exists() or waits()):
        time.sleep(0.01)
    write(*args)
joined_folder.write_record = later
add(folder, name, berthead.load(own))
"""
SECOND = """
import os, sys
from pathlib import Path
import berthead
from berthead.verbs.join import add
folder, name, own, here = sys.argv[1:]
model = berthead.load(own)
(Path(here) / "pid.part").write_text(str(os.getpid()))
(Path(here) / "pid.part").rename(Path(here) / "pid")
try:
    add(folder, name, model)
finally:
    (Path(here) / "ended").touch()
"""


@pytest.fixture
def joined(tiny_bert, tmp_path) -> tuple[Path, Path]:
    """A joined folder, and a function on its encoder."""
    options = {"adapt": "frozen", "epochs": 1, "threads": 1, "valid": 0, "quiet": True}
    models = [berthead.fit(toy_rows(1), encoder=str(tiny_bert), seed=seed, **options) for seed in (0, 1)]
    berthead.join({"a": models[0], "b": models[1]}, tmp_path / "all")
    berthead.fit(toy_rows(1), encoder=str(tmp_path / "all" / "theta"), out=tmp_path / "own", seed=2, **options)
    return tmp_path / "all", tmp_path / "own"


@pytest.mark.parametrize("called", [("c", "d"), ("c", "c")])
def test_two_processes_add_a_function(called, joined, forks, tmp_path):
    folder, own = joined
    started = {"cwd": tmp_path, "env": shell_env()}
    first = forks.start(folder, called[0], own, tmp_path, program=FIRST, **started)
    while not (tmp_path / "ready").exists():
        assert first.poll() is None, first.communicate()
    second = forks.start(folder, called[1], own, tmp_path, program=SECOND, **started)
    said = [one.communicate() for one in (first, second)]
    assert first.returncode == 0, said
    assert json.loads((folder / "berthead.json").read_text())["functions"] == ["a", "b", *dict.fromkeys(called)]
    assert list(berthead.load(folder)) == ["a", "b", *dict.fromkeys(called)]
    if called[0] == called[1]:
        assert second.returncode != 0
        assert "berthead.errors." in said[1][1]
    else:
        assert second.returncode == 0, said


def test_four_fits_into_one_joined_folder(joined, forks, tmp_path):
    folder, _ = joined
    data = write_csv(tmp_path / "rows.csv", toy_rows(1))
    words = ("fit", data, "--shared", folder, "--epochs", 1, "--valid", 0, "--quiet", "--threads", 1, "--name")
    fits = [forks.start(*words, name, cwd=tmp_path, env=shell_env()) for name in "wxyz"]
    said = [one.communicate() for one in fits]
    assert [one.returncode for one in fits] == [0] * 4, said
    assert sorted(berthead.load(folder)) == ["a", "b", "w", "x", "y", "z"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


EXPORT = """
import sys, time
from pathlib import Path
import berthead
from berthead.cli import main
from berthead.storage import folders
here, number = Path(sys.argv.pop()), sys.argv.pop()
put = folders._put_in_place
def later(*args):
    (here / number).touch()
    while len([one for one in "12" if (here / one).exists()]) < 2:
        time.sleep(0.01)
    put(*args)
folders._put_in_place = later
main()
"""


@pytest.mark.parametrize("kind", ["--onnx", "--hf"])
def test_of_two_exports_into_one_folder_one_is_told(kind, toy_model, forks, tmp_path):
    words = ("export", toy_model, kind, tmp_path / "made")
    both = [forks.start(*words, number, tmp_path, cwd=tmp_path, env=shell_env(), program=EXPORT) for number in "12"]
    said = [one.communicate()[1] for one in both]
    assert sorted(one.returncode for one in both) == [0, 6], said
    lost = said[0] if both[0].returncode else said[1]
    assert "holds a model already, which another process wrote meanwhile. Give another folder" in lost
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2", "made"}
    if kind == "--onnx":
        assert berthead.load(tmp_path / "made").verify() < 1e-4


def test_with_overwrite_the_last_one_stays_and_nothing_else(toy_model, forks, tmp_path):
    berthead.load(toy_model).export_onnx(tmp_path / "made")
    words = ("export", toy_model, "--onnx", tmp_path / "made", "--overwrite")
    both = [forks.start(*words, number, tmp_path, cwd=tmp_path, env=shell_env(), program=EXPORT) for number in "12"]
    said = [one.communicate() for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2", "made"}
    assert berthead.load(tmp_path / "made").verify() < 1e-4


def test_an_empty_folder_is_taken_and_a_full_one_is_not(tmp_path):
    (tmp_path / "made").mkdir()
    with made_whole(tmp_path / "made") as aside:
        (aside / "berthead.json").write_text("{}")
    assert names(tmp_path / "made") == ["berthead.json"]
    context = made_whole(tmp_path / "two")
    context.__enter__()
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "mine").touch()
    with pytest.raises(OutputError, match="meanwhile"):
        context.__exit__(None, None, None)
    assert names(tmp_path) == ["made", "two"]
    assert names(tmp_path / "two") == ["mine"]


def test_a_process_that_is_killed_leaves_no_lock(forks, tmp_path):
    program = f"""
import time
from pathlib import Path
from berthead.storage.folders import locked
with locked(Path({str(tmp_path)!r})):
    print("locked", flush=True)
    time.sleep(600)
"""
    holder = forks.start(cwd=tmp_path, env=shell_env(), program=program)
    assert holder.stdout.readline() == "locked\n"
    holder.kill()
    with locked(tmp_path):
        pass
    holder.communicate()
