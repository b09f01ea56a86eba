"""Mixing of 64-bit integers in numpy: keys for the exchange are made of it."""

from __future__ import annotations

from typing import Any

import numpy as np


def mix64(values: Any) -> np.ndarray:
    """The finalizer of splitmix64, a bijection on uint64 that spreads every bit over all bits."""
    out = np.array(values, dtype=np.uint64)
    out ^= out >> np.uint64(30)
    out *= np.uint64(0xBF58476D1CE4E5B9)
    out ^= out >> np.uint64(27)
    out *= np.uint64(0x94D049BB133111EB)
    out ^= out >> np.uint64(31)
    return out


def mix(*parts: Any) -> np.ndarray:
    """One uint64 from several (arrays or scalars, broadcast), as likely to be equal for different ones as random numbers."""
    out = np.zeros((), dtype=np.uint64)
    for part in parts:
        out = mix64(out * np.uint64(0x9E3779B97F4A7C15) + np.asarray(part, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    return out
