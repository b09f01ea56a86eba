"""Videos of hours: `python tests/acceptance/long_video.py [HOURS ...]` (default 2 8).

Makes a small video of each length (a frame a second, each showing its time) with automatic captions over all of it, and prints a table:
subtitles and segments, then the clips of all segments, then those of every fiftieth, each in a process of its own whose anonymous memory is
sampled. Then the longest goes through a whole run, whose watchdog is set to less than the decoding takes, and once more with a video whose
decoder hangs. Exit code 1 where memory grows with the length by more than 40 MB, a frame is not the one on screen, a segment list of 2 %
decodes more than a tenth, the watchdog ends the first run, or does not end the second.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

sys.path.insert(0, str(Path(__file__).parents[2]))
from pipeline.frame import apply, apply_pieces, expand, framed
from pipeline.sample import counter, film, speech
from stages.frames import Frames
from stages.frames.decode import Video
from stages.segments import Segments
from stages.subtitles import Subtitles
from tests.support.corpus import fates, shardmill
from tests.support.videos import read_jpeg

SAID = "stir the dough with both hands until it is smooth then let it rest while we cut some onions and garlic for the sauce"
MOST_GROWN = 40 << 20
STALL_S = 30
HANGS = """
import time
import stages.frames.decode as decode
real = decode.Video._packets
def packets(self):
    if "hangs" in self.container.name:
        time.sleep(3600)
    yield from real(self)
decode.Video._packets = packets
"""


def make(folder: Path, hours: float) -> tuple[Path, Path]:
    """The video and its captions: six to twelve words every four seconds."""
    seconds, rng = int(hours * 3600), random.Random(1)
    grey = np.full((96, 128, 3), 90, np.uint8)
    video, captions = folder / f"{hours:g}h.mp4", folder / f"{hours:g}h.vtt"
    film.write(
        video, ((n * 1000, counter.write(grey, n * 1000)) for n in range(seconds)), options={"preset": "ultrafast", "g": "10", "bf": "0"}
    )
    starts = range(500, seconds * 1000 - 5000, 4000)
    lines = [speech.spoken(" ".join(rng.choices(SAID.split(), k=rng.randint(6, 12))) + ".", at) for at in starts]
    captions.write_text(speech.rolling_vtt(lines))
    return video, captions


@dataclass
class Cost:
    """What a step took in a process of its own. `grown`: anonymous memory at its peak less that at its begin, bytes."""

    said: dict[str, Any]
    grown: int
    cpu_s: float


def anonymous() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))


def measured(step: Callable[..., dict[str, Any]], *args: Any) -> Cost:
    """Runs `step` in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (step, args))


