"""A stored picture as a model's input: decoded, cropped and resized, augmented by random numbers of (seed, epoch, sample) alone.

libjpeg-turbo decodes, OpenCV resizes (area where it shrinks, else bicubic): the same pixels as Pillow's from JPEG, at less than half
the CPU. A picture that has the wanted size already is decoded in place and not resized. Everything stays uint8; the model
normalises on its device.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from pipeline.stage import Strict
from stages.lib.imagedecode import MARGIN, MAX_SCANS
from stages.lib.mix import mix

Resize = Literal["shortest", "longest", "squash", "crop"]
MAX_PIXELS = 89_478_485  # Pillow's own limit: beyond it, it warns of a decompression bomb
CAPTION, FLIP, JITTER, FACTORS, ORDER, GRAY, PLACE, CROP = 0, 1, 2, 3, 7, 8, 9, 11  # which draw decides what
CROP_TRIES = 10
DRAWS = CROP + 2 * CROP_TRIES


class BadSampleError(Exception):
    """Why a sample cannot be trained on."""


class Augment(Strict):
    """How a training picture is changed, anew in each epoch. The defaults are open_clip's."""

    scale: tuple[float, float] | None = Field((0.9, 1.0))
    """Random resized crop: least and largest share of the picture's area; null takes the whole picture by `resize`."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and largest width:height of that crop."""
    hflip: bool = False
    """Mirror every other picture. Off: captions name left and right, and letters."""
    color_jitter: tuple[float, float, float, float] | None = None
    """Most that brightness, contrast and saturation (as shares) and hue (of the circle, up to 0.5) change; null: not at all."""
    color_jitter_prob: float = Field(0.8, ge=0, le=1)
    """Share of pictures whose colours are changed, where `color_jitter` is given."""
    gray_scale_prob: float = Field(0.0, ge=0, le=1)
    """Share of pictures that lose their colours."""

    @field_validator("scale")
    @classmethod
    def _scale(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 < value[0] <= value[1] <= 1:
            raise ValueError("give the least and the largest share, above 0 and up to 1")
        return value

    @field_validator("ratio")
    @classmethod
    def _ratio(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] < math.inf:
            raise ValueError("give the least and the largest width:height, above 0")
        return value

    @field_validator("color_jitter")
    @classmethod
    def _color_jitter(cls, value: tuple[float, float, float, float] | None) -> tuple[float, float, float, float] | None:
        if value is not None and not (all(0 <= most < math.inf for most in value) and value[3] <= 0.5):
            raise ValueError("brightness, contrast and saturation are shares from 0 on, hue is 0 to 0.5")
        return value


def draws(seed: int, epoch: int, ids: Any) -> np.ndarray:
    """float64 in [0, 1), shape (len(ids), DRAWS): all random numbers of these samples in that epoch."""
    wide = np.asarray(ids, np.int64).astype(np.uint64)[:, None]
    key = np.asarray([[seed & ((1 << 64) - 1)]], np.uint64), np.asarray([[epoch]], np.uint64)  # arrays: they overflow in silence
    numbers = mix(*key, wide, np.arange(DRAWS, dtype=np.uint64)[None])
    return (numbers >> np.uint64(11)).astype(np.float64) * 2.0**-53


def picture(body: bytes, out: np.ndarray, draw: np.ndarray, augment: Augment | None, resize: Resize = "shortest") -> None:
    """Decodes `body` into `out` (height, width, 3) uint8 RGB. `draw`: the sample's row of `draws`. Raises BadSampleError."""
    source = _Source(body)
    width, height = source.size
    if augment is None or augment.scale is None:
        box, pad = _fixed(width, height, out.shape[1], out.shape[0], resize)
    else:
        box, pad = crop(width, height, augment.scale, augment.ratio, draw), None
    target = out if pad is None else out[pad[1] : pad[1] + pad[3], pad[0] : pad[0] + pad[2]]
    if pad is not None:
        out[:] = 0
    source.into(target, box)
    if augment is not None:
        _recolour(out, draw, augment)


def crop(width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], draw: np.ndarray) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a random resized crop: torchvision's RandomResizedCrop.get_params, on our random numbers."""
    low, high = np.log(ratio[0]), np.log(ratio[1])
    for at in range(CROP, CROP + 2 * CROP_TRIES, 2):
        area = width * height * (scale[0] + (scale[1] - scale[0]) * draw[at])
        aspect = float(np.exp(low + (high - low) * draw[at + 1]))
        w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            return int(draw[PLACE] * (width - w + 1)), int(draw[PLACE + 1] * (height - h + 1)), w, h
    shape = width / height
    w = width if shape <= ratio[1] else round(height * ratio[1])
    h = height if shape >= ratio[0] else round(width / ratio[0])
    return (width - w) // 2, (height - h) // 2, w, h


