"""This machine: its processor, its peak and model speed, and saved measurements."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from berthead.engine import prepacked
from berthead.engine.cpu import CPU, CpuEngine, kernels_of
from berthead.engine.cuda import Engines
from berthead.function.artifact import Artifact
from berthead.kernels import abi, library, native
from berthead.model.model import Model
from berthead.records import Pack
from berthead.storage.files import write_json
from berthead.text.packing import pack
from berthead.text.tokenizer import Encoded

# Tokens of the pack for timing precisions, and how often each computes it: at least, at most, and total time.
SPEED_TOKENS = 512
SPEED_ROUNDS = (3, 9)
SPEED_SECONDS = 0.5
# The side of the square matrices for torch's peak.
PEAK_SIDE = 1024
GPU_PEAK_SIDE = 4096


@cache
def cpu_model() -> str:
    """The processor's name, from the system."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    # Some systems give a whole series one name: family, model and stepping distinguish its members.
    wanted = ("model name", "cpu family", "model", "stepping")
    found = {name: value for line in reversed(lines) for name, _, value in [map(str.strip, line.partition(":"))]}
    parts = [found[name] for name in wanted if name in found]
    return " ".join(parts) or platform.processor() or platform.machine()


def gpus() -> str:
    """The GPUs that torch finds, such as `2 x NVIDIA H100`."""
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))


def finish(device: torch.device) -> None:
    """Wait until a device has finished, so that timing is correct."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak(model: Model, precision: str, seconds: float = 0.1, device: torch.device = CPU) -> float:
    """Peak operations per second of matrix products, by the kernels that compute a model's encoder here.

    Args:
        model: the fitted model.
        precision: the precision.
        seconds: how long to measure.
        device: the device.

    Returns:
        Operations per second of all threads, or of one GPU; an addition and a multiplication are two. Measured with a
        tile's product in the L1 cache for our kernels, with a linear layer on large square matrices for torch.
    """
    on_cpu = device.type == "cpu"
    if on_cpu and native.computes(model.encoder, precision):
        return library.peak(precision, torch.get_num_threads(), seconds)
    dtype, side = prepacked.PRECISIONS[precision], PEAK_SIDE if on_cpu else GPU_PEAK_SIDE
    plain = torch.nn.Linear(side, side, device=device)
    layer = prepacked.linear(plain, dtype) if on_cpu else plain.to(dtype)
    with torch.inference_mode():
        one = torch.ones(side, side, dtype=dtype, device=device)
        layer(one)
        finish(device)
        begun, rounds = time.perf_counter(), 0
        while time.perf_counter() < begun + seconds:
            layer(one)
            finish(device)
            rounds += 1
        return 2 * side**3 * rounds / (time.perf_counter() - begun)


def typical_pack(rows: Sequence[Encoded], tokens: int = SPEED_TOKENS) -> Pack:
    """A pack of about this many tokens, made by repeating the rows; at least one row."""
    chosen: list[Encoded] = []
    count = 0
    while count < tokens:
        row = rows[len(chosen) % len(rows)]
        if chosen and count + len(row.ids) > tokens:
            break
        chosen.append(row)
        count += len(row.ids)
    chosen.sort(key=lambda row: -len(row.ids))
    return pack(chosen, torch.arange(len(chosen)).numpy())


def speeds(engines: Mapping[str, CpuEngine | Engines], one: Pack) -> dict[str, float]:
    """The current speed of engines on a pack.

    Args:
        engines: by precision.
        one: rows laid end to end.

    Returns:
        Tokens per second of each, the best of several interleaved rounds; takes well under a second.
    """
    for engine in engines.values():
        engine.logits(one)  # warm-up: allocates memory, starts threads
    best, begun = dict.fromkeys(engines, math.inf), time.perf_counter()
    for number in range(SPEED_ROUNDS[1]):
        if number >= SPEED_ROUNDS[0] and time.perf_counter() > begun + SPEED_SECONDS:
            break
        # Interleaved: if the machine slows down, all are affected.
        best = {name: min(best[name], _seconds(engine, one)) for name, engine in engines.items()}
    return {name: len(one.ids) / seconds for name, seconds in best.items()}


def _seconds(engine: CpuEngine | Engines, one: Pack) -> float:
    begun = time.perf_counter()
    engine.logits(one)
    return time.perf_counter() - begun


def key_of(artifact: Artifact, device: torch.device = CPU) -> dict[str, Any]:
    """What measurements of a function on this machine depend on, as JSON.

    Args:
        artifact: the function.
        device: the device.

    Returns:
        Processor or GPUs, kernels, versions, hashes of theta and omega, thresholds and temperature.
    """
    said = artifact.parameters()
    here: dict[str, Any] = {"gpus": gpus()}
    if device.type == "cpu":
        kernels = {name: kernels_of(artifact.model, name) for name in abi.PRECISIONS}
        here = {"cpu": cpu_model(), "kernels": kernels}
    return {
        **here,
        "versions": {"berthead": version("berthead"), "torch": torch.__version__},
        "theta_sha256": said["theta_sha256"],
        "omega_sha256": said["omega_sha256"],
        "task": artifact.task.to_json(),
        "gate": artifact.run.get("gate"),
    }


def speed_name() -> str:
    """The key of saved speeds, which also depend on the threads."""
    return f"tokens a second, {torch.get_num_threads()} threads"


def measured(key: Mapping[str, Any]) -> dict[str, Any]:
    """The saved measurements of this key; empty: none, or not readable."""
    try:
        kept = json.loads(_place(key).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) and kept.get("of") == _plain(key) else {}


def keep(key: Mapping[str, Any], measurements: Mapping[str, Any]) -> bool:
    """Save measurements in the user's cache folder, added to existing ones.

    Args:
        key: what they depend on.
        measurements: by name, as JSON.

    Returns:
        Whether they could be saved; otherwise they are measured again.
    """
    place = _place(key)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_json(place, measured(key) | {"of": key} | {**measurements}, compact=True)
    except OSError:
        return False
    return True


def _place(key: Mapping[str, Any]) -> Path:
    """The file of a key: in $BERTHEAD_HOME, or the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return Path(os.environ.get("BERTHEAD_HOME") or cache / "berthead") / "measured" / f"{digest}.json"


def _plain(key: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(key))
