"""Clips out of videos, one thread: `python benchmarks/video.py [DATA] [--rounds 3]`.

DATA/video's 1080p film (video2dataset_test.mp4: segments of 4 s every 3 s) and its narrated one (manifesto.mp4, 320 x 180: the sentences of
its automatic captions, and HowTo100M's own clips of ten seconds, which overlap), four frames a clip, 224-pixel JPEGs; and 2 % of a made-up
film of ten minutes. CPU seconds of

- the stage `frames`: a video once for all its segments;
- a loop as tools have it: for each segment the file is opened, sought to the segment's start and decoded up to its last frame (PyAV, the
  same frames, the same resize and JPEG); and, where PATH has an `ffmpeg` (the wheel imageio-ffmpeg holds one), one call of it a segment
  (its own scaling, four frames by the fps filter);
- a bare PyAV decode of all frames, with no picture made of any, against our own reading of the same: all frames on screen every 40 ms.

Medians of alternating rounds; CPU of child processes included.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import results
from pipeline.frame import apply, framed
from pipeline.sample import counter, film
from stages.frames import Frames
from stages.frames.decode import Shown, Video
from stages.lib import imageencode, imageresize, videopicture
from stages.lib.segments import Rules, cut
from stages.lib.subtitles import parse

COUNT, SIZE, QUALITY = 4, 224, 90
TARGET_NAIVE, TARGET_BARE, TARGET_SHARE = 3.0, 0.8, 0.2
Segments = list[tuple[float, float]]


def ours(path: str, segments: Segments) -> int:
    stage = Frames(Frames.Config(count=COUNT, size=SIZE, quality=QUALITY))
    stage.open()
    starts, ends = zip(*segments, strict=True)
    columns = {"video": [path] * len(segments), "start_s": pa.array(starts, pa.float64()), "end_s": pa.array(ends, pa.float64())}
    made = apply(stage, framed(pa.table(columns)))
    if made["fate"].unique().to_pylist() != ["kept"]:
        raise SystemExit(f"{path}: {made['fate'].value_counts()}")
    return sum(map(len, made["frames"].to_pylist()))


def naive(path: str, segments: Segments) -> int:
    """For each segment: open, seek, decode to its last frame."""
    done = 0
    for start, end in segments:
        times = [start + (n + 0.5) * (end - start) / COUNT for n in range(COUNT)]
        with av.open(path) as container:
            stream = container.streams.best("video")
            stream.codec_context.thread_count = 1
            container.seek(int(start / stream.time_base), stream=stream)
            before = None
            for frame in container.decode(stream):
                while times and before is not None and frame.time > times[0]:
                    times.pop(0)
                    done += len(_jpeg(before)) > 0
                before = frame
                if not times:
                    break
            done += len(times)
    return done


def _jpeg(frame: av.VideoFrame) -> bytes:
    plan = imageresize.plan(frame.width, frame.height, SIZE, "center_crop", False)
    halved = videopicture.halvings((frame.width, frame.height), plan.scaled) if plan.shrinks else 0
    scaled = imageresize.scale(
        videopicture.pixels(frame, videopicture.Geometry(1.0, 0), halved), plan.scaled, "area" if plan.shrinks else "lanczos"
    )
    return imageencode.encode(imageresize.fit(scaled, plan.stored), "jpg", QUALITY)


def calls(path: str, segments: Segments) -> int:
    """One call of ffmpeg a segment."""
    with tempfile.TemporaryDirectory() as name:
        for n, (start, end) in enumerate(segments):
            filters = f"fps={COUNT / (end - start)},scale={SIZE}:{SIZE}:force_original_aspect_ratio=increase,crop={SIZE}:{SIZE}"
            command = [
                "ffmpeg",
                "-nostdin",
                "-v",
                "error",
                "-threads",
                "1",
                "-ss",
                str(start),
                "-i",
                path,
                "-t",
                str(end - start),
                "-vf",
                filters,
            ]
            subprocess.run([*command, "-frames:v", str(COUNT), f"{name}/{n}-%03d.jpg"], check=True)
        return len(list(Path(name).iterdir()))


def bare(path: str) -> int:
    with av.open(path) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        return sum(1 for _ in container.decode(stream))


def every_frame(path: str, seconds: float) -> int:
    with Video(path, 10**9) as video:
        wanted = [0.04 * n for n in range(int(seconds / 0.04))]
        return sum(len(found.wanted) for found in video.shown(wanted) if isinstance(found, Shown))


def cpu(work: Callable[[], int]) -> float:
    """CPU seconds of this process and its children."""
    before = os.times()
    work()
    after = os.times()
    return sum(after[:4]) - sum(before[:4])


def medians(rounds: int, works: dict[str, Callable[[], int]]) -> dict[str, float]:
    for work in works.values():
        work()
    taken = [{name: cpu(work) for name, work in works.items()} for _ in range(rounds)]
    return {name: statistics.median(one[name] for one in taken) for name in works}


def spoken(path: Path, rules: Rules) -> Segments:
    track = parse(path.read_bytes(), path.name)
    segments = cut(track.cues, rules, track.word_times == "real").segments
    return [(one.start / 1000, one.end / 1000) for one in segments if one.end < 88_000]


def compare(name: str, path: Path, segments: Segments, seconds: float, rounds: int) -> None:
    works: dict[str, Callable[[], int]] = {
        "ours": lambda: ours(str(path), segments),
        "a seek a segment": lambda: naive(str(path), segments),
        "bare decode": lambda: bare(str(path)),
        "our reading": lambda: every_frame(str(path), seconds),
    }
    if shutil.which("ffmpeg"):
        works["ffmpeg a segment"] = lambda: calls(str(path), segments)
    found = medians(rounds, works)
    for work, taken in found.items():
        print(
            f"  {work:18} {taken:8.3f} CPU-s"
            + (f"  {len(segments) / taken:8.1f} clips/CPU-s" if "segment" in work or work == "ours" else "")
        )
    reading, clips = found["bare decode"] / found["our reading"], len(segments)
    print(f"  reading {reading:.2f} of a bare decode; the stage, pictures and all, {found['bare decode'] / found['ours']:.2f} of it")
    for work in (work for work in found if work.endswith("a segment")):
        ratio = found[work] / found["ours"]
        print(f"  {ratio:.2f} times {work}")
        line = f"video: clips a CPU-second beside {work}, {name}"
        results.add(line, clips / found["ours"], clips / found[work], TARGET_NAIVE, ratio >= TARGET_NAIVE, ratio)
    results.add(
        f"video: reading beside a bare decode, {name}",
        found["our reading"],
        found["bare decode"],
        TARGET_BARE,
        reading >= TARGET_BARE,
        reading,
    )


def two_percent(folder: Path, rounds: int) -> None:
    """A second in fifty of a film of ten minutes."""
    path = folder / "long.mp4"
    plain = np.full((360, 640, 3), 90, np.uint8)
    pictures = (
        (40 * n, counter.write(np.roll(plain + np.arange(640, dtype=np.uint8)[None, :, None], n, 1), 40 * n)) for n in range(15_000)
    )
    film.write(path, pictures, options={"preset": "veryfast", "g": "50", "bf": "2"})
    segments = [(50.0 * n + 7, 50.0 * n + 8) for n in range(12)]
    found = medians(rounds, {"ours": lambda: ours(str(path), segments), "bare decode": lambda: bare(str(path))})
    share = found["ours"] / found["bare decode"]
    print(f"  2 % of ten minutes: {found['ours']:.3f} CPU-s, {share:.3f} of decoding it all ({found['bare decode']:.3f})")
    results.add(
        "video: 2 % of a long film, share of its decode", found["ours"], found["bare decode"], TARGET_SHARE, share <= TARGET_SHARE, share
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path, nargs="?", default=os.environ.get("SHARDMILL_TEST_DATA"))
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    results.begin(parser, given)
    if given.data is None:
        print("video: no DATA, nothing measured (name the folder, or set SHARDMILL_TEST_DATA)")
        return
    data = Path(given.data)
    av.logging.set_level(None)
    print(results.machine())
    video, subtitles = data / "video", data / "subtitles"
    print("video2dataset_test.mp4, 1080p, segments of 4 s every 3 s")
    compare("1080p", video / "video2dataset_test.mp4", [(3.0 * n, 3.0 * n + 4) for n in range(39)], 122, given.rounds)
    captions = subtitles / "youtube_auto_vtt" / "manifesto_90s.en.vtt"
    print("manifesto.mp4, 320 x 180, the sentences of its automatic captions")
    compare("320 x 180", video / "manifesto.mp4", spoken(captions, Rules()), 88, given.rounds)
    print("the same by HowTo100M's rule: ten seconds and more round each line")
    compare(
        "320 x 180, HowTo100M's clips", video / "manifesto.mp4", spoken(captions, Rules("howto100m", 10_000, min_words=0)), 88, given.rounds
    )
    with tempfile.TemporaryDirectory() as name:
        two_percent(Path(name), given.rounds)


if __name__ == "__main__":
    main()
