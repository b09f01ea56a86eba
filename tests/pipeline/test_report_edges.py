"""What a report does with values at the edge: a slider's loose end, numbers beyond measure, names of hosts without end, a lost sheet."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import browse, compare, explain, report, views
from pipeline.runs import reopen
from pipeline.stage import Column, Stage
from tests.pipeline.test_report_odd import ROWS, films, listed, looked_at, made, stages, told  # noqa: F401 - films is a fixture
from tests.support import serial
from tests.support.corpus import picture, write_config
from tests.support.server import Server


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as one:
        for n in range(ROWS):
            one.files[f"/{n}.jpg"] = picture(n)
        yield one


class Vast(Stage):
    """Doubles that no square fits."""

    name = "vast"
    version = 1
    reads = {"sha256": Column(pa.string(), "of the body")}
    adds = {"vast": Column(pa.float64(), "anything")}

    def __call__(self, table: pa.Table) -> pa.Table:
        values = np.resize([1e308, -1e308, 3.0, 7.0, np.nan, np.inf, 5.0, 5e-324], len(table))
        return table.append_column("vast", pa.array(values))


def test_the_loose_end_of_a_slider_keeps_every_number(server: Server, tmp_path: Path) -> None:
    """Its threshold is rounded, and must not be rounded past the least number (or past the greatest, where smaller is better)."""
    aesthetic = [5.006 + n / 100 for n in range(ROWS)]
    unsafe = [0.98745 - n / 100 for n in range(ROWS)]
    listed(server, tmp_path, aesthetic=aesthetic, punsafe=unsafe)
    run = made(server, tmp_path, stages(server, []))
    found = {one["column"]: one for one in told(run)["what_if"]}
    for column, at in (("claimed_aesthetic", 0), ("claimed_punsafe", -1), ("similarity", 0)):
        one = found[column]
        assert one["kept"][at] == one["kept_without"] == ROWS, (column, one["thresholds"])
    assert found["claimed_aesthetic"]["thresholds"][0] == "5"
    assert found["claimed_punsafe"]["thresholds"][-1] == "0.988"
    text = (run / "report" / "index.html").read_text(encoding="utf-8")
    places = [int(place) for place in re.findall(r'type="range"[^>]* value="(\d+)"', text)]
    wanted = [one["kept"].index(ROWS) if one["sign"] == ">=" else len(one["kept"]) - 1 for one in told(run)["what_if"]]
    assert places == wanted, "where no rule is, a slider begins with everything"


def test_numbers_beyond_measure_end_no_report(server: Server, tmp_path: Path) -> None:
    listed(server, tmp_path)
    given = stages(server, [])
    given = {**{n: v for n, v in given.items() if n not in {"image_dedup", "selection"}}, f"{__name__}:Vast": {}, "selection": []}
    run = made(server, tmp_path, given)
    assert sum(told(run)["histograms"]["vast"]["rows"]) == ROWS // 2
    (one,) = (one for one in told(run)["what_if"] if one["column"] == "vast")
    assert one["kept"][0] == ROWS, "NaN is the greatest number to DuckDB, and passes"
    assert compare.compare(str(run), str(run))["histograms"]["vast"]["a"] == compare.compare(str(run), str(run))["histograms"]["vast"]["b"]
    assert looked_at(run, sort="vast", column="vast", least="1e307")["total"] == ROWS // 8 * 3


def test_a_host_of_a_hundred_thousand_letters_does_not_swell_the_page(server: Server, tmp_path: Path) -> None:
    lists = listed(server, tmp_path)
    table = pq.read_table(lists / "list.parquet")
    urls = [f"http://{n}{'a' * 100_000}.test/{n}.jpg" for n in range(ROWS)]
    pq.write_table(table.set_column(0, "URL", pa.array(urls)), lists / "list.parquet")
    run = made(server, tmp_path, stages(server, []))
    assert len((run / "report" / "index.html").read_bytes()) < 1_500_000
    assert {len(one["name"]) for one in told(run)["hosts"]["top"]} <= {253}
    assert told(run)["hosts"]["distinct"] == ROWS


def test_the_command_makes_the_sheet_of_samples_again(server: Server, tmp_path: Path) -> None:
    listed(server, tmp_path)
    run = made(server, tmp_path, stages(server, []))
    sheet = run / "report" / "samples.jpg"
    before = sheet.read_bytes()
    sheet.unlink()
    report.show(str(run))
    assert sheet.read_bytes() == before


def test_rows_are_found_by_any_value(server: Server, tmp_path: Path) -> None:
    unsafe = pa.array([None if n == 3 else n % 10 / 10 for n in range(ROWS)], pa.float32())
    listed(server, tmp_path, punsafe=unsafe)
    (tmp_path / "words.txt").write_text("tractor\nviolin\nred")
    rules = [{"name": "balance", "max_per_concept": 3}]
    run = made(server, tmp_path, stages(server, rules, concepts={"words": str(tmp_path / "words.txt")}))
    everything = looked_at(run)["rows"]
    assert len(everything) == ROWS
    assert looked_at(run, column="claimed_punsafe", most="0.7")["total"] == sum(n % 10 <= 7 for n in range(ROWS) if n != 3)
    assert looked_at(run, column="claimed_punsafe", least="0.7")["total"] == sum(n % 10 >= 7 for n in range(ROWS))
    assert {row["row"] % 10 for row in looked_at(run, column="claimed_punsafe", **{"is": "0.7"})["rows"]} == {7}
    assert looked_at(run, column="flat", **{"is": "false"})["total"] == ROWS
    assert looked_at(run, column="original_format", **{"is": "jpeg"})["total"] == ROWS
    assert looked_at(run, column="original_format", **{"is": "' OR ''='"})["total"] == 0
    red = {row["row"] for row in everything if "red" in row["concepts"]}
    assert {row["row"] for row in looked_at(run, column="concepts", **{"is": "red"})["rows"]} == red != set()
    known = reopen(str(run))
    with views.connect(known.run.store) as con:
        rows = browse.Rows(known, con)
        assert browse.answer(rows, "/rows?column=claimed_punsafe&is=red")[0] == 400
        assert browse.answer(rows, "/rows?column=url&least=1")[0] == 400
        assert browse.answer(rows, "/rows?column=claimed_punsafe&most=1e300")[0] == 200


def test_a_story_tells_the_other_columns_too(server: Server, tmp_path: Path) -> None:
    listed(server, tmp_path, punsafe=[0.25] * ROWS)
    (tmp_path / "words.txt").write_text("\n".join("abcdefghijklmnopqrstuvwxyz"))
    run = made(server, tmp_path, stages(server, [], concepts={"words": str(tmp_path / "words.txt")}))
    (story,) = explain.stories(str(run), "row=2")
    told_of = dict(explain.tell(story))["columns"]
    assert "claimed_punsafe 0.25" in told_of
    assert re.search(r"\bcharm \d", told_of)
    assert "concepts [a]" in told_of or "concepts [a, " in told_of
    assert "fetch_id" not in told_of


def test_two_runs_of_videos_are_compared_by_their_videos_too(films: Path) -> None:  # noqa: F811
    compare.show(str(films), str(films))
    (path,) = (films / "report").glob("compare-*.json")
    found: dict[str, Any] = json.loads(path.read_text())
    assert found["expanded"] == [{"fate": "expanded", "a": 2, "b": 2}, {"fate": "subtitle_files:no_track", "a": 1, "b": 1}]
    assert "<h2>Rows of the input</h2>" in path.with_suffix(".html").read_text(encoding="utf-8")


def test_where_nothing_repeats_no_heading_stands(server: Server, tmp_path: Path) -> None:
    listed(server, tmp_path)
    given = {name: options for name, options in stages(server, []).items() if name not in {"dedup", "image_dedup"}}
    text = (made(server, tmp_path, given) / "report" / "index.html").read_text(encoding="utf-8")
    assert "<h2>Near-duplicates and repeats</h2>" not in text
    assert 'href="#duplicates"' not in text


def test_a_page_of_videos_speaks_of_videos(films: Path) -> None:  # noqa: F811
    text = (films / "report" / "index.html").read_text(encoding="utf-8")
    assert "Captions: clusters by size" not in text, "nobody looked for near-duplicates"
    assert "<h2>Hosts</h2>" not in text, "they lie in storage"
    assert "asked for an image" not in text
    assert "rows that asked for a video" in (films / "report" / "README.md").read_text(encoding="utf-8")


def test_a_folder_with_brackets_is_told_as_it_is(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lists, folder = listed(server, tmp_path), tmp_path / "[red]"
    folder.mkdir()
    serial.run(write_config(tmp_path / "test.yaml", server, lists, stages=stages(server, []), run__root=str(folder)))
    run = str(folder / "test")
    report.show(run)
    compare.show(run, run)
    assert capsys.readouterr().out.count(f"{run}/") == 3, "shards, report, comparison"


def test_hundreds_of_fates_and_texts_of_nothing_but_quotes_leave_the_page_small(server: Server, tmp_path: Path) -> None:
    """Each fate shows fewer rows, and texts are cut to less."""
    lists, rows = listed(server, tmp_path), 900
    urls = [server.url(f"/{n % ROWS}.jpg?" + "'" * 500, "host.test") for n in range(rows)]
    texts = ['"&<' * 300 + f" {n}" for n in range(rows)]
    pq.write_table(pa.table({"URL": urls, "TEXT": texts}), lists / "list.parquet")
    given = stages(server, [{"name": f"rule_{n}", "keep": f"row % 300 <> {n}"} for n in range(290)])
    del given["dedup"], given["image_dedup"]
    run = made(server, tmp_path, given)
    assert len(told(run)["funnel"]) == 291
    text = (run / "report" / "index.html").read_text(encoding="utf-8")
    assert len(text.encode()) < 5_000_000
    shown = [part.partition("</details>")[0].count('<li class="row">') for part in re.split(r'<details id="fate-', text)[1:]]
    assert shown == [3] * 291
    assert "opens up to 3 of its rows" in text
