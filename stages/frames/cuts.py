"""cuts: where a clip's video cuts from one shot to another, by PySceneDetect's detectors (BSD-3, extra `video`).

Every frame of a clip is decoded and compared with the one before it, so this costs as much as the clips are long, where `frames` decodes
little more than the frames that it takes. Detectors get frames with their own times, not numbers by an average rate, which would be wrong
where the rate varies. A rule drops what crosses a cut: `{name: one_shot, keep: "cuts = 0"}`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipeline.stage import Column, Resources, Stage, Strict
from stages.frames.decode import UnreadableError, Video, require
from stages.frames.spans import by_video, in_order, spans
from stages.lib.spans import union

THRESHOLDS = {"adaptive": 3.0, "content": 27.0}  # PySceneDetect 0.7's own
SIDE = 256  # pixels of the longer side of what is compared, as PySceneDetect takes it
PER_S = 60  # of a video with more frames a second, about so many are looked at
WARM_S = 0.2  # before a detector's first cut: the frames that it compares with


class Options(Strict):
    detector: Literal["adaptive", "content"] = "adaptive"
    """PySceneDetect's: adaptive compares a frame's change with that of its neighbours, which fast camera movement does not deceive;
    content takes it as it is."""
    threshold: float | None = Field(None, gt=0)
    """From which change on there is a cut; null: 3 (adaptive: times the neighbours' change), 27 (content: of 255)."""
    min_shot_s: float = Field(0.6, ge=0, le=60)
    """Seconds of a shot at least; of cuts that follow faster, adaptive takes the first, content merges them."""
    margin_s: float = Field(2.0, ge=0, le=60)
    """Seconds before and after each clip in which the nearest cut is looked for, too."""
    max_pixels: int = Field(36_000_000, ge=1, le=500_000_000)
    """Width times height of a frame, as in `frames`."""


class Cuts(Stage):
    """Columns for a rule to drop by. A clip of a video that cannot be read gets nulls; `frames` says why."""

    name = "cuts"
    version = 2
    reads = {
        "video": Column(pa.string(), "path of the video file on this machine", stored=False),
        "start_s": Column(pa.float64(), "where the segment begins, in seconds of the video"),
        "end_s": Column(pa.float64(), "where it ends"),
    }
    may_read = {"shift_s": Column(pa.float32(), "seconds by which the frames lie after the speech (alignment)")}
    adds = {
        "cuts": Column(pa.int32(), "cuts between the start and the end of the clip's frames; a shot that begins with the clip is none"),
        "cut_times": Column(pa.list_(pa.float64()), "their first moments, in seconds of the video, rising"),
        "nearest_cut_s": Column(pa.float64(), "first moment of the shot whose beginning is nearest to the clip's middle; null: none near"),
    }
    resources = Resources(memory=2 << 30)

    class Config(Options):
        pass

    def check_ready(self) -> None:
        """Raises UserError where the extra is missing."""
        require(self.name, "scenedetect")

    def open(self) -> None:
        import av

        self.check_ready()
        av.logging.set_level(None)

    def __call__(self, table: pa.Table) -> pa.Table:
        return in_order(table, self.pieces(table, lambda: None))

    def pieces(self, table: pa.Table, goes_on: Callable[[], None]) -> Iterator[pa.Table]:
        """As `__call__`, a video after the other."""
        yield from by_video(table, lambda path, rows: self._counted(path, rows, goes_on))

    def _counted(self, path: str, table: pa.Table, goes_on: Callable[[], None]) -> pa.Table:
        """The rows of one video."""
        clips = [(n, (start, end)) for n, (start, end) in enumerate(spans(table)) if start is not None and end is not None and start < end]
        inside: list[list[float] | None] = [None] * len(table)
        nearest: list[float | None] = [None] * len(table)
        try:
            found = self._found(path, [clip for _, clip in clips], goes_on)
            for n, clip in clips:
                inside[n], nearest[n] = self._of(clip, found)
        except UnreadableError:
            pass  # `frames` says why
        table = table.append_column("cuts", pa.array([None if cuts is None else len(cuts) for cuts in inside], pa.int32()))
        table = table.append_column("cut_times", pa.array(inside, pa.list_(pa.float64())))
        return table.append_column("nearest_cut_s", pa.array(nearest, pa.float64()))

    def _of(self, clip: tuple[float, float], found: np.ndarray) -> tuple[list[float], float | None]:
        """The cuts (rising, seconds) that lie within the clip, and the nearest one."""
        start, end = clip
        inside = found[np.searchsorted(found, start, side="right") : np.searchsorted(found, end, side="left")].tolist()
        near = found[(found >= start - self.config.margin_s) & (found <= end + self.config.margin_s)]
        return inside, float(near[np.argmin(np.abs(near - (start + end) / 2))]) if len(near) else None

    def _found(self, path: str, clips: list[tuple[float, float]], goes_on: Callable[[], None] = lambda: None) -> np.ndarray:
        """Seconds at which a new shot begins, rising, in and around these clips."""
        reach = self.config.margin_s + self.config.min_shot_s + WARM_S
        around = union([(max(0.0, start - reach), end + reach) for start, end in clips])
        found: list[float] = []
        with Video(path, self.config.max_pixels, goes_on=goes_on) as video:
            for run in _runs(video, around):
                found += self._detected(video, run)
        return np.array(found)

    def _detected(self, video: Video, run: Iterator[tuple[float, Any]]) -> Iterator[float]:
        """The cuts of a run of frames without a gap."""
        from scenedetect.common import FrameTimecode, Timecode

        detector = self._detector()
        last = None
        for at_s, frame in run:
            small = _small(video.converter.reformat(frame, format="bgr24").to_ndarray())
            last = FrameTimecode(Timecode(round(at_s * 1_000_000), Fraction(1, 1_000_000)), fps=25.0)  # a rate is asked for, and not used
            yield from (cut.seconds for cut in detector.process_frame(last, small))
        if last is not None:
            yield from (cut.seconds for cut in detector.post_process(last))

    def _detector(self) -> Any:
        from scenedetect.detectors import AdaptiveDetector, ContentDetector

        threshold = self.config.threshold or THRESHOLDS[self.config.detector]
        if self.config.detector == "content":
            return ContentDetector(threshold=threshold, min_scene_len=self.config.min_shot_s)
        return AdaptiveDetector(adaptive_threshold=threshold, min_scene_len=self.config.min_shot_s)


def _small(pixels: np.ndarray) -> np.ndarray:
    """Scaled as PySceneDetect does it, since its thresholds are set on that: a better filter makes changes smaller."""
    import cv2

    height, width = pixels.shape[:2]
    if (factor := max(height, width) / SIDE) <= 1:
        return pixels
    return np.asarray(cv2.resize(pixels, (max(1, round(width / factor)), max(1, round(height / factor))), interpolation=cv2.INTER_LINEAR))


def _runs(video: Video, around: list[tuple[float, float]]) -> Iterator[Iterator[tuple[float, Any]]]:
    """(seconds, frame) of all frames in these spans (rising): a run each, and a new one behind a stretch that cannot be decoded."""
    starts = [start for start, _ in around]
    rate = video.stream.average_rate
    step = 0.95 / PER_S if rate and rate > 1.05 * PER_S else 0.0

    def told() -> Iterator[tuple[tuple[int, int], float, Any]]:
        until, gaps, taken = None, 0, -1.0
        for played in video.played(around):
            gaps += until is not None and played.at != until
            until, at_s = played.until, float(played.at)
            if at_s >= taken + step:
                taken = at_s
                yield (bisect_left(starts, float(until)), gaps), at_s, played.frame

    for _, run in groupby(told(), key=itemgetter(0)):
        yield ((at_s, frame) for _, at_s, frame in run)
