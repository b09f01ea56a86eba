"""A list whose links all lead to one host: its parts take turns, and waiting is no stall."""

from __future__ import annotations

from pathlib import Path

from pipeline.progress import Quiet
from pipeline.runs import run
from tests.support.corpus import fates, serve_pictures, write_config
from tests.support.server import Server


def test_parts_that_wait_for_their_hosts_turn_do_not_end_the_run(tmp_path: Path, ray_session: object) -> None:
    """Each of two workers has several parts of one host in hand, and the first of them takes longer than a stage may stall."""
    with Server() as server:
        listed = serve_pictures(server, tmp_path, 160, hosts=1)
        slow = {**server.options(), "timeout_s": 5, "retries": 0, "per_host": {"concurrency": 8, "per_second": 16}}
        given = {"ingest": {}, "download": slow, "images": {"size": 64}}
        run(write_config(tmp_path / "test.yaml", server, listed, run__part_rows=40, run__stall_s=3, stages=given), show=Quiet())
    assert fates(tmp_path / "runs" / "test") == {"kept": 160}
