"""True Jaccard similarity of many pairs of sets at once."""

from __future__ import annotations

import numpy as np

from stages.lib.shingles import Ragged

BLOCK = 1 << 21  # elements of both sets of the pairs that are compared at a time: 16 MB


def jaccard(sets: Ragged, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|A ∩ B| / |A ∪ B| of the sets at `a` and `b` (indices, shape (pairs,)): float64, 0 where both are empty.

    `sets` may repeat values; they are reduced to sets here.
    """
    distinct = _distinct(sets)
    lengths = distinct.lengths
    ends = np.cumsum(lengths[a] + lengths[b])
    out = np.zeros(len(a))
    start = 0
    while start < len(a):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + BLOCK, side="right")))
        out[start:stop] = _block(distinct, a[start:stop], b[start:stop])
        start = stop
    return out


def _distinct(sets: Ragged) -> Ragged:
    """Each set's different values, numbered from 0 over all sets."""
    _, number = np.unique(sets.values, return_inverse=True)
    owner = np.repeat(np.arange(len(sets.offsets) - 1), sets.lengths)
    both = np.sort((owner << 32) | number)  # numpy's unique would hash, at a third of the speed
    both = both[np.append(True, both[1:] != both[:-1])[: len(both)]]
    offsets = np.searchsorted(both >> 32, np.arange(len(sets.offsets)))
    return Ragged(both & 0xFFFFFFFF, offsets)


def _block(sets: Ragged, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A value that stands twice in a pair's joined sets is in both."""
    pair = np.arange(len(a))
    left, right = sets.take(a), sets.take(b)
    joined = np.concatenate([(np.repeat(pair, left.lengths) << 32) | left.values, (np.repeat(pair, right.lengths) << 32) | right.values])
    joined.sort()
    twice = joined[1:][joined[1:] == joined[:-1]]
    common = np.bincount(twice >> 32, minlength=len(a))
    union = left.lengths + right.lengths - common
    return np.asarray(common / np.maximum(union, 1))
