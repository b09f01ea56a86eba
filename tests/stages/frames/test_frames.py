"""Frames are those on screen at the wanted times: read back from the pixels of generated videos of many kinds."""

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.frame import apply, framed
from pipeline.sample import film
from stages.frames import Frames
from stages.frames.decode import Missing, Shown, Video
from tests.support.videos import H264, KINDS, Kind, make, on_screen, picture, read_jpeg, steady, uneven


def run(segments: list[tuple[Path | str, float, float]], **options: Any) -> list[dict[str, Any]]:
    paths, starts, ends = zip(*segments, strict=True)
    columns = {
        "video": pa.array(map(str, paths), pa.string()),
        "start_s": pa.array(starts, pa.float64()),
        "end_s": pa.array(ends, pa.float64()),
    }
    stage = Frames(Frames.Config(**options))
    stage.open()
    rows: list[dict[str, Any]] = apply(stage, framed(pa.table(columns))).to_pylist()
    return rows


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    return {name: make(folder / f"{name}.{kind.suffix}", kind) for name, kind in KINDS.items()}


@pytest.mark.parametrize("name", KINDS)
def test_every_chosen_frame_is_on_screen_at_its_time(videos: dict[str, Path], name: str) -> None:
    """Segments overlap, lie in any order, and begin and end anywhere, also exactly at a frame's first moment."""
    times = KINDS[name].times
    rng, last = random.Random(name), times[-1] / 1000
    segments = [(videos[name], start, start + rng.uniform(0.05, 3)) for start in (rng.uniform(0, last - 3) for _ in range(25))]
    segments += [(videos[name], times[n] / 1000, times[n + 2] / 1000) for n in range(0, 20, 3)]
    checked = 0
    for row in run(segments, count=5):
        assert row["fate"] == "kept", row["detail"]
        for t, lag, body in zip(row["frame_times"], row["frame_lags"], row["frames"], strict=True):
            shown = read_jpeg(body)
            assert shown == on_screen(times, t), (name, t)
            following = min((ms for ms in times if ms > shown), default=shown + 1000)
            assert 0 <= lag < (following - shown) / 1000 + 1e-3
            assert lag == pytest.approx(t - shown / 1000, abs=1.1e-3)
            checked += 1
    assert checked == 5 * len(segments)


def test_upright_and_in_shape(videos: dict[str, Path]) -> None:
    for degrees in (90, 180, 270):
        (row,) = run([(videos[f"turned_{degrees}"], 1, 2)], mode="keep_ratio", size=120)
        assert (row["width"], row["height"], row["original_width"], row["original_height"]) == (160, 120, 320, 240)
        assert row["rotation"] == degrees


def test_times_of_a_segment() -> None:
    uniform = Frames(Frames.Config(count=4))
    assert uniform._times(10, 18) == [11, 13, 15, 17]
    assert uniform._times(5, 5) == []
    assert Frames(Frames.Config(count=1))._times(3, 4) == [3.5]
    second = Frames(Frames.Config(pick="per_second", per_second=2, max_count=8))
    assert second._times(0, 2) == [0.25, 0.75, 1.25, 1.75]
    assert second._times(0, 0.2) == [0.1]
    assert second._times(0, 80) == [5, 15, 25, 35, 45, 55, 65, 75]


def test_segments_share_one_pass_and_the_same_frame_is_made_once(videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    made: list[int] = []
    real_init, real_picture = Video.__init__, Frames._picture
    monkeypatch.setattr(Video, "__init__", lambda self, path, *rest: (opened.append(path), real_init(self, path, *rest))[1])
    monkeypatch.setattr(Frames, "_picture", lambda self, *rest: (made.append(1), real_picture(self, *rest))[1])
    rows = run([(videos["steady"], 4.0, 4.04)] * 10 + [(videos["steady"], 1, 2)], count=1)
    assert len(opened) == 1
    assert len(made) == 2
    assert [read_jpeg(row["frames"][0]) for row in rows] == [4000] * 10 + [1480]


def test_two_percent_of_a_long_video_do_not_decode_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "long.mp4", Kind(steady(600, 10), options=(("g", "20"), ("bf", "2"), ("preset", "ultrafast"))), (128, 96))
    decoded: list[int] = []
    real = Video._decoded

    def counted(self: Video, packets: Any, *rest: Any) -> Any:
        decoded.append(len(packets))
        return real(self, packets, *rest)

    monkeypatch.setattr(Video, "_decoded", counted)
    segments = [(path, 50.0 * n + 7, 50.0 * n + 8) for n in range(12)]
    rows = run(segments, count=3)
    assert [read_jpeg(body) for row in rows for body in row["frames"]] == [
        on_screen(steady(600, 10), t) for row in rows for t in row["frame_times"]
    ]
    assert sum(decoded) < 0.10 * 6000  # 12 GOPs of 20 frames, and the packets by which it is known that they are over


