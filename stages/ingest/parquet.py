"""Parquet from any row on, a little at a time.

Rows inside a row group can only be reached by decoding those before them, and published tables have row groups of a million rows,
while a part has ten thousand. So a reader that is done with one part stays open: the next part of the same file goes on from there.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from stages.ingest.rebatch import OWN, unique

DECODED_ROWS = 8192
_LOCK = threading.Lock()
_left: dict[tuple[str, str, str], Cursor] = {}  # at most one: what the last reader of this process left open


class Cursor:
    """A file's decoded tables in order; `row` is the number of the next one's first row."""

    def __init__(self, url: str, options: dict[str, Any], start_row: int) -> None:
        fs, path = fsspec.core.url_to_fs(url, **options)
        self.handle = fs.open(path, "rb")
        # Not pre-buffered: a row group can be hundreds of MB, of which one decoded table is needed.
        reader = pq.ParquetFile(self.handle, pre_buffer=False, buffer_size=1 << 20)
        ends = [0]
        for group in range(reader.num_row_groups):
            ends.append(ends[-1] + reader.metadata.row_group(group).num_rows)
        first = next((group for group, end in enumerate(ends[1:]) if start_row < end), reader.num_row_groups)
        self.row = ends[first]
        self.ends = ends
        groups = list(range(first, reader.num_row_groups))
        self.batches: Iterator[pa.RecordBatch] = reader.iter_batches(DECODED_ROWS, row_groups=groups) if groups else iter(())
        self.held: pa.Table | None = None

    def reaches(self, start_row: int) -> bool:
        """Whether to go on is better than to begin at the row group of `start_row`."""
        return self.row <= start_row and not any(self.row < end <= start_row for end in self.ends[:-1])

    def next(self, start_row: int) -> pa.Table | None:
        """Decoded rows from `start_row` on, some thousand; None after the last. Rows before it are passed over."""
        while True:
            if self.held is None:
                batch = next(self.batches, None)
                if batch is None:
                    return None
                names = unique(batch.schema.names)
                self.held = pa.Table.from_batches([batch]).rename_columns(names).select([name for name in names if name not in OWN])
            skip = start_row - self.row
            if skip < len(self.held):
                return self.held.slice(skip)
            self.passed(len(self.held))

    def passed(self, rows: int) -> None:
        """The first `rows` of the held table are not needed any more."""
        assert self.held is not None  # noqa: S101 - only called with a table in hand
        self.row += rows
        self.held = self.held.slice(rows) if rows < len(self.held) else None


def stream(url: str, etag: str, start_row: int, batch_rows: int, options: dict[str, Any]) -> Iterator[pa.Table]:
    """Tables of exactly `batch_rows` rows, the last one shorter, from `start_row` on."""
    key = (url, etag, json.dumps(options, sort_keys=True, default=str))
    with _LOCK:
        left = _left.pop(key, None)
    cursor = left if left is not None and left.reaches(start_row) else Cursor(url, options, start_row)
    fit = True
    try:
        while (table := _take(cursor, start_row, batch_rows)) is not None:
            start_row += len(table)
            yield table
    except Exception:
        fit = False  # damaged here: its batches are at an end, so the next part would find no rows
        raise
    finally:
        with _LOCK:
            spent = [left] if left not in (None, cursor) else []
            for other in (*_left.values(), *spent, *([] if fit else [cursor])):
                other.handle.close()
            _left.clear()
            if fit:
                _left[key] = cursor


def _take(cursor: Cursor, start_row: int, rows: int) -> pa.Table | None:
    parts: list[pa.Table] = []
    while rows and (table := cursor.next(start_row)) is not None:
        parts.append(table.slice(0, rows))
        took = len(parts[-1])
        cursor.passed(start_row - cursor.row + took)
        rows, start_row = rows - took, start_row + took
    return pa.concat_tables(parts) if parts else None
