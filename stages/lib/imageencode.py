"""Encodes 8-bit RGB pixels as JPEG, WebP or PNG; no metadata is written."""

from __future__ import annotations

from typing import Literal

import numpy as np

Format = Literal["jpg", "webp", "png"]
MAX_SIDE = {"jpg": 65_500, "webp": 16_383, "png": 1_000_000}
"""Pixels a side: libjpeg's and WebP's limits; of PNG, what OpenCV reads back by default."""


def encode(pixels: np.ndarray, form: Format, quality: int) -> bytes:
    """`pixels` (height, width, 3) uint8, C order. `quality`: 1 to 100; of png the compression, 0 to 9.

    JPEG has 4:2:0 chroma, OpenCV's default, as img2dataset's files do.
    """
    import cv2

    option = {  # JPEG not by TurboJPEG, which takes its fast, inexact DCT up to quality 95, and 2 dB with it
        "jpg": cv2.IMWRITE_JPEG_QUALITY,
        "webp": cv2.IMWRITE_WEBP_QUALITY,
        "png": cv2.IMWRITE_PNG_COMPRESSION,
    }[form]
    done, encoded = cv2.imencode(f".{form}", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [option, quality])
    if not done:
        raise ValueError(f"OpenCV could not encode {pixels.shape[1]} x {pixels.shape[0]} pixels as {form}")
    body: bytes = encoded.tobytes()
    return body
