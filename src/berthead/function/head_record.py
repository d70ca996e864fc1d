"""Heads as records: a head to its entry in berthead.json, and back."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from berthead import plugins
from berthead.errors import ModelError, listed
from berthead.model.families import FAMILIES, Family
from berthead.model.heads import POOLED, POOLINGS, WINDOW_POOLINGS, JointHead, RowHead, TokenHead

_CRF = {one: f"crf.{one}" for one in ("first", "last", "step")}
_AUTO = {
    "question_answering": "QuestionAnswering",
    "token_classification": "TokenClassification",
    "multiple_choice": "MultipleChoice",
}
# Before the names of a head's weights that no class of transformers may take for its own.
_OWN_PREFIX = "berthead."
_REFUSED_NOTE = "Classes of transformers with a head do not give this folder's logits, and refuse it."


def make_head(record: Mapping[str, Any], width: int) -> nn.Module:
    """A head with random weights.

    Args:
        record: `kind` (`row`, `token`, `joint` or `own`), `outputs`, `dropout`; for rows `pooling`, `windows` and, if
            it is not tanh, `pooled`; for tokens `crf`; for joint `tags`, the number of outputs of the tokens;
            for own `name` and its `package`.
        width: size of a token's vector.

    Returns:
        The head.

    Raises:
        ValueError: not the record of a head (or KeyError, TypeError).
        ModelError: an own head whose package is not installed, or that cannot be made.
    """
    kind, outputs, dropout = record["kind"], record["outputs"], float(record["dropout"])
    if not 0 <= dropout <= 1 or type(record["dropout"]) not in (int, float):
        raise ValueError(f"dropout is {record['dropout']!r}; expected a number from 0 to 1")
    if type(outputs) is not int or outputs < 1:
        raise ValueError(f"outputs is {outputs!r}; expected a whole number from 1")
    if kind == "row":
        return _row(record, width, outputs, dropout)
    if kind == "token":
        return TokenHead(width, outputs, dropout, _crf(record))
    if kind == "joint":
        tags = record["tags"]
        if type(tags) is not int or not 0 < tags < outputs:
            raise ValueError(f"tags is {tags!r}; expected a whole number from 1 to {outputs - 1}")
        return JointHead(TokenHead(width, tags, dropout, _crf(record)), _row(record, width, outputs - tags, dropout))
    if kind == "own":
        return _own(record["name"], record.get("package"), width, outputs, dropout)
    raise ValueError(f"kind is {kind!r}; expected row, token, joint or own")


def head_record(head: Any, name: str | None, outputs: int, dropout: float) -> dict[str, Any]:
    """The record of a head: the inverse of `make_head`.

    Args:
        head: the head.
        name: of an own head, else None.
        outputs: logits a unit.
        dropout: as it was made with.

    Returns:
        The record.
    """
    kept: dict[str, Any]
    if isinstance(head, RowHead):
        kept = {"pooling": head.pooling, "windows": head.windows} | _pooled(head)
        return {"kind": "row", **kept, "outputs": outputs, "dropout": dropout}
    if isinstance(head, TokenHead):
        return {"kind": "token", "crf": head.crf, "outputs": outputs, "dropout": dropout}
    if isinstance(head, JointHead):
        kept = {"pooling": head.row.pooling, "windows": "mean", "crf": head.tokens.crf} | _pooled(head.row)
        return {"kind": "joint", **kept, "tags": head.tokens.out.out_features, "outputs": outputs, "dropout": dropout}
    package = plugins.package(plugins.HEADS, name or "")
    return {"kind": "own", "name": name, "package": package, "outputs": outputs, "dropout": dropout}


def row_part(head: Any) -> RowHead | None:
    """The part of a head that reads rows, or None."""
    part = head.row if isinstance(head, JointHead) else head
    return part if isinstance(part, RowHead) else None


def omega_names(head: Any, problem_type: str, family: str) -> dict[str, str]:
    """The head's weight names, each with the name that transformers gives it, or one of our own.

    Args:
        head: the head.
        problem_type: the task's.
        family: the encoder's.

    Returns:
        Our name to the name in model.safetensors.
    """
    linear = "qa_outputs" if problem_type == "question_answering" else "classifier"
    kind = FAMILIES[family]
    own = ("head.dense", "classifier")
    if isinstance(head, RowHead):
        layers = {"out": linear, "attend": "window_attention"}
        if head.dense is not None:
            dense, last = (kind.choice if problem_type == "multiple_choice" else kind.row) or own
            layers |= {"dense": dense, "out": last}
        return _named(head, layers)
    if isinstance(head, TokenHead):
        return _named(head, {"out": linear}, _CRF)
    if isinstance(head, JointHead):
        layers = {"tokens.out": linear, "row.out": "label_classifier", "row.dense": (kind.choice or own)[0]}
        return _named(head, layers, {f"tokens.{ours}": theirs for ours, theirs in _CRF.items()})
    return {name: f"head.{name}" for name in head.state_dict()}


def _named(
    head: nn.Module, layers: Mapping[str, str], whole: Mapping[str, str] = MappingProxyType({})
) -> dict[str, str]:
    names = {}
    for name in head.state_dict():
        layer, _, part = name.rpartition(".")
        names[name] = whole[name] if name in whole else f"{layers[layer]}.{part}"
    return names


def transformers_class(head: Any, problem_type: str, family: str) -> dict[str, str]:
    """The transformers class that loads a folder with this head, and what its logits are.

    Args:
        head: the head.
        problem_type: the task's.
        family: the encoder's.

    Returns:
        `class` and `note`. A class that ends in `Model` is the encoder's: no class with a head gives these logits.
    """
    kind, auto = FAMILIES[family], _class_with_head(head, problem_type, family)
    if auto is None:
        whose = "berthead's own" if isinstance(head, RowHead | TokenHead | JointHead) else "of another package"
        notes = [f"AutoModel loads the encoder; the head is {whose}.", _REFUSED_NOTE, *_recipe(head)]
        return {"class": f"{kind.stem}Model", "note": " ".join(notes)}
    note = f"AutoModelFor{auto} gives this folder's logits."
    if isinstance(head, JointHead):
        note = (
            "AutoModelForTokenClassification gives the tags' logits; the label's part of the head is berthead's own. "
            "Other classes with a head refuse the folder."
        )
    elif isinstance(head, TokenHead) and head.crf:
        note = "AutoModelForTokenClassification gives the logits; the conditional random field is berthead's own."
    return {"class": f"{kind.stem}For{auto}", "note": note}


def wrapped_before_4(head: Any, problem_type: str, family: str) -> str:
    """The class that PEFT wraps for an adapter folder of format_version 3: that for tokens if no class pools so."""
    its_class, kind = transformers_class(head, problem_type, family)["class"], FAMILIES[family]
    pools = isinstance(head, RowHead) and head.pooling != "pooler"
    return f"{kind.stem}ForTokenClassification" if pools and "TokenClassification" in kind.classes else its_class


def _class_with_head(head: Any, problem_type: str, family: str) -> str | None:
    """The suffix of the transformers class that gives this head's logits, or None."""
    auto = _AUTO.get(problem_type, "SequenceClassification")
    if isinstance(head, JointHead):
        auto = "TokenClassification"
    elif not isinstance(head, TokenHead) and not (isinstance(head, RowHead) and head.pooling == "pooler"):
        return None
    return auto if auto in FAMILIES[family].classes else None


