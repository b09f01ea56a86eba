"""What does not belong to a caption's sentence but was written into it: HTML, URLs, e-mail addresses, emoji.

All of it is found and removed by RE2 on whole arrays of cleaned text (entities are characters by then): linear in the bytes,
where a backtracking engine would be quadratic on what a stranger can write.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from stages.lib.text_chars import ranges_of, re2_class

Remnant = Literal["html", "url", "email", "emoji"]

# Elements of HTML 4 and 5 as they are found in alt texts. A closed list: "<PERSON>" of CC12M and "a < b > c" are no tags.
_INLINE = (
    "a|abbr|acronym|b|bdi|bdo|big|cite|code|del|dfn|em|font|i|ins|kbd|label|mark|nobr|q|s|samp|small|span|strike|strong|sub|sup|tt|u|var"
)
_BLOCK = (
    "address|article|aside|audio|blockquote|body|br|button|canvas|caption|center|col|colgroup|dd|details|div|dl|dt|embed|fieldset|"
    "figcaption|figure|footer|form|frame|frameset|h[1-6]|head|header|hr|html|iframe|img|input|legend|li|link|main|map|meta|nav|"
    "noscript|object|ol|optgroup|option|p|param|picture|pre|script|section|select|source|style|summary|svg|table|tbody|td|"
    "template|textarea|tfoot|th|thead|time|title|tr|ul|video|wbr"
)
_UNSEEN = r"(?is)<(?:script|style)(?:\s[^<>]*)?>.*?</(?:script|style)\s*>|<!--.*?-->"
# A caption cut in the middle of a tag: "</", "<a href='http:".
_CUT = rf"(?i)</(?:[a-z][a-z0-9]*)?$|<(?:{_INLINE}|{_BLOCK})\s[^<>]*=[^<>]*$"


def _tag(names: str) -> str:
    return rf"(?i)</?(?:{names})(?:\s[^<>]*|\s*/)?>"


URL = r"(?i)\b(?:(?:https?|ftp)://|www\.[a-z0-9-]+\.)[^\s<>\"]*[^\s<>\".,;:!?)\]']"
# Of regular-expressions.info, "How to Find or Validate an Email Address" ([A-Z0-9._%+-]+@[A-Z0-9.-]+\.[A-Z]{2,}), in all scripts.
EMAIL = r"[\p{L}\p{N}][\p{L}\p{N}._%+-]*@[\p{L}\p{N}-]+(?:\.[\p{L}\p{N}-]+)*\.\p{L}{2,}"


@lru_cache(maxsize=1)
def _emoji() -> str:
    """RE2: emoji as UTS #51 has them: what is shown as a picture by itself or by U+FE0F, keycaps, flags, tones, joined ones.

    Pictographs below U+2600 (©, ™, ↔) count with U+FE0F alone: they are text otherwise.
    """
    pictures = re2_class(ranges_of(r"[\p{Emoji_Presentation}[\p{Extended_Pictographic}--[\u0000-\u25FF]]]"))
    signs = re2_class(ranges_of(r"[\p{Emoji}--\p{Emoji_Presentation}]"))
    one = rf"(?:[{pictures}]\x{{fe0f}}?|[{signs}]\x{{fe0f}})[\x{{1f3fb}}-\x{{1f3ff}}]?[\x{{e0020}}-\x{{e007f}}]*"
    return rf"[0-9#*]\x{{fe0f}}?\x{{20e3}}|[\x{{1f1e6}}-\x{{1f1ff}}]{{1,2}}|{one}(?:\x{{200d}}{one})*|[\x{{1f3fb}}-\x{{1f3ff}}]"


def find(texts: pa.StringArray, what: Remnant) -> pa.BooleanArray:
    """True where a text holds such a remnant."""
    pattern = {"html": f"(?:{_UNSEEN})|(?:{_tag(_INLINE)})|(?:{_tag(_BLOCK)})|(?:{_CUT})", "url": URL, "email": EMAIL}.get(what) or _emoji()
    return pc.match_substring_regex(texts, pattern)


def remove(texts: pa.StringArray, what: Remnant) -> pa.StringArray:
    """The texts without such remnants, white space mended. Tags of phrases leave nothing ("H<sub>2</sub>O"), others a space."""
    found = find(texts, what)
    if not pc.any(found).as_py():
        return texts
    held = texts.filter(found)
    if what == "html":
        for pattern, by in ((_UNSEEN, " "), (_tag(_INLINE), ""), (_tag(_BLOCK), " "), (_CUT, "")):
            held = pc.replace_substring_regex(held, pattern, by)
    else:
        held = pc.replace_substring_regex(held, {"url": URL, "email": EMAIL}.get(what) or _emoji(), " ")
    held = pc.utf8_trim(pc.replace_substring_regex(held, " {2,}", " "), " ")
    return pc.replace_with_mask(texts, found, held)
