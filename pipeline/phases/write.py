"""Phase `shards`: the kept rows' images travel through the exchange to their shard, and each shard is written by one worker.

Nothing of a published key is ever overwritten; `shards/manifest.json` is replaced last, and names the current key.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import exchange, views
from pipeline.engine import Engine
from pipeline.heart import HEART, Timing, as_dict
from pipeline.known import Known
from pipeline.spill import Spill
from pipeline.stage import KEPT, Resources
from pipeline.storage import Store
from pipeline.workers import Done, Job

GROUP_IMAGES = 20_000  # images that one worker moves at once: about 400 MB at 20 KB each
MAX_GROUPS = 1000  # from 20 million images on groups grow (in TMPDIR): each shard reads of each group, which would be a square
MAX_BUCKETS = 4096


def run_phase(known: Known, engine: Engine, con: Any) -> list[Done]:
    """Writes every missing shard of the key, then its indices and the manifest. Needs the views of `view_known`, and `selected`."""
    run, store, folder = known.run, known.run.store, known.folder("shards")
    shards, steps = int(store.read_json(f"{known.folder('selection')}/done.json")["shards"]), f"tmp/{folder}"
    first = _take_over(known, steps)
    stage = run.layout.shards.stage
    written = {int(name[6:-5]) for name in store.names(f"{steps}/facts", ".json")}
    results: list[Done] = []
    if len(written) < shards:
        moves = _plan_moves(known, con, steps, shards, first)
        work = MoveWork(store)
        results = engine.tasks(work, [job for job in moves if not store.exists(job["out"])])
        store.write_json(moved := f"{steps}/moved.json", [job["out"] for job in moves])
        _plan_rows(known, con, steps, written)
        jobs = [
            {**_shard_job(steps, folder, shard, shards), "moved": moved, "media": run.layout.media}
            for shard in range(shards)
            if shard not in written
        ]
        results += engine.tasks(WriteWork(store, stage, shards), jobs)
    publish(known, [store.read_json(f"{steps}/facts/{name}") for name in store.names(f"{steps}/facts", ".json")])
    store.remove(steps)
    return results


def publish(known: Known, facts: list[dict[str, Any]]) -> None:
    """Writes sizes.json, the wids index, what every file is like and, last, the manifest that makes this key the current one."""
    from stages import shards as sink

    store, folder = known.run.store, known.folder("shards")
    beside = {}
    for name, value in sink.finish(facts, known.run.config.run.name).items():
        store.write_json(f"{folder}/{name}", value)
        with store.open(f"{folder}/{name}") as handle:
            beside[name] = asdict(sink.facts_of(handle))
    manifest = {**sink.manifest(known.keys["shards"], facts), "scored_by": known.run.layout.scorer}
    if known.run.layout.aligner:
        manifest["aligned_by"] = known.run.layout.aligner
    store.write_json(f"{folder}/done.json", {"shards": facts, "beside": beside})
    store.write_json("shards/manifest.json", manifest)


def _take_over(known: Known, steps: str) -> int:
    """Appending: the shards that stay as they are get a name in the new key's folder, too; their bytes are not touched.

    Returns the number of the first shard that is to be written.
    """
    base = known.appends_to
    if base is None:
        return 0
    store, folder = known.run.store, known.folder("shards")
    for facts in store.read_json(f"shards/{base['shards']}/done.json")["shards"]:
        for file in facts["files"]:
            store.copy(f"shards/{base['shards']}/{file}", f"{folder}/{file}")
        store.write_json(f"{steps}/facts/facts-{facts['shard']:05d}.json", {**facts, "taken_over": True})
    return int(store.read_json(f"selection/{base['selection']}/done.json")["shards"])


def _plan_moves(known: Known, con: Any, steps: str, shards: int, first: int) -> list[Job]:
    """A job for each group of pool files: which of their images go to which shard, from shard `first` on.

    The plan is the same however much of it was done before: a resumed run finds the moved images of the one before it.
    """
    store = known.run.store
    buckets, media = min(shards, MAX_BUCKETS), known.run.layout.media
    con.execute(
        'CREATE OR REPLACE TEMP TABLE moves AS SELECT p.filename, p.fetch_id, s.shard, s."index" FROM selected s '
        f"JOIN fetch_of f ON f.row = s.row JOIN pool p ON p.fetch_id = f.fetch_id WHERE s.fate = '{KEPT}' AND s.shard >= {first}"
    )
    ((images,),) = con.execute("SELECT count(*) FROM moves").fetchall()
    con.execute(
        "CREATE OR REPLACE TEMP TABLE groups AS SELECT filename, "
        f"CAST((sum(n) OVER (ORDER BY filename) - n) // {max(GROUP_IMAGES, -(-images // MAX_GROUPS))} AS BIGINT) AS part "
        "FROM (SELECT filename, count(*) AS n FROM moves GROUP BY filename)"
    )
    jobs = []
    sql = 'SELECT g.part, m.* FROM moves m JOIN groups g USING (filename) ORDER BY g.part, m.shard, m."index"'
    for group, table in views.grouped(con, sql, "part"):
        place = f"{steps}/moves-{group:05d}.parquet"
        store.write_table(place, table)
        stem = f"{steps}/images-{group:05d}"
        jobs.append({"id": stem, "moves": place, "out": f"{stem}.arrow", "buckets": buckets, "shards": shards, "media": media})
    return jobs


def _plan_rows(known: Known, con: Any, steps: str, written: set[int]) -> None:
    """For each shard the table of its rows: kept ones in their order, then the dropped ones that it also lists."""
    sql = (
        'SELECT s.shard AS part, s.shard, s."index", s.fate, s.detail, k.* EXCLUDE (fate, detail, part) '
        'FROM selected s JOIN known k ON k.row = s.row ORDER BY s.shard, s."index" NULLS LAST, s.row'
    )
    for shard, table in views.grouped(con, sql, "part"):
        if shard not in written:
            known.run.store.write_table(f"{steps}/rows-{shard:05d}.parquet", table)


def _shard_job(steps: str, folder: str, shard: int, shards: int) -> Job:
    return {
        "id": f"{steps}/shard-{shard:05d}",
        "shard": shard,
        "rows": f"{steps}/rows-{shard:05d}.parquet",
        "bucket": bucket_of(np.array([shard]), shards)[0].item(),
        "folder": folder,
        "facts": f"{steps}/facts/facts-{shard:05d}.json",
    }


def bucket_of(shard: np.ndarray, shards: int) -> np.ndarray:
    """The exchange's bucket of a shard: one each, or several neighbours where there are more than MAX_BUCKETS."""
    return shard * min(shards, MAX_BUCKETS) // shards


