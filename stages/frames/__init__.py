"""frames: of each segment of a video the pictures that are on screen at evenly spread times, and on request all of its frames as an mp4 and
its sound; the video is decoded once, in order.

Which frame is on screen, and how a file is read, is decode.py; films and sound of clips are film.py, mp4.py and sound.py; this file holds
the options, the times, the columns and the reasons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from pipeline.stage import KEPT, Column, Resources, Stage, Strict, keyless
from stages.frames.clip import Clip
from stages.frames.decode import Missing, Played, UnreadableError, Video, require
from stages.frames.film import MOST_OPEN, Settings, films, passes
from stages.frames.sound import encode, sounds
from stages.frames.spans import in_order, spans
from stages.lib import imageencode, imageresize, phash, videopicture
from stages.lib.imageresize import Filter, Mode

MOST_PASSES = 32  # over one video; a list of cues that all lie over one another would have it read thousands of times
PIECE = 8 << 20  # bytes of pictures that are held before their clips are handed on
MISSING = {"before": "out_of_video", "after": "out_of_video", "damaged": "damaged"}


class ClipOptions(Strict):
    """Sizes and crops are those of the pictures; an odd last row or column is left out."""

    codec: Literal["h264", "vp9"] = "h264"
    """h264: libx264 (GPL-2.0 or later); vp9: libvpx (BSD-3-Clause). PyAV's wheel carries both."""
    quality: int = Field(23, ge=0, le=63)
    """The encoder's constant rate factor, lower is better: x264 0 to 51, libvpx 0 to 63."""
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow"] = "veryfast"
    """x264's exchange of time for size."""


