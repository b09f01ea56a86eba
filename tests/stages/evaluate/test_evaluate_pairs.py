"""AUC against scikit-learn, and what the thresholds say, by counting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.evaluate import pairs

scores = st.lists(st.integers(-20, 20).map(lambda n: n / 20), min_size=1, max_size=40).map(np.array)


@given(scores, scores)
@settings(max_examples=200)
def test_auc_is_scikit_learns_with_ties(true: np.ndarray, false: np.ndarray) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    wanted = metrics.roc_auc_score([1] * len(true) + [0] * len(false), np.concatenate([true, false]))
    assert pairs.auc(true, false) == pytest.approx(wanted, abs=1e-12)


@given(scores, scores)
@settings(max_examples=50)
def test_auc_is_an_order_alone(true: np.ndarray, false: np.ndarray) -> None:
    assert pairs.auc(np.exp(3 * true), np.exp(3 * false)) == pytest.approx(pairs.auc(true, false))
    assert pairs.auc(true, false) + pairs.auc(false, true) == pytest.approx(1)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60).map(np.array), st.integers(0, 99))
def test_a_mismatched_pair_is_never_a_true_one(owner: np.ndarray, seed: int) -> None:
    other = pairs.mismatched(owner, 7, seed)
    assert not (other == owner).any()
    assert ((other >= 0) & (other < 7)).all()
    assert other.tolist() == pairs.mismatched(owner, 7, seed).tolist()


def test_mismatched_images_are_chosen_evenly() -> None:
    other = pairs.mismatched(np.zeros(60_000, np.int64), 7, seed=1)
    counts = np.bincount(other, minlength=7)
    assert counts[0] == 0
    assert np.ptp(counts[1:]) < 600  # six standard deviations


def test_figures_worked_out_by_hand() -> None:
    # Every caption is its image's vector: true pairs have a cosine of 1, all others 0.
    found = pairs.figures(np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32), np.arange(4), seed=0)
    assert found["auc"] == 1.0
    assert (found["pairs"], found["true"]["mean"], found["shuffled"]["mean"]) == (4, 1.0, 0.0)
    assert found["true"]["histogram"][-1] == 4  # [0.98, 1]
    assert found["shuffled"]["histogram"][50] == 4  # [0, 0.02)
    assert sum(found["true"]["histogram"]) == sum(found["shuffled"]["histogram"]) == 4
    assert found["thresholds"][0] == {"similarity": 1.0, "true_kept": 1.0, "shuffled_dropped": 1.0}


@given(st.integers(0, 1000), st.integers(20, 200))
@settings(max_examples=50)
def test_a_threshold_keeps_what_it_says(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    noisy = vectors + 0.3 * rng.normal(size=(n, 6)).astype(np.float32)
    noisy /= np.linalg.norm(noisy, axis=1, keepdims=True)
    found = pairs.figures(vectors, noisy, np.arange(n), seed)
    for threshold, kept in zip(found["thresholds"], pairs.KEPT, strict=True):
        assert threshold["true_kept"] >= kept
        assert threshold["true_kept"] < kept + 1 / n + 1e-9  # a greater one would keep fewer
