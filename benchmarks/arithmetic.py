"""What a corpus costs on a cluster, by arithmetic: `python benchmarks/arithmetic.py [--rows 2.3e9] [--alive 0.7] [--nodes 10] …`.

Rates per CPU-second are those that the other benchmarks wrote to benchmarks/results.json; everything else is an assumption that can be
given. Nothing here was run on a cluster: it says what a linear continuation of one machine's figures would be, no more. Left out: scores on
GPUs (a rate has to be given), waiting for slow hosts, traffic that a provider charges for.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.results import RESULTS

CAPTIONS = "captions: stage and signature, captions per CPU-second, English"
DEDUP = "dedup: rows per CPU-second, 1,000,000 rows, peer datasketch"
IMAGES = "images: list to shards, images per CPU-second, peer img2dataset"


@dataclass(frozen=True)
class Step:
    """CPU-seconds and bytes of a step over the whole corpus."""

    name: str
    cpu_s: float
    network: float = 0.0
    stored: float = 0.0


def steps(given: argparse.Namespace, rate: dict[str, float]) -> list[Step]:
    fetched = given.rows * given.alive
    return [
        Step("captions", given.rows / rate[CAPTIONS]),
        Step("dedup of captions", given.rows / rate[DEDUP]),
        Step("download, images, pool, shards", fetched / rate[IMAGES], fetched * given.body_kb * 1e3, 2 * fetched * given.sample_kb * 1e3),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--rows", type=float, default=2.3e9, help="links; LAION-2B-en has 2.3 billion (Schuhmann et al. 2022)")
    parser.add_argument("--alive", type=float, default=0.7, help="share of links that still give a picture: measure your own list's")
    parser.add_argument("--body-kb", type=float, default=94, help="KB of a picture as it is served: the benchmark's")
    parser.add_argument(
        "--sample-kb", type=float, default=28.5, help="KB of a sample of 224 pixels at quality 95: the benchmark's; it is stored twice"
    )
    parser.add_argument("--nodes", type=int, default=10)
    parser.add_argument("--cores", type=int, default=16, help="of a node")
    parser.add_argument("--gbit", type=float, default=10, help="of a node's network")
    parser.add_argument("--core-hour", type=float, default=0.04, help="price of a core for an hour")
    parser.add_argument("--tb-month", type=float, default=23, help="price of a TB stored for a month")
    given = parser.parse_args()
    rate = {line["name"]: line["ours"] for line in json.loads(RESULTS.read_text())}
    if missing := [name for name in (CAPTIONS, DEDUP, IMAGES) if name not in rate]:
        print(f"arithmetic: {RESULTS} lacks {', '.join(missing)}; run those benchmarks first")
        return 1
    found = steps(given, rate)
    cores, wire = given.nodes * given.cores, given.nodes * given.gbit * 1e9 / 8
    print(f"{given.rows:,.0f} links, {given.alive:.0%} alive; {given.nodes} nodes of {given.cores} cores and {given.gbit:g} Gbit/s\n")
    print(f"| {'step':30} | core-hours | hours on all cores | TB fetched | hours on the wire | TB stored |\n|{' --- |' * 6}")
    for step in [*found, Step("all", *(sum(getattr(step, name) for step in found) for name in ("cpu_s", "network", "stored")))]:
        hours = step.cpu_s / 3600
        print(
            f"| {step.name:30} | {hours:10,.0f} | {hours / cores:18.1f} | {step.network / 1e12:10.1f} | {step.network / wire / 3600:17.1f} "
            f"| {step.stored / 1e12:9.1f} |"
        )
    cpu, stored = sum(step.cpu_s for step in found) / 3600, sum(step.stored for step in found) / 1e12
    each = 1e9 / given.rows
    print(f"\na billion links: {cpu * each:,.0f} core-hours = {cpu * each * given.core_hour:,.0f} at {given.core_hour} each; ", end="")
    print(f"{stored * each:.0f} TB = {stored * each * given.tb_month:,.0f} a month at {given.tb_month:g} a TB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
