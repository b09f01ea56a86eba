"""The phase that calls ingest: a compressed list of unknown length is cut into parts, and no line is lost."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import config
from pipeline.layout import open_run, stages_of
from pipeline.phases import rows

LINES = 53


@pytest.mark.parametrize("ending", [".csv.gz", ".jsonl"])
def test_a_list_of_unknown_length_becomes_parts(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"list{ending}"
    csv = ending == ".csv.gz"
    bad = "http://a.test/7" if csv else "{"
    row = "http://a.test/{0},row {0} of the list" if csv else '{{"LINK": "http://a.test/{0}", "ALT": "row {0} of the list"}}'
    lines = [bad if i == 7 else row.format(i) for i in range(LINES)]
    text = "\n".join(["LINK,ALT", *lines] if csv else lines).encode()
    path.write_bytes(gzip.compress(text) if csv else text)
    chosen = ["input.columns={url: LINK, caption: ALT}", f"input.path={path}", f"run.root={tmp_path}/runs", "run.part_rows=10"]
    run = open_run(config.load(Path(__file__).parents[3] / "configs/laion_subset.yaml", chosen))
    files = rows.list_input(run)
    work = rows.RowsWork(run.store, stages_of(run.layout.rows), None, [], files, run.config)
    work.open()
    (job,) = rows.todo(run, files)
    assert work(job, careful=False)["rows"] == LINES
    names = run.store.names(f"rows/{job['key']}", ".parquet")
    table = pa.concat_tables([run.store.read_table(f"rows/{job['key']}/{name}") for name in names])
    assert len(names) == 6
    assert table["row"].to_pylist() == list(range(LINES))
    assert table["url"].to_pylist() == [None if i == 7 else f"http://a.test/{i}" for i in range(LINES)]
    assert table["fate"].to_pylist() == ["ingest:malformed" if i == 7 else "kept" for i in range(LINES)]
