"""Hostile stages of a user's own: `python tests/acceptance/own_stages.py [ROWS]` (default 10,000).

One row calls os.abort(), one allocates without end, one raises: the run ends, one fate each, nothing else is lost. Then a
stage that sleeps for ever on one row: the run ends within `run.stall_s` and names the stage. Exit code 1 where that is not so.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.support.corpus import caption, ledger, picture, shardmill, write_config, write_list
from tests.support.server import Server

EVIL = {"abort-now": "hostile:crashed", "eat-memory": "hostile:out_of_memory", "raise-now": "hostile:error"}
STALL_S = 10


def main(rows: int) -> int:
    with tempfile.TemporaryDirectory() as name, Server() as server:
        folder = Path(name)
        for n in range(50):
            server.files[f"/pictures/{n}.jpg"] = picture(n)
        texts = [caption(n) for n in range(rows)]
        places = {int(rows * share): word for share, word in zip((0.21, 0.53, 0.87), EVIL, strict=True)}
        for row, word in places.items():
            texts[row] = word
        urls = [server.url(f"/pictures/{n % 50}.jpg") for n in range(rows)]
        download = {**server.options(), "per_host": {"concurrency": 50, "per_second": None}}
        stages = {
            "ingest": {},
            "captions": {"min_chars": 0},
            "tests.support.hostile:Hostile": {},
            "download": download,
            "images": {"size": 64},
        }
        listed = write_list(folder / "list.parquet", urls, texts)
        config = write_config(folder / "test.yaml", server, listed, stages=stages, run__part_rows=1000, shards__samples=1000)
        began = time.monotonic()
        shardmill("run", str(config), timeout=600)
        lost = {
            line["row"]: (line["fate"], line["detail"]) for line in ledger(folder / "runs" / "test").to_pylist() if line["fate"] != "kept"
        }
        print(f"{rows:,} rows in {time.monotonic() - began:.0f} s; not kept:")
        for row, (fate, detail) in sorted(lost.items()):
            print(f"  row {row} ({texts[row]}): {fate}: {detail}")
        bad = {row: fate for row, (fate, _) in lost.items()} != {row: EVIL[word] for row, word in places.items()}
        return int(bad or _sleeper(folder / "sleep", server))


def _sleeper(folder: Path, server: Server) -> bool:
    folder.mkdir()
    listed = write_list(folder / "list.parquet", [server.url("/pictures/1.jpg")] * 3, ["one", "sleep-for-ever", "three"])
    download = {**server.options()}
    hostile = {"tests.support.hostile:Hostile": {"nap_s": 3600}}
    stages = {"ingest": {}, "captions": {"min_chars": 0}, **hostile, "download": download, "images": {"size": 64}}
    config = write_config(folder / "test.yaml", server, listed, stages=stages, run__stall_s=STALL_S)
    began = time.monotonic()
    out = shardmill("run", str(config), check=False)
    said = [line for line in out.stderr.splitlines() if "no progress" in line]
    print(
        f"a stage that sleeps for ever: exit code {out.returncode} after {time.monotonic() - began:.0f} s (run.stall_s {STALL_S})\n  {said}"
    )
    return out.returncode != 3 or not said or "stage hostile" not in said[0]


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000))
