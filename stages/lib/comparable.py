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
    odd = _oddly_spaced(out)
    if len(odd):
        spaced = pc.ascii_trim(pc.replace_substring_regex(out.take(odd), r"[\x09-\x0d\x1c-\x20]+", " "), " ")
        out = _replaced(out, odd, spaced)
    at = np.flatnonzero(pc.invert(plain))
    if not len(at):
        return out
    # A loop over rows: unicodedata takes one text at a time, and Arrow knows lower case but no case folding.
    slow = [normal(raw.decode("utf-8", "replace")) for raw in texts.take(at).cast(pa.binary()).to_pylist()]
    return _replaced(out, at, pa.array(slow, pa.string()))


def _replaced(texts: pa.StringArray, at: np.ndarray, by: pa.Array) -> pa.StringArray:
    mask = np.zeros(len(texts), dtype=bool)
    mask[at] = True
    return pc.replace_with_mask(texts, pa.array(mask), by)


def _oddly_spaced(texts: pa.StringArray) -> np.ndarray:
    """Indices of the texts that have white space but single spaces between others. Two regexes would take ten times as long."""
    data, offsets = utf8(texts)
    starts, ends = offsets[:-1][np.diff(offsets) > 0], offsets[1:][np.diff(offsets) > 0]
    space = data == ord(" ")
    odd = (data - np.uint8(9) < 5) | (data - np.uint8(28) < 4)
    odd[1:] |= space[1:] & space[:-1]
    odd[starts] |= space[starts]
    odd[ends - 1] |= space[ends - 1]
    return owners(odd, offsets)


def utf8(texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """The bytes (uint8) of all texts end to end, and offsets: those of text i are data[offsets[i]:offsets[i + 1]]."""
    if not len(texts):
        return np.zeros(0, dtype=np.uint8), np.zeros(1, dtype=np.int64)
    offsets = np.frombuffer(texts.buffers()[1], dtype="<i4", count=texts.offset + len(texts) + 1)[texts.offset :].astype(np.int64)
    data = np.frombuffer(texts.buffers()[2] or b"", dtype=np.uint8)[offsets[0] : offsets[-1]]
    return data, offsets - offsets[0]


def owners(hits: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Indices of the texts in which any of `hits` is true; quick where few are."""
    of_hit = np.searchsorted(offsets, np.flatnonzero(hits), side="right") - 1
    out: np.ndarray = of_hit[np.append(True, of_hit[1:] != of_hit[:-1])[: len(of_hit)]]
    return out


def text_hashes(texts: pa.Array, seed: int = 0) -> np.ndarray:
    """xxh3_64 of each text's or binary's bytes, seeded: uint64."""
    digest = xxhash.xxh3_64_intdigest
    raw = texts.cast(pa.binary()).to_pylist()  # a loop over rows: the hash takes one text at a time
    return np.fromiter((digest(each, seed) for each in raw), dtype=np.uint64, count=len(raw))


def number_hashes(texts: pa.StringArray) -> np.ndarray:
    """uint64, equal for two normal forms that hold the same numbers, each as often, in any order; 0 where there is none."""
    out = np.zeros(len(texts), dtype=np.uint64)
    data, offsets = utf8(texts)
    some = owners((data - np.uint8(ord("0")) < 10) | (data > 127), offsets)  # a regex over all would take longer than all else here
    at = some[np.flatnonzero(pc.match_substring_regex(texts.take(some), r"\p{Nd}"))]
    for row, text in zip(at.tolist(), texts.take(at).to_pylist(), strict=True):  # a loop over rows: a set of matches for each
        out[row] = xxhash.xxh3_64_intdigest(" ".join(sorted(_NUMBER.findall(text))).encode())
    return out


def dense_script(points: Ragged) -> np.ndarray:
    """True where at least half of a text's characters but spaces are of a script in `DENSE`: bool, shape (texts,)."""
    values = points.values
    out = np.zeros(len(points.offsets) - 1, dtype=bool)
    some = owners(values >= DENSE[0][0], points.offsets)  # of Latin texts a quotation mark here and there
    if not len(some):
        return out
    points = points.take(some)
    dense = _counts(np.searchsorted(_EDGES, points.values, side="right") % 2 == 1, points.offsets)
    inked = _counts(points.values != ord(" "), points.offsets)
    out[some] = (2 * dense >= inked) & (inked > 0)
    return out


def _counts(hits: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """How many of `hits` are true in each text."""
    total = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(hits, dtype=np.int64)])
    out: np.ndarray = total[offsets[1:]] - total[offsets[:-1]]
    return out
