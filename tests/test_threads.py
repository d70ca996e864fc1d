"""Where the system gives no more threads: fewer are used, and no command ends without a word."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading

import pytest
from conftest import shell_env

import berthead
from berthead.engine.threads import startable
from berthead.errors import UsageError
from berthead.options import FitOptions, PredictOptions


class Few:
    """Lets so many threads start; the system's own error is Python's."""

    def __init__(self, left: int) -> None:
        self.left, self.start = left, threading.Thread.start

    def __call__(self, thread: threading.Thread) -> None:
        if self.left <= 0:
            raise RuntimeError("can't start new thread")
        self.left -= 1
        self.start(thread)


@pytest.mark.parametrize(("there", "used"), [(0, 1), (3, 1), (5, 2), (6, 2), (7, 3), (9, 4), (100, 4)])
def test_as_many_threads_are_used_as_can_be_started(there, used, monkeypatch):
    few = Few(there)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(threading.Thread, "start", lambda thread: few(thread))
    before = threading.active_count()
    assert startable(4) == used
    assert threading.active_count() == before


@pytest.mark.parametrize("kind", ["model", "onnx"])
def test_answers_need_no_further_thread(kind, toy_model, tmp_path, monkeypatch):
    texts = ["good cat", "bad dog", "the mat"] * 20
    folder = toy_model
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
        berthead.load(toy_model).export_onnx(tmp_path / "onnx")
        folder = tmp_path / "onnx"
    wanted = berthead.load(folder).predict(texts)
    few = Few(0)
    monkeypatch.setattr(threading.Thread, "start", lambda thread: few(thread))
    assert berthead.load(folder, threads=2).predict(texts) == wanted
    with pytest.raises(RuntimeError):
        threading.Thread(target=print).start()


# As a limit on a user's processes does: of this process's threads so many may live at once.
SHIM = r"""
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include <atomic>

static std::atomic<int> alive{0};
struct Start {
  void* (*run)(void*);
  void* with;
};
static void* Counted(void* of) {
  Start start = *(Start*)of;
  delete (Start*)of;
  void* result = start.run(start.with);
  alive--;
  return result;
}
extern "C" int pthread_create(pthread_t* id, const pthread_attr_t* how, void* (*run)(void*), void* with) noexcept {
  typedef int (*Real)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  static Real real = (Real)dlsym(RTLD_NEXT, "pthread_create");
  if (alive.fetch_add(1) >= atoi(getenv("MOST_THREADS"))) {
    alive--;
    return EAGAIN;
  }
  return real(id, how, Counted, new Start{run, with});
}
"""


@pytest.mark.skipif(shutil.which("c++") is None or sys.platform != "linux", reason="there is no C++ compiler")
@pytest.mark.exhaustive
def test_a_command_that_may_start_a_few_threads_only_answers_with_them(toy_model, tmp_path):
    (tmp_path / "shim.cpp").write_text(SHIM)
    command = ["c++", "-shared", "-fPIC", "-O1", "-o", "shim.so", "shim.cpp", "-ldl"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    data = tmp_path / "in.csv"
    data.write_text("text\n" + "good cat\nbad dog\n" * 300)
    found = {}
    for most in (0, 3, 7, 1000):
        env = shell_env(LD_PRELOAD=str(tmp_path / "shim.so"), MOST_THREADS=str(most), OMP_NUM_THREADS="16")
        words = [sys.executable, "-m", "berthead", "predict", toy_model, data, "--threads", "8", "--out", f"{most}.csv"]
        ran = subprocess.run([*map(str, words)], cwd=tmp_path, env=env, capture_output=True, check=False)
        assert ran.returncode == 0, (most, ran.stderr.decode())
        found[most] = (tmp_path / f"{most}.csv").read_bytes()
    assert len(set(found.values())) == 1


@pytest.mark.parametrize(
    ("options", "name", "most"),
    [(FitOptions, "threads", 1024), (FitOptions, "workers", 256), (PredictOptions, "threads", 1024),
     (PredictOptions, "part_rows", 10_000_000)],
)  # fmt: skip
def test_numbers_that_no_machine_can_serve_are_refused(options, name, most):
    assert getattr(options(**{name: most}), name) == most
    with pytest.raises(UsageError, match=f"is {most + 1}; expected at most {most}"):
        options(**{name: most + 1})
