"""A stage that changed after its run was published: explain and verify read the run as it was made, retry wants a run first."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline import explain, retry, verify
from pipeline.errors import UserError
from stages.captions import Captions
from stages.dedup.captions import Dedup
from stages.download.stage import Download
from stages.selection import Selection
from stages.shards import Shards
from tests.pipeline.conftest import Made
from tests.support import serial
from tests.support.corpus import caption, fates, picture, write_config, write_list
from tests.support.server import Server

OWN = '''
import pyarrow as pa
from pipeline.stage import Column, Stage, Strict


class Letters(Stage):
    """Counts the letters of a caption."""

    name = "letters"
    version = 1
    reads = {"caption": Column(pa.string(), "the caption")}
    adds = {"letters": Column(pa.int64(), "characters of the caption")}
    reasons = {}

    class Config(Strict):
        pass

    def __call__(self, table):
        return table.append_column("letters", pa.array([len(text or "") for text in table["caption"].to_pylist()], pa.int64()))
'''


def notes(run: Path) -> list[Path]:
    return list((run / "pool").rglob("retry-*.json"))


def test_a_comment_in_a_users_own_stage_leaves_a_published_run_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    own = tmp_path / "own_letters.py"
    own.write_text(OWN)
    with Server() as server:
        for n in range(5):
            server.files[f"/p/{n}.jpg"] = picture(n)
        urls = [server.url(f"/p/{n}.jpg" if n < 5 else "/status/503/5") for n in range(6)]
        listed = write_list(tmp_path / "list.parquet", urls, [caption(n) for n in range(6)])
        download = {**server.options(), "timeout_s": 5, "retries": 0}
        stages = {"ingest": {}, "captions": {}, "own_letters:Letters": {}, "download": download, "images": {"size": 64}}
        config = write_config(tmp_path / "test.yaml", server, listed, stages=stages)
        serial.run(config)
        run, folder = tmp_path / "runs" / "test", str(tmp_path / "runs" / "test")
        story = explain.stories(folder, "row=1")
        own.write_text(OWN + "# a comment\n")

        assert explain.stories(folder, "row=1") == story
        assert verify.run(folder)[1] == []
        with pytest.raises(UserError, match=r"^\S+/test: stages changed since: repeat `shardmill run` first$"):
            retry.run(folder, ["download:http_503"])
        assert not notes(run)

        serial.run(config)
        assert len(list((run / "rows").iterdir())) == 2
        assert fates(run) == {"kept": 5, "download:http_503": 1}
        assert verify.run(folder)[1] == []
    sys.modules.pop("own_letters", None)


@pytest.mark.ray
@pytest.mark.parametrize("stage", [Captions, Dedup, Download, Selection, Shards])
def test_another_version_of_a_stage_leaves_a_published_run_readable(made: Made, monkeypatch: pytest.MonkeyPatch, stage: type) -> None:
    folder = str(made.run)
    with made.healed(503):
        retry.run(folder, ["download:http_503"])
    story, before = explain.stories(folder, "row=1"), notes(made.run)
    assert len(before) == 1
    monkeypatch.setattr(stage, "version", 99)
    assert explain.stories(folder, "row=1") == story
    assert verify.run(folder)[1] == []
    with pytest.raises(UserError, match="stages changed since"):
        retry.run(folder, ["download:http_404"])
    assert notes(made.run) == before
