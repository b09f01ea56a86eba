"""Pairs of 64-bit hashes that differ in few bits, without comparing all: a multi-index.

The 64 bits are cut into k pieces. Of two hashes that differ in at most d bits at least k - d pieces agree, so they meet under one of
the C(k, k - d) keys that hold k - d pieces each. More pieces make more but longer keys, and so smaller buckets.
"""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pyarrow as pa

from stages.lib.mix import mix


def piece_masks(pieces: int, distance: int) -> np.ndarray:
    """uint64, shape (C(pieces, distance),): the bits that each key holds. `pieces` > `distance`."""
    cuts = np.linspace(0, 64, pieces + 1).astype(int)
    bits = [(1 << int(end)) - (1 << int(start)) for start, end in pairwise(cuts)]
    return np.array([sum(chosen) for chosen in combinations(bits, pieces - distance)], dtype=np.uint64)


def hamming_keys(hashes: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """uint64, shape (masks, hashes): equal where two hashes (uint64) agree in the bits of one mask."""
    return mix(masks[:, None], hashes[None, :] & masks[:, None])


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How many bits differ, pair by pair: 0 to 64."""
    out: np.ndarray = np.bitwise_count(a ^ b)
    return out


def parse_hashes(texts: pa.StringArray) -> np.ndarray:
    """uint64 of 16 hexadecimal digits each. Raises ValueError at any other text."""
    joined = "".join(texts.to_pylist())
    if len(joined) != 16 * len(texts):
        raise ValueError("a hash does not have 16 hexadecimal digits")
    return np.frombuffer(bytes.fromhex(joined), dtype=">u8").astype(np.uint64)
