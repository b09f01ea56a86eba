"""Limits per host hold for the whole run: `python tests/acceptance/hosts.py`.

Four download actors on three Ray nodes (with room for six, of which one node's two are left free) crawl 800 small bodies (no pictures:
requests are counted) of four hosts, with at most 4 requests at once and 10 in any second for each host. Two hosts answer after
100 ms, where the rate binds, and two after 500 ms, where the number at once does. Prints what the server saw for each
host; exit code 1 where a limit was passed, or is not used.
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
DELAYS = (0.1, 0.5)  # seconds, by turns
TWO_ACTORS = 7 << 30  # bytes of memory in which two of them fit


def main() -> int:
    with tempfile.TemporaryDirectory() as name, Server() as server, ray_cluster(nodes=3, cpus=4, memory=TWO_ACTORS) as nodes:
        folder = Path(name)
        urls = [server.url(f"/slow/{DELAYS[n % 2]}/{n}", f"host{n % HOSTS}.test") for n in range(ROWS)]
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
            bad |= peak < CONCURRENCY if n % 2 else rate < PER_SECOND - 2
        return int(bad)


if __name__ == "__main__":
    sys.exit(main())
