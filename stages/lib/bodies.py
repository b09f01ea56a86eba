"""Binary columns as memoryviews: the bytes where Arrow holds them, without the copy that a scalar makes of each."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def views(column: pa.ChunkedArray) -> list[memoryview | None]:
    """A view of each value's bytes, None for a null. Raises TypeError for another type than binary or large_binary."""
    return [view for chunk in column.chunks for view in _views(chunk)]


def list_views(column: pa.ChunkedArray) -> list[list[memoryview | None] | None]:
    """The same of a column of lists."""
    out: list[list[memoryview | None] | None] = []
    for chunk in column.chunks:
        offsets, inner = chunk.offsets.to_pylist(), _views(chunk.values)
        there = chunk.is_valid().to_pylist()
        out += [inner[start:end] if valid else None for start, end, valid in zip(offsets, offsets[1:], there, strict=False)]
    return out


def _views(values: pa.Array) -> list[memoryview | None]:
    if pa.types.is_null(values.type):
        return [None] * len(values)
    if values.type not in (pa.binary(), pa.large_binary()):
        raise TypeError(f"bytes are wanted, not {values.type}")
    _, ends, data = values.buffers()
    kind = np.int64 if values.type == pa.large_binary() else np.int32
    offsets = np.frombuffer(ends, kind, len(values) + 1, values.offset * kind().itemsize).tolist() if len(values) else [0]
    whole, there = memoryview(data or b""), values.is_valid().to_pylist()
    return [whole[start:end] if valid else None for start, end, valid in zip(offsets, offsets[1:], there, strict=False)]
