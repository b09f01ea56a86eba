"""Clips as films: every frame that is on screen within a segment goes into the segment's mp4, in one pass over the video."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from stages.frames.clip import Clip
from stages.frames.decode import Played, Video, exact
from stages.frames.mp4 import Mp4, even_side, picture

MOST_OPEN = 16  # encoders at once; where more segments overlap, the video is read more than once
TAIL_S = Fraction(1, 2)  # what a video may lack at a segment's end: subtitles often last a little longer
USUAL_FPS = Fraction(25)

Shot = Callable[[Played, list[tuple[Clip, int]], list[Clip]], np.ndarray | None]


@dataclass(frozen=True)
class Settings:
    codec: str
    quality: int
    preset: str


class _Taking:
    """A clip whose film is being made. `until`: to where its frames are known."""

    def __init__(self, clip: Clip) -> None:
        self.clip, self.begin, self.end = clip, exact(clip.start), exact(clip.end)
        self.places = deque((exact(t), n) for n, t in enumerate(clip.times))
        self.until: Fraction | None = None
        self.mp4: Mp4 | None = None

    def check(self, played: Played, first: bool) -> None:
        """Drops the clip where frames are lacking before this one."""
        if self.until is None and played.at > self.begin:
            self.clip.drop("out_of_video" if first else "damaged", f"no frame at {self.clip.start:.3f} s")
        elif self.until is not None and played.at != self.until:
            self.clip.drop("damaged", f"no frame at {float(self.until):.3f} s")

    def due(self, played: Played) -> list[tuple[Clip, int]]:
        out = []
        while self.places and self.places[0][0] < played.until:
            out.append((self.clip, self.places.popleft()[1]))
        return out

    def add(self, frame: Any, size: tuple[int, int], played: Played, settings: Settings, fps: Fraction) -> None:
        if self.mp4 is None:
            self.mp4 = Mp4(size, settings.codec, settings.quality, settings.preset, fps)
        self.mp4.add(frame, max(Fraction(0), played.at - self.begin))
        self.until = played.until

    def finish(self, codec: str) -> Clip:
        """The clip with its film, or dropped."""
        if self.mp4 is not None and self.clip.reason is None and self.until is not None:
            seconds = min(self.until, self.end) - self.begin
            self.clip.facts |= {"clip": self.mp4.finish(seconds), "clip_codec": codec}
            self.clip.facts |= {"clip_frames": self.mp4.frames, "clip_s": round(float(seconds), 6)}
        elif self.mp4 is not None:
            self.mp4.drop()
        self.mp4 = None
        return self.clip


def passes(clips: Sequence[Clip]) -> list[list[Clip]]:
    """The clips in as few groups as can be, in none of which more than MOST_OPEN overlap at any time."""
    busy: list[tuple[float, int]] = []  # rows of clips that do not overlap: where the last one ends, and the row's number
    free: list[int] = []
    groups: dict[int, list[Clip]] = {}
    for clip in sorted(clips, key=lambda clip: clip.start):
        while busy and busy[0][0] <= clip.start:
            heapq.heappush(free, heapq.heappop(busy)[1])
        at = heapq.heappop(free) if free else len(busy)
        heapq.heappush(busy, (clip.end, at))
        groups.setdefault(at // MOST_OPEN, []).append(clip)
    return list(groups.values())


def films(video: Video, clips: Sequence[Clip], shot: Shot, settings: Settings) -> Iterator[Clip]:
    """Each clip as it is finished. `shot` is asked once a frame: it makes the pictures that are due and returns the pixels for the films,
    None where all of the clips were dropped."""
    waiting = deque(sorted(clips, key=lambda clip: clip.start))
    rate = video.stream.average_rate
    fps = Fraction(rate) if rate and 1 <= rate <= 120 else USUAL_FPS
    taking: list[_Taking] = []
    first = True
    for played in video.played([(clip.start, clip.end) for clip in clips]):
        while waiting and exact(waiting[0].start) < played.until:
            taking.append(_Taking(waiting.popleft()))
        for each in taking:
            each.check(played, first and not video.damaged)
        first = False
        alive = [each for each in taking if each.clip.reason is None]
        if (
            alive
            and (pixels := shot(played, [due for each in alive for due in each.due(played)], [each.clip for each in alive])) is not None
        ):
            size = (even_side(pixels.shape[1]), even_side(pixels.shape[0]))
            if min(size) < 2:
                for each in alive:
                    each.clip.drop("too_small", f"{pixels.shape[1]} x {pixels.shape[0]}: a film needs two pixels a side")
            else:
                frame = picture(pixels)
                for each in alive:
                    each.add(frame, size, played, settings, fps)
        over = [each for each in taking if each.clip.reason or (each.until is not None and each.until >= each.end)]
        taking = [each for each in taking if each not in over]
        yield from (each.finish(settings.codec) for each in over)
    for each in [*taking, *map(_Taking, waiting)]:
        lacking = each.end - (each.until or each.begin)
        if each.until is None or lacking > TAIL_S or not each.clip.done or video.damaged:
            at = float(each.until if each.until is not None else each.begin)
            each.clip.drop("damaged" if video.damaged else "out_of_video", f"no frame at {at:.3f} s")
        yield each.finish(settings.codec)
