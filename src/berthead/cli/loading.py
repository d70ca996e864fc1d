"""Loading the model of a command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from berthead.errors import ModelError, counted
from berthead.options import LOAD_OPTIONS

if TYPE_CHECKING:
    from berthead.fitted import Fitted


def load(model: str, given: dict[str, Any]) -> Fitted[Any]:
    """The function of a folder; of a joined folder all functions as one."""
    from berthead import fitted

    options: Any = {name: given.get(name) for name in LOAD_OPTIONS}
    return fitted.load(model, **options)


def load_one(model: str, given: dict[str, Any]) -> Fitted:
    """The function of a folder; for a joined folder the error says how to name one."""
    loaded = load(model, given)
    if loaded.kind == "joined":
        fix = f"Name one of them: {model.rstrip('/')}/{next(iter(loaded))}"
        raise ModelError(model, f"holds {counted(len(loaded), 'function')}", "the folder of one", fix)
    return loaded
