"""Pack -> logits by ONNX Runtime, without torch."""

from __future__ import annotations

import ctypes
import os
from itertools import pairwise
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np

from berthead.engine.forks import fork_lock
from berthead.engine.threads import available_threads, startable
from berthead.errors import ModelError, UsageError
from berthead.records import FloatArray, IntArray, Pack
from berthead.text.bounds import Tables, check_pack

INSTALL = "pip install 'berthead[runtime]'"
# ONNX Runtime sends data on its use to Microsoft unless this is set. Source: its Privacy.md.
NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"
# Older versions read weights from any path that the graph names.
OLDEST = (1, 24)


class OnnxEngine:
    """A loaded graph of `berthead export`; safe to call from many threads.

    Args:
        graph: the file.
        tables: the table sizes, for bounds checks.
        threads: processor threads; None: all that this process may use.

    Raises:
        UsageError: ONNX Runtime is not installed.
        ModelError: it cannot read the graph.
    """

    def __init__(self, graph: Path, tables: Tables, threads: int | None = None) -> None:
        self.precision, self.workers, self.graph, self.tables = "fp32", 1, graph, tables
        self.threads = startable(threads or available_threads())
        self._graph, self._lock = graph.absolute(), fork_lock()
        self._identity = _identity(self._graph)
        self._session, self.version = _session(graph, self.threads)
        _ENGINES.add(self)
        self._names = [one.name for one in self._session.get_inputs()]
        if not {"ids"} <= set(self._names) <= {"ids", "segments"}:
            raise ModelError(str(graph), f"has the inputs {self._names}", "a graph that berthead export wrote")

    def logits(self, pack: Pack) -> FloatArray:
        """Logits of the pack's rows, float32 [rows, ...], or of its tokens, [tokens, ...].

        Rows of one length are computed together, so the graph needs neither padding nor a mask.
        """
        check_pack(pack, self.tables)
        lengths, found, session = pack.lengths, [], self._session or self._again()
        edges = np.flatnonzero(np.diff(lengths, prepend=-1, append=-1)).tolist()
        for first, end in pairwise(edges):
            tokens = slice(int(pack.starts[first]), int(pack.starts[end]))
            shape = end - first, int(lengths[first])
            known = {"ids": pack.ids[tokens].reshape(shape), "segments": pack.segments[tokens].reshape(shape)}
            values = self._run(session, {name: known[name] for name in self._names})
            found.append(values.reshape(-1, values.shape[-1]))
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _run(self, session: Any, known: dict[str, IntArray]) -> FloatArray:
        from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument

        try:
            values: FloatArray = session.run(["logits"], known)[0]
        except (Fail, InvalidArgument) as error:  # older folders lack the sizes of the graph's tables
            saw = f"does not compute these tokens ({' '.join(str(error).split())[:200]})"
            fix = "Export the function again."
            raise ModelError(str(self.graph), saw, "tokens that the graph's tables hold", fix) from error
        return values

    def computed_by(self) -> dict[str, Any]:
        """Everything that decides the last bits of numbers: the runtime's version and its threads."""
        return {"onnxruntime": self.version, "threads": self.threads}

    def leave_session(self) -> None:
        """In a forked child: make a new session when there is work for it.

        The old session's threads are in the parent. Deleting it would wait for them, so it is never deleted.
        """
        if self._session is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._session))
            self._session = None

    def _again(self) -> Any:
        """A session of the same graph."""
        with self._lock:
            if self._session is None:
                if _identity(self._graph) != self._identity:
                    saw = "was changed or removed between loading it and forking this process"
                    raise ModelError(str(self._graph), saw, "the file that was loaded", "Load the function again.")
                self._session, _ = _session(self._graph, self.threads)
            return self._session


_ENGINES: WeakSet[OnnxEngine] = WeakSet()


def _leave_sessions() -> None:
    for engine in list(_ENGINES):
        engine.leave_session()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_sessions)


def _identity(graph: Path) -> list[tuple[int, ...] | None]:
    """The identity of the files of a graph and its weights."""
    found: list[tuple[int, ...] | None] = []
    for path in (graph, graph.with_name(f"{graph.name}.data")):
        try:
            about = path.stat()
        except OSError:
            found.append(None)
        else:
            found.append((about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns))
    return found


def _session(graph: Path, threads: int) -> tuple[Any, str]:
    """An ONNX Runtime session, and the runtime's version."""
    # No telemetry. The variable is read when the library is imported.
    os.environ.setdefault(NO_TELEMETRY, "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise UsageError("--engine onnx", f"needs a package ({error})", "", f"Install it: {INSTALL}") from error
    version = onnxruntime.__version__
    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        allowed = f"{'.'.join(map(str, OLDEST))} or newer"
        raise UsageError("--engine onnx", f"onnxruntime has version {version}", allowed, f"Install it: {INSTALL}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Memory plans are kept for every shape ever seen: with rows of any length they only grow.
    options.enable_mem_pattern = False
    # Waiting threads yield the processor.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        providers = ["CPUExecutionProvider"]
        # Its fallback prints to stdout.
        return onnxruntime.InferenceSession(str(graph), options, providers=providers, enable_fallback=0), version
    except Exception as error:  # the library's own errors have no common base
        reason = " ".join(str(error).split())
        raise ModelError(
            str(graph), f"cannot be read ({reason[:200]})", "a graph that berthead export wrote"
        ) from error
