"""Latency-bound lists beside img2dataset: `python benchmarks/latency.py [--rows 20000] [--rounds 3]`.

Pictures of 2 KB on 2,000 hosts (addresses of the loopback network, so that no names are needed), each answer after 300 ms, 5 % of the hosts
never answering; nothing is resized. Both programs run whole, img2dataset with its default settings, both with a time-out of 10 s and no
retries; ours with limits per host (8 at once, 20 a second). What a program needs to start is measured by a run of a few rows and taken off.
The server counts how many requests it holds at once. benchmarks/download_latency.py looks at the download stage alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import results
from benchmarks.measure import Cost, cost

ROOT = Path(__file__).resolve().parents[1]
PEERS = Path(os.environ.get("SHARDMILL_PEERS", ROOT / ".bench"))
HOSTS, SICK, DELAY_S, BODY_BYTES, FEW, TIMEOUT_S = 2000, 20, 0.3, 2048, 64, 10
TARGET, IN_FLIGHT = 5.0, 1000


def address(host: int) -> str:
    return f"127.{1 + host // 250}.{host % 250}.1"


def body() -> bytes:
    """A JPEG of 64 x 64 pixels, padded to BODY_BYTES by a comment."""
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)).resize((64, 64)).save(out, "JPEG", quality=60)
    plain = out.getvalue()
    room = BODY_BYTES - len(plain) - 2
    return plain[:2] + b"\xff\xfe" + room.to_bytes(2, "big") + bytes(room - 2) + plain[2:]


def serve() -> None:
    """An HTTP server on every host's address: odd paths answer after DELAY_S, /hang never, /seen at once with the most held so far."""
    loop, seen = asyncio.new_event_loop(), {"now": 0, "peak": 0}
    picture = body()
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(picture) + picture

    class Connection(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport, self.buffer, self.held = transport, b"", 0

        def data_received(self, data: bytes) -> None:
            self.buffer += data
            while b"\r\n\r\n" in self.buffer:
                head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
                if head.startswith(b"GET /seen"):
                    told = json.dumps(seen).encode()
                    self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(told) + told)
                    seen["peak"] = seen["now"]
                    continue
                self.held += 1
                seen["now"] += 1
                seen["peak"] = max(seen["peak"], seen["now"])
                if not head.startswith(b"GET /hang"):
                    loop.call_later(DELAY_S, self.reply)

        def reply(self) -> None:
            if not self.transport.is_closing():
                seen["now"], self.held = seen["now"] - 1, self.held - 1
                self.transport.write(answer)

        def connection_lost(self, _: Exception | None) -> None:
            seen["now"], self.held = seen["now"] - self.held, 0

    server = loop.run_until_complete(loop.create_server(Connection, ["127.0.0.1"], 0, backlog=4096))
    port = server.sockets[0].getsockname()[1]
    loop.run_until_complete(loop.create_server(Connection, [address(host) for host in range(HOSTS)], port, backlog=4096))
    print(port, flush=True)
    loop.run_forever()


@contextlib.contextmanager
def server() -> Iterator[int]:
    child = subprocess.Popen([sys.executable, str(Path(__file__).resolve()), "serve"], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        yield int(child.stdout.readline())
    finally:
        child.terminate()
        child.wait()


def peak(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/seen") as answer:
        return int(json.load(answer)["peak"])


def write_list(path: Path, port: int, rows: int) -> Path:
    paths = ["hang" if at % HOSTS % SICK == 0 else "i" for at in range(1, rows + 1)]
    urls = [f"http://{address((at + 1) % HOSTS)}:{port}/{kind}/{at}.jpg" for at, kind in enumerate(paths)]
    pq.write_table(pa.table({"url": urls, "caption": [f"picture number {at}" for at in range(rows)]}), path)
    return path


def shardmill(listed: Path, out: Path) -> Cost:
    limits = {"allow_networks": ["127.0.0.0/8"], "per_host": {"concurrency": 8, "per_second": 20}, "retries": 0, "timeout_s": TIMEOUT_S}
    raw = {
        "input": {"path": str(listed)},
        "run": {"name": "bench", "root": str(out), "part_rows": 20_000},
        "stages": {"ingest": {}, "captions": {}, "download": limits, "images": {"mode": "no"}},
    }
    out.with_suffix(".yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    return cost([sys.executable, "-m", "pipeline.cli", "run", str(out.with_suffix(".yaml"))], env={**os.environ, "PYTHONPATH": str(ROOT)})


def img2dataset(listed: Path, out: Path) -> Cost:
    """Its defaults: one process, 256 threads."""
    options = {"url_list": listed, "output_folder": out, "input_format": "parquet", "url_col": "url", "caption_col": "caption"}
    options |= {"output_format": "webdataset", "resize_mode": "no", "timeout": TIMEOUT_S, "retries": 0}
    words = [f"--{name}={value}" for name, value in options.items()]
    return cost([str(PEERS / "img2dataset" / "bin" / "img2dataset"), *words], env={**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"})


RUNNERS: dict[str, Callable[[Path, Path], Cost]] = {"shardmill": shardmill, "img2dataset": img2dataset}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    rates: dict[str, list[float]] = {name: [] for name in RUNNERS}
    with tempfile.TemporaryDirectory() as name, server() as port:
        work = Path(name)
        few, many = write_list(work / "few.parquet", port, FEW), write_list(work / "many.parquet", port, given.rows)
        for at in range(given.rounds):
            for program, run in RUNNERS.items():
                start = run(few, work / f"{program}-few-{at}")
                peak(port)
                whole = run(many, work / f"{program}-{at}")
                # The few rows wait for their hanging hosts as long as the last of the many do.
                rates[program].append(given.rows / max(1e-9, whole.wall_s - start.wall_s + TIMEOUT_S))
                print(
                    f"round {at} {program:12} {rates[program][-1]:7.0f} rows/s, at most {peak(port)} at once; whole {whole.wall_s:.1f} s "
                    f"{whole.cpu_s:.1f} CPU-s {whole.peak_mb:.0f} MB, start {start.wall_s:.1f} s",
                    flush=True,
                )
    ours, peer = (statistics.median(rates[program]) for program in RUNNERS)
    results.add(
        "latency: rows a second with 5 % of hosts hanging, peer img2dataset", ours, peer, TARGET, ours / peer >= TARGET, ours / peer
    )
    print(f"shardmill / img2dataset: {ours / peer:.1f} (target {TARGET}); at least {IN_FLIGHT} at once is wanted")
    return 0


if __name__ == "__main__":
    sys.exit(serve() if sys.argv[1:] == ["serve"] else main())
