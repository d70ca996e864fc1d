"""What a GPU computes and how fast, in one run of some minutes: tests on the GPU, then speed beside transformers.

    python3 benchmarks/gpu.py [--out gpu-out] [--minutes 8] [--rehearse]

It is meant for a bare machine with an NVIDIA GPU: any python3 from 3.11. Packages that are missing are installed in a
virtual environment in --out, torch among them where the one at hand sees no GPU; what cannot be installed is said, and
the rest goes on. pip's own settings hold (PIP_INDEX_URL, PIP_FIND_LINKS, PIP_NO_INDEX).

Every step has a limit, and all of them together --minutes. A table is printed at the end whatever happened, and written
to OUT/gpu.md and OUT/gpu.json after every step. Exit code 0: all was measured and every test passed, or there is no
GPU, which one line says; 1: something failed, as the table says. --rehearse takes the same way with small sizes on the
processor: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gpu_machine import ROOT, Machine, prepare_machine
from gpu_table import Budget, Record, markdown, plan

# Shares of the whole time that a step may take.
LIMITS = {"machine": 0.4, "tests": 0.3, "again": 0.1, "kernels": 0.12, "encoders": 0.12, "predict": 0.12, "fit": 0.1}
# Kept for the benchmark while the tests run.
KEPT = 0.4
TESTS = ["tests/test_cuda.py", "tests/test_device.py"]
_RESULT = re.compile(r"^(\S+?::.+?) (PASSED|FAILED|ERROR|SKIPPED)")
# Tests that failed are tried again, each in a process of its own: a GPU that failed once fails in all that follows.
MOST_AGAIN = 6


def run_tests(machine: Machine, budget: Budget, record: Record, rehearse: bool) -> None:
    """The tests that compute on a GPU; in a rehearsal some that do not."""
    selection = ["-k", "padded or rounded"] if rehearse else ["-m", "gpu"]
    seconds = budget.share(LIMITS["tests"], KEPT)
    results, reasons, note = pytest(machine, [*TESTS, *selection], seconds, "tests")
    failed = [name for name, result in results.items() if result in ("FAILED", "ERROR")]
    for name in failed[:MOST_AGAIN] if len(failed) > 1 else []:
        seconds = budget.share(LIMITS["again"], KEPT)
        if seconds > 15 and pytest(machine, [name], seconds, "tests-again")[0].get(name) == "PASSED":
            reasons[name] = f"passes alone; after others: {reasons.get(name, 'failed')}"
    count = {word: sum(result == word for result in results.values()) for word in ("PASSED", "SKIPPED")}
    record.tests = {
        "passed": count["PASSED"], "failed": len(failed), "skipped": count["SKIPPED"], "note": note,
        "failures": {name: reasons.get(name, "no reason was printed") for name in failed},
    }  # fmt: skip


def pytest(
    machine: Machine, words: Sequence[str], seconds: float, name: str
) -> tuple[dict[str, str], dict[str, str], str]:
    """Results and reasons by test, and why the run ended early, if it did."""
    command = [machine.python, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", "-o", "addopts=", "-rfE"]
    done = machine.run([*command, *words], seconds, name)
    results, reasons = {}, {}
    for line in done.out.splitlines():
        if found := _RESULT.match(line):
            results[found[1]] = found[2]
        elif found := re.match(r"^(?:FAILED|ERROR) (\S+?::.+?) - (.*)", line):
            reasons[found[1]] = found[2][:200]
    note = "" if done.code in (0, 1) and results else f"failed: {done.why or 'no test was found'}"
    return results, reasons, note


def measure(machine: Machine, budget: Budget, record: Record, rehearse: bool) -> None:
    """Each kind of work by each engine, in a process a pair: what fails there ends nothing else."""
    script = [machine.python, str(ROOT / "benchmarks" / "gpu_measure.py")]
    common = ["--work", str(machine.work), *(["--rehearse"] if rehearse else [])]
    made = machine.run([*script, "encoders", *common], budget.share(LIMITS["encoders"]), "encoders")
    found = made.lines()
    record.machine["encoders"] = found[-1] if found else f"failed: {made.why}"
    record.write()
    for step in plan():
        if step.verb == "predict" and not (machine.work / f"{step.encoder}-model").exists():
            record.add(step, [], f"no function was fitted: {made.why or 'see encoders'}")
            continue
        done = machine.run(
            [*script, step.verb, *common, "--encoder", step.encoder, "--engine", step.engine],
            budget.share(LIMITS[step.verb]), f"{step.verb}-{step.encoder}-{step.engine}",
        )  # fmt: skip
        record.add(step, done.lines(), done.why)
        record.write()


def has_gpu() -> bool:
    """Whether the driver, or the torch at hand, knows of an NVIDIA GPU."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
        if listed.returncode == 0 and "GPU" in listed.stdout:
            return True
    except (OSError, subprocess.TimeoutExpired):
        pass
    code = "import torch, sys; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def stop(number: int, frame: Any) -> None:
    """Told to end: the table is printed all the same."""
    raise SystemExit(f"stopped by signal {number}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-out"))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--rehearse", action="store_true")
    args = parser.parse_args()
    if not args.rehearse and not has_gpu():
        print("gpu: this machine has no NVIDIA GPU that its driver or torch knows of; nothing was measured")
        return 0
    budget, record = Budget(60 * args.minutes), Record(args.out, rehearse=args.rehearse)
    args.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, stop)
    machine = None
    try:
        pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
        needed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
        machine = prepare_machine(args.out.resolve(), needed, pins, budget, LIMITS["machine"], args.rehearse, record)
        record.write()
        run_tests(machine, budget, record, args.rehearse)
        record.write()
        record.machine["kernels of the processor"] = machine.await_kernels(budget.share(LIMITS["kernels"]))
        measure(machine, budget, record, args.rehearse)
    except (SystemExit, KeyboardInterrupt) as error:
        record.notes.append(f"failed: {error or 'stopped'}")
    finally:
        if machine:
            machine.close()
        record.seconds = round(budget.spent())
        record.write()
        print(markdown(record), flush=True)
    print(f"\nWritten to {args.out / 'gpu.md'} and {args.out / 'gpu.json'}", file=sys.stderr)
    return int(record.has_failed())


if __name__ == "__main__":
    sys.exit(main())
