"""alignment: whether and when a video shows what is said. Narration runs seconds before or after the picture, or has none.

The text of each clip is compared with the frames of a grid over the video, one each `step_s`, by a model with two towers. At an offset d
the clip is [start + d, end + d], and its similarity the mean over the grid's frames in it. A video is decoded once, and each frame of the
grid goes through the model once, for all clips that look at it.

Definitions are those of Han, Xie and Zisserman, Temporal Alignment Networks for Long-term Video, CVPR 2022 (TAN), as their judge on
HTM-Align takes them for models without a head of their own: a sentence's time is where its similarity is greatest, its alignability that
greatest similarity. CLIP ViT-B/32 ranks the sentences that can be seen with an AUC of 0.71 there, and finds the time of 17 to 23 % of
them: a signal to drop by, and a weak one to shift by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, floor
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipeline.errors import UserError
from pipeline.stage import Column, Resources, Stage, Strict, keyless
from stages.frames.decode import Shown, UnreadableError, Video, require
from stages.frames.spans import by_video, in_order, spans
from stages.lib import imageresize, videopicture
from stages.lib.towers import Choice, ModelError, Precision, Towers

DECIMALS = 4  # of a similarity: below that, numbers depend on what else was in the batch
SEEN = 448  # pixels of a frame's shorter side when the model's own transform gets it: twice what most models see
TEXTS = 256  # captions at once
SLACK_S = 0.05  # by which a shifted clip may overrun the length that the container claims
FAR_S = 3600  # a clip that ends so far behind that length is one of wrong times, which may be as long as a thousand hours


class Options(Strict):
    """The model's options mean what they mean in the stage `scores`, and should be the same."""

    model: str
    """An open_clip model's name, `hf-hub:ORG/NAME`, a local folder, or `offline-scorer` (a demonstration)."""
    pretrained: str | None = None
    """The tag of its weights, or a file of them."""
    window_s: float = Field(10.0, ge=0, le=300)
    """Offsets from -window_s to +window_s seconds are tried."""
    step_s: float = Field(1.0, gt=0, le=60)
    """Seconds between two offsets, and between the frames that are looked at: half of it halves the speed."""
    tolerance: float = Field(0.005, ge=0, le=1)
    """Similarities that differ by less count as equal, and of equal ones the offset nearest to 0 is taken: in a scene that stands still,
    two frames differ by 0.001 with the offline scorer."""
    shift_min_gain: float | None = Field(None, ge=0)
    """Clips whose `offset_gain` is at least this are shifted by their `offset_s`: `cuts` and `frames` then look at that time (0: wherever
    anything is gained). null: none is shifted."""
    batch: int = Field(64, ge=1)
    """Frames at once."""
    precision: Precision = "auto"
    """`auto`: bf16 on a GPU, fp32 on a CPU."""
    max_pixels: int = Field(36_000_000, ge=1, le=500_000_000)
    """Width times height of a frame, as in `frames`."""
    gpus: float = keyless(0.0, ge=0)
    """GPUs of one worker of the pool, which downloads and decodes too: 0.1 lets ten share one, and `scores` needs its own share beside
    them; 0 computes on CPUs."""
    workers: int | None = keyless(None, ge=1)
    """How many workers the pool has in the whole Ray cluster, each with a model; null: by its CPUs, with `gpus` one."""
    cpus: float = keyless(1.0, gt=0)
    """CPUs of one worker of the pool."""
    memory: int = keyless(4 << 30, ge=1 << 30)
    """Bytes of memory of one worker."""


@dataclass
class Seen:
    """The grid's frames of one video: the embedding of each that is on screen at a time of the grid, and which times those are."""

    place: dict[int, int]  # number on the grid -> place in `embedded`
    embedded: np.ndarray  # float32, shape (n, width)
    length_s: float  # of the video, as the container claims it; infinity where it does not


