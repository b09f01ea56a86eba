"""Generated videos whose every frame shows the time at which it comes on screen."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.sample import counter, film

WIDTH, HEIGHT = 320, 240


def picture(ms: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A moving gradient with the time in it."""
    y, x = np.mgrid[0:height, 0:width]
    plain = np.stack([(x + ms // 40) % 256, (y * 2) % 256, np.full_like(x, ms // 1000 % 256)], -1).astype(np.uint8)
    return counter.write(plain, ms)


def steady(seconds: float, fps: float) -> list[int]:
    return [round(1000 * n / fps) for n in range(int(seconds * fps))]


def uneven(seconds: float, seed: int = 1) -> list[int]:
    """Steps of 20 to 400 ms."""
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.integers(20, 400, int(seconds * 12)))
    return [0, *(int(t) for t in times if t < 1000 * seconds)]


@dataclass(frozen=True)
class Kind:
    """How a test video is made. `times`: ms of its frames after `shift_ms`, at which the file begins."""

    times: list[int]
    suffix: str = "mp4"
    codec: str = "libx264"
    options: tuple[tuple[str, str], ...] = (("g", "50"), ("bf", "0"))
    shift_ms: int = 0
    turn: int = 0
    audio_s: float = 0.0


H264 = (("g", "50"), ("bf", "3"))
KINDS = {
    "steady": Kind(steady(12, 25)),
    "steady_30000_1001": Kind(steady(12, 30000 / 1001), options=H264),
    "b_frames": Kind(steady(12, 25), options=H264),
    "open_gop": Kind(steady(12, 25), options=(*H264, ("x264-params", "open-gop=1:keyint=30:min-keyint=30:scenecut=0"))),
    "uneven": Kind(uneven(12), options=H264),
    "uneven_mkv": Kind(uneven(12, 2), "mkv", options=H264),
    "shifted_mkv": Kind(steady(12, 25), "mkv", options=H264, shift_ms=8333),
    "shifted_ts": Kind(steady(12, 25), "ts", options=H264, shift_ms=3_000),
    "turned_90": Kind(steady(6, 25), options=H264, turn=90),
    "turned_180": Kind(steady(6, 25), options=H264, turn=180),
    "turned_270": Kind(steady(6, 25), options=H264, turn=270),
    "hevc": Kind(steady(6, 25), codec="libx265", options=(("g", "25"), ("x265-params", "log-level=none"))),
    "vp9_webm": Kind(uneven(6, 3), "webm", codec="libvpx-vp9", options=(("g", "30"), ("cpu-used", "8"), ("deadline", "realtime"))),
    "av1_mkv": Kind(
        steady(6, 25), "mkv", codec="libsvtav1", options=(("preset", "8"), ("g", "50"), ("crf", "10"), ("svtav1-params", "enable-tf=0"))
    ),
    "mpeg4_avi": Kind(steady(6, 25), "avi", codec="mpeg4", options=(("g", "25"), ("bf", "0"), ("qscale", "2"))),
    "with_sound": Kind(uneven(6, 4), options=H264, audio_s=6.0),
}


def make(path: Path, kind: Kind, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    """Writes the video; each frame shows the ms since the file's beginning."""
    quarter = {0: 0, 90: 1, 180: 2, 270: 3}[kind.turn]

    def coded(ms: int) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(picture(ms, *size), quarter))

    film.write(path, ((ms + kind.shift_ms, coded(ms)) for ms in kind.times), kind.codec, dict(kind.options), audio_s=kind.audio_s)
    if kind.turn:
        film.turn(path, kind.turn)
    return path


def on_screen(times: Sequence[int], t_s: float) -> int:
    """The ms of the frame that is on screen at `t_s`, by its times alone."""
    return max(ms for ms in times if ms <= t_s * 1000 + 1e-6)


def read_jpeg(body: bytes) -> int | None:
    return counter.read(np.asarray(Image.open(io.BytesIO(body)).convert("RGB")))


Reader = Callable[[bytes], int | None]
