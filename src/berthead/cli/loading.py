"""The model that a command is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_FLAGS = ("base", "precision", "device", "token_budget", "threads")


def load(model: str, given: dict[str, Any]) -> Any:
    """One function, or of a joined folder all of them."""
    from berthead import loading

    return loading.load(model, engine=given.get("engine"), **{name: given.get(name) for name in _FLAGS})


def load_one(model: str, given: dict[str, Any]) -> Any:
    """One function: of a joined folder the error says how to name one."""
    from berthead.verbs import fit as api

    return api.load(model, **{name: given.get(name) for name in _FLAGS})


def load_scored(model: str, given: dict[str, Any]) -> Any:
    """One function, fitted or exported."""
    from berthead import exported

    return (load if exported.is_exported(Path(model)) else load_one)(model, given)
