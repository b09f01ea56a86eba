"""Caption dedup, whole: `python benchmarks/dedup.py [DATA] [--rows 100000 …] [--peer-rows 50000] [--peers NAME …] [--rounds 1]`.

Captions of benchmarks/captions_generator.py. Ours: the phase within a run of shardmill, from the message that the phase before it is done
to its own (the whole process tree, so that Ray, reading and writing count), after which the run is stopped: CPU seconds, wall, peak memory
of all processes, and over several sizes the slope. Peers (benchmarks/dedup_peers.py) on the same captions, each in a process of its own,
what a run of a few rows costs taken off. For each, of sampled pairs: the share of true near-duplicates (same cluster of the generator,
J >= 0.7 of 5-character shingles) that ends in one cluster (recall), and the share of joined pairs that are true (precision). A ratio (of
medians, where --rounds are more than one) meets its target at no less of both.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import results
from benchmarks.captions import captions
from benchmarks.captions_generator import SINGLE, generate
from benchmarks.measure import Cost, cost
from stages.lib.comparable import normal
from stages.lib.shingles import shingles

ROOT = Path(__file__).resolve().parents[1]
OURS, THRESHOLD, SHINGLE, PERMUTATIONS, SAMPLED = "shardmill", 0.7, 5, 128, 5000
TARGETS = {"datasketch": 20.0, "text-dedup": 5.0, "data-juicer": 5.0}
PEERS = Path(os.environ.get("SHARDMILL_PEERS", ROOT / ".bench"))
QUIET = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
SLOPE = 1.1
Found = tuple[float, float, float]
"""Rows per CPU-second, recall, precision."""
FEW = 100  # rows of the run that shows what a peer's start costs


def write_list(path: Path, real: list[str], rows: int) -> None:
    writer, at = None, 0
    for texts, clusters in generate(real, rows):
        urls = [f"ftp://nobody.test/{at + number}.jpg" for number in range(len(texts))]
        table = pa.table({"url": urls, "caption": texts, "truth": clusters})
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
        at += len(texts)
    if writer:
        writer.close()


def ours(work: Path, listed: Path) -> tuple[Cost, list[int]]:
    """What the phase costs within a run, Ray's idling included; the cluster of each row."""
    stages: dict[str, Any] = {
        "ingest": {},
        "captions": {"min_chars": 0},
        "dedup": {"on": "caption", "threshold": THRESHOLD, "max_per_caption": None},
        "download": {"contact": "nobody@example.org"},
        "images": {},
    }
    run = {"name": "run", "root": str(work / "runs"), "part_rows": 50_000}
    (work / "run.yaml").write_text(yaml.safe_dump({"input": {"path": str(listed)}, "run": run, "stages": stages}, sort_keys=False))
    command = [sys.executable, "-m", "pipeline.cli", "run", str(work / "run.yaml")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    spent = cost(command, env=env, timeout=7200, between=("phase=rows done", "phase=dedup done"))
    parts = sorted((work / "runs" / "run" / "dedup").glob("*/part-*.parquet"))
    names = pq.read_table(parts, columns=["row", "cluster"]).sort_by("row")["cluster"].combine_chunks().dictionary_encode().indices
    shutil.rmtree(work / "runs")  # the next round has all to do again
    return spent, names.to_pylist()


def peer(name: str, work: Path, listed: Path, rows: int) -> tuple[Cost, list[int]] | None:
    """What a peer's own process costs on the first rows, start-up taken off, and its clusters; None where it is not installed."""
    python = Path(sys.executable) if name == "datasketch" else PEERS / name / "bin" / "python"
    if not python.exists():
        print(f"{name}: not in {PEERS}, left out (make bench-setup-dedup)")
        return None
    texts = [normal(text) for text in pq.read_table(listed, columns=["caption"])["caption"].slice(0, rows).to_pylist()]
    spent = {}
    for count in (FEW, rows):
        # text-dedup knows n-grams of words alone, so a character has to be a word
        spaced = [" ".join(text.replace(" ", "_")) for text in texts[:count]]
        pq.write_table(pa.table({"text": texts[:count], "spaced": spaced}), work / f"{name}.parquet")
        told = work / f"{name}-clusters.parquet"
        script = str(Path(__file__).with_name("dedup_peers.py"))
        spent[count] = cost([str(python), script, name, str(work / f"{name}.parquet"), str(told)], cwd=work, env=QUIET, timeout=7200)
    whole, start = spent[rows], spent[FEW]
    clusters: list[int] = pq.read_table(told)["cluster"].to_pylist()
    return Cost(whole.cpu_s - start.cpu_s, whole.wall_s - start.wall_s, whole.peak_mb, ""), clusters


def judged(listed: Path, clusters: list[int]) -> tuple[float, float]:
    """(recall, precision) over sampled pairs, see above."""
    table = pq.read_table(listed, columns=["caption", "truth"]).slice(0, len(clusters))
    texts, truth = table["caption"].to_pylist(), table["truth"].to_pylist()
    draw = random.Random(0)

    def pairs(labels: list[int], alone: int | None) -> list[tuple[int, int]]:
        members: dict[int, list[int]] = defaultdict(list)
        for row, label in enumerate(labels):
            if label != alone:
                members[label].append(row)
        groups = [rows for rows in members.values() if len(rows) > 1]
        chosen = draw.choices(groups, k=SAMPLED)
        return [(first, second) for first, second in (draw.sample(rows, 2) for rows in chosen)]

    def similar(first: int, second: int) -> bool:
        a, b = (shingles(normal(texts[row]), SHINGLE) for row in (first, second))
        return len(a & b) >= THRESHOLD * len(a | b)

    true = [pair for pair in pairs(truth, SINGLE) if similar(*pair)]
    joined = pairs(clusters, None)
    recall = sum(clusters[first] == clusters[second] for first, second in true) / len(true)
    right = sum((truth[first] == truth[second] != SINGLE) or similar(first, second) for first, second in joined)
    return recall, right / len(joined)


def line(name: str, listed: Path, spent: Cost, clusters: list[int]) -> Found:
    """Prints what was found: rows per CPU-second, recall, precision."""
    rate = len(clusters) / spent.cpu_s
    recall, precision = judged(listed, clusters)
    took = f"{spent.cpu_s:.1f} CPU-s, {spent.wall_s:.1f} s, peak {spent.peak_mb:,.0f} MB"
    print(f"{name:12}{len(clusters):12,} rows: {rate:8,.0f}/CPU-s, {took}, recall {recall:.4f}, precision {precision:.4f}", flush=True)
    return rate, recall, precision


def in_turn(work: Path, rows: int, names: list[str], rounds: int) -> dict[str, list[Found]]:
    """Ours and the peers on the same list, round by round; those that are not installed are left out."""
    listed, found = work / "list.parquet", defaultdict[str, list[Found]](list)
    for _ in range(rounds):
        for name in names:
            if measured := ours(work, listed) if name == OURS else peer(name, work, listed, rows):
                found[name].append(line(name, listed, *measured))
    return found


def verdict(rows: int, other: str, mine: list[Found], theirs: list[Found]) -> None:
    """Says and notes how ours stands to a peer."""
    our, their = (statistics.median(rate for rate, _, _ in side) for side in (mine, theirs))
    as_good = all(one >= another for one, another in zip(mine[0][1:], theirs[0][1:], strict=True))
    ratio, target = our / their, TARGETS[other]
    results.add(f"dedup: rows per CPU-second, {rows:,} rows, peer {other}", our, their, target, as_good and ratio >= target, ratio)
    print(f"{other}: ratio {ratio:.1f}, target {target:g}{'' if as_good else ', at a loss of recall or precision'}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?", default=os.environ.get("SHARDMILL_TEST_DATA"))
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000])
    parser.add_argument("--peer-rows", type=int, default=50_000)
    parser.add_argument("--peers", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    if given.data is None:
        print("dedup: no DATA, nothing measured (name the folder, or set SHARDMILL_TEST_DATA)")
        return 0
    real, cpu = captions(Path(given.data))["English"], dict[int, float]()
    for rows in sorted({*given.rows, *([given.peer_rows] if given.peers else [])}):
        with tempfile.TemporaryDirectory() as name:
            write_list(Path(name) / "list.parquet", real, rows)
            peers = given.peers if rows == given.peer_rows else []
            found = in_turn(Path(name), rows, [OURS, *peers], given.rounds)
        cpu[rows] = rows / statistics.median(rate for rate, _, _ in found[OURS])
        for other in [name for name in peers if name in found]:
            verdict(rows, other, found[OURS], found[other])
    if len(cpu) > 1:
        steep, ends = slope(cpu), f"{min(cpu):,} to {max(cpu):,} rows"
        print(f"log-log slope of CPU seconds over rows: {steep:.2f} (target {SLOPE} at most)")
        results.add(f"dedup: log-log slope of CPU over rows, {ends}", steep, None, SLOPE, steep <= SLOPE)
    return 0


def slope(cpu: dict[int, float]) -> float:
    return float(np.polyfit(np.log(list(cpu)), np.log(list(cpu.values())), 1)[0])


if __name__ == "__main__":
    sys.exit(main())
