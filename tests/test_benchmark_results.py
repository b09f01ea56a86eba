"""benchmarks/results.json keeps what a whole benchmark found, whatever its short form finds later."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from benchmarks import results


def test_a_short_forms_figure_stands_beside_the_whole_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results.json")
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    for words, rate in (["--rows", "8000"], 140.0), (["--rounds", "1"], 90.0), (["--rows", "1000"], 95.0), ([], 141.0):
        results.begin(parser, parser.parse_args(words))
        results.add("images: rate", rate, 70.0, 4.0, met=False, ratio=rate / 70)
    found = json.loads(results.RESULTS.read_text())
    assert [(line["name"], line["ours"]) for line in found] == [("images: rate, short form", 95.0), ("images: rate", 141.0)]
    assert set(found[0]) == {"name", "ours", "peer", "ratio", "target", "met", "machine", "date"}
