"""A decoded video frame as upright RGB pixels in the shape in which it is meant to be seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

LOWER_FIRST = (3, 4)  # of FFmpeg's AVFieldOrder: the lower field is shown first, in whatever order they are coded


@dataclass(frozen=True)
class Geometry:
    """How a video's frames are to be seen. `aspect`: width of a pixel by its height; `turn`: quarters of a turn, counter-clockwise;
    `field`: the first row of an interlaced frame's earlier field, 0 or 1."""

    aspect: float
    turn: int
    field: int = 0

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height, upright and with square pixels, of a frame as it is coded."""
        shape = (max(1, round(width * self.aspect)), height)
        return (shape[1], shape[0]) if self.turn % 2 else shape


def geometry(stream: Any, frame: Any) -> Geometry:
    """By the display matrix (rotations of other than quarter turns are taken for the nearest), the stream's pixel aspect and its order of
    fields."""
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    usual = aspect is not None and aspect > 0 and 0.1 <= aspect <= 10
    lower = frame.interlaced_frame and stream.codec_context.field_order in LOWER_FIRST
    return Geometry(float(aspect) if usual else 1.0, round(frame.rotation / 90) % 4, int(lower))


def halvings(size: tuple[int, int], to: tuple[int, int]) -> int:
    """How often, three times at most, a picture may be halved so that it is still no smaller than `to` (both width, height)."""
    return next((n for n in (3, 2, 1) if size[0] >> n >= to[0] and size[1] >> n >= to[1]), 0)


def pixels(frame: Any, geometry: Geometry, halved: int = 0, converter: Any = None) -> np.ndarray:
    """(height, width, 3) uint8, upright, pixels as they are coded (see Geometry.size for the size to show them in).

    `halved`: each side is halved so often on the way from YUV to RGB, by FFmpeg's area filter. `converter`: an av VideoReformatter,
    shared by the frames of a video, since setting one up costs as much as using it. Of an interlaced frame the earlier field alone is
    taken, since the other one is of a later moment.
    """
    convert = converter.reformat if converter is not None else type(frame).reformat
    if frame.interlaced_frame:
        array = convert(frame, format="rgb24").to_ndarray()[geometry.field :: 2]
    else:
        width, height = max(1, frame.width >> halved), max(1, frame.height >> halved)
        array = convert(frame, width=width, height=height, format="rgb24", interpolation="AREA").to_ndarray()
    return np.ascontiguousarray(np.rot90(array, geometry.turn))
