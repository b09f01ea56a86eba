"""MinHash signatures of many sets at once, equal to those of `datasketch.MinHash(scheme="affine32")`, and LSH bands of them.

A value is min over the set of (a·fmix32(h) + b) mod 2^32: `a` odd, fmix32 the finalizer of MurmurHash3, a and b drawn as
datasketch 2 does. Two sets agree in a value with probability J, their Jaccard similarity; in all `rows` values of at least one
of `bands` bands with 1 - (1 - J^rows)^bands.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from stages.lib.mix import mix, mix64
from stages.lib.shingles import Ragged

EMPTY = np.uint32(0xFFFFFFFF)
BLOCK = 1 << 15  # hashes at a time: 128 KB, so that they and a permutation of them stay in the cache


@lru_cache(maxsize=4)
def permutations(num_perm: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The factors (odd) and summands of affine32: uint32, shape (num_perm,) each."""
    random = np.random.RandomState(seed)
    a = (2 * random.randint(0, 1 << 31, size=num_perm, dtype=np.uint64) + 1).astype(np.uint32)
    return a, random.randint(0, 1 << 32, size=num_perm, dtype=np.uint64).astype(np.uint32)


def signatures(hashes: Ragged, num_perm: int = 128, seed: int = 1) -> np.ndarray:
    """uint32, shape (num_perm, sets): one column a set of 32-bit hashes; a set without any has `EMPTY` everywhere."""
    a, b = permutations(num_perm, seed)
    out = np.full((num_perm, len(hashes.offsets) - 1), EMPTY, dtype=np.uint32)
    filled = np.flatnonzero(hashes.lengths)
    starts = np.append(hashes.offsets[filled], hashes.offsets[-1])
    mixed = fmix32(hashes.values)
    first = 0
    while first < len(filled):
        last = max(first + 1, int(np.searchsorted(starts, starts[first] + BLOCK, side="right")) - 1)
        block = mixed[starts[first] : starts[last]]
        cuts = starts[first:last] - starts[first]
        least = np.empty((num_perm, last - first), dtype=np.uint32)
        permuted = np.empty_like(block)
        for k in range(num_perm):
            np.multiply(block, a[k], out=permuted)
            np.add(permuted, b[k], out=permuted)
            np.minimum.reduceat(permuted, cuts, out=least[k])
        out[:, filled[first:last]] = least
        first = last
    return out


def fmix32(hashes: np.ndarray) -> np.ndarray:
    """MurmurHash3's finalizer for 32 bits: a bijection on uint32."""
    out: np.ndarray = hashes ^ (hashes >> np.uint32(16))
    out *= np.uint32(0x85EBCA6B)
    out ^= out >> np.uint32(13)
    out *= np.uint32(0xC2B2AE35)
    out ^= out >> np.uint32(16)
    return out


def band_keys(signed: np.ndarray, bands: int, rows: int, salt: np.ndarray) -> np.ndarray:
    """uint64, shape (bands, sets): equal where two sets agree in a band, in its number and in their `salt` (uint64, shape (sets,))."""
    out = np.empty((bands, signed.shape[1]), dtype=np.uint64)
    for band in range(bands):
        key = mix(np.uint64(band), salt)
        for k in range(band * rows, (band + 1) * rows):
            key = mix64(key + signed[k])
        out[band] = key
    return out


def recall(jaccard: float, bands: int, rows: int) -> float:
    """Probability that a pair of this similarity agrees in at least one band."""
    return float(1 - (1 - jaccard**rows) ** bands)


def choose_bands(threshold: float, num_perm: int, least: float = 0.98) -> tuple[int, int]:
    """(bands, rows): the longest bands, and so the fewest keys, that find `least` of the pairs at the threshold; else rows = 1.

    datasketch's own choice weighs false candidates against missed pairs and so misses more than half of those at the threshold.
    """
    fitting = [r for r in range(1, num_perm + 1) if recall(threshold, num_perm // r, r) >= least]
    rows = max(fitting, default=1)
    return num_perm // rows, rows
