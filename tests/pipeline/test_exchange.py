"""The exchange: every row comes out once, in its bucket, in the order in which it went in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import exchange
from pipeline.phases.write import bucket_of
from pipeline.storage import Store


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(0, 6), max_size=30), min_size=1, max_size=4))
def test_every_row_comes_out_once_in_its_bucket_and_in_order(tmp_path_factory: object, writers: list[list[int]]) -> None:
    store = Store(str(tmp_path_factory.mktemp("exchange")))  # type: ignore[attr-defined]
    paths = []
    for writer, buckets in enumerate(writers):
        rows = pa.table({"writer": pa.array([writer] * len(buckets), pa.int64()), "n": pa.array(range(len(buckets)), pa.int64())})
        paths.append(f"w{writer}.arrow")
        exchange.write(store, paths[-1], rows, np.array(buckets, dtype=np.int64), 7)
    for bucket in range(7):
        wanted = [(w, n) for w, buckets in enumerate(writers) for n, b in enumerate(buckets) if b == bucket]
        got = exchange.read(store, paths, bucket)
        assert list(zip(got["writer"].to_pylist(), got["n"].to_pylist(), strict=True)) == wanted


def test_many_shards_share_buckets_as_neighbours(tmp_path: Path) -> None:
    buckets = bucket_of(np.arange(10_000), 10_000)
    assert buckets.min() == 0
    assert buckets.max() == 4095
    assert (np.diff(buckets) >= 0).all()
