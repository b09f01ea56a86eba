"""Killed and begun again: the shards are those of an undisturbed run, byte for byte. Ten more moments: tests/acceptance/kill.py."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from pipeline.progress import Quiet
from pipeline.runs import run
from tests.support.corpus import command, fates, outputs, serve_pictures, shardmill, write_config
from tests.support.server import Server


def test_a_run_killed_in_the_middle_goes_on_to_the_same_bytes(tmp_path: Path, ray_session: object) -> None:
    with Server() as server:
        listed = serve_pictures(server, tmp_path, 200)
        first, second = tmp_path / "a", tmp_path / "b"
        first.mkdir()
        second.mkdir()
        run(write_config(first / "test.yaml", server, listed, run__part_rows=20), show=Quiet())
        config = write_config(second / "test.yaml", server, listed, run__part_rows=20)
        pool = second / "runs" / "test" / "pool"
        requests = server.count()
        with subprocess.Popen(
            command("run", str(config)), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as going:
            until = time.monotonic() + 120
            while len(list(pool.rglob("part-*.parquet"))) < 3 and time.monotonic() < until:
                time.sleep(0.05)
            os.killpg(going.pid, signal.SIGKILL)
        committed = len(list(pool.rglob("part-*.parquet")))
        assert 3 <= committed < 10
        shardmill("run", str(config))
        fetched = server.count() - requests
    assert outputs(second / "runs" / "test") == outputs(first / "runs" / "test")
    assert fates(second / "runs" / "test") == {"kept": 200}
    assert fetched <= 200 + (10 - committed) * 20, "what was committed is not fetched again"
