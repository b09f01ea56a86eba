"""Ctrl-C, as a terminal sends it: to the command and to all that it started, at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from tests.support.corpus import command, serve_pictures, write_config
from tests.support.server import Server


def test_ctrl_c_just_as_the_first_part_is_committed_is_told_and_leaves_nothing_running(tmp_path: Path) -> None:
    """The moment at which Ray's own threads are busiest with handing out work."""
    with Server() as server:
        listed = serve_pictures(server, tmp_path, 60, hosts=1)
        slow = {**server.options(), "timeout_s": 5, "retries": 0, "per_host": {"concurrency": 2, "per_second": 6}}
        given = {"ingest": {}, "download": slow, "images": {"size": 64}}
        config = write_config(tmp_path / "test.yaml", server, listed, run__part_rows=10, stages=given)
        pool = tmp_path / "runs" / "test" / "pool"
        with subprocess.Popen(
            command("run", str(config)), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as going:
            until = time.monotonic() + 120
            while not list(pool.rglob("part-*.parquet")) and going.poll() is None and time.monotonic() < until:
                time.sleep(0.02)
            os.killpg(going.pid, signal.SIGINT)
            said = going.communicate(timeout=60)[1]
    assert going.returncode == 130, said
    told = [line for line in said.splitlines() if not line.startswith("INFO ")]
    assert told == ["error: stopped; what is committed stays, and the same command goes on"]
    assert subprocess.run(["pgrep", "-g", str(going.pid)], capture_output=True, check=False).stdout == b""
