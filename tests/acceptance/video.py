"""Every real file of DATA/subtitles and DATA/video through the stages: `python tests/acceptance/video.py DATA`.

Prints a table. Of a subtitle file: its format, cues as the file has them and as they are read, repeated lines removed, words, segments, and
seconds of cues kept and dropped by reason. Of a video: its codec, size and rotation, the fates of forty segments of a tenth of a second,
the greatest time that a chosen frame had been on screen, and its scene cuts. Then manifesto.mp4 with its automatic captions as clips, with
cuts and, where the extra `scorer` is installed, when the picture fits the words best. Exit code 1 where
a word is in no segment and not lost with a reason either, or a lag is negative.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parents[2]))
from pipeline.frame import apply, expand, framed
from stages.frames import Frames
from stages.frames.alignment import Alignment
from stages.frames.cuts import Cuts
from stages.lib import offline_scorer
from stages.lib.segments import Rules, cut
from stages.lib.subtitles import SubtitleError, Track, parse
from stages.lib.subtitles.embedded import embedded_tracks
from stages.segments import Segments
from stages.subtitles import Subtitles

WORD = re.compile(r"\w+")
ASIDE = re.compile(r"\[[^\[\]]*\]|\([^()]*\)|♪[^♪]*♪?")


def subtitle_line(name: str, track: Track) -> tuple[str, int]:
    """A line of the table, and how many words of speech are nowhere, or twice."""
    made = cut(track.cues, Rules(), track.word_times == "real")
    placed = Counter(word for run in [*made.segments, *made.lost] for word in WORD.findall(ASIDE.sub(" ", run.text)))
    spoken = Counter(word for cue in track.cues for word in WORD.findall(ASIDE.sub(" ", cue.text)))
    wrong = sum(((placed - spoken) + (spoken - placed)).values())
    dropped = " ".join(f"{reason} {ms / 1000:.1f}" for reason, ms in made.balance.dropped.items() if ms)
    repeats = track.oddities.get("repeated_lines", 0) + track.oddities.get("repeated_cues", 0)
    words = sum(len(cue.text.split()) for cue in track.cues)
    return (
        f"{name[:58]:58} {track.format:13} {track.cues_in:5} {len(track.cues):5} {repeats:5} {words:6} {track.word_times:12} "
        f"{len(made.segments):4} {made.balance.kept / 1000:8.1f} s  {dropped}" + (f"  WRONG {wrong}" if wrong else ""),
        wrong,
    )


def subtitles(folder: Path) -> int:
    print(
        f"{'file':58} {'format':13} {'in':>5} {'cues':>5} {'twice':>5} {'words':>6} {'word times':12} {'seg':>4} {'kept':>8}    dropped, s"
    )
    wrong = 0
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        try:
            line, more = subtitle_line(name, parse(path.read_bytes(), path.name))
        except SubtitleError as err:
            line, more = f"{name[:58]:58} refused: {err.reason}: {err.detail}", 0
        print(line)
        wrong += more
    return wrong


def frames(path: Path, spans: list[tuple[float, float]], count: int) -> list[dict[str, Any]]:
    stage = Frames(Frames.Config(count=count))
    stage.open()
    starts, ends = zip(*spans, strict=True)
    columns = {"video": [str(path)] * len(spans), "start_s": pa.array(starts, pa.float64()), "end_s": pa.array(ends, pa.float64())}
    rows: list[dict[str, Any]] = apply(stage, framed(pa.table(columns))).to_pylist()
    return rows


def videos(folder: Path) -> int:
    print(f"\n{'video':48} {'codec':8} {'size':>10} {'turned':>6} {'kept':>5} {'lag <=':>7} {'cuts':>4}  other fates, text tracks")
    wrong = 0
    for path in sorted(path for path in folder.iterdir() if path.suffix != ".md"):
        rows = frames(path, [(n / 10, n / 10 + 0.1) for n in range(40)], 2)
        fates = Counter(row["fate"] for row in rows)
        first = next((row for row in rows if row["fate"] == "kept"), rows[0])
        lags = [lag for row in rows for lag in row["frame_lags"] or ()]
        wrong += sum(lag < 0 for lag in lags)
        shots = Cuts()
        shots.open()
        cuts = apply(shots, framed(pa.table({"video": [str(path)], "start_s": [0.0], "end_s": [200.0]})))["cuts"][0]
        tracks = ", ".join(f"{track.format} {len(track.cues)}" for track in embedded_tracks(str(path)).values())
        others = ", ".join(f"{fate} {count}" for fate, count in sorted(fates.items()) if fate != "kept")
        size = f"{first['original_width']}x{first['original_height']}"
        turned = first["rotation"]
        line = f"{path.name:48} {first['video_codec'] or '':8} {size:>10} {turned!s:>6} {fates['kept']:5} {max(lags, default=0):7.3f}"
        print(f"{line} {cuts!s:>4}  {others}  {tracks}")
    return wrong


def together(data: Path) -> None:
    """The captions of the one film that is here with its own, as clips."""
    body = (data / "subtitles/youtube_auto_vtt/manifesto_90s.en.vtt").read_bytes()
    table = apply(Subtitles(), framed(pa.table({"subtitle": pa.array([body], pa.large_binary())})))
    children = expand(Segments(), table).children
    clips = framed(children.select(["start_s", "end_s"]).append_column("caption", children["source_caption"]))
    clips = clips.append_column("video", pa.array([str(data / "video/manifesto.mp4")] * len(clips)))
    for stage in [Cuts(), *([] if offline_scorer.missing() else [Alignment(Alignment.Config(model="offline-scorer"))])]:
        stage.open()
        clips = apply(stage, clips)
    spans = list(zip(children["start_s"].to_pylist(), children["end_s"].to_pylist(), strict=True))
    print("\nmanifesto.mp4 with its automatic captions")
    rows = frames(data / "video/manifesto.mp4", spans, 4)
    for row, clip in zip(rows, clips.to_pylist(), strict=True):
        fit = f"best at {clip['offset_s']:+4.0f} s ({clip['alignability']:+.3f})" if clip.get("offset_s") is not None else ""
        made = f"{len(row['frames'] or ())} frames, {clip['cuts']} cuts {fit}"
        print(f"{clip['start_s']:7.2f} {clip['end_s']:7.2f}  {row['fate']:20} {made}  {clip['caption'][:70]}")


def main() -> int:
    data = Path(sys.argv[1])
    wrong = subtitles(data / "subtitles") + videos(data / "video")
    together(data)
    print(f"\n{wrong} words lost or doubled, or lags below 0")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
