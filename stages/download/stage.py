"""Stage `download`: from a URL (or a place in storage) to checked bytes, or to one of a closed list of reasons.

This file is the stage's face: columns, options, tables in and out. A URL's own way is read in fetch.py, one request in client.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import threading
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from pydantic import model_validator

from pipeline.errors import UserError
from pipeline.stage import KEPT, Column, Resources, Stage
from stages.download import config as options
from stages.download import crawl
from stages.download.fetch import Outcome
from stages.download.limits import HostBudget, LeaseCall
from stages.download.optout import HASH_DIGITS, OptOut
from stages.download.reasons import REASONS

_EXPECTED = re.compile(r"(md5|sha1|sha256|sha512):([0-9a-fA-F]+)")


class Download(Stage):
    """Fetches each row's URL within limits that hold for the whole run, safely, and says of every failure why.

    Used by itself on a table it runs its own event loop; inside one, `await stage.run(table)` (all rows, in order) or
    `async for piece in stage.stream(table)` (rows as they are finished). `lease_call`: async (worker, want, give_back) ->
    granted, where the run's one HostBudget is asked (see `budget`); without it this stage keeps a budget of its own.
    """

    name = "download"
    version = 1
    reads = {
        "url": Column(pa.string(), "where to fetch, http or https; null where stored_at is set"),
        "expected_hash": Column(pa.string(), "md5:, sha1:, sha256: or sha512: with hex digits; null: any bytes will do"),
        "stored_at": Column(pa.string(), 'JSON {"path", "offset", "length"} of bytes that lie in storage already; null: fetch'),
    }
    adds = {
        "body": Column(pa.large_binary(), "the bytes, decompressed; null for a dropped row", stored=False),
        "final_url": Column(pa.string(), "the URL that answered, after redirects; null where nothing was fetched"),
        "http_status": Column(pa.int32(), "status of the last answer; null where there was none"),
        "content_type": Column(pa.string(), "Content-Type as the server claims it, never believed; null where absent"),
        "fetched_bytes": Column(pa.int64(), "length of the body in bytes; null where there is none"),
        "sha256": Column(pa.string(), "hex digits of the body's SHA-256, also where it is not the expected one; null without a body"),
        "latency_ms": Column(pa.int32(), "milliseconds of the last try, waiting for the host's turn not counted; null without a body"),
    }
    reasons = REASONS
    resources = Resources(cpus=1, memory=2 << 30)

    class Config(options.Config):
        @model_validator(mode="after")
        def _keeps_files(self) -> Self:
            if self.keep_in and self.to != "disk":
                raise ValueError("keep_in needs to: disk")
            return self

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        if self.config.to == "disk":
            file = Column(pa.string(), "path of the file on this machine with the bytes; null for a dropped row", stored=False)
            self.adds = {"video": file, **{name: column for name, column in type(self).adds.items() if name != "body"}}
        self.lease_call: LeaseCall | None = None
        self._optout: OptOut | None = None
        self._crawl: crawl.Crawl | None = None
        self._own_budget: HostBudget | None = None
        self._thread: _LoopThread | None = None

    @property
    def stirred(self) -> float:
        """When (time.monotonic) last a request ended or all waited for their hosts' turns: rows that wait behind others are no stall."""
        return float("-inf") if self._crawl is None else self._crawl.around.leases.stirred

    def check_ready(self) -> None:
        """Raises UserError where the run must not begin: no contact for the public web, a missing file or package."""
        self.config.check_ready()
        if self.config.engine == "img2dataset":
            from stages.download.engine_img2dataset import require

            require()
        if self.config.engine == "yt_dlp":
            from stages.download import engine_ytdlp

            engine_ytdlp.require()

    def budget(self) -> HostBudget:
        """The limits per host of this config; a run keeps one such object for all its workers."""
        return crawl.budget(self.config)

    def open(self) -> None:
        self.check_ready()
        try:
            self._optout = OptOut(self.config.optout.entries, self.config.optout.files)
        except (OSError, ValueError) as err:
            raise UserError(f"stages.download.optout: {err}") from None

    def close(self) -> None:
        """Ends the event loop that `__call__` has begun; inside a loop of one's own use `aclose`."""
        if self._thread is not None:
            self._thread.run(self.aclose())
            self._thread.stop()
            self._thread = None

    async def aclose(self) -> None:
        """Closes all connections; to be called in the loop in which the stage ran."""
        if self._crawl is not None:
            held, self._crawl = self._crawl, None
            await held.aclose()

    def __call__(self, table: pa.Table) -> pa.Table:
        """`run`, for callers without an event loop (or who must not be held up in theirs)."""
        if self._thread is None:
            self._thread = _LoopThread()
        return self._thread.run(self.run(table))

    def release(self, table: pa.Table) -> None:
        """The files of these rows (`to: disk`) are of no more use. Any thread may call it."""
        if self._crawl is not None and self._crawl.spool is not None:
            for path in table["video"].unique().drop_null().to_pylist():
                self._crawl.spool.give_back(path)

    async def run(self, table: pa.Table) -> pa.Table:
        """All rows, in order, with their columns, fates and details. Never raises for a row."""
        positions, tables = [], []
        async for at, piece in self._pieces(table):
            positions.append(at)
            tables.append(piece)
        if not tables:
            return self._columns(table, [])
        order = np.argsort(np.concatenate(positions), kind="stable")
        return pa.concat_tables(tables).take(pa.array(order))

    async def stream(self, table: pa.Table) -> AsyncIterator[pa.Table]:
        """The rows of `run`, in tables of some dozens as they are finished: a slow host delays its own rows alone.

        Bodies not yet taken count against max_bytes_in_flight, so a slow consumer slows the crawl instead of filling memory.
        """
        async for _, piece in self._pieces(table):
            yield piece

    async def _pieces(self, table: pa.Table) -> AsyncIterator[tuple[np.ndarray, pa.Table]]:
        hashes = table["expected_hash"].to_pylist() if self.config.verify_hash else [None] * len(table)
        urls, places = table["url"].to_pylist(), table["stored_at"].to_pylist()
        # Row by row from here on: each is a request of its own, beside which a Python loop costs nothing.
        broken = [i for i, text in enumerate(hashes) if text is not None and _expected(text) is None]
        if broken:
            unknown = Outcome(reason="hash_unknown", detail="expected_hash is not of a known form")
            yield np.array(broken), self._columns(table.take(pa.array(broken)), [unknown] * len(broken))
        good = np.setdiff1d(np.arange(len(table)), np.array(broken, dtype=np.int64))
        wanted = [crawl.Wanted(None if places[i] else urls[i], places[i] or None) for i in good]
        async for piece in self._opened().pieces(wanted):
            at = good[[i for positions, _ in piece for i in positions]]
            outcomes = [outcome for positions, outcome in piece for _ in positions]
            judged = [self._verified(outcome, hashes[i]) for i, outcome in zip(at, outcomes, strict=True)]
            yield at, self._columns(table.take(pa.array(at)), judged)

    def _verified(self, outcome: Outcome, expected: str | None) -> Outcome:
        judged = _verified(outcome, expected)
        if judged is not outcome and outcome.path and self._crawl is not None and self._crawl.kept is not None:
            self._crawl.kept.forget(outcome.path)
        return judged

    def _columns(self, table: pa.Table, outcomes: list[Outcome]) -> pa.Table:
        """`table` with the stage's columns, and fate and detail of the rows that failed."""
        for name, column in self.adds.items():
            values = pa.array([getattr(outcome, "path" if name == "video" else name) for outcome in outcomes], column.type)
            table = table.append_column(pa.field(name, column.type), values)
        return self._fated(table, outcomes)

    def _fated(self, table: pa.Table, outcomes: list[Outcome]) -> pa.Table:
        fates = pa.array([KEPT if o.reason is None else f"{self.name}:{o.reason}" for o in outcomes], pa.string())
        details = pa.array([o.detail for o in outcomes], pa.string())
        table = table.set_column(table.schema.get_field_index("fate"), "fate", fates)
        return table.set_column(table.schema.get_field_index("detail"), "detail", details)

    def _opened(self) -> crawl.Crawl:
        """The crawl of the running loop; one of a loop that has ended is left to the collector."""
        if self._crawl is None or self._crawl.loop is not asyncio.get_running_loop():
            if self._optout is None:
                self.open()
            assert self._optout is not None  # noqa: S101 (open has set it)
            self._crawl = crawl.Crawl(self.config, self._optout, self._lease)
        return self._crawl

    async def _lease(self, worker: str, want: dict[str, int], give_back: dict[str, int]) -> dict[str, int]:
        if self.lease_call is not None:
            return await self.lease_call(worker, want, give_back)
        if self._own_budget is None:
            self._own_budget = self.budget()
        return self._own_budget.lease(worker, want, give_back, asyncio.get_running_loop().time())


