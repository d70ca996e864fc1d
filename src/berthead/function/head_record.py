"""Heads as records: what a model folder says of its head, and the head from that."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from berthead import plugins
from berthead.errors import ModelError, listed
from berthead.model.families import FAMILIES
from berthead.model.heads import POOLED, POOLINGS, WINDOW_POOLINGS, JointHead, RowHead, TokenHead

_CRF = {one: f"crf.{one}" for one in ("first", "last", "step")}


def make_head(record: Mapping[str, Any], width: int) -> nn.Module:
    """A head with random weights.

    Args:
        record: `kind` (`row`, `token`, `joint` or `own`), `outputs`, `dropout`; for rows `pooling`, `windows` and, if
            it is not tanh, `pooled`; for tokens `crf`; for joint `tags`, how many of the outputs belong to the tokens;
            for own `name`, and `package`, which a model folder says it is of.
        width: size of a token's vector.

    Returns:
        The head.

    Raises:
        ValueError: the record is not one of a head (or KeyError, TypeError).
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
    """What the model folder says of a head: the inverse of `make_head`.

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
    """The class of transformers that loads a folder with this head, and what its logits are.

    Args:
        head: the head.
        problem_type: the task's.
        family: the encoder's.

    Returns:
        `class` and `note`.
    """
    kind = FAMILIES[family]
    auto = {
        "question_answering": "QuestionAnswering",
        "token_classification": "TokenClassification",
        "multiple_choice": "MultipleChoice",
    }.get(problem_type, "SequenceClassification")
    encoder_only = {"class": f"{kind.stem}Model", "note": "AutoModel loads the encoder; the head is berthead's own."}
    tokens = {"class": f"{kind.stem}ForTokenClassification"}
    if not isinstance(head, RowHead | TokenHead | JointHead):
        return encoder_only | {"note": "AutoModel loads the encoder; the head is of another package."}
    pooled = isinstance(head, RowHead) and head.pooling == "pooler"
    if (auto if pooled or isinstance(head, TokenHead) else "TokenClassification") not in kind.classes:
        return encoder_only
    if isinstance(head, RowHead) and not pooled:
        place = {"mean": "the mean of its token logits over a row's tokens", "cls": "its logits at the first token"}
        note = (
            f"transformers has no class for this task with {head.pooling} pooling. AutoModelForTokenClassification "
            f"loads this folder, and {place[head.pooling]} is this folder's logits. AutoModelFor{auto} would put a "
            "random pooler in between."
        )
        return tokens | {"note": note}
    if isinstance(head, JointHead):
        note = "AutoModelForTokenClassification gives the tags' logits; the label's part of the head is berthead's own."
        return tokens | {"note": note}
    if isinstance(head, TokenHead) and head.crf:
        note = "AutoModelForTokenClassification gives the logits; the conditional random field is berthead's own."
        return tokens | {"note": note}
    return {"class": f"{kind.stem}For{auto}", "note": f"AutoModelFor{auto} gives this folder's logits."}


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
    """The pooler's activation where it is not BERT's."""
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
