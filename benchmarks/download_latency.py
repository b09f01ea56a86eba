"""Latency-bound downloads: how many requests one process keeps under way, at what rate, and for how much CPU.

Three measurements, each against servers in processes of their own on loopback:
  hosts   2,000 host names, answers of 2 KB after 300 ms, limits per host on: all hosts well, then 5 % of them never answering
  names   a DNS server: all names at once, then 5 % of names answering after 5 s
Rates are of the well hosts alone, from the first request to the last well row: what the sick ones cost the others.

    python benchmarks/download_latency.py [--rows 20000] [--only hosts|names]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.frame import framed
from stages.download.stage import Download

HOSTS, DELAY_S, BODY_BYTES, SICK = 2000, 0.3, 2048, 20  # every SICKth host or name is sick: 5 %
SLOW_NAME_S = 5.0


def serve() -> None:
    """An HTTP server that costs as little CPU as Python allows: /hang never answers, /seen tells what was met."""
    body = b"\xff\xd8\xff\xe0" + bytes(BODY_BYTES - 4)
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % BODY_BYTES + body
    seen = {"now": 0, "peak": 0, "total": 0}
    loop = asyncio.new_event_loop()

    class Connection(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport, self.buffer, self.hanging = transport, b"", 0

        def data_received(self, data: bytes) -> None:
            self.buffer += data
            while b"\r\n\r\n" in self.buffer:
                head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
                if head.startswith(b"GET /seen"):
                    told = json.dumps(seen).encode()
                    self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(told) + told)
                    seen.update(peak=seen["now"], total=0)
                    continue
                seen["now"] += 1
                seen["total"] += 1
                seen["peak"] = max(seen["peak"], seen["now"])
                if head.startswith(b"GET /hang"):
                    self.hanging += 1
                else:
                    loop.call_later(DELAY_S, self.reply)

        def reply(self) -> None:
            seen["now"] -= 1
            if not self.transport.is_closing():
                self.transport.write(answer)

        def connection_lost(self, _: Exception | None) -> None:
            seen["now"] -= self.hanging

    server = loop.run_until_complete(loop.create_server(Connection, "127.0.0.1", 0, backlog=4096))
    print(server.sockets[0].getsockname()[1], flush=True)
    loop.run_forever()


def serve_names() -> None:
    """A DNS server: slowN.test after SLOW_NAME_S, every other name at once, all at 127.0.0.1."""
    loop = asyncio.new_event_loop()

    class Names(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, sender: object) -> None:
            question = data[12 : data.index(b"\0", 12) + 5]
            reply = data[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + question + b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\x7f\0\0\1"
            if question[1:5] == b"slow":
                loop.call_later(SLOW_NAME_S, self.transport.sendto, reply, sender)
            else:
                self.transport.sendto(reply, sender)

    transport, _ = loop.run_until_complete(loop.create_datagram_endpoint(Names, local_addr=("127.0.0.1", 0)))
    print(transport.get_extra_info("sockname")[1], flush=True)
    loop.run_forever()


@contextlib.contextmanager
def process(kind: str) -> Iterator[int]:
    """A server of this file in a process of its own; gives its port."""
    child = subprocess.Popen([sys.executable, str(Path(__file__).resolve()), kind], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        yield int(child.stdout.readline())
    finally:
        child.terminate()
        child.wait()


def seen(port: int) -> dict[str, int]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/seen") as answer:
        found: dict[str, int] = json.load(answer)
        return found


def crawl(urls: list[str], options: dict[str, object]) -> dict[str, float]:
    """Rate and CPU of one crawl; well rows are those that are kept."""
    n = len(urls)
    nulls = pa.nulls(n, pa.string())
    table = framed(pa.table({"url": urls, "expected_hash": nulls, "stored_at": nulls}))

    async def run() -> tuple[int, float, float]:
        stage = Download(Download.Config.model_validate(options))
        stage.open()
        began, last, kept = time.perf_counter(), 0.0, 0
        async for piece in stage.stream(table):
            well = sum(fate == "kept" for fate in piece["fate"].to_pylist())
            if well:
                kept, last = kept + well, time.perf_counter() - began
        whole = time.perf_counter() - began
        await stage.aclose()
        return kept, last, whole

    cpu = time.process_time()
    kept, last, whole = asyncio.run(run())
    cpu = time.process_time() - cpu
    return {"rows": n, "kept": kept, "well_per_s": kept / last, "seconds": whole, "cpu_s_per_1000": 1000 * cpu / n}


def hosts(rows: int, rounds: int) -> None:
    with process("serve") as port:
        limits = {"concurrency": 8, "per_second": 20}
        common = {
            "resolve": {"*": f"127.0.0.1:{port}"},
            "allow_networks": ["127.0.0.1/32"],
            "per_host": limits,
            "retries": 0,
            "timeout_s": 10,
        }
        rates: dict[str, list[float]] = {"well": [], "5 % hanging": []}
        for _ in range(rounds):
            for name, measured in rates.items():
                sick = name != "well"
                urls = [
                    f"http://h{i % HOSTS}.test/{'hang' if sick and i % HOSTS % SICK == 0 else 'i'}/{i}.jpg"
                    for i in range(rows)
                    if sick or i % HOSTS % SICK
                ]
                found = crawl(urls, common)
                met = seen(port)
                measured.append(found["well_per_s"])
                show(f"hosts, {name}", found, met["peak"])
        compare("hanging hosts", rates["well"], rates["5 % hanging"])


def names(rows: int, rounds: int) -> None:
    with process("serve") as port, process("names") as dns:
        # The port stands in the URLs: names come from DNS here, not from `resolve`.
        common = {
            "nameservers": [f"127.0.0.1:{dns}"],
            "allow_networks": ["127.0.0.1/32"],
            "per_host": {"concurrency": 8, "per_second": 20},
            "retries": 0,
            "dns_timeout_s": 8,
        }
        rates: dict[str, list[float]] = {"quick": [], "5 % slow": []}
        for at in range(rounds):
            for name, measured in rates.items():
                slow = name != "quick"
                urls = [
                    f"http://{'slow' if slow and i % SICK == 0 else 'n'}{i}.r{at}.test:{port}/i/{i}.jpg"
                    for i in range(rows)
                    if slow or i % SICK
                ]
                found, met = crawl_quick(urls, common), seen(port)
                measured.append(found["well_per_s"])
                show(f"names, {name}", found, met["peak"])
        compare("slow names", rates["quick"], rates["5 % slow"])


def crawl_quick(urls: list[str], options: dict[str, object]) -> dict[str, float]:
    """As `crawl`, with the rate of the rows whose name is quick."""
    n = len(urls)
    nulls = pa.nulls(n, pa.string())
    table = framed(pa.table({"url": urls, "expected_hash": nulls, "stored_at": nulls}))
    quick = pa.array(["/slow" not in url for url in urls])

    async def run() -> tuple[int, int, float, float]:
        stage = Download(Download.Config.model_validate(options))
        stage.open()
        began, last, kept, done = time.perf_counter(), 0.0, 0, 0
        async for piece in stage.stream(table):
            kept += sum(fate == "kept" for fate in piece["fate"].to_pylist())
            if well := sum(quick[row].as_py() for row in piece["row"].to_pylist()):
                done, last = done + well, time.perf_counter() - began
        whole = time.perf_counter() - began
        await stage.aclose()
        return kept, done, last, whole

    cpu = time.process_time()
    kept, done, last, whole = asyncio.run(run())
    cpu = time.process_time() - cpu
    return {"rows": n, "kept": kept, "well_per_s": done / last, "seconds": whole, "cpu_s_per_1000": 1000 * cpu / n}


def show(name: str, found: dict[str, float], peak: int) -> None:
    print(
        f"{name:22} rows={found['rows']} kept={found['kept']} peak_in_flight={peak} well_rows_per_s={found['well_per_s']:.0f} "
        f"seconds={found['seconds']:.1f} cpu_s_per_1000={found['cpu_s_per_1000']:.3f} "
        f"max_rss_mb={resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f}",
        flush=True,
    )


def compare(what: str, well: list[float], sick: list[float]) -> None:
    fall = 1 - statistics.median(sick) / statistics.median(well)
    print(
        f"{what}: the others' median rate {statistics.median(well):.0f}/s -> {statistics.median(sick):.0f}/s, a fall of {100 * fall:.1f} %"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", choices=["hosts", "names"])
    chosen = parser.parse_args()
    if chosen.only != "names":
        hosts(chosen.rows, chosen.rounds)
    if chosen.only != "hosts":
        names(chosen.rows, chosen.rounds)


if __name__ == "__main__":
    {"serve": serve, "names": serve_names}.get(sys.argv[1] if len(sys.argv) > 1 else "", main)()
