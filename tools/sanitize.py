"""Runs the tests of the kernels and of loading under AddressSanitizer and UndefinedBehaviorSanitizer.

python tools/sanitize.py             # or `make sanitize`; further arguments are pytest's
python tools/sanitize.py --threads   # the same library under ThreadSanitizer, computing in four threads

The package lies in build/sanitized or build/threads, with a library that was built for this: the least and the best
instruction set of the processor. What the sanitizers find ends the process with a report: exit code 1, of a race 66.

To see that they see, plant a fault in a copy of the checkout: `static long planted; planted++;` in RunChunk of
encoder.cpp is a data race, `row[inputs]` read in ConvertWeights of pack_weights.inc a heap-buffer-overflow, already
where a folder is loaded.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KIND = "threads" if "--threads" in sys.argv else "sanitized"
TREE = ROOT / "build" / KIND
TESTS = (
    "tests/test_kernels.py",  # training
    "tests/test_tiles.py",  # every height of a tile, in every precision
    "tests/test_table.py",  # AdamW
    "tests/test_families.py::test_each_kernel_computes_the_same",  # every form of attention and of the network
    "tests/test_fuzz.py::test_loading_packs_the_weights_of_a_folder",  # whole folders, in every precision
    "tests/test_fuzz.py::test_spoilt_weights_and_records_are_refused_in_every_precision",  # and broken ones
)


OTHERS = ("libtorch_cpu.so", "libgomp.so", "libc10.so", "libtorch_python.so", "libtokenizers.so")
# Packs in every precision and the passes of a training step, by a pool of four threads, from four threads of Python.
FOUR_THREADS = """
import sys, tempfile, threading
from pathlib import Path
sys.path.insert(0, "tests")
import torch
from conftest import make_bert
from test_engine import a_pack
from berthead.kernels import library
from berthead.kernels.native import NativeEncoder, computes
from berthead.kernels.training import hidden
from berthead.model.checkpoint import read_checkpoint
from berthead.model.tensors import TensorPack

with tempfile.TemporaryDirectory() as folder:
    encoder = read_checkpoint(str(make_bert(Path(folder) / "bert"))).encoder().eval()
torch.set_num_threads(4)
rows = TensorPack.from_pack(a_pack([40, 9, 30, 30, 17, 3, 60, 25]))
for kernels in library.kernels():
    import os
    os.environ[library.SWITCH] = kernels
    for precision in ("fp32", "bf16", "int8"):
        if not computes(encoder, precision):
            continue
        native, wanted = NativeEncoder(encoder, precision), None
        def apply():
            with torch.inference_mode():
                for _ in range(20):
                    assert torch.equal(native(rows), wanted)
        with torch.inference_mode():
            wanted = native(rows)
        callers = [threading.Thread(target=apply) for _ in range(4)]
        for one in callers:
            one.start()
        for one in callers:
            one.join()
    for _ in range(10):
        encoder.zero_grad()
        hidden(encoder, rows, "fp32").sum().backward()
    print("no race:", kernels, flush=True)
"""


def build() -> None:
    """Make the tree anew; objects are compiled where something has changed."""
    shutil.rmtree(TREE, ignore_errors=True)
    command = ["setup.py", "--quiet", "build_py", "--build-lib", TREE, "build_ext", "--build-lib", TREE]
    subprocess.run([sys.executable, *command], cwd=ROOT, env=os.environ | {"BERTHEAD_BUILD": KIND}, check=True)


def runtime(name: str) -> str:
    """The compiler's own library of this name."""
    command = [os.environ.get("CXX", "g++"), f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def environment() -> dict[str, str]:
    """What Python needs to load the library: AddressSanitizer has to come before everything else."""
    shared = {"PYTHONPATH": str(TREE), "OMP_NUM_THREADS": "1"}
    if KIND == "threads":
        # Of other libraries only their locks are known: what they do between them is not ours to judge.
        suppressed = TREE / "suppressions"
        suppressed.write_text("".join(f"called_from_lib:{name}\n" for name in OTHERS), encoding="utf-8")
        options = f"halt_on_error=1 exitcode=66 ignore_noninstrumented_modules=1 suppressions={suppressed}"
        return os.environ | shared | {"LD_PRELOAD": runtime("libtsan.so"), "TSAN_OPTIONS": options}
    return (
        os.environ
        | shared
        | {
            # Exceptions of other libraries pass through AddressSanitizer, which looks for libstdc++ when it starts.
            "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libstdc++.so')}",
            # Python itself leaks what it holds until the end.
            "ASAN_OPTIONS": "detect_leaks=0",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        }
    )


def main() -> int:
    """Build and test; pytest's exit code."""
    build()
    ask = "from berthead.kernels import library; print(library.loaded()._name, *library.kernels())"
    said = subprocess.run([sys.executable, "-c", ask], env=environment(), capture_output=True, text=True, check=True)
    path, *kernels = said.stdout.split()
    if not Path(path).is_relative_to(TREE) or not kernels:
        sys.exit(f"tools/sanitize.py: {path or 'no library'} is tested; expected one in {TREE}")
    # A report that pytest captures is lost with the process that it ends.
    if KIND == "threads":
        return subprocess.run([sys.executable, "-c", FOUR_THREADS], cwd=ROOT, env=environment(), check=False).returncode
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--capture=no", *TESTS, *sys.argv[1:]]
    print("sanitized:", *kernels, flush=True)
    return subprocess.run(command, cwd=ROOT, env=environment(), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