def _fixed(
    width: int, height: int, to_width: int, to_height: int, resize: Resize
) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int] | None]:
    """The part of the picture that is taken, and the place in the output that it fills (None: all of it). open_clip's modes.

    shortest (crop): the middle, scaled so that the shorter side fits; longest: all of it, black around; squash: all of it, distorted.
    """
    if resize == "squash":
        return (0, 0, width, height), None
    scales = to_width / width, to_height / height
    if resize == "longest":
        scale = min(scales)
        w, h = min(to_width, max(1, round(width * scale))), min(to_height, max(1, round(height * scale)))
        whole = w == to_width and h == to_height
        return (0, 0, width, height), None if whole else ((to_width - w) // 2, (to_height - h) // 2, w, h)
    scale = max(scales)
    w, h = min(width, max(1, round(to_width / scale))), min(height, max(1, round(to_height / scale)))
    return ((width - w) // 2, (height - h) // 2, w, h), None


class _Source:
    """An encoded picture whose size is known before its pixels are decoded. `size`: width, height. Raises BadSampleError."""

    def __init__(self, body: bytes) -> None:
        import simplejpeg

        self.body, self.jpeg = body, False
        self.image: Any = None  # Pillow's, where it decodes
        if body[:3] == b"\xff\xd8\xff":
            try:
                height, width, colours, _ = simplejpeg.decode_jpeg_header(body)
                self.size, self.jpeg = (width, height), colours in ("YCbCr", "Gray", "RGB")
            except ValueError:
                self.jpeg = False
        if not self.jpeg:
            self._open()
        if self.size[0] * self.size[1] > MAX_PIXELS:
            raise BadSampleError(f"{self.size[0]} x {self.size[1]} pixels > {MAX_PIXELS}")
        if self.jpeg and body.count(b"\xff\xda") > MAX_SCANS:
            raise BadSampleError(f"a JPEG of more than {MAX_SCANS} scans")

    def into(self, out: np.ndarray, box: tuple[int, int, int, int]) -> None:
        """The part `box` (left, top, width, height) of the picture, resized to `out`."""
        height, width = out.shape[:2]
        whole = box == (0, 0, *self.size) and self.size == (width, height)
        factor = next((f for f in (8, 4, 2) if box[2] >= f * MARGIN * width and box[3] >= f * MARGIN * height), 1) if self.jpeg else 1
        pixels, done = self._decoded(factor, out if whole and out.flags.c_contiguous else None)
        if done:
            return
        factor = max(1, round(self.size[0] / pixels.shape[1]))
        left, top = box[0] // factor, box[1] // factor
        part = pixels[top : top + -(-box[3] // factor), left : left + -(-box[2] // factor)]
        if part.shape == out.shape:
            out[:] = part
            return
        import cv2

        shrinks = part.shape[0] >= height and part.shape[1] >= width
        out[:] = cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)

    def _decoded(self, factor: int, out: np.ndarray | None) -> tuple[np.ndarray, bool]:
        """The pixels at 1/factor or in full, and whether they stand in `out` already."""
        if self.jpeg:
            import simplejpeg

            least = (-(-self.size[1] // factor), -(-self.size[0] // factor)) if factor > 1 else (0, 0)
            try:
                return simplejpeg.decode_jpeg(self.body, "RGB", min_height=least[0], min_width=least[1], buffer=out), out is not None
            except ValueError:
                self._open()  # Pillow forgives more (stray bytes between markers) and knows more ways of subsampling
        try:
            return np.asarray(self.image.convert("RGB")), False
        except Exception as err:  # strangers' bytes: decoders raise errors of every kind
            raise BadSampleError(f"undecodable: {type(err).__name__}: {' '.join(str(err).split())[:200]}") from err

    def _open(self) -> None:
        from PIL import Image

        try:
            self.image = Image.open(io.BytesIO(self.body))
            self.size = self.image.size
        except Exception as err:
            raise BadSampleError(f"undecodable: {type(err).__name__}") from err


def _recolour(out: np.ndarray, draw: np.ndarray, augment: Augment) -> None:
    """Flip, colour jitter and gray, in place, in open_clip's order."""
    if augment.hflip and draw[FLIP] < 0.5:
        out[:] = out[:, ::-1].copy()
    if augment.color_jitter is not None and draw[JITTER] < augment.color_jitter_prob:
        out[:] = _jittered(out, draw, augment.color_jitter)
    if draw[GRAY] < augment.gray_scale_prob:
        from PIL import Image

        out[:] = np.asarray(Image.fromarray(out).convert("L"))[:, :, None]


def _jittered(pixels: np.ndarray, draw: np.ndarray, most: Sequence[float]) -> np.ndarray:
    """torchvision's own adjustments, in an order and by factors that the draws choose, as its ColorJitter does."""
    from PIL import Image

    from stages.lib import torchvision_shim

    torchvision_shim.ensure()
    from torchvision.transforms import functional as change

    steps = (change.adjust_brightness, change.adjust_contrast, change.adjust_saturation, change.adjust_hue)
    image = Image.fromarray(pixels)
    order, rest = [], [0, 1, 2, 3]
    number = int(draw[ORDER] * 24)
    for base in (6, 2, 1, 1):
        order.append(rest.pop(number // base % len(rest)))
    for at in order:
        if most[at]:
            centre = 0.0 if at == 3 else 1.0
            low = centre - most[at] if at == 3 else max(0.0, centre - most[at])
            image = steps[at](image, low + (centre + most[at] - low) * float(draw[FACTORS + at]))
    return np.asarray(image)
