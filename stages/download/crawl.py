"""A worker's crawl: everything that lives in its event loop, many URLs at a time, results as they come."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from pipeline.errors import MACHINE_ERRNOS, ShardmillError
from stages.download import stored
from stages.download.client import Client, files_for
from stages.download.config import Config
from stages.download.fetch import Fetcher, Outcome, Surroundings, Try, fetch
from stages.download.guard import Guard
from stages.download.kept import Kept
from stages.download.limits import HostBudget, LeaseCall, Leases
from stages.download.memory import Memory
from stages.download.optout import OptOut
from stages.download.reasons import FetchError
from stages.download.resolver import Places, Resolver
from stages.download.spool import Sink, Spool
from stages.download.urls import parse

log = logging.getLogger(__name__)

PIECE_ROWS, PIECE_BYTES, PIECE_S = 64, 16_000_000, 0.2
# Thousands of requests under way are thousands of young objects that live: at Python's own thresholds the collector took a sixth
# of the CPU (0.42 to 0.46 ms a request instead of 0.36, benchmarks/download_latency.py).
COLLECT_AFTER = (10_000, 20, 10)
# Times the window: URLs of all streams that wait for their turn at once, 4 KB each. With few of them hosts that hang or are at their limit
# fill all places, and those behind them in the list begin late: 20,000 rows with 5 % of hosts hanging took 33 to 43 s with 4 and 26 to 32
# with 10 or 16 beside other work, 17 to 22 and 18 on a quiet machine.
BACKLOG = 16


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a fetch is: a URL, or a place where its bytes lie already."""

    url: str | None
    stored_at: str | None


Piece = list[tuple[list[int], Outcome]]


@dataclass(eq=False, slots=True)
class _Shared:
    work: asyncio.Task[Outcome]
    users: int = 0


def user_agent(config: Config) -> str:
    return f"shardmill/{version('shardmill')}" + (f" (+{config.contact})" if config.contact else "")


def budget(config: Config) -> HostBudget:
    """The limits per host of a config, for the one place in the run that keeps them."""
    others = {host: (limit.concurrency, limit.per_second) for host, limit in config.hosts.items()}
    return HostBudget(config.per_host.concurrency, config.per_host.per_second, others, ttl_s=2 * config.timeout_s + 60)


