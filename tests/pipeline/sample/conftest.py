"""One built and served sample for all tests of this folder (about five seconds)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline import sample
from pipeline.sample import Sample


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the sample is built, once."""
    return tmp_path_factory.mktemp("sample")


@pytest.fixture(scope="module")
def served(built: Path) -> Iterator[Sample]:
    """A server for each module, since it remembers who asked for what."""
    with sample.start(built) as running:
        yield running


@pytest.fixture(scope="module")
def truth(served: Sample) -> list[dict[str, Any]]:
    """The truth table's rows."""
    rows: list[dict[str, Any]] = pq.read_table(served.truth).to_pylist()
    return rows


@pytest.fixture(scope="module")
def folder(served: Sample) -> Path:
    return served.folder
