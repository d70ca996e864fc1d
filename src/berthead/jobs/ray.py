"""Parts of a job on a Ray cluster: rows go to actors and bytes come back, so no disk is shared.

Each actor prepares the function once, and has the next part waiting while it computes one. The parts of a dead actor
are computed by another.
"""

from __future__ import annotations

import io
import os
import secrets
import socket
import sys
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from berthead.engine.cpu import use_threads
from berthead.engine.threads import available_threads
from berthead.errors import BertheadError, OutputError, UsageError
from berthead.formats.output import Output
from berthead.jobs.job import computed_by
from berthead.jobs.work import PartBytes, Work, compute_part
from berthead.kernels.library import SWITCH
from berthead.options import PredictOptions
from berthead.predict.joined import JoinedPredictor
from berthead.predict.predictor import Predictor
from berthead.predict.reading import prefetched
from berthead.records import Row

LOCAL = "local"
AHEAD = 2  # parts that an actor has: one is computed, one waits
MOST_DEATHS = 4  # of actors with one part, or before the first is ready
CONNECT_S = 10
PATIENCE_S = 30  # after which the user hears that there are no free processors


class RayPool:
    """Actors on a Ray cluster, as many as it has room for.

    Args:
        options: `ray` is the cluster's address (a program that is connected uses its cluster), `threads` the
            processors of an actor (None: those of this process, or of the smallest node if fewer), `device`
            whether each has a GPU.
        quiet: no message while there are no free processors.

    Example:
        >>> pool = RayPool(PredictOptions(ray="auto"))  # doctest: +SKIP
        >>> predict_file(model.predictor, "rows.csv", "answers.csv", PredictOptions(), pool=pool)  # doctest: +SKIP
    """

    def __init__(self, options: PredictOptions, quiet: bool = False) -> None:
        self.options, self.quiet = options, quiet
        self.threads, self.size = 0, 0
        self._ray: Any = None
        self._ours = False

    def __enter__(self) -> Self:
        self._ray = _imported()
        self._ours = not self._ray.is_initialized()
        if self._ours:
            _connect(self._ray, self.options)
        try:
            nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
            self.threads, self.size = room(nodes, self.options)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        # Where torch computes, its threads are among what decides the bytes; they are the actors'.
        use_threads(self.threads)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ours:
            self._ray.shutdown()

    def compute(
        self, work: Work, output: Output, parts: Iterator[tuple[int, Iterator[Row]]], by: Mapping[str, Any]
    ) -> Generator[PartBytes]:
        """Compute parts on the cluster, to the same bytes as here.

        Args:
            work: the computation on the rows; it is put into the cluster once.
            output: what is written.
            parts: numbers and rows, read when an actor has room for them.
            by: versions and kernels that every node must have.

        Yields:
            The parts, as they are finished.

        Raises:
            UsageError: a node would compute other bytes, or cannot compute at all.
            OutputError: the actors of a part keep dying.
        """
        if not isinstance(work.predictor, Predictor | JoinedPredictor):
            raise UsageError("--ray", "this is an exported function", "a model folder that berthead fit made")
        crew = _Crew(self._ray, self, self._ray.put((work, output)), by)
        try:
            yield from crew.compute((number, list(rows)) for number, rows in parts)
        finally:
            crew.dismiss()


