"""A fitted function computed by torch or our own kernels, prepared at first use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from berthead.engine.cpu import find_device, use_threads
from berthead.engine.forks import fork_lock
from berthead.errors import UsageError
from berthead.function import folder as model_folder
from berthead.function import joined_folder
from berthead.function.artifact import Artifact
from berthead.function.joined import JoinedFunctions
from berthead.options import PredictOptions
from berthead.predict.joined import JoinedPredictor
from berthead.predict.precision import PrecisionChoice, choose
from berthead.predict.predictor import Predictor


class TorchEngine:
    """Computes a function, or several on one encoder; safe to call from many threads.

    Args:
        function: the function or the functions.
        options: precision, device (joined functions use the first of several GPUs) and token budget.
    """

    def __init__(self, function: Artifact | JoinedFunctions, options: PredictOptions | None = None) -> None:
        self.function, self.options = function, options or PredictOptions()
        # Python 3.11's cached_property has a lock, which may stay locked forever in a forked child.
        self._lock = fork_lock()
        self._choice: PrecisionChoice | None = None
        self._predictor: Predictor | JoinedPredictor | None = None

    @property
    def choice(self) -> PrecisionChoice | None:
        """The precision that `auto` chose, and why; None: the options name one."""
        if self.options.precision != "auto":
            return None
        with self._lock:
            if self._choice is None:
                function = self.function
                functions = function.functions if isinstance(function, JoinedFunctions) else {"": function}
                self._choice = choose(functions, find_device(self.options.device))
            return self._choice

    @property
    def predictor(self) -> Predictor | JoinedPredictor:
        """The function with its weights packed for this processor, or on the GPUs."""
        with self._lock:
            if self._predictor is None:
                self._predictor = self._prepared()
            return self._predictor

    def _prepared(self) -> Predictor | JoinedPredictor:
        precision = self.choice.precision if self.choice else self.options.precision
        device = find_device(self.options.device, precision)
        if isinstance(self.function, JoinedFunctions):
            return JoinedPredictor(self.function.functions, precision, self.options.token_budget, device)
        return Predictor(self.function, precision, self.options.token_budget, device)

    def verify(self) -> float | dict[str, float]:
        """Replay the golden examples, in float32 unless the options name another precision.

        Returns:
            The largest relative difference of a logit; for several functions one for each name.

        Raises:
            GateError: a difference is above the tolerance.
        """
        if self.options.precision == "auto" and isinstance(self.function, Artifact):
            # The precision that `auto` chooses gives the same answers, but other logits.
            return Predictor(self.function, device=find_device(self.options.device)).verify()
        return self.predictor.verify()

    def __getstate__(self) -> dict[str, Any]:
        # The prepared weights are packed for this processor: they are made again after unpickling.
        return {"function": self.function, "options": self.options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def read_torch(
    folder: Path, record: Mapping[str, Any], options: PredictOptions
) -> tuple[Artifact | JoinedFunctions, TorchEngine]:
    """Read the folder of a function with its parameters, or of several.

    Args:
        folder: written by berthead.
        record: its berthead.json, as `berthead.function.record.read_record` gives it.
        options: the options of the computation; torch uses their threads from now on.

    Returns:
        The function and its engine.

    Raises:
        ModelError: the folder is broken, or not to be trusted.
        UsageError: an option that it does not support, or a device that torch does not find.
    """
    find_device(options.device, options.precision)
    use_threads(options.threads)
    function: Artifact | JoinedFunctions
    if record["kind"] == "joined":
        if options.base is not None:
            raise UsageError(f"--base {options.base}", f"{folder} holds an encoder of its own", "", "Leave it out.")
        function = joined_folder.read(folder, record)
    else:
        function = model_folder.read(folder, record, options.base)
    return function, TorchEngine(function, options)
