"""The command line in processes of its own that start at once: forked from one that has imported all it needs.

To import torch takes seconds, in each process anew. What is about the start itself (what is imported, the variables
that libraries read when they are loaded) takes a process of the other kind, conftest.fresh.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

PROGRAM = """
import atexit, importlib, json, os, pkgutil, resource, signal, socket, sys, threading, traceback
import sklearn.feature_extraction.text, sklearn.linear_model, sklearn.metrics, torch._dynamo
import berthead
from berthead.cli import main

for module in pkgutil.walk_packages(berthead.__path__, "berthead."):
    if not module.name.endswith(("__main__", "._native")):
        importlib.import_module(module.name)
sys.path.remove("")  # as an installed `berthead` runs: the current folder is no place for modules
control = socket.socket(fileno=int(sys.argv[1]))
signal.signal(signal.SIGINT, signal.SIG_IGN)
control.send(b"ready")
while True:
    message, files, _, _ = socket.recv_fds(control, 1 << 20, 3)
    if not message:
        os._exit(0)
    order = json.loads(message)
    if "ended" in order:
        pid, status = os.waitpid(order["ended"], os.WNOHANG)
        control.send(json.dumps(os.waitstatus_to_exitcode(status) if pid else None).encode())
        continue
    pid = os.fork()
    if pid == 0:
        break
    for file in files:
        os.close(file)
    control.send(json.dumps(pid).encode())

control.close()
for number, file in enumerate(files):
    os.dup2(file, number)
    os.close(file)
sys.stdin = open(0, encoding="utf-8", closefd=False)
sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
sys.stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
os.chdir(order["cwd"])
os.environ.clear()
os.environ.update(order["env"])
sys.path[:0] = [path for path in order["env"].get("PYTHONPATH", "").split(os.pathsep) if path not in sys.path]
importlib.invalidate_caches()
signal.signal(signal.SIGINT, signal.default_int_handler)
if order["largest_file"]:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (order["largest_file"],) * 2)
sys.argv = ["-c" if order["program"] else "berthead", *order["words"]]
code = 1
try:
    exec(order["program"], {"__name__": "__main__"}) if order["program"] else main()
    code = 0
except SystemExit as ended:
    code = ended.code
except BaseException:
    traceback.print_exc()
# As an interpreter ends, without the seconds that it takes to give back all that was imported.
threading._shutdown()
atexit._run_exitfuncs()
try:
    sys.stdout.flush()
except OSError:
    code = 120
os._exit(code)
"""


class Forked:
    """A process of the command line, with as much of subprocess.Popen as the tests ask for."""

    def __init__(self, forks: Forks, pid: int, stdout: IO[str], stderr: IO[str]) -> None:
        self.pid, self.stdout, self.stderr = pid, stdout, stderr
        self.returncode: int | None = None
        self._forks = forks

    def poll(self) -> int | None:
        """Its exit code, or the negative number of the signal that ended it; None while it runs."""
        if self.returncode is None:
            self.returncode = self._forks.ask({"ended": self.pid})
        return self.returncode

    def wait(self, timeout: float = 240) -> int:
        until = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("berthead", timeout)
            time.sleep(0.002)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = 240) -> tuple[str, str]:
        """All that it says on stdout and stderr, when it has ended."""
        said = ["", ""]

        def read(number: int, file: IO[str]) -> None:
            with file:
                said[number] = file.read()

        files = enumerate((self.stdout, self.stderr))
        readers = [threading.Thread(target=read, args=one, daemon=True) for one in files]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        return said[0], said[1]


class Forks:
    """Starts processes of the command line."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-c", PROGRAM, str(theirs.fileno())]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, env=dict(env), pass_fds=[theirs.fileno()], **pipes)
        theirs.close()
        assert self._control.recv(16) == b"ready", "the process that others are forked from has not started"

    def ask(self, order: dict, files: tuple[int, ...] = ()) -> int | None:
        socket.send_fds(self._control, [json.dumps(order).encode()], files)
        answer: int | None = json.loads(self._control.recv(64))
        return answer

    def start(
        self, *words: object, cwd: Path, env: Mapping[str, str], stdin: int | None = None, stdout: int | None = None,
        stderr: int | None = None, largest_file: int = 0, program: str = "",
    ) -> Forked:  # fmt: skip
        """`berthead words...`, or `python -c program words...`.

        Stdin, stdout and stderr are file descriptors, or pipes of ours; over largest_file bytes a write fails.
        """
        order = {
            "words": [str(word) for word in words], "program": program, "cwd": str(cwd), "env": dict(env),
            "largest_file": largest_file,
        }  # fmt: skip
        nothing, (out, out_end), (err, err_end) = os.open(os.devnull, os.O_RDONLY), os.pipe(), os.pipe()
        files = (
            nothing if stdin is None else stdin,
            out_end if stdout is None else stdout,
            err_end if stderr is None else stderr,
        )
        pid = self.ask(order, files)
        for file in (nothing, out_end, err_end):
            os.close(file)
        assert pid is not None
        return Forked(self, pid, open(out, encoding="utf-8"), open(err, encoding="utf-8"))

    def close(self) -> None:
        self._control.close()
        self._process.wait()
