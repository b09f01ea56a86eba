"""Phases `dedup` and `image_dedup`: which rows are near-duplicates of one another, over all parts.

The stage gives plain functions (stages/dedup/contract.py); here they are strung together over committed files: rows -> keyed
entries -> buckets -> candidate pairs -> texts joined -> verified edges -> components -> a cluster for each row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import exchange, views
from pipeline.engine import Engine
from pipeline.heart import HEART, Timing, as_dict
from pipeline.parts import part_name
from pipeline.stage import KEPT, Resources
from pipeline.storage import Store
from pipeline.workers import Done, Job

GROUP_ROWS = 500_000  # rows that one worker signs, and so one file of the exchange: about 850 bytes a caption
BUCKET_ENTRIES = 4_000_000  # entries of a bucket: about 150 MB while it is sorted
STEPS = "steps-2"  # the number is raised with the form of what lies there: steps of an older release must not be gone on with
VERIFY_PAIRS = 50_000  # about 100 MB with their shingles

Source = tuple[str, int, int]  # a committed table of rows: its path, what to add to its row numbers, its row count


def run_phase(engine: Engine, con: Any, stage: Any, store: Store, folder: str, sources: list[Source]) -> list[Done]:
    """Writes `folder`/part-N.parquet (row, the stage's columns, fate, detail) for the alive rows, then done.json.

    `sources` are tables with row, fate and what the stage reads. The connection must have a view `alive_rows` of the
    same rows: row, uid, part, and the stage's `payload` column.
    """
    steps = f"{folder}/{STEPS}"
    groups = list(_groups(sources))
    total = sum(rows for _, _, rows in sources)
    if not groups:
        store.write_json(f"{folder}/done.json", {"rows": 0, "counts": {}})
        return []
    buckets = max(1, min(1024, -(-total * stage.entries_per_row // BUCKET_ENTRIES)))
    keyed: list[Job] = []
    for number, (rows, group) in enumerate(groups):
        stem = f"{steps}/keyed-{number:05d}"
        keyed.append({"id": stem, "out": f"{stem}.arrow", "buckets": buckets, "parts": group, "rows": rows})
    results = _missing(engine, store, ShuffleWork(store, stage, "key"), keyed)
    paths = [job["out"] for job in keyed]
    # No row is alive where nothing could be fetched: then there are no buckets either.
    pairs: list[Job] = [{"id": f"{steps}/pairs-{b:05d}", "bucket": b, "keyed": paths} for b in range(buckets if paths else 0)]
    pairs = [{**job, "out": f"{job['id']}.parquet"} for job in pairs]
    results += _missing(engine, store, ShuffleWork(store, stage, "pair"), pairs)
    if stage.payload:
        verify = list(join_texts(con, store, stage, steps, [job["out"] for job in pairs]))
        results += _missing(engine, store, ShuffleWork(store, stage, "verify"), verify)
    edges = [f"{steps}/{name}" for name in store.names(steps, ".edges.parquet")]
    labels = {"id": f"{steps}/labels", "out": f"{steps}/labels.parquet", "edges": edges}
    results += _missing(engine, store, ShuffleWork(store, stage, "connect"), [labels])
    _write_parts(con, store, stage, folder, steps)
    counts = store.read_json(f"{steps}/labels.json")
    store.write_json(f"{folder}/done.json", {"rows": total, "counts": counts})
    store.remove(steps)
    return results


def _missing(engine: Engine, store: Store, work: Any, jobs: list[Job]) -> list[Done]:
    return engine.tasks(work, [job for job in jobs if not store.exists(job["out"])])


def _groups(sources: list[Source]) -> Iterator[tuple[int, list[tuple[str, int]]]]:
    """(rows, [(path, what to add to its row numbers)]) of neighbouring tables that one worker takes."""
    held: list[tuple[str, int]] = []
    rows = 0
    for path, base, count in sources:
        held.append((path, base))
        rows += count
        if rows >= GROUP_ROWS:
            yield rows, held
            held, rows = [], 0
    if held:
        yield rows, held


def join_texts(con: Any, store: Store, stage: Any, steps: str, pairs: list[str]) -> Iterator[Job]:
    """Candidate pairs with both texts, cut into tables to verify; DuckDB joins them out of core.

    One query for one join: with both, DISTINCT and ORDER BY in a single one, DuckDB pins more than it may hold (seen at 15 million pairs).
    """
    have = store.names(steps, ".texts.parquet")
    if not store.exists(f"{steps}/texts.json"):
        schema = pa.schema([("a", pa.int64()), ("b", pa.int64())])
        views.files(con, "candidates", store, pairs, schema)
        text = f'SELECT row, "{stage.payload}" AS text FROM alive_rows'
        con.execute("CREATE OR REPLACE TEMP TABLE distinct_pairs AS SELECT DISTINCT a, b FROM candidates")
        con.execute(
            f"CREATE OR REPLACE TEMP TABLE one_text AS SELECT p.*, t.text AS text_a FROM distinct_pairs p JOIN ({text}) t ON t.row = p.a"
        )
        con.execute("DROP TABLE distinct_pairs")
        sql = f"SELECT p.*, t.text AS text_b FROM one_text p JOIN ({text}) t ON t.row = p.b ORDER BY p.a, p.b"
        for number, table in enumerate(_cut(views.batches(con, sql), VERIFY_PAIRS)):
            store.write_table(f"{steps}/{number:05d}.texts.parquet", table)
        con.execute("DROP TABLE one_text")
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


def write_sources(con: Any, stage: Any, store: Store, folder: str) -> list[Source]:
    """The view `alive_rows` as tables with what the stage reads, for rows that lie in no part of their own (images)."""
    columns = ", ".join(f'"{name}"' for name in ["row", *(n for n in stage.reads if n != "row"), "fate"])
    out: list[Source] = []
    for number, table in enumerate(_cut(views.batches(con, f"SELECT {columns} FROM alive_rows ORDER BY row"), GROUP_ROWS)):
        path = f"{folder}/{STEPS}/rows-{number:05d}.parquet"
        store.write_table(path, table)
        out.append((path, 0, len(table)))
    return out


@dataclass
class ShuffleWork:
    """One step of the shuffle for one group of rows, one bucket, one table of pairs, or all edges."""

    store: Store
    stage: Any
    step: str

    @property
    def name(self) -> str:
        return f"{self.stage.name} ({self.step})"

    @property
    def resources(self) -> Resources:
        resources: Resources = self.stage.resources
        return resources

    def open(self) -> None:
        self.stage.open()

    def __call__(self, job: Job, _careful: bool) -> Done:
        timings: dict[str, Timing] = {}
        with HEART.at(job["id"], self.stage.name, int(job.get("rows", 0)), timings):
            done: Done = getattr(self, f"_{self.step}")(job)
        return {**done, "timings": as_dict(timings)}

    def _key(self, job: Job) -> Done:
        """Rows -> entries, sorted into the exchange's buckets."""
        tables = []
        for path, base in job["parts"]:
            may = {*self.stage.may_read} & {*self.store.columns(path)} if self.stage.may_read else ()
            table = self.store.read_table(path, list(dict.fromkeys(["row", *self.stage.reads, *sorted(may), "fate"])))
            table = table.filter(pc.equal(table["fate"], KEPT)).drop_columns(["fate"])
            tables.append(table.set_column(table.schema.get_field_index("row"), "row", pc.add(table["row"], base)))
        rows = pa.concat_tables(tables)
        entries = self.stage.keyed(rows)
        bucket = exchange.bucket_of(entries["key"].to_numpy(), job["buckets"])
        exchange.write(self.store, job["out"], entries, bucket, job["buckets"])
        return {"rows": len(rows)}

    def _pair(self, job: Job) -> Done:
        """One bucket -> candidate pairs, proven edges, fates; candidates last, since they say that it is done."""
        entries = exchange.read(self.store, job["keyed"], job["bucket"])
        found = self.stage.pairs(entries)
        stem = job["out"].removesuffix(".parquet")
        self.store.write_table(f"{stem}.edges.parquet", found.edges)
        self.store.write_table(f"{stem}.fates.parquet", found.fates)
        self.store.write_json(f"{stem}.json", found.counts)
        self.store.write_table(job["out"], found.candidates)
        return {}

    def _verify(self, job: Job) -> Done:
        pairs = self.store.read_table(job["texts"])
        self.store.write_table(job["out"], self.stage.verify(pairs))
        return {"pairs": len(pairs)}

    def _connect(self, job: Job) -> Done:
        """All edges -> the component of each row that has any."""
        found = self.stage.components(self.store.read_table(path) for path in job["edges"])
        counts = dict(found.counts)
        for path in job["edges"]:
            other = path.replace(".edges.parquet", ".json")
            for name, count in (self.store.read_json(other) if self.store.exists(other) else {}).items():
                counts[name] = counts.get(name, 0) + count
        self.store.write_json(job["out"].replace(".parquet", ".json"), counts)
        self.store.write_table(job["out"], found.labels)
        return {"labels": len(found.labels)}


def _write_parts(con: Any, store: Store, stage: Any, folder: str, steps: str) -> None:
    """For each row its cluster (the uid of the cluster's smallest row), the cluster's size and its fate, cut into parts."""
    cluster, size = list(stage.adds)
    fates = [f"{steps}/{name}" for name in store.names(steps, ".fates.parquet")]
    views.files(con, "shuffle_fates", store, fates, pa.schema([("row", pa.int64()), ("fate", pa.string()), ("detail", pa.string())]))
    views.files(con, "shuffle_labels", store, [f"{steps}/labels.parquet"], pa.schema([]))
    sql = (
        f"SELECT a.part, a.row, coalesce(r.uid, a.uid) AS {cluster}, CAST(coalesce(l.size, 1) AS INTEGER) AS {size}, "
        f"coalesce(f.fate, '{KEPT}') AS fate, f.detail FROM alive_rows a LEFT JOIN shuffle_labels l ON l.row = a.row "
        "LEFT JOIN alive_rows r ON r.row = l.root LEFT JOIN shuffle_fates f ON f.row = a.row ORDER BY a.part, a.row"
    )
    for part, table in views.grouped(con, sql, "part"):
        store.write_table(f"{folder}/{part_name(part)}", table)
