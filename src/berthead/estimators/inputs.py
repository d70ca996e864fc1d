"""X and y of scikit-learn (lists, arrays, pandas, polars) as texts and rows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

import numpy as np

from berthead.data.forms import Form
from berthead.data.frames import collected
from berthead.data.labels import is_blank, plain
from berthead.errors import DataError, counted, shown


def in_memory(data: Any) -> Any:
    """Arrow's columns and tables as lists, a polars LazyFrame as its frame, a sparse matrix as an array."""
    data = collected(data)
    if hasattr(data, "toarray"):
        return data.toarray()
    if not hasattr(data, "to_pylist"):
        return data
    if not hasattr(data, "column_names"):
        return data.to_pylist()
    rows = [tuple(record.values()) for record in data.to_pylist()]
    return [row[0] for row in rows] if len(data.column_names) == 1 else rows


def texts_of(X: Any) -> list[Any]:
    """X as a list of texts, or of tuples of two texts."""
    X = in_memory(X)
    if hasattr(X, "to_numpy"):
        X = X.to_numpy()
    if isinstance(X, str):
        raise DataError("X", "got one text", "a list of texts", "Pass [text].")
    if isinstance(X, np.ndarray):
        if X.ndim == 2 and X.shape[1] in (1, 2):
            return [row[0] if X.shape[1] == 1 else tuple(row) for row in X.tolist()]
        if X.ndim != 1:
            raise DataError("X", f"has shape {X.shape}", "texts [rows], or pairs [rows, 2]", "Reshape your data.")
        return list(X.tolist())
    return [tuple(value) if isinstance(value, list) else value for value in X]


def refuse_blank(texts: Sequence[Any]) -> None:
    """Refuse values that are not texts, blank texts, and rows with more or fewer texts than the first."""
    wanted = "a tuple of two texts" if texts and isinstance(texts[0], tuple) else "a text"
    for row, text in enumerate(texts):
        parts = text if isinstance(text, tuple) else (text,)
        if len(parts) != (2 if wanted != "a text" else 1):
            raise DataError(f"X[{row}]", f"holds {counted(len(parts), 'text')}", wanted)
        for part in parts:
            if is_blank(part):
                raise DataError(f"X[{row}]", "is blank or NaN", wanted)
            if not isinstance(part, str):
                raise DataError(f"X[{row}]", f"is {type(part).__name__}", wanted)


def rows_of(X: Any) -> list[Any]:
    """X as a list of rows: the rows of a table, or the cells of one column."""
    if isinstance(X, str | bytes | dict):
        raise DataError("X", f"is {type(X).__name__}", "a list of rows", "Pass [row].")
    X = in_memory(X)
    if hasattr(X, "columns") and hasattr(X, "to_numpy"):
        X = X.to_numpy()
    if isinstance(X, np.ndarray) and X.ndim == 2 and X.shape[1] == 1:
        X = X[:, 0]
    listed = X.to_list() if hasattr(X, "to_list") else X.tolist() if hasattr(X, "tolist") else list(X)
    # Cells of a polars or Arrow table are arrays and series themselves.
    return [
        [_plain(part) for part in row] if isinstance(row, list | tuple | np.ndarray) else _plain(row) for row in listed
    ]


def _plain(cell: Any) -> Any:
    for name in ("to_list", "tolist"):
        if hasattr(cell, name):
            return getattr(cell, name)()
    return cell


def values_of(row: Any, form: Form) -> dict[str, Any]:
    """A row of X as the columns of its form."""
    if form.second is None:
        return {"text": row}
    if not isinstance(row, list | tuple) or len(row) != 2:
        raise DataError("X", f"holds {type(row).__name__}", f"rows such as {form.row}")
    return {"text": row[0], form.second: row[1]}


def refuse_empty(rows: Sequence[Any]) -> None:
    """Refuse X without rows."""
    if not len(rows):
        raise DataError("X", "is empty: 0 samples", "at least 2 rows")


def _kind_of(value: Any) -> str:
    """The kind of a label, where integers and other numbers are one."""
    if isinstance(value, str):
        return "texts"
    if isinstance(value, bool):
        return "booleans"
    return "numbers" if isinstance(value, int | float) else type(value).__name__


def label_lists(y: Any) -> list[list[Any]] | None:
    """The rows of y as lists of labels, or None: y holds one label a row, or the rows of a 0/1 matrix."""
    if getattr(y, "ndim", 1) != 1 or hasattr(y, "columns"):
        return None
    rows = y.to_list() if hasattr(y, "to_list") else list(y)
    if not rows or not all(isinstance(row, list | tuple | set | frozenset | np.ndarray) for row in rows):
        return None
    lists = [[plain(label) for label in row] for row in rows]
    lengths = {len(row) for row in lists}
    if len(lengths) == 1 and (lengths == {1} or not any(isinstance(label, str) for row in lists for label in row)):
        return None
    for number, row in enumerate(lists):
        if any(is_blank(label) or not isinstance(label, str | int | float | bool) for label in row):
            raise DataError(f"y[{number}]", f"is {shown(row)[:60]}", "a list of labels")
    return lists


def matrix_of(y: Any, wanted: str = "0 or 1 for each label") -> np.ndarray:
    """A matrix as an array, also of nullable columns.

    Args:
        y: the matrix.
        wanted: what its cells hold, for the error.

    Raises:
        DataError: a cell is missing.
    """
    matrix = np.asarray(y)
    if matrix.ndim != 2 or matrix.dtype != object:
        return matrix
    cells = matrix.tolist()
    for number, row in enumerate(cells):
        if any(map(is_blank, row)):
            raise DataError(f"y[{number}]", "holds a missing value", wanted)
    return np.array(cells)


def refuse_missing(y: Any) -> None:
    """Refuse a missing y, missing labels, and labels of several types."""
    if y is None:
        # scikit-learn's own words, which its checks look for.
        raise DataError("y", "requires y to be passed, but the target y is None", "labels or numbers")
    # As an array a list loses its types: NaN among texts would be the label 'nan', and 0 the label '0'.
    is_array = hasattr(y, "to_numpy") or hasattr(y, "dtype")
    values = np.asarray(y) if is_array else np.empty(0)
    cells: list[Any] = [plain(value) for value in y] if not is_array else []
    if values.ndim == 1 and values.dtype == object:
        cells = values.tolist()
    if values.dtype.kind in "mM" or any(isinstance(value, date | timedelta) for value in cells):
        raise DataError(
            "y", "holds dates or times", "labels or numbers", 'Convert them, for example with y.astype("str").'
        )
    if all(_kind_of(value) == "numbers" for value in cells):
        return  # NaN among numbers is told where they are read
    for row, value in enumerate(cells):
        if is_blank(value):
            raise DataError(f"y[{row}]", "is missing", "a label or a number for every text")
    by_kind: dict[str, Any] = {_kind_of(value): value for value in reversed(cells)}
    if len(by_kind) > 1:
        seen = " and ".join(f"{name}, such as {shown(value)}" for name, value in sorted(by_kind.items()))
        raise DataError("y", f"mixes {seen}", "labels of one type")
