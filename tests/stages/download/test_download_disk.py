"""`to: disk`: bodies become files that one owner gives back; nothing stays of failures, closed streams and killed processes."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from pipeline.frame import apply, apply_stream, machine_fault
from stages.download import config
from stages.download.spool import Sink, Spool, sweep
from stages.download.stage import Download
from stages.download.subtitles import SubtitleFiles
from tests.stages.download.conftest import QUICK, wanted
from tests.support.server import Server, bytes_for


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where bodies lie; every test has to leave it empty."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert files(tmp_path) == []


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and "given" not in path.name]


def stage_of(server: Server, **options: Any) -> Download:
    return Download(Download.Config.model_validate({**QUICK, **server.options(), "to": "disk", **options}))


def test_a_video_in_many_rows_is_one_file(server: Server, folder: Path) -> None:
    stage = stage_of(server)
    table = apply(stage, wanted([server.url(path, "disk.test") for path in ("/film", "/film", "/size/300000", "/film")]))
    rows = table.to_pylist()
    assert server.count(host="disk.test") == 2
    assert len({row["video"] for row in rows}) == 2
    for row, body in ((rows[0], bytes_for("disk.test/film{}", 2000)), (rows[2], Path(rows[2]["video"]).read_bytes())):
        assert Path(row["video"]).read_bytes() == body
        assert row["sha256"] == hashlib.sha256(body).hexdigest()
        assert row["fetched_bytes"] == len(body)
    assert rows[2]["fetched_bytes"] == 300_000
    assert len(files(folder)) == 2
    stage.release(table)
    assert files(folder) == []
    stage.close()


@pytest.mark.parametrize("path", ["/short", "/reset_body", "/status/404", "/endless", "/bad_chunk", "/cut_gzip", "/hang", "/empty"])
def test_a_failed_download_leaves_no_file(server: Server, folder: Path, path: str) -> None:
    stage = stage_of(server, max_bytes=100_000, timeout_s=0.5, retries=1)
    (row,) = apply(stage, wanted([server.url(path, "fails.test")])).to_pylist()
    assert row["fate"].startswith("download:")
    assert row["video"] is None
    assert files(folder) == []
    stage.close()


def test_a_body_that_is_not_the_expected_one_is_gone(server: Server, folder: Path) -> None:
    body = bytes_for("hash.test/a{}", 2000)
    md5 = f"md5:{hashlib.md5(body, usedforsecurity=False).hexdigest()}"
    stage = stage_of(server)
    table = apply(stage, wanted([server.url("/a", "hash.test"), server.url("/b", "hash.test")], [md5, md5]))
    assert [row["fate"] for row in table.to_pylist()] == ["kept", "download:hash_mismatch"]
    assert len(files(folder)) == 1
    stage.release(table)
    stage.close()


def test_opt_out_by_content(server: Server) -> None:
    digest = hashlib.sha256(bytes_for("out.test/a{}", 2000)).hexdigest()
    stage = stage_of(server, optout={"entries": [f"sha256:{digest}"]})
    (row,) = apply(stage, wanted([server.url("/a", "out.test")])).to_pylist()
    assert row["fate"] == "download:optout"
    stage.close()


def test_a_local_file_is_taken_where_it_lies_and_never_removed(server: Server, tmp_path: Path) -> None:
    given = tmp_path / "given.mp4"
    given.write_bytes(b"video" * 100)
    stage = stage_of(server)
    table = apply(stage, wanted([None, None, None], stored=[str(given), f'{{"path": "{given}", "offset": 5, "length": 10}}', "/nowhere"]))
    rows = table.to_pylist()
    assert [row["fate"] for row in rows] == ["kept", "kept", "download:stored_unreadable"]
    assert rows[0]["video"] == str(given)
    assert rows[0]["sha256"] == hashlib.sha256(b"video" * 100).hexdigest()
    assert Path(rows[1]["video"]).read_bytes() == b"videovideo"
    stage.release(table)
    assert given.is_file()
    stage.close()


def test_a_stream_that_is_closed_early_leaves_what_close_removes(server: Server) -> None:
    async def first() -> int:
        stage = stage_of(server)
        stage.open()
        stream = apply_stream(stage, wanted([server.url(f"/size/{n}000", "early.test") for n in range(1, 30)]))
        piece = await anext(stream)
        stage.release(piece)
        await stream.aclose()
        await stage.aclose()
        return len(piece)

    assert asyncio.run(first()) == 1  # a file is handed on as soon as it is whole


def test_what_killed_processes_left_is_swept(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    for pid in (dead.pid, os.getpid()):
        (tmp_path / f"{pid}-x").mkdir()
    (tmp_path / f"{dead.pid}-x" / "00000000").write_bytes(b"half a film")
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{os.getpid()}-x"]


def test_img2dataset_cannot_write_to_disk() -> None:
    with pytest.raises(ValidationError, match="holds bodies in memory"):
        config.Config(to="disk", engine="img2dataset")


def test_subtitle_files(server: Server, tmp_path: Path) -> None:
    given = tmp_path / "given.vtt"
    given.write_text("WEBVTT")
    places = [server.url("/a", "sub.test"), None, None, str(given), server.url("/status/404", "sub.test")]
    held = [None, b"1\n", None, None, None]
    table = wanted([None] * 5).append_column("subtitle", pa.array(held, pa.large_binary())).append_column("subtitle_at", pa.array(places))
    for local in (True, False):
        stage = SubtitleFiles(SubtitleFiles.Config.model_validate({**QUICK, **server.options(), "local": local, "retries": 0}))
        rows = apply(stage, table).to_pylist()
        kept = "kept" if local else "subtitle_files:local"
        assert [row["fate"] for row in rows] == ["kept", "kept", "subtitle_files:missing", kept, "subtitle_files:http_404"]
        assert [row["subtitle"] for row in rows] == [bytes_for("sub.test/a{}", 2000), b"1\n", None, b"WEBVTT" if local else None, None]
        stage.close()


@pytest.mark.parametrize("path", ["/film", "/size/300000"])
def test_a_full_disk_is_no_rows_fault(server: Server, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Small bodies are written when the file is closed, large ones as they come; a copy of a stored one too."""
    new = Spool.new

    def full(spool: Spool) -> Any:
        (spool.folder / f"{len(files(spool.folder)):08d}").symlink_to("/dev/full")
        return new(spool)

    monkeypatch.setattr(Spool, "new", full)
    stage = stage_of(server, retries=0)
    with pytest.raises(OSError, match="No space left") as raised:
        apply(stage, wanted([server.url(path, "full.test")]))
    assert machine_fault(raised.value)
    stage.close()


def test_a_full_disk_is_no_stored_files_fault(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(_: Sink, data: bytes, keep: bool = True) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Sink, "append", full)
    (tmp_path / "given.mp4").write_bytes(b"video" * 100)
    stage = stage_of(server)
    with pytest.raises(OSError, match="No space left"):
        apply(stage, wanted([None], stored=[f'{{"path": "{tmp_path}/given.mp4", "offset": 5, "length": 10}}']))
    stage.close()
