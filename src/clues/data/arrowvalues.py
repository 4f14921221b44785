"""Other values in some cells of a table of Arrow, with one more key where an object has gained one."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

# Where `datasets` notes the types of columns; it refuses a file in which they are others.
_NOTED_TYPES = b"huggingface"


def with_values(rows: Any, changes: Mapping[int, Mapping[str, Any]]) -> Any:
    """A table with other values in some cells.

    Args:
        rows: a `pyarrow.Table`.
        changes: by row and column. Of a list of objects, an object may have a truth value under
            a key that the column's type does not have; the others have null there.

    Raises:
        pyarrow.ArrowException: a value does not fit the type of its column.
    """
    for name in dict.fromkeys(name for values in changes.values() for name in values):
        number = rows.schema.get_field_index(name)
        field = rows.schema.field(number)
        cells = rows.column(number).to_pylist()
        for row, values in changes.items():
            cells[row] = values.get(name, cells[row])
        kind = _with_keys(field.type, [cells[row] for row in changes])
        rows = rows.set_column(number, field.with_type(kind), pa.array(cells, kind))
        if kind != field.type:
            noted = {k: v for k, v in (rows.schema.metadata or {}).items() if k != _NOTED_TYPES}
            rows = rows.replace_schema_metadata(noted or None)
    return rows


def keys_of(kind: Any) -> dict[str, Any] | None:
    """Names and types of an object's keys, or of those in a list of objects; None for other types."""
    inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    if not pa.types.is_struct(inner):
        return None
    return {inner.field(n).name: inner.field(n).type for n in range(inner.num_fields)}


def _with_keys(kind: Any, cells: list[Any]) -> Any:
    known = keys_of(kind)
    if known is None:
        return kind
    objects = [part for cell in cells for part in (cell if isinstance(cell, list) else [cell])]
    new = dict.fromkeys(key for part in objects if part for key in part if key not in known)
    if not new:
        return kind
    nested = not pa.types.is_struct(kind)
    inner = kind.value_type if nested else kind
    fields = [*(inner.field(n) for n in range(inner.num_fields)), *((k, pa.bool_()) for k in new)]
    whole = pa.struct(fields)
    if not nested:
        return whole
    item = kind.value_field.with_type(whole)
    return pa.large_list(item) if pa.types.is_large_list(kind) else pa.list_(item)
