"""What a stranger's answer may cost: time, bytes, memory, connections."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import tracemalloc
from pathlib import Path

import pytest

from pipeline.frame import apply_stream
from stages.download.config import size
from stages.download.memory import UNKNOWN, Memory
from stages.download.stage import Download
from tests.stages.download.conftest import QUICK, download, fetch, wanted
from tests.support.server import Server


@pytest.mark.parametrize("path", ["/drip", "/hang", "/redirect-drip"])
def test_the_deadline_is_for_the_whole_request(server: Server, path: str) -> None:
    """A byte now and then, or redirect upon redirect, does not prolong it."""
    if path == "/redirect-drip":
        path = "/to?u=/to%3Fu=/drip"
    began = time.monotonic()
    (row,) = fetch(server, [path], timeout_s=0.5, retries=0)
    assert row["fate"] == "download:timeout"
    assert time.monotonic() - began < 4


@pytest.mark.parametrize("path", ["/endless", "/endless?te=1", "/bomb", "/huge/1000000000"])
def test_the_byte_cap_ends_what_has_no_end(server: Server, path: str) -> None:
    """Neither an endless body nor 100 MB of zeros in 100 KB cost more than max_bytes and some buffers."""
    fetch(server, ["/ok"])
    gc.collect()
    tracemalloc.start()
    try:
        (row,) = fetch(server, [path], "bomb.test", max_bytes=1_000_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert row["fate"] == "download:too_large"
    limit = 110_000_000 if path == "/bomb" else 8_000_000  # the server, in this process, makes its 100 MB of zeros first
    assert peak < limit


def test_the_cap_counts_bytes_after_decompression(server: Server) -> None:
    rows = fetch(server, ["/gzip", "/deflate"], max_bytes=5000)
    assert [(row["fate"], row["fetched_bytes"]) for row in rows] == [("kept", 5000)] * 2
    rows = fetch(server, ["/gzip", "/deflate"], max_bytes=4999)
    assert {row["fate"] for row in rows} == {"download:too_large"}


def test_a_body_is_whole_however_it_is_cut(server: Server) -> None:
    paths = ["/size/700000", "/chunked/700000", "/until-close/700000"]
    rows = fetch(server, paths)
    assert [row["fetched_bytes"] for row in rows] == [700_000] * 3
    assert all(len(row["body"]) == 700_000 for row in rows)


def test_bodies_in_flight_are_bounded_and_nothing_waits_for_ever(server: Server) -> None:
    """Sixteen bodies of 600 KB, half of them of unannounced length, with room for 2 MB, and a consumer that is slow."""
    paths = [f"/{'chunked' if i % 2 else 'size'}/{600_000 + i}" for i in range(16)]
    options = {**QUICK, **server.options(), "max_bytes": 1_000_000, "max_bytes_in_flight": 2_000_000, "timeout_s": 20}
    held = []

    async def run() -> int:
        stage = Download(Download.Config.model_validate(options))
        stage.open()
        kept = 0
        async for piece in apply_stream(stage, wanted([server.url(path) for path in paths])):
            assert stage._crawl is not None
            memory = stage._crawl.around.memory
            held.append(2_000_000 - memory.announced.free - memory.grown.free)
            kept += piece["fate"].to_pylist().count("kept")
            await asyncio.sleep(0.01)
        await stage.aclose()
        return kept

    assert asyncio.run(asyncio.wait_for(run(), 30)) == 16
    assert max(held) <= 2_000_000


def test_memory_that_waits_is_served_in_order_and_given_back_when_cancelled() -> None:
    async def run() -> None:
        memory = Memory(2000, 1000)
        first, second, third = memory.hold(), memory.hold(), memory.hold()
        await first.announce(600)
        waiting = [asyncio.create_task(second.announce(600)), asyncio.create_task(third.announce(100))]
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting), "first come, first served"
        waiting[0].cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert waiting[1].done()
        first.release()
        first.release()
        third.release()
        assert (memory.announced.free, memory.grown.free) == (1000, 1000)
        await first.announce(UNKNOWN % 1000)
        await first.grow(1000)
        first.shrink(300)
        assert (memory.announced.free, memory.grown.free) == (1000, 700)

    asyncio.run(run())


def test_every_connection_and_thread_is_closed_at_the_end(server: Server) -> None:
    """The server sees all connections end; no loop, no thread, no socket stays."""
    before = threading.active_count()
    fetch(server, [f"/x/{i}" for i in range(20)], "closing.test")
    fetch(server, ["/hang", "/drip"], "closing.test", timeout_s=0.2, retries=0)
    mine = [request.writer for request in server.requests if request.host == "closing.test"]
    until = time.monotonic() + 3
    while time.monotonic() < until and not all(writer.is_closing() for writer in mine):
        time.sleep(0.02)
    assert all(writer.is_closing() for writer in mine)
    until = time.monotonic() + 3
    while time.monotonic() < until and threading.active_count() > before + 1:  # pycares keeps one thread for good
        time.sleep(0.02)
    assert threading.active_count() <= before + 1


def test_a_stream_that_is_left_ends_its_requests(server: Server) -> None:
    async def run() -> float:
        stage = Download(Download.Config.model_validate({**QUICK, **server.options(), "timeout_s": 60}))
        stage.open()
        urls = [server.url("/ok", "left.test"), *(server.url(f"/hang/{i}", "left.test") for i in range(5))]
        async for _ in stage.stream(wanted(list(urls))):
            break
        began = time.monotonic()
        await stage.aclose()
        return time.monotonic() - began

    assert asyncio.run(run()) < 2


def test_memory_and_sizes_are_written_as_people_write_them() -> None:
    assert [size(text) for text in ("20MB", "5 KB", "1GiB", "1.5kb", "7", 9)] == [20_000_000, 5000, 1 << 30, 1500, 7, 9]
    for text in ("20 apples", "MB", "-5", "1e9"):
        with pytest.raises(ValueError, match="is no size"):
            size(text)
    with pytest.raises(ValueError, match="at least twice max_bytes"):
        Download.Config(max_bytes=1000, max_bytes_in_flight=1999)


def test_stored_bytes_are_bounded_too(tmp_path: Path) -> None:
    big = tmp_path / "big.tar"
    big.write_bytes(bytes(3000))
    places = [f'{{"path": "{big}", "offset": {offset}, "length": {length}}}' for offset, length in ((0, 2000), (1000, 2001), (2000, 1001))]
    rows = download(wanted([None] * 4, stored=[*places, f'{{"path": "{big}"}}']), {"allow_networks": ["127.0.0.1/32"], "max_bytes": 2000})
    assert [row["fate"] for row in rows] == ["kept", "download:too_large", "download:stored_unreadable", "download:too_large"]
