"""A decoded video frame as upright RGB pixels in the shape in which it is meant to be seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Geometry:
    """How a video's frames are to be seen. `aspect`: width of a pixel by its height; `turn`: quarters of a turn, counter-clockwise."""

    aspect: float
    turn: int

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height, upright and with square pixels, of a frame as it is coded."""
        shape = (max(1, round(width * self.aspect)), height)
        return (shape[1], shape[0]) if self.turn % 2 else shape


def geometry(stream: Any, frame: Any) -> Geometry:
    """By the display matrix (rotations of other than quarter turns are taken for the nearest) and the stream's pixel aspect."""
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    usual = aspect is not None and aspect > 0 and 0.1 <= aspect <= 10
    return Geometry(float(aspect) if usual else 1.0, round(frame.rotation / 90) % 4)


def halvings(size: tuple[int, int], to: tuple[int, int]) -> int:
    """How often, three times at most, a picture may be halved so that it is still no smaller than `to` (both width, height)."""
    return next((n for n in (3, 2, 1) if size[0] >> n >= to[0] and size[1] >> n >= to[1]), 0)


def pixels(frame: Any, turn: int, halved: int = 0, converter: Any = None) -> np.ndarray:
    """(height, width, 3) uint8, upright, pixels as they are coded (see Geometry.size for the size to show them in).

    `halved`: each side is halved so often on the way from YUV to RGB, by FFmpeg's area filter. `converter`: an av VideoReformatter,
    shared by the frames of a video, since setting one up costs as much as using it. Of an interlaced frame the upper field alone is
    taken, since the lower one is another moment.
    """
    convert = converter.reformat if converter is not None else type(frame).reformat
    if frame.interlaced_frame:
        array = convert(frame, format="rgb24").to_ndarray()[::2]
    else:
        width, height = max(1, frame.width >> halved), max(1, frame.height >> halved)
        array = convert(frame, width=width, height=height, format="rgb24", interpolation="AREA").to_ndarray()
    return np.ascontiguousarray(np.rot90(array, turn)) if turn else np.ascontiguousarray(array)
