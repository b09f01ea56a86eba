"""Caption dedup, whole: `python benchmarks/dedup.py [DATA] [--rows 100000] [--peer-rows 100000] [--peers datasketch]`.

Captions of benchmarks/captions_generator.py. Ours: a run of shardmill whose URLs are refused unasked, less the same run without dedup (both
whole process trees, so that Ray, reading and writing count): CPU seconds, wall, peak memory of all processes. Peers: datasketch's MinHash
generator and MinHashLSH, insert and query, in a process of its own. For each, of sampled pairs: the share of true near-duplicates (same
cluster of the generator, J >= 0.7 of 5-character shingles) that ends in one cluster, and the share of joined pairs that are true.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

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
THRESHOLD, SHINGLE, PERMUTATIONS, SAMPLED = 0.7, 5, 128, 5000
TARGETS = {"datasketch": 20.0}


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


def shardmill(work: Path, listed: Path, dedup: bool) -> tuple[Cost, Path]:
    name = "with" if dedup else "without"
    stages: dict[str, Any] = {"ingest": {}, "captions": {"min_chars": 0}}
    if dedup:
        stages["dedup"] = {"on": "caption", "threshold": THRESHOLD, "max_per_caption": None}
    stages |= {"download": {"contact": "nobody@example.org"}, "images": {}}
    run = {"name": name, "root": str(work / "runs"), "part_rows": 50_000}
    (work / f"{name}.yaml").write_text(yaml.safe_dump({"input": {"path": str(listed)}, "run": run, "stages": stages}, sort_keys=False))
    spent = cost([sys.executable, "-m", "pipeline.cli", "run", str(work / f"{name}.yaml")], env={**os.environ, "PYTHONPATH": str(ROOT)})
    return spent, work / "runs" / name


def ours(work: Path, listed: Path) -> tuple[float, float, float, list[int]]:
    """CPU seconds, wall seconds, peak MB, cluster of each row."""
    plain, _ = shardmill(work, listed, dedup=False)
    whole, run = shardmill(work, listed, dedup=True)
    parts = sorted((run / "dedup").glob("*/part-*.parquet"))
    names = pq.read_table(parts, columns=["row", "cluster"]).sort_by("row")["cluster"].combine_chunks().dictionary_encode().indices
    return whole.cpu_s - plain.cpu_s, whole.wall_s - plain.wall_s, whole.peak_mb, names.to_pylist()


def datasketch(listed: Path, rows: int, told: Path) -> None:
    """In a process of its own: clusters as union of what each query finds, written to `told` with the CPU seconds of the work."""
    from datasketch import MinHash, MinHashLSH

    texts = [normal(text) for text in pq.read_table(listed, columns=["caption"])["caption"].slice(0, rows).to_pylist()]
    began, parent = time.process_time(), list(range(rows))

    def root(at: int) -> int:
        while parent[at] != at:
            parent[at] = parent[parent[at]]
            at = parent[at]
        return at

    lsh = MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS)
    sets = ([bytes(shingle, "utf-8") for shingle in shingles(text, SHINGLE)] for text in texts)
    for at, made in enumerate(MinHash.generator(sets, num_perm=PERMUTATIONS)):
        for found in lsh.query(made):
            parent[root(at)] = root(found)
        lsh.insert(at, made)
    spent = time.process_time() - began
    told.write_text(json.dumps({"cpu_s": spent, "clusters": [root(at) for at in range(rows)]}))


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?", default=os.environ.get("SHARDMILL_TEST_DATA"))
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000])
    parser.add_argument("--peer-rows", type=int, default=50_000)
    given = parser.parse_args()
    if given.data is None:
        print("dedup: no DATA, nothing measured (name the folder, or set SHARDMILL_TEST_DATA)")
        return 0
    real = captions(Path(given.data))["English"]
    rate = 0.0
    with tempfile.TemporaryDirectory() as name:
        for rows in given.rows:
            work = Path(name) / str(rows)
            work.mkdir()
            write_list(work / "list.parquet", real, rows)
            cpu, wall, peak, clusters = ours(work, work / "list.parquet")
            recall, precision = judged(work / "list.parquet", clusters)
            rate = rows / cpu
            print(
                f"shardmill  {rows:10,} rows: {rate:8.0f}/CPU-s, {cpu:.1f} CPU-s, {wall:.1f} s, peak {peak:.0f} MB, "
                f"recall {recall:.4f}, precision {precision:.4f}",
                flush=True,
            )
        told, listed = Path(name) / "told.json", Path(name) / str(given.rows[0]) / "list.parquet"
        peer_rows = min(given.peer_rows, given.rows[0])
        cost([sys.executable, str(Path(__file__).resolve()), "datasketch", str(listed), str(peer_rows), str(told)])
        found = json.loads(told.read_text())
        recall, precision = judged(listed, found["clusters"])
        peer = peer_rows / found["cpu_s"]
        print(
            f"datasketch {peer_rows:10,} rows: {peer:8.0f}/CPU-s, recall {recall:.4f}, precision {precision:.4f}; ratio {rate / peer:.1f}"
        )
    results.add(
        "dedup: rows per CPU-second, peer datasketch", rate, peer, TARGETS["datasketch"], rate / peer >= TARGETS["datasketch"], rate / peer
    )
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["datasketch"]:
        sys.exit(datasketch(Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])))
    sys.exit(main())
