"""Measures: words in scripts with and without spaces, shares, languages of real captions, CLIP's tokens."""

from __future__ import annotations

import importlib.util

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.lib import text_language
from stages.lib.text_measures import digit_share, letter_share, longest_run, repeated_words, words
from stages.lib.tokens import TokenCounter, _simple_tokenizer
from tests.stages.captions.conftest import fates, rows_of

WORDS = {
    "a brown dog's t-shirt": 4, "dog - cat & cow": 3, "  ": 0, "...": 0, "3.5 kg": 2, "don’t 50%": 2,
    "собака бежит": 2, "كلب أسود": 2, "कुत्ता दौड़ता है": 3, "강아지가 뛴다": 2, "αβγ δ": 2, "con chó nâu": 3,
    "一只狗": 3, "犬が走る": 4, "カメラ": 1, "新しいカメラ": 4, "コーヒー と ミルク": 3, "iPhone手机 黑色": 5, "一，二。": 2,
    "สุนัขวิ่งบนชายหาด": 3, "ສະບາຍດີ": 2, "ខ្មែរ": 1, "မြန်မာ": 1,
}  # fmt: skip


@pytest.mark.parametrize(("text", "count"), WORDS.items())
def test_words_of_all_scripts(text: str, count: int) -> None:
    assert words(pa.array([text])).to_pylist() == [count]


@given(st.lists(st.text("abc", min_size=1, max_size=5), max_size=20))
def test_words_between_spaces_are_what_split_gives(parts: list[str]) -> None:
    text = " ".join(parts)
    assert words(pa.array([text])).to_pylist() == [len(text.split())]
    expected = 1 - len({part.lower() for part in parts}) / len(parts) if parts else 0
    assert repeated_words(pa.array([text]))[0] == pytest.approx(expected)


@given(st.lists(st.text("ab é中👨", max_size=12), max_size=6))
def test_runs_are_each_texts_own(texts: list[str]) -> None:
    """Against a plain loop; a run does not go on into the next text of the batch."""

    def longest(text: str) -> int:
        best = run = 0
        for before, now in zip(" " + text, text, strict=False):
            run = run + 1 if now == before and now != " " else int(now != " ")
            best = max(best, run)
        return best

    assert longest_run(pa.array(texts, pa.string())).tolist() == [longest(text) for text in texts]


def test_shares() -> None:
    texts = pa.array(["ab 12", "", "कुत्ता", "٣٤", "a1!?", "½"])
    np.testing.assert_allclose(letter_share(texts), [0.5, 0, 1, 0, 0.25, 0])
    np.testing.assert_allclose(digit_share(texts), [0.5, 0, 0, 1, 0.25, 1])


def test_languages_of_real_captions(by_language: dict[str, list[str]]) -> None:
    """Shares of captions that keep their language, in each of fifteen; Indonesian is often called Malay."""
    least = {"id": 0.8}
    shares = {}
    for language, texts in by_language.items():
        got = fates(list(texts[:400]), languages=[language], min_chars=1)
        shares[language] = got.count("kept") / len(got)
    assert {language: share for language, share in shares.items() if share < least.get(language, 0.97)} == {}


def test_other_languages_are_not_taken_for_english(by_language: dict[str, list[str]]) -> None:
    others = [text for language, texts in by_language.items() if language != "en" for text in texts[:100]]
    got = fates(others, languages=["en"], min_chars=1)
    assert got.count("kept") / len(got) < 0.005


def test_language_of_what_has_no_letters_is_null_and_scores_lie_between() -> None:
    rows = rows_of(
        ["12 34 !!", "", "🐶🐶🐶", "A dog runs along the beach", "一只狗在海滩上", "一只狗", "犬が走る"], min_chars=0, empty="keep"
    )
    assert [row["language"] for row in rows] == [None, None, None, "en", "zh", "zh", "ja"]
    assert all((row["language"] is None) == (row["language_score"] is None) for row in rows)
    assert all(0.1 <= row["language_score"] <= 1 for row in rows if row["language"])


def test_capitals_do_not_change_the_language(by_language: dict[str, list[str]]) -> None:
    texts = by_language["en"][:300]
    plain, loud = (rows_of([getattr(text, form)() for text in texts]) for form in ("lower", "upper"))
    assert [row["language"] for row in plain] == [row["language"] for row in loud]


def test_typographic_quotes_do_not_change_the_language(by_language: dict[str, list[str]]) -> None:
    texts = [f"it's {text}{end}" for text in by_language["en"][:100] for end in ("...", "")]
    plain, printed = (rows_of([t.replace("'", quote).replace("...", dots) for t in texts]) for quote, dots in (("'", "..."), ("’", "…")))
    assert [row["language"] for row in plain] == [row["language"] for row in printed]


def test_codes_and_their_aliases() -> None:
    assert text_language.wanted(["en", "iw", "zh", "NB"]) == {"en", "he", "zh", "wuu", "yue", "no", "nn"}
    with pytest.raises(ValueError, match="'klingon' is no language"):
        text_language.wanted(["klingon"])
    model = text_language.load()
    labels, scores = text_language.identify(model, pa.array(["a dog", "ein Hund läuft"]))
    assert set(labels.to_pylist()) <= text_language.LABELS
    assert scores.type == pa.float32()


has_clip = pytest.mark.skipif(
    importlib.util.find_spec("open_clip") is None or importlib.util.find_spec("torch") is None, reason="the extra clip is not installed"
)


@pytest.fixture(scope="module")
def counter() -> TokenCounter:
    return TokenCounter()


@has_clip
def test_tokens_are_open_clips(counter: TokenCounter, by_language: dict[str, list[str]], alt_texts: list[str]) -> None:
    """Against open_clip's own encode, on real captions of all languages, and what its own cleaning would change."""
    theirs = _simple_tokenizer()
    texts = [*alt_texts[:200], *(text for some in by_language.values() for text in some[:30])]
    texts += ["", "DOG's", "&amp; &lt;br&gt;", "“quotes” ﬁne", "a  b\u00a0c", "👨\u200d👩\u200d👧", "don't you'll", "it's 2024!!"]
    got = counter.count(pa.array(texts, pa.string()), enough=1000).to_pylist()
    assert got == [len(theirs.encode(text)) + 2 for text in texts]


@has_clip
def test_max_tokens_is_the_last_rule_and_counts_start_and_end() -> None:
    # "dog" is one token of CLIP's
    texts = [" ".join(["dog"] * n) for n in (75, 76)] + ["x", "w" * 90_000]
    rows = rows_of(list(texts), max_tokens=77, min_chars=2)
    assert [(row["fate"].removeprefix("captions:"), row["tokens"]) for row in rows[:3]] == [
        ("kept", 77),
        ("too_many_tokens", 78),
        ("too_short", None),
    ]
    assert rows[1]["detail"] == "78 tokens > 77"
    assert (rows[3]["fate"], rows[3]["tokens"]) == ("captions:too_many_tokens", None)
    assert all(row["tokens"] is None for row in rows_of(["a dog runs"]))
