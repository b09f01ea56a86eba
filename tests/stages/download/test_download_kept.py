"""`keep_in`: what was fetched once is found again, as it was answered, and never asked for a second time."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from pipeline.frame import apply
from stages.download.kept import Kept
from stages.download.stage import Download
from stages.download.subtitles import SubtitleFiles
from tests.stages.download.conftest import QUICK, wanted
from tests.support.server import Server, bytes_for


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "bodies").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "bodies"))
    return tmp_path / "kept"


def rows(server: Server, folder: Path, paths: list[str], host: str, hashes: list[str | None] | None = None, **options: Any) -> Any:
    """What a stage of its own makes of them; its files are given back."""
    given = {**QUICK, **server.options(), "retries": 0, "to": "disk", "keep_in": str(folder), **options}
    stage = Download(Download.Config.model_validate(given))
    try:
        table = apply(stage, wanted([server.url(path, host) for path in paths], hashes))
        bodies = [None if path is None else Path(path).read_bytes() for path in table["video"].to_pylist()]
        stage.release(table)
        return table.to_pylist(), bodies
    finally:
        stage.close()


def test_what_was_fetched_is_found_again(server: Server, folder: Path) -> None:
    paths = ["/film", "/size/300000", "/status/404", "/film"]
    before, bodies = rows(server, folder, paths, "kept.test")
    assert bodies[0] == bytes_for("kept.test/film{}", 2000)
    asked = server.count(host="kept.test")
    after, again = rows(server, folder, paths, "kept.test")
    assert server.count(host="kept.test") == asked + 1  # the one that was not found
    assert (after, again) == (before, bodies)
    assert len([path for path in folder.iterdir() if path.suffix != ".json"]) == 2
    assert [path for path in (folder.parent / "bodies").rglob("*") if path.is_file()] == []


def test_a_file_that_is_not_whole_is_fetched_again(server: Server, folder: Path) -> None:
    rows(server, folder, ["/film"], "whole.test")
    (path,) = (path for path in folder.iterdir() if path.suffix != ".json")
    path.write_bytes(path.read_bytes()[:-1])
    _, (body,) = rows(server, folder, ["/film"], "whole.test")
    assert body == bytes_for("whole.test/film{}", 2000)
    assert server.count(host="whole.test") == 2


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"optout": {"entries": ["out.kept.test"]}}, "optout"),
        ({"optout": {"entries": ["sha256:" + hashlib.sha256(bytes_for("out.kept.test/film{}", 2000)).hexdigest()]}}, "optout"),
        ({"max_bytes": 1000}, "too_large"),
        ({"min_bytes": 3000}, "too_small"),
    ],
)
def test_what_is_kept_is_held_to_the_rules_of_today(server: Server, folder: Path, options: dict[str, Any], reason: str) -> None:
    rows(server, folder, ["/film"], "out.kept.test")
    ((row,), _) = rows(server, folder, ["/film"], "out.kept.test", **options)
    assert row["fate"] == f"download:{reason}"


def test_what_is_not_the_expected_file_is_not_kept(server: Server, folder: Path) -> None:
    ((row,), _) = rows(server, folder, ["/film"], "other.test", ["md5:" + "0" * 32])
    assert row["fate"] == "download:hash_mismatch"
    rows(server, folder, ["/film"], "other.test")
    assert server.count(host="other.test") == 2


def test_what_a_killed_process_left_half_done_is_swept(folder: Path) -> None:
    folder.mkdir()
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    names = [f"a.{socket.gethostname()}-{dead.pid}.x.part", f"b.{socket.gethostname()}-{os.getpid()}.x.part", "c.elsewhere-1.x.part", "d"]
    for name in names:
        (folder / name).write_bytes(b"half a film")
    Kept(str(folder), "shardmill")
    assert sorted(path.name for path in folder.iterdir()) == sorted(names[1:])


def test_of_two_who_fetch_at_once_the_first_stays(server: Server, folder: Path) -> None:
    (_, (body,)) = rows(server, folder, ["/film"], "twice.test")
    kept, other = Kept(str(folder), "shardmill"), Kept(str(folder), "yt_dlp")
    found = kept.find(server.url("/film", "twice.test"))
    assert found is not None
    assert found.path is not None
    assert Path(found.path).read_bytes() == body
    assert other.find(server.url("/film", "twice.test")) is None  # a page is not its video
    late = folder.parent / "late"
    late.write_bytes(b"another film")
    assert kept.keep(server.url("/film", "twice.test"), type(found)(path=str(late), fetched_bytes=12, sha256="0" * 64)) == found


def test_a_video_is_fetched_once_for_its_text_track_and_its_frames(server: Server, folder: Path) -> None:
    given = {**QUICK, **server.options(), "keep_in": str(folder)}
    table = wanted([server.url("/film", "track.test")])
    more = {"subtitle": pa.nulls(1, pa.large_binary()), "subtitle_at": pa.nulls(1, pa.string())}
    for name, values in more.items():
        table = table.append_column(name, values)
    stage = SubtitleFiles(SubtitleFiles.Config.model_validate({**given, "tracks": "fetched"}))
    assert apply(stage, table)["fate"].to_pylist() == ["subtitle_files:not_a_video"]
    stage.close()
    ((row,), _) = rows(server, folder, ["/film"], "track.test")
    assert row["fate"] == "kept"
    assert server.count(host="track.test") == 1


def test_bodies_in_memory_are_not_kept() -> None:
    with pytest.raises(ValidationError, match="needs to: disk"):
        Download.Config(keep_in="films")
    with pytest.raises(ValidationError, match="no address of storage"):
        Download.Config(to="disk", keep_in="s3://films")
