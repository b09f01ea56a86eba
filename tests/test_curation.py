"""The noise of benchmarks/curation.py is what its truth says, and the same for the same seed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmarks import curation


@pytest.fixture
def served(tmp_path: Path, data_dir: Path) -> Path:
    (tmp_path / "data").symlink_to(data_dir, target_is_directory=True)
    return tmp_path


def test_truth_and_sizes_of_the_planted_noise(served: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curation, "CLEAN", 30)
    monkeypatch.setattr(curation, "COPIED", 5)
    monkeypatch.setattr(curation, "MOST_COPIES", 6)
    monkeypatch.setattr(curation, "JUNK", 7)
    photographs = curation.flickr(data_dir)[:50]
    pairs = curation.corpus(data_dir, served, photographs)
    assert pairs == curation.corpus(data_dir, served, photographs)
    own = dict(photographs)
    kinds = Counter(pair.truth.partition(" ")[0] for pair in pairs)
    assert kinds == {"clean": 30 + 378, "mismatched": 20, "copy": 6 + 3 + 2 + 2 + 1, "junk": 7}
    for pair in pairs:
        assert (served / pair.path).is_file()
        assert pair.caption
        if pair.path in own:
            assert (pair.caption in own[pair.path]) == (pair.truth == "clean")
