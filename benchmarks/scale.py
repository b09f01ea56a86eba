"""Ten times the rows, ten times the time: `python benchmarks/scale.py [--rows 2000 20000] [--keep FOLDER]`.

Lists of growing length, one small picture under as many URLs (nginx on loopback; the query differs), through `shardmill run` with every
stage but scores. Seconds and CPU seconds a row with the start-up (runs of a few rows, their median) taken off, and the peak memory of all
processes; wanted is that none of these grows by more than a tenth from one size to the next.
Then, on the largest run: what `plan`, a repeated `run` and a changed threshold cost, beside a bare DuckDB query over the same columns and a
copy of the shards' bytes, and the change taken back. --keep leaves the runs in FOLDER, and a run that lies there whole is not made again.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import results
from benchmarks.measure import Cost, cost, medians, nginx

ROOT = Path(__file__).resolve().parents[1]
WORDS = ("harbour", "evening", "light", "boat", "red", "stone", "child", "garden", "winter", "street", "bicycle", "market", "river", "old")
PART, SHARD = 2000, 10_000  # rows of a part, samples of a shard
PARTS = 4 * (os.cpu_count() or 1)  # parts that all workers have in hand at once
FEW, STARTS = 64, 3  # rows of the runs that show what starting costs, and how many there are: one varies by a CPU-second
WITHIN, ANSWER_S = 0.10, 3.0  # how far from linear, and from flat; seconds for plan and a repeated run


def picture(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC).save(out, "JPEG", quality=80)
    (folder / "0.jpg").write_bytes(out.getvalue())


def write_list(path: Path, rows: int) -> Path:
    """Captions are words drawn at random, so that hardly any is another's near-duplicate. One that is there stays: keys hold its time."""
    if path.exists():
        return path
    drawn = np.array(WORDS)[np.random.default_rng(rows).integers(0, len(WORDS), (rows, 9))]
    captions = [" ".join(line) + f" {at}" for at, line in enumerate(drawn.tolist())]
    pq.write_table(pa.table({"url": [f"http://h{at % 500}.test/0.jpg?{at}" for at in range(rows)], "caption": captions}), path)
    return path


