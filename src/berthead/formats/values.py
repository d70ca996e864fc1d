"""Values of rows as text and as JSON."""

from __future__ import annotations

import json
from datetime import date, time
from typing import Any

# Half a surrogate pair is no UTF-8; as \ud800 it is valid JSON, and readable elsewhere.
ESCAPE = "backslashreplace"


def json_of(value: Any) -> str:
    """A value as JSON; types that JSON does not have become the nearest one."""
    return json.dumps(value, ensure_ascii=False, default=_plain)


def text_of(value: Any) -> str:
    """Text as it is; a date as its ISO form; anything else as JSON."""
    if isinstance(value, str):
        return value
    written = json_of(value)
    return str(json.loads(written)) if written.startswith('"') else written


def _plain(value: Any) -> Any:
    """The nearest JSON value of a type that JSON does not have."""
    if hasattr(value, "tolist"):  # numpy, scalar or array
        return value.tolist()
    if isinstance(value, date | time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8", ESCAPE)
    if isinstance(value, set | frozenset):
        return list(value)
    return str(value)  # Decimal among them: no digit is lost
