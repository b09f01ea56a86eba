"""Each figure of report.json is what another way of counting gives, and the summary's next commands can be pasted."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import report, views
from pipeline.report import concerns, page, tables, work
from pipeline.storage import Store
from tests.pipeline.conftest import Made
from tests.support.corpus import fates


@pytest.mark.parametrize("kind", [pa.float32(), pa.int32()])
def test_histograms_count_as_numpy_does(kind: pa.DataType) -> None:
    values: list[Any] = [None, 1, 1, 2, 3, 20, 21, 41]
    if kind == pa.float32():
        values = [None, float("nan"), float("inf"), *np.random.default_rng(5).normal(0.3, 0.1, 5000).astype(np.float32).tolist()]
    kept = [n % 3 == 0 for n in range(len(values))]
    with views.connect(Store(".")) as con:
        rows = pa.array(range(len(values)))
        con.register(
            "facts", pa.table({"row": rows, "x": pa.array(values, kind), "final": ["kept" if k else "selection:low" for k in kept]})
        )
        found = tables.histogram(con, "x")
    finite = [(value, one) for value, one in zip(values, kept, strict=True) if value is not None and np.isfinite(value)]
    assert np.histogram([value for value, _ in finite], found["edges"])[0].tolist() == found["rows"]
    assert np.histogram([value for value, one in finite if one], found["edges"])[0].tolist() == found["kept"]
    assert sum(found["rows"]) == len(finite)


def test_a_histogram_of_nothing_is_empty() -> None:
    with views.connect(Store(".")) as con:
        con.register("facts", pa.table({"row": [0, 1], "x": pa.array([None, float("nan")], pa.float32()), "final": ["kept", "kept"]}))
        assert tables.histogram(con, "x") == {"edges": [], "rows": [], "kept": []}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.integers(-3, 3).map(float), st.floats(-1e9, 1e9, width=32)), min_size=1, max_size=70))
def test_quantiles_that_are_sorted_on_disk_are_those_that_are_held_in_memory(values: list[float]) -> None:
    shares = [0, 5_000, 50_000, 83_333, 333_333, 500_000, 950_000, 995_000, 1_000_000]
    with duckdb.connect() as con, pytest.MonkeyPatch.context() as patch:
        con.register("numbers", pa.table({"x": values}))
        held = tables.quantiles(con, "numbers", len(values), shares)
        patch.setattr(tables, "HELD", 0)
        assert tables.quantiles(con, "numbers", len(values), shares) == held


@pytest.mark.parametrize(
    ("value", "text"),
    [(91_900.4, "91,900"), (9.19e9, "9,190,000,000"), (1527.0, "1,527"), (0.4449, "0.4449"), (1e-5, "1e-05")],
)
def test_numbers_are_written_as_people_write_them(value: float, text: str) -> None:
    assert page._number(value) == text


def test_one_row_is_and_two_rows_are_and_videos_of_one_size_are_no_concern() -> None:
    one = {"edges": [320, 321], "rows": [200], "kept": [200], "p05": 320.0, "p50": 320.0}
    told = {
        "rows_in": 200, "kept": 200, "scorer": None, "scored": "not scored", "fetches": {"asked": 0, "fetched": 0}, "hosts": {"top": []},
        "funnel": [], "decontamination": {}, "categories": {}, "histograms": {"original_width": one}, "expanded": {},
        "repeats": {"captions": [{"rows": 14, "kept": 1, "row": 88}], "images": [{"rows": 24, "kept": 2, "row": 5}]},
    }  # fmt: skip
    said = {warning["code"]: warning["text"] for warning in concerns.find(told)}
    assert said["repeated_captions"] == "14 rows have one caption; 1 of them is kept. One is row 88."
    assert "2 of them are kept" in said["repeated_images"]
    assert said["one_size"] == "45% of the images or more have the same width, 320 pixels."
    assert "one_size" not in {warning["code"] for warning in concerns.find({**told, "expanded": {"with_kept": 1}})}


def test_the_next_commands_are_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    shards = {"count": 0, "samples": 0, "bytes": 0}
    told = {
        "run": "a",
        "rows_in": 0,
        "kept": 0,
        "dropped": {},
        "shards": shards,
        "scored": "yes",
        "scorer": "ViT-B-32",
        "session": [],
        "seconds": 1,
        "ray_start_s": 0,
    }
    report.print_summary({**told, "shards_at": "/data/w 2 ü/runs/it's/shards/0123"}, "report.json")
    verify, explain = capsys.readouterr().out.partition("next:")[2].split("·")
    assert shlex.split(verify) == ["shardmill", "verify", "/data/w 2 ü/runs/it's"]
    assert shlex.split(explain) == ["shardmill", "explain", "/data/w 2 ü/runs/it's", "URL"]


def metrics(spans: list[tuple[float | None, float, int]]) -> pa.Table:
    """Of download, from (ended, seconds, rows); and a line of another stage."""
    ended, seconds, rows = (list(values) for values in zip(*spans, strict=True)) if spans else ([], [], [])
    given = {
        "stage": pa.array(["download"] * len(rows), pa.string()),
        "rows": pa.array(rows, pa.int64()),
        "seconds": pa.array(seconds, pa.float64()),
    }
    table = pa.table({**given, "ended": pa.array(ended, pa.float64())})
    other = pa.table({"stage": ["images"], "rows": [7], "seconds": [1.0], "ended": [5.0]})
    return pa.concat_tables([table, other])


def test_throughput_is_rows_over_the_time_in_which_there_was_work() -> None:
    """Two parts at once for 10 s, then one alone for 10 s; a day later 10 s more of a third."""
    spans: list[tuple[float | None, float, int]] = [(1010, 10, 100), (1020, 20, 400), (90_000, 10, 50), (None, 5, 1000)]
    with views.connect(Store(".")) as con:
        con.register("metrics", metrics(spans))
        found = work.throughput(con)
        con.register("metrics", metrics([]))
        assert work.throughput(con) == {}
    assert (found["parts"], found["edges"][0], found["edges"][-1]) == (3, 0, 30)
    assert found["rates"] == pytest.approx([30] * 20 + [20] * 20 + [5] * 20, abs=1e-3)
    assert sum(np.diff(found["edges"]) * found["rates"]) == pytest.approx(550)


def test_metrics_of_a_former_version_are_read_too(tmp_path: Path) -> None:
    store, unknown = Store(str(tmp_path)), pa.nulls(2, pa.float64())
    now = metrics([(1010, 10, 100)]).append_column("cpu_seconds", unknown)
    store.write_table("metrics/old.parquet", now.drop_columns(["ended"]))
    with views.connect(store) as con:
        work.view(store, con)
        assert (work.stages(con)["download"]["rows"], work.throughput(con)) == (100, {})
        store.write_table("metrics/new.parquet", now)
        work.view(store, con)
        assert (work.stages(con)["download"]["rows"], work.throughput(con)["rates"][0]) == (200, pytest.approx(10))


@pytest.mark.ray
def test_a_report_counts_what_lies_there(first_run: Made) -> None:
    told, run = first_run.result.report, first_run.run
    counted = fates(run)
    assert (told["rows_in"], told["kept"], told["dropped"]) == (sum(counted.values()), counted.pop("kept"), counted)
    home = run / "shards"
    tars = sorted(home.glob("*/*.tar"))
    assert told["shards"] == {"count": len(tars), "samples": told["kept"], "bytes": sum(path.stat().st_size for path in tars)}
    listed = pa.concat_tables([pq.read_table(path) for path in sorted(home.glob("*/*.parquet"))])
    assert {"chars", "words", "original_width", "original_height", "fetched_bytes", "aspect"} <= set(told["histograms"])
    for name, found in told["histograms"].items():
        if name not in listed.column_names:
            continue
        for which, wanted in (("rows", listed), ("kept", listed.filter(pa.compute.equal(listed["fate"], "kept")))):
            assert np.histogram(wanted[name].drop_null().to_numpy(), found["edges"])[0].tolist() == found[which], (name, which)
    fetched = pa.concat_tables([pq.read_table(path, columns=["fetched_bytes"]) for path in sorted((run / "pool").glob("*/*.parquet"))])
    assert told["bytes"]["downloaded"] == pa.compute.sum(fetched["fetched_bytes"]).as_py()
    timed = pq.read_table(sorted((run / "metrics").iterdir()))
    for stage, figures in told["stages"].items():
        mine = timed.filter(pa.compute.equal(timed["stage"], stage))
        assert figures["rows"] == pa.compute.sum(mine["rows"]).as_py()
        assert figures["seconds"] == pytest.approx(pa.compute.sum(mine["seconds"]).as_py(), abs=0.001)
    assert {"latency_ms", "http_status"} <= {*told["histograms"], *told["categories"]}
    seen = told["throughput"]
    assert sum(np.diff(seen["edges"]) * seen["rates"]) == pytest.approx(told["stages"]["download"]["rows"], rel=0.01)
    assert seen["parts"] == len({line["part"] for line in timed.to_pylist() if line["stage"] == "download"})
    phases = {phase["phase"]: phase for phase in told["session"]}
    assert (phases["rows"]["rows"], phases["shards"]["rows"]) == (told["rows_in"], told["rows_in"])
    assert (phases["selection"]["rows"], phases["selection"]["rows_per_second"]) == (None, None), "DuckDB in the driver: no worker counted"


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([1, 1, 2, 3], [(1, 2), (2, 3), (3, 4)]),
        ([0] * 9 + [1], [(0, 1), (1, 2)]),
        ([*range(100)], [(at, at + 3) for at in range(0, 100, 3)]),
        ([*range(20)] * 50 + [500], [*((at, at + 1) for at in range(20)), (20, 500)]),
        ([*range(20)] * 50 + [20], [(at, at + 1) for at in range(21)]),
        ([-3, -1], [(-3, -2), (-2, -1), (-1, 0)]),
        ([7.0, 7.0], [(7, 8)]),
    ],
)
def test_bins_of_whole_numbers_hold_equally_many_each(values: list[float], labels: list[tuple[int, int]]) -> None:
    """Words, faces and clusters are counted: bins of 1.3 would show gaps and spikes that no row has."""
    with views.connect(Store(".")) as con:
        con.register("facts", pa.table({"x": pa.array(values, pa.float64()), "final": ["kept"] * len(values)}))
        found = tables.histogram(con, "x")
    assert found["whole"] is True
    assert list(itertools.pairwise(found["edges"])) == labels
    assert np.histogram(values, found["edges"])[0].tolist() == found["rows"]
