"""Types as DuckDB takes them from Arrow: it has no floats of 16 bits, and reads those of Parquet as 32."""

from __future__ import annotations

import pyarrow as pa


def single(kind: pa.DataType) -> pa.DataType:
    """The type with float16 as float32, in lists and structs too."""
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_list(kind):
        return pa.list_(single(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(single(kind.value_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(single(kind.value_type), kind.list_size)
    if pa.types.is_struct(kind):
        return pa.struct([(inner.name, single(inner.type)) for inner in kind])
    return kind
