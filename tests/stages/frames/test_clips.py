"""Segments as films and sound: bounds, frames and samples read back from the very files that go into the shards."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import wave
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipeline.sample import counter, film
from stages.frames.clip import Clip
from stages.frames.film import MOST_OPEN, passes
from stages.frames.sound import RATE, encode
from tests.stages.frames.test_frames import run
from tests.support.videos import H264, KINDS, make, on_screen, picture, read_jpeg, steady


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    return {name: make(folder / f"{name}.{kind.suffix}", kind) for name, kind in KINDS.items()}


def frames_of(body: bytes) -> list[tuple[float, float, int | None]]:
    """(from, until, ms that it shows) of each frame of a film, as a player shows them."""
    with av.open(io.BytesIO(body)) as container:
        frames = list(container.decode(video=0))
        stream = container.streams.video[0]
        assert container.start_time == 0
        base = stream.time_base
        ends = [float(frame.pts * base) for frame in frames[1:]] + [float(stream.duration * base)]
        return [(float(f.pts * base), end, counter.read(f.to_ndarray(format="rgb24"))) for f, end in zip(frames, ends, strict=True)]


@pytest.mark.parametrize("name", KINDS)
def test_a_film_shows_at_each_moment_what_the_video_shows(videos: dict[str, Path], name: str) -> None:
    """From its first moment, the frame on screen at the segment's start, to its last."""
    times = KINDS[name].times
    rng, last = random.Random(name), times[-1] / 1000
    spans = [(round(start, 3), round(start + rng.uniform(0.3, 2), 3)) for start in (rng.uniform(0, last - 2) for _ in range(6))]
    spans += [(times[5] / 1000, times[9] / 1000)]
    rows = run([(videos[name], *span) for span in spans], count=2, size=192, clip={})
    for (start, end), row in zip(spans, rows, strict=True):
        assert row["fate"] == "kept", row["detail"]
        assert [read_jpeg(body) for body in row["frames"]] == [on_screen(times, t) for t in row["frame_times"]]
        shown = frames_of(row["clip"])
        wanted = [
            ms
            for ms, after in zip(times, [*times[1:], times[-1] + 1], strict=True)
            if after / 1000 > start + 1e-6 and ms / 1000 < end - 1e-6
        ]
        seen = [ms for _, _, ms in shown]
        assert seen == wanted
        assert row["clip_frames"] == len(shown)
        assert (shown[0][0], shown[-1][1]) == (0, pytest.approx(end - start, abs=2e-5))
        assert row["clip_s"] == pytest.approx(end - start, abs=1e-6)
        for (at, _, _), ms in zip(shown[1:], wanted[1:], strict=True):
            assert at == pytest.approx(ms / 1000 - start, abs=1.1e-3)


def test_vp9_without_a_line_of_x264(videos: dict[str, Path]) -> None:
    (row,) = run([(videos["steady"], 1.0, 2.0)], pick="none", clip={"codec": "vp9", "quality": 30}, size=192)
    assert row["clip_codec"] == "vp9"
    assert [ms for _, _, ms in frames_of(row["clip"])] == list(range(1000, 2000, 40))
    assert row["frames"] == []
    with av.open(io.BytesIO(row["clip"])) as container:
        assert container.streams.video[0].codec_context.name == "vp9"


def test_overlapping_segments_share_a_pass_and_many_of_them_take_more(videos: dict[str, Path]) -> None:
    spans = [(1 + n / 10, 3 + n / 10) for n in range(40)]
    assert [len(some) for some in passes([Clip(n, a, b, []) for n, (a, b) in enumerate(spans)])] == [32, 8]
    assert len(passes([Clip(n, 1, 2, []) for n in range(3 * MOST_OPEN)])) == 3
    rows = run([(videos["b_frames"], a, b) for a, b in spans], pick="none", size=128, clip={"preset": "ultrafast"})
    for (start, _), row in zip(spans, rows, strict=True):
        assert row["fate"] == "kept", row["detail"]
        shown = [ms for _, _, ms in frames_of(row["clip"])]
        assert shown[0] == on_screen(KINDS["b_frames"].times, start)
        assert len(shown) in (50, 51)


def test_what_the_video_lacks_at_the_end(videos: dict[str, Path]) -> None:
    rows = run([(videos["steady"], 11, 12.3), (videos["steady"], 11, 12.6), (videos["steady"], 20, 22)], pick="none", clip={})
    assert [row["fate"] for row in rows] == ["kept", "frames:out_of_video", "frames:out_of_video"]
    assert rows[0]["clip_s"] == 1.0


