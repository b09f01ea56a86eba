"""Limits per host hold for the whole run: `python tests/acceptance/hosts.py`.

Four download actors on two Ray nodes crawl 800 pictures of four hosts that answer after 100 ms, with at most 4 requests at once and 10
in any second for each host. Prints what the server saw for each host; exit code 1 where a limit was passed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.support.cluster import ray_cluster
from tests.support.corpus import caption, command, write_config, write_list
from tests.support.server import Server

ROWS, HOSTS, CONCURRENCY, PER_SECOND = 800, 4, 4, 10


def main() -> int:
    with tempfile.TemporaryDirectory() as name, Server() as server, ray_cluster(nodes=2, cpus=4) as nodes:
        folder = Path(name)
        urls = [server.url(f"/slow/0.1/{n}", f"host{n % HOSTS}.test") for n in range(ROWS)]
        listed = write_list(folder / "list.parquet", urls, [caption(n) for n in range(ROWS)])
        limits = {"per_host": {"concurrency": CONCURRENCY, "per_second": PER_SECOND}, "retries": 0}
        config = write_config(
            folder / "test.yaml",
            server,
            listed,
            run__part_rows=50,
            ray={"address": nodes.address},
            stages__download={**server.options(), **limits},
        )
        subprocess.run(command("run", str(config)), check=True)
        bad = 0
        for n in range(HOSTS):
            host = f"host{n}.test"
            peak, rate, total = server.peak(host), server.most_in_a_second(host), server.count(host=host)
            print(f"{host}: {total} requests, at most {peak} at once (limit {CONCURRENCY}), {rate} in a second (limit {PER_SECOND})")
            bad |= peak > CONCURRENCY or rate > PER_SECOND or total != ROWS // HOSTS
        return int(bad)


if __name__ == "__main__":
    sys.exit(main())
