"""Jaccard similarity, |A ∩ B| / |A ∪ B|, of many pairs of sets at once; the true one, not an estimate."""

from __future__ import annotations

import numpy as np

from stages.lib.shingles import Ragged

ELEMENTS = 1 << 21  # of both sets of the pairs that are compared at a time: 16 MB
BITS = 1024  # of a set's bitmap; a caption has some 60 shingles
ROWS = 1 << 14  # sets or pairs whose bitmaps are held unpacked or joined at a time


def similar(sets: Ragged, a: np.ndarray, b: np.ndarray, least: float) -> np.ndarray:
    """True for the pairs of sets (indices a and b, shape (pairs,)) of at least this similarity, `least` > 0.

    `sets` (uint64, values spread evenly) may repeat values. Bitmaps bound the similarity from above, which settles most pairs at
    a tenth of the cost; what is left is counted.
    """
    out = _bounds(sets, a, b) >= least
    left = np.flatnonzero(out)
    needed, at = np.unique(np.concatenate([a[left], b[left]]), return_inverse=True)
    out[left] = jaccard(sets.take(needed), at[: len(left)], at[len(left) :]) >= least
    return out


def jaccard(sets: Ragged, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The similarity of the sets at `a` and `b`: float64, shape (pairs,), 0 where both are empty."""
    distinct = _distinct(sets)
    lengths = distinct.lengths
    ends = np.cumsum(lengths[a] + lengths[b])
    out = np.zeros(len(a))
    start = 0
    while start < len(a):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + ELEMENTS, side="right")))
        out[start:stop] = _counted(distinct, a[start:stop], b[start:stop])
        start = stop
    return out


def _bounds(sets: Ragged, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """At least the similarity of each pair.

    Each shared value sets a bit in both bitmaps, so there are at most as many shared values as shared bits and values of one
    set that found their bit taken.
    """
    maps = _bitmaps(sets)
    bits = np.bitwise_count(maps).sum(axis=1, dtype=np.int64)
    taken = sets.lengths - bits
    common = np.empty(len(a), dtype=np.int64)
    for start in range(0, len(a), ROWS):
        pairs = slice(start, start + ROWS)
        common[pairs] = np.bitwise_count(maps[a[pairs]] & maps[b[pairs]]).sum(axis=1, dtype=np.int64)
    common += np.minimum(taken[a], taken[b])
    return np.asarray(common / np.maximum(bits[a] + bits[b] - common, 1))


def _bitmaps(sets: Ragged) -> np.ndarray:
    """uint64, shape (sets, BITS / 64): a bit for each value, by its highest bits."""
    n = len(sets.offsets) - 1
    bit = (sets.values >> np.uint64(54)).astype(np.int64)
    out = np.empty((n, BITS // 64), dtype=np.uint64)
    for start in range(0, n, ROWS):
        offsets = sets.offsets[start : min(start + ROWS, n) + 1]
        here = np.zeros((len(offsets) - 1, BITS), dtype=bool)
        here[np.repeat(np.arange(len(here)), np.diff(offsets)), bit[offsets[0] : offsets[-1]]] = True
        out[start : start + len(here)] = np.packbits(here, axis=1).view(np.uint64)
    return out


def _distinct(sets: Ragged) -> Ragged:
    """Each set's different values, numbered from 0 over all sets."""
    _, number = np.unique(sets.values, return_inverse=True)
    owner = np.repeat(np.arange(len(sets.offsets) - 1), sets.lengths)
    both = np.sort((owner << 32) | number)  # numpy's unique would hash, at a third of the speed
    both = both[np.append(True, both[1:] != both[:-1])[: len(both)]]
    offsets = np.searchsorted(both >> 32, np.arange(len(sets.offsets)))
    return Ragged(both & 0xFFFFFFFF, offsets)


def _counted(sets: Ragged, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A value that stands twice in a pair's joined sets is in both."""
    pair = np.arange(len(a))
    left, right = sets.take(a), sets.take(b)
    joined = np.concatenate([(np.repeat(pair, left.lengths) << 32) | left.values, (np.repeat(pair, right.lengths) << 32) | right.values])
    joined.sort()
    twice = joined[1:][joined[1:] == joined[:-1]]
    common = np.bincount(twice >> 32, minlength=len(a))
    union = left.lengths + right.lengths - common
    return np.asarray(common / np.maximum(union, 1))
