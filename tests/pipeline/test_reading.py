"""Input that only a stream can cut, read again by a resume: the watchdog sees that it is at work."""

from __future__ import annotations

import gzip
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.heart import HEART
from pipeline.parts import part_name
from pipeline.phases import rows
from pipeline.storage import Store
from stages.ingest.files import list_files
from stages.ingest.stage import Ingest


def test_reading_past_committed_parts_is_seen_as_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "list.csv.gz").write_bytes(gzip.compress(b"url,caption\n" + b"http://a.test/1,a\n" * 50))
    files = list_files(str(tmp_path / "list.csv.gz"))
    given = SimpleNamespace(columns="auto", header="auto", storage_options={})
    config: Any = SimpleNamespace(input=given, run=SimpleNamespace(part_rows=10, max_error_share=0.01))
    store = Store(str(tmp_path / "run"))
    work = rows.RowsWork(store, [Ingest()], None, [], files, config)
    job = {"id": "rows/k/stream", "file": files[0].url, "key": "k"}
    assert work(job, careful=False)["rows"] == 50

    seen: list[list[str]] = []
    read = work._read

    def told(*given: Any) -> Any:
        for raw in read(*given):
            seen.append([f"{stage} {part}" for part, stage, _ in HEART.snapshot()["now"]])
            yield raw
        assert HEART.snapshot()["now"], "also while it looks for the end"

    monkeypatch.setattr(work, "_read", told)
    assert work(job, careful=False) == {"rows": 50, "kept": 0, "timings": {}}
    assert seen == [[f"rows (reading) rows/k/{part_name(index)}"] for index in range(5)]
    assert HEART.snapshot()["now"] == []
