"""Peak memory of a whole run: `python tests/acceptance/memory.py [ROWS ...]` (default 2000 20000).

Parts of 250 rows, so that 2,000 fill all hands of two workers, one row in a hundred an image of about 20 MB. Every 0.2 s the
proportional set sizes (PSS) of all processes of the run are summed, shared memory (Ray's object store, in /dev/shm) apart. The peak must
be flat within 10 %, from the shortest to the longest list and within the longest run after its first 1,000 rows, and the bytes through the
driver (the lines of JSON in and out) under 1 KB a row. Exit code 1 where a bound is missed.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.support.corpus import caption, command, picture, write_config, write_list
from tests.support.server import Server

BIG_EVERY, PART, EARLY = 100, 250, 1000


@dataclass
class Watch:
    """Samples of (rows committed, PSS without shared memory, shared memory) in bytes."""

    pid: int
    pool: Path
    seen: list[tuple[int, int, int]] = field(default_factory=list)
    heaviest: tuple[int, str] = (0, "")

    def sample(self) -> None:
        private = shared = 0
        parts = []
        try:
            processes = [psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in processes:
            try:
                rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
            except OSError:
                continue
            sizes = {line.split(":")[0]: int(line.split()[1]) << 10 for line in rollup.splitlines()[1:]}
            private += sizes["Pss"] - sizes.get("Pss_Shmem", 0)
            shared += sizes.get("Pss_Shmem", 0)
            parts.append((sizes["Pss"] >> 20, _name(process)))
        if private > self.heaviest[0]:
            self.heaviest = private, ", ".join(f"{name} {size}" for size, name in sorted(parts, reverse=True)[:9])
        self.seen.append((len(list(self.pool.rglob("part-*.parquet"))) * PART, private, shared))

    def follow(self, process: subprocess.Popen[bytes]) -> None:
        while process.poll() is None:
            self.sample()
            time.sleep(0.2)


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()[:1])[-40:]
    except psutil.Error:
        return "?"


def big_picture() -> bytes:
    """A JPEG of about 20 MB: 20 megapixels of noise."""
    noise = np.random.default_rng(1).integers(0, 256, (4500, 4600, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "JPEG", quality=90)
    return out.getvalue()


def measure(server: Server, folder: Path, rows: int) -> dict[str, float]:
    """`peak` PSS and `shared` memory in MB; `drift` of the peak within the run after 1,000 rows; `driver` bytes a row."""
    urls = [server.url("/big.jpg" if n % BIG_EVERY == 50 else f"/small/{n % 300}.jpg", f"h{n % 50}.test") + f"?{n}" for n in range(rows)]
    listed = write_list(folder / f"list-{rows}.parquet", urls, [caption(n) for n in range(rows)])
    home = folder / str(rows)
    home.mkdir()
    config = write_config(
        home / "test.yaml",
        server,
        listed,
        run__part_rows=PART,
        stages__download={**server.options(), "timeout_s": 60, "max_bytes": "40MB", "per_host": {"concurrency": 8, "per_second": None}},
        stages__images={"size": 224},
        shards__samples=1000,
    )
    with subprocess.Popen(command("run", str(config)), stdout=subprocess.DEVNULL) as going:
        watch = Watch(going.pid, home / "runs" / "test" / "pool")
        watcher = threading.Thread(target=watch.follow, args=(going,))
        watcher.start()
        if going.wait():
            raise SystemExit("the run failed")
        watcher.join()
    half = (rows + EARLY) // 2
    early, late = ([p for at, p, _ in watch.seen if low <= at < high] for low, high in ((EARLY, half), (half, rows + 1)))
    print(f"  at the peak (MB): {watch.heaviest[1]}")
    steps = [
        (low, max((p for at, p, _ in watch.seen if low <= at < low + rows // 5), default=0) >> 20) for low in range(0, rows + 1, rows // 5)
    ]
    print("  peak by rows committed:", ", ".join(f"from {low:,} {size} MB" for low, size in steps))
    report = json.loads((home / "runs" / "test" / "report" / "report.json").read_text())
    peak, shared = max(p for _, p, _ in watch.seen) / 1e6, max(s for _, _, s in watch.seen) / 1e6
    return {"peak": peak, "shared": shared, "drift": max(late) / max(early) - 1, "driver": report["driver_bytes"] / rows}


def main(row_counts: list[int]) -> int:
    with tempfile.TemporaryDirectory() as name, Server() as server:
        server.files["/big.jpg"] = big_picture()
        print(f"big images: {len(server.files['/big.jpg']) / 1e6:.1f} MB, one in {BIG_EVERY} rows; parts of {PART} rows")
        for n in range(300):
            server.files[f"/small/{n}.jpg"] = picture(n)
        results = []
        for rows in row_counts:
            server.requests.clear()
            began = time.monotonic()
            found = measure(server, Path(name), rows)
            sizes_mb = f"peak PSS {found['peak']:,.0f} MB, shared {found['shared']:,.0f} MB"
            print(
                f"{rows:7,} rows: {sizes_mb}; {found['driver']:.0f} bytes a row through the driver; {time.monotonic() - began:.0f} s",
                flush=True,
            )
            results.append(found)
        grown = max(found["peak"] for found in results) / results[0]["peak"] - 1
        drift = results[-1]["drift"]
        print(f"peak of the longest list against that of the shortest: {grown:+.1%} (bound +10 %)")
        print(f"within the longest run, second half against first, after {EARLY:,} rows: {drift:+.1%} (bound +10 %)")
        return int(max(grown, drift) > 0.10 or max(found["driver"] for found in results) > 1000)


if __name__ == "__main__":
    sys.exit(main([int(word) for word in sys.argv[1:]] or [2_000, 20_000]))