def _recipe(head: Any) -> list[str]:
    """How a row's logits are computed from the encoder's vectors, if by one linear layer."""
    if not isinstance(head, RowHead) or head.dense is not None:
        return []
    vector = POOLINGS[head.pooling].words
    return [f"{_OWN_PREFIX}classifier.weight and .bias, applied to {vector}, give them."]


@dataclass(frozen=True, slots=True)
class StoredHead:
    """How a weights file stores a head.

    transformers fills missing weights with random numbers, and only warns. If none of its classes matches the head, or
    one matches only a part of it, the other weights have names of our own, and an empty tensor has the name of each
    layer that other classes would look for: a wrong shape is an error.

    Args:
        names: the head's names, from `omega_names`, to the names in the file.
        blocked: layers of those transformers classes that must not load the file.
        prefix: these classes' name of their encoder.
    """

    names: Mapping[str, str]
    blocked: tuple[str, ...] = ()
    prefix: str = ""

    @classmethod
    def of(cls, head: Any, problem_type: str, family: str) -> StoredHead:
        """The storage that folders of today use.

        Args:
            head: the head.
            problem_type: the task's.
            family: the encoder's.
        """
        kind, auto = FAMILIES[family], _class_with_head(head, problem_type, family)
        names = omega_names(head, problem_type, family).values()
        if auto is not None and not isinstance(head, JointHead):
            return cls({name: name for name in names})  # a checkpoint of that class, as transformers writes it
        layers = _head_layers(kind)
        kept = layers[auto] if auto else ()
        others = [[one for one in found if one not in kept][:1] for other, found in layers.items() if other != auto]
        blocked = tuple(dict.fromkeys(one for found in others for one in found))
        stored = {name: name if name.rpartition(".")[0] in kept else f"{_OWN_PREFIX}{name}" for name in names}
        return cls(stored, blocked, kind.prefix)

    @property
    def empty(self) -> tuple[str, ...]:
        """The names of the empty tensors in model.safetensors."""
        # A pooler is a part of the encoder, which AutoModel is to load. transformers takes its prefix off a name once
        # if what is left is a weight of the class: only a class that calls its encoder so has a weight of this name.
        return tuple(
            f"{self.prefix}.{layer}.weight" if layer.startswith(f"{self.prefix}.") else f"{layer}.weight"
            for layer in self.blocked
        )


