"""Two runs side by side: every count is that of another way of counting, and what strangers wrote stays text."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from pipeline import compare
from pipeline.progress import Quiet
from pipeline.runs import run
from tests.pipeline.test_report_page import Page
from tests.support import reported
from tests.support.corpus import fates, ledger
from tests.support.server import Server

pytestmark = pytest.mark.ray
STRICT = [{"name": "similarity", "keep": "similarity >= 0.2"}]


def test_what_moved_between_two_thresholds_and_why(shown: tuple[Path, Server, Path], tmp_path: Path) -> None:
    first, server, lists = shown
    shutil.copytree(first, tmp_path / "runs" / "test")
    second = tmp_path / "runs" / "test"
    run(reported.config(tmp_path / "test.yaml", server, lists, STRICT), show=Quiet())
    compare.show(str(first), str(second))
    (path,) = (second / "report").glob("compare-test-*.json")
    found = json.loads(path.read_text())
    assert {one["fate"]: one["a"] for one in found["funnel"] if one["a"]} == fates(first)
    assert {one["fate"]: one["b"] for one in found["funnel"] if one["b"]} == fates(second)
    assert found["config"] == [{"key": "stages.selection.similarity.keep", "a": "similarity >= 0.0", "b": "similarity >= 0.2"}]
    a, b = ledger(first)["fate"].to_pylist(), ledger(second)["fate"].to_pylist()
    moved = Counter((one, other) for one, other in zip(a, b, strict=True) if one != other)
    assert {(one["a"], one["b"]): one["rows"] for one in found["moves"]} == moved
    assert moved[("kept", "selection:similarity")] == found["overlap"]["kept_by_a_alone"] > 0
    assert found["overlap"]["in_both"] == len(a) == reported.ROWS
    for move in found["moves"]:
        assert {(a[one["a"]], b[one["b"]]) for one in move["examples"]} == {(move["a"], move["b"])}
        assert len(move["examples"]) == min(5, move["rows"])
    similarity = found["histograms"]["similarity"]
    assert (sum(similarity["a"]["kept"]), sum(similarity["b"]["kept"])) == (found["a"]["kept"], found["b"]["kept"])
    page = Page(path.with_suffix(".html").read_text(encoding="utf-8"))
    assert len(page.scripts) == 4
    assert not {"img", "iframe", "svg", "a"} & set(page.tags)


def test_a_list_that_shrank_and_repeats_itself_is_paired_by_uid(shown: tuple[Path, Server, Path], tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    first, server, lists = shown
    table = pq.read_table(lists / "list-0.parquet")
    shutil.copytree(lists.parent / "eval", tmp_path / "eval")
    shutil.copy(lists.parent / "words.txt", tmp_path)
    (tmp_path / "lists").mkdir()
    pq.write_table(pa.concat_tables([table.slice(40, 60), table.slice(50, 10)]), tmp_path / "lists" / "list-0.parquet")
    run(reported.config(tmp_path / "test.yaml", server, tmp_path / "lists", reported.RULES), show=Quiet())
    found = compare.compare(str(first), str(tmp_path / "runs" / "test"))["overlap"]
    assert (found["in_both"], found["only_in_a"], found["only_in_b"]) == (60, reported.ROWS - 60, 10)
