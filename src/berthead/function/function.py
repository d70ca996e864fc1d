"""A fitted function without its parameters: how inputs are read, what logits mean, and its golden examples."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from berthead.data.examples import FORMS
from berthead.errors import GateError
from berthead.function.checks import golden_input
from berthead.records import Example, FloatArray
from berthead.tasks import Batch, Task
from berthead.text.tokenizer import Tokenizer
from berthead.text.windows import Reading

# Golden logits are replayed on other processors and in other orders: float32 noise, relative to their size.
GOLDEN_TOLERANCE = 1e-4
# Units of a golden example that are kept and compared: a long text has thousands.
GOLDEN_UNITS = 64


class Function(Protocol):
    """What is known of a fitted function, whatever computes it."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to token numbers."""
        ...

    @property
    def task(self) -> Task:
        """The meaning of the logits."""
        ...

    @property
    def columns(self) -> dict[str, Any]:
        """The columns it was fitted on."""
        ...

    @property
    def reading(self) -> Reading:
        """How long inputs are read."""
        ...

    @property
    def golden(self) -> tuple[dict[str, Any], ...]:
        """Inputs with their logits, which `replay` compares."""
        ...

    def identity(self) -> dict[str, Any]:
        """Everything that decides its answers, as JSON: `identity_of` it."""
        ...


def identity_of(function: Function, parameters: Mapping[str, Any], head: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that decides a function's answers.

    Args:
        function: the function.
        parameters: `theta_sha256` and `omega_sha256`.
        head: what a model folder says of the head.

    Returns:
        A JSON object: equal ones are of equal functions.
    """
    reading = function.reading
    return {
        "theta_sha256": parameters["theta_sha256"],
        "omega_sha256": parameters["omega_sha256"],
        "task": {"name": function.task.name, **function.task.to_json()},
        "tokenizer_sha256": function.tokenizer.sha256,
        "head": {**head, "dropout": 0.0},
        "reading": {"max_tokens": reading.max_tokens, "on_long": reading.on_long, "stride": reading.stride},
    }


def has_units(task: Task) -> bool:
    """Whether an example may get several rows of logits."""
    return not FORMS[task.form].is_plain or task.level != "row"


def reads_pairs(task: Task, columns: Mapping[str, Any]) -> bool:
    """Whether rows of two texts are made of its examples: pairs, questions with contexts, or with choices."""
    return bool(columns["pair"]) or FORMS[task.form].second is not None


def by_example(function: Function, examples: Sequence[Example], logits: FloatArray) -> list[FloatArray]:
    """Logits of all units as those of each example."""
    inputs = function.task.inputs(function.tokenizer, examples, function.reading)
    return Batch(examples, inputs).split(logits)


def replay(function: Function, logits_of: Callable[[list[Example]], FloatArray]) -> float:
    """Compare the golden examples' logits with what a path gives now.

    Args:
        function: the fitted function.
        logits_of: the path: examples to logits [units, outputs].

    Returns:
        The largest difference, relative to the logits' size in the task's unit.

    Raises:
        GateError: it is above the tolerance, or there is nothing to replay.
    """
    if not function.golden:
        raise GateError("verify", "the model holds no golden examples", "", "Fit it again.")
    examples = [golden_input(one) for one in function.golden]
    unit, middle = function.task.affine()
    largest = 0.0
    found = by_example(function, examples, logits_of(examples))
    for number, (example, golden, rows) in enumerate(zip(examples, function.golden, found, strict=True), 1):
        wanted = np.array(golden["logits"], dtype=np.float64).reshape(-1, function.task.outputs)
        if len(wanted) != min(len(rows), GOLDEN_UNITS):
            apart = np.inf  # other words or tokens than were found at fit
        else:
            gaps = np.abs(rows[: len(wanted)] - wanted) / np.maximum(unit, np.abs(wanted - middle))
            apart = float(gaps.max()) if gaps.size else 0.0
        if not apart <= GOLDEN_TOLERANCE:
            saw = f"logits differ by {apart:.2g} on {json.dumps(example.text[:60], ensure_ascii=False)}"
            fix = "The weights, the tokenizer or the arithmetic changed: take a whole copy of the folder."
            raise GateError(f"golden example {number}", saw, f"at most {GOLDEN_TOLERANCE:g} (relative)", fix)
        largest = max(largest, apart)
    return largest