class _LoopThread:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="download", daemon=True)
        self.thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


def _expected(text: str) -> tuple[str, str] | None:
    """Algorithm and lower-case digits of an expected hash, None where it has no known form."""
    found = _EXPECTED.fullmatch(text.strip())
    if not found or len(found[2]) != HASH_DIGITS[found[1]]:
        return None
    return found[1], found[2].lower()


def _verified(outcome: Outcome, expected: str | None) -> Outcome:
    """The outcome, or a failure in its place where the body is not the expected one."""
    if expected is None or outcome.sha256 is None or (known := _expected(expected)) is None:
        return outcome
    algorithm, digits = known
    actual = outcome.sha256 if algorithm == "sha256" else _digest(algorithm, outcome)
    if actual == digits:
        return outcome
    outcome.discard()
    return Outcome(
        final_url=outcome.final_url,
        http_status=outcome.http_status,
        content_type=outcome.content_type,
        fetched_bytes=outcome.fetched_bytes,
        sha256=outcome.sha256,
        reason="hash_mismatch",
        detail=f"{algorithm} is {actual}",
    )


def _digest(algorithm: str, outcome: Outcome) -> str:
    if outcome.path is None:
        return hashlib.new(algorithm, outcome.body or b"", usedforsecurity=False).hexdigest()
    with Path(outcome.path).open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
