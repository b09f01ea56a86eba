"""The contract of shape `shuffle`: what a stage gives, and the engine (or `cluster_table`) strings together.

rows -> `keyed` -> entries, brought together by key -> `pairs` -> candidates and proven edges -> `verify`, with both texts ->
edges -> `components` -> a cluster for each row. All are plain functions of tables; none depends on how rows, keys or pairs were
divided among calls, as long as one key's entries come in one call of `pairs`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa

from stages.lib.components import EDGES, Labels

SAME, NEAR = 0, 1

ENTRIES = pa.schema([("key", pa.uint64()), ("kind", pa.int8()), ("row", pa.int64()), ("order", pa.int64()), ("content", pa.uint64())])
"""One of a row's keys. `kind` SAME: equal keys are identical content; NEAR: they may be similar. `order`: rows count from the
smallest (order, row). `content` tells identical content apart within a key."""

CANDIDATES = pa.schema([("a", pa.int64()), ("b", pa.int64())])
"""Two rows to compare; a comes before b."""

FATES = pa.schema([("row", pa.int64()), ("fate", pa.string()), ("detail", pa.string())])


@dataclass(frozen=True)
class Pairs:
    """What one bucket of entries gives: pairs to verify, edges that need no proof, rows that fall, and counts for the report.

    Candidates' rows have their order told in `edges`, which is what `components` knows it from.
    """

    candidates: pa.Table = field(default_factory=CANDIDATES.empty_table)
    edges: pa.Table = field(default_factory=EDGES.empty_table)
    fates: pa.Table = field(default_factory=FATES.empty_table)
    counts: dict[str, int] = field(default_factory=dict)


class Shuffle(Protocol):
    """A stage of shape `shuffle`. `payload`: the column that `verify` gets of both rows as text_a and text_b; None: it is not called."""

    payload: str | None

    @property
    def entries_per_row(self) -> int:
        """At most this many entries a row, on average."""
        ...

    def keyed(self, rows: pa.Table) -> pa.Table:
        """Rows (`row` and what the stage reads) -> ENTRIES."""
        ...

    def pairs(self, entries: pa.Table) -> Pairs:
        """All entries of some keys."""
        ...

    def verify(self, pairs: pa.Table) -> pa.Table:
        """a, b, text_a, text_b -> EDGES of the pairs that are near-duplicates."""
        ...

    def components(self, edges: object) -> Labels:
        """An iterator over tables of EDGES -> clusters."""
        ...


def order_of(uids: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """The first 63 bits of each uid (32 hexadecimal digits): int64, an order of rows that their places in the input do not change."""
    joined = "".join(uids.to_pylist())
    if len(joined) != 32 * len(uids):
        raise ValueError("a uid does not have 32 hexadecimal digits")
    return (np.frombuffer(bytes.fromhex(joined), dtype=">u8")[::2] >> np.uint64(1)).astype(np.int64)


def entry_table(key: np.ndarray, kind: int, row: np.ndarray, order: np.ndarray, content: np.ndarray) -> pa.Table:
    """Entries of one kind, from arrays of shape (n,)."""
    return pa.table([key, np.full(len(key), kind, dtype=np.int8), row, order, content], schema=ENTRIES)
