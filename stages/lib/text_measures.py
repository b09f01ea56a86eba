"""Measures of cleaned captions, for whole Arrow arrays: words, shares of letters and digits, repetition.

Cleaned means: white space is single U+0020. Length in characters is `pyarrow.compute.utf8_length`, tokens are in tokens.py.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_ONE_EACH = r"[\p{Han}\p{Hiragana}]"  # as UAX #29 without a dictionary: each its own word
_ONE_A_RUN = r"[\p{Katakana}ー]+"
# Scripts without spaces and with long words. Six code points a word is between what is printed of Thai (4 to 5) and of Khmer
# (1,110,809 code points in about 160,000 words: Bi and Taing, 2014): an estimate, for rules of "at least 3, at most 256 words".
_ONE_IN_SIX = r"[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]{1,6}"
_SPACED = r"[^ ]*[^\p{P}\p{S}\p{C}\p{M}\p{Z}\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}][^ ]*"
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"


def words(texts: pa.StringArray) -> pa.Int32Array:
    """Words of each text. In scripts with spaces: stretches between spaces that hold a letter or digit ("t-shirt" is one, "-"
    none), as the whitespace words of DataComp, CC12M and COYO but for lone punctuation. In those without: one for each Han
    character and hiragana, one for a run of katakana, one for each six code points, begun, of Thai, Lao, Khmer and Burmese."""
    count = pc.count_substring_regex(texts, _SPACED)
    unspaced = pc.match_substring_regex(texts, _UNSPACED)
    if pc.any(unspaced).as_py():
        held = texts.filter(unspaced)
        more = [pc.count_substring_regex(held, pattern) for pattern in (_ONE_EACH, _ONE_A_RUN, _ONE_IN_SIX)]
        total = pc.add(count.filter(unspaced), pc.add(more[0], pc.add(more[1], more[2])))
        count = pc.replace_with_mask(count, unspaced, total)
    return count


def letter_share(texts: pa.StringArray) -> np.ndarray:
    """Letters and combining marks per character that is no space, 0 to 1, float64; 0 for the empty text."""
    return _share(texts, r"[^\p{L}\p{M}]+")


def digit_share(texts: pa.StringArray) -> np.ndarray:
    """Digits and other numbers of all scripts per character that is no space, 0 to 1, float64; 0 for the empty text."""
    return _share(texts, r"\P{N}+")


def _share(texts: pa.StringArray, others: str) -> np.ndarray:
    these = _numpy(pc.utf8_length(pc.replace_substring_regex(texts, others, "")))
    visible = _numpy(pc.utf8_length(pc.replace_substring(texts, " ", "")))
    share: np.ndarray = these / np.maximum(visible, 1)
    return share


def longest_run(texts: pa.StringArray) -> np.ndarray:
    """Length of the longest run of one character other than space ("soooo" is 4), int64; 0 for the empty text."""
    lengths = _numpy(pc.utf8_length(texts)).astype(np.int64)
    out = np.zeros(len(texts), dtype=np.int64)
    codes = np.frombuffer("".join(texts.to_pylist()).encode("utf-32-le"), dtype=np.uint32)
    if not len(codes):
        return out
    row_of = np.repeat(np.arange(len(texts)), lengths)
    begins = np.flatnonzero(np.r_[True, (codes[1:] != codes[:-1]) | (row_of[1:] != row_of[:-1])])
    runs = np.diff(np.r_[begins, len(codes)])
    runs[codes[begins] == ord(" ")] = 0
    np.maximum.at(out, row_of[begins], runs)
    return out


def repeated_words(texts: pa.StringArray) -> np.ndarray:
    """Share of the words between spaces that stood in the text before, case and outer punctuation aside: 1 - distinct / all,
    0 to 1, float64. 0 for a single word, and so for whole sentences of scripts without spaces."""
    bare = pc.replace_substring_regex(pc.utf8_lower(texts), r"(^|[^\p{L}\p{N}])[\p{P}\p{S}]+|[\p{P}\p{S}]+([^\p{L}\p{N}]|$)", r"\1 \2")
    out = np.zeros(len(texts))
    # A loop over rows: distinct words of a row are a set, and Arrow has no set of a list's values.
    for row, text in enumerate(bare.to_pylist()):
        if found := text.split():
            out[row] = 1 - len(set(found)) / len(found)
    return out


def _numpy(values: pa.Array) -> np.ndarray:
    out: np.ndarray = values.to_numpy(zero_copy_only=False)
    return out
