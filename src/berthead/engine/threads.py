"""How many processor threads this process may use."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path


def available_threads() -> int:
    """Threads that this process may use: affinity, cgroup quota and OMP_NUM_THREADS respected."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [affinity, _cgroup_quota()]
    words = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if words.isdecimal():
        limits.append(int(words))
    return max(1, min(limit for limit in limits if limit))


def startable(wanted: int) -> int:
    """How many of these threads the system lets this process compute with, 1 at least.

    A library whose own thread cannot start ends the process: so it is tried before. Two pools compute in turn; one
    thread more reads ahead, and the tokenizers' library has one a processor.
    """
    if wanted <= 1:
        return 1
    others = 1 + (os.cpu_count() or 1)
    return min(wanted, 1 + max(0, _started(2 * (wanted - 1) + others) - others) // 2)


def spare_threads() -> None:
    """Where the system gives few threads, keep other libraries from starting theirs; before they are imported.

    OpenBLAS, OpenMP and the tokenizers' library start one a processor, and one that cannot start ends the process.
    """
    enough = 4 * (os.cpu_count() or 1) + 8
    if _started(enough) < enough:
        os.environ |= dict.fromkeys(("OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS", "OMP_NUM_THREADS"), "1")
        os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _started(wanted: int) -> int:
    """How many of these threads could be started at once; they have ended."""
    stop, started = threading.Event(), list[threading.Thread]()
    with suppress(RuntimeError):
        for _ in range(wanted):
            thread = threading.Thread(target=stop.wait, daemon=True)
            thread.start()
            started.append(thread)
    stop.set()
    for thread in started:
        thread.join()
    return len(started)


def _cgroup_quota() -> int:
    """Whole processors of the control group's quota; 0 if there is none."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, int(quota) // int(period)) if quota != "max" else 0
    except (OSError, ValueError, ZeroDivisionError):
        return 0