def test_damage_drops_the_clips_that_it_touches_and_no_others(videos: dict[str, Path], tmp_path: Path) -> None:
    body = bytearray(videos["steady"].read_bytes())
    at = len(body) // 2
    body[at : at + 400] = bytes(400)
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(body)
    rows = run([(damaged, n, n + 0.9) for n in range(11)], pick="none", clip={})
    assert {row["fate"] for row in rows} == {"kept", "frames:damaged"}
    for n, row in enumerate(rows):
        if row["fate"] == "kept":
            shown = [ms for _, _, ms in frames_of(row["clip"])]
            assert all(got in (ms, None) for got, ms in zip(shown, range(1000 * n, 1000 * n + 900, 40), strict=True))


BYTES = """
import hashlib, sys
from stages.frames import Frames
from pipeline.frame import apply, framed
import pyarrow as pa
table = framed(pa.table({"video": [sys.argv[1]] * 3, "start_s": [1.0, 1.5, 4.0], "end_s": [3.0, 3.5, 6.0]}))
for codec in ("h264", "vp9"):
    stage = Frames(Frames.Config(clip={"codec": codec}, sound="flac"))
    stage.open()
    row = apply(stage, table).to_pylist()
    print([hashlib.sha256(r["clip"] + r["sound"]).hexdigest() for r in row])
"""


def test_the_same_bytes_each_time(videos: dict[str, Path]) -> None:
    """Whatever lay in memory before: glibc fills it with another byte for each value."""
    found = set()
    for fill in ("0", "1", "200"):
        environment = {**os.environ, "MALLOC_PERTURB_": fill, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, "-c", BYTES, str(videos["with_sound"])]
        found.add(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)
    assert len(found) == 1


def clicks(path: Path, rate: int, codec: str, shift_s: float = 0.0, sound_s: float = 10.0) -> Path:
    """A film with a click at every whole second: a raised cosine of 2 ms around it."""
    samples = np.zeros(int(rate * sound_s), np.float32)
    width = int(rate * 0.001)
    for second in range(1, int(sound_s)):
        at = second * rate
        samples[at - width : at + width + 1] = 0.5 + 0.5 * np.cos(np.linspace(-np.pi, np.pi, 2 * width + 1))
    pcm = (samples * 20_000).astype(np.int16)
    grey = np.full((64, 64, 3), 90, np.uint8)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        sound = container.add_stream(codec, rate=rate, layout="mono")
        for n in range(250):
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.pts, frame.time_base = n + round(25 * shift_s), Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for at in range(0, len(pcm), 1024):
            frame = av.AudioFrame.from_ndarray(pcm[None, at : at + 1024], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, at + round(rate * shift_s), Fraction(1, rate)
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    return path


def samples_of(body: bytes) -> np.ndarray:
    with av.open(io.BytesIO(body)) as container:
        stream = container.streams.audio[0]
        assert (stream.rate, stream.layout.nb_channels) == (RATE, 1)
        return np.concatenate([frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)])


@pytest.mark.parametrize(
    ("suffix", "rate", "codec", "shift_s", "bound"),
    [
        ("mkv", 48_000, "flac", 0, 1),
        ("mkv", 44_100, "flac", 5, 9),
        ("mp4", 44_100, "aac", 0, 1),
        ("mkv", 48_000, "libopus", 0, 9),
        ("avi", 16_000, "pcm_s16le", 0, 1),
    ],
)
def test_samples_lie_where_the_segment_says(tmp_path: Path, suffix: str, rate: int, codec: str, shift_s: float, bound: int) -> None:
    """Clicks at whole seconds are found at their samples: within one sample, and in Matroska half a millisecond of its clock."""
    path = clicks(tmp_path / f"clicks.{suffix}", rate, codec, shift_s)
    spans = [(0.5, 1.5), (2.25, 4.4), (3.9, 4.1), (1.123456, 8.2), (7.7, 9.3)]
    rows = run([(path, *span) for span in spans], pick="none", sound="flac")
    checked = 0
    for (start, end), row in zip(spans, rows, strict=True):
        assert row["fate"] == "kept", row["detail"]
        heard = samples_of(row["sound"]).astype(float)
        assert abs(len(heard) - (end - start) * RATE) <= 1
        assert row["silent_s"] == 0
        for second in range(int(start) + 1, int(end) + 1):
            at = (second - start) * RATE
            near = heard[int(at) - 40 : int(at) + 41]
            if len(near) < 81:
                continue
            centre = int(at) - 40 + float((np.clip(near, 500, None) - 500) @ np.arange(81) / (np.clip(near, 500, None) - 500).sum())
            assert abs(centre - at) <= bound, (second, start, centre - at)
            checked += 1
    assert checked >= 10


