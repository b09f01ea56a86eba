"""A report of a large run: `python tests/acceptance/report_million.py DATA [ROWS [SCORES]]` (1,000,000 rows with 1 score; 4 at most).

A list of ROWS rows is expanded from DATA's Flickr8k captions (each used many times, with a number of its own), under 20,000 hosts. What the
network and a scorer would have given is written into the pool beforehand; all other phases are the real ones: captions, near-duplicates of
captions and images, selection, ledger, shards. Prints seconds, peak memory and page size of `shardmill report`, and the seconds that
`browse` takes to start and to answer. Exit code 1 where the funnel is not the list, the page is over 5 MB, or an answer takes a second.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
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

sys.path.insert(0, str(Path(__file__).parents[2]))
from pipeline import browse, views
from pipeline.config import load
from pipeline.keys import digest
from pipeline.layout import open_run, stages_of
from pipeline.phases import fetch
from pipeline.runs import reopen
from tests.support.corpus import command

QUESTIONS: list[dict[str, str]] = [
    {"fate": "kept", "sort": "similarity", "down": "1"},
    {"text": "snow", "sort": "chars"},
    {"host": "host1.example", "column": "similarity", "least": "0.3", "sort": "latency_ms"},
    {"sort": "url", "down": "1", "page": "20"},
]
DEEP = 0.9  # of the rows in an order, behind which a page is asked for
PICTURES, HOSTS, PER_FILE = 200, 20_000, 50_000
LOSSES = [("download:http_404", "HTTP 404"), ("download:dns_nxdomain", "no such host"), ("download:timeout", "no answer in 20 s"),
          ("images:undecodable", "broken data stream")]  # fmt: skip


def listed(data: Path, rows: int, scores: int) -> pa.Table:
    """URLs and captions: Flickr8k's captions again and again, every fifth one as it is, the others followed by another one; and scores of
    the list, of which a twentieth is null, so that the report has `scores` sliders."""
    with (data / "flickr8k" / "captions.csv").open(encoding="utf-8") as file:
        captions = [line["caption"] for line in csv.DictReader(file)]
    rng = np.random.default_rng(1)
    host = np.minimum(rng.zipf(1.3, rows), HOSTS)
    base = rng.integers(len(captions), size=rows)
    other = rng.integers(len(captions), size=rows)
    texts = [captions[a] if n % 5 == 0 else f"{captions[a]} {captions[b]}" for n, (a, b) in enumerate(zip(base, other, strict=True))]
    urls = [f"https://host{h}.example/{n:07d}.jpg" for n, h in enumerate(host)]
    claimed = {"punsafe": rng.beta(0.5, 6, rows), "pwatermark": rng.beta(1, 3, rows), "AESTHETIC_SCORE": rng.normal(5, 1, rows)}
    nulls = rng.random(rows) < 0.05
    columns = {name: pa.array(values, pa.float32(), mask=nulls) for name, values in list(claimed.items())[: scores - 1]}
    return pa.table({"URL": urls, "TEXT": texts} | columns)


def pictures(data: Path) -> list[bytes]:
    """Real photographs, 64 pixels wide."""
    out = []
    for path in sorted((data / "flickr8k" / "val").glob("*.jpg"))[:PICTURES]:
        image, body = Image.open(path).convert("RGB"), io.BytesIO()
        image.resize((64, 64)).save(body, "JPEG", quality=60)
        out.append(body.getvalue())
    return out


def config(folder: Path) -> Path:
    raw: dict[str, Any] = {
        "input": {"path": str(folder / "list.parquet")},
        "run": {"name": "million", "root": str(folder / "runs"), "part_rows": PER_FILE},
        "stages": {
            "ingest": {},
            "captions": {},
            "dedup": {"on": "both"},
            "download": {"contact": "tests@example.org"},
            "images": {"size": 64},
            "tests.support.judged:ByPicture": {},
            "image_dedup": {},
            "selection": [{"name": "similarity", "keep": "similarity >= 0.1"}],
        },
        "shards": {"samples": 10_000},
    }
    path = folder / "million.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path


def prepare(path: Path, table: pa.Table, bodies: list[bytes]) -> None:
    """Pool and scores as a crawl would have left them, by their content addresses."""
    run = open_run(load(path))
    rows, rng = len(table), np.random.default_rng(2)
    con = duckdb.connect()
    names = fetch.pool_reads(run)
    con.register("urls", table.select(["URL"]).rename_columns(["url"]))
    nothing = ", ".join(f"CAST(NULL AS VARCHAR) AS {name}" for name in names if name != "url")
    fetches = con.sql(f"SELECT {fetch.unit_sql(names, 'u')} AS f FROM (SELECT url, {nothing} FROM urls) u").to_arrow_table()["f"]
    con.register("fetches", pa.table({"f": fetches}))
    pairs = con.sql(f"SELECT {fetch.unit_sql(fetch.pair_reads(run), 'q', 'f')} AS p FROM fetches q").to_arrow_table()["p"]
    loss = np.where(rng.random(rows) < 0.25, rng.integers(len(LOSSES), size=rows), -1)
    same = np.where(rng.random(rows) < 0.1, rng.integers(rows // 50 + 1, size=rows), np.arange(rows) + rows)
    pool = fetch.stored_schema(stages_of(run.layout.pool), "fetch_id")
    scores = fetch.stored_schema(stages_of(run.layout.scores), "pair_id", "fetch_id")
    for at in range(0, rows, PER_FILE):
        here = slice(at, min(at + PER_FILE, rows))
        count = here.stop - here.start
        lost, image = loss[here], same[here]
        hashes = [f"{int(one) * 0x9E3779B97F4A7C15 % 2**64:016x}" for one in image]
        kept = lost < 0
        sides = rng.integers(200, 2000, (count, 2))
        columns: dict[str, Any] = {
            "fetch_id": fetches[here.start : here.stop].combine_chunks(),
            "image": pa.array([bodies[n % len(bodies)] if ok else None for n, ok in zip(image, kept, strict=True)], pa.large_binary()),
            "sha256": hashes,
            "phash": pa.array([h if ok else None for h, ok in zip(hashes, kept, strict=True)]),
            "format": ["jpg"] * count,
            "original_format": pa.array(["jpeg" if ok else None for ok in kept]),
            "http_status": pa.array([404 if n == 0 else 200 for n in lost], pa.int32()),
            "fetched_bytes": rng.integers(5_000, 400_000, count),
            "latency_ms": rng.integers(20, 3_000, count),
            "width": [64] * count,
            "height": [64] * count,
            "original_width": pa.array(sides[:, 0], mask=~kept),
            "original_height": pa.array(sides[:, 1], mask=~kept),
            "flat": [False] * count,
            "fate": ["kept" if n < 0 else LOSSES[n][0] for n in lost],
            "detail": pa.array([None if n < 0 else LOSSES[n][1] for n in lost]),
        }
        whole = {f.name: pa.array(columns[f.name]).cast(f.type) if f.name in columns else pa.nulls(count, f.type) for f in pool}
        name = f"part-{at // PER_FILE:05d}.0.parquet"
        run.store.write_table(f"pool/{digest(fetch.pool_made_of(run))}/{name}", pa.table(whole, pool))
        judged = {
            "pair_id": pairs[here.start : here.stop].combine_chunks().filter(pa.array(kept)),
            "fetch_id": whole["fetch_id"].filter(pa.array(kept)),
            "similarity": pa.array(rng.normal(0.25, 0.08, int(kept.sum())), pa.float32()),
            "fate": pa.array(["kept"] * int(kept.sum())),
            "detail": pa.nulls(int(kept.sum()), pa.string()),
        }
        run.store.write_table(f"scores/{digest(fetch.scores_made_of(run))}/{name}", pa.table(judged, scores))


def timed(*args: str) -> tuple[float, float]:
    """Seconds and peak memory in bytes of a command."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    began = time.monotonic()
    process = subprocess.Popen(command(*args), env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"shardmill {' '.join(args)} ended with {os.waitstatus_to_exitcode(status)}")
    return time.monotonic() - began, usage.ru_maxrss * 1024


