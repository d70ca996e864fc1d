"""Writes src/berthead/options/keywords.py: the options as typed keywords, for editors and type checkers.

python tools/keywords.py           # write it anew
python tools/keywords.py --check   # exit 1 where it is out of date
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

from berthead.options import ESTIMATOR_OPTIONS, JOB_OPTIONS, LOAD_OPTIONS, ROW_OPTIONS, FitOptions, PredictOptions
from berthead.options.base import Options

PATH = Path(__file__).resolve().parent.parent / "src" / "berthead" / "options" / "keywords.py"
HEAD = '''"""The options as typed keywords, which editors complete. Made by tools/keywords.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict
'''
# A path may be given as one, and a share as a number; the records hold texts.
WIDER = {"encoder": "str | Path", "base": "str | Path | None", "cache": "str | Path | None",
         "valid": "float | str | Path | None", "label": "str | Sequence[str] | None",
         "choices": "str | Sequence[str] | None"}  # fmt: skip
ESTIMATOR_OWN = {
    "valid": "float | tuple[Any, Any] | None", "random_state": "Any", "verbose": "bool", "class_weight": "str | None",
}  # fmt: skip


def typed_dict(name: str, doc: str, kind: type[Options], only: Sequence[str] = (), **more: str) -> str:
    """A TypedDict of the fields of a record.

    Args:
        name: of the class.
        doc: its docstring.
        kind: the record.
        only: the fields wanted; empty: all.
        more: fields besides, with their types.
    """
    hints = get_type_hints(kind)
    lines = [f"class {name}(TypedDict, total=False):", f'    """{doc}"""', ""]
    for spec in fields(kind):
        if spec.name not in more and (not only or spec.name in only):
            hint = hints[spec.name]
            lines.append(f"    {spec.name}: {WIDER.get(spec.name, hint.__name__ if isinstance(hint, type) else hint)}")
    return "\n".join([*lines, *(f"    {field}: {hint}" for field, hint in more.items())])


def content() -> str:
    """The whole module."""
    parts = [
        typed_dict("FitKeywords", "Options of `berthead.fit`.", FitOptions),
        typed_dict("LoadKeywords", "Options of `berthead.load`.", PredictOptions, LOAD_OPTIONS),
        typed_dict("JobKeywords", "Options of `Fitted.predict_file`.", PredictOptions, JOB_OPTIONS),
        typed_dict("RowKeywords", "How labelled rows are read.", PredictOptions, ROW_OPTIONS),
        typed_dict(
            "EstimatorKeywords", "Parameters of the estimators.", FitOptions, ESTIMATOR_OPTIONS, **ESTIMATOR_OWN
        ),
    ]
    return "\n\n\n".join([HEAD.rstrip("\n"), *parts]) + "\n"


def main() -> None:
    """Write the module, or with --check say whether it is out of date."""
    if "--check" in sys.argv:
        old = PATH.read_text(encoding="utf-8") != content()
        print("src/berthead/options/keywords.py is out of date; run: python tools/keywords.py" if old else "", end="")
        raise SystemExit(old)
    PATH.write_text(content(), encoding="utf-8")


if __name__ == "__main__":
    main()
