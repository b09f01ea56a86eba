"""`shardmill explain` and `verify` of a run in which a stage makes several rows of one: the story is the input row's, with its children."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import browse, explain, report, verify, views
from pipeline.errors import UserError
from pipeline.progress import Quiet
from pipeline.runs import reopen, run
from pipeline.storage import Store
from tests.pipeline.conftest import Made
from tests.support.corpus import caption, ledger, picture, write_config, write_list
from tests.support.server import Server

pytestmark = pytest.mark.ray

PARENTS = 12
CHILDLESS = 5


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory, ray_session: object) -> Path:
    """Twelve rows whose captions become two sentences each, but for row 5, which has none."""
    folder = tmp_path_factory.mktemp("sentences")
    texts = [f"{caption(n)}. {caption(n + 100)}." for n in range(PARENTS)]
    texts[CHILDLESS] = "..."
    with Server() as server:
        for n in range(PARENTS):
            server.files[f"/p/{n}.jpg"] = picture(n)
        listed = write_list(folder / "list.parquet", [server.url(f"/p/{n}.jpg", "host.test") for n in range(PARENTS)], texts)
        download = {**server.options(), "timeout_s": 5, "retries": 0}
        stages = {"ingest": {}, "tests.support.hostile:Sentences": {}, "captions": {}, "download": download, "images": {"size": 64}}
        run(write_config(folder / "test.yaml", server, listed, stages=stages, run__part_rows=4), show=Quiet())
    return folder / "runs" / "test"


def url(folder: Path, row: int) -> str:
    key = json.loads((folder / "run.json").read_text())["keys"]["shards"]
    table = pq.read_table(sorted((folder / "ledger" / key / "parents").iterdir()))
    found: str = table.filter(pa.compute.equal(table["row"], row))["url"][0].as_py()
    return found


def test_a_dropped_parent_has_a_story(sentences: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for what in (url(sentences, CHILDLESS), f"row={CHILDLESS}"):
        (story,) = explain.stories(str(sentences), what)
        assert (story["row"], story["fate"], story["children"]) == (CHILDLESS, "sentences:no_text", [])
    explain.show(str(sentences), f"row={CHILDLESS}")
    said = capsys.readouterr().out
    assert re.search(r"row  5 \(part 1\)", said)
    assert re.search(r"caption  '\.\.\.'", said)
    assert re.search(r"fate  sentences:no_text", said)
    assert re.search(r"children  0", said)


def test_a_row_of_the_input_is_told_with_its_children(sentences: Path) -> None:
    for what in (url(sentences, 7), "row=7"):
        (story,) = explain.stories(str(sentences), what)
        assert (story["row"], story["fate"]) == (7, "kept")
        assert [child["parent"] for child in story["children"]] == [7, 7]
        assert [child["source_caption"] for child in story["children"]] == [caption(7), caption(107)]


def test_a_child_is_told_with_its_parent_and_without_its_siblings(sentences: Path) -> None:
    child = ledger(sentences).to_pylist()[CHILDLESS]
    assert child["parent"] == 2
    for what in ("child=5", child["uid"], child["key"]):
        (story,) = explain.stories(str(sentences), what)
        assert story["row"] == 2
        assert [told["row"] for told in story["children"]] == [CHILDLESS]
        assert dict(explain.tell(story["children"][0]))["child"].startswith("5 of row 2 ")
    with pytest.raises(UserError, match=r"no row with 'child=22' .*child=NUMBER"):
        explain.stories(str(sentences), "child=22")


def test_words_are_looked_for_in_the_rows_of_the_input(sentences: Path) -> None:
    """Child 3 and row 3 are two things: words of one row lead to that row alone."""
    for row in (3, 7):
        (story,) = explain.stories(str(sentences), f"text={caption(row).upper()}")
        assert story["row"] == row


def test_the_report_of_both_levels_and_browse_tell_of_the_children(sentences: Path) -> None:
    before = Store(str(sentences)).read_json("report/report.json")
    report.show(str(sentences))
    assert Store(str(sentences)).read_json("report/report.json") == before
    known = reopen(str(sentences))
    with views.connect(known.run.store) as con:
        assert browse.Rows(known, con).find({})["total"] == before["rows_in"]


def test_without_an_expand_stage_there_are_no_children(first_run: Made) -> None:
    (story,) = explain.stories(str(first_run.run), "row=5")
    assert "children" not in story
    with pytest.raises(UserError, match=r"no row with 'child=5'.*row=NUMBER for a row of the input\)"):
        explain.stories(str(first_run.run), "child=5")


def parents_part(folder: Path) -> Path:
    key = json.loads((folder / "run.json").read_text())["keys"]["shards"]
    return folder / "ledger" / key / "parents" / "part-00001.parquet"


PARENT_FAULTS = {
    "removed": [r"parents/part-00001\.parquet: is missing", r"not compared row by row"],
    "false": [
        r"ledger/\w+/parents: fate of 1 row is not as in the stages' files; the first is row 5: 'kept', not 'sentences:no_text'",
        r"ledger/\w+/parents: has 1 row kept without a child, or not kept with one; the first is row 5",
        r"done\.json: rows (kept is 11, counted: 12|dropped sentences:no_text is 1, counted: None)",
        r"report\.json: parents (kept is 11, counted: 12|dropped sentences:no_text is 1, counted: None)",
    ],
}


@pytest.mark.parametrize("fault", PARENT_FAULTS)
def test_verify_reads_the_parents_ledger(sentences: Path, tmp_path: Path, fault: str) -> None:
    assert verify.run(str(sentences))[1] == []
    folder = tmp_path / "runs" / "test"
    shutil.copytree(sentences, folder)
    part = parents_part(folder)
    table = pq.read_table(part)
    part.unlink()
    if fault == "false":
        fates = pa.array(["kept"] * len(table), pa.string())
        pq.write_table(table.set_column(table.schema.get_field_index("fate"), table.schema.field("fate"), fates), part)
    found = [f"{finding.where}: {finding.what}" for finding in verify.run(str(folder))[1]]
    for said in found:
        assert any(re.search(text, said) for text in PARENT_FAULTS[fault]), said
    for text in PARENT_FAULTS[fault]:
        assert any(re.search(text, said) for said in found), text
