"""The interface of what computes a fitted function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from berthead.options import PredictOptions
from berthead.predict.predictor import Applier

if TYPE_CHECKING:
    from berthead.predict.joined import JoinedPredictor
    from berthead.predict.precision import PrecisionChoice


class Engine(Protocol):
    """What computes a function: `TorchEngine` or `GraphEngine` of `berthead.predict`."""

    @property
    def options(self) -> PredictOptions:
        """The options of the computation."""
        ...

    @property
    def choice(self) -> PrecisionChoice | None:
        """The precision that `auto` chose, and why; None: the options name one."""
        ...

    @property
    def predictor(self) -> Applier | JoinedPredictor:
        """The function with its engine, prepared at first use."""
        ...

    def verify(self) -> float | dict[str, float]:
        """Replay the golden examples; GateError: a difference is above the tolerance."""
        ...
