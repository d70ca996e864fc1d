"""The model that a command is given."""

from __future__ import annotations

from typing import Any

_FLAGS = ("base", "precision", "device", "token_budget", "threads")


def load(model: str, given: dict[str, Any]) -> Any:
    """One function, or of a joined folder all of them."""
    from berthead import joining

    return joining.load(model, **{name: given.get(name) for name in _FLAGS})


def load_one(model: str, given: dict[str, Any]) -> Any:
    """One function: of a joined folder the error says how to name one."""
    from berthead import api

    return api.load(model, **{name: given.get(name) for name in _FLAGS})
