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
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sample]:
    with sample.start(tmp_path_factory.mktemp("sample")) as running:
        yield running


@pytest.fixture(scope="session")
def truth(served: Sample) -> list[dict[str, Any]]:
    """The truth table's rows."""
    rows: list[dict[str, Any]] = pq.read_table(served.truth).to_pylist()
    return rows


@pytest.fixture(scope="session")
def folder(served: Sample) -> Path:
    return served.folder