def test_what_the_file_lacks_is_silence_and_counted(tmp_path: Path) -> None:
    path = clicks(tmp_path / "short.mkv", 48_000, "flac", sound_s=5.0)
    rows = run([(path, 4.0, 6.0), (path, 7.0, 8.0), (path, 3.0, 4.5)], pick="none", sound="wav")
    assert [row["fate"] for row in rows] == ["kept", "frames:no_sound", "kept"]
    assert rows[0]["silent_s"] == pytest.approx(1.0, abs=0.002)
    with wave.open(io.BytesIO(rows[0]["sound"])) as sound:
        assert (sound.getnframes(), sound.getframerate(), sound.getnchannels(), sound.getsampwidth()) == (32_000, RATE, 1, 2)
        body = np.frombuffer(sound.readframes(32_000), np.int16)
    assert not body[17_000:].any()


def test_where_many_segments_overlap_their_sound_is_the_same(tmp_path: Path) -> None:
    """More than are held at once: read again for the rest."""
    path = clicks(tmp_path / "film.mkv", 48_000, "flac", sound_s=8.0)
    spans = [(1 + n / 20, 5 + n / 20) for n in range(3 * MOST_OPEN)]
    rows = run([(path, *span) for span in spans], pick="none", sound="wav")
    alone = [run([(path, *span)], pick="none", sound="wav")[0] for span in spans[::7]]
    assert [row["fate"] for row in rows] == ["kept"] * len(spans)
    assert [row["sound"] for row in rows[::7]] == [row["sound"] for row in alone]


def test_a_video_is_not_read_thousands_of_times(tmp_path: Path) -> None:
    """As of cues that all lie over one another."""
    path = clicks(tmp_path / "film.mkv", 48_000, "flac", sound_s=3.0)
    fates = Counter(row["fate"] for row in run([(path, 1 + n / 10_000, 1.2) for n in range(600)], pick="none", sound="wav"))
    assert fates == {"kept": 512, "frames:crowded": 88}


@pytest.mark.parametrize("options", [{"sound": "flac"}, {"clip": {}}])
def test_a_segment_of_hours_is_not_held_in_memory(videos: dict[str, Path], options: dict[str, Any]) -> None:
    """As of a cue whose end is wrong: `cues` takes it as it is."""
    rows = run([(videos["with_sound"], 1, 3_599_999), (videos["with_sound"], 1, 2)], pick="none", **options)
    assert [row["fate"] for row in rows] == ["frames:too_long", "kept"]
    assert rows[0]["detail"] == "3599998.000 s > 1200"


def test_a_silent_film_has_its_reason(videos: dict[str, Path]) -> None:
    rows = run([(videos["steady"], 1, 2), (videos["steady"], 3, 4)], count=1, sound="flac")
    assert [row["fate"] for row in rows] == ["frames:no_sound"] * 2


def test_flac_is_lossless() -> None:
    noise = np.random.default_rng(1).integers(-32768, 32767, 40_001).astype(np.int16)
    assert np.array_equal(samples_of(encode(noise, "flac")), noise)


def test_real_files(data_dir: Path) -> None:
    """Films, pictures and sound of the one film with captions, and of files that are peculiar."""
    folder = data_dir / "video"
    rows = run([(folder / "manifesto.mp4", n * 5.0, n * 5.0 + 4.0) for n in range(17)], count=4, clip={}, sound="flac")
    plain = run([(folder / "manifesto.mp4", n * 5.0, n * 5.0 + 4.0) for n in range(17)], count=4)
    for row, other in zip(rows, plain, strict=True):
        assert row["fate"] == "kept"
        assert row["frames"] == other["frames"]
        assert row["clip_frames"] == 100
        assert len(samples_of(row["sound"])) == 4 * RATE
    for name in ("discard_first_keyframe.mp4", "test_non_zero_start.mp4", "exo_sample_android_slow_motion.mp4", "nasa_13013_rotated.mp4"):
        (row,) = run([(folder / name, 0.0, 0.3)], count=1, clip={})
        assert row["fate"] == "kept", (name, row["detail"])
        assert len(frames_of(row["clip"])) == row["clip_frames"] > 0


def test_late_pictures_and_odd_sizes(tmp_path: Path) -> None:
    path = tmp_path / "late.mkv"
    film.write(path, ((ms + 1000, picture(ms + 1000)) for ms in steady(3, 25)), options=dict(H264), audio_s=4)
    rows = run([(path, 0, 0.9), (path, 0.5, 2), (path, 1, 2)], pick="none", clip={}, mode="keep_ratio", size=121)
    assert [row["fate"] for row in rows] == ["frames:out_of_video", "frames:out_of_video", "kept"]
    with av.open(io.BytesIO(rows[2]["clip"])) as container:
        assert (container.streams.video[0].width % 2, container.streams.video[0].height) == (0, 120)


def test_options_that_leave_nothing_are_refused() -> None:
    options: list[dict[str, Any]] = [{"pick": "none"}, {"clip": {"quality": 60}}]
    for given in options:
        with pytest.raises(ValueError, match=r"leaves nothing|quality"):
            run([("x", 0, 1)], **given)
