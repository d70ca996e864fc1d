"""What a fitted function asks of whatever computes it."""

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
        """How it computes."""
        ...

    @property
    def choice(self) -> PrecisionChoice | None:
        """The precision that `auto` took, and why; None: the options name one."""
        ...

    @property
    def predictor(self) -> Applier | JoinedPredictor:
        """The function, ready to be applied; prepared when it is first asked."""
        ...

    def verify(self) -> float | dict[str, float]:
        """Replay the golden examples; GateError: a difference is above the tolerance."""
        ...
