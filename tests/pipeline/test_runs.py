"""Whole runs: every row has one fate, nothing is done twice, and a change costs what it changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline import clean, explain, plan, retry, verify
from pipeline.errors import UserError
from pipeline.progress import Quiet
from pipeline.runs import run
from tests.pipeline.conftest import ROWS, Made
from tests.support.corpus import fates, ledger, outputs, serve_pictures, write_config, write_list

pytestmark = pytest.mark.ray

KINDS = ROWS // 20
EXPECTED = {
    "download:http_404": KINDS,
    "images:not_an_image": KINDS,
    "captions:too_short": KINDS,
    "selection:near_duplicate_caption": KINDS,
    "selection:near_duplicate_image": KINDS,
    "download:http_503": KINDS,
}


def jobs(result: Any) -> dict[str, int]:
    """Phase -> parts that were worked on."""
    return {phase["phase"]: phase["jobs"] for phase in result.report["session"]}


def test_every_row_has_one_fate_and_all_agrees(first_run: Made) -> None:
    assert fates(first_run.run) == {**EXPECTED, "kept": ROWS - sum(EXPECTED.values())}
    lines = ledger(first_run.run)
    assert lines["row"].to_pylist() == list(range(ROWS))
    report = json.loads((first_run.run / "report" / "report.json").read_text())
    assert report["rows_in"] == ROWS == report["kept"] + sum(report["dropped"].values())
    assert report["dropped"] == EXPECTED
    _, faults = verify.run(str(first_run.run))
    assert faults == []


def test_a_second_run_does_nothing(made: Made) -> None:
    before, requests = outputs(made.run), made.requests()
    result = made.again()
    assert made.requests() == requests
    assert sum(jobs(result).values()) == 0
    assert outputs(made.run) == before
    assert all(line.todo == 0 for line in plan.make(made.config))


def test_a_second_run_leaves_the_report_and_makes_what_is_missing_of_it(made: Made) -> None:
    folder = made.run / "report"
    made.again()  # the fixture moved the run, and its report says where it lies
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    result = made.again()
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before
    assert result.report["kept"] == result.balances["rows"].kept > 0
    (folder / "index.html").unlink()
    made.again()
    assert (folder / "index.html").exists()
    next((made.run / "ledger").glob("*/part-*.parquet")).unlink()
    made.again()
    _, faults = verify.run(str(made.run))
    assert faults == []
    assert (folder / "samples.jpg").exists()
    (folder / "samples.jpg").unlink()
    made.again(report={"thumbnails": False})
    assert b"data:image/jpeg" not in (folder / "index.html").read_bytes(), "another report is asked for"


def test_a_changed_threshold_costs_a_selection_and_a_write(made: Made) -> None:
    requests = made.requests()
    rules = [{"name": "few_words", "keep": "words < 10"}]
    write_config(made.config, made.server, made.lists, stages__selection=rules)
    todo = {line.phase: line.todo for line in plan.make(made.config)}
    assert todo["rows"] == todo["dedup"] == todo["pool"] == todo["image_dedup"] == 0
    assert todo["selection"] == todo["shards"] == 1
    result = made.again(stages__selection=rules)
    assert made.requests() == requests
    assert jobs(result)["pool"] == jobs(result)["rows"] == 0
    assert result.report["dropped"].get("selection:few_words", 0) > 0


def test_a_changed_caption_rule_fetches_only_what_was_never_fetched(made: Made) -> None:
    requests = made.requests()
    stricter = made.again(stages__captions={"min_chars": 57})
    assert made.requests() == requests
    assert stricter.report["dropped"]["captions:too_short"] > KINDS
    made.again(stages__captions={"min_chars": 2})
    new = made.server.requests[requests:]
    assert len(new) == KINDS, "the rows that were too short before, each once"


def test_a_changed_dedup_threshold_fetches_nothing(made: Made) -> None:
    requests = made.requests()
    result = made.again(stages__dedup={"on": "caption", "threshold": 0.9999})
    assert made.requests() == requests
    assert "selection:near_duplicate_caption" not in result.report["dropped"]


def test_one_more_input_file_fetches_its_own_urls(made: Made) -> None:
    more = serve_pictures(made.server, made.folder, 30, first=5_000)
    requests = made.requests()
    result = made.again(path=[str(made.lists), str(more)])
    assert made.requests() == requests + 30
    assert result.balances["rows"].rows_in == ROWS + 30
    assert jobs(result)["rows"] == 1


def test_a_url_in_many_rows_is_fetched_once(made: Made) -> None:
    made.server.files["/shared.jpg"] = made.server.files["/pictures/1.jpg"]
    url = made.server.url("/shared.jpg", "once.test")
    listed = write_list(made.folder / "many.parquet", [url] * 40, [f"caption number {n} of a picture, {n * 7919}" for n in range(40)])
    result = made.again(path=[str(listed)])
    assert made.server.count(host="once.test") == 1
    assert result.balances["rows"].rows_in == 40


def test_a_pool_that_is_not_kept_costs_a_new_crawl_and_says_so_in_plan(made: Made) -> None:
    before, requests = outputs(made.run), made.requests()
    made.again(pool={"keep": False})
    assert made.requests() == requests
    assert outputs(made.run) == before
    assert not any("image" in pq.read_schema(path).names for path in (made.run / "pool").rglob("part-*.parquet"))
    assert sum(jobs(made.again(pool={"keep": False})).values()) == 0
    assert verify.run(str(made.run))[1] == []
    with pytest.raises(UserError, match=r"pool\.keep is false"):
        retry.run(str(made.run), ["download:http_503"], rebuild=True)
    rules = [{"name": "few_words", "keep": "words < 10"}]
    write_config(made.config, made.server, made.lists, stages__selection=rules, pool={"keep": False})
    assert next(line.todo for line in plan.make(made.config) if line.phase == "pool") == 4
    result = made.again(stages__selection=rules, pool={"keep": False})
    assert made.requests() == requests + ROWS - 5 * KINDS + KINDS, "every picture that was good, once more"
    assert result.balances["rows"].kept > 0


def test_retry_appends_and_leaves_every_shard_as_it_is(made: Made) -> None:
    before = {name: digest for name, digest in outputs(made.run).items() if name.endswith((".tar", ".parquet"))}
    requests = made.requests()
    with made.healed(503):
        result = retry.run(str(made.run), ["download:http_503"])
    assert made.requests() == requests + KINDS
    assert result.report["dropped"].get("download:http_503", 0) == 0
    assert result.balances["rows"].kept == ROWS - sum(EXPECTED.values()) + KINDS
    after = outputs(made.run)
    assert {name: after[name] for name in before} == before
    assert verify.run(str(made.run))[1] == []
    assert outputs(made.run) == after
    again = made.again()
    assert outputs(made.run) == after
    assert sum(jobs(again).values()) == 0, "the plain command after a retry has nothing to do"


def test_retry_rebuild_shuffles_anew(made: Made) -> None:
    with made.healed(404):
        result = retry.run(str(made.run), ["download:http_404"], rebuild=True)
    assert "download:http_404" not in result.report["dropped"]
    sizes = [shard["samples"] for shard in json.loads((made.run / "shards" / "manifest.json").read_text())["shards"]]
    assert max(sizes) - min(sizes) <= 1
    assert verify.run(str(made.run))[1] == []


def test_retry_refuses_what_no_fetch_can_have(made: Made) -> None:
    with pytest.raises(UserError, match=r"captions:too_short: no fate of a fetch; valid: .*download:timeout"):
        retry.run(str(made.run), ["captions:too_short"])


def test_explain_finds_a_row_by_url_uid_key_and_number(first_run: Made) -> None:
    kept = next(line for line in ledger(first_run.run).to_pylist() if line["key"])
    folder = str(first_run.run)
    for what in (kept["url"], kept["uid"], kept["key"], f"row={kept['row']}"):
        assert [story["row"] for story in explain.stories(folder, what)] == [kept["row"]]
    told = dict(explain.tell(explain.stories(folder, kept["key"])[0]))
    assert kept["key"] in told["sample"]
    assert "320x256 jpeg -> 64x64 jpg" in told["image"]
    lost = next(line for line in ledger(first_run.run).to_pylist() if line["fate"] == "download:http_404")
    assert "404" in dict(explain.tell(explain.stories(folder, lost["url"])[0]))["fate"]
    with pytest.raises(UserError, match="no row with"):
        explain.stories(folder, "http://nowhere.test/x.jpg")


@pytest.mark.parametrize("fault", ["flipped", "missing", "ledger", "parquet"])
def test_verify_finds_what_is_broken(made: Made, fault: str) -> None:
    manifest = json.loads((made.run / "shards" / "manifest.json").read_text())
    tar = made.run / "shards" / manifest["key"] / manifest["shards"][0]["name"]
    if fault == "flipped":
        data = bytearray(tar.read_bytes())
        data[700] ^= 1
        tar.unlink()
        tar.write_bytes(data)
    elif fault == "missing":
        tar.unlink()
    elif fault == "parquet":
        table = pq.read_table(tar.with_suffix(".parquet"))
        tar.with_suffix(".parquet").unlink()
        pq.write_table(table[1:], tar.with_suffix(".parquet"))
    else:
        part = next((made.run / "ledger").rglob("part-00001.parquet"))
        table = pq.read_table(part)
        part.unlink()
        pq.write_table(table[1:], part)
    _, found = verify.run(str(made.run))
    assert found


def test_clean_removes_old_keys_alone(made: Made) -> None:
    made.again(stages__selection=[{"name": "few_words", "keep": "words < 10"}])
    after = outputs(made.run)
    removed = clean.run(str(made.run))
    assert {path.partition("/")[0] for path in removed} >= {"selection", "shards", "ledger"}
    assert outputs(made.run) == after
    assert sum(jobs(made.again(stages__selection=[{"name": "few_words", "keep": "words < 10"}])).values()) == 0
    assert verify.run(str(made.run))[1] == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stages__selection": [{"name": "x", "keep": "similarty > 0.3"}]}, r"similarty"),
        ({"stages__images": {"sise": 224}}, r"stages\.images\.sise: unknown key; did you mean size"),
        ({"stages__captions": {"min_chars": -1}}, r"stages\.captions\.min_chars"),
        ({"path": ["nowhere/*.parquet"]}, r"nowhere"),
        ({"shards__order": "random"}, r"shards\.order"),
        ({"input__columns": {"url": "nope"}}, r"list-0\.parquet: .*nope"),
    ],
)
def test_what_must_be_mended_ends_before_work_begins(made: Made, change: dict[str, Any], said: str) -> None:
    requests = made.requests()
    write_config(made.config, made.server, **{"path": made.lists, "run__name": "refused", **change})
    with pytest.raises(UserError, match=said):
        run(made.config)
    assert made.requests() == requests
    assert not (made.folder / "runs" / "refused").exists()
    with pytest.raises(UserError, match=said):
        plan.make(made.config)

    there = (made.run / "run.json").read_bytes()
    with pytest.raises(UserError, match=said):
        made.again(**change)
    assert (made.run / "run.json").read_bytes() == there, "what is refused was not begun"


def test_two_runs_of_one_corpus_in_two_folders_are_equal(first_run: Made, tmp_path: Path) -> None:
    """Another folder, parts of another size: the same shards."""
    config = write_config(tmp_path / "test.yaml", first_run.server, first_run.lists, run__part_rows=37)
    run(config)
    assert outputs(tmp_path / "runs" / "test") == outputs(first_run.run)
    shutil.rmtree(tmp_path / "runs")


def test_a_run_without_captions_and_dedup_is_whole(first_run: Made, tmp_path: Path) -> None:
    config = tmp_path / "test.yaml"
    download = {**first_run.server.options(), "retries": 0}
    write_config(config, first_run.server, first_run.lists, stages={"ingest": {}, "download": download, "images": {}, "selection": []})
    result = run(config, show=Quiet())
    assert result.report["histograms"].keys() >= {"original_width", "original_height"}
    assert fates(tmp_path / "runs" / "test") == {
        "download:http_404": KINDS, "images:not_an_image": KINDS, "download:http_503": KINDS, "kept": ROWS - 3 * KINDS
    }  # fmt: skip


@pytest.mark.parametrize("lost", ["captions", "download", "selection"])
def test_a_run_that_keeps_nothing_ends_with_its_ledger(made: Made, lost: str) -> None:
    changes: dict[str, Any] = {
        "captions": {"stages__captions": {"min_chars": 5000}},
        "download": {
            "path": write_list(made.folder / "dead.parquet", [made.server.url(f"/status/404/{n}") for n in range(9)], ["text"] * 9)
        },
        "selection": {"stages__selection": [{"name": "none", "keep": "false"}]},
    }[lost]
    result = made.again(**changes)
    assert result.balances["rows"].kept == 0
    assert sum(result.report["dropped"].values()) == result.report["rows_in"] > 0
    assert verify.run(str(made.run))[1] == []
