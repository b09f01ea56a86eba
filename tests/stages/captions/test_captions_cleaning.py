"""Cleaning: what is mended, what is left alone, and that the fast way over a batch gives what the slow one gives."""

from __future__ import annotations

import html
import unicodedata

import pyarrow as pa
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from stages.lib.text import MARKS, clean, clean_batch, settled, valid

FAMILY = "👨\u200d👩\u200d👧"
PERSIAN = "می\u200cخواهم"  # a non-joiner that Persian is misspelt without
CASES = {
    "entities, once": ("Tom &amp; Jerry", "Tom & Jerry"),
    "entities, until nothing changes": ("Tom &amp;amp; &quot;Jerry&quot;", 'Tom & "Jerry"'),
    "entities by number": ("caf&#233; &#x2013; bar&nbsp;1", "café – bar 1"),
    "entities of characters that nobody sees": ("a&#8203;b&#x202e;c&#0;d", "abc\ufffdd"),
    "no entity without a semicolon": ("this&not that &copy", "this&not that &copy"),
    "mojibake": ("The dogâ€™s cafÃ© in ZÃ¼rich", "The dog’s café in Zürich"),
    "mojibake of Cyrillic": ("ÐŸÑ€Ð¸Ð²ÐµÑ‚, Ð¼Ð¸Ñ€", "Привет, мир"),
    "mojibake within entities": ("caf&Atilde;&copy;", "café"),
    "no mojibake": ("Ça va à São Paulo – €5 “quoted” naïve", "Ça va à São Paulo – €5 “quoted” naïve"),
    "controls": ("a\x00b\x07c\x1bd\x7fe", "abcde"),
    "terminal escapes": ("\x1b[31mred\x1b[0m dress", "red dress"),
    "bidi controls": ("\u202ereversed\u202c \u2066isolated\u2069 \u200fmark", "reversed isolated mark"),
    "invisible characters": ("soft\u00adhy\u200bphen \ufeffBOM w\u2060j", "softhyphen BOM wj"),
    "tags and noncharacters": ("x\U000e0041\U000e007fy\ufdd0z\U0001ffff", "xyz"),
    "white space": ("  a\tb\r\n\u00a0 c\u3000d\u2003e\u2028 ", "a b c d e"),
    "letters that print as nothing": ("a\u3164b\u2800c", "a b c"),
    "canonical composition": ("cafe\u0301 \u212b \uac00", "café Å 가"),
    "compatibility forms stay": ("ﬁne № ½ ①", "ﬁne № ½ ①"),
    "joined emoji": (f"a {FAMILY} ❤\ufe0f", f"a {FAMILY} ❤\ufe0f"),
    "a flag of a region": ("\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f", None),
    "a joiner between Latin letters": ("d\u200do\u200cg", "dog"),
    "a non-joiner of Persian": (PERSIAN, PERSIAN),
    "a joiner of Sinhala": ("ක\u0dca\u200dෂ", "ක\u0dca\u200dෂ"),
    "surrogates": ("a\ud83d\ude00b\ud800c", "a😀b\ufffdc"),
    "nothing": (" \u200b\x00 ", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_cleaning_does(name: str) -> None:
    text, expected = CASES[name]
    assert clean(text) == (text if expected is None else expected)


def test_typography_is_left_alone_unless_asked_for() -> None:
    text = "‘ﬁne’ “quotes” ＡＢＣ"
    assert clean(text) == text
    assert clean(text, plain=True) == "'fine' \"quotes\" ABC"


def test_too_many_marks_on_a_character_are_cut() -> None:
    """More would make normalisation take quadratic time."""
    assert clean("Z" + "\u0316\u0301" * 5000) == unicodedata.normalize("NFC", "Z" + ("\u0316\u0301" * 5000)[:MARKS])


# Characters among which what cleaning looks for is likely: entities, mojibake, joiners, marks, spaces, scripts of all kinds.
ALPHABET = st.one_of(
    st.sampled_from(list("ab &;#x0123456789ampltquo\t\n\u00a0\u200b\u200c\u200d\u202e\ufe0f\u0301\u0316\u0345\u1161\u11a8\u3164")),
    st.sampled_from(list("Ã©â€™Ð¸ÑŸ中あคकم가👨👩❤🏴éÅﬁＡ“’")),
    st.characters(exclude_categories=["Cs"]),
)
TEXTS = st.one_of(
    st.text(ALPHABET, max_size=30), st.lists(st.sampled_from(["&amp;", "&lt;", "amp;", "Ã©", "â€™", "e\u0301", " ", "x"])).map("".join)
)


@settings(max_examples=300)
@given(TEXTS, st.booleans())
@example("&amp;amp;lt;", False)
@example("\u0344\u0345\u1100\u1161\u11a8", False)
def test_cleaning_is_stable_and_leaves_nothing_that_it_removes(text: str, plain: bool) -> None:
    """What was cleaned needs no cleaning (but for texts that are escaped more often than there are rounds)."""
    assume(text.count(";") <= 3)
    once = clean(text, plain)
    assert once == " ".join(once.split())
    assert unicodedata.is_normalized("NFC", once)
    assert not any(unicodedata.category(character) == "Cc" for character in once)
    assert not set("\u200b\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\ufeff") & set(once)
    assert clean(once, plain) == once


@settings(max_examples=300)
@given(st.lists(TEXTS, max_size=6), st.booleans())
@example(["Z" + "\u0316" * (MARKS + 1)], False)
@example(["\u1100\u1161", "\u0bc6\u0bbe"], False)  # what NFC joins although no mark combines
@example(["\xdf\xbb\xf6 b"], False)  # mojibake by a letter after a sign alone
def test_a_batch_is_cleaned_as_its_texts_are(texts: list[str], plain: bool) -> None:
    array = pa.array(texts, pa.string())
    assert clean_batch(array, plain).to_pylist() == [clean(text, plain) for text in texts]


@pytest.mark.parametrize("plain", [False, True])
def test_every_character_takes_the_fast_way_only_where_nothing_changes(plain: bool) -> None:
    """All of Unicode, each character by itself between letters, at the beginning, and after an emoji: all of them side by side in long
    texts, and some alone, since of mojibake the whole text is judged."""
    points = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    for form in ("a{}b", "{}", "👨{}"):
        texts = [form.format(point) for point in points]
        fast = settled(pa.array(texts, pa.string()), plain).to_numpy(zero_copy_only=False)
        checked = [text for text, said in zip(texts, fast, strict=True) if said and not text.isascii()]
        for start in range(0, len(checked), 1000):
            assert clean(together := ",".join(checked[start : start + 1000]), plain) == together
        step = max(1, len(checked) // 15_000)
        assert all(clean(text, plain) == text for text in checked[::step])
    assert fast.mean() > 0.5


def test_real_captions_are_cleaned_the_same_both_ways(by_language: dict[str, list[str]], alt_texts: list[str]) -> None:
    """And stay as they are where they are clean: cleaning loses no letter of any language."""
    for texts in [*(texts[:300] for texts in by_language.values()), alt_texts[:600]]:
        batch = clean_batch(valid(pa.array(texts, pa.string()))).to_pylist()
        assert batch == [clean(text) for text in texts]
        assert clean_batch(pa.array(batch, pa.string())).to_pylist() == batch
    for texts in by_language.values():
        for text, cleaned in zip(texts, clean_batch(pa.array(texts, pa.string())).to_pylist(), strict=True):
            letters = [c for c in unicodedata.normalize("NFC", html.unescape(text)) if unicodedata.category(c)[0] in "LN" and c != "\u3164"]
            assert [c for c in cleaned if unicodedata.category(c)[0] in "LN"] == letters, (text, cleaned)


def test_strings_that_are_no_utf8_become_some() -> None:
    """Arrow does not check: lone surrogates as CESU-8 writes them, and bytes of Latin-1."""
    raw = pa.array([b"fine", b"\xed\xa0\xbd\xed\xb8\x80", b"\xed\xa0\xbdx", b"caf\xe9"], pa.binary())
    strings = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    assert valid(strings).to_pylist() == ["fine", "😀", "\ufffdx", "caf\ufffd"]
