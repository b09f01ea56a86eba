"""Where the CPU of a fetch goes, as a flame graph: `python benchmarks/flame.py DATA [--rows 1500] [--out docs/images/flame_fetch.svg]`.

One worker's part (download, decode, resize, encode, commit; the engine's own class and settings of malloc, without Ray around it) over the
pictures of benchmarks/images.py, served by nginx, is sampled by py-spy (`make bench-setup` installs it): a bar is as wide as the share of
samples in which that Python function was running, C code below it included. Prints what share of the CPU the image stage took.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import images
from benchmarks.measure import nginx
from pipeline.catalog import entry
from pipeline.engine import MALLOC
from pipeline.phases.fetch import FetchWork
from pipeline.storage import Store

PY_SPY = images.PEERS / "py-spy" / "bin" / "py-spy"
THREADS, RATE = 1, 100  # as a worker of several has; samples a second


def fetch(pictures: Path, rows: int) -> None:
    """In the sampled process: `rows` fetches, then what they cost."""
    with tempfile.TemporaryDirectory() as name, nginx(pictures, Path(name)) as port:
        limits = {"allow_networks": ["127.0.0.1/32"], "per_host": {"concurrency": 64, "per_second": None}}
        stages = [entry("download", limits).stage, entry("images", {"size": 224, "mode": "center_crop", "quality": 95}).stage]
        urls = [f"http://127.0.0.1:{port}/{at % images.FILES}.jpg?{at}" for at in range(rows)]
        known = {"row": pa.array(range(rows), pa.int64()), "fetch_id": [str(at) for at in range(rows)], "url": urls}
        asked = {name: pa.nulls(rows, column.type) for name, column in stages[0].reads.items() if name not in known}
        store = Store(name)
        store.write_table("todo.parquet", pa.table({**known, **asked}))
        work = FetchWork(store, stages, max_error_share=0.0, threads=THREADS)
        work.open()

        async def whole_part() -> dict[str, Any]:
            done = await work.run({"id": "part", "pool": {"todo": "todo.parquet", "out": "out.parquet"}}, False)
            await stages[0].aclose()  # type: ignore[attr-defined]
            return done

        before = resource.getrusage(resource.RUSAGE_SELF)
        done = asyncio.run(whole_part())
        after = resource.getrusage(resource.RUSAGE_SELF)
    if done["kept"] < rows:
        raise SystemExit(f"flame: only {done['kept']} of {rows} fetches were kept")
    whole = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    of_images = done["timings"]["images"]["cpu_seconds"]
    print(f"{rows} pictures: {1000 * whole / rows:.2f} CPU-ms each, of which the stage `images` {of_images / whole:.0%}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?", default=os.environ.get("SHARDMILL_TEST_DATA"))
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--out", type=Path, default=images.ROOT / "docs" / "images" / "flame_fetch.svg")
    given = parser.parse_args()
    if given.data is None or not PY_SPY.exists():
        print(
            "flame: no DATA (name the folder, or set SHARDMILL_TEST_DATA)"
            if given.data is None
            else f"flame: no {PY_SPY} (make bench-setup)"
        )
        return 0
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)  # nginx's worker is another user
        images.pictures(Path(given.data), Path(name))
        command = [
            "py-spy",
            "record",
            "--rate",
            str(RATE),
            "--output",
            os.path.relpath(given.out.resolve(), images.ROOT),
            "--",
            "python",
            "benchmarks/flame.py",
            "fetch",
        ]
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # the graph's title is the command: no full paths
        subprocess.run(
            [str(word) for word in (*command, name, given.rows)],
            executable=PY_SPY, check=True, cwd=images.ROOT, env={**os.environ, **MALLOC, "PATH": path, "PYTHONPATH": str(images.ROOT)},
        )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(fetch(Path(sys.argv[2]), int(sys.argv[3])) if sys.argv[1:2] == ["fetch"] else main())
