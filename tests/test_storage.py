"""Files and folders are written aside, are on the disk before they are renamed, and leave nothing behind."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import berthead
from berthead.engine import machine
from berthead.errors import OutputError
from berthead.storage.files import Aside, clear_leftovers, put_in_place, write_json
from berthead.storage.folders import folder_aside, made_whole
from berthead.storage.tensors import write_tensors
from berthead.train.cached_features import _written
from berthead.train.checkpoints import Checkpoints, Saved


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def synced(monkeypatch) -> list[str]:
    """The paths that are brought to the disk, in order."""
    seen, fsync = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda one: seen.append(str(Path(f"/proc/self/fd/{one}").readlink())) or fsync(one)
    )
    return seen


def put_file(target: Path) -> None:
    aside = Aside(target)
    aside.stream.write(b"new")
    aside.publish()


def put_folder(target: Path) -> None:
    with folder_aside(target) as aside:
        (aside / "new").write_text("new")


@pytest.mark.parametrize("put", [put_file, put_folder])
def test_what_killed_processes_left_goes_and_what_others_write_stays(put, dead, tmp_path):
    target, name = tmp_path / "a[1]", ".a[1]"
    for kind in ("part", "old"):
        (tmp_path / f"{name}.{kind}-{dead}").mkdir()
        (tmp_path / f"{name}.{kind}-{dead}" / "half").touch()
    (tmp_path / f"{name}.part-{os.getppid()}").touch()  # that process lives
    (tmp_path / f".a1.part-{dead}").touch()  # of another target
    (tmp_path / f"{name}.mine-{dead}").touch()
    put(target)
    assert names(tmp_path) == sorted(["a[1]", f"{name}.part-{os.getppid()}", f".a1.part-{dead}", f"{name}.mine-{dead}"])


def test_what_is_held_from_another_machine_stays(dead, tmp_path):
    left = tmp_path / f".a.part-{dead}"  # that number means nothing there
    with left.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        clear_leftovers(tmp_path / "a")
        assert left.exists()
    clear_leftovers(tmp_path / "a")
    assert not left.exists()


def test_a_file_and_its_name_are_on_the_disk(synced, tmp_path):
    put_file(tmp_path / "a")
    assert synced == [str(tmp_path / f".a.part-{os.getpid()}"), str(tmp_path)]
    synced.clear()
    (tmp_path / "other").write_bytes(b"by another library")
    put_in_place(tmp_path / "other", tmp_path / "a")
    assert synced == [str(tmp_path / "other"), str(tmp_path)]
    assert (tmp_path / "a").read_bytes() == b"by another library"


def test_all_that_is_in_a_folder_is_on_the_disk_before_it_is_there(synced, tmp_path):
    aside = tmp_path / f".a.part-{os.getpid()}"
    with folder_aside(tmp_path / "a") as made:
        assert made == aside
        (made / "deep" / "deeper").mkdir(parents=True)
        (made / "deep" / "deeper" / "file").touch()
        (made / "file").touch()
    inner = [aside / "deep", aside / "deep" / "deeper", aside / "deep" / "deeper" / "file", aside / "file", aside]
    assert synced == [*map(str, inner), str(tmp_path)]
    assert names(tmp_path) == ["a"]


def test_a_folder_that_fails_leaves_what_was_there(tmp_path):
    put_folder(tmp_path / "a")
    with pytest.raises(ZeroDivisionError), folder_aside(tmp_path / "a") as aside:
        (aside / f"{1 / 0}").touch()
    assert (names(tmp_path), names(tmp_path / "a")) == (["a"], ["new"])
    with pytest.raises(OutputError, match=r"b: could not be written \(No space"), made_whole(tmp_path / "b"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == ["a"]


def test_records_have_two_forms(tmp_path):
    write_json(tmp_path / "people.json", {"a": "ü\ud800", "b": [1]})
    write_json(tmp_path / "programs.json", {"a": "ü", "b": [1]}, compact=True)
    assert (tmp_path / "people.json").read_bytes() == '{\n  "a": "ü\\ud800",\n  "b": [\n    1\n  ]\n}\n'.encode()
    assert (tmp_path / "programs.json").read_bytes() == b'{\n "a": "\\u00fc",\n "b": [\n  1\n ]\n}'
    with pytest.raises(FileExistsError):
        write_json(tmp_path / "people.json", {}, replace=False)
    assert json.loads((tmp_path / "people.json").read_text())["b"] == [1]
    assert names(tmp_path) == ["people.json", "programs.json"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_may_be_read_as_the_umask_says(umask, fit_toy, tmp_path):
    fitted = berthead.load(fit_toy(adapt="frozen"))
    before = os.umask(umask)
    try:
        put_file(tmp_path / "file")
        write_json(tmp_path / "record.json", {})
        write_tensors({"a": torch.zeros(2)}, tmp_path / "tensors", {})
        _written(tmp_path, "vectors", [b"0"], stays=True)
        with Checkpoints(tmp_path / "fit") as checkpoints:
            checkpoints.write(Saved({}, {"a": torch.zeros(2)}), pytest.fail)
        berthead.join({"one": fitted, "two": fitted}, tmp_path / "both")
    finally:
        os.umask(before)
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    wrong = {path: oct(mode) for path, mode in found.items() if mode != (0o777 if path.is_dir() else 0o666) & ~umask}
    assert (len(found) > 15, wrong) == (True, {})


def test_vectors_that_stay_are_on_the_disk_and_others_are_their_users_alone(synced, tmp_path):
    _written(tmp_path, "vectors", [b"ab", b"c"], stays=True)
    assert synced == [str(tmp_path / f".vectors.part-{os.getpid()}"), str(tmp_path)]
    left = _written(tmp_path, "vectors", [b"d"], stays=False)
    assert (left.read_bytes(), stat.S_IMODE(left.stat().st_mode)) == (b"d", 0o600)
    assert (tmp_path / "vectors").read_bytes().startswith(b"abc")  # its checksum comes behind


def test_measurements_that_cannot_be_kept_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("BERTHEAD_HOME", str(tmp_path))
    assert machine.keep({"cpu": "x"}, {"a": 1})
    assert machine.measured({"cpu": "x"})["a"] == 1

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert not machine.keep({"cpu": "x"}, {"a": 2})
    assert machine.measured({"cpu": "x"})["a"] == 1
    assert len(names(tmp_path / "measured")) == 1