class Crawl:
    """Made in a running event loop, and of use in that one alone."""

    def __init__(self, config: Config, optout: OptOut, lease_call: LeaseCall) -> None:
        self.config, self.loop = config, asyncio.get_running_loop()
        window, idle = files_for(config.window)
        guard = Guard(config.allow_networks, public=bool(config.contact))
        resolver = Resolver(guard, Places(config.resolve), config.nameservers, config.dns_timeout_s)
        leases = Leases(lease_call, uuid.uuid4().hex, window)
        memory = Memory(config.max_bytes_in_flight, config.max_bytes)
        self.spool = Spool() if config.to == "disk" else None
        self.kept = Kept(config.keep_in, config.engine) if config.keep_in and self.spool else None
        self.around = Surroundings(config, resolver, leases, memory, optout, self.spool)
        self.threads = ThreadPoolExecutor(config.threads, thread_name_prefix="download")
        self.reading = asyncio.Semaphore(config.threads)
        headers = {"User-Agent": user_agent(config), "Accept-Encoding": "identity"}
        self.client = Client(resolver, guard, headers, config.connect_timeout_s, config.ca_file, idle)
        self.attempt = self._engine()
        self.under_way: dict[Wanted, _Shared] = {}
        self.live = 0  # URLs of all streams that were begun and not yet handed on
        self.collected_after = gc.get_threshold()
        gc.set_threshold(*COLLECT_AFTER)

    def _engine(self) -> Try:
        if self.config.engine == "shardmill":
            return Fetcher(self.around, self.client).attempt
        if self.config.engine == "yt_dlp":
            from stages.download.engine_ytdlp import YtDlp

            return YtDlp(self.around, self.threads).attempt
        from stages.download.engine_img2dataset import Img2dataset

        return Img2dataset(self.around, self.threads).attempt

    async def pieces(self, wanted: Iterable[Wanted]) -> AsyncIterator[Piece]:
        """The outcomes of all that is wanted, each once, as they come: (positions in `wanted`, outcome), some at a time.

        What is wanted twice is fetched once. Outcomes count against max_bytes_in_flight until the next piece is asked for.
        Raises for the machine's own faults only.
        """
        groups: dict[Wanted, list[int]] = {}
        for position, one in enumerate(wanted):
            groups.setdefault(one, []).append(position)
        waiting, done = iter(groups.items()), asyncio.Queue[tuple[list[int], _Shared]]()
        live: set[_Shared] = set()
        left = len(groups)
        try:
            while left:
                for one, positions in waiting:  # one at least, so that no stream waits for another
                    live.add(self._join(one, positions, done))
                    self.live += 1
                    if self.live >= BACKLOG * self.config.window:
                        break
                # A file on disk is handed on as soon as it is whole.
                finished = await _gathered(done, 1 if self.spool else len(live))
                live.difference_update(shared for _, shared in finished)
                self.live -= len(finished)
                left -= len(finished)
                yield (piece := [(positions, shared.work.result()) for positions, shared in finished])
                for _, outcome in piece:
                    outcome.release()
        finally:
            self.live -= len(live)
            for shared in live:
                _leave(shared)

    def _join(self, one: Wanted, positions: list[int], done: asyncio.Queue[tuple[list[int], _Shared]]) -> _Shared:
        """The work on `one`: begun now, or the one that is under way already."""
        shared = self.under_way.get(one)
        if shared is None or self.spool:  # a file has one owner, who gives it back
            shared = self.under_way[one] = _Shared(self.loop.create_task(self._outcome(one)))
            shared.work.add_done_callback(lambda _: self.under_way.pop(one, None))
        shared.users += 1
        shared.work.add_done_callback(lambda _: done.put_nowait((positions, shared)))
        return shared

    async def _outcome(self, one: Wanted) -> Outcome:
        try:
            if one.stored_at is not None:
                return await self._stored(one.stored_at)
            return await self._fetched(one.url)
        except (ShardmillError, MemoryError):
            raise
        except OSError as err:
            if err.errno in MACHINE_ERRNOS:
                raise
            return _unexpected(err)
        except Exception as err:  # noqa: BLE001 (no row may end another row's work; the text goes to the ledger, the trace to the log)
            return _unexpected(err)

    async def _fetched(self, url: str | None) -> Outcome:
        """A URL's outcome, from the files that were kept where it is among them."""
        if self.kept is None or url is None:
            return await fetch(self.around, self.attempt, url)
        if (found := await self.loop.run_in_executor(self.threads, self.kept.find, url)) is not None:
            return await self.loop.run_in_executor(self.threads, self._allowed, url, found)
        outcome = await fetch(self.around, self.attempt, url)
        if outcome.path is None:
            return outcome
        try:
            return await self.loop.run_in_executor(self.threads, self.kept.keep, url, outcome)
        except BaseException:
            outcome.discard()
            raise

    def _allowed(self, url: str, found: Outcome) -> Outcome:
        """What was kept, by the bounds and opt-outs of today."""
        config, size = self.config, found.fetched_bytes or 0
        try:
            self.around.optout.refuse(parse(url))
            if not config.min_bytes <= size <= config.max_bytes:
                raise FetchError("too_large" if size > config.max_bytes else "too_small", f"{size} kept bytes")
            self.around.optout.refuse_file(Path(str(found.path)))
        except FetchError as err:
            return Outcome(reason=err.reason, detail=err.detail)
        return found

    async def _stored(self, stored_at: str) -> Outcome:
        if self.spool:
            return await self._stored_on_disk(stored_at, self.spool.new())
        began, hold = time.monotonic(), self.around.memory.hold()
        try:
            async with self.reading:
                body = await self.loop.run_in_executor(
                    self.threads, stored.read, stored_at, self.config.max_bytes, self.config.storage_options
                )
            if len(body) < self.config.min_bytes:
                raise FetchError("too_small" if body else "empty", f"{len(body)} stored bytes are under min_bytes")
            self.around.optout.refuse_body(body)
            await hold.announce(len(body))
        except FetchError as err:
            return Outcome(reason=err.reason, detail=err.detail)
        digest, seconds = hashlib.sha256(body).hexdigest(), time.monotonic() - began
        return Outcome(body=body, fetched_bytes=len(body), sha256=digest, latency_ms=round(1000 * seconds), hold=hold)

    async def _stored_on_disk(self, stored_at: str, sink: Sink) -> Outcome:
        began, config = time.monotonic(), self.config
        try:
            async with self.reading:
                path, size, digest = await self.loop.run_in_executor(
                    self.threads, stored.to_disk, stored_at, config.max_bytes, config.storage_options, sink
                )
            if size < config.min_bytes:
                raise FetchError("too_small" if size else "empty", f"{size} stored bytes are under min_bytes")
            self.around.optout.refuse_file(Path(path))
        except FetchError as err:
            sink.discard()
            return Outcome(reason=err.reason, detail=err.detail)
        return Outcome(path=path, fetched_bytes=size, sha256=digest, latency_ms=round(1000 * (time.monotonic() - began)))

    async def aclose(self) -> None:
        """Ends what is under way and closes every connection."""
        gc.set_threshold(*self.collected_after)
        for shared in list(self.under_way.values()):
            shared.work.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await shared.work
        await self.around.leases.aclose()
        await self.client.close()
        await self.around.resolver.close()
        self.threads.shutdown(wait=False, cancel_futures=True)
        if self.spool:
            self.spool.close()


async def _gathered(done: asyncio.Queue[tuple[list[int], _Shared]], live: int) -> list[tuple[list[int], _Shared]]:
    """At least one finished work of the `live` ones; more while they come at once, up to a piece's rows and bytes."""
    piece = [await done.get()]
    size = _bytes(piece[0][1])
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PIECE_S):
            while len(piece) < min(PIECE_ROWS, live) and size < PIECE_BYTES:
                piece.append(await done.get())
                size += _bytes(piece[-1][1])
    return piece


def _bytes(shared: _Shared) -> int:
    if shared.work.cancelled() or shared.work.exception() is not None:
        return PIECE_BYTES  # ends the piece: the error is to be raised now
    return shared.work.result().fetched_bytes or 0


def _leave(shared: _Shared) -> None:
    """One who waited is gone; the work ends with the last of them."""
    shared.users -= 1
    if not shared.users and not shared.work.cancel() and not shared.work.cancelled() and shared.work.exception() is None:
        shared.work.result().discard()


def _unexpected(err: Exception) -> Outcome:
    log.error("download error=%r", err, exc_info=err)
    return Outcome(reason="error", detail=f"{type(err).__name__}: {' '.join(str(err).split())}"[:300])
