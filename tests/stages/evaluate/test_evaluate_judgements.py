"""Kendall's tau-c against its definition, and both forms of judgements as Flickr8k has them."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from stages.evaluate import judgements

EXPERT = """image,caption_of,caption,expert1,expert2,expert3
a.jpg,a.jpg,A dog .,4,4,3
a.jpg,b.jpg,A cat .,1,2,1
b.jpg,a.jpg,"A dog, running .",1,1,
"""
CROWD = """image,caption_of,caption,share_yes,n_yes,n_no
a.jpg,a.jpg,A dog .,1,3,0
a.jpg,b.jpg,A cat .,0.25,1,3
"""


def by_definition(x: list[float], y: list[float]) -> float:
    """tau-c = 2 (C - D) / (n^2 (m - 1) / m), m the lesser number of different values (Stuart 1953)."""
    concordant = sum(np.sign(a - c) * np.sign(b - d) for (a, b), (c, d) in itertools.combinations(zip(x, y, strict=True), 2))
    m = min(len(set(x)), len(set(y)))
    return float(2 * concordant / (len(x) ** 2 * (m - 1) / m))


@given(st.lists(st.tuples(st.integers(0, 9), st.lists(st.integers(1, 4), min_size=1, max_size=3)), min_size=2, max_size=15))
@settings(max_examples=200)
def test_tau_c_is_its_definition_over_single_ratings(rows: list[tuple[int, list[int]]]) -> None:
    scores = np.array([score / 10 for score, _ in rows])
    found = judgements.tau_c(scores, [tuple(map(float, rated)) for _, rated in rows])
    x = [score / 10 for score, rated in rows for _ in rated]
    y = [float(rating) for _, rated in rows for rating in rated]
    if len(set(x)) < 2 or len(set(y)) < 2:
        assert found is None
    else:
        assert found == pytest.approx(by_definition(x, y), abs=1e-12)


def test_experts_ratings_count_singly_and_a_missing_one_not_at_all() -> None:
    judged = judgements.read(EXPERT, "expert.csv")
    assert [one.ratings for one in judged] == [(4, 4, 3), (1, 2, 1), (1, 1)]
    assert [one.own for one in judged] == [True, False, False]
    found = judgements.figures(judged, np.array([0.9, 0.4, 0.1]))
    assert (found["pairs"], found["ratings"], found["pairs_others"], found["images"]) == (3, 8, 2, 2)
    assert found["tau_c"] == pytest.approx(by_definition([0.9] * 3 + [0.4] * 3 + [0.1] * 2, [4, 4, 3, 1, 2, 1, 1, 1]))
    assert found["tau_c_others"] == pytest.approx(by_definition([0.4] * 3 + [0.1] * 2, [1, 2, 1, 1, 1]))


def test_the_crowd_has_one_point_a_caption() -> None:
    judged = judgements.read(CROWD, "crowd.csv")
    assert [one.ratings for one in judged] == [(1.0,), (0.25,)]
    assert judgements.figures(judged, np.array([0.9, 0.4]))["tau_c"] == 1.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,caption,score\na,b,1\n", r"judged.csv: has the columns image, caption, score.*expert1\.\.expert3 or share_yes"),
        ("image,caption,share_yes\na,b,many\n", "judged.csv: line 2: a rating is no number"),
        ("image,caption,share_yes\n", "holds no judgements"),
    ],
)
def test_other_tables_are_refused(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        judgements.read(text, "judged.csv")


def test_flickr8k_as_it_is(data_dir: Path) -> None:
    """Agreement of the experts' own mean with each of them: an upper bound that no scorer passes."""
    judged = judgements.read((data_dir / "flickr8k" / "judgements_expert.csv").read_text(), "judgements_expert.csv")
    found = judgements.figures(judged, np.array([np.mean(one.ratings) for one in judged]))
    assert (found["pairs"], found["ratings"], found["pairs_others"]) == (552, 1656, 500)
    assert found["tau_c"] > 0.7


@pytest.mark.parametrize("row", ["a.jpg", "a.jpg,b.jpg"])
def test_a_row_that_is_cut_short_is_told_by_its_line(row: str) -> None:
    with pytest.raises(UserError, match=r"^expert\.csv: line 5: has \d of 6 columns"):
        judgements.read(f"{EXPERT}{row}\n", "expert.csv")
