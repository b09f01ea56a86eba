"""A fault of the machine that a worker survives is no worker's death: once it is mended, parts are not run a row at a time."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline import workers
from pipeline.stage import Resources
from pipeline.storage import Store


class Filling:
    """Work that fails as on a full disk, until there is room."""

    name = "filling"
    resources = Resources()

    def __init__(self, fault: Exception) -> None:
        self.fault: Exception | None = fault
        self.careful: list[bool] = []

    def open(self) -> None:
        pass

    def __call__(self, job: dict[str, Any], careful: bool) -> dict[str, Any]:
        self.careful.append(careful)
        if self.fault is not None:
            raise self.fault
        return {"rows": 1}


@pytest.mark.parametrize(("fault", "careful"), [(OSError(errno.ENOSPC, "No space left on device"), False), (MemoryError(), True)])
def test_parts_that_failed_on_a_full_disk_go_on_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception, careful: bool
) -> None:
    monkeypatch.setattr(workers, "_start_beating", lambda board: None)
    monkeypatch.setattr(workers.careful, "limit_memory", lambda size: None)
    monkeypatch.setattr(workers.Worker, "opened", {})
    work = Filling(fault)
    tasks = workers.Tasks(work, Store(str(tmp_path)), None)  # type: ignore[arg-type]
    line = pa.table({"line": [json.dumps({"id": "pool/k/part-00000"})]})
    for _ in range(4):
        assert json.loads(tasks(line)["line"][0].as_py())["kind"] == "machine"
    work.fault = None
    assert json.loads(tasks(line)["line"][0].as_py())["rows"] == 1
    assert work.careful[-1] is careful