def test_a_segment_outside_of_the_video_is_dropped_whole(videos: dict[str, Path]) -> None:
    rows = run([(videos["steady"], 11, 13), (videos["steady"], 100, 104), (videos["steady"], 11, 12)])
    assert [row["fate"] for row in rows] == ["frames:out_of_video", "frames:out_of_video", "kept"]
    assert "no frame at 12.250 s" in rows[0]["detail"]
    assert rows[0]["frames"] is None


def test_before_the_first_frame_nothing_is_on_screen(tmp_path: Path) -> None:
    """Sound begins at 0, the picture a second later."""
    path = tmp_path / "late.mkv"
    film.write(path, ((ms + 1000, picture(ms + 1000)) for ms in steady(3, 25)), options=dict(H264), audio_s=4)
    rows = run([(path, 0, 0.9), (path, 1, 2)], count=2)
    assert [row["fate"] for row in rows] == ["frames:out_of_video", "kept"]
    assert [read_jpeg(body) for body in rows[1]["frames"]] == [1240, 1720]


LAST: dict[str, dict[str, Any]] = {"sound": {"audio_s": 7.0}, "text": {"subtitles": [(500, 7000, "a text that stays")]}}


@pytest.mark.parametrize("longer", LAST)
def test_a_file_whose_picture_ends_first_is_whole(tmp_path: Path, longer: str) -> None:
    """Matroska's own length is that of its longest track."""
    times, path = steady(4, 25), tmp_path / "film.mkv"
    film.write(path, ((ms, picture(ms)) for ms in times), options=dict(H264), **LAST[longer])
    rows = run([(path, n / 25, (n + 1) / 25) for n in range(90, 101)], count=1)
    assert [row["fate"] for row in rows] == ["kept"] * 10 + ["frames:out_of_video"]
    assert [read_jpeg(row["frames"][0]) for row in rows[:10]] == times[90:]


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
@pytest.mark.parametrize("lost", [1, 2000, 5000])
def test_of_a_file_that_lacks_its_last_bytes_no_frame_stands_in_for_one_that_is_lost(tmp_path: Path, suffix: str, lost: int) -> None:
    """Frames are stored out of order: of the last ones read, those between are missing."""
    import av

    times, path, cut = uneven(6, 5), tmp_path / f"film.{suffix}", tmp_path / f"cut.{suffix}"
    film.write(path, ((ms, picture(ms)) for ms in times), options={**dict(H264), "crf": "5"})
    body = path.read_bytes()
    if suffix == "mp4":  # with its table in front, as files for the web have it
        with av.open(str(path)) as source, av.open(str(tmp_path / "web.mp4"), "w", options={"movflags": "faststart"}) as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    target.mux(packet)
        body = (tmp_path / "web.mp4").read_bytes()
    cut.write_bytes(body[:-lost])
    assert lost < len(body) / 3
    rows = run([(cut, (ms + 1) / 1000, (ms + 15) / 1000) for ms in times], count=1)
    shown = [read_jpeg(row["frames"][0]) for row in rows if row["fate"] == "kept"]
    assert shown == times[: len(shown)]
    assert len(shown) > len(times) // 2


