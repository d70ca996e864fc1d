"""Golden examples: inputs with their logits, to check that a function still answers as when it was fitted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from berthead.data.forms import FORMS
from berthead.errors import GateError
from berthead.function.checks import golden_input
from berthead.function.protocol import Function
from berthead.records import Example, FloatArray, Prediction
from berthead.storage.model_files import RECORD
from berthead.tasks import Batch, Task

# Golden logits are replayed on other processors and in other orders: float32 noise, relative to their size.
GOLDEN_TOLERANCE = 1e-4
# Units of a golden example that are kept and compared: a long text has thousands.
GOLDEN_UNITS = 64


def has_units(task: Task) -> bool:
    """Whether an example may get several rows of logits."""
    return not FORMS[task.form].is_plain or task.level != "row"


def reads_pairs(task: Task, columns: Mapping[str, Any]) -> bool:
    """Whether its examples give rows of two texts: pairs, questions with contexts, or with choices."""
    return bool(columns["pair"]) or FORMS[task.form].second is not None


def by_example(function: Function, examples: Sequence[Example], logits: FloatArray) -> list[FloatArray]:
    """Split logits of all units by example."""
    inputs = function.task.encode(function.tokenizer, examples, function.policy)
    return Batch(examples, inputs).split(logits)


def replay(function: Function, logits_of: Callable[[list[Example]], FloatArray]) -> float:
    """Compare the golden examples' logits with those of a path now.

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
            fix = "The weights, the tokenizer or the arithmetic changed: copy the whole folder again."
            raise GateError(f"golden example {number}", saw, f"at most {GOLDEN_TOLERANCE:g} (relative)", fix)
        largest = max(largest, apart)
        _check_answer(function, example, golden, wanted, number)
    return largest


def written_answer(function: Function, example: Example, logits: FloatArray) -> dict[str, Any]:
    """What a function's task makes of an example's logits, as JSON.

    Args:
        function: the function.
        example: the example.
        logits: of all its units, [units, outputs].

    Returns:
        `answer`, `score`, and `probabilities` as pairs if there are any.
    """
    task = function.task
    inputs = [one.without_rows() for one in task.encode(function.tokenizer, [example], function.policy)]
    (answer,) = task.decode(logits, Batch([example], inputs))
    written = {"answer": task.written(answer), "score": answer.score}
    if answer.probabilities is not None:
        written["probabilities"] = [[label, share] for label, share in answer.probabilities.items()]
    return written


def _check_answer(function: Function, example: Example, golden: Mapping[str, Any], kept: Any, number: int) -> None:
    """Check that the task makes the same answer of the kept logits: by no arithmetic but its own."""
    said = golden.get("answer")
    if said is None:
        return
    found = json.loads(json.dumps(written_answer(function, example, kept.astype(np.float32))))
    for key in said.keys() | found.keys():
        if key not in said or key not in found or not _alike(found[key], said[key]):
            saw, allowed = (repr(side.get(key))[:100] for side in (found, said))
            fix = "The labels, the temperature or the thresholds changed: copy the whole folder again."
            raise GateError(f"golden example {number}", f"its {key} is {saw}", f"{allowed}, as in {RECORD}", fix)


def replay_answers(function: Function, predict: Callable[[list[Example]], Iterable[Prediction]]) -> None:
    """Compare the golden examples' answers, if the folder holds them, with those of a path now.

    Args:
        function: the fitted function.
        predict: the path: examples to predictions.

    Raises:
        GateError: an answer differs by more than float32 noise.
    """
    for number, golden in enumerate(function.golden, 1):
        if "prediction" not in golden:
            continue
        answers = (as_written(one) for one in predict([golden_input(golden)]))
        found, wanted = next(iter(answers)), golden["prediction"]
        for key in found:
            if key not in wanted or not _alike(found[key], wanted[key]):
                saw, said = (repr(side.get(key))[:100] for side in (found, wanted))
                raise GateError(f"golden example {number}", f"its {key} is {saw}", f"{said}, as in {RECORD}")


def as_written(prediction: Prediction) -> dict[str, Any]:
    """A prediction as stored in berthead.json, without the window: between equal windows rounding decides."""
    left_out = ("where", "error", "window")
    return {key: value for key, value in prediction.to_dict().items() if key not in left_out}


def _alike(found: Any, wanted: Any) -> bool:
    """Whether two stored values are equal up to float32 noise."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(_alike(value, wanted[key]) for key, value in found.items())
    if isinstance(found, list | tuple) and isinstance(wanted, list | tuple):
        return len(found) == len(wanted) and all(map(_alike, found, wanted))
    if isinstance(found, float) and isinstance(wanted, int | float):
        return abs(found - wanted) <= GOLDEN_TOLERANCE * max(1.0, abs(wanted))
    return bool(found == wanted)
