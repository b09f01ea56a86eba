"""A part's rows while it is being made: in memory as far as there is room, else in files without a name, which go with the process."""

from __future__ import annotations

import mmap
import tempfile
import threading
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.stage import MEDIA

HELD = 64 << 20  # bytes of a part that stay in memory; what comes later goes to TMPDIR
SLICE = 32 << 20  # bytes of media that are taken together when a part is written


class Spill:
    """Tables of one schema, added by any thread, whose rows are taken by their place in the order of adding.

    What lies in files is mapped, so that its pages are the system's to take back.
    """

    def __init__(self, held: int = HELD) -> None:
        self.room, self.lock = held, threading.Lock()
        self.tables: list[pa.Table] = []  # of one chunk each
        self.starts = [0]

    def __len__(self) -> int:
        return self.starts[-1]

    @property
    def schema(self) -> pa.Schema:
        return self.tables[0].schema

    def add(self, table: pa.Table) -> None:
        """Raises OSError where the disk is full."""
        size = table.nbytes
        with self.lock:
            stays = size <= self.room
            self.room -= size if stays else 0
        table = table.combine_chunks() if stays else _mapped(table)
        with self.lock:
            self.tables.append(table)
            self.starts.append(self.starts[-1] + len(table))

    def take(self, places: np.ndarray) -> pa.Table:
        """The rows at these places, in their order. Only their own bytes are copied: Arrow's own take joins all chunks first."""
        home = np.searchsorted(self.starts, places, side="right") - 1
        order = np.argsort(home, kind="stable")
        cuts = np.flatnonzero(np.diff(home[order])) + 1
        found = [self.tables[home[at[0]]].take(pa.array(places[at] - self.starts[home[at[0]]])) for at in np.split(order, cuts) if len(at)]
        if not found:
            return self.schema.empty_table()
        if len(found) == 1:
            return found[0]
        return pa.concat_tables(found).combine_chunks().take(pa.array(np.argsort(order, kind="stable")))

    def columns(self, names: list[str]) -> pa.Table:
        """Some columns of all rows."""
        return pa.concat_tables([table.select(names) for table in self.tables])

    def slices(self, places: np.ndarray, size: int = SLICE) -> Iterator[pa.Table]:
        """The rows at these places, in tables of about `size` bytes of media; where they are cut follows from the rows alone."""
        weights = np.concatenate([_weights(table) for table in self.tables])[places]
        cut = np.flatnonzero(np.diff(np.cumsum(weights) // size)) + 1
        for some in np.split(places, cut):
            yield self.take(some)


def _mapped(table: pa.Table) -> pa.Table:
    with tempfile.TemporaryFile() as file, pa.PythonFile(file, "w") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
        file.flush()
        data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    return pa.ipc.open_stream(pa.py_buffer(data)).read_all()


def _weights(table: pa.Table) -> np.ndarray:
    """Bytes of media of each row."""
    out = np.zeros(len(table), dtype=np.int64)
    for name in MEDIA:
        if name not in table.column_names or not len(table):
            continue
        column = table[name].combine_chunks()
        if pa.types.is_list(column.type):
            lengths = pc.fill_null(pc.binary_length(column.flatten()), 0).to_numpy(zero_copy_only=False)
            parents = pc.list_parent_indices(column).to_numpy()
            out += np.bincount(parents, weights=lengths, minlength=len(table)).astype(np.int64)
        else:
            out += pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False)
    return out