def room(nodes: list[dict[str, float]], options: PredictOptions) -> tuple[int, int]:
    """How many threads an actor has, and how many actors a cluster has room for.

    Args:
        nodes: the resources of each, under Ray's names.
        options: threads and device.

    Returns:
        Threads of an actor, and actors.

    Raises:
        UsageError: there is no room for one.

    Example:
        >>> room([{"CPU": 8.0}, {"CPU": 5.0}, {"memory": 1e9}], PredictOptions(threads=2))
        (2, 6)
    """
    gpus = options.device == "cuda"
    useful = [node for node in nodes if node.get("CPU", 0) >= 1 and (not gpus or node.get("GPU", 0) >= 1)]
    if not useful:
        raise UsageError("--ray", f"no node of the cluster has a {'GPU' if gpus else 'processor'}", "at least one")
    most = [int(min(node["CPU"], node["CPU"] / node["GPU"] if gpus else node["CPU"])) or 1 for node in useful]
    threads = options.threads or min(available_threads(), *most)
    size = sum(int(min(node["CPU"] // threads, node["GPU"] if gpus else node["CPU"])) for node in useful)
    if not size:
        largest = max(int(node["CPU"]) for node in useful)
        raise UsageError("--threads", f"is {threads}", f"at most {largest}, the processors of the largest node")
    return threads, size


def _imported() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        saw, allowed = f"Ray cannot be imported ({error})", "the extra `ray`"
        raise UsageError("--ray", saw, allowed, "Install it: pip install 'berthead[ray]'") from error
    return ray


def _connect(ray: Any, options: PredictOptions) -> None:
    """Start a Ray here, or connect to the one that is named."""
    address = options.ray or LOCAL
    local = {"num_cpus": max(available_threads(), options.threads or 0), "include_dashboard": False}
    if address == LOCAL and not Path("~/.ray/auth_token").expanduser().exists():
        # Ray would leave a token there, and clusters that were started before it would refuse the next job.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        _knock(address)
        ray.init(address, log_to_driver=False, logging_level="error", **(local if address == LOCAL else {}))
    except (OSError, OverflowError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        saw = f"no Ray cluster answers ({str(error).splitlines()[0].rstrip('.')})"
        allowed = "local, HOST:PORT of the cluster's head node, or auto on a machine of the cluster"
        raise UsageError(f"--ray {address}", saw, allowed, "Start one: ray start --head") from error


def _knock(address: str) -> None:
    """Raise OSError at once if nobody listens: Ray itself would try for two minutes."""
    host, colon, port = address.rpartition(":")
    if colon and host and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()


@dataclass(eq=False, slots=True)
class _Member:
    """An actor, and how many parts it has."""

    actor: Any
    parts: int = 0


@dataclass(slots=True)
class _Task:
    """A part to compute, its rows in the object store, and how many actors died on it."""

    number: int
    rows: Any
    deaths: int = 0


class _Crew:
    """The actors of one job, and which parts they have."""

    def __init__(self, ray: Any, pool: RayPool, work: Any, by: Mapping[str, Any]) -> None:
        self._ray, self._pool, self._work, self._by = ray, pool, work, by
        self._ready: list[_Member] = []
        self._starting: dict[Any, _Member] = {}
        self._running: dict[Any, tuple[_Member, _Task]] = {}
        self._again: list[_Task] = []
        self._failed_starts = 0
        self._told = pool.quiet
        gpus = int(pool.options.device == "cuda")
        # Not Ray's own restarts: a restarted actor waits for its old place, while others are idle.
        self._kind = self._ray.remote(_Actor).options(num_cpus=pool.threads, num_gpus=gpus, max_restarts=0)
        for _ in range(pool.size):
            self._start()

    def compute(self, parts: Iterator[tuple[int, list[Row]]]) -> Iterator[PartBytes]:
        """The parts, as they are finished."""
        tasks = (_Task(number, self._ray.put(rows)) for number, rows in parts)
        while self._hand_out(tasks) or self._running or self._again:
            for ref in self._arrived():
                if ref in self._starting:
                    self._welcome(ref)
                elif (computed := self._taken(ref)) is not None:
                    yield computed

    def dismiss(self) -> None:
        """End all actors."""
        for member in {*self._ready, *self._starting.values()}:
            self._ray.kill(member.actor)

    def _start(self) -> None:
        switch = os.environ.get(SWITCH)
        actor = self._kind.remote([self._work], self._pool.threads, switch)
        self._starting[actor.computed_by.remote()] = _Member(actor)

    def _hand_out(self, tasks: Iterator[_Task]) -> bool:
        """Give parts to actors with room for them; False: there are no more parts to read."""
        for room in range(1, AHEAD + 1):
            for member in self._ready:
                if member.parts >= room:
                    continue
                task = self._again.pop() if self._again else next(tasks, None)
                if task is None:
                    return False
                member.parts += 1
                self._running[member.actor.compute.remote(task.number, task.rows)] = member, task
        return True

    def _arrived(self) -> list[Any]:
        """Finished parts, and actors that are ready."""
        waiting = [*self._running, *self._starting]
        while not (done := self._ray.wait(waiting, timeout=PATIENCE_S)[0]):
            if not self._ready and not self._told:
                self._told = True
                print("waiting for free processors in the Ray cluster; see: ray status", file=sys.stderr, flush=True)
        return list(done)

    def _welcome(self, ref: Any) -> None:
        """Accept a ready actor if it computes the same bytes."""
        member = self._starting.pop(ref)
        try:
            by = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            self._failed_starts += 1
            if self._failed_starts == MOST_DEATHS:
                saw = f"the actors cannot start: {str(error).strip().splitlines()[-1]}"
                fix = "Each node needs this Python, berthead, memory for the model, and this ~/.ray/auth_token."
                raise UsageError("--ray", saw, fix=fix) from error
            self._start()
            return
        other = [f"{name} is {by.get(name)}, here {here}" for name, here in self._by.items() if by.get(name) != here]
        if other:
            fix = f"Install the same versions; if the processors differ, set {SWITCH}=avx2"
            raise UsageError("--ray", f"the results of a node would differ: {'; '.join(other)}", fix=fix)
        self._failed_starts = 0
        self._ready.append(member)

    def _taken(self, ref: Any) -> PartBytes | None:
        """A finished part; None: its actor died, and it will be computed again."""
        member, task = self._running.pop(ref)
        member.parts -= 1
        try:
            computed: PartBytes = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, BertheadError) else error) from None
        except self._ray.exceptions.RayError as error:
            self._lost(member, task, error)
            return None
        return computed

    def _lost(self, member: _Member, task: _Task, error: Exception) -> None:
        """Queue a part again, and replace its dead actor."""
        task.deaths += 1
        if task.deaths == MOST_DEATHS:
            saw = f"{MOST_DEATHS} actors died with part {task.number}: {str(error).strip().splitlines()[0]}"
            fix = "Give more memory, or smaller parts (--part-rows). Finished parts are kept: go on with --resume."
            raise OutputError("--ray", saw, fix=fix) from error
        self._again.append(task)
        if member in self._ready:
            self._ready.remove(member)
            self._ray.kill(member.actor)
            self._start()


class _Actor:
    """A process of the cluster that computes parts.

    Args:
        work: a reference to the work and the output; in a list, so that Ray does not fetch it itself.
        threads: threads of this process.
        switch: which kernels are used, as in the driver's environment.
    """

    def __init__(self, work: list[Any], threads: int, switch: str | None) -> None:
        import ray

        if switch is not None:
            os.environ[SWITCH] = switch
        use_threads(threads)  # before the engine is made
        self.work: Work
        self.output: Output
        self.work, self.output = ray.get(work[0])

    def computed_by(self) -> dict[str, Any]:
        """Versions and kernels of this process."""
        return computed_by(self.work)

    def compute(self, number: int, rows: list[Row]) -> PartBytes:
        """Compute one part; chunks are read while others are computed."""
        answers, errors = io.BytesIO(), io.BytesIO()
        counts = compute_part(self.work, self.output, prefetched(self.work.read(rows)), answers, errors)
        return PartBytes(number, answers.getvalue(), errors.getvalue(), counts)
