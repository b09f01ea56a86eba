"""Latency-bound lists beside img2dataset: `python benchmarks/latency.py [--rows 20000] [--rounds 3]`.

Pictures of 2 KB on 2,000 hosts (addresses of the loopback network, so that no names are needed), each answer after 300 ms, 5 % of the hosts
never answering; nothing is resized. Both programs run whole, img2dataset with its default settings, both with a time-out of 10 s and no
retries; ours with limits per host (10 at once, 20 a second; of 20,000 rows a host has 10, so that one that
hangs costs one time-out). What a program needs to start is measured by a run of a few rows and taken off.
A program that has not made all pictures of the hosts that answer has not met the target. The server counts how many requests it holds at
once. benchmarks/download_latency.py looks at the download stage alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import results
from benchmarks.measure import Cost, cost, medians, pictures_in
from benchmarks.slow_server import address, peak, server

ROOT = Path(__file__).resolve().parents[1]
PEERS = Path(os.environ.get("SHARDMILL_PEERS", ROOT / ".bench"))
HOSTS, SICK, FEW, TIMEOUT_S = 2000, 20, 64, 10
TARGET, IN_FLIGHT = 5.0, 1000


def _kind(at: int) -> str:
    return "hang" if at % HOSTS % SICK == 0 else "i"


def write_list(path: Path, port: int, rows: int) -> Path:
    paths = [_kind(at) for at in range(1, rows + 1)]
    urls = [f"http://{address((at + 1) % HOSTS)}:{port}/{kind}/{at}.jpg" for at, kind in enumerate(paths)]
    pq.write_table(pa.table({"url": urls, "caption": [f"picture number {at}" for at in range(rows)]}), path)
    return path


def shardmill(listed: Path, out: Path) -> Cost:
    limits = {"allow_networks": ["127.0.0.0/8"], "per_host": {"concurrency": 10, "per_second": 20}, "retries": 0, "timeout_s": TIMEOUT_S}
    raw = {
        "input": {"path": str(listed)},
        "run": {"name": "bench", "root": str(out)},
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
    results.begin(parser, given)
    rates: dict[str, list[float]] = {name: [] for name in RUNNERS}
    at_once: dict[str, list[int]] = {name: [] for name in RUNNERS}
    answered = sum(_kind(at) == "i" for at in range(1, given.rows + 1))
    lacking = dict.fromkeys(RUNNERS, 0)
    costs: dict[str, list[Cost]] = {name: [] for name in RUNNERS}
    with tempfile.TemporaryDirectory() as name, server(HOSTS) as port:
        work = Path(name)
        few, many = write_list(work / "few.parquet", port, FEW), write_list(work / "many.parquet", port, given.rows)
        for at in range(given.rounds):
            for program, run in RUNNERS.items():
                start = run(few, work / f"{program}-few-{at}")
                peak(port)
                whole = run(many, out := work / f"{program}-{at}")
                costs[program].append(whole)
                lacking[program] += answered - (made := pictures_in(out))
                at_once[program].append(peak(port))
                # The few rows wait for their hanging hosts as long as the last of the many do.
                rates[program].append(given.rows / max(1e-9, whole.wall_s - start.wall_s + TIMEOUT_S))
                print(
                    f"round {at} {program:12} {rates[program][-1]:7.0f} rows/s, {made} of {answered} pictures, "
                    f"at most {at_once[program][-1]} at once; "
                    f"whole {whole.wall_s:.1f} s {whole.cpu_s:.1f} CPU-s {whole.peak_mb:.0f} MB, start {start.wall_s:.1f} s",
                    flush=True,
                )
    for program in RUNNERS:
        missing = f", {lacking[program]} PICTURES NOT MADE" if lacking[program] else ""
        print(f"{program}, medians: {medians(costs[program])}{missing}")
    ours, peer = (statistics.median(rates[program]) for program in RUNNERS)
    met = ours / peer >= TARGET and not lacking["shardmill"]
    results.add("latency: rows a second with 5 % of hosts hanging, peer img2dataset", ours, peer, TARGET, met, ours / peer)
    most, theirs = (statistics.median(at_once[program]) for program in RUNNERS)
    results.add("latency: requests under way at once, peer img2dataset", most, theirs, IN_FLIGHT, most >= IN_FLIGHT)
    print(f"shardmill / img2dataset: {ours / peer:.1f} (target {TARGET}); {most:.0f} at once (wanted: {IN_FLIGHT})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
