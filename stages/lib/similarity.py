"""Jaccard similarity, |A ∩ B| / |A ∪ B|, of many pairs of sets at once; the true one, not an estimate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stages.lib.mix import mix64
from stages.lib.shingles import Ragged

if TYPE_CHECKING:
    from scipy.sparse import csr_array

ELEMENTS = 1 << 20  # of both sets of the pairs that are compared at a time: 25 MB
OWNERS = 1 << 14  # sets that are sorted at a time
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
    """The similarity of the sets at `a` and `b`: float64, shape (pairs,), 0 where both are empty.

    Sets are sorted rows of a sparse matrix, and scipy merges those of a pair.
    """
    matrix = _matrix(sets)
    size = np.diff(matrix.indptr)
    ends = np.cumsum(size[a] + size[b])
    common = np.zeros(len(a), dtype=np.int64)
    start = 0
    while start < len(a):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + ELEMENTS, side="right")))
        left, right = matrix[a[start:stop]], matrix[b[start:stop]]
        left.has_canonical_format = right.has_canonical_format = True  # which it would look for again
        common[start:stop] = np.diff(left.multiply(right).indptr)
        start = stop
    return np.asarray(common / np.maximum(size[a] + size[b] - common, 1))


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


def _matrix(sets: Ragged) -> csr_array:
    """A row a set, which has ones in the columns of its values; of a value's hash 48 bits count, so two of a pair of captions are taken
    for one with a probability below 10^-10."""
    from scipy.sparse import csr_array

    n = len(sets.offsets) - 1
    columns, sizes = [np.zeros(0, dtype=np.int64)], [np.zeros(1, dtype=np.int64)]
    for start in range(0, n, OWNERS):
        offsets = sets.offsets[start : min(start + OWNERS, n) + 1]
        owner = np.repeat(np.arange(len(offsets) - 1, dtype=np.uint64), np.diff(offsets))
        both = (owner << np.uint64(48)) | (mix64(sets.values[offsets[0] : offsets[-1]]) >> np.uint64(16))
        both.sort()
        both = both[np.append(True, both[1:] != both[:-1])[: len(both)]]
        columns.append((both & np.uint64((1 << 48) - 1)).view(np.int64))
        sizes.append(np.bincount((both >> np.uint64(48)).view(np.int64), minlength=len(offsets) - 1))
    joined = np.concatenate(columns)
    out = csr_array((np.ones(len(joined), dtype=np.int8), joined, np.cumsum(np.concatenate(sizes))), shape=(n, 1 << 48))
    out.has_canonical_format = True
    return out
