"""A changed config that was begun and cut off, and retries: what is published stays true, and nothing that is needed is removed."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline import clean, explain, plan, report, retry, verify
from pipeline.engine import Engine
from pipeline.errors import UserError
from pipeline.phases import rows, select, write
from pipeline.storage import Store
from tests.pipeline.conftest import ROWS, Made
from tests.support.corpus import ledger, outputs, write_config

pytestmark = pytest.mark.ray

KINDS = ROWS // 20


def published(run: Path) -> str:
    key: str = json.loads((run / "shards" / "manifest.json").read_text())["key"]
    return key


def files(run: Path) -> dict[str, tuple[int, int]]:
    """Every file of a run with its inode and time of change: a file that is written anew has another."""
    return {str(path.relative_to(run)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in run.rglob("*")}


def cut_off(patch: pytest.MonkeyPatch, where: Any, name: str, made: Made, **changes: Any) -> None:
    """Runs the changed config and stops where it would call this function."""

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with patch.context() as here:
        here.setattr(where, name, stop)
        with pytest.raises(KeyboardInterrupt):
            made.again(**changes)


def test_what_is_published_stays_true_while_a_change_is_unfinished(
    made: Made, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    def reported() -> tuple[bool, bool]:
        """Whether the report says that it is of former shards, and that something is unfinished."""
        capsys.readouterr()
        report.show(folder)
        said = capsys.readouterr().out
        return "of former shards" in said, "was begun after these shards" in said

    before, old, folder = outputs(made.run), published(made.run), str(made.run)
    story = explain.stories(folder, "row=1")
    assert "unfinished" not in caplog.text
    longer = {"stages__captions": {"min_chars": 2}}
    cut_off(monkeypatch, Engine, "stream", made, **longer)

    there = files(made.run)
    assert any(path.startswith("tmp/todo/") for path in there)
    lines = {line.phase: line for line in plan.make(made.config)}
    assert files(made.run) == there, "a plan writes and removes nothing: a run may be at work"
    assert lines["pool"].todo == 3, "the parts with a caption that was too short"
    assert (lines["selection"].why, lines["shards"].why) == ("never run", "never run")

    for moment in (select, write):
        cut_off(monkeypatch, moment, "run_phase", made, **longer)
        assert published(made.run) == old
        assert verify.run(folder)[1] == []
        assert "unfinished" in caplog.text
        assert explain.stories(folder, "row=1") == story
        assert reported() == (False, True)
    lines = {line.phase: line for line in plan.make(made.config)}
    assert (lines["image_dedup"].todo, lines["selection"].todo, lines["shards"].why) == (0, 0, "never run")

    clean.run(folder)
    assert outputs(made.run) == before
    assert verify.run(folder)[1] == []

    # Killed right after the manifest: what it names is whole, its ledger too.
    cut_off(monkeypatch, report, "write", made, **longer)
    assert published(made.run) != old
    assert reported() == (True, False)
    caplog.clear()
    assert verify.run(folder)[1] == []
    assert explain.stories(folder, "row=9")[0]["fate"] != "captions:too_short"
    assert "unfinished" not in caplog.text

    result = made.again(**longer)
    assert sum(phase["jobs"] for phase in result.report["session"]) == 0
    assert reported() == (False, False)
    stages = result.report["stages"]
    assert stages["captions"]["rows"] == 2 * ROWS, "the first run's and the changed one's, though none of its sessions ended well"
    assert stages["download"]["rows"] == ROWS - KINDS + KINDS


def test_a_first_run_that_is_unfinished_has_no_story_yet(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    for where, name in ((rows, "run_phase"), (Engine, "stream"), (select, "run_phase")):
        cut_off(monkeypatch, where, name, made, run__name="new")
        with pytest.raises(UserError, match=r"new: the run is not finished; repeat `shardmill run`"):
            explain.stories(str(made.run.parent / "new"), "row=0")


def test_a_state_is_left_and_come_back_to_after_a_retry_and_clean(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    folder, base = str(made.run), published(made.run)
    with made.healed(503):
        retry.run(folder, ["download:http_503"])
    after, retried = outputs(made.run), published(made.run)
    made.again(shards__samples=20)
    removed = clean.run(folder)
    assert f"shards/{retried}" in removed
    requests = made.requests()
    result = made.again()
    assert outputs(made.run) == after, "appended again to the shards that clean kept for it"
    assert published(made.run) == retried

    made.again(shards__samples=20)
    for key in (base, retried):
        shutil.rmtree(made.run / "shards" / key)
    result = made.again()
    assert "written anew" in caplog.text
    assert published(made.run) not in (base, retried)
    assert result.balances["rows"].kept == ROWS - 5 * KINDS
    assert verify.run(folder)[1] == []
    assert made.requests() == requests

    # Back to shards that lie there whole: they are published again, not written again.
    there = files(made.run / "shards")
    result = made.again(shards__samples=20)
    tars = [path for path in there if path.endswith((".tar", ".parquet"))]
    assert {path: files(made.run / "shards")[path] for path in tars} == {path: there[path] for path in tars}
    assert verify.run(folder)[1] == []


def test_a_retry_needs_rows_that_ended_so_but_no_input(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    folder, there = str(made.run), files(made.run)
    result = retry.run(folder, ["download:timeout"])
    assert result.ok
    assert "no row ended with download:timeout" in capsys.readouterr().out
    assert files(made.run) == there
    listed = made.lists / "list-0.parquet"
    gone = listed.rename(listed.with_suffix(".gone"))
    try:
        with made.healed(503):
            result = retry.run(folder, ["download:http_503", "download:timeout"])
    finally:
        gone.rename(listed)
    assert result.balances["rows"].kept == ROWS - 5 * KINDS
    assert len(ledger(made.run)) == ROWS
    assert verify.run(folder)[1] == []


def test_a_folder_that_cannot_be_written_to_is_told(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    write_config(made.config, made.server, made.lists)
    there = files(made.run)
    monkeypatch.setattr(Store, "write", refuse)
    for command in (lambda: clean.run(str(made.run)), lambda: retry.run(str(made.run), ["download:http_503"])):
        with pytest.raises(UserError, match=r"cannot write to .*Read-only file system"):
            command()
    assert files(made.run) == there
