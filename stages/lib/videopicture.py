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


def pixels(frame: Any, turn: int) -> np.ndarray:
    """(height, width, 3) uint8, upright, pixels as they are coded (see Geometry.size for the size to show them in).

    Of an interlaced frame the first field alone, since the second is another moment.
    """
    array: np.ndarray = frame.to_ndarray(format="rgb24")
    if frame.interlaced_frame and array.shape[0] > 1:
        array = array[::2]
    return np.ascontiguousarray(np.rot90(array, turn)) if turn else np.ascontiguousarray(array)