class Alignment(Stage):
    """Columns to drop by, and by option a shift. A clip of a video that cannot be read gets nulls; `frames` says why.

    It stands between download and frames, since only there a video is at hand. What is fetched therefore goes by the caption and the model
    too: another model fetches the videos anew.
    """

    name = "alignment"
    version = 2
    reads = {
        "video": Column(pa.string(), "path of the video file on this machine", stored=False),
        "start_s": Column(pa.float64(), "where the segment begins, in seconds of the video"),
        "end_s": Column(pa.float64(), "where it ends"),
        "caption": Column(pa.string(), "what is said in it; null is taken for an empty text"),
    }
    adds = {
        "offset_s": Column(pa.float32(), "seconds from the speech to the frames that fit it best; below 0: shown before it is said"),
        "alignability": Column(pa.float32(), "the greatest similarity of text and frames at any offset, -1 to 1"),
        "offset_gain": Column(pa.float32(), "similarity at offset_s less that at offset 0; null where that has none"),
        "shift_s": Column(pa.float32(), "seconds by which the clip's frames are shifted: offset_s, or 0 where it stays"),
        "offset_similarities": Column(pa.list_(pa.float32()), "at each offset, rising; null where the video has no frame there"),
    }

    class Config(Options):
        pass

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.choice = Choice(self.config.model, self.config.pretrained, self.config.precision)
        self.version = Alignment.version + self.choice.version  # type: ignore[misc]
        self.files = self.choice.files()
        workers = self.config.workers or (1 if self.config.gpus else None)
        self.resources = Resources(self.config.cpus, self.config.gpus, self.config.memory, workers)

    @property
    def demonstration(self) -> str | None:
        """What has to be said of the figures in every output, where the model is a stand-in."""
        return self.choice.demonstration

    def check_ready(self) -> None:
        """Raises UserError for what is missing: the extras, the model's name, its weights."""
        with _told():
            self.choice.check()
        require(self.name)

    def open(self) -> None:
        self.check_ready()
        with _told():
            self.towers = Towers(self.choice, self.config.gpus, max(1, round(self.config.cpus)))

    def close(self) -> None:
        self.towers.close()

    def __call__(self, table: pa.Table) -> pa.Table:
        return in_order(table, self.pieces(table, lambda: None))

    def pieces(self, table: pa.Table, goes_on: Callable[[], None]) -> Iterator[pa.Table]:
        """As `__call__`, a video after the other."""
        yield from by_video(table, lambda path, rows: self._aligned(path, rows, goes_on))

    def _aligned(self, path: str, table: pa.Table, goes_on: Callable[[], None]) -> pa.Table:
        """The rows of one video."""
        captions = table["caption"].fill_null("").to_pylist()
        placed = [(n, start, end) for n, (start, end) in enumerate(spans(table))]
        clips = [(n, (start, end), captions[n]) for n, start, end in placed if start is not None and end is not None and 0 <= start < end]
        curves: list[np.ndarray | None] = [None] * len(table)
        try:
            with Video(path, self.config.max_pixels, goes_on=goes_on) as video:
                most = (video.duration_s() or float("inf")) + FAR_S
                clips = [clip for clip in clips if clip[1][1] <= most]
                for (n, _, _), curve in zip(clips, self._curves(video, clips), strict=True):
                    curves[n] = curve
        except UnreadableError:
            pass  # `frames` says why
        judged = [_judged(curve, self.config) for curve in curves]
        for place, (name, column) in enumerate(self.adds.items()):
            table = table.append_column(name, pa.array([values[place] for values in judged], column.type))
        return table

    def _curves(self, video: Video, clips: list[tuple[int, tuple[float, float], str]]) -> list[np.ndarray]:
        """Of each clip the similarity at each offset, NaN where there is none."""
        reach = floor(self.config.window_s / self.config.step_s + 1e-9)
        inner = [_inner(span, self.config.step_s) for _, span, _ in clips]
        wanted = sorted({number for first, last in inner for number in range(max(0, first - reach), last + reach + 1)})
        seen = self._seen(video, wanted)
        texts = [self.towers.embed_texts([text for _, _, text in clips[at : at + TEXTS]]) for at in range(0, len(clips), TEXTS)]
        both = zip(clips, inner, (text for some in texts for text in some), strict=True)
        return [self._curve(seen, span, ends, text, reach) for (_, span, _), ends, text in both]

    def _curve(self, seen: Seen, span: tuple[float, float], ends: tuple[int, int], text: np.ndarray, reach: int) -> np.ndarray:
        """float64, shape (2 reach + 1,)."""
        first, last = ends
        at = np.array([seen.place.get(number, -1) for number in range(first - reach, last + reach + 1)])
        values = np.where(at < 0, np.nan, seen.embedded[at] @ text) if len(seen.embedded) else np.full(len(at), np.nan)
        curve = np.convolve(values, np.full(last - first + 1, 1 / (last - first + 1)), "valid")
        shifts = np.arange(-reach, reach + 1) * self.config.step_s
        outside = (span[0] + shifts < 0) | (span[1] + shifts > seen.length_s + SLACK_S)
        curve[outside & (shifts != 0)] = np.nan
        return np.asarray(curve.round(DECIMALS))

    def _seen(self, video: Video, wanted: list[int]) -> Seen:
        """The embeddings of the frames at these numbers of the grid; a frame that stays for several of them is embedded once."""
        place: dict[int, int] = {}
        made: list[np.ndarray] = []
        waiting: list[Any] = []
        count = 0
        for found in video.shown([number * self.config.step_s for number in wanted]):
            if not isinstance(found, Shown):
                continue
            place |= {wanted[n]: count for n in found.wanted}
            count += 1
            waiting.append(self._pixels(video, found.frame))
            if len(waiting) == self.config.batch:
                made.append(self.towers.embed_images(waiting))
                waiting = []
                video.goes_on()
        if waiting or not made:
            made.append(self.towers.embed_images(waiting))
        return Seen(place, np.concatenate(made), video.duration_s() or float("inf"))

    def _pixels(self, video: Video, frame: Any) -> Any:
        """What the model takes of a frame: upright, square pixels, by its own transform."""
        from PIL import Image

        geometry = videopicture.geometry(video.stream, frame)
        size = geometry.size(frame.width, frame.height)
        plan = imageresize.plan(*size, SEEN, "keep_ratio", only_if_bigger=True)
        halved = videopicture.halvings(size, plan.scaled) if plan.shrinks else 0
        pixels = videopicture.pixels(frame, geometry, halved, video.converter)
        return self.towers.transform(Image.fromarray(imageresize.scale(pixels, plan.scaled, "area" if plan.shrinks else "linear")))


