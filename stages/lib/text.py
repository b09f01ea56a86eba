"""Cleaning of a caption: entities, mojibake, invisible characters, Unicode form and white space; nothing that is a matter of taste.

`clean` says what is done; `clean_batch` gives the same for a whole Arrow array and calls it only for the texts that it could
change. Which of them those are is asked of RE2, so most captions never become Python strings. What a caption *says* (URLs,
tags, boilerplate) is left to text_remnants and text_boilerplate.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from functools import lru_cache

import ftfy
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import regex
from ftfy import chardata, fixes
from ftfy.badness import BADNESS_RE

from stages.lib.text_chars import BLANK, CONDITIONAL, INVISIBLE, SPACE, python_class, ranges_of, re2_class

ROUNDS = 3
MARKS = 30  # non-starters in a row, as in the Stream-Safe Text Format of UAX #15
MAX_SOURCE_CHARS = 100_000  # bounds the time and memory that one text can cost; the stage refuses longer ones unread

# Scripts in which ZERO WIDTH (NON-)JOINER changes how a word is written: cursive ones and those with conjuncts.
_JOINING = (
    r"\p{Arabic}\p{Syriac}\p{Nko}\p{Mongolian}\p{Devanagari}\p{Bengali}\p{Gurmukhi}\p{Gujarati}\p{Oriya}\p{Tamil}\p{Telugu}"
    r"\p{Kannada}\p{Malayalam}\p{Sinhala}\p{Khmer}\p{Myanmar}\p{Tibetan}\p{Javanese}\p{Balinese}"
)
_SELECTOR = r"\uFE00-\uFE0F\U000E0100-\U000E01EF"
# What CONDITIONAL characters are needed for, in this order: a non-joiner inside a word; a joiner after a letter (it may end a
# word: "ه‍"); a Mongolian vowel separator; a joiner between two emoji; one selector after a character; the flags of regions.
NEEDED = (
    rf"(?<=[{_JOINING}])\u200C(?=[{_JOINING}])|(?<=[{_JOINING}])\u200D|(?<=\p{{Mongolian}})\u180E(?=\p{{Mongolian}})"
    r"|(?<=[\p{Extended_Pictographic}\uFE0F\p{Emoji_Modifier}])\u200D(?=\p{Extended_Pictographic})"
    rf"|(?<=[^\s{_SELECTOR}])[{_SELECTOR}]"
    r"|(?<=\U0001F3F4)[\U000E0030-\U000E0039\U000E0061-\U000E007A]{2,6}\U000E007F"
)
_HIDDEN = regex.compile(rf"({NEEDED})|[{python_class((*INVISIBLE, *CONDITIONAL))}]")
_BLANK = re.compile(f"[{python_class(BLANK)}]")
_STACKED = regex.compile(rf"(\P{{ccc=0}}{{{MARKS}}})\P{{ccc=0}}+")
# What NFC may change or move: its quick check (UAX #15) says no or maybe, or the character combines.
_UNSTABLE = r"[\p{NFC_Quick_Check=No}\p{NFC_Quick_Check=Maybe}\P{ccc=0}]"

# RE2's \s and \w are ASCII's: where ftfy's pattern has them, supersets stand in.
_RE2_SUPERSET = {r"\s": r"[\s\v\x1c-\x1f\x85\p{Z}]", r"\w": r"[\w\x{80}-\x{10ffff}]"}


def clean(text: str, plain: bool = False) -> str:
    """The text with what a machine broke mended: at most three rounds of all steps, until nothing changes.

    HTML entities with a semicolon become characters (ftfy's rule: "this&not that" is no entity); UTF-16 surrogates become their
    character or U+FFFD; mojibake is decoded by ftfy; terminal escapes and invisible characters go, joiners and selectors stay
    where a script or an emoji needs them; at most 30 combining marks stand on a character (more make NFC quadratic: CPython issue
    149079); NFC; white space becomes single spaces, none at the ends. `plain` also straightens quotes, takes apart Latin
    ligatures and gives full- and half-width letters their common form, as ftfy does by default.
    """
    for _ in range(ROUNDS):
        before, text = text, _round(text, plain)
        if text == before:
            break
    return text


def _round(text: str, plain: bool) -> str:
    text = fixes.fix_surrogates(fixes.unescape_html(text))
    text = fixes.remove_terminal_escapes(ftfy.fix_encoding(text))
    if plain:
        text = fixes.uncurl_quotes(fixes.fix_character_width(fixes.fix_latin_ligatures(text)))
    text = _HIDDEN.sub(r"\1", _BLANK.sub(" ", text))
    text = unicodedata.normalize("NFC", _STACKED.sub(r"\1", text))
    return " ".join(text.split())


def clean_batch(texts: pa.StringArray, plain: bool = False) -> pa.StringArray:
    """`clean` of every text (valid UTF-8, no nulls); an array in which nothing changed is returned itself."""
    at = np.flatnonzero(pc.invert(settled(texts, plain)))
    if not len(at):
        return texts
    # A loop over rows: ftfy takes one text at a time.
    cleaned = pa.array([clean(text, plain) for text in texts.take(at).to_pylist()], pa.string())
    mask = np.zeros(len(texts), dtype=bool)
    mask[at] = True
    return pc.replace_with_mask(texts, pa.array(mask), cleaned)


def settled(texts: pa.StringArray, plain: bool = False) -> pa.BooleanArray:
    """True where `clean` would change nothing; false where it might."""
    suspect = pc.match_substring_regex(texts, _unsettled(plain))
    suspect = pc.or_(suspect, pc.match_substring_regex(texts, _mojibake()))
    at = np.flatnonzero(pc.and_not(pc.match_substring_regex(texts, _combining()), suspect))
    if not len(at):
        return pc.invert(suspect)
    out = ~suspect.to_numpy(zero_copy_only=False)
    # A loop over rows: unicodedata takes one text at a time, and alone knows the form that it gives.
    out[at] = [_composed(text) for text in texts.take(at).to_pylist()]
    return pa.array(out)


def _composed(text: str) -> bool:
    return _STACKED.search(text) is None and unicodedata.is_normalized("NFC", text)


@lru_cache(maxsize=2)
def _unsettled(plain: bool) -> str:
    """RE2: an entity, an invisible character, or white space that is not a single space between two words."""
    odd = re2_class((*INVISIBLE, *CONDITIONAL, *SPACE))
    if plain:  # ftfy's own classes and tables
        odd += "".join(quotes.pattern.strip("[]") for quotes in (chardata.SINGLE_QUOTE_RE, chardata.DOUBLE_QUOTE_RE))
        odd += re2_class((point, point) for point in (*chardata.LIGATURES, *chardata.WIDTH_MAP))
    return rf"&#?[0-9A-Za-z]{{1,24}};|[{odd}]|^ | $|  "


@lru_cache(maxsize=1)
def _combining() -> str:
    """RE2: a character that NFC may change or move."""
    return f"[{re2_class(ranges_of(_UNSTABLE))}]"


@lru_cache(maxsize=1)
def _mojibake() -> str:
    """RE2: a superset of ftfy's own test for text that may be mojibake, its verbose pattern written compactly."""
    out: list[str] = []
    for part in re.findall(r"\\.|\[(?:\\.|[^\]])*\]|#[^\n]*|\s+|.", BADNESS_RE.pattern, re.DOTALL):
        if not part.isspace() and not part.startswith("#"):
            out.append(_RE2_SUPERSET.get(part, part))
    return "".join(out)


def valid(texts: pa.StringArray) -> pa.StringArray:
    """The texts as valid UTF-8. Parquet and Arrow do not check strings: surrogates written one by one (CESU-8) are joined,
    a lone one and any other bad byte become U+FFFD."""
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        return pa.array([_decoded(raw) for raw in texts.cast(pa.binary()).to_pylist()], pa.string())
    return texts


def _decoded(raw: bytes) -> str:
    try:
        return str(fixes.fix_surrogates(codecs.decode(raw, "utf-8", "surrogatepass")))
    except UnicodeDecodeError:
        return codecs.decode(raw, "utf-8", "replace")
