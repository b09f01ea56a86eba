"""Perceptual hash of a picture, and whether it is of nearly one colour.

The hash is `imagehash.phash(hash_size=8, highfreq_factor=4)` of ImageHash 4.3: luminance, 32 x 32 by LANCZOS, DCT-II over columns then
rows, the 8 x 8 lowest frequencies with the constant one, bit = value > median, rows first, most significant bit first. The picture is
averaged before LANCZOS, so that a few bits may differ from imagehash's.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

ALGORITHM = "imagehash.phash-8"
ENOUGH = 96
"""Pixels of the shorter side, three for each grey level: a picture averaged down to as much has the same hash, but for a few bits."""
FLAT_DEVIATION = 2.0
"""Grey levels (0 to 255). Below it the bits are rounding and noise; docs/guide/images.md has the measurement."""


def luminance(pixels: np.ndarray) -> np.ndarray:
    """`pixels` (height, width, 3) uint8 RGB as 32 x 32 uint8 grey levels."""
    import cv2  # its grey is Pillow's but for roundings, at half the time and a third of the memory

    grey = Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))
    return np.asarray(grey.resize((32, 32), Image.Resampling.LANCZOS, reducing_gap=3.0))


def flat(greys: np.ndarray) -> np.ndarray:
    """bool[n]: True where the standard deviation of `greys` (n, 32, 32) uint8 is under FLAT_DEVIATION."""
    out: np.ndarray = greys.std(axis=(1, 2)) < FLAT_DEVIATION
    return out


def phash(greys: np.ndarray) -> list[str]:
    """16 lower-case hex digits of each of `greys` (n, 32, 32) uint8."""
    from scipy.fft import dct

    low = dct(dct(greys.astype(np.float64), axis=1), axis=2)[:, :8, :8].reshape(len(greys), 64)
    bits = np.packbits(low > np.median(low, axis=1, keepdims=True), axis=1)
    return [row.tobytes().hex() for row in bits]
