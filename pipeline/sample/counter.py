"""A time that machines read, written into a picture as black and white cells: two rows of sixteen at the bottom of its middle square.

So it outlives a centre crop, scaling and lossy codecs. 26 bits of milliseconds (18 hours), most significant first, then 6 bits of
milliseconds modulo 61 by which a misread one is known.
"""

from __future__ import annotations

import numpy as np

COLUMNS, ROWS, BITS, CHECK = 16, 2, 26, 61
DARK, LIGHT = 16, 235


def write(picture: np.ndarray, ms: int) -> np.ndarray:
    """A copy of `picture` (height, width, 3; the shorter side at least 64) that shows `ms`. Raises ValueError for a time beyond 26 bits."""
    if not 0 <= ms < 1 << BITS:
        raise ValueError(f"{ms} ms cannot be shown: it is not within 0 .. {(1 << BITS) - 1}")
    out = picture.copy()
    number = ms << 6 | ms % CHECK
    bits = np.array([number >> n & 1 for n in range(31, -1, -1)], np.uint8).reshape(ROWS, COLUMNS)
    square, left, top = _square(out.shape)
    edges = [round(n * square / COLUMNS) for n in range(COLUMNS + 1)]
    for row in range(ROWS):
        y0, y1 = (top + edges[COLUMNS - ROWS + row], top + edges[COLUMNS - ROWS + row + 1])
        for column in range(COLUMNS):
            out[y0:y1, left + edges[column] : left + edges[column + 1]] = LIGHT if bits[row, column] else DARK
    return out


def read(picture: np.ndarray) -> int | None:
    """The milliseconds that a picture shows, None where its cells are no such time."""
    square, left, top = _square(picture.shape)
    cell = square / COLUMNS
    number = 0
    for row in range(ROWS):
        for column in range(COLUMNS):
            y, x = top + (COLUMNS - ROWS + row + 0.5) * cell, left + (column + 0.5) * cell
            reach = max(1, int(cell / 5))
            inner = picture[int(y) - reach : int(y) + reach + 1, int(x) - reach : int(x) + reach + 1]
            number = number << 1 | int(inner.mean() > (DARK + LIGHT) / 2)
    ms = number >> 6
    return ms if number & 63 == ms % CHECK else None


def _square(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Side, left and top of the middle square."""
    height, width = shape[:2]
    side = min(height, width)
    return side, (width - side) // 2, (height - side) // 2
