"""Broken folders and files for minutes: python tools/fuzz.py --minutes 10 [model adapter onnx joined rows]

Each target runs in a process of its own, which is watched: a signal, an exception that is not berthead's, an answer
that changed without a word, or a case that takes longer than a minute is a failure. It is printed with the seed that
draws it again; tests/fuzzing.py says what is broken, and how.
"""

from __future__ import annotations

import argparse
import collections
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]
EXAMPLES = 50  # drawn from one seed
SLOWEST = 60  # seconds for one case
MEMORY = 8 * 2**30  # more than a case may take


def fuzz(target: str, home: Path, minutes: float, first: int) -> int:
    """Try cases of a target until the time is over; the number of failures."""
    import fuzzing
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from hypothesis import strategies as st

    soft = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (int(Path("/proc/self/statm").read_text().split()[0]) * 4096 + MEMORY, soft))
    tried, ends, failures, number = fuzzing.case(target, home), collections.Counter[str](), 0, first
    until = time.monotonic() + 60 * minutes

    def too_slow(*_: object) -> None:
        raise TimeoutError(f"a case took longer than {SLOWEST} s")

    signal.signal(signal.SIGALRM, too_slow)
    while time.monotonic() < until:

        @seed(number)
        @settings(
            max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink], print_blob=True,
        )  # fmt: skip
        @given(st.data())
        def once(data: object) -> None:
            signal.alarm(SLOWEST)
            try:
                ends[tried(data).split()[-1]] += 1
            finally:
                signal.alarm(0)

        (home / f"seed-{target}").write_text(str(number))
        try:
            once()
        except BaseException as error:
            failures += 1
            notes = [note for note in getattr(error, "__notes__", ()) if "reproduce" in note]
            error.__notes__ = []  # what was drawn: whole files
            print(f"{target}: seed {number} fails:\n{traceback.format_exc()}{''.join(notes)}", flush=True)
        number += 1
    print(f"{target}: {sum(ends.values())} cases, {dict(ends)}, {failures} failures", flush=True)
    return failures


def main() -> None:
    """Fuzz all targets at once, and end with 1 if one failed."""
    import fuzzing

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", default=[*fuzzing.KINDS, "rows"])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        fuzzing.base_folders(home)
        children = {}
        for target in given.targets:
            sys.stdout.flush()
            pid = os.fork()
            if pid == 0:
                os._exit(min(100, fuzz(target, home, given.minutes, given.seed)))
            children[pid] = target
        failed = 0
        while children:
            pid, status = os.wait()
            target, code = children.pop(pid), os.waitstatus_to_exitcode(status)
            failed += code != 0
            if code < 0:
                print(f"{target}: {signal.Signals(-code).name} at seed {(home / f'seed-{target}').read_text()}")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
