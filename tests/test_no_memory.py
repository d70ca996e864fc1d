"""Where the system gives no more memory, our kernels say so: the process goes on, and answers later.

Where it gives no more threads, those that there are compute the same.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_bert, shell_env

from berthead.kernels import library

pytestmark = [
    pytest.mark.skipif(not library.kernels(), reason="this machine has no kernels of ours"),
    pytest.mark.skipif(sys.platform != "linux", reason="allocations are made to fail by LD_PRELOAD"),
    pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler"),
]
# Stands before the C and C++ libraries: of what the process asks for, the n-th request is refused.
SHIM = r"""
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include <atomic>
#include <new>

static std::atomic<int> left{0}, threads{1 << 30};
static bool Fails() { return left.load() > 0 && left.fetch_sub(1) == 1; }

extern "C" void fail_at(int n) { left = n; }
extern "C" void threads_left(int n) { threads = n; }
extern "C" int still_to_come() { return left.load() > 0 ? left.load() : 0; }
extern "C" int posix_memalign(void** to, size_t alignment, size_t bytes) noexcept {
  typedef int (*Real)(void**, size_t, size_t);
  static Real real = (Real)dlsym(RTLD_NEXT, "posix_memalign");
  return Fails() ? ENOMEM : real(to, alignment, bytes);
}
extern "C" int pthread_create(pthread_t* id, const pthread_attr_t* how, void* (*run)(void*), void* with) noexcept {
  typedef int (*Real)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  static Real real = (Real)dlsym(RTLD_NEXT, "pthread_create");
  return threads.fetch_sub(1) <= 0 ? EAGAIN : real(id, how, run, with);
}
void* operator new(size_t bytes) {
  void* memory = Fails() ? nullptr : malloc(bytes);
  if (!memory) throw std::bad_alloc();
  return memory;
}
void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return Fails() ? nullptr : malloc(bytes); }
void operator delete(void* memory) noexcept { free(memory); }
void operator delete(void* memory, size_t) noexcept { free(memory); }
"""
# Requests are refused within calls of our library alone: what Python and torch do then is not ours to say.
PROGRAM = """
import ctypes, json, sys
import torch
from berthead.kernels import library
from berthead.kernels.native import NativeEncoder, computes
from berthead.kernels.training import hidden
from berthead.model.checkpoint import read_checkpoint
from berthead.model.tensors import TensorPack
from test_engine import a_pack

folder, shim, left, threads = sys.argv[1], ctypes.CDLL(sys.argv[2]), 0, 1 << 30
for name in ("encoder_new", "encoder_add_block", "encoder_run", "train", "adamw"):
    def armed(*arguments, real=getattr(library.loaded(), "berthead_" + name)):
        global left
        shim.fail_at(left)
        shim.threads_left(threads)
        try:
            return real(*arguments)
        finally:
            left = shim.still_to_come()
            shim.threads_left(1 << 30)
            shim.fail_at(0)
    setattr(library.loaded(), "berthead_" + name, armed)
encoder = read_checkpoint(folder).encoder().eval()
rows = TensorPack.from_pack(a_pack([40, 9, 30, 30]))

def apply(precision):
    with torch.inference_mode():
        whole = NativeEncoder(encoder, precision)(rows)
        first = NativeEncoder(encoder, precision, reads=lambda pack: pack.starts)(rows)[rows.starts]
    return torch.cat((whole, first))

def learn(precision):
    encoder.zero_grad()
    hidden(encoder, rows, precision).sum().backward()
    return torch.cat([one.grad.flatten() for one in encoder.parameters() if one.grad is not None])

other = NativeEncoder(encoder, "fp32")

def with_each_request_refused(compute, precision):
    global left
    wanted, told = compute(precision), 0
    while True:
        torch.set_num_threads(1)
        with torch.inference_mode():
            other(rows)  # by a pool of another size: the threads of this one, and their memory, are asked for again
        torch.set_num_threads(2)
        left = told + 1
        try:
            found = compute(precision)
        except MemoryError:
            told += 1
            assert left == 0
            assert torch.equal(compute(precision), wanted), told  # what was refused is asked for again
        else:
            assert left > 0, ("answered without what was refused", told + 1)
            left = 0
            assert torch.equal(found, wanted), told
            return told

torch.set_num_threads(2)
precisions = [one for one in ("fp32", "bf16", "int8") if computes(encoder, one)]
told = {f"apply {one}": with_each_request_refused(apply, one) for one in precisions}
told["learn"] = with_each_request_refused(learn, "fp32")
for compute, precision in [*((apply, one) for one in precisions), (learn, "fp32")]:
    torch.set_num_threads(1)
    wanted = compute(precision)
    for there in range(4):  # of the five that six threads need besides the caller
        torch.set_num_threads(1)
        other(rows)
        torch.set_num_threads(6)
        threads = there
        found = compute(precision)
        threads = 1 << 30
        # Gradients are summed a thread at a time: the last bits depend on how many there are.
        torch.testing.assert_close(found, wanted, **({} if compute is apply else {"atol": 1e-4, "rtol": 1e-3}))
        assert compute is learn or torch.equal(found, wanted), (precision, there)
print(json.dumps(told))
"""


@pytest.mark.exhaustive
def test_each_refused_request_is_told_and_nothing_else_changes(tmp_path):
    (tmp_path / "shim.cpp").write_text(SHIM)
    command = ["c++", "-shared", "-fPIC", "-O1", "-o", "shim.so", "shim.cpp", "-ldl"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    shim, tests = str(tmp_path / "shim.so"), str(Path(__file__).parent)
    path = os.pathsep.join([tests, *filter(None, [os.environ.get("PYTHONPATH")])])
    encoder = make_bert(tmp_path / "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(encoder), shim], env=shell_env(LD_PRELOAD=shim, PYTHONPATH=path),
        capture_output=True, encoding="utf-8", timeout=300, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    # The weights of two blocks, and what two threads work with.
    assert min(json.loads(ran.stdout).values()) >= 20, ran.stdout
