"""Shingles (n-grams of code points) of a whole Arrow array of texts, as hashes; no loop over texts.

A text of n or more characters has the shingles `text[i:i+n]`; a shorter one has one, the whole text; an empty one has none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

FNV32 = (np.uint32(0x811C9DC5), np.uint32(0x01000193))  # offset basis and prime of FNV-1a
FNV64 = (np.uint64(0xCBF29CE484222325), np.uint64(0x00000100000001B3))


@dataclass(frozen=True)
class Ragged:
    """Values of n texts end to end: those of text i are `values[offsets[i]:offsets[i + 1]]`; `offsets` int64, shape (n + 1,)."""

    values: np.ndarray
    offsets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def take(self, at: np.ndarray) -> Ragged:
        """The texts at these indices, in this order."""
        lengths = self.lengths[at]
        offsets = _offsets(lengths)
        where = np.repeat(self.offsets[:-1][at] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Ragged(self.values[where], offsets)


def shingles(text: str, n: int) -> set[str]:
    """The shingles of one text: what the hashes below are of."""
    return {text[i : i + n] for i in range(len(text) - n + 1)} or ({text} if text else set())


def shingle_hash(shingle: str) -> int:
    """32-bit hash of a shingle: FNV-1a with a code point in place of a byte. `hashfunc` for datasketch.MinHash (affine32)."""
    value, prime = int(FNV32[0]), int(FNV32[1])
    for character in shingle:
        value = ((value ^ ord(character)) * prime) & 0xFFFFFFFF
    return value


def code_points(texts: pa.StringArray) -> Ragged:
    """Code points (uint32) of texts that are valid UTF-8; a null counts as empty."""
    texts = pc.fill_null(texts, "")
    offsets = _offsets(pc.utf8_length(texts).to_numpy(zero_copy_only=False))
    ends = np.frombuffer(texts.buffers()[1], dtype="<i4", count=texts.offset + len(texts) + 1)[texts.offset :] if len(texts) else [0, 0]
    data = texts.buffers()[2]
    joined = data[int(ends[0]) : int(ends[-1])].to_pybytes() if data is not None and len(texts) else b""
    if len(joined) == offsets[-1]:  # ASCII alone
        return Ragged(np.frombuffer(joined, dtype=np.uint8).astype(np.uint32), offsets)
    return Ragged(np.frombuffer(joined.decode("utf-8").encode("utf-32-le"), dtype="<u4"), offsets)


def shingle_hashes(points: Ragged, n: int, bits: int = 32) -> Ragged:
    """Hashes of each text's shingles in their order, repeated ones repeated.

    `bits` 32: uint32, equal to `shingle_hash`. 64: uint64, the same with FNV's constants for 64 bits, for sets that are
    compared exactly (two of 10^5 shingles collide with probability below 10^-9).
    """
    basis, prime = FNV32 if bits == 32 else FNV64
    values, starts, ends, lengths = points.values.astype(basis.dtype), points.offsets[:-1], points.offsets[1:], points.lengths
    hashes = np.full(len(values), basis, dtype=basis.dtype)
    whole = []
    for k in range(min(n, len(values))):
        windows = hashes[: len(values) - k]
        windows ^= values[k:]
        windows *= prime
        if k + 1 < n:  # the next step goes on into the neighbour of a text that is this short
            at = starts[lengths == k + 1]
            whole.append((at, hashes[at]))
    wanted = np.ones(len(values), dtype=bool)
    for k in range(1, n):
        wanted[ends[lengths >= k] - k] = False
    for at, kept in whole:
        hashes[at] = kept
        wanted[at] = True
    return Ragged(hashes[wanted], _offsets(np.where(lengths >= n, lengths - n + 1, np.minimum(lengths, 1))))


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])
