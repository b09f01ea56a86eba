"""What a Ray worker does around a job, without Ray around it."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.engine import MALLOC

TASK = """
import json, sys, time
from types import SimpleNamespace
import psutil, pyarrow as pa
from pipeline.stage import Resources
from pipeline.storage import Store
from pipeline.workers import Tasks

class Crumbs:
    name, resources, kept = "crumbs", Resources(memory=4 << 30), []
    def open(self): pass
    def __call__(self, job, careful):
        crumbs = [bytes(1000) for _ in range(200_000)]
        self.kept.append(crumbs[-1])  # above all others, so that nothing but a trim gives those back
        return {}

def memory():
    return psutil.Process().memory_info().rss >> 20

board = SimpleNamespace(beat=SimpleNamespace(remote=lambda *_: None))
tasks = Tasks(Crumbs(), Store(sys.argv[1]), board)
before = memory()
done = json.loads(tasks(pa.table({"line": [json.dumps({"id": "job"})]}))["line"][0].as_py())
assert done == {"id": "job"}, done
print(memory() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="another C library than glibc")
def test_a_task_gives_back_the_memory_that_it_freed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TASK, str(tmp_path)]
    told = subprocess.run(command, env={**os.environ, **MALLOC}, capture_output=True, text=True, check=True)
    assert int(told.stdout) < 50, f"of 200 MB {told.stdout.strip()} are held"
