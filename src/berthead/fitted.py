"""The fitted function: answers, metrics, parameters, and its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from berthead.answering import Answering
from berthead.engine.cpu import find_device
from berthead.errors import UsageError
from berthead.function import artifact as artifacts
from berthead.function import folder as folders
from berthead.function.artifact import Artifact
from berthead.function.function import replay
from berthead.function.parameters import Parameters
from berthead.options import PredictOptions
from berthead.predict.precision import Choice, choose
from berthead.predict.predictor import Predictor


class Fitted(Answering):
    """A fitted function Predict(BERT(x)), ready to be applied; safe to call from many threads.

    Args:
        artifact: the function's parts.
        options: precision, device and token budget.

    Example:
        >>> model = load("tickets-model")  # doctest: +SKIP
        >>> model.predict("My parcel never came").answer  # doctest: +SKIP
        'delivery'
    """

    def __init__(self, artifact: Artifact, options: PredictOptions | None = None) -> None:
        self.artifact = artifact
        self.options = options or PredictOptions()
        self.warnings: list[str] = []

    @property
    def function(self) -> Artifact:
        """Its parts."""
        return self.artifact

    @cached_property
    def choice(self) -> Choice | None:
        """The precision that `auto` took, and why; None: the options name one."""
        if self.options.precision != "auto":
            return None
        return choose({"": self.artifact}, find_device(self.options.device))

    @cached_property
    def predictor(self) -> Predictor:
        """The function with its weights laid out for this processor, or on the GPUs."""
        precision = self.choice.precision if self.choice else self.options.precision
        device = find_device(self.options.device, precision)
        return Predictor(self.artifact, precision, self.options.token_budget, device)

    def __getstate__(self) -> dict[str, Any]:
        # The prepared weights lie as this processor wants them: they are made again where it is unpickled.
        engine = {name: getattr(self.options, name) for name in ("precision", "device", "token_budget")}
        return {"artifact": self.artifact, "warnings": self.warnings, "engine": engine}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["artifact"], PredictOptions(**state["engine"]))  # type: ignore[misc]
        self.warnings = state["warnings"]

    def verify(self) -> float:
        """Replay the golden examples, in float32 unless the options name another precision.

        Returns:
            The largest relative difference of a logit.

        Raises:
            GateError: the answers are not the ones that were saved.
        """
        # What `auto` takes answers alike, but its logits are others.
        exact = self.options.precision == "auto"
        predictor = Predictor(self.artifact, device=find_device(self.options.device)) if exact else self.predictor
        return replay(self.artifact, predictor.logits)

    @property
    def theta(self) -> Parameters:
        """The encoder's parameters, under the names of its checkpoint."""
        return Parameters(self.artifact.theta())

    @property
    def omega(self) -> Parameters:
        """The head's parameters, under the names of model.safetensors."""
        return Parameters(self.artifact.omega())

    def with_parameters(
        self, theta: Mapping[str, Tensor] | None = None, omega: Mapping[str, Tensor] | None = None
    ) -> Fitted:
        """The same architecture with other parameters: another function.

        Temperature, thresholds and the range of numbers stay as they were fitted, for other parameters or not. Golden
        examples and hashes are those of the new function; the scores of the old one are left out of its record.

        Args:
            theta: of the encoder, such as another function's `theta`; None: as they are.
            omega: of the head; None: as they are.

        Returns:
            The function; this one stays as it is.

        Raises:
            ModelError: a tensor is missing, left over, misshapen or not finite.

        Example:
            >>> mean = Parameters.mean([model.theta, other.theta])  # doctest: +SKIP
            >>> model.with_parameters(theta=mean).save("between")  # doctest: +SKIP
        """
        given = [None if one is None else one if isinstance(one, Parameters) else Parameters(one)
                 for one in (theta, omega)]  # fmt: skip
        return Fitted(artifacts.with_parameters(self.artifact, *given), self.options)

    def info(self) -> dict[str, Any]:
        """The formula as fitted: task, encoder, head, hashes of theta and omega, labels, metrics, versions."""
        return self.artifact.describe()

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write the model folder; it is whole or absent.

        Args:
            folder: where to.
            overwrite: replace a model folder that exists.

        Raises:
            OutputError: it cannot be written.
        """
        folders.save(self.artifact, Path(folder), overwrite)

    def export_onnx(self, folder: str | Path, overwrite: bool = False) -> float:
        """Write the function as an ONNX graph with all that its answers need; `load` reads it, without torch too.

        Args:
            folder: where to; it is whole or absent.
            overwrite: replace a folder that exists.

        Returns:
            The largest relative difference of a golden example's logit in ONNX Runtime.

        Raises:
            ModelError: the head is of another package.
            UsageError: `onnx` or `onnxruntime` is not installed.
            OutputError: the folder cannot be written.
            GateError: the graph answers otherwise.
        """
        from berthead.export.onnx_folder import write_onnx

        return write_onnx(self.artifact, Path(folder), overwrite)

    def export_hf(self, folder: str | Path, overwrite: bool = False) -> list[str]:
        """Write the function as a plain folder of transformers, without berthead.json and the golden examples.

        Args:
            folder: where to; it is whole or absent.
            overwrite: replace a model folder that exists.

        Returns:
            What to know of it, as lines: the class that loads it, and what berthead does beyond that class.

        Raises:
            OutputError: the folder cannot be written.
        """
        from berthead.export.hf_folder import write_hf

        return write_hf(self.artifact, Path(folder), overwrite)

    def merged(self) -> Fitted:
        """The same function as one that needs no other folder: LoRA's change is part of the encoder.

        Returns:
            The function; `save` writes a model folder of its own.

        Raises:
            UsageError: it is one already.
        """
        if self.artifact.adapter is None:
            raise UsageError("merge", "not an adapter folder", "one made by --adapt lora")
        return Fitted(replace(self.artifact, adapter=None), self.options)
