"""How many processor threads this process may use."""

from __future__ import annotations

import os
from pathlib import Path


def available_threads() -> int:
    """Threads that this process may use: affinity, cgroup quota and OMP_NUM_THREADS respected."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [affinity, _cgroup_quota()]
    words = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if words.isdecimal():
        limits.append(int(words))
    return max(1, min(limit for limit in limits if limit))


def _cgroup_quota() -> int:
    """Whole processors of the control group's quota; 0 if there is none."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, int(quota) // int(period)) if quota != "max" else 0
    except (OSError, ValueError, ZeroDivisionError):
        return 0