def _where(rows: browse.Rows, asked: dict[str, str]) -> tuple[str, list[Any], str]:
    tests, values = rows._tests(asked)
    return f"WHERE {' AND '.join(tests)}" if tests else "", values, asked["sort"]


def browsed(run: Path) -> float:
    """Seconds of the slowest of a few questions to `browse`; prints all."""
    began, slowest = time.monotonic(), 0.0
    known = reopen(str(run))
    with views.connect(known.run.store) as con:
        rows = browse.Rows(known, con)
        print(f"browse: ready after {time.monotonic() - began:.1f} s")
        for asked in QUESTIONS:
            began = time.monotonic()
            total = rows.find(asked)["total"]
            seconds = time.monotonic() - began
            slowest = max(slowest, seconds)
            print(f"  {asked}: {total:,} rows in {seconds:.3f} s")
            source = rows._source(*_where(rows, asked))
            order = browse._order(bool(asked.get("down")))
            ((row,),) = con.execute(f"SELECT row FROM {source} ORDER BY {order} LIMIT 1 OFFSET {int(DEEP * total)}").fetchall()
            for turn in ("after", "before"):
                began = time.monotonic()
                assert len(rows.find({**asked, turn: str(row)})["rows"]) == browse.PAGE
                seconds = time.monotonic() - began
                slowest = max(slowest, seconds)
                print(f"    {turn} a row at {DEEP:.0%} of them: {seconds:.3f} s")
    return slowest


def main() -> int:
    data, rows = Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000
    scores = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    folder = Path(tempfile.mkdtemp(prefix="shardmill-million-"))
    try:
        table, path = listed(data, rows, scores), config(folder)
        pq.write_table(table, folder / "list.parquet")
        began = time.monotonic()
        prepare(path, table, pictures(data))
        print(f"{rows:,} rows prepared in {time.monotonic() - began:.0f} s", flush=True)
        seconds, memory = timed("run", str(path))
        print(f"run: {seconds:.0f} s, driver's peak memory {memory / 1e9:.2f} GB", flush=True)
        run = folder / "runs" / "million"
        seconds, memory = timed("report", str(run))
        size = (run / "report" / "index.html").stat().st_size
        report = json.loads((run / "report" / "report.json").read_text())
        print(f"report: {seconds:.1f} s, peak memory {memory / 1e9:.2f} GB, page {size / 1e6:.2f} MB; kept {report['kept']:,}", flush=True)
        print(f"sliders: {', '.join(one['column'] for one in report['what_if'])}")
        print(f"fates: { {one['fate']: one['rows'] for one in report['funnel']} }")
        slowest = browsed(run)
        return int(size > 5_000_000 or slowest > 1 or sum(one["rows"] for one in report["funnel"]) != rows)
    finally:
        if not os.environ.get("SHARDMILL_KEEP"):
            shutil.rmtree(folder)
        else:
            print(f"kept: {folder}")


if __name__ == "__main__":
    sys.exit(main())