@contextmanager
def _told() -> Iterator[None]:
    """Faults of the model in the words of this stage's options."""
    try:
        yield
    except ModelError as err:
        raise UserError(f"stages.alignment{err.option and '.'}{err.option}: {err.text}") from err


def _inner(span: tuple[float, float], step: float) -> tuple[int, int]:
    """The first and last number of the grid within a span; of one between two of its times the nearest to its middle, twice."""
    first, last = ceil(span[0] / step - 1e-9), ceil(span[1] / step - 1e-9) - 1
    return (first, last) if first <= last else (middle := round(sum(span) / 2 / step), middle)


def _judged(curve: np.ndarray | None, config: Options) -> tuple[float | None, float | None, float | None, float, list[float | None] | None]:
    """Best offset, greatest similarity, gain over offset 0, shift, and the curve."""
    if curve is None or np.isnan(curve).all():
        return None, None, None, 0.0, None
    shifts = np.arange(len(curve)) - len(curve) // 2
    greatest = np.nanmax(curve)
    good = np.flatnonzero(curve >= greatest - config.tolerance)
    best = min(good.tolist(), key=lambda at: (abs(shifts[at]), -curve[at]))
    offset, here = float(shifts[best] * config.step_s), curve[len(curve) // 2]
    gain = None if np.isnan(here) else float(round(curve[best] - here, DECIMALS))
    shifted = config.shift_min_gain is not None and gain is not None and gain >= config.shift_min_gain
    values = [None if np.isnan(value) else value for value in curve.tolist()]
    return offset, float(greatest), gain, offset if shifted else 0.0, values
