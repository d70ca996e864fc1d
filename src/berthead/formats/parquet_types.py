"""Types of Parquet columns: known in advance, or inferred from JSON values without loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def parquet_schema(columns: list[str], schema: Any, added: Mapping[str, type]) -> Any:
    """The source's fields and the added ones; a field without a type is text."""
    import pyarrow as pa

    known = {field.name: field for field in schema} if schema is not None else {}
    known |= {name: pa.field(name, kind) for name, kind in added_types(added).items()}
    fields = [known.get(name) or pa.field(name, pa.string()) for name in columns]
    return pa.schema(fields, metadata=schema.metadata if schema is not None else None)


def added_types(added: Mapping[str, type]) -> dict[str, Any]:
    """The Parquet types of new columns, by name."""
    import pyarrow as pa

    kinds = {str: pa.string(), float: pa.float64(), int: pa.int64(), bool: pa.bool_(), list: pa.list_(pa.string())}
    return {name: kinds[kind] for name, kind in added.items()}


class LearntTypes:
    """Inferred types that hold all values of JSON columns without loss.

    Args:
        columns: columns that exist in any case.
        added: the Arrow types that are known.
    """

    def __init__(self, columns: list[str], added: dict[str, Any]) -> None:
        import pyarrow as pa

        self._added = added
        self._types = dict.fromkeys(columns, pa.null())

    def learn(self, rows: list[dict[str, Any]]) -> None:
        """Update the types with more rows."""
        import pyarrow as pa

        for name in dict.fromkeys(name for row in rows for name in row):
            seen = _inferred([row.get(name) for row in rows])
            self._types[name] = _joined(self._types.get(name, pa.null()), seen) or pa.string()

    @property
    def schema(self) -> Any:
        """The schema of the rows so far."""
        import pyarrow as pa

        types = {name: _settled(kind) for name, kind in self._types.items()} | self._added
        return pa.schema(list(types.items()))


def _inferred(values: list[Any]) -> Any:
    """The Arrow type that holds these JSON values without loss; string if there is none."""
    import pyarrow as pa

    try:
        kind = pa.array(values).type
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        return pa.string()
    # Arrow would drop keys that come up later from a struct, and take true for 1.0 among floats.
    lossy = "struct" in str(kind) or ("double" in str(kind) and _has_bool(values))
    return pa.string() if lossy else kind


def _has_bool(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, list) and any(map(_has_bool, value)))


def _joined(one: Any, other: Any) -> Any:
    """The type that holds the values of both without loss, or None."""
    import pyarrow as pa

    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if {one, other} == {pa.int64(), pa.float64()}:
        return pa.float64()
    if pa.types.is_list(one) and pa.types.is_list(other):
        inner = _joined(one.value_type, other.value_type)
        return None if inner is None else pa.list_(inner)
    return None


def _settled(kind: Any) -> Any:
    """A type without nulls: a column that never had a value is text."""
    import pyarrow as pa

    if pa.types.is_list(kind):
        return pa.list_(_settled(kind.value_type))
    return pa.string() if pa.types.is_null(kind) else kind
