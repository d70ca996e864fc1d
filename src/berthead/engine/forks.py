"""Forks: the child has the memory of this process, but none of its threads."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from typing import Any
from weakref import WeakSet

from berthead.errors import MachineError

# OpenMP's omp_pause_soft: the threads end, and start again when there is work.
_PAUSE_SOFT = 1

_LOCKS: WeakSet[Any] = WeakSet()
# One fork at a time: two that take the same locks in different orders would deadlock.
_FORKING = threading.RLock()
_held: list[Any] = []
_is_paused, _is_alone = False, False


def fork_lock() -> Any:
    """A lock that is never held in a forked child: a fork waits until no other thread holds it.

    Returns:
        A `threading.RLock`: a thread that holds it may fork.

    Example:
        >>> lock = fork_lock()
        >>> with lock:
        ...     pass
    """
    lock = threading.RLock()
    _LOCKS.add(lock)
    return lock


def refuse_child(process: int, where: str, saw: str, fix: str) -> None:
    """Refuse to use in a forked child what only the parent can use.

    Args:
        process: the id of the process that made it.
        where: what cannot be used, for the error.
        saw: why not.
        fix: what to do instead.

    Raises:
        MachineError: this is another process.

    Example:
        >>> refuse_child(os.getpid(), "--device cuda", "a GPU does not survive a fork", "Load it in the child.")
    """
    if os.getpid() != process:
        raise MachineError(where, saw, fix=fix)


def is_alone() -> bool:
    """Whether torch is limited to one thread: this process was forked, and its OpenMP did not survive."""
    return _is_alone


def _pause_openmp() -> bool:
    """End the OpenMP threads of this thread; returns whether that worked.

    In a child, GNU's OpenMP waits forever for threads that only the parent has.
    Source: OpenMP 5.0, 3.2.44 omp_pause_resource_all.
    """
    try:
        return int(ctypes.CDLL(None).omp_pause_resource_all(_PAUSE_SOFT)) == 0
    except (AttributeError, OSError, TypeError):  # an older OpenMP, or none
        return False


def _before() -> None:
    global _is_paused
    _FORKING.acquire()
    for lock in list(_LOCKS):
        lock.acquire()
        _held.append(lock)
    _is_paused = _pause_openmp()


def _after() -> None:
    while _held:
        _held.pop().release()
    _FORKING.release()


def _after_in_child() -> None:
    global _is_alone
    _after()
    torch = sys.modules.get("torch")
    if torch is not None:
        _is_alone = _is_alone or not _is_paused
        # This also makes torch abandon its own pool, which at exit would wait for threads that are not here.
        torch.set_num_threads(1 if _is_alone else torch.get_num_threads())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after_in_child)
