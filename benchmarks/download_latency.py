"""Latency-bound downloads: how many requests one process keeps under way, at what rate, and for how much CPU.

Two measurements, each against servers in processes of their own on loopback:
  hosts   2,000 host names, answers of 2 KB after 300 ms, limits per host on: all hosts well, then 5 % of them never answering
  names   a DNS server: all names at once, then 5 % of names answering after 5 s
Rates are of the well hosts alone, from the first request to the last well row: what the sick ones cost the others.

    python benchmarks/download_latency.py [--rows 20000] [--rounds 3] [--only hosts|names]
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import statistics
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import results
from benchmarks.slow_server import peak, port_of, server
from pipeline.frame import framed
from stages.download.stage import Download

HOSTS, SICK = 2000, 20  # every SICKth host or name is sick: 5 %
SLOW_NAME_S = 5.0
KEPT = 0.9  # share of their rate that the others should keep beside hanging hosts and slow names
IN_FLIGHT = 1000  # requests that one process should have under way


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


def crawl(urls: list[str], options: dict[str, object]) -> dict[str, float]:
    """CPU of one crawl, and the rate of the rows that have neither a host that hangs nor a slow name."""
    n = len(urls)
    nulls = pa.nulls(n, pa.string())
    table = framed(pa.table({"url": urls, "expected_hash": nulls, "stored_at": nulls}))
    well = pa.array(["/hang" not in url and "//slow" not in url for url in urls])

    async def run() -> tuple[int, int, float, float]:
        stage = Download(Download.Config.model_validate(options))
        stage.open()
        began, last, kept, done = time.perf_counter(), 0.0, 0, 0
        async for piece in stage.stream(table):
            kept += sum(fate == "kept" for fate in piece["fate"].to_pylist())
            if ended := pc.sum(well.take(piece["row"])).as_py():
                done, last = done + ended, time.perf_counter() - began
        whole = time.perf_counter() - began
        await stage.aclose()
        return kept, done, last, whole

    cpu = time.process_time()
    kept, done, last, whole = asyncio.run(run())
    cpu = time.process_time() - cpu
    return {"rows": n, "kept": kept, "well_per_s": done / last, "seconds": whole, "cpu_s_per_1000": 1000 * cpu / n}


def hosts(rows: int, rounds: int) -> None:
    with server() as port:
        limits = {"concurrency": 8, "per_second": 20}
        common = {
            "resolve": {"*": f"127.0.0.1:{port}"},
            "allow_networks": ["127.0.0.1/32"],
            "per_host": limits,
            "retries": 0,
            "timeout_s": 10,
        }
        rates: dict[str, list[float]] = {"well": [], "5 % hanging": []}
        at_once: dict[str, list[int]] = {name: [] for name in rates}
        for _ in range(rounds):
            for name, measured in rates.items():
                sick = name != "well"
                urls = [
                    f"http://h{i % HOSTS}.test/{'hang' if sick and i % HOSTS % SICK == 0 else 'i'}/{i}.jpg"
                    for i in range(rows)
                    if sick or i % HOSTS % SICK
                ]
                found = crawl(urls, common)
                measured.append(found["well_per_s"])
                at_once[name].append(most := peak(port))
                show(f"hosts, {name}", found, most)
        compare("hanging hosts", rates["well"], rates["5 % hanging"])
        for name, seen in at_once.items():
            most = statistics.median(seen)
            told = f"download_latency: requests of one process under way at once, hosts {name}"
            results.add(told, most, None, IN_FLIGHT, most >= IN_FLIGHT)


def names(rows: int, rounds: int) -> None:
    with server() as port, port_of(str(Path(__file__).resolve()), "names") as dns:
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
                found = crawl(urls, common)
                measured.append(found["well_per_s"])
                show(f"names, {name}", found, peak(port))
        compare("slow names", rates["quick"], rates["5 % slow"])


def show(name: str, found: dict[str, float], peak: int) -> None:
    print(
        f"{name:22} rows={found['rows']} kept={found['kept']} peak_in_flight={peak} well_rows_per_s={found['well_per_s']:.0f} "
        f"seconds={found['seconds']:.1f} cpu_s_per_1000={found['cpu_s_per_1000']:.3f} "
        f"max_rss_mb={resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f}",
        flush=True,
    )


def compare(what: str, well: list[float], sick: list[float]) -> None:
    before, beside = statistics.median(well), statistics.median(sick)
    print(f"{what}: the others' median rate {before:.0f}/s -> {beside:.0f}/s, a fall of {100 * (1 - beside / before):.1f} %")
    results.add(f"download_latency: rows a second beside {what}", beside, before, KEPT, beside >= KEPT * before, beside / before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["hosts", "names"])
    chosen = parser.parse_args()
    results.begin(parser, chosen)
    if chosen.only != "names":
        hosts(chosen.rows, chosen.rounds)
    if chosen.only != "hosts":
        names(chosen.rows, chosen.rounds)


if __name__ == "__main__":
    serve_names() if sys.argv[1:] == ["names"] else main()
