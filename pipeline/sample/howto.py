"""The embedded sample of videos: short films of the sample's photographs whose narration says what is seen, and the web's dirt around them.

Every frame shows the time at which it comes on screen (counter.py), so that a clip's pictures prove their own times. The same library
versions give the same bytes. Files: howto100m.parquet (the list), truth.parquet, web.parquet (pages.py), facts.json. Served by server.py.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from pipeline.sample import counter, film, pages, photos, speech
from pipeline.sample.pages import Page
from pipeline.sample.photos import View

SEED = 20_250_311
SIZE = (320, 240)
SCENES = 6  # of a video, a photograph each
LEAD_MS, REST_MS = 400, 900  # of a scene before and after what is said in it
PACKAGES = ("pillow", "pyarrow", "numpy", "scikit-image", "scikit-learn", "matplotlib", "av")
# x264's macroblock tree reads memory that nobody wrote (core 165, in its assembly): now and then it gives other bytes.
X264 = {"preset": "veryfast", "g": "50", "bf": "3", "crf": "23", "x264-params": "mbtree=0"}
LIST = pa.schema(
    [("video_id", pa.string()), ("url", pa.string()), ("title", pa.string()), ("subtitle_url", pa.string()), ("subtitle", pa.binary())]
)
TRUTH = pa.schema(
    [("row", pa.int64()), ("video_id", pa.string()), ("truth", pa.string()), ("expected", pa.string()), ("sentences", pa.string())]
)
Writer = Callable[[Sequence[speech.Line]], str]


@dataclass(frozen=True)
class Recipe:
    """A row of the list. `fate`: of the video's row; `clips`: of its segments, where it has any."""

    truth: str
    writer: Writer | None = speech.rolling_vtt
    name: str = "en.vtt"
    suffix: str = "mp4"
    codec: str = "libx264"
    fps: float | None = 12.5  # None: steps of 40 to 400 ms
    shift_ms: int = 0
    turn: int = 0
    inline: bool = False
    encoding: str = "utf-8"
    fate: str = "kept"
    clips: str = "kept"
    options: dict[str, str] = field(default_factory=dict)


