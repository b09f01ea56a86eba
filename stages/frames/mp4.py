"""Frames with their times as an mp4 of its own, from 0 on, by the encoders that PyAV's wheel carries.

No frame refers to a later one and none is cut short, so the first frame is the first moment, and the file is as long as it is said to be.
x264's macroblock tree is off: it reads memory that nobody wrote (core 165), and the same frames would not always give the same bytes.
"""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any

import numpy as np

CLOCK = 90_000  # ticks a second: a time is at most 5.6 microseconds off
ENCODERS = {
    "h264": ("libx264", {"bf": "0", "x264-params": "mbtree=0"}),
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "6", "lag-in-frames": "0", "b": "0", "row-mt": "0"}),
}
BT601 = 6  # SMPTE 170M: by which RGB becomes YUV here


class Mp4:
    """A file in the making. `size`: width and height, both even."""

    def __init__(self, size: tuple[int, int], codec: str, quality: int, preset: str, fps: Fraction) -> None:
        import av

        name, options = ENCODERS[codec]
        own = {"crf": str(quality), **({"preset": preset} if codec == "h264" else {})}
        self.out = io.BytesIO()
        self.container: Any = av.open(self.out, "w", format="mp4", container_options={"fflags": "+bitexact"})
        self.stream: Any = self.container.add_stream(name, rate=fps, options={**options, **own})
        self.stream.width, self.stream.height = size
        self.stream.pix_fmt, self.stream.thread_count = "yuv420p", 1
        self.stream.time_base = self.stream.codec_context.time_base = Fraction(1, CLOCK)
        self.stream.codec_context.colorspace, self.stream.codec_context.color_range = BT601, 1
        self.waiting: Any = None  # the packet whose duration the next one's time decides
        self.frames, self.tick = 0, 0

    def add(self, frame: Any, at_s: Fraction) -> None:
        """`frame`: what `picture` made. Times rise; one at the very tick of the frame before it is left out."""
        tick = round(at_s * CLOCK)
        if self.frames and tick <= self.tick:
            return
        frame.pts, frame.time_base, frame.pict_type = tick, Fraction(1, CLOCK), 0
        self.tick = tick
        self.frames += 1
        self._mux(self.stream.encode(frame))

    def finish(self, end_s: Fraction) -> bytes:
        """The file, whose last frame stays until `end_s`."""
        self._mux(self.stream.encode(None))
        self.waiting.duration = max(1, round(end_s * CLOCK) - self.waiting.pts)
        self.container.mux(self.waiting)
        self.container.close()
        return self.out.getvalue()

    def drop(self) -> None:
        """Ends what will not be used."""
        self.container.close()

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            if self.waiting is not None:
                self.waiting.duration = packet.pts - self.waiting.pts
                self.container.mux(self.waiting)
            self.waiting = packet


def even_side(side: int) -> int:
    """How many of a side's pixels a film has; of a side of one there is no film."""
    return side - side % 2


def picture(pixels: np.ndarray) -> Any:
    """RGB pixels (height, width, 3) as a frame for `Mp4.add`, an odd last row or column left out."""
    import av

    height, width = pixels.shape[:2]
    even = np.ascontiguousarray(pixels[: even_side(height), : even_side(width)])
    return av.VideoFrame.from_ndarray(even, format="rgb24").reformat(format="yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG")
