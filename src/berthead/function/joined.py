"""Several fitted functions on one encoder, as one value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from berthead.data.forms import FORMS
from berthead.errors import ModelError, UsageError, listed
from berthead.function.adapter import THETA
from berthead.function.artifact import Artifact
from berthead.function.checks import is_strange
from berthead.function.protocol import widest
from berthead.model.sharing import shared_layers
from berthead.storage.model_files import RECORD

_NAME = r"[^\W_][\w.-]{0,99}"


@dataclass(frozen=True, slots=True)
class JoinedFunctions:
    """Fitted functions that read the same input.

    Args:
        functions: by name, of one encoder and one form of input.

    Raises:
        ModelError: two of them cannot be joined.
        UsageError: there is none, or an invalid name.
    """

    kind: ClassVar[str] = "joined"

    functions: Mapping[str, Artifact]

    def __post_init__(self) -> None:
        _check(self.functions)

    @property
    def reader(self) -> Artifact:
        """The function that reads most of an input: if one reads tokens, that one."""
        return widest(self.functions)

    @property
    def shared_layers(self) -> int:
        """Number of layers that all share, from the bottom up; 0: only the embeddings, -1: not even these."""
        return shared_layers([one.model for one in self.functions.values()])

    def describe(self) -> dict[str, Any]:
        """A description of each function, and the number of shared layers."""
        functions = {name: one.describe() for name, one in self.functions.items()}
        return {
            "kind": self.kind,
            "functions": functions,
            "pretrained": self.reader.pretrained,
            "shared_layers": self.shared_layers,
        }


def _check(functions: Mapping[str, Artifact]) -> None:
    """Check that functions can be joined."""
    if not functions:
        raise UsageError("join", "got no function", "at least one")
    for name in functions:
        if not is_name(name):
            raise UsageError("join", f'has a function called "{name}"', "a name of letters, digits, `_`, `-` and `.`")
    (first, one), *others = functions.items()
    for name, other in others:
        different = [what for what, a, b in _sides(one, other) if a != b]
        if different:
            allowed = "functions that were fitted on one encoder, and read the same form of input"
            raise ModelError(name, f"differs from {first} in {listed(different)}", allowed)


def _sides(one: Artifact, other: Artifact) -> list[tuple[str, Any, Any]]:
    return [
        ("the pre-trained encoder", one.pretrained["theta_sha256"], other.pretrained["theta_sha256"]),
        ("its sizes", one.model.encoder.config, other.model.encoder.config),
        ("the tokenizer", one.tokenizer.sha256, other.tokenizer.sha256),
        ("the form of input", form_of(one), form_of(other)),
    ]


def form_of(artifact: Artifact) -> tuple[str, bool]:
    """The input form of a function, and whether it is a pair; texts and words are one form."""
    return read_as(artifact.task.form), bool(artifact.columns["pair"])


def read_as(form: str) -> str:
    """The name of a form, one for texts and words."""
    return "text" if FORMS[form].reads_words else form


def is_name(name: str) -> bool:
    """Whether a function may have this name, which is also a folder's name."""
    return name not in (THETA, RECORD) and not is_strange(name) and re.fullmatch(_NAME, name) is not None