def _measured(step: Callable[..., dict[str, Any]], args: Any) -> Cost:
    import av  # noqa: F401
    import cv2  # noqa: F401

    first, peak, over = anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.02):
            peak = max(peak, anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    began = time.process_time()
    said = step(*args)
    cpu_s = time.process_time() - began
    over.set()
    thread.join()
    return Cost(said, max(peak, anonymous()) - first, cpu_s)


def cut(captions: Path, out: Path) -> dict[str, Any]:
    """Subtitles and segments; the segments' times go to `out`."""
    table = apply(Subtitles(), framed(pa.table({"subtitle": pa.array([captions.read_bytes()], pa.large_binary())})))
    made = expand(Segments(), table)
    pq.write_table(made.children.select(["start_s", "end_s"]), out)
    return {"cues": len(table["cues"][0]), "segments": len(made.children)}


def clips(video: Path, spans: Path, every: int) -> dict[str, Any]:
    """Pictures of every `every`-th segment, looked at and let go, as a run writes them to disk."""
    times = pq.read_table(spans)
    times = times.take(pa.array(range(every // 2, len(times), every)))
    stage, decoded, alive = Frames(Frames.Config(count=4, size=224)), [0], [0]
    stage.open()
    real = Video._decoded

    def counted(self: Video, packets: Any, *rest: Any) -> Any:
        decoded[0] += len(packets)
        return real(self, packets, *rest)

    Video._decoded = counted  # type: ignore[method-assign]
    table = framed(times.append_column("video", pa.array([str(video)] * len(times))))
    said = {"clips": len(times), "kept": 0, "wrong": 0, "bytes": 0, "held": 0}

    def goes_on() -> None:
        alive[0] += 1

    for piece in apply_pieces(stage, table, goes_on):
        said["held"] = max(said["held"], piece.nbytes)
        for row in piece.to_pylist():
            said["kept"] += row["fate"] == "kept"
            for t, body in zip(row["frame_times"] or (), row["frames"] or (), strict=True):
                said["bytes"] += len(body)
                said["wrong"] += read_jpeg(body) != int(t) * 1000
    return {**said, "decoded": decoded[0], "signs": alive[0]}


def run(folder: Path, name: str, videos: list[tuple[Path, Path]], environment: str = "") -> tuple[int, str, float]:
    """A whole run with a watchdog of STALL_S seconds: exit code, its last words, seconds."""
    home = folder / name
    home.mkdir()
    listed = pa.table(
        {
            "id": [video.stem for video, _ in videos],
            "path": [str(video) for video, _ in videos],
            "subtitle": [file.read_bytes() for _, file in videos],
        }
    )
    pq.write_table(listed, home / "videos.parquet")
    raw = {
        "input": {"path": str(home / "videos.parquet"), "columns": {"source_id": "id", "stored_at": "path", "subtitle": "subtitle"}},
        "run": {"name": "test", "root": str(home / "runs"), "part_rows": 4, "stall_s": STALL_S},
        "stages": {
            "ingest": {"subtitles": True},
            "subtitles": {},
            "segments": {},
            "download": {"contact": "test@example.org", "to": "disk", "max_bytes": "1GB", "max_bytes_in_flight": "2GB"},
            "frames": {"count": 4, "size": 224},
        },
        "shards": {"samples": 500},
        "ray": {"num_cpus": 2},
    }
    (home / "test.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    if environment:
        (home / "sitecustomize.py").write_text(environment)
        os.environ["PYTHONPATH"] = str(home)
    for _ in range(3):  # Ray itself gives up starting on a machine that others keep busy
        began = time.monotonic()
        done = shardmill("run", str(home / "test.yaml"), check=False, timeout=1800, cwd=home)
        if "timed out during startup" not in done.stderr:
            break
    os.environ.pop("PYTHONPATH", None)
    return done.returncode, (done.stderr + done.stdout).strip().rpartition("\n")[2], time.monotonic() - began


def main(lengths: list[float]) -> int:
    bad: list[str] = []
    grown: dict[str, list[int]] = {"subtitles, segments": [], "all clips": []}
    heads = f"{'kept':>6} {'wrong':>5} {'decoded':>8} {'JPEG MB':>8} {'piece MB':>8} {'memory +MB':>10} {'CPU s':>6}"
    print(f"{'hours':>5} {'step':20} {'clips':>6} {heads}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for hours in lengths:
            video, captions = make(folder, hours)
            spans = folder / f"{hours:g}h.parquet"
            first = measured(cut, captions, spans)
            grown["subtitles, segments"].append(first.grown)
            print(
                f"{hours:5g} {'subtitles, segments':20} {first.said['segments']:6} {'':46} {first.grown / 1e6:10.1f} {first.cpu_s:6.1f}",
                flush=True,
            )
            for step, every in (("all clips", 1), ("every 50th", 50)):
                cost = measured(clips, video, spans, every)
                said = cost.said
                if every == 1:
                    grown[step].append(cost.grown)
                elif said["decoded"] > 0.1 * hours * 3600:
                    bad.append(f"{said['decoded']} packets were decoded for 2 % of {hours:g} h")
                if said["wrong"] or said["kept"] < said["clips"]:
                    bad.append(f"{hours:g} h, {step}: {said['wrong']} wrong frames, {said['clips'] - said['kept']} clips dropped")
                sizes = f"{said['bytes'] / 1e6:8.1f} {said['held'] / 1e6:8.1f} {cost.grown / 1e6:10.1f} {cost.cpu_s:6.1f}"
                print(f"{hours:5g} {step:20} {said['clips']:6} {said['kept']:6} {said['wrong']:5} {said['decoded']:8} {sizes}", flush=True)
        if grown["all clips"][-1] - grown["all clips"][0] > MOST_GROWN:
            bad.append("the memory of the clips grows with the video")
        bad += runs(folder, lengths)
    print("\n".join(bad) or "all bounds hold")
    return int(bool(bad))


def runs(folder: Path, lengths: list[float]) -> list[str]:
    bad = []
    longest, shortest = max(lengths), min(lengths)
    both = [(folder / f"{hours:g}h.mp4", folder / f"{hours:g}h.vtt") for hours in (longest, shortest)]
    code, words, seconds = run(folder, "long", both[:1])
    report = json.loads((folder / "long/runs/test/report/report.json").read_text()) if not code else {}
    ended = str(fates(folder / "long/runs/test")) if not code else words
    print(f"run of {longest:g} h, run.stall_s {STALL_S}: exit code {code} after {seconds:.0f} s, {ended}")
    stages = {name: round(timing["seconds"], 1) for name, timing in report.get("stages", {}).items()}
    print(f"  seconds of stages: {stages}")
    if code:
        bad.append("the watchdog, or something else, ended the run of the long video")
    hangs = folder / "hangs.mp4"
    hangs.write_bytes(both[1][0].read_bytes())
    code, words, seconds = run(folder, "hanging", [(hangs, both[1][1])], HANGS)
    print(f"run of a video whose decoder hangs: exit code {code} after {seconds:.0f} s: {words}")
    if not code or "frames" not in words or "stall_s" not in words:
        bad.append("the watchdog did not end the run whose decoder hangs")
    return bad


if __name__ == "__main__":
    sys.exit(main([float(word) for word in sys.argv[1:]] or [2, 8]))
