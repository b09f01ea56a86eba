"""Where a list names no subtitle file, the video's own text track is taken: of real files and generated ones, stored and on the web."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.frame import apply, apply_pieces, expand
from pipeline.sample import film
from stages.download.subtitles import SubtitleFiles
from stages.lib.subtitles import SubtitleError, parse
from stages.lib.subtitles.embedded import as_file, choose, read_tracks
from stages.segments import Segments
from stages.subtitles import Subtitles
from tests.stages.download.conftest import QUICK, wanted
from tests.support.server import Server
from tests.support.subtitles import shown

SAID = [
    (1000, 2500, "Cut the onion into rings."),
    (2600, 4000, "Now fry them in butter & salt,"),
    (4100, 6000, "until they are <i>brown</i>."),
]
HEARD = "Cut the onion into rings. Now fry them in butter & salt, until they are brown."


def filmed(path: Path, shift_ms: int = 0) -> Path:
    """A film of eight seconds with SAID as its text track."""
    grey = np.full((64, 64, 3), 90, np.uint8)
    film.write(path, ((shift_ms + 200 * n, grey) for n in range(40)), subtitles=[(shift_ms + a, shift_ms + b, text) for a, b, text in SAID])
    return path


def looked_into(server: Server, places: list[tuple[str | None, str | None]], **options: Any) -> pa.Table:
    """(url, stored_at) of videos through subtitle_files and subtitles."""
    table = wanted([url for url, _ in places], stored=[path for _, path in places])
    table = table.append_column("subtitle", pa.nulls(len(table), pa.large_binary())).append_column(
        "subtitle_at", pa.nulls(len(table), pa.string())
    )
    stage = SubtitleFiles(SubtitleFiles.Config.model_validate({**QUICK, **server.options(), "retries": 0, **options}))
    try:
        return apply(Subtitles(), apply(stage, table))
    finally:
        stage.close()


def test_real_files(server: Server, data_dir: Path) -> None:
    names = (
        "exo_sample_with_srt.mkv",
        "exo_sample_with_ssa_subtitles.mkv",
        "exo_sample_with_vtt_subtitles.mkv",
        "nasa_13013.mp4",
        "manifesto.mp4",
    )
    table = looked_into(server, [(None, str(data_dir / "video" / name)) for name in names])
    assert table["fate"].to_pylist() == ["kept"] * 4 + ["subtitle_files:no_track"]
    assert table["subtitle_format"].to_pylist()[:4] == ["embedded_srt", "embedded_ssa", "embedded_webvtt", "embedded_mov_text"]
    cues = table["cues"].to_pylist()
    first = [[(cue["start_s"], cue["end_s"], cue["text"]) for cue in each] for each in cues[:3]]
    said = "This is the first subtitle."
    assert first == [[(0, 1.234, said)], [(0, 0.5, said)], [(0, 1.234, said)]]
    assert len(cues[3]) == 4
    assert cues[3][0]["text"] == "NAR: This is the optical and science segment of the Webb"
    assert table["subtitle_language"].to_pylist()[3] == "eng"


@pytest.mark.parametrize(("suffix", "shift_ms", "codec"), [("mp4", 0, "mov_text"), ("mkv", 0, "srt"), ("mkv", 5000, "srt")])
def test_a_track_says_what_was_put_into_it(server: Server, tmp_path: Path, suffix: str, shift_ms: int, codec: str) -> None:
    path = filmed(tmp_path / f"film.{suffix}", shift_ms)
    table = looked_into(server, [(None, str(path))])
    (cues,) = table["cues"].to_pylist()
    assert table["subtitle_format"].to_pylist() == [f"embedded_{codec}"]
    assert [(cue["start_s"], cue["end_s"]) for cue in cues] == [(a / 1000, b / 1000) for a, b, _ in SAID]
    rows, children = expand(Segments(Segments.Config(max_s=30)), table)
    assert rows["fate"].to_pylist() == ["kept"]
    assert " ".join(children["source_caption"].to_pylist()) == HEARD


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_automatic_captions_put_into_a_video_have_each_line_once(server: Server, tmp_path: Path, data_dir: Path, suffix: str) -> None:
    """As `yt-dlp --embed-subs` does it: the rolling cues become a text track as they are."""
    body = (data_dir / "subtitles/youtube_auto_vtt/manifesto_90s.en.vtt").read_bytes()
    said = [(round(1000 * a), round(1000 * b), text) for a, b, text in shown(body.decode())]
    path = tmp_path / f"film.{suffix}"
    film.write(path, ((200 * n, np.full((64, 64, 3), 90, np.uint8)) for n in range(40)), subtitles=said)
    (cues,) = looked_into(server, [(None, str(path))])["cues"].to_pylist()
    assert [(cue["start_s"], cue["text"]) for cue in cues] == [(cue.start_s, cue.text) for cue in parse(body).cues]


@pytest.mark.parametrize("kind", [b"c608", b"stpp"])
def test_tracks_that_hold_no_plain_text_are_no_captions(server: Server, tmp_path: Path, kind: bytes) -> None:
    """Closed captions and TTML in mp4: bytes that mean something else."""
    path = filmed(tmp_path / "film.mp4")
    body = path.read_bytes()
    assert body.count(b"tx3g") == 1
    path.write_bytes(body.replace(b"tx3g", kind))
    table = looked_into(server, [(None, str(path))])
    assert table["fate"].to_pylist() == ["subtitle_files:no_track"]


def test_where_the_video_lies_decides(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Videos on the web are fetched only where that is asked for; nothing of them stays."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "bodies"))
    (tmp_path / "bodies").mkdir()
    server.files["/track.mp4"] = filmed(tmp_path / "film.mp4").read_bytes()
    sound = tmp_path / "sound.mkv"
    film.write(sound, [], audio_s=1)
    broken = tmp_path / "broken.mp4"
    broken.write_text("<html>")
    places = [
        (server.url("/track.mp4", "tracks.test"), None),
        (None, str(sound)),
        (None, str(broken)),
        (server.url("/status/404", "tracks.test"), None),
    ]
    lacking = ["subtitle_files:no_track", "subtitle_files:not_a_video"]
    assert looked_into(server, places)["fate"].to_pylist() == ["subtitle_files:missing", *lacking, "subtitle_files:missing"]
    assert server.count(host="tracks.test") == 0
    assert looked_into(server, places, tracks="fetched")["fate"].to_pylist() == ["kept", *lacking, "subtitle_files:http_404"]
    assert looked_into(server, places, tracks="none")["fate"].to_pylist() == ["subtitle_files:missing"] * 4
    (small,) = looked_into(server, places[:1], tracks="fetched", max_video_bytes=1000)["fate"].to_pylist()
    assert small == "subtitle_files:too_large"
    assert [path for path in (tmp_path / "bodies").rglob("*") if path.is_file()] == []


def test_of_several_tracks_the_language_then_the_file_decides(data_dir: Path) -> None:
    tracks = read_tracks(str(data_dir / "video" / "nasa_13013.mp4"))
    assert len(tracks) == 2
    said = {track.index: track.found.language for track in tracks if track.found.raws}
    chosen = choose(tracks)
    assert chosen is not None
    assert chosen.index in said
    for index, language in said.items():
        picked = choose(tracks, [str(language)])
        assert picked is not None
        assert picked.found.language == tracks[[track.index for track in tracks].index(index)].found.language


def test_a_track_goes_through_its_file_unchanged(data_dir: Path) -> None:
    for name in ("exo_sample_with_srt.mkv", "exo_sample_with_vtt_subtitles.mkv", "nasa_13013.mp4"):
        for track in read_tracks(str(data_dir / "video" / name)):
            assert parse(as_file(track)) == track.track()


@pytest.mark.parametrize(
    "body",
    [
        '{"text_track": "subrip", "cues": [[0]]}',
        '{"text_track": "subrip", "cues": [[-5, 1, [[null, "x"]]]]}',
        '{"text_track": "<b>", "cues": []}',
    ],
)
def test_a_file_that_only_looks_like_one_is_refused(body: str) -> None:
    with pytest.raises(SubtitleError):
        parse(body.encode())


def test_files_that_come_one_after_the_other_tell_the_watchdog(server: Server) -> None:
    """A part's files may all lie at one host, whose turns take longer than a stage may stall."""
    table = wanted([None] * 12).append_column("subtitle", pa.nulls(12, pa.large_binary()))
    table = table.append_column("subtitle_at", pa.array([server.url(f"/slow/0.1/{n}.vtt") for n in range(12)]))
    options = {**QUICK, **server.options(), "per_host": {"concurrency": 1, "per_second": None}}
    stage, told = SubtitleFiles(SubtitleFiles.Config.model_validate(options)), []
    try:
        (made,) = apply_pieces(stage, table, lambda: told.append(server.count()))
    finally:
        stage.close()
    assert made["fate"].to_pylist() == ["kept"] * 12
    assert len(set(told)) > 3
