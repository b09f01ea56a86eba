"""Phases `dedup` and `image_dedup`: which rows are near-duplicates of one another, over all parts.

The stage gives plain functions (stages/dedup/contract.py); here they are strung together over committed files: rows -> keyed
entries -> buckets -> candidate pairs -> texts joined -> verified edges -> components -> a cluster for each row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import exchange, views
from pipeline.engine import Done, Engine, Job
from pipeline.heart import HEART, Timing, as_dict
from pipeline.parts import Part, part_name
from pipeline.stage import KEPT, Resources
from pipeline.storage import Store

GROUP_ROWS = 1_000_000  # rows that one worker signs, and so one file of the exchange
BUCKET_ENTRIES = 4_000_000  # entries of a bucket: about 150 MB while it is sorted
VERIFY_PAIRS = 500_000


def run_phase(engine: Engine, con: Any, stage: Any, store: Store, folder: str, sources: list[Part], parts: list[Part]) -> list[Done]:
    """Writes `folder`/part-N.parquet (row, the stage's columns, fate, detail) for the rows of `sources`, then done.json.

    `sources` are tables with row, fate and what the stage reads; `parts` say how the result is cut. The connection must
    have a view `alive_rows` (row, uid, part) of the same rows.
    """
    steps = f"{folder}/steps"
    groups = list(_groups(sources))
    total = sum(part.rows for part in sources)
    buckets = max(1, min(1024, -(-total * stage.entries_per_row // BUCKET_ENTRIES)))
    keyed = [{"id": f"{steps}/keyed-{i:05d}", "out": f"{steps}/keyed-{i:05d}.arrow", "buckets": buckets, "parts": g} for i, g in enumerate(groups)]
    results = _missing(engine, store, ShuffleWork(store, stage, "key"), keyed)
    paths = [job["out"] for job in keyed]
    pairs = [{"id": f"{steps}/pairs-{b:05d}", "out": f"{steps}/pairs-{b:05d}.parquet", "bucket": b, "keyed": paths} for b in range(buckets)]
    results += _missing(engine, store, ShuffleWork(store, stage, "pair"), pairs)
    if stage.payload:
        verify = list(_join_texts(con, store, stage, steps, [job["out"] for job in pairs], sources))
        results += _missing(engine, store, ShuffleWork(store, stage, "verify"), verify)
    edges = [f"{steps}/{name}" for name in store.names(steps, ".edges.parquet")]
    labels = {"id": f"{steps}/labels", "out": f"{steps}/labels.parquet", "edges": edges}
    results += _missing(engine, store, ShuffleWork(store, stage, "connect"), [labels])
    _write_parts(con, store, stage, folder, steps, [job["out"] for job in pairs], parts)
    counts = store.read_json(f"{steps}/labels.json")
    store.write_json(f"{folder}/done.json", {"rows": total, "counts": counts})
    store.remove(steps)
    return results


def _missing(engine: Engine, store: Store, work: Any, jobs: list[Job]) -> list[Done]:
    return engine.tasks(work, [job for job in jobs if not store.exists(job["out"])])


def _groups(sources: list[Part]) -> Iterator[list[tuple[str, int]]]:
    held: list[tuple[str, int]] = []
    rows = 0
    for part in sources:
        held.append((part.path, part.base))
        rows += part.rows
        if rows >= GROUP_ROWS:
            yield held
            held, rows = [], 0
    if held:
        yield held


def _join_texts(con: Any, store: Store, stage: Any, steps: str, pairs: list[str], sources: list[Part]) -> Iterator[Job]:
    """Candidate pairs with both texts, cut into tables to verify; DuckDB joins them out of core."""
    have = store.names(steps, ".texts.parquet")
    if not store.exists(f"{steps}/texts.json"):
        schema = pa.schema([("a", pa.int64()), ("b", pa.int64())])
        views.files(con, "candidates", store, pairs, schema)
        text = f'SELECT row, "{stage.payload}" AS text FROM rows'
        sql = (
            f"SELECT c.a, c.b, ta.text AS text_a, tb.text AS text_b FROM (SELECT DISTINCT a, b FROM candidates) c "
            f"JOIN ({text}) ta ON ta.row = c.a JOIN ({text}) tb ON tb.row = c.b ORDER BY c.a, c.b"
        )
        for number, table in enumerate(_cut(views.batches(con, sql), VERIFY_PAIRS)):
            store.write_table(f"{steps}/{number:05d}.texts.parquet", table)
        have = store.names(steps, ".texts.parquet")
        store.write_json(f"{steps}/texts.json", {"tables": len(have)})
    for name in have:
        yield {"id": f"{steps}/{name}", "texts": f"{steps}/{name}", "out": f"{steps}/{name.replace('.texts', '-verified.edges')}"}


def _cut(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(map(len, held)) >= rows:
            yield pa.Table.from_batches(held)
            held = []
    if held:
        yield pa.Table.from_batches(held)
