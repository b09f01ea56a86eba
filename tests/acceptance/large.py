"""Ten million rows through every phase but the fetches: `python tests/acceptance/large.py DATA [--rows 10000000] [--work FOLDER]`.

A list of captions by benchmarks/captions_generator.py is run as any other, but what the pool holds is made up instead of fetched: wide
columns of every type and a picture of a few bytes. So all that joins, orders and counts rows (dedup, selection, shards, ledger, report, a
repeated run, a changed rule) meets the size at which it must spill to disk. Prints each phase's seconds, the process's and DuckDB's limits
being those of any run, and fails where a phase does or rows get lost.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.captions import captions
from benchmarks.dedup import write_list
from pipeline import runs
from pipeline.engine import Engine
from pipeline.layout import Run, stages_of
from pipeline.phases import fetch

EXIF = '{"Make":"Canon","Model":"EOS 5D","ExposureTime":"1/200","FNumber":4.0,"DateTime":"2011:02:03 10:11:12"}'
MISSING = 20  # of so many fetches one is a 404


def made_up(run: Run, engine: Engine, con: Any, again: list[str] | None = None) -> list[Any]:
    """Stands for `fetch.run_phase`: the same units of work, committed under the same names, without a fetch."""
    schema = fetch.stored_schema(stages_of(run.layout.pool), "fetch_id")
    draw = np.random.default_rng(0)
    for job in fetch.todo(run, con, again):
        units = run.store.read_table(job["pool"]["todo"])["fetch_id"]
        columns = {field.name: _column(field, len(units), draw) for field in schema} | {"fetch_id": units}
        run.store.write_table(job["pool"]["out"], pa.table(columns).select(schema.names).cast(schema))
    return []


def _column(field: pa.Field, rows: int, draw: np.random.Generator) -> pa.Array:
    kept = [at % MISSING > 0 for at in range(rows)]
    if field.name == "fate":
        return pa.array(["kept" if alive else "download:http_404" for alive in kept])
    if field.name == "detail":
        return pa.array([None if alive else "HTTP 404" for alive in kept], pa.string())
    if field.name == "exif":
        return pa.array([EXIF if at % 3 == 0 else "{}" for at in range(rows)])
    if field.name == "format":
        return pa.array(["jpg"] * rows)
    if pa.types.is_string(field.type):
        return pa.array([f"{value:032x}" for value in draw.integers(0, 2**62, rows).tolist()])
    if pa.types.is_integer(field.type):
        return pa.array(draw.integers(100, 1000, rows)).cast(field.type)
    if pa.types.is_floating(field.type):
        return pa.array(draw.random(rows)).cast(field.type)
    if pa.types.is_large_binary(field.type):
        return pa.array([b"\xff\xd8picture"] * rows, field.type)
    return pa.nulls(rows, field.type)


def write_config(path: Path, work: Path, least: int) -> Path:
    """One picture in twenty is kept, so that tars are not what is measured; of the rows that a rule drops shards hold a line, too."""
    rules = [{"name": "side", "keep": f"original_width >= {least}"}, {"name": "share", "keep": "row % 20 = 1"}]
    raw = {
        "input": {"path": str(work / "list.parquet")},
        "run": {"name": "large", "root": str(work / "runs"), "part_rows": 50_000},
        "stages": {
            "ingest": {},
            "captions": {"min_chars": 0},
            "dedup": {"on": "caption", "max_per_caption": None},
            "download": {"contact": "nobody@example.org"},
            "images": {},
            "selection": rules,
        },
        "report": {"thumbnails": False},
    }
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--work", type=Path, help="leaves list and run there, and goes on with what is there")
    given = parser.parse_args()
    fetch.run_phase = made_up
    with tempfile.TemporaryDirectory() as name:
        work = (given.work or Path(name)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        if not (work / "list.parquet").exists():
            write_list(work / "list.parquet", captions(given.data)["English"], given.rows)
        for what, least in [("run", 150), ("the same again", 150), ("a stricter rule", 300)]:
            began = time.monotonic()
            result = runs.run(write_config(work / "large.yaml", work, least))
            told = result.report
            spent = time.monotonic() - began
            assert result.ok
            assert told["rows_in"] == given.rows, told["rows_in"]
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            print(f"{what:16} {spent:7.1f} s, {told['kept']:,} of {told['rows_in']:,} kept, driver's peak {peak:.1f} GB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
