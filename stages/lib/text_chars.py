"""Which characters a caption should not hold, and character classes written for Arrow's regular expressions (RE2).

RE2 runs over a whole batch in time linear in its bytes, whatever a stranger wrote; it knows scripts and general categories, but
not the other Unicode properties. Those are asked of the `regex` module, once, and handed to RE2 as a list of ranges.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import lru_cache

import regex

Ranges = tuple[tuple[int, int], ...]

# Seen as nothing, wanted by no script: controls that are no white space, soft hyphen, zero-width space, bidi marks and
# overrides, word joiner and invisible operators, BOM, interlinear marks, noncharacters, shorthand and music formatting, tags.
INVISIBLE: Ranges = (
    (0x00, 0x08), (0x0E, 0x1B), (0x7F, 0x84), (0x86, 0x9F), (0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C), (0x17B4, 0x17B5),
    (0x200B, 0x200B), (0x200E, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0xFDD0, 0xFDEF), (0xFEFF, 0xFEFF),
    (0xFFF0, 0xFFFC), (0xFFFE, 0xFFFF), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0000, 0xE00FF), (0xE01F0, 0xE0FFF),
    *((plane * 0x10000 + 0xFFFE, plane * 0x10000 + 0xFFFF) for plane in range(1, 17)),
)  # fmt: skip

# Seen as nothing, but some scripts and emoji are misspelt without them: kept where those stand beside them (text.NEEDED).
CONDITIONAL: Ranges = ((0x180E, 0x180E), (0x200C, 0x200D), (0xFE00, 0xFE0F), (0xE0100, 0xE01EF))

# White space but U+0020, as `str.split` has it, and three letters that print as a blank (Hangul fillers, empty Braille cell).
BLANK: Ranges = ((0x2800, 0x2800), (0x3164, 0x3164), (0xFFA0, 0xFFA0))
SPACE: Ranges = (
    (0x09, 0x0D), (0x1C, 0x1F), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029),
    (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), *BLANK,
)  # fmt: skip


def re2_class(ranges: Iterable[tuple[int, int]]) -> str:
    """The ranges as the inside of a character class of RE2."""
    return "".join(rf"\x{{{low:x}}}-\x{{{high:x}}}" for low, high in ranges)


def python_class(ranges: Iterable[tuple[int, int]]) -> str:
    """The ranges as the inside of a character class of `re` and `regex`."""
    return "".join(rf"\U{low:08x}-\U{high:08x}" for low, high in ranges)


@lru_cache(maxsize=8)
def ranges_of(character_class: str) -> Ranges:
    """The code points that a one-character pattern of the `regex` module (version 1) matches, surrogates left out: some 50 ms."""
    every = "".join(map(chr, (*range(0xD800), *range(0xE000, sys.maxunicode + 1))))
    found = (match.span() for match in regex.finditer(f"(?V1)(?:{character_class})+", every))
    return tuple((ord(every[start]), ord(every[end - 1])) for start, end in found)
