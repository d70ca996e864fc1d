"""Checks of a model folder before anything in it is used."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from berthead.data.forms import FORMS
from berthead.errors import ModelError
from berthead.function.precision_report import PrecisionReport
from berthead.records import Example
from berthead.storage.model_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, INDEX, PART, PICKLES, RECORD, WEIGHTS


def refuse_strange_files(folder: Path) -> None:
    """Refuse a folder without a model, with files that could run, or with links that lead out of it.

    Args:
        folder: the model folder.

    Raises:
        ModelError: says what is strange.
    """
    if not os.path.isdir(folder):  # noqa: PTH112 - pathlib raises where a name is too long
        saw = "is a file" if os.path.exists(folder) else "does not exist"  # noqa: PTH110
        raise ModelError(str(folder), saw, "a model folder made by berthead fit")
    if not (folder / RECORD).is_file():
        fix = "To use it as an encoder: berthead fit --encoder FOLDER" if (folder / "config.json").is_file() else ""
        raise ModelError(str(folder), f"holds no {RECORD}", "a model folder made by berthead fit", fix)
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if is_strange(name):
            raise ModelError(str(folder), f"holds {name}", "only safetensors and JSON: pickles and code are refused")
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(folder.resolve()):
            raise ModelError(str(folder), f"{name} is a link to outside the folder", "files within the folder")
        if path.is_symlink() and not path.exists():
            raise ModelError(str(folder), f"{name} is a broken link", "files within the folder")
        if not path.is_file() and not path.is_dir():
            raise ModelError(str(folder), f"{name} is a pipe or a device", "regular files")


def is_strange(name: str) -> bool:
    """Whether a file or folder of this name does not belong in a model folder."""
    return any(Path(name.lower()).match(pattern) for pattern in (*PICKLES, "*.py", "*.so", "*.pyc"))


_KINDS = {
    WEIGHTS: ("a folder with an encoder of its own", (WEIGHTS, INDEX)),
    ADAPTER_WEIGHTS: ("an adapter folder", (ADAPTER_WEIGHTS, ADAPTER_CONFIG)),
    PART: ("a part of a joined folder", (PART,)),
}


def refuse_other_weights(folder: Path, file: str) -> None:
    """Refuse a folder that could be read as two different models.

    Args:
        folder: the model folder.
        file: its weights file, from berthead.json: model.safetensors, adapter_model.safetensors or
            part.safetensors.

    Raises:
        ModelError: it has files of another kind of folder.
    """
    kind = _KINDS[file][0]
    for name in (one for other, (_, names) in _KINDS.items() if other != file for one in names):
        if (folder / name).exists():
            saw = f"holds {name}, but {RECORD} says that it is {kind}"
            raise ModelError(str(folder), saw, "one of the two", "Copy the folder again.")


def check_record(record: Mapping[str, Any], positions: int) -> None:
    """Check that berthead.json has the entries that are read; ValueError, TypeError or KeyError if not."""
    head, columns, parameters, run = (record[key] for key in ("head", "columns", "parameters", "run"))
    pretrained = parameters["pretrained"]
    texts = [columns["text"], columns["label"], pretrained["name"], parameters["adapt"], head["kind"]]
    texts += columns.get("choices", [])
    if not all(isinstance(text, str) for text in texts) or not isinstance(columns["pair"], str | None):
        raise ValueError("a name is not a text; expected a text")
    if not isinstance(columns.get("separator"), str | None):
        raise ValueError("a separator is not a text; expected a text")
    if not isinstance(columns.get("intent"), str | None) or not isinstance(columns.get("choices", []), list):
        raise ValueError("a name is not a text; expected a text")
    if not columns.keys() <= {"text", "pair", "label", "choices", "intent", "separator", "tag_names"}:
        raise ValueError(
            f"columns are {sorted(columns)}; expected text, pair, label, choices, intent, separator, tag_names"
        )
    names = columns.get("tag_names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("tag_names is not a list of texts; expected one")
    for sha256 in (parameters["theta_sha256"], parameters["omega_sha256"], pretrained["theta_sha256"]):
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise ValueError(f"{sha256!r} is not a sha256; expected 64 hexadecimal digits")
    if record["on_long"] not in ("window", "truncate", "error"):
        raise ValueError(f"on_long is {record['on_long']!r}; expected window, truncate or error")
    stride = record.get("stride")
    if stride is not None and (type(stride) is not int or not 0 <= stride < record["max_tokens"]):
        raise ValueError(f"stride is {stride!r}; expected 0 to below max_tokens")
    if type(record["max_tokens"]) is not int or not 2 < record["max_tokens"] <= positions:
        raise ValueError(f"max_tokens is {record['max_tokens']!r}; expected 3 to {positions}, as config.json allows")
    if not isinstance(record["golden"], list):
        raise ValueError("golden is not a list; expected a list of examples")
    if not isinstance(run["versions"], dict) or not {"rows", "seed", "data_sha256"} <= run.keys():
        raise ValueError("run does not say what was fitted; expected versions, rows, seed and data_sha256")
    if "gate" in run:
        PrecisionReport.from_json(run["gate"])


def golden_example(example: Any, outputs: int, form: str = "text", *, many: bool = False) -> dict[str, Any]:
    """A golden example from berthead.json.

    Args:
        example: its entry in berthead.json.
        outputs: the task's outputs.
        form: of the task's rows.
        many: whether it has several units, each with logits.

    Returns:
        `text`, `pair`, `logits`, and `words`, `choices` or `answer` if it has them.

    Raises:
        ValueError: it is something else (or KeyError, TypeError).
    """
    text, pair, logits = example["text"], example["pair"], example["logits"]
    lists = {key: example[key] for key in ("words", "choices") if key in example}
    parts = [text, *(part for values in lists.values() for part in values)]
    if not all(isinstance(values, list) for values in lists.values()):
        raise ValueError("a golden example's words are not a list; expected a list of texts")
    if not all(isinstance(part, str) for part in parts) or not isinstance(pair, str | None):
        raise ValueError("a golden example is not a text; expected a text")
    if (len(lists.get("choices", ())) > 1) != bool(FORMS[form].choices) or (pair is None and FORMS[form].needs_pair):
        raise ValueError(f"a golden example has another form; expected {form!r}")
    rows = logits if many else [logits]
    for row in rows:
        if len(row) != outputs or not all(type(one) in (int, float) and math.isfinite(one) for one in row):
            raise ValueError(f"a golden example does not hold logits; expected {outputs} finite numbers")
    if "answer" in example and not isinstance(example["answer"], dict):
        raise ValueError("a golden example's answer is not an object; expected its answer and score")
    kept = {"answer": example["answer"]} if "answer" in example else {}
    numbers = [[float(one) for one in row] for row in rows]
    return {"text": text, "pair": pair, "logits": numbers if many else numbers[0]} | lists | kept


def golden_input(example: dict[str, Any]) -> Example:
    """The input of a golden example."""
    words, choices = example.get("words"), example.get("choices")
    return Example(
        example["text"], example["pair"], words=None if words is None else tuple(words),
        choices=None if choices is None else tuple(choices),
    )  # fmt: skip
