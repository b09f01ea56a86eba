"""Shingles and normal forms of whole arrays against the same said of one text."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.lib.comparable import dense_script, normal, normal_batch, number_hashes
from stages.lib.shingles import Ragged, code_points, shingle_hash, shingle_hashes, shingles

TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
ASCII = st.text(st.characters(max_codepoint=127), max_size=40)


@given(st.lists(TEXT, max_size=12), st.integers(1, 7))
def test_hashes_are_those_of_the_shingles(texts: list[str], n: int) -> None:
    hashes = shingle_hashes(code_points(pa.array(texts, pa.string())), n)
    assert hashes.values.dtype == np.uint32
    for text, start, end in zip(texts, hashes.offsets, hashes.offsets[1:], strict=False):
        assert set(hashes.values[start:end].tolist()) == {shingle_hash(shingle) for shingle in shingles(text, n)}
        assert end - start == max(len(text) - n + 1, min(len(text), 1))


def test_64_bits_tell_apart_what_32_do_not() -> None:
    n = 400_000
    points = Ragged(np.random.default_rng(0).integers(0x4E00, 0x9FFF, 5 * n, dtype=np.uint32), np.arange(0, 5 * n + 1, 5))
    assert len(np.unique(shingle_hashes(points, 5).values)) < n
    assert len(np.unique(shingle_hashes(points, 5, bits=64).values)) == n


@given(st.lists(TEXT | st.none(), max_size=8), st.integers(0, 8), st.integers(0, 8))
def test_a_slice_is_read_where_it_lies(texts: list[str | None], start: int, length: int) -> None:
    points = code_points(pa.array(texts, pa.string()).slice(min(start, len(texts)), length))
    told = [points.values[a:b].tolist() for a, b in zip(points.offsets, points.offsets[1:], strict=False)]
    assert told == [[ord(character) for character in text or ""] for text in texts[start : start + length]]


@given(st.lists(ASCII | TEXT, max_size=12))
@settings(max_examples=200)
def test_normal_form_of_an_array_is_that_of_each_text(texts: list[str]) -> None:
    assert normal_batch(pa.array(texts, pa.string())).to_pylist() == [normal(text) for text in texts]


def test_normal_form_of_every_ascii_character_and_of_what_is_no_text() -> None:
    texts = [f"{chr(i)}A{chr(i)}{chr(i)}B{chr(j)}" for i in range(128) for j in (9, 31, 32, 65)]
    assert normal_batch(pa.array(texts)).to_pylist() == [normal(text) for text in texts]
    assert normal_batch(pa.chunked_array([pa.array([None, "ＡＢ  c"])])).to_pylist() == ["", "ab c"]
    assert normal_batch(pa.chunked_array([], pa.string())).to_pylist() == []
    broken = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(np.array([0, 3], np.int32)), pa.py_buffer(b"a\xffb")])
    assert normal_batch(broken).to_pylist() == ["a\ufffdb"]


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("size 42", "size 43", False),
        ("2 dogs, 3 cats", "3 cats, 2 dogs", True),
        ("1 1 2", "1 2 2", False),
        ("3.5 m", "5.3 m", False),
        ("in 1999.", "1999: in", True),
        ("no number", "none", True),
        ("٤٢ كلب", "كلب", False),
    ],
)
def test_numbers(one: str, other: str, equal: bool) -> None:
    a, b = number_hashes(pa.array([one, other]))
    assert (a == b) == equal


def test_dense_scripts() -> None:
    texts = ["一只狗在海滩上奔跑", "小屋の横に赤いトラック", "두 남자가 있습니다", "สุนัขสีดำ", "a dog 狗", "कुत्ता", "", "  ", "dog", "狗 x"]
    assert dense_script(code_points(pa.array(texts))).tolist() == [True, True, True, True, False, False, False, False, False, True]
