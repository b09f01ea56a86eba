"""Blurs boxes (faces) with soft edges, as ImageNet's face obfuscation does: all of a picture by a tenth of the largest box's longer side.

img2dataset's blurrer means the same, but cuts its kernel off so early that the blur is about three times weaker. Here too: the work is
bounded (a wide blur is done on a reduced copy), and boxes that are no shares of the picture are refused; clipped, they would blur nothing.
"""

from __future__ import annotations

import json
import math

import numpy as np

Box = tuple[float, float, float, float]
MAX_BOXES = 1000
MAX_SIGMA = 16


def boxes(text: str | None) -> list[Box]:
    """Boxes (left, top, right, bottom; 0 to 1 of width and height) from JSON; empty for null. Raises ValueError for anything else."""
    if text is None:
        return []
    raw = json.loads(text)
    if raw is None:
        return []
    if not isinstance(raw, list) or len(raw) > MAX_BOXES:
        raise ValueError(f"not a list of at most {MAX_BOXES} boxes")
    return [_box(one) for one in raw]


def _box(raw: object) -> Box:
    if not isinstance(raw, list) or len(raw) != 4 or not all(isinstance(v, int | float) and -1 <= v <= 2 for v in raw):
        raise ValueError("a box is four numbers: left, top, right, bottom, as shares (0 to 1) of width and height")
    left, top, right, bottom = (min(1.0, max(0.0, float(v))) for v in raw)
    if left > right or top > bottom:
        raise ValueError("a box needs left <= right and top <= bottom")
    return left, top, right, bottom


def turned(found: list[Box], orientation: int) -> list[Box]:
    """Boxes of the picture as it is stored, in the picture as EXIF orientation 1 to 8 shows it."""
    return [_turned(box, orientation) for box in found]


def _turned(box: Box, orientation: int) -> Box:
    x0, y0, x1, y1 = box
    if orientation in (5, 6, 7, 8):
        x0, y0, x1, y1 = y0, x0, y1, x1
    if orientation in (2, 3, 6, 7):
        x0, x1 = 1 - x1, 1 - x0
    if orientation in (3, 4, 7, 8):
        y0, y1 = 1 - y1, 1 - y0
    return x0, y0, x1, y1


def blur(pixels: np.ndarray, found: list[Box]) -> np.ndarray:
    """`pixels` (height, width, 3) uint8 with every box, a tenth of its longer side wider all round, blurred."""
    import cv2

    if not found:
        return pixels
    height, width = pixels.shape[:2]
    mask = np.zeros((height, width), np.float32)
    longest = 0
    for left, top, right, bottom in found:
        x0, y0, x1, y1 = int(left * width), int(top * height), math.ceil(right * width), math.ceil(bottom * height)
        side = max(x1 - x0, y1 - y0)
        longest = max(longest, side)
        more = int(0.1 * side)
        mask[max(0, y0 - more) : y1 + more, max(0, x0 - more) : x1 + more] = 1
    sigma = max(0.5, 0.1 * longest)
    blurred, weight = _gauss(pixels, sigma), _gauss(mask, sigma)
    out: np.ndarray = cv2.blendLinear(pixels, blurred, 1 - weight, weight)
    return out


def _gauss(values: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian blur of `sigma` pixels; a wide one on a copy so small that there it has at most MAX_SIGMA."""
    import cv2

    factor = math.ceil(sigma / MAX_SIGMA)
    height, width = values.shape[:2]
    if factor > 1:
        values = cv2.resize(values, (max(1, width // factor), max(1, height // factor)), interpolation=cv2.INTER_AREA)
    out: np.ndarray = cv2.GaussianBlur(values, (0, 0), sigma / factor)
    return cv2.resize(out, (width, height), interpolation=cv2.INTER_LINEAR) if factor > 1 else out
