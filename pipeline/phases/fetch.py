"""Phases `pool` and `scores`: what came of each fetch, and what is computed from its stored image; one stream where both are missing.

Both are addressed by content, not by row. A *fetch* is md5 of what the download reads (url, expected hash, stored place), a
*pair* is md5 of a fetch and what the scores read of the row (the caption). A URL in n rows is fetched once, a changed
caption rule fetches only what no committed file holds. Every unit has a home: the part of the first alive row with what
the download reads of that fetch, so that a video is fetched once for its clips in all rows. `part-00003.0.parquet` holds
what was missing for the units at home in part 3; later additions are .1, .2 …
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import frame, views
from pipeline.engine import Engine
from pipeline.heart import HEART, Mark, Timing, as_dict
from pipeline.keys import digest, ingredients
from pipeline.layout import Run, stages_of
from pipeline.parts import addition_name, addition_of
from pipeline.phases.rows import check_errors, run_stages, stored
from pipeline.spill import Spill
from pipeline.stage import KEPT, MEDIA, Resources, Stage
from pipeline.storage import Store
from pipeline.workers import BEAT_S, Done, Job, together

RETRIES = "retry-"  # names of the notes of retries in a pool
BARE = "bare.json"  # names of the pool's files without images
HELD = 1 << 30  # bytes of the bodies and images of the parts that a worker of the pool has at hand
LARGE = 2 << 30  # bytes of memory beyond which a stage of the pool is run in one thread alone
SMALL = 16_384  # bytes of a body, on the mean, below which it is Python's work more than a codec's
SCORED = 2048  # pairs that go through the stages after the images at once; fixed places, see design 4 "same bytes"


def pool_made_of(run: Run) -> dict[str, Any]:
    return ingredients(run.layout.pool)


def scores_made_of(run: Run) -> dict[str, Any]:
    return ingredients(run.layout.scores, pool=digest(pool_made_of(run)))


def pool_reads(run: Run) -> list[str]:
    """Columns of a row that decide about its fetch."""
    return _outer_reads(stages_of(run.layout.pool), set())


def pair_reads(run: Run) -> list[str]:
    """Columns of a row that, with its fetch, decide about its scores."""
    return _outer_reads(stages_of(run.layout.scores), set(stored_schema(stages_of(run.layout.pool)).names))


def stored_schema(stages: list[Stage], *units: str) -> pa.Schema:
    """The columns of a committed file of these stages."""
    columns = {name: c.type for stage in stages for name, c in stage.adds.items() if c.stored}
    return pa.schema([*((unit, pa.string()) for unit in units), *columns.items(), ("fate", pa.string()), ("detail", pa.string())])


def unit_sql(columns: list[str], table: str, prefix: str = "") -> str:
    """The content address of a row as an SQL expression: md5 over the columns' texts, NUL between them."""
    texts = [f"coalesce(CAST({table}.\"{name}\" AS VARCHAR), '')" for name in columns]
    return f"md5({' || chr(0) || '.join([*([prefix] if prefix else []), *texts])})"