def _head_layers(kind: Family) -> dict[str, tuple[str, ...]]:
    """The layers of transformers' classes besides the encoder, the last layer first."""
    last = ("classifier",)
    return {
        "SequenceClassification": kind.row[::-1] if kind.row else last,
        "TokenClassification": last,
        "QuestionAnswering": ("qa_outputs",),
        "MultipleChoice": kind.choice[::-1] if kind.choice else last,
    }


def _row(record: Mapping[str, Any], width: int, outputs: int, dropout: float) -> RowHead:
    pooling, windows = record["pooling"], record.get("windows", "mean")
    if pooling not in POOLINGS:
        raise ValueError(f"pooling is {pooling!r}; expected one of {listed(POOLINGS)}")
    if windows not in WINDOW_POOLINGS:
        raise ValueError(f"windows is {windows!r}; expected one of {listed(WINDOW_POOLINGS)}")
    pooled = record.get("pooled", "tanh")
    if pooled not in POOLED:
        raise ValueError(f"pooled is {pooled!r}; expected one of {listed(POOLED)}")
    return RowHead(width, outputs, pooling, dropout, windows, pooled)


def _pooled(head: RowHead) -> dict[str, str]:
    """The pooler's activation if it is not BERT's."""
    return {} if head.pooled == "tanh" else {"pooled": head.pooled}


def _crf(record: Mapping[str, Any]) -> bool:
    if type(record["crf"]) is not bool:
        raise ValueError(f"crf is {record['crf']!r}; expected true or false")
    return bool(record["crf"])


def _own(name: Any, package: Any, width: int, outputs: int, dropout: float) -> nn.Module:
    if not isinstance(name, str):
        raise ValueError(f"an own head's name is {name!r}; expected a text")
    made = plugins.load(plugins.HEADS, name, package)
    if (
        not inspect.isclass(made)
        or not issubclass(made, nn.Module)
        or getattr(made, "level", None) not in ("row", "token")
    ):
        allowed = 'a torch.nn.Module with `level = "row"` or "token"'
        level = f" with level {made.level!r}" if hasattr(made, "level") else ""
        raise ModelError(f"head {name!r}", f"is {made!r}{level}", allowed)
    try:
        head: nn.Module = made(width=width, outputs=outputs, dropout=dropout)
    except Exception as error:  # whatever the package's own code raises
        saw = f"cannot be made ({type(error).__name__}: {error})"
        raise ModelError(f"head {name!r}", saw, "a class that Head(width, outputs, dropout) makes") from error
    return head


def state_named(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors under other names."""
    return {names[name]: tensor for name, tensor in state.items()}
