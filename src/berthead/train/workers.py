"""The processes of a fit: started and watched for `--workers`, or joined if torchrun started them."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from berthead.errors import BertheadError, MachineError, UsageError, counted
from berthead.train.team import Team

# A process that does not answer for this long counts as dead.
_PATIENCE = timedelta(minutes=30)
# Time for processes to end, in seconds.
_GRACE = 5.0
# The exit code of a worker that ends because another process died.
_LEFT_ALONE = 75
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def is_writer(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process writes and prints; with torchrun only the first process does.

    Example:
        >>> torchrun = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
        >>> [is_writer(torchrun | {"RANK": rank}) for rank in "01"], is_writer({})
        ([True, False], True)
    """
    return not _is_started_by_torchrun(environment) or environment["RANK"] == "0"


@contextmanager
def team_of(workers: int, device: str, work: Callable[..., Any], *arguments: Any) -> Iterator[Team]:
    """A context with the processes of a fit.

    Args:
        workers: the number of processes on this machine.
        device: where they fit, `cpu` or `cuda`.
        work: what the other processes call, with `arguments` and their team; all must be picklable, because it passes
            through a pipe to our own processes.
        arguments: see above.

    Yields:
        The team, as seen by this process.

    Raises:
        UsageError: this machine cannot form such a team.
        MachineError: a process died.
    """
    if _is_started_by_torchrun(os.environ):
        if workers > 1:
            raise UsageError(f"--workers {workers}", "torchrun has already started the processes", "", "Leave it out.")
        with _joined(device, None, *(_number(name) for name in ("RANK", "WORLD_SIZE"))):
            local = _number("LOCAL_RANK", 0), _number("LOCAL_WORLD_SIZE", 1)
            yield Team(_number("RANK"), _number("WORLD_SIZE"), *local)
    elif workers == 1:
        yield Team()
    else:
        with _Workers(workers, device, (work, arguments)) as others, _joined(device, others.store, 0, workers):
            yield Team(0, workers, 0, workers, why=others.why)


def main() -> None:
    """Run a worker: its work comes through stdin, which stays open while the first process lives."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process handles Ctrl-C
    port, rank, size, device, (work, arguments) = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    store: Any = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=_PATIENCE)  # type: ignore[attr-defined]
    store.set(f"ready/{rank}", "")
    try:
        with _joined(device, store, rank, size):
            work(*arguments, Team(rank, size, rank, size, ends_early=True, why=_left_alone))
    except _LeftAlone:
        os._exit(_LEFT_ALONE)
    except BaseException as error:
        if not isinstance(error, BertheadError):
            traceback.print_exc()
            sys.stderr.flush()
        with contextlib.suppress(RuntimeError):
            store.set(f"said/{rank}", str(error) or type(error).__name__)
        os._exit(1)
    os._exit(0)


class _LeftAlone(MachineError):
    """Another process died."""


def _left_alone(error: Exception) -> MachineError:
    return _LeftAlone("fit", "another process of this fit has ended")


def _end_with_the_first() -> None:
    sys.stdin.buffer.read()
    os._exit(_LEFT_ALONE)


class _Workers:
    """The other processes on this machine."""

    def __init__(self, size: int, device: str, work: Any) -> None:
        self.size, self.device, self.work = size, device, work
        self.store: Any = None
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> _Workers:
        self.store = dist.TCPStore(  # type: ignore[attr-defined]
            "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=_PATIENCE
        )
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)} | _loopback()
        command = [sys.executable, "-c", "from berthead.train.workers import main; main()"]
        try:
            for rank in range(1, self.size):
                process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
                self.processes.append(process)
                assert process.stdin is not None
                with contextlib.suppress(BrokenPipeError):  # it has died already: `_wait` reports it
                    pickle.dump((self.store.port, rank, self.size, self.device, self.work), process.stdin)
                    process.stdin.flush()
            self._wait()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None:
            self._watch_until(lambda: all(process.poll() is not None for process in self.processes))
        self._end()

    def why(self, error: Exception) -> MachineError:
        """Why an exchange failed: what happened to the others."""
        self._watch_until(lambda: any(process.poll() not in (None, 0, _LEFT_ALONE) for process in self.processes))
        for rank, process in enumerate(self.processes, 1):
            code = process.poll()
            if code not in (None, 0, _LEFT_ALONE):
                return self._ended(rank, process.pid, code)
        return MachineError("fit", f"the workers cannot be reached ({str(error).splitlines()[0]})")

    def _ended(self, rank: int, number: int, code: int) -> MachineError:
        if self.store.check([f"said/{rank}"]):
            return MachineError(f"worker {rank} of {self.size - 1}", self.store.get(f"said/{rank}").decode())
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        fix = "Memory may be too small for all of them: give a lower --workers." if code == -signal.SIGKILL else ""
        return MachineError("fit", f"worker {rank} (process {number}) {how}", "", fix)

    def _wait(self) -> None:
        """Wait until all processes are ready, or one has died."""
        names = [f"ready/{rank}" for rank in range(1, self.size)]
        while not self.store.check(names):
            for rank, process in enumerate(self.processes, 1):
                if (code := process.poll()) is not None:
                    raise self._ended(rank, process.pid, code)
            time.sleep(0.02)

    def _watch_until(self, is_over: Callable[[], bool]) -> None:
        end = time.monotonic() + _GRACE
        while not is_over() and time.monotonic() < end:
            time.sleep(0.02)

    def _end(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
            if process.stdin:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
        self.store = None


@contextmanager
def _joined(device: str, store: Any, rank: int, size: int) -> Iterator[None]:
    """torch's group of processes: gloo on the CPU, and NCCL between GPUs."""
    if not dist.is_available():
        raise UsageError("--workers", "this torch was built without torch.distributed", "--workers 1")
    if dist.is_initialized():
        raise UsageError("--workers", "torch.distributed is already in use in this process", "--workers 1")
    if device == "cuda":
        _take_gpu(_number("LOCAL_RANK", rank))
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    own = _loopback() if store else {}
    os.environ.update(own)
    try:
        dist.init_process_group(backend, rank=rank, world_size=size, timeout=_PATIENCE, store=store)
    except RuntimeError as error:
        raise MachineError("fit", f"the processes cannot reach each other ({error})") from error
    finally:
        for name in own:
            del os.environ[name]
    try:
        yield
    finally:
        dist.destroy_process_group()


def _take_gpu(number: int) -> None:
    count = torch.cuda.device_count()
    if number >= count:
        fix = "Each process needs a GPU of its own: start fewer."
        raise UsageError(
            "--device cuda", f"process {number + 1} has no GPU: torch sees {counted(count, 'CUDA device')}", "", fix
        )
    torch.cuda.set_device(number)


def _loopback() -> dict[str, str]:
    """Use the loopback interface for processes on one machine, which needs no host name."""
    name = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    return {"GLOO_SOCKET_IFNAME": name} if name and "GLOO_SOCKET_IFNAME" not in os.environ else {}


def _is_started_by_torchrun(environment: Mapping[str, str]) -> bool:
    return all(name in environment for name in _VARIABLES) and environment["WORLD_SIZE"] != "1"


def _number(name: str, otherwise: int | None = None) -> int:
    value = os.environ.get(name, otherwise)
    try:
        return int(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise UsageError(name, f"is {value!r}", "a whole number, as torchrun sets it") from None
