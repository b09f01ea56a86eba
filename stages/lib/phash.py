"""Perceptual hash of a picture, and whether it is of nearly one colour.

The hash is `imagehash.phash(hash_size=8, highfreq_factor=4)` of ImageHash 4.3: luminance, 32 x 32 by LANCZOS, DCT-II over columns then
rows, the 8 x 8 lowest frequencies with the constant one, bit = value > median, rows first, most significant bit first. The picture is
reduced by whole factors before LANCZOS, so that at most a few bits differ from imagehash's.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

ALGORITHM = "imagehash.phash-8"
FLAT_DEVIATION = 2.0
"""Grey levels (0 to 255). Below it the bits are rounding and noise; docs/guide/images.md has the measurement."""


def luminance(pixels: np.ndarray) -> np.ndarray:
    """`pixels` (height, width, 3) uint8 RGB as 32 x 32 float64 grey levels, 0 to 255."""
    import cv2  # its grey is Pillow's but for roundings, at half the time and a third of the memory

    grey = Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))
    small = grey.resize((32, 32), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.asarray(small, dtype=np.float64)


def is_flat(grey: np.ndarray) -> bool:
    """True if the standard deviation of the 32 x 32 grey levels is under FLAT_DEVIATION."""
    return bool(grey.std() < FLAT_DEVIATION)


def phash(grey: np.ndarray) -> str:
    """16 lower-case hex digits of the 32 x 32 grey levels."""
    from scipy.fft import dct

    low = dct(dct(grey, axis=0), axis=1)[:8, :8]
    return np.packbits(low > np.median(low)).tobytes().hex()
