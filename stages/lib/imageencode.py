"""Encodes 8-bit RGB pixels as JPEG, WebP or PNG; no metadata is written."""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
from PIL import Image

Format = Literal["jpg", "webp", "png"]
MAX_SIDE = {"jpg": 65_500, "webp": 16_383, "png": 1_000_000}
"""Pixels a side: libjpeg's and WebP's limits; of PNG, what OpenCV reads back by default."""


def encode(pixels: np.ndarray, form: Format, quality: int) -> bytes:
    """`pixels` (height, width, 3) uint8, C order. `quality`: 1 to 100; of png the compression, 0 to 9.

    JPEG is written with 4:2:0 chroma, as OpenCV does by default, so that files are as large as img2dataset's.
    """
    if form == "jpg":  # by Pillow: TurboJPEG takes its fast, inexact DCT up to quality 95, and 2 dB with it
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "JPEG", quality=quality, subsampling="4:2:0")
        return out.getvalue()
    import cv2

    option = cv2.IMWRITE_WEBP_QUALITY if form == "webp" else cv2.IMWRITE_PNG_COMPRESSION
    done, encoded = cv2.imencode(f".{form}", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [option, quality])
    if not done:
        raise ValueError(f"OpenCV could not encode {pixels.shape[1]} x {pixels.shape[0]} pixels as {form}")
    body: bytes = encoded.tobytes()
    return body