def run_phase(run: Run, engine: Engine, con: Any, again: list[str] | None = None) -> list[Done]:
    """Fetches and scores what is missing for the rows in the view `alive` (row, part, and their columns).

    `again`: fates of the pool whose fetches are made once more (the retry command).
    """
    jobs = todo(run, con, again)
    if not jobs:
        return []
    stages, cpus = stages_of(run.layout.pool), engine.cpus()
    most = min(len(jobs), engine.fitting(together(stages, base=HELD)))
    workers, threads = pool_size(stages, cpus, most, beside=bool(run.layout.scores))
    works: list[Any] = [FetchWork(run.store, stages, run.config.run.max_error_share, threads)]
    if run.layout.scores:
        works.append(ScoreWork(run.store, stages_of(run.layout.scores), run.config.run.max_error_share))
    return engine.stream(works, jobs, [workers, *(work.resources.concurrency or max(1, cpus // 2) for work in works[1:])])


def pool_size(stages: list[Stage], cpus: int, most: int, beside: bool) -> tuple[int, int]:
    """How many workers the pool has, and how many threads for images each of them.

    A process a CPU, since with small bodies Python's lock lets one use little more than that; half as many where another phase wants CPUs
    `beside` it or a stage much memory. `most`: so many have room on the machines, and something to do.
    """
    large = any(stage.resources.memory > LARGE for stage in stages)
    workers = together(stages).concurrency or max(1, min(cpus // 2 if large or beside else cpus, most))
    return workers, 1 if large else min(4, max(1, round(cpus / workers)))


def retries(store: Store, pool_key: str) -> list[dict[str, Any]]:
    """The notes of a pool's retries, in order."""
    folder = f"pool/{pool_key}"
    return [store.read_json(f"{folder}/{name}") for name in store.names(folder, ".json") if name.startswith(RETRIES)]


def count(run: Run, con: Any) -> dict[str, int]:
    """Phase -> parts with anything missing for the rows in the view `alive`; writes nothing."""
    _units(run, con)
    tables = {"pool": "todo_pool", **({"scores": "todo_scores"} if run.layout.scores else {})}
    found = {phase: con.execute(f"SELECT count(DISTINCT part) FROM {table}").fetchall()[0][0] for phase, table in tables.items()}
    _drop_units(con)
    return found


def todo(run: Run, con: Any, again: list[str] | None = None) -> list[Job]:
    """Writes what is missing, a table a part, under tmp/ and returns a job for each part with anything missing."""
    pool, pool_key = f"pool/{digest(pool_made_of(run))}", digest(pool_made_of(run))
    _units(run, con, again)
    jobs: dict[int, Job] = {}
    taken = _additions(run.store, pool)
    for part, table in views.grouped(con, "SELECT * FROM todo_pool ORDER BY part, row", "part"):
        number = max(taken.values(), default=-1) + 1 if again else taken.get(part, -1) + 1
        job = _job(jobs, part, pool_key)
        job["pool"] = {"todo": f"tmp/todo/{pool_key}/pool-{part:05d}.parquet", "out": f"{pool}/{addition_name(part, number)}"}
        run.store.write_table(job["pool"]["todo"], table)
    if run.layout.scores:
        scores = f"scores/{digest(scores_made_of(run))}"
        taken = _additions(run.store, scores)
        for part, table in views.grouped(con, "SELECT * FROM todo_scores ORDER BY part, row", "part"):
            job = _job(jobs, part, pool_key)
            todo_path = f"tmp/todo/{pool_key}/scores-{part:05d}.parquet"
            job["scores"] = {"todo": todo_path, "out": f"{scores}/{addition_name(part, taken.get(part, -1) + 1)}"}
            run.store.write_table(todo_path, table)
    _drop_units(con)
    return [jobs[part] for part in sorted(jobs)]


def _job(jobs: dict[int, Job], part: int, key: str) -> Job:
    return jobs.setdefault(part, {"id": f"pool/{key}/part-{part:05d}", "pool": None, "scores": None})


def _additions(store: Store, folder: str) -> dict[int, int]:
    """The highest addition of each part that a folder holds."""
    taken: dict[int, int] = {}
    for part, number in map(addition_of, store.names(folder, ".parquet")):
        taken[part] = max(number, taken.get(part, -1))
    return taken


def _units(run: Run, con: Any, again: list[str] | None = None) -> None:
    """Tables todo_pool (part, row, fetch, its columns) and todo_scores (part, row, pair, fetch, file, its columns)."""
    reads, pool = pool_reads(run), f"pool/{digest(pool_made_of(run))}"
    views.latest(con, "pool", run.store, pool, "fetch_id", stored_schema(stages_of(run.layout.pool), "fetch_id"))
    fetched = _outer_reads(stages_of(run.layout.pool)[:1], set())
    place = f", {unit_sql(fetched, 'a')} AS place" if fetched != reads else ""  # of images every fetch is a place of its own
    con.execute(f"CREATE OR REPLACE TEMP TABLE fetches AS SELECT a.row, a.part, {unit_sql(reads, 'a')} AS fetch_id{place} FROM alive a")
    home = "any_value(p.part)" if place else "min_by(f.part, f.row)"
    join = "JOIN (SELECT place, min(part) AS part FROM fetches GROUP BY place) p ON p.place = f.place" if place else ""
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE homes AS SELECT f.fetch_id, min(f.row) AS row, {home} AS part "
        f"FROM fetches f {join} GROUP BY f.fetch_id"
    )
    # A fetch whose image was dropped (pool.keep: false) is missing; not for a retry, which looks at its own fates alone.
    bare = ", ".join(views.quote(run.store.address(f"{pool}/{name}")) for name in bare_files(run.store, pool)) or "''"
    skip = f"NOT (fate = '{KEPT}' AND filename IN ({bare}))" if not again else f"fate NOT IN ({', '.join(map(views.quote, again))})"
    columns = ", ".join(f'a."{name}"' for name in reads)
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE todo_pool AS SELECT h.part, h.row, h.fetch_id, {columns} FROM homes h JOIN alive a ON a.row = h.row "
        f"ANTI JOIN (SELECT fetch_id FROM pool WHERE {skip}) p ON p.fetch_id = h.fetch_id"
        + (" WHERE h.fetch_id IN (SELECT fetch_id FROM pool)" if again else "")
    )
    if not run.layout.scores:
        return
    inner = pair_reads(run)
    folder = f"scores/{digest(scores_made_of(run))}"
    views.latest(con, "scores", run.store, folder, "pair_id", stored_schema(stages_of(run.layout.scores), "pair_id", "fetch_id"))
    con.execute(
        "CREATE OR REPLACE TEMP TABLE pairs AS SELECT min(a.row) AS row, "
        f"{unit_sql(inner, 'a', 'f.fetch_id')} AS pair_id, any_value(f.fetch_id) AS fetch_id "
        "FROM alive a JOIN fetches f ON f.row = a.row GROUP BY pair_id"
    )
    columns = "".join(f', a."{name}"' for name in inner)
    # A fetch that is being made anew now has no file yet: null stands for the file of the very job.
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE todo_scores AS SELECT h.part, p.row, p.pair_id, p.fetch_id, "
        f"CASE WHEN t.fetch_id IS NULL THEN q.filename END AS file{columns} "
        "FROM pairs p JOIN homes h ON h.fetch_id = p.fetch_id JOIN alive a ON a.row = p.row "
        "LEFT JOIN todo_pool t ON t.fetch_id = p.fetch_id LEFT JOIN pool q ON q.fetch_id = p.fetch_id "
        f"ANTI JOIN scores s ON s.pair_id = p.pair_id WHERE t.fetch_id IS NOT NULL OR q.fate = {views.quote(KEPT)}"
    )


def _drop_units(con: Any) -> None:
    """The tables of `_units` hold a line for each row; the run goes on for hours, and DuckDB would hold them in memory."""
    for table in ("fetches", "homes", "todo_pool", "pairs", "todo_scores"):
        con.execute(f"DROP TABLE IF EXISTS temp.{table}")


def bare_files(store: Store, pool: str) -> list[str]:
    """Names of the pool's files whose images were dropped."""
    note = f"{pool}/{BARE}"
    names: list[str] = store.read_json(note) if store.exists(note) else []
    return names


def drop_images(run: Run) -> None:
    """`pool.keep: false`: takes the images out of the pool's files; fates and all other columns stay.

    The note comes first: a file that it names wrongly is fetched once more where its images are wanted again, never missed.
    """
    store, pool = run.store, f"pool/{digest(pool_made_of(run))}"
    names = store.names(pool, ".parquet")
    if bare_files(store, pool) != names:
        store.write_json(f"{pool}/{BARE}", names)
    for name in names:
        columns = store.columns(f"{pool}/{name}")
        if {*MEDIA} & {*columns}:
            store.write_table(f"{pool}/{name}", store.read_table(f"{pool}/{name}", [c for c in columns if c not in MEDIA]))


def _outer_reads(stages: list[Stage], known: set[str]) -> list[str]:
    """Columns that the stages read but neither they nor `known` provide, sorted."""
    out: set[str] = set()
    for stage in stages:
        out |= set(stage.reads) - known
        known = known | set(stage.adds)
    return sorted(out - {"row", "fate", "detail"})


@dataclass
class FetchWork:
    """Downloads a part's missing fetches and makes their images in threads as they arrive; commits one pool file."""

    store: Store
    stages: list[Stage]
    max_error_share: float
    threads: int
    name: str = "pool"
    lease_call: Any = None

    @property
    def needing(self) -> list[Stage]:
        return self.stages

    @property
    def resources(self) -> Resources:
        return together(self.stages, base=HELD)

    def open(self) -> None:
        for stage in self.stages:
            stage.open()
        self.executor = ThreadPoolExecutor(self.threads, thread_name_prefix="images")
        self.small, self.lock = threading.Lock(), threading.Lock()
        self.at_work, self.stirred = Counter[str](), time.monotonic()  # parts with batches in threads; when last one began or ended

    async def run(self, job: Job, careful: bool) -> Done:
        if job["pool"] is None:
            return {}
        if self.lease_call is not None:
            self.stages[0].lease_call = self.lease_call  # type: ignore[attr-defined]
        loop = asyncio.get_running_loop()
        todo = await loop.run_in_executor(self.executor, self.store.read_table, job["pool"]["todo"])
        timings, made = dict[str, Timing](), Spill()
        with HEART.at(job["id"], self.stages[0].name, len(todo), timings, own_thread=False) as mark:
            watching = loop.create_task(self._patient(mark))
            try:
                await self._all(mark, frame.framed(todo), careful, timings, made)
            finally:
                watching.cancel()
        kept = await loop.run_in_executor(self.executor, self._commit, job, made)
        return {"rows": len(todo), "kept": kept, "timings": as_dict(timings)}

    async def _patient(self, mark: Mark) -> None:
        """A part that waits for its turn, behind other parts of its worker, goes on with them: for a host (of a list of one host the second
        part gets nothing before the first has all) or for a thread. One with a batch in a thread is judged by that batch alone."""
        while True:
            await asyncio.sleep(BEAT_S)
            if not self.at_work[mark.part]:
                mark.since = max(mark.since, self.stages[0].stirred, self.stirred)  # type: ignore[attr-defined]

    def _commit(self, job: Job, made: Spill) -> int:
        """Writes the pool file, its rows in order; returns how many are kept."""
        with HEART.at(job["id"], f"{self.name} (writing)", 0) as mark:
            fates = made.columns(["row", "fate", "detail"])
            check_errors(fates, self.max_error_share, job["id"])
            in_order = made.slices(np.argsort(fates["row"].to_numpy(), kind="stable"))
            self.store.write_tables(job["pool"]["out"], (table.drop_columns(["row"]) for table in in_order), mark.goes_on)
        return frame.kept(fates)

    async def _all(self, mark: Mark, todo: pa.Table, careful: bool, timings: dict[str, Timing], made: Spill) -> None:
        """All rows through download and, in threads, the later stages; at most two batches a thread wait."""
        loop, room = asyncio.get_running_loop(), asyncio.Semaphore(2 * self.threads)
        waiting: list[asyncio.Future[None]] = []
        async for batch in frame.apply_stream(self.stages[0], todo):
            await room.acquire()
            mark.goes_on()
            future = loop.run_in_executor(self.executor, self._in_turn, batch, mark.part, careful, timings, made)
            future.add_done_callback(lambda _: room.release())
            waiting.append(future)
        await asyncio.gather(*waiting)

    def _in_turn(self, batch: pa.Table, part: str, careful: bool, timings: dict[str, Timing], made: Spill) -> None:
        """Small bodies in one thread at a time: two would hand Python's lock to and fro, 0.64 CPU-ms a picture of 2 KB in place of 0.48."""
        bodies = batch["body"] if "body" in batch.column_names else None  # null for rows that were dropped
        small = bodies is not None and bodies.nbytes < SMALL * (len(bodies) - bodies.null_count)
        with self.small if small else contextlib.nullcontext():
            self._count(part, 1)
            try:
                self._rest(batch, part, careful, timings, made)
            finally:
                self._count(part, -1)

    def _count(self, part: str, batches: int) -> None:
        with self.lock:
            self.at_work[part] += batches
            self.stirred = time.monotonic()

    def _rest(self, batch: pa.Table, part: str, careful: bool, timings: dict[str, Timing], made: Spill) -> None:
        """The later stages; then what the download holds beside the table for these rows (files) is given back.

        What the last stage gives goes to `made` piece by piece: of a long video never all clips are in memory.
        """
        try:
            if careful:
                made.add(stored(run_stages(self.stages[1:], batch, part, careful, timings), self.stages))
                return
            table = batch
            for stage in self.stages[1:-1]:
                with HEART.at(part, stage.name, len(table), timings) as mark:
                    table = pa.concat_tables(frame.apply_pieces(stage, table, mark.goes_on))
            with HEART.at(part, self.stages[-1].name, len(table), timings) as mark:
                for piece in frame.apply_pieces(self.stages[-1], table, mark.goes_on):
                    made.add(stored(piece, self.stages))
        finally:
            release = getattr(self.stages[0], "release", None)
            if release is not None:
                release(batch)


@dataclass
class ScoreWork:
    """Computes what is missing for a part's pairs from the stored images; batches are cut at fixed places of the part."""

    store: Store
    stages: list[Stage]
    max_error_share: float
    name: str = "scores"

    @property
    def needing(self) -> list[Stage]:
        return self.stages

    @property
    def resources(self) -> Resources:
        return together(self.stages)

    def open(self) -> None:
        for stage in self.stages:
            stage.open()
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="scores")

    async def run(self, job: Job, careful: bool) -> Done:
        if job["scores"] is None:
            return {}
        return await asyncio.get_running_loop().run_in_executor(self.executor, self._score, job, careful)

    def _score(self, job: Job, careful: bool) -> Done:
        own = job["pool"]["out"] if job["pool"] else ""
        todo, images, places = self._with_images(self.store.read_table(job["scores"]["todo"]), own)
        timings: dict[str, Timing] = {}
        names = stored_schema(self.stages, "pair_id", "fetch_id").names
        pieces = []
        for at in range(0, max(1, len(todo)), SCORED):
            table = todo[at : at + SCORED]
            taken = images.take(places[at : at + SCORED]) if images.schema.names else table.select([])
            for name in taken.column_names:
                table = table.append_column(taken.schema.field(name), taken[name])
            scored = run_stages(self.stages, frame.framed(table, at), job["id"], careful, timings)
            pieces.append(scored.select([*names, "row"]))
        made = pa.concat_tables(pieces)
        check_errors(made, self.max_error_share, job["id"])
        self.store.write_table(job["scores"]["out"], made.select(names))
        return {"scored": len(made), "timings": {**job.get("timings", {}), **as_dict(timings)}}

    def _with_images(self, todo: pa.Table, own: str) -> tuple[pa.Table, Spill, np.ndarray]:
        """The pairs whose fetch has an image; what the stages read of the pool; and where each pair's row stands there."""
        wanted = _outer_reads(self.stages, {*todo.column_names, "row"})
        prefix, images = self.store.address(""), Spill()
        known = []
        for file in todo["file"].unique().to_pylist():
            path: str = own if file is None else file.removeprefix(prefix).lstrip("/")
            for pool in self.store.read_tables(path, ["fetch_id", "fate", *wanted]):
                kept = pool.filter(pa.compute.equal(pool["fate"], KEPT))
                known.append(kept["fetch_id"].combine_chunks())
                images.add(kept.select(wanted))
        at = pa.compute.index_in(todo["fetch_id"], pa.chunked_array(known, pa.string()))
        here = pa.compute.is_valid(at)
        return todo.drop_columns(["file"]).filter(here), images, at.filter(here).to_numpy()
