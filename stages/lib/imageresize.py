"""img2dataset's resize modes: which size, crop and border a picture gets, and the pixels.

Sizes are those of img2dataset 1.47 (its Resizer on albumentations 1.4): scale = size / side, each side rounded half to even, at least 1;
crop offsets are floored, of an odd number of border pixels the extra one goes to the bottom or the right.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stages.lib.imagedecode import MARGIN

Mode = Literal["no", "keep_ratio", "center_crop", "border", "keep_ratio_largest"]
Filter = Literal["nearest", "linear", "bilinear", "cubic", "bicubic", "area", "lanczos", "lanczos4"]
ENOUGH = {"area": MARGIN, "antialiased": 1.5}
"""The filters that look at every pixel, and how many of a reduced picture's pixels a side they want for each one that they make; with fewer
the result is visibly worse than the whole picture's (docs/performance.md)."""
RESIZER = threading.local()


@dataclass(frozen=True)
class Plan:
    """All in pixels, (width, height): the whole picture is scaled to `scaled`, then cropped or padded to `stored`."""

    scaled: tuple[int, int]
    stored: tuple[int, int]
    resizes: bool  # False: nothing is done at all
    shrinks: bool  # which of the two filters applies; a side that is `size` already does not shrink


def plan(width: int, height: int, size: int, mode: Mode, only_if_bigger: bool) -> Plan:
    """What becomes of a picture of `width` x `height` pixels. With `only_if_bigger`, one that needn't shrink stays just as it is."""
    side = min(width, height) if mode in ("keep_ratio", "center_crop") else max(width, height)
    shrinks = mode != "no" and side > size
    if mode == "no" or (only_if_bigger and not shrinks):
        return Plan((width, height), (width, height), False, False)
    scale = size / side
    scaled = max(1, round(width * scale)), max(1, round(height * scale))
    return Plan(scaled, (size, size) if mode in ("center_crop", "border") else scaled, True, shrinks)


def scale(
    pixels: np.ndarray, to: tuple[int, int], name: Filter | Literal["antialiased"], extent: tuple[float, float] | None = None
) -> np.ndarray:
    """`pixels` (height, width, 3) uint8 scaled to `to` (width, height) by OpenCV's filter of that name; lanczos is LANCZOS4.

    `antialiased` is Pillow's BICUBIC, which CLIP models are shown their pictures by: Catmull-Rom over all pixels that one of `to` covers.

    `extent` (width, height): how many pixels what is scaled spans, where these are less than one more or fewer (Decoded.extent); it must
    be at least ENOUGH times `to`. Without regard to it half a pixel of 801 would be a shift of up to a fifth of a pixel of 299: 2 dB.
    """
    import cv2

    if (pixels.shape[1], pixels.shape[0]) == to:
        return pixels
    if name == "antialiased":
        return _convolved(pixels, to, extent or (pixels.shape[1], pixels.shape[0]))
    flag = {
        "nearest": cv2.INTER_NEAREST,
        "linear": cv2.INTER_LINEAR,
        "bilinear": cv2.INTER_LINEAR,
        "cubic": cv2.INTER_CUBIC,
        "bicubic": cv2.INTER_CUBIC,
        "area": cv2.INTER_AREA,
        "lanczos": cv2.INTER_LANCZOS4,
        "lanczos4": cv2.INTER_LANCZOS4,
    }[name]
    if extent is None or extent == (pixels.shape[1], pixels.shape[0]):
        out: np.ndarray = cv2.resize(pixels, to, interpolation=flag)
    else:  # with factors in place of a size OpenCV takes them as they are
        out = cv2.resize(pixels, None, fx=to[0] / extent[0], fy=to[1] / extent[1], interpolation=flag)
    return out


def _convolved(pixels: np.ndarray, to: tuple[int, int], extent: tuple[float, float]) -> np.ndarray:
    """By fast_image_resize (Rust), whose result is the same on every processor. It keeps Python waiting while it works."""
    from cykooz_resizer import CropBox, FilterType, ImageData, PixelType, ResizeAlg, ResizeOptions, Resizer

    if not hasattr(RESIZER, "one"):
        RESIZER.one = Resizer()
    height, width = pixels.shape[:2]
    lacking = max(0, math.ceil(extent[1]) - height), max(0, math.ceil(extent[0]) - width)
    if any(lacking):
        pixels = np.pad(pixels, ((0, lacking[0]), (0, lacking[1]), (0, 0)), mode="edge")
        height, width = pixels.shape[:2]
    whole, made = ImageData(width, height, PixelType.U8x3, pixels.tobytes()), ImageData(*to, PixelType.U8x3)
    how = ResizeOptions(resize_alg=ResizeAlg.convolution(FilterType.catmull_rom), crop_box=CropBox(0, 0, *extent))
    RESIZER.one.resize(whole, made, how)
    return np.frombuffer(made.get_buffer(), np.uint8).reshape(to[1], to[0], 3)


def fit(pixels: np.ndarray, to: tuple[int, int]) -> np.ndarray:
    """The middle of `pixels` where it is larger than `to` (width, height), white around it where it is smaller."""
    height, width = pixels.shape[:2]
    if (width, height) == to:
        return pixels
    left, top = max(0, (width - to[0]) // 2), max(0, (height - to[1]) // 2)
    cut = pixels[top : top + to[1], left : left + to[0]]
    height, width = cut.shape[:2]
    if (width, height) == to:
        return np.ascontiguousarray(cut)
    out = np.full((to[1], to[0], 3), 255, np.uint8)
    left, top = (to[0] - width) // 2, (to[1] - height) // 2
    out[top : top + height, left : left + width] = cut
    return out
