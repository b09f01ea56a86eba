"""A shuffle stage on one table, without Ray: what pipeline/phases/shuffle.py does over storage."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.dedup.contract import FATES

KEPT = "kept"


def cluster_table(stage: Any, table: pa.Table, partitions: int = 1, buckets: int = 1) -> tuple[pa.Table, dict[str, int]]:
    """(row, the stage's two columns, fate, detail) for each row of `table` in its order, and the counts.

    `table` has what the stage reads, and `row` (int64) unless it is numbered from 0. `partitions` of rows are keyed and `buckets`
    of keys paired one after the other; neither changes what comes out.
    """
    if "row" not in table.column_names:
        table = table.append_column("row", pa.array(np.arange(len(table)), pa.int64()))
    cuts = np.linspace(0, len(table), partitions + 1).astype(int).tolist()
    entries = pa.concat_tables([stage.keyed(table.slice(start, end - start)) for start, end in itertools.pairwise(cuts)])
    bucket = entries["key"].to_numpy() % np.uint64(buckets)
    found = [stage.pairs(entries.filter(pa.array(bucket == number))) for number in range(buckets)]
    edges = [each.edges for each in found]
    if stage.payload:
        candidates = pa.concat_tables([each.candidates for each in found]).group_by(["a", "b"]).aggregate([])
        edges.append(stage.verify(_with_texts(candidates, table["row"], table[stage.payload])))
    labels, counts = stage.components(iter(edges))
    for each in found:
        counts = {name: counts.get(name, 0) + each.counts.get(name, 0) for name in {**counts, **each.counts}}
    return _labelled(stage, table, labels, pa.concat_tables([FATES.empty_table(), *(each.fates for each in found)])), counts


def _with_texts(candidates: pa.Table, rows: pa.ChunkedArray, texts: pa.ChunkedArray) -> pa.Table:
    for end in ("a", "b"):
        candidates = candidates.append_column(f"text_{end}", texts.take(pc.index_in(candidates[end], rows.combine_chunks())))
    return candidates


def _labelled(stage: Any, table: pa.Table, labels: pa.Table, fates: pa.Table) -> pa.Table:
    rows = table["row"].combine_chunks()
    at = pc.index_in(rows, labels["row"].combine_chunks())
    root = pc.coalesce(labels["root"].take(at), rows)
    fate = pc.index_in(rows, fates["row"].combine_chunks())
    columns = [
        rows,
        table["uid"].take(pc.index_in(root, rows)),
        pc.coalesce(labels["size"].take(at), 1).cast(pa.int32()),
        pc.coalesce(fates["fate"].take(fate), KEPT),
        fates["detail"].take(fate),
    ]
    return pa.table(columns, names=["row", *stage.adds, "fate", "detail"])