class Options(Strict):
    """Sizes, crops and encodings mean what they mean in the stage `images`."""

    pick: Literal["uniform", "per_second", "scenes", "none"] = "uniform"
    """uniform: `count` frames a segment, at the middles of as many equal pieces of it. per_second: `per_second` frames for each second
    of it, the first half a step after its start. scenes: the middle of each shot, or part of one, that lies in it (the stage `cuts` says
    where they begin). none: no pictures, where `clip` or `sound` is wanted alone."""
    count: int = Field(4, ge=1, le=999)
    """Frames a segment (uniform). 1 takes its middle."""
    per_second: float = Field(1.0, gt=0, le=60)
    """Frames a second (per_second); a segment has one at least."""
    max_count: int = Field(64, ge=1, le=999)
    """Frames a segment at most (per_second, scenes); of more seconds as many frames are taken uniformly, of more shots the longest."""
    size: int = Field(224, ge=1, le=16_383)
    """Pixels: the side that `mode` brings to this length."""
    mode: Mode = "center_crop"
    """As in `images`: center_crop, border, keep_ratio, keep_ratio_largest, no."""
    only_if_bigger: bool = False
    """Leave frames that needn't shrink as they are."""
    downscale: Filter = "area"
    """OpenCV's filter for shrinking."""
    upscale: Filter = "lanczos"
    """OpenCV's filter for enlarging."""
    format: Literal["jpg", "webp"] = "jpg"
    """What is stored."""
    quality: int = Field(90, ge=1, le=100)
    """Of jpg and webp."""
    min_side: int | None = Field(None, ge=1)
    """Pixels of the video's shorter side."""
    max_pixels: int = Field(36_000_000, ge=1, le=500_000_000)
    """Width times height of a frame; 8K has 33 million."""
    clip: ClipOptions | None = None
    """Store each segment as an mp4 too, all of its frames encoded anew: it begins at 0 with the one on screen at the segment's start, and
    its last one stays until the segment's end."""
    sound: Literal["flac", "wav"] | None = None
    """Store each segment's sound too: 16 kHz, one channel, 16 bits, from the segment's first to its last moment."""
    max_s: float = Field(1200.0, gt=0)
    """Seconds of a segment of which `clip` or `sound` is stored."""
    threads: int = keyless(1, ge=1, le=64)
    """Threads of one video's decoder. A worker decodes several videos at once, so one is fastest where there are many."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.pick == "none" and self.clip is None and self.sound is None:
            raise ValueError("pick none leaves nothing to store; set clip or sound")
        if self.clip and self.clip.codec == "h264" and self.clip.quality > 51:
            raise ValueError("clip.quality goes to 51 with h264")
        return self


class Frames(Stage):
    """Decodes a video once for all its segments and stores the frames that are on screen at their times.

    A segment of which one time has no frame is dropped whole: nothing is filled up.
    """

    name = "frames"
    version = 4
    reads = {
        "video": Column(pa.string(), "path of the video file on this machine", stored=False),
        "start_s": Column(pa.float64(), "where the segment begins, in seconds of the video"),
        "end_s": Column(pa.float64(), "where it ends"),
    }
    may_read = {"shift_s": Column(pa.float32(), "seconds by which the frames lie after the speech (alignment)")}
    adds = {
        "frames": Column(pa.list_(pa.large_binary()), "the pictures as they go into the shards, in order of time"),
        "format": Column(pa.string(), "their encoding: jpg or webp"),
        "width": Column(pa.int32(), "their pixels a row"),
        "height": Column(pa.int32(), "their rows"),
        "original_width": Column(pa.int32(), "the video's pixels a row, upright, pixels taken for squares"),
        "original_height": Column(pa.int32(), "the video's rows, upright"),
        "frame_times": Column(pa.list_(pa.float64()), "the times at which the frames are on screen: seconds of the video"),
        "frame_lags": Column(pa.list_(pa.float64()), "seconds that each frame had been on screen by then; at least 0"),
        "video_codec": Column(pa.string(), "the video's codec as FFmpeg names it"),
        "video_s": Column(pa.float64(), "seconds of the video as its container claims them; null where it does not"),
        "rotation": Column(pa.int32(), "degrees clockwise by which the frames were turned upright: 0, 90, 180 or 270"),
        "phash": Column(pa.string(), f"16 hex digits, {phash.ALGORITHM} of the middle frame; null for flat ones"),
        "flat": Column(pa.bool_(), "the middle frame is nearly of one brightness"),
    }
    clip_adds = {
        "clip": Column(pa.large_binary(), "the segment as an mp4"),
        "clip_codec": Column(pa.string(), "its codec"),
        "clip_frames": Column(pa.int32(), "its frames"),
        "clip_s": Column(pa.float64(), "its seconds: the segment's, less what the video lacks at its end"),
    }
    sound_adds = {
        "sound": Column(pa.large_binary(), "the segment's sound: 16 kHz, one channel, 16 bits"),
        "sound_format": Column(pa.string(), "flac or wav"),
        "silent_s": Column(pa.float64(), "seconds of it that the file lacks, and that are silence"),
    }
    reasons = {
        "not_a_video": "no container that is read, or broken before its first packet",
        "no_video": "the file has no video: sound alone, or a cover picture",
        "unsupported_codec": "no decoder here for the video's codec",
        "too_many_pixels": "frames of more than max_pixels",
        "too_small": "shorter side under min_side",
        "out_of_video": "a wanted time lies before the first frame or after the last one",
        "damaged": "no frame can be decoded for a wanted time: the file is cut off or damaged there",
        "no_segment": "the segment has no length, or no times",
        "too_long": "longer than max_s, and `clip` or `sound` is wanted, which are held in memory until they are whole",
        "crowded": "more than 512 segments overlap at one moment, and `clip` or `sound` is wanted, for which 16 at a time share a reading",
        "no_sound": "`sound` is wanted, and the file has none in the segment, or none that can be decoded",
    }
    resources = Resources(memory=2 << 30)

    class Config(Options):
        pass

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        more = [adds for adds, wanted in ((self.clip_adds, self.config.clip), (self.sound_adds, self.config.sound)) if wanted]
        self.adds = {name: column for adds in (type(self).adds, *more) for name, column in adds.items()}
        if self.config.pick == "scenes":
            self.reads = {**type(self).reads, "cut_times": Column(pa.list_(pa.float64()), "where shots begin within the segment")}

    def check_ready(self) -> None:
        """Raises UserError where the extra is missing."""
        require(self.name)

    def open(self) -> None:
        import av
        import cv2

        self.check_ready()
        av.logging.set_level(None)  # FFmpeg's words on damaged files; what matters becomes a fate
        cv2.setNumThreads(1)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Each video once, for all its rows."""
        return in_order(table, self.pieces(table, lambda: None))

    def pieces(self, table: pa.Table, goes_on: Callable[[], None]) -> Iterator[pa.Table]:
        """As `__call__`, clips as they are finished: of a long video some are held, and never all."""
        rows, paths = (table[name].to_pylist() for name in ("row", "video"))
        cuts = table["cut_times"].to_pylist() if self.config.pick == "scenes" else [None] * len(table)
        both = zip(rows, spans(table), cuts, strict=True)
        clips = [Clip(row, start or 0.0, end or 0.0, self._times(start, end, at or ())) for row, (start, end), at in both]
        of_video: dict[str, list[Clip]] = {}
        for clip, path in zip(clips, paths, strict=True):
            of_video.setdefault(path, []).append(clip)
        for path, some in of_video.items():
            waiting: list[Clip] = []
            held = 0
            for clip in self._video(path, some, goes_on):
                waiting.append(clip)
                held += clip.bytes
                if held >= PIECE:
                    yield self._table(waiting)
                    waiting, held = [], 0
            yield self._table(waiting)

    def _table(self, clips: list[Clip]) -> pa.Table:
        """Finished clips as rows; nothing is left of them here."""
        _hash([clip for clip in clips if clip.grey is not None])
        columns: dict[str, Any] = {
            "row": pa.array([clip.row for clip in clips], pa.int64()),
            "fate": pa.array([f"{self.name}:{clip.reason}" if clip.reason else KEPT for clip in clips], pa.string()),
            "detail": pa.array([clip.detail for clip in clips], pa.string()),
        }
        for name, column in self.adds.items():
            columns[name] = pa.array([clip.facts.get(name) for clip in clips], column.type)
        for clip in clips:
            clip.forget()
        return pa.table(columns)

    def _times(self, start: float | None, end: float | None, cuts: Sequence[float] = ()) -> list[float]:
        """The wanted times of a segment, rising, to the microsecond; none where it has no length. `cuts`: where its shots begin."""
        if start is None or end is None or not 0 <= start < end or self.config.pick == "none":
            return []
        config = self.config
        if config.pick == "scenes":
            shots = list(pairwise([start, *(cut for cut in cuts if start < cut < end), end]))
            longest = sorted(shots, key=lambda shot: shot[0] - shot[1])[: config.max_count]
            return sorted(round((a + b) / 2, 6) for a, b in longest)
        count, step = config.count, (end - start) / config.count
        if config.pick == "per_second":
            count, step = int((end - start) * config.per_second + 0.5), 1 / config.per_second
            if not 1 <= count <= config.max_count:
                count = max(1, min(config.max_count, count))
                step = (end - start) / count
        return [round(start + (n + 0.5) * step, 6) for n in range(count)]

    def _video(self, path: str, clips: list[Clip], goes_on: Callable[[], None]) -> Iterator[Clip]:
        """The clips of one video, each as it is finished."""
        for clip in clips:
            if not 0 <= clip.start < clip.end:
                clip.drop("no_segment", "start_s and end_s give no time")
            elif (self.config.clip or self.config.sound) and clip.end - clip.start > self.config.max_s:
                clip.drop("too_long", f"{clip.end - clip.start:.3f} s > {self.config.max_s:g}")
        left = {clip.row: clip for clip in clips}
        try:
            for clip in self._made(path, [clip for clip in clips if clip.reason is None], goes_on):
                if left.pop(clip.row, None) is not None:
                    yield self._finished(clip)
        except UnreadableError as err:
            for clip in left.values():
                clip.drop(err.reason, err.detail)
        for clip in left.values():
            yield self._finished(clip)

    def _made(self, path: str, clips: list[Clip], goes_on: Callable[[], None]) -> Iterator[Clip]:
        """Clips with pictures, film and sound. A clip may come more than once. Raises UnreadableError."""
        if self.config.clip is None and self.config.sound is None:
            yield from self._pictured(path, clips, goes_on)
            return
        for n, some in enumerate(passes(clips)):  # what is held of films and sound is bounded, however many segments overlap
            if n >= MOST_PASSES:
                for clip in some:
                    clip.drop("crowded", f"more than {MOST_PASSES * MOST_OPEN} segments at one moment")
                continue
            found = self._pictured(path, some, goes_on)
            yield from found if self.config.sound is None else self._heard(found, path, some, self.config.sound, goes_on)

    def _heard(
        self, found: Iterator[Clip], path: str, clips: list[Clip], kind: Literal["flac", "wav"], goes_on: Callable[[], None]
    ) -> Iterator[Clip]:
        """Clips with their sound."""
        coming = sounds(path, [(clip.start, clip.end) for clip in clips], goes_on)
        heard: dict[int, tuple[bytes | None, float]] = {}
        for clip in found:
            while clip.reason is None and clip.row not in heard:
                place, samples, silent = next(coming)
                if clips[place].reason is None:
                    heard[clips[place].row] = None if samples is None else encode(samples, kind), silent
            sound, silent = heard.pop(clip.row, (None, 0.0))
            clip.facts |= {"sound": sound, "sound_format": kind, "silent_s": silent}
            if sound is None:
                clip.drop("no_sound", "the file has no sound in the segment")
            yield clip

    def _pictured(self, path: str, clips: list[Clip], goes_on: Callable[[], None]) -> Iterator[Clip]:
        """Each clip once, with its pictures and film, as it is finished."""
        config = self.config
        with Video(path, config.max_pixels, config.threads, goes_on) as video:
            facts = {"video_codec": video.stream.codec_context.codec.canonical_name, "video_s": video.duration_s()}
            for clip in clips:
                clip.facts |= facts
            if config.clip:
                settings = Settings(config.clip.codec, config.clip.quality, config.clip.preset)
                yield from films(video, clips, partial(self._shot, video), settings)
            else:
                yield from self._seen(video, clips)

    def _seen(self, video: Video, clips: list[Clip]) -> Iterator[Clip]:
        """Clips with their pictures: frames are looked at where a time is wanted, and no others are."""
        wanted = [(clip, place) for clip in clips for place in range(len(clip.times))]
        told = {clip.row for clip in clips if clip.times}
        yield from (clip for clip in clips if not clip.times)
        for found in video.shown([clip.times[place] for clip, place in wanted]):
            due = [wanted[n] for n in found.wanted]
            if isinstance(found, Missing):
                for clip, place in due:
                    clip.drop(MISSING[found.why], f"no frame at {clip.times[place]:.3f} s, {found.why} what can be decoded")
            elif alive := [(clip, place) for clip, place in due if clip.reason is None]:
                self._taken(video, found.frame, found.at_s, alive, list({clip.row: clip for clip, _ in alive}.values()))
            for clip, _ in due:
                if clip.done and clip.row in told:
                    told.remove(clip.row)
                    yield clip

    def _shot(self, video: Video, played: Played, due: list[tuple[Clip, int]], clips: list[Clip]) -> np.ndarray | None:
        return self._taken(video, played.frame, float(played.at), due, clips)

    def _taken(self, video: Video, frame: Any, at_s: float, due: list[tuple[Clip, int]], clips: list[Clip]) -> np.ndarray | None:
        """A frame as it is stored, upright and scaled. The pictures that are due at it are made, one however many segments want it; all
        `clips` learn the sizes, or are dropped for them (then None)."""
        geometry = videopicture.geometry(video.stream, frame)
        width, height = geometry.size(frame.width, frame.height)
        if self.config.min_side is not None and min(width, height) < self.config.min_side:
            for clip in clips:
                clip.drop("too_small", f"{width} x {height}: {min(width, height)} pixels < {self.config.min_side}")
            return None
        plan = imageresize.plan(width, height, self.config.size, self.config.mode, self.config.only_if_bigger)
        halved = videopicture.halvings((width, height), plan.scaled) if plan.shrinks and self.config.downscale == "area" else 0
        pixels = videopicture.pixels(frame, geometry, halved, video.converter)
        scaled = imageresize.scale(pixels, plan.scaled, self.config.downscale if plan.shrinks else self.config.upscale)
        stored = imageresize.fit(scaled, plan.stored)
        facts = {**dict(zip(("width", "height"), plan.stored, strict=True)), "original_width": width, "original_height": height}
        for clip in clips:
            clip.facts |= {**facts, "rotation": -90 * geometry.turn % 360, "format": self.config.format}
        picture = self._picture(stored) if due else b""
        for clip, place in due:
            clip.pictures[place] = picture
            clip.lags[place] = max(0.0, round(clip.times[place] - at_s, 6))
            if place == len(clip.times) // 2:
                clip.grey = phash.luminance(pixels)
        return stored

    def _picture(self, pixels: np.ndarray) -> bytes:
        return imageencode.encode(pixels, self.config.format, self.config.quality)

    def _finished(self, clip: Clip) -> Clip:
        if clip.reason:
            clip.grey = None
        else:
            clip.facts |= {"frames": clip.pictures, "frame_times": clip.times, "frame_lags": clip.lags}
        return clip


def _hash(clips: list[Clip]) -> None:
    if not clips:
        return
    greys = np.stack([clip.grey for clip in clips if clip.grey is not None])
    for clip, flat, hashed in zip(clips, phash.flat(greys).tolist(), phash.phash(greys), strict=True):
        clip.facts |= {"flat": flat, "phash": None if flat else hashed}
