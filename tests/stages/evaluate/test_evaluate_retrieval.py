"""Ranks against a loop that looks at every pair, and figures worked out by hand."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.evaluate import retrieval


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def by_loop(image: np.ndarray, text: np.ndarray, owner: np.ndarray) -> tuple[list[int], list[int]]:
    """In float64, one pair after the other; equal similarities rank before the right answer."""
    similar = image.astype(np.float64) @ text.astype(np.float64).T
    of_image, of_text = [], []
    for i in range(len(image)):
        own = [similar[i, j] for j in range(len(text)) if owner[j] == i]
        rivals = [similar[i, j] for j in range(len(text)) if owner[j] != i]
        of_image.append(sum(rival >= max(own) - retrieval.TIE for rival in rivals) if own else -1)
    for j in range(len(text)):
        right = similar[owner[j], j]
        of_text.append(sum(similar[i, j] >= right - retrieval.TIE for i in range(len(image)) if i != owner[j]))
    return of_image, of_text


@st.composite
def worlds(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A few images and captions, some of them alike, captions in no order, some images without any."""
    seed, n, m = draw(st.integers(0, 10_000)), draw(st.integers(1, 12)), draw(st.integers(0, 20))
    rng = np.random.default_rng(seed)
    kinds = unit(rng.normal(size=(6, 8)))  # few different vectors: many ties
    image, text = kinds[rng.integers(0, 6, n)], kinds[rng.integers(0, 6, m)]
    if draw(st.booleans()):
        image, text = unit(rng.normal(size=(n, 8))), unit(rng.normal(size=(m, 8))) if m else text
    return image, text, rng.integers(0, n, m)


@given(worlds(), st.integers(1, 60))
@settings(max_examples=200)
def test_ranks_are_those_of_a_loop_whatever_the_block(world: tuple[np.ndarray, np.ndarray, np.ndarray], block: int) -> None:
    found = retrieval.ranks(*world, block=block)
    of_image, of_text = by_loop(*world)
    assert found.image.tolist() == of_image
    assert found.text.tolist() == of_text


@given(worlds(), st.integers(0, 1000))
@settings(max_examples=50)
def test_neither_the_order_of_captions_nor_a_rotation_changes_ranks(world: tuple[np.ndarray, np.ndarray, np.ndarray], seed: int) -> None:
    image, text, owner = world
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(text))
    turn = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    before = retrieval.ranks(image, text, owner)
    after = retrieval.ranks((image @ turn).astype(np.float32), (text @ turn).astype(np.float32)[order], owner[order])
    assert after.image.tolist() == before.image.tolist()
    assert after.text.tolist() == before.text[order].tolist()


def test_recall_worked_out_by_hand() -> None:
    # Three images along the axes. Captions: two of image 0 (one perfect, one that fits image 1 better), one of each other.
    image = np.eye(3, dtype=np.float32)
    text = unit(np.array([[1, 0, 0], [0.6, 0.8, 0], [0, 1, 0], [0.9, 0, 0.1]]))
    owner = np.array([0, 0, 1, 2])
    found = retrieval.recalls(retrieval.ranks(image, text, owner), ks=(1, 2))
    # image 2's caption is the best one for it (0.11 against 0): all three images are right at 1.
    assert found["image_to_text_R@1"] == 1.0
    # captions 0 and 2 find their image first; 1 and 3 find it second.
    assert found["text_to_image_R@1"] == 0.5
    assert found["text_to_image_R@2"] == 1.0
    assert (found["image_to_text_queries"], found["text_to_image_queries"]) == (3, 4)
    assert found["text_to_image_median_rank"] == 1.5


def test_a_model_that_answers_everything_alike_scores_nothing() -> None:
    same = np.tile(unit(np.ones((1, 4))), (50, 1))
    found = retrieval.recalls(retrieval.ranks(same, same, np.arange(50)))
    assert {found[f"{way}_R@{k}"] for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)} == {0.0}
    assert found["image_to_text_tied"] == found["text_to_image_tied"] == 50


def test_an_image_without_captions_is_a_rival_but_no_query() -> None:
    image, text = np.eye(2, dtype=np.float32), np.array([[0, 1]], np.float32)
    found = retrieval.recalls(retrieval.ranks(image, text, np.array([0])))
    assert found["image_to_text_queries"] == 1
    assert found["text_to_image_R@1"] == 0.0  # image 1 fits better
    assert found["text_to_image_R@5"] == 1.0


def test_memory_is_that_of_a_block() -> None:
    rng = np.random.default_rng(0)
    image, text = unit(rng.normal(size=(2000, 8))), unit(rng.normal(size=(10_000, 8)))
    tracemalloc.start()
    found = retrieval.ranks(image, text, np.arange(10_000) // 5, block=1 << 16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20, "the whole matrix would be 80 MB"
    # By chance alone: R@k of captions is k of 2,000.
    assert (found.text < 20).mean() == pytest.approx(0.01, abs=0.004)
