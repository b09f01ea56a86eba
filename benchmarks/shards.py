"""Writing shards beside GNU tar: `python benchmarks/shards.py [--samples 10000] [--rounds 5]`.

Ours is `stages.shards.write_shard` as a run calls it: JSON of each sample, tar, Parquet, statistics and SHA-256 of what was written. The
peer is `tar` over the very files that the tar holds, laid out in a folder (in the page cache). CPU and wall seconds a shard, medians.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import results
from stages.shards import Options, write_shard

KB, TARGET = 30, 0.8  # of an image of 224 pixels, JPEG of quality 95; share of tar's speed


def table(samples: int) -> pa.Table:
    """Rows as a run hands them over: bodies of random bytes, captions, URLs, sizes."""
    draw = np.random.default_rng(1)
    bodies = [draw.bytes(int(size)) for size in draw.integers(KB * 500, KB * 1500, samples)]
    rows = np.arange(samples)
    return pa.table(
        {
            "row": rows,
            "index": rows.astype(np.int32),
            "uid": [f"{at:032x}" for at in rows],
            "url": [f"https://host{at % 97}.example/photographs/{at}.jpg" for at in rows],
            "caption": [f"photograph number {at} of a harbour in the evening light" for at in rows],
            "source_caption": [f"photograph number {at} of a harbour in the evening light" for at in rows],
            "fate": ["kept"] * samples,
            "detail": pa.nulls(samples, pa.string()),
            "image": pa.array(bodies, pa.large_binary()),
            "format": ["jpg"] * samples,
            "width": pa.array([224] * samples, pa.int32()),
            "height": pa.array([224] * samples, pa.int32()),
        }
    )


def timed(work: Path, samples: int, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """(CPU seconds, wall seconds) of each round, ours and tar in turn."""
    rows = table(samples)
    found: dict[str, list[tuple[float, float]]] = {"shardmill": [], "tar": []}
    for at in range(rounds + 1):
        shutil.rmtree(work / "ours", ignore_errors=True)  # a run writes new files: what it costs to replace old ones is not counted
        (work / "peer.tar").unlink(missing_ok=True)
        (work / "ours").mkdir()
        cpu, wall = time.process_time(), time.perf_counter()
        write_shard(work / "ours", 0, rows, Options(samples=samples), 1)
        ours = time.process_time() - cpu, time.perf_counter() - wall
        if at == 0:  # also makes the files that tar packs
            with tarfile.open(work / "ours" / "00000.tar") as tar:
                tar.extractall(work / "files", filter="data")
            continue
        command = ["tar", "--format=ustar", "-cf", str(work / "peer.tar"), "-C", str(work / "files"), "."]
        wall = time.perf_counter()
        _, code, used = os.wait4(subprocess.Popen(command).pid, 0)
        if code:
            raise SystemExit(f"tar ended with {code}")
        found["tar"].append((used.ru_utime + used.ru_stime, time.perf_counter() - wall))
        found["shardmill"].append(ours)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    results.begin(parser, given)
    with tempfile.TemporaryDirectory() as name:
        found = timed(Path(name), given.samples, given.rounds)
        size = (Path(name) / "peer.tar").stat().st_size / 1e6
    for at, what in enumerate(("CPU", "wall")):
        ours, peer = (statistics.median(times[at] for times in found[side]) for side in ("shardmill", "tar"))
        if what == "CPU":
            results.add("shards: MB per CPU-second, peer GNU tar", size / ours, size / peer, TARGET, peer / ours >= TARGET, peer / ours)
        print(f"{what}: shardmill {size / ours:.0f} MB/s, tar {size / peer:.0f} MB/s, ratio {peer / ours:.2f} (target {TARGET})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