@dataclass
class MoveWork:
    """Reads the wanted images of some pool files and sorts them by shard into a file of the exchange."""

    store: Store
    name: str = "shards (move)"
    resources: Resources = field(default_factory=lambda: Resources(cpus=1, memory=2 << 30))

    def open(self) -> None:
        """Nothing to load."""

    def __call__(self, job: Job, _careful: bool) -> Done:
        moves = self.store.read_table(job["moves"])
        timings: dict[str, Timing] = {}
        with HEART.at(job["id"], "move", len(moves), timings) as mark:
            prefix, images = self.store.address(""), Spill()
            for file in moves["filename"].unique().to_pylist():
                mine = moves.filter(pa.compute.equal(moves["filename"], file))
                for pool in self.store.read_tables(file.removeprefix(prefix).lstrip("/"), ["fetch_id", *job["media"]]):
                    at = pa.compute.index_in(mine["fetch_id"], pool["fetch_id"])
                    here = pa.compute.is_valid(at)
                    images.add(_beside(mine.select(["shard", "index"]).filter(here), pool.select(job["media"]).take(at.filter(here))))
                    mark.goes_on()
            bucket = bucket_of(images.columns(["shard"])["shard"].to_numpy().astype(np.int64), job["shards"])
            exchange.write_spilled(self.store, job["out"], images, bucket, job["buckets"], mark.goes_on)
        return {"moved": len(moves), "timings": as_dict(timings)}


@dataclass
class WriteWork:
    """Writes one shard: its files locally, then up, the statistics last; and notes its facts."""

    store: Store
    stage: Any
    shards: int
    name: str = "shards"

    @property
    def resources(self) -> Resources:
        resources: Resources = self.stage.resources
        return resources

    def open(self) -> None:
        self.stage.open()

    def __call__(self, job: Job, _careful: bool) -> Done:
        from stages import shards as sink

        rows = self._rows(job)
        timings: dict[str, Timing] = {}
        with HEART.at(job["id"], "shards", len(rows), timings), tempfile.TemporaryDirectory(prefix="shardmill-shard-") as name:
            facts = sink.write_shard(Path(name), job["shard"], rows, self.stage.config, self.shards)
            for file in facts.files:
                self.store.put(Path(name) / file, f"{job['folder']}/{file}")
        self.store.write_json(job["facts"], asdict(facts))
        return {"rows": len(rows), "samples": facts.samples, "bytes": facts.bytes, "timings": as_dict(timings)}

    def _rows(self, job: Job) -> pa.Table:
        """The shard's rows with their images, null for the dropped ones."""
        rows = self.store.read_table(job["rows"])
        moved = self.store.read_json(job["moved"])  # not in the job: shards times groups of pool files would be too many names
        if not moved:  # no row at all is kept
            return _beside(rows, pa.table({name: pa.nulls(len(rows), pa.large_binary()) for name in job["media"]}))
        images = exchange.read(self.store, moved, job["bucket"])
        mine = pa.compute.equal(images["shard"], job["shard"])
        if not pa.compute.all(mine).as_py():  # with more shards than buckets; a filter copies all bodies
            images = images.filter(mine)
        at = pa.compute.index_in(rows["index"], images["index"])
        return _beside(rows, images.select(job["media"]).take(at))


def _beside(table: pa.Table, columns: pa.Table) -> pa.Table:
    for name in columns.column_names:
        table = table.append_column(name, columns[name])
    return table