def test_a_last_frame_that_stays_for_long_is_no_cut(tmp_path: Path) -> None:
    """As of slides: the last packet lasts six seconds, and with B-frames comes out of the decoder at the end alone."""
    import av

    path, whole = tmp_path / "slides.mp4", tmp_path / "whole.mp4"
    film.write(path, ((ms, picture(ms)) for ms in [*steady(2, 10), 2000]), options=dict(H264))
    with av.open(str(path)) as source, av.open(str(whole), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.duration = round(6 / packet.time_base) if packet.pts * packet.time_base == 2 else packet.duration
                packet.stream = stream
                target.mux(packet)
    rows = run([(whole, 1.9, 1.95), (whole, 2.5, 7.5)], count=2)
    assert [[read_jpeg(body) for body in row["frames"] or ()] for row in rows] == [[1900, 1900], [2000, 2000]]


def test_a_file_that_breaks_off_gives_what_it_has(videos: dict[str, Path], tmp_path: Path) -> None:
    body = videos["uneven_mkv"].read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(body[: len(body) // 2])
    rows = run([(cut, n, n + 1) for n in range(11)], count=3)
    fates = [row["fate"] for row in rows]
    assert fates[:3] == ["kept"] * 3
    assert fates[-3:] == ["frames:damaged"] * 3
    times = KINDS["uneven_mkv"].times
    for row in rows:
        if row["fate"] == "kept":
            assert [read_jpeg(body) for body in row["frames"]] == [on_screen(times, t) for t in row["frame_times"]]


def test_bytes_that_are_overwritten_never_give_a_wrong_frame_as_if_it_were_right(videos: dict[str, Path], tmp_path: Path) -> None:
    """Damage within a GOP: its frames are lost or smeared, and those of the GOPs after it are right again."""
    body = bytearray(videos["steady"].read_bytes())
    at = len(body) // 2
    body[at : at + 400] = bytes(400)
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(body)
    rows = run([(damaged, n, n + 1) for n in range(12)], count=2)
    kept = [row for row in rows if row["fate"] == "kept"]
    assert len(kept) >= 6
    assert {row["fate"] for row in rows} <= {"kept", "frames:damaged"}
    for row in kept:
        seen = [read_jpeg(body) for body in row["frames"]]
        wanted = [on_screen(KINDS["steady"].times, t) for t in row["frame_times"]]
        assert all(got in (want, None) for got, want in zip(seen, wanted, strict=True))


def _playlist(path: Path, target: Path) -> None:
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{target}\n#EXT-X-ENDLIST\n")


def _concat(path: Path, target: Path) -> None:
    path.write_text(f"ffconcat version 1.0\nfile '{target}'\n")


@pytest.mark.parametrize("write", [_playlist, _concat])
def test_lists_of_files_are_not_opened(videos: dict[str, Path], tmp_path: Path, write: Any) -> None:
    import av

    path = tmp_path / "list.m3u8"
    target = tmp_path / "secret.ts"
    target.write_bytes(videos["shifted_ts"].read_bytes())
    write(path, target)
    (row,) = run([(path, 0, 1)])
    assert row["fate"] == "frames:not_a_video"
    with av.open(str(path), options={"safe": "0", "allowed_extensions": "ALL", "extension_picky": "0"}) as container:
        assert container.streams.video  # without our list of formats it would have been


def _with_cover(path: Path) -> None:
    """Sound with a picture for players to show beside it."""
    import av

    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width = cover.height = 64
        cover.pix_fmt, cover.disposition = "yuvj420p", av.stream.Disposition.attached_pic
        sound = container.add_stream("aac", rate=16_000, layout="mono")
        picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        container.mux([*cover.encode(picture), *cover.encode(None)])
        for at in range(0, 128_000, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 16_000, at
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))


@pytest.mark.parametrize("name", ["empty", "noise", "text", "cut_off", "sound", "cover", "zero_length"])
def test_what_is_no_video_has_its_reason(videos: dict[str, Path], tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.mp4"
    expected = "frames:not_a_video"
    if name == "noise":
        path.write_bytes(np.random.default_rng(1).bytes(10_000))
    elif name == "text":
        path.write_text("<html><body>Sign in to watch</body></html>")
    elif name == "cut_off":  # before its list of frames, which mp4 has at its end
        body = videos["steady"].read_bytes()
        path.write_bytes(body[: len(body) // 2])
    elif name == "sound":
        path = path.with_suffix(".mkv")
        film.write(path, [], audio_s=1.0)
        expected = "frames:no_video"
    elif name == "cover":
        _with_cover(path)
        expected = "frames:no_video"
    elif name == "zero_length":
        film.write(path, [(0, picture(0))])
        expected = "frames:out_of_video"
    else:
        path.write_bytes(b"")
    rows = run([(path, 5, 7), (path, 6, 8)])
    assert [row["fate"] for row in rows] == [expected] * 2


def test_sizes_that_are_refused(videos: dict[str, Path]) -> None:
    (small,) = run([(videos["steady"], 1, 2)], min_side=241)
    (large,) = run([(videos["steady"], 1, 2)], max_pixels=320 * 240 - 1)
    (nothing,) = run([(videos["steady"], 2, 2)])
    assert [small["fate"], large["fate"], nothing["fate"]] == ["frames:too_small", "frames:too_many_pixels", "frames:no_segment"]
    assert small["detail"] == "320 x 240: 240 pixels < 241"


def test_real_files_show_what_a_plain_decode_shows(data_dir: Path) -> None:
    """At the middle of every frame of every real file: the very frame that decoding from the beginning gives there."""
    import av

    checked = 0
    for path in sorted((data_dir / "video").glob("*.*")):
        if path.suffix == ".md":
            continue
        with Video(str(path), 10**8) as video:
            base, start = video.stream.time_base, video.start_ticks
            with av.open(str(path)) as plain:
                pts = []
                try:
                    pts = [frame.pts for frame in plain.decode(plain.streams.best("video")) if frame.pts is not None]
                except av.error.InvalidDataError:
                    assert path.name == "decord_corrupted.mp4"
            wanted = [(float((pts[n] - start + (pts[n + 1] - start)) * base) / 2, pts[n]) for n in range(0, len(pts) - 1, 3)]
            wanted = [(t, p) for t, p in wanted if t >= 0]
            got = {n: found.frame.pts for found in video.shown([t for t, _ in wanted]) if isinstance(found, Shown) for n in found.wanted}
        assert got == {n: p for n, (_, p) in enumerate(wanted)}, path.name
        checked += len(got)
    assert checked > 2000


def test_missing_is_told_once(videos: dict[str, Path]) -> None:
    with Video(str(videos["steady"]), 10**8) as video:
        found = list(video.shown([1.0, 99.0, 98.0]))
    assert [sorted(one.wanted) for one in found] == [[0], [1, 2]]
    assert isinstance(found[1], Missing)


def test_wrong_bits_give_no_wrong_picture(tmp_path: Path) -> None:
    """A decoder makes up what it cannot read, and what refers to it is wrong up to the next keyframe: none of that is taken."""
    path = make(tmp_path / "film.mp4", Kind(steady(8, 25), options=(("g", "25"), ("bf", "2"))))
    body = bytearray(path.read_bytes())
    middle = body.index(b"mdat") + (body.index(b"moov") - body.index(b"mdat")) // 2
    for at in range(middle, middle + 6000, 97):
        body[at] ^= 0x5A
    path.write_bytes(bytes(body))
    stage = Frames(Frames.Config(count=2, size=96))
    stage.open()
    spans = [(n / 4, n / 4 + 0.25) for n in range(32)]
    columns = {"video": [str(path)] * 32, "start_s": [a for a, _ in spans], "end_s": [b for _, b in spans]}
    rows = apply(stage, framed(pa.table(columns))).to_pylist()
    kept = [row for row in rows if row["fate"] == "kept"]
    assert {row["fate"] for row in rows} == {"kept", "frames:damaged"}
    assert len(kept) >= 16
    assert rows[0]["fate"] == rows[-1]["fate"] == "kept"
    for row in kept:
        assert [read_jpeg(one) for one in row["frames"]] == [on_screen(steady(8, 25), t) for t in row["frame_times"]]


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "ts"])
@pytest.mark.parametrize("first", ["tff", "bff"])
def test_of_interlaced_video_the_field_that_is_shown_first_is_taken(tmp_path: Path, first: str, suffix: str) -> None:
    import av

    times, path = steady(4, 25), tmp_path / f"{first}.{suffix}"
    graph = av.filter.Graph()
    source = graph.add_buffer(width=640, height=480, format="yuv420p", time_base=Fraction(1, 1000))
    graph.link_nodes(source, graph.add("setfield", first), graph.add("buffersink")).configure()
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, options={**dict(H264), "x264-params": f"{first}=1"})
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for ms in times:
            upper, lower = (ms, ms + 20) if first == "tff" else (ms + 20, ms)
            both = picture(upper, 640, 480)
            both[1::2] = picture(lower, 640, 480)[1::2]
            frame = av.VideoFrame.from_ndarray(both, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = ms, Fraction(1, 1000)
            source.push(frame)
            container.mux(stream.encode(graph.pull()))
        container.mux(stream.encode(None))
    rows = run([(path, n / 2, n / 2 + 0.5) for n in range(7)], count=3)
    for row in rows:
        assert row["fate"] == "kept", row["detail"]
        assert [read_jpeg(body) for body in row["frames"]] == [on_screen(times, t) for t in row["frame_times"]]


@pytest.mark.parametrize("suffix", ["ts", "flv"])
def test_a_stream_without_a_length_that_is_cut_off_within_frames_out_of_order(tmp_path: Path, suffix: str) -> None:
    """Nothing says that it is cut: those frames whose packets came before are not shown in the place of those that are lacking."""
    times, path, cut = steady(4, 25), tmp_path / f"film.{suffix}", tmp_path / f"cut.{suffix}"
    film.write(path, ((ms, picture(ms)) for ms in times), options={**dict(H264), "crf": "5"})
    body = path.read_bytes()
    wanted = [(ms + 20) / 1000 for ms in times]
    for lost in range(0, len(body) // 4, 3001):
        cut.write_bytes(body[: len(body) - lost])
        rows = run([(cut, t - 0.005, t + 0.005) for t in wanted], count=1)
        shown = [read_jpeg(row["frames"][0]) for row in rows if row["fate"] == "kept"]
        assert shown == times[: len(shown)], lost
        assert len(shown) > len(times) // 2
        assert lost or len(shown) == len(times)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_avi_that_stores_frames_out_of_order(tmp_path: Path, codec: str) -> None:
    """Its times are the places of its packets; what FFmpeg makes up as the times of such frames goes to and fro."""
    path = tmp_path / "film.avi"
    options = {"g": "25", "bf": "2", **({"crf": "10"} if codec == "libx264" else {"qscale": "2"})}
    film.write(path, ((ms, picture(ms)) for ms in steady(6, 25)), codec, options)
    rows = run([(path, 0.5 + n / 20, 0.51 + n / 20) for n in range(100)], count=1)
    assert {row["fate"] for row in rows} == {"kept"}
    late = {round(1000 * (row["frame_times"][0] - row["frame_lags"][0])) - (read_jpeg(row["frames"][0]) or 0) for row in rows}
    assert max(late) - min(late) <= 1
    assert 0 <= min(late) <= 200  # by which the encoder lags behind


def test_a_codec_is_named_as_such_not_its_decoder(videos: dict[str, Path]) -> None:
    names = {"av1_mkv": "av1", "steady": "h264", "hevc": "hevc", "vp9_webm": "vp9"}
    assert {name: run([(videos[name], 1, 2)])[0]["video_codec"] for name in names} == names


@pytest.mark.parametrize("suffix", ["ts", "mkv", "mp4"])
def test_a_picture_that_is_renewed_piece_by_piece_is_not_begun_with(tmp_path: Path, suffix: str) -> None:
    """As live streams do it: no keyframe but the first; decoding that begins at a place to recover shows nothing for two seconds."""
    times, path = steady(8, 25), tmp_path / f"film.{suffix}"
    options = {"g": "50", "bf": "0", "crf": "10", "x264-params": "intra-refresh=1:keyint=50"}
    film.write(path, ((ms, picture(ms)) for ms in times), options=options)
    for at in (2.6, 4.7, 6.3, 7.5):
        (row,) = run([(path, at, at + 0.2)], count=2)
        assert row["fate"] == "kept", row["detail"]
        assert [read_jpeg(body) for body in row["frames"]] == [on_screen(times, t) for t in row["frame_times"]]
