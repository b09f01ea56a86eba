"""Comparisons: what they say of the runs, what becomes of them, and runs of which there is little to compare."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import clean, compare, explain
from pipeline.errors import UserError
from tests.pipeline.test_report_odd import listed, made, server, stages  # noqa: F401 - server is a fixture
from tests.support import serial
from tests.support.server import Server


def long_rule(least: float) -> list[dict[str, str]]:
    """A rule whose threshold stands behind 200 characters."""
    return [{"name": "long", "keep": " AND ".join(["row >= 0"] * 30 + [f"similarity >= {least}"])}]


def test_the_page_names_both_runs_and_their_shards_and_tells_every_difference(
    server: Server,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, least in (("a", 0.0), ("b", 0.5)):
        listed(server, tmp_path / name)
        made(server, tmp_path / name, stages(server, long_rule(least)), run__name=name)
    first, second = tmp_path / "a" / "runs" / "a", tmp_path / "b" / "runs" / "b"
    compare.show(str(first), str(second))
    (path,) = (second / "report").glob("compare-a-*.json")
    found = json.loads(path.read_text())
    changed = {one["key"]: (one["a"], one["b"]) for one in found["config"]}
    assert changed["stages.selection.long.keep"] == (long_rule(0.0)[0]["keep"], long_rule(0.5)[0]["keep"])
    moved = sum(move["rows"] for move in found["moves"])
    assert found["moved"] == {"rows": moved, "kinds": len(found["moves"])}
    assert moved > 0
    said = capsys.readouterr().out
    text = path.with_suffix(".html").read_text(encoding="utf-8")
    for words in ("only in the list of A (a)", "in both, kept by B (b) alone"):
        assert words in text
        assert words in said
    for side in "ab":
        assert f"shards <code>{found[side]['shards'][:8]}</code>" in text


def test_a_comparison_of_nothing_kept_has_no_empty_plots(server: Server, tmp_path: Path) -> None:  # noqa: F811
    listed(server, tmp_path)
    none = made(server, tmp_path, stages(server, [{"name": "none", "keep": "similarity > 9"}]))
    compare.show(str(none), str(none))
    (path,) = (none / "report").glob("compare-test-*.html")
    text = path.read_text(encoding="utf-8")
    assert "no row is kept" in text
    assert 'class="chart"' not in text
    assert "The rows in both lists have the same fates." in text


def test_clean_removes_comparisons_of_former_shards_alone(server: Server, tmp_path: Path) -> None:  # noqa: F811
    listed(server, tmp_path)
    run_ = made(server, tmp_path, stages(server, []))
    compare.show(str(run_), str(run_))
    clean.run(str(run_))
    (former,) = (run_ / "report").glob("compare-test-*.json")
    made(server, tmp_path, stages(server, [{"name": "similarity", "keep": "similarity >= 0.5"}]))
    compare.show(str(run_), str(run_))
    (now,) = {*(run_ / "report").glob("compare-test-*.json")} - {former}
    removed = clean.run(str(run_))
    assert {f"report/{former.name}", f"report/{former.with_suffix('.html').name}"} <= {*removed}
    assert {path.name for path in (run_ / "report").glob("compare-*")} == {now.name, now.with_suffix(".html").name}


def test_a_comparison_is_no_part_of_the_report(server: Server, tmp_path: Path) -> None:  # noqa: F811
    """A run that is repeated after one was removed has nothing to do."""
    listed(server, tmp_path)
    run_ = made(server, tmp_path, stages(server, []))
    compare.show(str(run_), str(run_))
    made(server, tmp_path, stages(server, []), report={"unsafe": 0.6})  # makes the report anew
    for path in (run_ / "report").glob("compare-*"):
        path.unlink()
    before = (run_ / "report" / "index.html").stat().st_mtime_ns
    again = serial.run(tmp_path / "test.yaml")
    assert again.report["session"] == []
    assert (run_ / "report" / "index.html").stat().st_mtime_ns == before


@pytest.mark.parametrize("what", ["row=" + "9" * 50, "child=" + "9" * 50, "\udcff\udcfe", "text=a\udcffb", "host=\udcff", "", "host="])
def test_what_no_row_can_be_is_told_in_a_line(server: Server, tmp_path: Path, what: str) -> None:  # noqa: F811
    listed(server, tmp_path)
    run_ = made(server, tmp_path, stages(server, []))
    with pytest.raises(UserError, match=r"no row with|not UTF-8"):
        explain.stories(str(run_), what)
