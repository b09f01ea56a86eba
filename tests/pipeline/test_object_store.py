"""A run on an object store (a real S3 API): few requests, one line for a refusal, and every command on an s3:// run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import browse, clean, compare, explain, plan, report, verify, views
from pipeline.errors import TransientError
from pipeline.progress import Quiet
from pipeline.runs import reopen, run
from pipeline.storage import Store
from tests.support import serial
from tests.support.corpus import caption, picture, shardmill, write_config, write_list
from tests.support.s3 import environment, requests, s3_server
from tests.support.server import Server

SCHEMA = pa.schema([("row", pa.int64())])
PATHS = ["rows/a.parquet", "rows/b.parquet"]


@pytest.fixture
def s3() -> Iterator[dict[str, Any]]:
    with s3_server("bucket") as options:
        yield options


def table(first: int) -> pa.Table:
    schema = SCHEMA.append(pa.field("image", pa.large_binary()))
    bodies = np.random.default_rng(first).bytes(1_000_000)  # as pictures, they cannot be compressed
    return pa.table(
        {"row": range(first, first + 1000), "image": [bodies[at : at + 1000] for at in range(0, 1_000_000, 1000)]}, schema=schema
    )


@pytest.mark.parametrize(("columns", "most"), [(["row"], 50), (["row", "image"], 84)])
def test_duckdb_asks_once_for_each_files_size_and_reads_what_was_written_anew(s3: dict[str, Any], columns: list[str], most: int) -> None:
    """Of rows, and of the pool, whose files are too large to be read whole by the way."""
    store = Store("s3://bucket/run", s3)
    for path, first in zip(PATHS, (0, 1000), strict=True):
        store.write_table(path, table(first).select(columns))
    with views.connect(store) as con:
        with requests() as asked:
            views.files(con, "rows", store, PATHS, SCHEMA)
            for _ in range(5):
                assert con.execute("SELECT count(DISTINCT a.row) FROM rows a JOIN rows b USING (row)").fetchall() == [(2000,)]
        assert asked["HEAD"] == 2
        assert asked["GET"] <= most  # a self join of two files, five times: footers and columns by ranges
        store.write_table(PATHS[1], table(0).select(columns))
        assert con.execute("SELECT count(DISTINCT row) FROM rows").fetchall() == [(1000,)]


def test_a_table_is_read_by_ranges_of_its_wanted_columns(s3: dict[str, Any]) -> None:
    store = Store("s3://bucket/run", s3)
    store.write_table(PATHS[0], table(0))
    assert store.read_table(PATHS[0], ["row"]) == table(0).select(["row"])
    assert store.rows(PATHS[0]) == 1000
    with store.ranges(PATHS[0]) as handle:
        whole = store.read(PATHS[0])
        assert (handle.seek(-4, 2), handle.read(10)) == (len(whole) - 4, b"PAR1")
        assert (handle.seek(3), handle.read()) == (3, whole[3:])


def test_a_storage_that_refuses_is_one_line_with_the_mend(s3: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    store = Store("s3://bucket/run", {"client_kwargs": s3["client_kwargs"]})
    asks = [store.exists, store.names, store.read, lambda path: store.write(path, b""), lambda path: store.write_table(path, table(0))]
    told = r"^s3://bucket/run: the storage refuses x: NoCredentialsError: .*; check its endpoint and credentials"
    for ask in asks:
        with pytest.raises(TransientError, match=told):
            ask("x")


@pytest.mark.ray
@pytest.mark.slow
def test_every_command_works_on_a_run_in_a_bucket(
    s3: dict[str, Any], tmp_path: Path, ray_session: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands that take a run's URL find the storage by the environment; secrets of the config are not written down."""
    for name, value in environment(s3).items():
        monkeypatch.setenv(name, value)
    folder = "s3://bucket/runs/test"
    with Server() as server:
        urls = [server.url("/status/404/7" if n == 7 else f"/pictures/{n}.jpg") for n in range(40)]
        server.files |= {f"/pictures/{n}.jpg": picture(n) for n in range(40)}
        listed = write_list(tmp_path / "list.parquet", urls, [caption(n) for n in range(40)])
        changes: dict[str, Any] = {"run__part_rows": 20, "run__root": "s3://bucket/runs", "run__storage_options": s3}
        config = write_config(tmp_path / "test.yaml", server, listed, **changes)
        first = run(config, show=Quiet())
        (lost,) = first.report["dropped"]
        assert verify.run(folder)[1] == []
        assert [line.todo for line in plan.make(config)] == [0] * len(plan.make(config))
        assert explain.stories(folder, "row=7")[0]["fate"] == lost
        server.files["/status/404/7"] = picture(7)
        shardmill("retry", folder, "--reason", lost)  # a process of its own: workers have the environment that Ray was started in
        assert Store(folder).read_json("report/report.json")["kept"] == first.report["kept"] + 1
        assert verify.run(folder)[1] == []
        assert clean.run(folder)
        assert verify.run(folder)[1] == []
    written = Store(folder).read("run.json").decode()
    assert '"secret"' not in written
    assert '"key"' not in written
    assert s3["client_kwargs"]["endpoint_url"] in written


def test_two_runs_in_a_bucket_are_compared_and_one_is_looked_through(
    s3: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(s3).items():
        monkeypatch.setenv(name, value)
    with Server() as server:
        server.files |= {f"/pictures/{n}.jpg": picture(n) for n in range(8)}
        listed = write_list(tmp_path / "list.parquet", [server.url(f"/pictures/{n}.jpg") for n in range(8)], [caption(n) for n in range(8)])
        for name, kept in (("a", 8), ("b", 3)):
            changes: dict[str, Any] = {"run__root": "s3://bucket/pairs", "run__name": name, "run__storage_options": s3}
            rules = [{"name": "few", "sample": kept}]
            serial.run(write_config(tmp_path / f"{name}.yaml", server, listed, stages__selection=rules, **changes))
    a, b = "s3://bucket/pairs/a", "s3://bucket/pairs/b"
    compare.show(a, b)
    (page,) = [name for name in Store(b).names("report") if name.startswith("compare-a-") and name.endswith(".json")]
    assert Store(b).read_json(f"report/{page}")["overlap"]["kept_by_both"] == 3
    report.show(b)
    known = reopen(b)
    with views.connect(known.run.store) as con:
        rows = browse.Rows(known, con)
        assert rows.find({"fate": "kept"})["total"] == 3
        assert (rows.image(0) or ("", b""))[0] == "image/jpeg"
    assert explain.stories(b, "row=7")[0]["row"] == 7
