"""A connection to DuckDB: what an interrupted query is told as."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import duckdb
import pytest

from pipeline import views
from pipeline.storage import Store

USE = """
import sys, time
from pipeline import views
from pipeline.storage import Store
with views.connect(Store(sys.argv[1])):
    print(flush=True)
    time.sleep(60)
"""
LONG = "SELECT sum(range % 7) AS x FROM range(300000000)"
"""A second or two: DuckDB looks for signals only between its tasks, and may see none before the query's end."""


@pytest.mark.parametrize("at", [0.02, 0.1, 0.2])
def test_ctrl_c_while_a_query_works_is_a_ctrl_c(tmp_path: Path, at: float) -> None:
    threading.Timer(at, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt), views.connect(Store(str(tmp_path))) as con:
        con.execute(LONG).fetchall()


def test_an_interrupted_query_is_a_ctrl_c_and_other_errors_are_themselves(tmp_path: Path) -> None:
    for raised, seen in [
        (RuntimeError("Query interrupted"), KeyboardInterrupt),
        (duckdb.InterruptException("INTERRUPT Error: Interrupted!"), KeyboardInterrupt),
        (RuntimeError("something else"), RuntimeError),
        (duckdb.BinderException("no such column"), duckdb.BinderException),
    ]:
        with pytest.raises(seen), views.connect(Store(str(tmp_path))):
            raise raised


def test_what_a_killed_process_spilled_is_removed_and_what_another_uses_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    users = [subprocess.Popen([sys.executable, "-c", USE, str(tmp_path)], env=environment, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for user in users:
            assert user.stdout
            user.stdout.readline()
        folders = sorted(tmp_path.glob("shardmill-spill-*"))
        assert len(folders) == 2
        users[0].kill()
        users[0].wait()
        for folder in folders:
            os.utime(folder, (0, 0))
        with views.connect(Store(str(tmp_path))):
            assert len(list(tmp_path.glob("shardmill-spill-*"))) == 2  # the live process's and this one's
    finally:
        for user in users:
            user.kill()
            user.wait()
