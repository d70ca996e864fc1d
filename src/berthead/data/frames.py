"""Tables in memory: data frames of pandas and polars, Arrow tables, and dicts of columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from berthead.errors import DataError, counted, listed

KINDS = "a data frame of pandas or polars, an Arrow table or a dict of columns"


def collected(data: Any) -> Any:
    """A polars LazyFrame as the frame that it computes; anything else as it is."""
    return data.collect() if type(data).__name__ == "LazyFrame" and hasattr(data, "collect") else data


def is_frame(data: Any) -> bool:
    """Whether this is a data frame of pandas or polars or an Arrow table, without importing any of them."""
    return _is_data_frame(data) or (hasattr(data, "column_names") and hasattr(data, "to_pylist"))


def _is_data_frame(data: Any) -> bool:
    return hasattr(data, "columns") and (hasattr(data, "to_dicts") or hasattr(data, "to_dict"))


def columns_of(frame: Any, where: str) -> dict[str, Any]:
    """The columns of a table in memory: their names as text, to what the table calls them.

    Args:
        frame: of `is_frame`.
        where: the table, for errors.

    Returns:
        Name to name: pandas also has numbers as names.

    Raises:
        DataError: two columns with one name, or names of several levels.

    Example:
        >>> import pandas
        >>> columns_of(pandas.DataFrame([["good", "+"]]), "the data frame")
        {'0': 0, '1': 1}
    """
    names = list(frame.columns if _is_data_frame(frame) else frame.column_names)
    if any(isinstance(name, tuple) for name in names):
        saw = f"has columns of several levels, such as {next(name for name in names if isinstance(name, tuple))}"
        raise DataError(
            where, saw, "one name for each column", 'Join them: frame.columns = frame.columns.map("_".join).'
        )
    twice = [name for name, number in Counter(map(str, names)).items() if number > 1]
    if twice:
        raise DataError(where, f"has {counted(2, 'column')} or more named {listed(twice)}", "different names")
    return {str(name): name for name in names}


def records_of(frame: Any, where: str, wanted: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The rows of a table in memory, as dicts.

    Args:
        frame: of `is_frame`.
        where: the table, for errors.
        wanted: the columns to read, None: all.

    Returns:
        Dicts by the columns' names as text.

    Raises:
        DataError: as `columns_of`.
    """
    names = columns_of(frame, where)
    read = list(names) if wanted is None else list(wanted)
    own = [names[name] for name in read]
    if _is_data_frame(frame):
        part = frame[own]
        found = part.to_dicts() if hasattr(part, "to_dicts") else part.to_dict("records")
    else:
        found = frame.select(own).to_pylist()
    return [{name: record[one] for name, one in zip(read, own, strict=True)} for record in found]


def first_of(frame: Any, most: int) -> Any:
    """The first rows of a table in memory, as such a table."""
    return frame.head(most) if hasattr(frame, "head") else frame.slice(0, most)


def is_columns(data: Any) -> bool:
    """Whether this is a dict of columns: names to lists or arrays."""
    return isinstance(data, Mapping) and len(data) > 0 and all(map(is_column, data.values()))


def is_column(value: Any) -> bool:
    """Whether this is a list, an array or a series, and no text."""
    return isinstance(value, list | tuple) or (hasattr(value, "__len__") and hasattr(value, "__array__"))


def rows_of_columns(data: Mapping[Any, Any], where: str) -> list[dict[str, Any]]:
    """The rows of a dict of columns.

    Args:
        data: of `is_columns`.
        where: the data, for errors.

    Returns:
        Dicts by the columns' names as text.

    Raises:
        DataError: the columns have different lengths.

    Example:
        >>> rows_of_columns({"text": ["a", "b"], "label": [0, 1]}, "data")
        [{'text': 'a', 'label': 0}, {'text': 'b', 'label': 1}]
    """
    lengths = {str(name): len(values) for name, values in data.items()}
    if len(set(lengths.values())) > 1:
        saw = f"has columns of {listed(f'{count} ({name})' for name, count in lengths.items())} values"
        raise DataError(where, saw, "columns of one length")
    return [dict(zip(lengths, values, strict=True)) for values in zip(*data.values(), strict=True)]
