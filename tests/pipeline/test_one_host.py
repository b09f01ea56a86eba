"""A list whose links all lead to one host: its parts take turns, and waiting is no stall."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import TransientError
from pipeline.progress import Quiet
from pipeline.runs import run
from tests.support.corpus import caption, fates, picture, serve_pictures, write_config, write_list
from tests.support.server import Server

HOSTILE = "tests.support.hostile:Hostile"


def test_parts_that_wait_for_their_hosts_turn_do_not_end_the_run(tmp_path: Path, ray_session: object) -> None:
    """Each of two workers has several parts of one host in hand, and the first of them takes longer than a stage may stall."""
    with Server() as server:
        listed = serve_pictures(server, tmp_path, 160, hosts=1)
        slow = {**server.options(), "timeout_s": 5, "retries": 0, "per_host": {"concurrency": 8, "per_second": 16}}
        given = {"ingest": {}, "download": slow, "images": {"size": 64}}
        run(write_config(tmp_path / "test.yaml", server, listed, run__part_rows=40, run__stall_s=3, stages=given), show=Quiet())
    assert fates(tmp_path / "runs" / "test") == {"kept": 160}


def test_a_stage_that_never_returns_ends_the_run_although_other_parts_go_on(tmp_path: Path, ray_session: object) -> None:
    with Server() as server:
        for n in range(240):
            server.files[f"/pictures/{n}.jpg"] = picture(n)
        texts = [caption(n) for n in range(240)]
        texts[3] = "sleep-for-ever"
        listed = write_list(tmp_path / "list.parquet", [server.url(f"/pictures/{n}.jpg") for n in range(240)], texts)
        slow = {**server.options(), "retries": 0, "per_host": {"concurrency": 8, "per_second": 16}}
        given = {"ingest": {}, "captions": {}, "download": slow, HOSTILE: {"nap_s": 60}, "images": {"size": 64}}
        config = write_config(tmp_path / "test.yaml", server, listed, run__part_rows=60, run__stall_s=3, stages=given)
        with pytest.raises(TransientError, match=r"made no progress for 3 s on pool/\w+/part-00000 "):
            run(config, show=Quiet())
        assert server.count() < 200, "it is ended while others still fetch"