def write_config(path: Path, listed: Path, root: Path, port: int, rows: int = PARTS * PART) -> Path:
    """Short lists are cut into as many parts as there may be at once, and two shards: as many processes work on them as on long ones."""
    served = {"resolve": {"*": f"127.0.0.1:{port}"}, "allow_networks": ["127.0.0.1/32"]}
    limits = {**served, "per_host": {"concurrency": 8, "per_second": None}}
    raw: dict[str, Any] = {
        "input": {"path": str(listed)},
        "run": {"name": path.stem, "root": str(root), "part_rows": min(PART, -(-rows // PARTS))},
        "stages": {
            "ingest": {},
            "captions": {"min_chars": 5},
            "dedup": {"on": "caption"},
            "download": limits,
            "images": {"size": 64},
            "selection": [{"name": "side", "keep": "original_width >= 64"}],
        },
        "shards": {"samples": min(SHARD, -(-rows // 2))},
    }
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path


def command(*words: str) -> Cost:
    return cost([sys.executable, "-m", "pipeline.cli", *words], env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=6 * 3600)


def grown(work: Path, port: int, sizes: list[int]) -> tuple[Path, int]:
    """Runs them all; the config of the largest, and its rows."""
    config, last, start = Path(), dict[str, float](), started(work, port)
    for rows in sizes:
        config = write_config(work / f"rows{rows}.yaml", write_list(work / f"rows{rows}.parquet", rows), work / "runs", port, rows)
        if (work / "runs" / config.stem / "shards" / "manifest.json").exists():
            print(f"{rows:9,} rows: there already")
            continue
        made = command("run", str(config))
        each, unsure = ({what: 1000 * amount / rows for what, amount in one.items()} for one in (beyond(made, start), spread(start)))
        told = ", ".join(f"{amount:.2f} {what} (starts differ by {unsure[what]:.2f})" for what, amount in each.items())
        print(f"{rows:9,} rows: {made.wall_s:.1f} s; {told}; {made.peak_mb:.0f} MB", flush=True)
        now = {what: amount for what, amount in each.items() if unsure[what] < WITHIN * amount}
        for what in each.keys() - now.keys():
            print(f"{'':9} {what}: too few rows to tell a tenth, since the starts differ by more")
        now["peak memory in MB"] = made.peak_mb
        for what, value in now.items():
            if what in last:
                before, ratio = int(last["rows"]), value / last[what]
                print(f"{'':9} {what}: {ratio - 1:+.0%} against {before:,} rows (wanted: {WITHIN:.0%} at most)")
                results.add(
                    f"scale: {what}, {rows:,} rows, peer {before:,} rows", value, last[what], 1 + WITHIN, ratio <= 1 + WITHIN, ratio
                )
        last = {**now, "rows": rows}
    return config, sizes[-1]


def started(work: Path, port: int) -> list[Cost]:
    """Runs of a few rows: what starting costs."""
    starts, listed = list[Cost](), write_list(work / f"rows{FEW}.parquet", FEW)
    for number in range(STARTS):
        starts.append(command("run", str(write_config(work / f"start{number}.yaml", listed, work / "runs", port, FEW))))
        shutil.rmtree(work / "runs" / f"start{number}")
    print(f"start-up ({FEW} rows): {medians(starts)}", flush=True)
    return starts


def beyond(made: Cost, starts: list[Cost]) -> dict[str, float]:
    """What a run took beyond the median start, in seconds."""
    return {
        "ms a row": made.wall_s - statistics.median(one.wall_s for one in starts),
        "CPU-ms a row": made.cpu_s - statistics.median(one.cpu_s for one in starts),
    }


def spread(starts: list[Cost]) -> dict[str, float]:
    """By how much the starts differ, in seconds."""
    return {
        "ms a row": max(one.wall_s for one in starts) - min(one.wall_s for one in starts),
        "CPU-ms a row": max(one.cpu_s for one in starts) - min(one.cpu_s for one in starts),
    }


def again(config: Path, rows: int, root: Path) -> None:
    """What a finished run costs to look at, to repeat, and to select anew."""
    changed = [
        "--set",
        'selection=[{name: side, keep: "original_width >= 64"}, {name: half, keep: "row % 2 = 0"}]'.replace(
            "selection", "stages.selection"
        ),
    ]
    for name, words in {
        "plan": ["plan"],
        "run, nothing to do": ["run"],
        "plan of a change": ["plan", *changed],
        "run, rule added": ["run", *changed],
    }.items():
        spent = command(words[0], str(config), *words[1:])
        print(f"{name:20} {spent.wall_s:6.1f} s {spent.cpu_s:6.1f} CPU-s", flush=True)
        if name in ("plan", "run, nothing to do"):
            results.add(f"scale: {name}, {rows:,} rows, seconds", spent.wall_s, None, ANSWER_S, spent.wall_s <= ANSWER_S)
    run, began = root / config.stem, time.perf_counter()
    duckdb.sql(f"SELECT count(*) FROM '{run}/pool/*/part-*.parquet' WHERE original_width >= 64 AND width % 2 = 0").fetchall()
    queried, began = time.perf_counter() - began, time.perf_counter()
    shutil.copytree(max((run / "shards").glob("*/"), key=lambda path: path.stat().st_mtime), run / "copy")
    print(f"bare DuckDB query {queried:.1f} s, copy of the shards' bytes {time.perf_counter() - began:.1f} s")
    shutil.rmtree(run / "copy")
    back = command("run", str(config))  # as it was, for --keep: else the next measurement of a repeated run would take the rule back
    print(f"{'run, rule taken back':20} {back.wall_s:6.1f} s {back.cpu_s:6.1f} CPU-s", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[2000, 20_000])
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = (given.keep or Path(name)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        picture(work / "pictures")
        with nginx(work / "pictures", work) as port:
            again(*grown(work, port, sorted(given.rows)), work / "runs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
