"""The rules: each fires on what it names and not on its neighbour, in the order of the reasons; and nothing is lost."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.captions import Captions
from tests.stages.captions.conftest import fates, rows_of

DOG = "a brown dog runs along the beach"

# reason: options, captions that it drops, their neighbours that stay
RULES: dict[str, tuple[dict[str, Any], list[str | None], list[str]]] = {
    "empty": ({"min_chars": 0}, [None, "", "  \u200b\u00a0", "<br/>", "<!-- nothing -->"], ["x", ".", "a < b"]),
    "contains_html": (
        {"html": "drop"},
        ["a <b>dog</b>", "dog &lt;br/&gt; cat", "a dog <a href='x", "<script>x</script>dog"],
        ["<PERSON> with a dog", "5 < 6 > 4", "I <3 dogs", "a dog -> a cat", "<Dog> tag"],
    ),
    "contains_url": (
        {"urls": "drop"},
        ["dog at https://a.test/x", "see www.dogs.example", "HTTP://A.TEST"],
        ["dog.com is a name", "http and https", "www is the web"],
    ),
    "contains_email": ({"emails": "drop"}, ["write to rex.dog+1@dogs.example", "ä@bücher.test"], ["rex @ dogs", "@rex_the_dog", "a@b"]),
    "contains_emoji": (
        {"emoji": "drop", "min_chars": 0},
        ["dog 🐶", "❤️ dogs", "👍🏽", "🇫🇷 flag", "1️⃣ dog"],
        ["dog © 2020", "dog™", "★ dog", "1 # dog *", "中文 dog", "→ dog ↔"],
    ),
    "boilerplate": (
        {"boilerplate": True},
        [
            "IMG_1234.JPG",
            "DSC00042",
            "image 1 of 12",
            "Click to enlarge",
            "stock photo",
            "Bild 3",
            "点击查看大图",
            "https://a.test/x.jpg",
            "2019-05-01",
            "1920x1080",
            "12345",
            "画像なし",
            "нажмите, чтобы увеличить",
            "[no image available]",
            "a1b2c3d4-1111-2222-3333-444455556666",
        ],
        [
            DOG,
            "image of a dog",
            "a stock photo of a dog",
            "photo 1 of the castle",
            "Click beetle on a leaf",
            "May 2019 in Paris",
            "一只狗",
            "Logo of the WWF",
        ],
    ),
    "too_short": ({"min_chars": 5}, ["dogs", "  a b  ", "犬と猫"], ["a dog", "犬と猫と鳥"]),
    "too_long": ({"max_chars": 10}, ["a dog & cat", "é" * 11], ["a dog &amp; cow"[:14], "e\u0301" * 10, "dog        cow"]),
    "too_few_words": ({"min_words": 3}, ["a dog", "a - dog !", "t-shirt red", "犬猫"], ["a dog runs", "犬と猫", "the t-shirt's red"]),
    "too_many_words": ({"max_words": 4}, ["a b c d e", "犬が走る中"], ["a b c d", "a – b – c – d", "犬が走る"]),
    "repeated_characters": ({"max_run": 4}, ["sooooo cute dog", "-----dog"], ["soooo cute", "a    b      c dog", "wwww dog"]),
    "repeated_words": (
        {"max_repeated_words": 0.4},
        ["dog dog, Dog! cat", "cheap cheap cheap"],
        ["dog dog, cat cow", "dogs cats", "一只狗一只狗"],
    ),
    "few_letters": ({"min_letters": 0.5}, ["*** $$$ dog", "12345 dog"], ["dog 123", "कुत्ता!", "犬 1"]),
    "many_digits": ({"max_digits": 0.3}, ["dog 12345", "٣٤٥ كلب"], ["a brown dog of 2019", "dog 1"]),
    "language": (
        {"languages": ["en"]},
        ["Ein brauner Hund läuft am Strand entlang", "一只棕色的狗在海滩上奔跑", "12345 !!", "собака бежит по пляжу"],
        [DOG, DOG.upper(), "Two men are talking in the street."],
    ),
}


@pytest.mark.parametrize("reason", RULES)
def test_a_rule_fires_on_what_it_names_and_not_on_its_neighbour(reason: str) -> None:
    options, dropped, kept = RULES[reason]
    assert dict(zip(dropped, fates(dropped, **{"min_chars": 1, **options}), strict=True)) == dict.fromkeys(dropped, reason)
    assert dict(zip(kept, fates(list(kept), **{"min_chars": 1, **options}), strict=True)) == dict.fromkeys(kept, "kept")


def test_every_reason_is_tried_here() -> None:
    assert set(RULES) | {"too_many_tokens"} == set(Captions.reasons)


def test_only_min_chars_and_empty_are_on_by_default() -> None:
    odd = ["<b>IMG_1234.JPG</b>", "aaaaaaaaaaaa", "12345", "https://a.test", "🐶🐶🐶🐶🐶", "dog dog dog", "ein Hund", "five5", "four", None]
    assert fates([*odd]) == ["kept"] * 8 + ["too_short", "empty"]


def test_the_first_rule_that_fires_names_the_fate_and_says_by_how_much() -> None:
    options = {"min_chars": 5, "min_words": 3, "max_digits": 0.2, "languages": ["en"], "html": "drop", "min_language_score": 0.3}
    rows = rows_of(["<i>x</i>", "ab", "a dogs", "dog 12345 67890 42", "ein brauner Hund am Strand"], **options)
    assert [(row["fate"].removeprefix("captions:"), row["detail"]) for row in rows[:4]] == [
        ("contains_html", None),
        ("too_short", "2 characters < 5"),
        ("too_few_words", "2 words < 3"),
        ("many_digits", "0.800 digits > 0.2"),
    ]
    assert rows[4]["fate"] == "captions:language"
    assert rows[4]["detail"].startswith("de ")


def test_what_is_removed_leaves_a_sentence() -> None:
    texts = [
        "H<sub>2</sub>O and<br>ice",
        "dog (https://a.test/x?y=1), happy",
        "mail me@a.test now",
        "a 👨\u200d👩\u200d👧 family ❤\ufe0f",
        "<style>p{}</style>dog",
    ]
    rows = rows_of(list(texts), urls="remove", emails="remove", emoji="remove", min_chars=1)
    assert [row["caption"] for row in rows] == ["H2O and ice", "dog ( ), happy", "mail now", "a family", "dog"]


def test_empty_captions_may_be_kept_past_all_rules() -> None:
    rows = rows_of([None, "", " ", "<p>", DOG], empty="keep", min_words=3, languages=["en"])
    assert [row["fate"] for row in rows] == ["kept", "kept", "captions:too_short", "captions:too_short", "kept"]


def test_a_text_of_endless_length_is_refused_unread() -> None:
    (row, kept) = rows_of(["x" * 100_001, "word " * 20_000])
    assert (row["fate"], row["detail"], row["caption"]) == ("captions:too_long", "100001 characters before cleaning > 100000", "")
    assert kept["fate"] == "kept"


def test_options_that_no_caption_could_pass_are_refused() -> None:
    for options in (
        {"min_chars": 9, "max_chars": 8},
        {"min_words": 3, "max_words": 2},
        {"languages": ["xx"]},
        {"unknown": 1},
        {"max_tokens": 2},
    ):
        with pytest.raises(ValueError, match=r"."):
            Captions.Config.model_validate(options)


@settings(max_examples=25)
@given(st.lists(st.one_of(st.none(), st.text(max_size=40)), min_size=1, max_size=8))
def test_every_row_comes_back_and_stands_for_itself(captions: list[str | None]) -> None:
    """No batch-mate changes a row, whatever the captions; kept rows keep the rules' word."""
    options: dict[str, Any] = {
        "html": "drop", "urls": "remove", "boilerplate": True, "min_chars": 2, "min_words": 1, "max_words": 9, "max_run": 5,
        "max_repeated_words": 0.7, "min_letters": 0.2, "max_digits": 0.5,
    }  # fmt: skip
    together = rows_of(list(captions), **options)
    assert len(together) == len(captions)
    for at, caption in enumerate(captions):
        (alone,) = rows_of([caption], **options)
        assert {**alone, "row": at} == together[at]
        if alone["fate"] == "kept":
            assert alone["chars"] == len(alone["caption"]) >= 2
            assert 1 <= alone["words"] <= 9


def test_no_pattern_takes_quadratic_time() -> None:
    """Texts that make a backtracking engine stand still, at the greatest length that is read."""
    import time

    hostile = [
        "<" * 100_000, "<a " * 33_000, "a@" * 50_000, "&" * 100_000, "&amp" * 25_000, "<!--" * 25_000, "http://" * 14_000, "Ã" * 100_000,
        "e" + "\u0301\u0316" * 49_000, "1x" * 50_000, "\u200d👨" * 50_000, ("of 1 " * 20_000)[:100_000], "&amp;" + "amp;" * 24_000,
    ]  # fmt: skip
    rows_of([DOG])
    began = time.process_time()
    rows = rows_of(
        list(hostile), html="remove", urls="remove", emails="remove", emoji="remove", boilerplate=True, max_run=9, max_repeated_words=1
    )
    assert len(rows) == len(hostile)
    assert time.process_time() - began < 10
