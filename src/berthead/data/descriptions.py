"""Labels with descriptions: a YAML file of what each label means, as rows of text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from berthead.data.labels import Labels, text_of_label
from berthead.errors import UsageError, shown
from berthead.options.config_file import load_yaml
from berthead.records import Example

_EXAMPLE = "late: the parcel has not come yet"
_KEYS = ("description", "examples")


def read_descriptions(path: Path) -> list[Example]:
    """The descriptions of labels, and example texts.

    Args:
        path: a YAML file that maps each label to its description, to a list of texts, or to a mapping of `description`
            and `examples`.

    Returns:
        A row for each text, with its label as the target.

    Raises:
        UsageError: the file cannot be read; a label has no text; a text has no label.
    """
    where = f"--labels {path}"
    rows = []
    for label, value in load_yaml(path, "labels to descriptions", _EXAMPLE, as_texts=True).items():
        name = str(label).strip()
        if not name:
            saw = f"has a description without a label, {shown(value)[:60]}"
            raise UsageError(where, saw, f"lines such as `{_EXAMPLE}`")
        texts = _texts(value, f"{where}: {name}")
        rows += [Example(text, target=name, where=f"{path}: {name}") for text in texts]
    if not rows:
        raise UsageError(where, "is empty", f"lines such as `{_EXAMPLE}`")
    return rows


def _texts(value: Any, where: str) -> list[str]:
    """The texts of one label."""
    if isinstance(value, dict):
        for key in value:
            if key not in _KEYS:
                raise UsageError(f"{where}: {key}", "is not known", " or ".join(_KEYS))
        examples = value.get("examples") or []
        if not isinstance(examples, list):
            raise UsageError(f"{where}: examples", f"is {shown(examples)[:60]}", "a list of texts")
        value = [*([value["description"]] if value.get("description") else []), *examples]
    texts = value if isinstance(value, list) else [value]
    for text in texts:
        if not isinstance(text, str):
            raise UsageError(where, f"holds {shown(text)[:60]}", "a text")
        if not text.strip():
            raise UsageError(where, "has no description", f"lines such as `{_EXAMPLE}`")
    if not texts:
        raise UsageError(where, "has no description", f"lines such as `{_EXAMPLE}`")
    return [" ".join(text.split()) for text in texts]


def with_descriptions(rows: Sequence[Example], described: Sequence[Example]) -> tuple[list[Example], list[str]]:
    """Rows, and the descriptions of their labels as further rows.

    Args:
        rows: with labels as targets.
        described: the result of `read_descriptions`.

    Returns:
        All rows, descriptions with the labels of the rows that read the same; and notes on labels that are on one side
        only.

    Example:
        >>> rows = [Example("it broke", target=1), Example("it works", target=0)]
        >>> more, notes = with_descriptions(rows, [Example("a fault", target="1")])
        >>> more[-1].target, notes
        (1, ['labels without a description: "0"'])
    """
    labels = Labels.from_values(row.target for row in rows)
    by_text = {text_of_label(name): name for name in labels.names}
    found = [Example(one.text, target=by_text.get(one.target, one.target), where=one.where) for one in described]
    told = {one.target for one in described}
    lacking = [shown(text) for text in by_text if text not in told]
    extra = list(dict.fromkeys(shown(one.target) for one in described if one.target not in by_text))
    notes = [f"labels without a description: {', '.join(lacking[:8])}"] if lacking else []
    notes += [f"labels with a description and without a row: {', '.join(extra[:8])}"] if extra else []
    return [*rows, *found], notes
