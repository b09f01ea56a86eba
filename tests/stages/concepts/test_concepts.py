"""The stage concepts against a search word by word, and what MetaCLIP's balancing does with what it finds."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pipeline
from pipeline.catalog import entry
from pipeline.errors import UserError
from pipeline.keys import ingredients

LETTERS = st.text("ab é-Ä1", max_size=12)
WORDS = st.lists(LETTERS.filter(lambda word: any(c.isalnum() for c in word)), min_size=1, max_size=5)


def found(tmp_path: Path, words: str, captions: list[str | None]) -> list[list[str]]:
    (tmp_path / "words.txt").write_text(words, encoding="utf-8")
    out: list[list[str]] = pipeline.use("concepts", words=str(tmp_path / "words.txt"))(pa.table({"caption": captions}))[
        "concepts"
    ].to_pylist()
    return out


def test_words_are_found_whole_in_any_case_and_between_any_marks(tmp_path: Path) -> None:
    captions = ["A hot-dog, and a CAT!", "category of dogs", "the New  York cat cat", "ﬁsh and ＤＯＧ", "", None]
    assert found(tmp_path, "dog\ncat\nnew york\nFish\n\nhot dog\n", captions) == [
        ["cat", "dog", "hot dog"],
        [],
        ["cat", "new york"],
        ["Fish", "dog"],
        [],
        [],
    ]


def test_words_of_scripts_without_spaces_are_found_anywhere(tmp_path: Path) -> None:
    assert found(tmp_path, "猫\nแมว\n고양이", ["黒い猫の写真", "รูปแมวดำ", "고양이 사진", "犬"]) == [["猫"], ["แมว"], ["고양이"], []]


def test_spellings_that_are_one_word_count_each(tmp_path: Path) -> None:
    assert found(tmp_path, "Dog\ndog\nDOG.\n", ["my dog"]) == [["DOG.", "Dog", "dog"]]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    words=st.lists(LETTERS.filter(lambda word: any(c.isalnum() for c in word)), min_size=1, max_size=5),
    captions=st.lists(LETTERS, max_size=5),
)
def test_it_finds_what_a_search_word_by_word_finds(tmp_path: Path, words: list[str], captions: list[str]) -> None:
    def form(text: str) -> str:
        return " ".join(re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", text).casefold()).split())

    listed = sorted({" ".join(word.split()) for word in words})
    assert found(tmp_path, "\n".join(words), list(captions)) == [
        [word for word in listed if f" {form(word)} " in f" {form(caption)} "] for caption in captions
    ]


def test_a_list_that_is_no_list_is_refused_and_a_changed_one_is_another_config(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    with pytest.raises(UserError, match="cannot read"):
        entry("concepts", {"words": str(path)})
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="UTF-8"):
        entry("concepts", {"words": str(path)}).stage.check_ready()  # type: ignore[attr-defined]
    path.write_text("--\n\n")
    with pytest.raises(UserError, match="holds no word"):
        entry("concepts", {"words": str(path)}).stage.check_ready()  # type: ignore[attr-defined]
    path.write_text("dog")
    before: Any = ingredients([entry("concepts", {"words": str(path)})])
    path.write_text("dog\ncat")
    assert ingredients([entry("concepts", {"words": str(path)})]) != before
