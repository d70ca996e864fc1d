"""The interface of a fitted function, whatever computes it: how inputs are read, and what logits mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias, TypeVar, cast

from berthead.data.forms import FORMS
from berthead.errors import UsageError, listed
from berthead.tasks import Task
from berthead.text.tokenizer import Tokenizer
from berthead.text.windows import LengthPolicy


class Function(Protocol):
    """The interface of a fitted function, whatever computes it."""

    @property
    def kind(self) -> str:
        """The kind of its folder: one of `berthead.function.record.KINDS`."""
        ...

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
    def policy(self) -> LengthPolicy:
        """How long inputs are handled."""
        ...

    @property
    def golden(self) -> tuple[dict[str, Any], ...]:
        """Inputs with their logits, which `berthead.function.golden.replay` compares."""
        ...

    def identity(self) -> dict[str, Any]:
        """Everything that decides its answers, as JSON: its `identity_of`."""
        ...

    def describe(self) -> dict[str, Any]:
        """The content of berthead.json, without golden examples."""
        ...


class Functions(Protocol):
    """The interface of several functions that read the same input."""

    @property
    def kind(self) -> str:
        """`joined`."""
        ...

    @property
    def functions(self) -> Mapping[str, Function]:
        """Each by its name."""
        ...

    def describe(self) -> dict[str, Any]:
        """A description of each."""
        ...


AnyFunction: TypeAlias = Function | Functions
F = TypeVar("F", bound=Function)


def one_function(function: AnyFunction, verb: str) -> Function:
    """The function, for an operation on one function.

    Args:
        function: one, or several.
        verb: the operation, for the error.

    Raises:
        UsageError: there are several.
    """
    if function.kind != "joined":
        return cast("Function", function)
    names = list(cast("Functions", function).functions)
    saw = f"the model holds {len(names)} functions, {listed(names)}"
    fix = f'Name one: ["{names[0]}"], or the folder {names[0]} in the joined folder.'
    raise UsageError(verb, saw, "one function", fix)


def with_parameters(function: AnyFunction, verb: str) -> Function:
    """The function, for an operation that needs its parameters.

    Args:
        function: one, or several.
        verb: the operation, for the error.

    Raises:
        UsageError: there are several, or it is a graph.
    """
    one = one_function(function, verb)
    if one.kind == "onnx":
        saw, allowed = "the model is an exported function", "a model folder made by berthead fit"
        fix = "Use the one that was exported; exported functions are for predict, eval, verify and info."
        raise UsageError(verb, saw, allowed, fix)
    return one


def widest(functions: Mapping[str, F]) -> F:
    """The function that reads most of an input: if one reads tokens, that one."""
    return max(functions.values(), key=lambda one: FORMS[one.task.form].reads_words)


def identity_of(function: Function, parameters: Mapping[str, Any], head: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that decides a function's answers.

    Args:
        function: the function.
        parameters: `theta_sha256` and `omega_sha256`.
        head: the head's record.

    Returns:
        A JSON object, equal for equal functions.
    """
    policy = function.policy
    return {
        "theta_sha256": parameters["theta_sha256"],
        "omega_sha256": parameters["omega_sha256"],
        "task": {"name": function.task.name, **function.task.to_json()},
        "tokenizer_sha256": function.tokenizer.sha256,
        "head": {**head, "dropout": 0.0},
        "reading": {"max_tokens": policy.max_tokens, "on_long": policy.on_long, "stride": policy.stride},
    }