SOUND = (
    Recipe("automatic captions, rolling"),
    Recipe("SubRip in UTF-16, uneven frames", speech.srt, "en.srt", fps=None, encoding="utf-16"),
    Recipe("json3, VP9 in WebM", speech.json3, "en.json3", "webm", "libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}),
    Recipe("srv3, Matroska that starts at 5 s", speech.srv3, "en.srv3", "mkv", shift_ms=5000),
    Recipe("srv1, turned a quarter", speech.srv1, "en.srv1", turn=90),
    Recipe("TTML, MPEG transport stream", speech.ttml, "en.ttml", "ts", shift_ms=2000),
    Recipe("WebVTT by hand, upside down", speech.vtt, "en.vtt", turn=180),
    Recipe("an entry of raw_caption.json, in the list", speech.howto100m, inline=True),
    Recipe("MIL-NCE's csv, in the list", speech.milnce_csv, inline=True),
    Recipe("automatic captions, MPEG-4 in AVI", speech.rolling_vtt, "en.vtt", "avi", "mpeg4", fps=25, options={"qscale": "3"}),
)
DIRT = (
    Recipe("no subtitles", None, fate="subtitle_files:missing"),
    Recipe("subtitles are gone", speech.vtt, "gone.vtt", fate="subtitle_files:http_404"),
    Recipe("subtitles are a page", lambda _: "<html><body>Sign in</body></html>", fate="subtitles:unknown_format"),
    Recipe("music alone", lambda _: speech.vtt([[(0, "[Music]"), (9000, "[Music]")]]), fate="segments:non_speech"),
    Recipe("video is gone", clips="download:http_404"),
    Recipe("video is a page", clips="frames:not_a_video"),
    Recipe("sound alone", suffix="mkv", clips="frames:no_video"),
    Recipe("video of another film, shorter", clips="frames:out_of_video"),
)


def build(folder: Path) -> None:
    """Writes the files; about half a minute of CPU."""
    mixed = random.Random(SEED)
    views = iter(mixed.sample(photos.views(), len(photos.views())))
    rows: list[dict[str, Any]] = []
    truth: list[dict[str, Any]] = []
    found: dict[str, Page] = {}
    for recipe in mixed.sample([*SOUND, *DIRT], len(SOUND) + len(DIRT)):
        scenes = list(_scenes([next(views) for _ in range(SCENES)]))
        row = _row(len(rows), recipe, scenes, found)
        sentences = [[line[0][0], speech.end_of(line), speech.text_of(line)] for _, _, line in scenes]
        rows.append(row)
        expected = recipe.clips if recipe.fate == "kept" else recipe.fate
        truth.append(
            {
                "row": len(truth),
                "video_id": row["video_id"],
                "truth": recipe.truth,
                "expected": expected,
                "sentences": json.dumps(sentences),
            }
        )
    pq.write_table(pa.Table.from_pylist(rows, LIST), folder / "howto100m.parquet")
    pq.write_table(pa.Table.from_pylist(truth, TRUTH), folder / "truth.parquet")
    pages.write(folder / "web.parquet", found)
    facts: dict[str, Any] = {"photographs": len(photos.photographs()), "videos": len(rows), "rows": len(rows), "truth_classes": len(rows)}
    facts["text"] = f"demonstration: {len(rows)} made-up videos of {len(photos.photographs())} distinct photographs"
    (folder / "facts.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


Scene = tuple[int, np.ndarray, speech.Line]


def _scenes(views: Sequence[View]) -> Iterator[Scene]:
    """(start in ms, picture, what is said) of each view."""
    at = 0
    for view in views:
        line = speech.spoken(view.captions[0].rstrip(".") + ".", at + LEAD_MS)
        yield at, np.asarray(ImageOps.fit(view.image(), SIZE, Image.Resampling.LANCZOS)), line
        at = speech.end_of(line) + REST_MS


def _row(number: int, recipe: Recipe, scenes: list[Scene], found: dict[str, Page]) -> dict[str, Any]:
    name = f"howto{number:06d}"
    url, lines = f"http://videos.howto.example/{name}.{recipe.suffix}", [line for _, _, line in scenes]
    row: dict[str, Any] = {"video_id": name, "url": url, "title": f"made-up video {number}", "subtitle_url": None, "subtitle": None}
    if recipe.writer is not None:
        body = recipe.writer(lines).encode(recipe.encoding)
        row |= {"subtitle": body} if recipe.inline else {"subtitle_url": f"http://subtitles.howto.example/{name}.{recipe.name}"}
        if row["subtitle_url"] and recipe.name != "gone.vtt":
            found[pages.address(row["subtitle_url"])] = Page(body, {"Content-Type": "text/plain"})
    if recipe.truth == "video is a page":
        found[pages.address(url)] = Page(
            b"<html><body>Sign in to confirm that you are no robot</body></html>", {"Content-Type": "text/html"}
        )
    elif recipe.truth != "video is gone":
        found[pages.address(url)] = Page(_file(recipe, scenes, number), {"Content-Type": "video/mp4"})
    return row


def _file(recipe: Recipe, scenes: list[Scene], seed: int) -> bytes:
    end = speech.end_of(scenes[-1][2]) + REST_MS
    if recipe.truth.startswith("video of another film"):
        end = 100
    with tempfile.TemporaryDirectory(prefix="shardmill-film-") as name:
        path = Path(name, f"film.{recipe.suffix}")
        if recipe.truth == "sound alone":
            film.write(path, [], audio_s=end / 1000)
        else:
            options = {**(X264 if recipe.codec == "libx264" else {}), **recipe.options}
            film.write(path, _pictures(recipe, scenes, _times(recipe.fps, end, seed)), recipe.codec, options, audio_s=0)
        if recipe.turn:
            film.turn(path, recipe.turn)
        return path.read_bytes()


def _times(fps: float | None, end: int, seed: int) -> list[int]:
    if fps is not None:
        return [round(1000 * n / fps) for n in range(int(end * fps / 1000))]
    steps = random.Random(seed)
    out = [0]
    while out[-1] < end:
        out.append(out[-1] + steps.randint(40, 400))
    return out[:-1]


def _pictures(recipe: Recipe, scenes: list[Scene], times: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    starts = [start for start, _, _ in scenes]
    for ms in times:
        picture = scenes[max(0, int(np.searchsorted(starts, ms, side="right")) - 1)][1]
        turned = np.rot90(counter.write(picture, ms), recipe.turn // 90)
        yield ms + recipe.shift_ms, np.ascontiguousarray(turned)
