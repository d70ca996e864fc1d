"""Runs the tests of the kernels under AddressSanitizer and UndefinedBehaviorSanitizer.

python tools/sanitize.py             # or `make sanitize`; further arguments are pytest's

The package lies in build/sanitized, with a library that was built for this: the least and the best instruction set of
the processor. What the sanitizers find ends the process with a report.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TREE = ROOT / "build" / "sanitized"
TESTS = (
    "tests/test_kernels.py",  # training
    "tests/test_tiles.py",  # every height of a tile, in every precision
    "tests/test_table.py",  # AdamW
    "tests/test_families.py::test_each_kernel_computes_the_same",  # every form of attention and of the network
)


def build() -> None:
    """Make the tree anew; objects are compiled where something has changed."""
    shutil.rmtree(TREE, ignore_errors=True)
    command = ["setup.py", "--quiet", "build_py", "--build-lib", TREE, "build_ext", "--build-lib", TREE]
    subprocess.run([sys.executable, *command], cwd=ROOT, env=os.environ | {"BERTHEAD_BUILD": "sanitized"}, check=True)


def runtime(name: str) -> str:
    """The compiler's own library of this name."""
    command = [os.environ.get("CXX", "g++"), f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def environment() -> dict[str, str]:
    """What Python needs to load the library: AddressSanitizer has to come before everything else."""
    return os.environ | {
        # Exceptions of other libraries pass through AddressSanitizer, which looks for libstdc++ when it starts.
        "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libstdc++.so')}",
        # Python itself leaks what it holds until the end.
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": str(TREE),
        "OMP_NUM_THREADS": "1",
    }


def main() -> int:
    """Build and test; pytest's exit code."""
    build()
    ask = "from berthead.kernels import library; print(library.loaded()._name, *library.kernels())"
    said = subprocess.run([sys.executable, "-c", ask], env=environment(), capture_output=True, text=True, check=True)
    path, *kernels = said.stdout.split()
    if not Path(path).is_relative_to(TREE) or not kernels:
        sys.exit(f"tools/sanitize.py: {path or 'no library'} is tested; expected one in {TREE}")
    # A report that pytest captures is lost with the process that it ends.
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--capture=no", *TESTS, *sys.argv[1:]]
    print("sanitized:", *kernels, flush=True)
    return subprocess.run(command, cwd=ROOT, env=environment(), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
