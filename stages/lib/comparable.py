"""A caption as it is compared, never as it is stored: its normal form, the numbers in it, and whether its script has long words.

`normal` is NFKC, then case folding, then white space to single spaces, none at the ends.
"""

from __future__ import annotations

import re
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from stages.lib.shingles import Ragged

# Scripts whose words are one to three characters, mostly unspaced: Thai, Lao; Myanmar; Hangul; Khmer; kana and Han.
DENSE = (
    (0x0E00, 0x0F00), (0x1000, 0x10A0), (0x1100, 0x1200), (0x1780, 0x1800), (0x2E80, 0xA000), (0xA960, 0xA980),
    (0xAC00, 0xD800), (0xF900, 0xFB00), (0xFF65, 0xFFDD), (0x1B000, 0x1B170), (0x20000, 0x40000),
)  # fmt: skip
_EDGES = np.array(DENSE, dtype=np.uint32).ravel()
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def normal(text: str) -> str:
    """The normal form of one text."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def normal_batch(texts: pa.ChunkedArray | pa.Array) -> pa.StringArray:
    """`normal` of every text; a null is empty, bytes that are no UTF-8 become U+FFFD."""
    if isinstance(texts, pa.ChunkedArray):
        texts = pa.concat_arrays([pa.array([], pa.string()), *(chunk.cast(pa.string()) for chunk in texts.chunks)])
    texts = pc.fill_null(texts.cast(pa.string()), "")
    plain = pc.string_is_ascii(texts)
    out = pc.ascii_lower(pc.if_else(plain, texts, ""))
    odd = pc.match_substring_regex(out, r"[\x09-\x0d\x1c-\x1f]|^ | $|  ")
    if pc.any(odd).as_py():
        spaced = pc.ascii_trim(pc.replace_substring_regex(out, r"[\x09-\x0d\x1c-\x20]+", " "), " ")
        out = pc.if_else(odd, spaced, out)
    at = np.flatnonzero(pc.invert(plain))
    if not len(at):
        return out
    # A loop over rows: unicodedata takes one text at a time, and Arrow knows lower case but no case folding.
    slow = [normal(raw.decode("utf-8", "replace")) for raw in texts.take(at).cast(pa.binary()).to_pylist()]
    mask = np.zeros(len(texts), dtype=bool)
    mask[at] = True
    return pc.replace_with_mask(out, pa.array(mask), pa.array(slow, pa.string()))


def text_hashes(texts: pa.Array, seed: int = 0) -> np.ndarray:
    """xxh3_64 of each text's or binary's bytes, seeded: uint64."""
    digest = xxhash.xxh3_64_intdigest
    raw = texts.cast(pa.binary()).to_pylist()  # a loop over rows: the hash takes one text at a time
    return np.fromiter((digest(each, seed) for each in raw), dtype=np.uint64, count=len(raw))


def number_hashes(texts: pa.StringArray) -> np.ndarray:
    """uint64, equal for two normal forms that hold the same numbers, each as often, in any order; 0 where there is none."""
    out = np.zeros(len(texts), dtype=np.uint64)
    at = np.flatnonzero(pc.match_substring_regex(texts, r"\p{Nd}"))
    for row, text in zip(at.tolist(), texts.take(at).to_pylist(), strict=True):  # a loop over rows: a set of matches for each
        out[row] = xxhash.xxh3_64_intdigest(" ".join(sorted(_NUMBER.findall(text))).encode())
    return out


def dense_script(points: Ragged) -> np.ndarray:
    """True where at least half of a text's characters but spaces are of a script in `DENSE`: bool, shape (texts,)."""
    values = points.values
    if not len(values) or int(values.max()) < DENSE[0][0]:
        return np.zeros(len(points.offsets) - 1, dtype=bool)
    dense = _counts(np.searchsorted(_EDGES, values, side="right") % 2 == 1, points.offsets)
    inked = _counts(values != ord(" "), points.offsets)
    return (2 * dense >= inked) & (inked > 0)


def _counts(hits: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """How many of `hits` are true in each text."""
    total = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(hits, dtype=np.int64)])
    out: np.ndarray = total[offsets[1:]] - total[offsets[:-1]]
    return out
