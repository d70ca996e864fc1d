"""What the tests of exported functions share: ONNX Runtime, answers side by side, and Python without torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from conftest import Ran, shell_env

import berthead
from berthead.records import Prediction

TOLERANCE = 1e-5
# Everything that a fit or a file format needs, and an exported function does not.
BLOCKED = ("torch", "safetensors", "pyarrow", "sklearn", "scipy", "pandas", "polars", "onnx", "transformers", "yaml")
WITHOUT = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name.partition(".")[0])
sys.meta_path.insert(0, Blocked())
"""


def session(path: Path) -> Any:
    """A graph in ONNX Runtime, without berthead."""
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def run_graph(graph: Any, ids: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """What a graph says of rows of one length."""
    known = {"ids": ids, "segments": segments}
    return graph.run(None, {one.name: known[one.name] for one in graph.get_inputs()})[0]


def exported(fitted: Any, folder: Path) -> Any:
    """The function as it comes back from its export."""
    assert fitted.export_onnx(folder) <= 1e-4
    return berthead.load(folder)


def same(ours: Iterable[Prediction], theirs: Iterable[Prediction]) -> int:
    """That answers are the same, and probabilities to 1e-5; how many there were."""
    count = 0
    for one, other in zip(ours, theirs, strict=True):
        count += 1
        assert one.error == other.error
        if isinstance(one.answer, float) and one.score is None:
            assert one.answer == pytest.approx(other.answer, abs=1e-4)
        elif one.spans is None or not isinstance(one.answer, list):
            assert (one.answer, type(one.answer)) == (other.answer, type(other.answer))
        assert one.tags == other.tags
        assert (one.n_tokens, one.n_windows, one.truncated) == (other.n_tokens, other.n_windows, other.truncated)
        assert one.score == pytest.approx(other.score, abs=TOLERANCE)
        assert one.probabilities == pytest.approx(other.probabilities, abs=TOLERANCE)
        spans = [[(x.start, x.end, x.text, x.label, x.window) for x in side.spans or ()] for side in (one, other)]
        assert spans[0] == spans[1]
        scores = [[x.score for x in side.spans or ()] for side in (one, other)]
        assert scores[0] == pytest.approx(scores[1], abs=TOLERANCE)
    return count


def without(code: str, *words: object, blocked: tuple[str, ...] = BLOCKED, cwd: Path | None = None) -> Ran:
    """Python in a process of its own in which these packages cannot be imported."""
    whole = WITHOUT.format(blocked=blocked) + code
    done = subprocess.run(
        [sys.executable, "-c", whole, *map(str, words)], capture_output=True, encoding="utf-8", cwd=cwd,
        env=shell_env(), timeout=120, check=False,
    )  # fmt: skip
    return Ran(done.returncode, done.stdout, done.stderr)


CLI = """
sys.argv[0] = "berthead"
from berthead.cli import main
main()
"""


def cli_without(*words: object, blocked: tuple[str, ...] = BLOCKED, cwd: Path | None = None) -> Ran:
    """The command line in such a process."""
    return without(CLI, *words, blocked=blocked, cwd=cwd)
