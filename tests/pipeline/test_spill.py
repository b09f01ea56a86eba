"""Rows that lie partly on disk are taken as if they were all in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import exchange
from pipeline.spill import Spill
from pipeline.storage import Store


def rows(start: int, count: int) -> pa.Table:
    bodies = [[bytes([n % 251]) * (n % 7)] * (n % 3) for n in range(start, start + count)]
    numbers = pa.array(range(start, start + count), pa.int64())
    return pa.table({"row": numbers, "frames": pa.array(bodies, pa.list_(pa.large_binary()))})


@settings(max_examples=40)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.sampled_from([0, 200, 1 << 20]), st.randoms(use_true_random=False))
def test_rows_are_taken_by_their_places(counts: list[int], held: int, dice: object) -> None:
    spill, tables, at = Spill(held), [], 0
    for count in counts:
        tables.append(rows(at, count))
        spill.add(tables[-1])
        at += count
    whole = pa.concat_tables(tables)
    assert len(spill) == len(whole)
    assert spill.columns(["row"]).equals(whole.select(["row"]))
    places = np.array(dice.sample(range(at), at), dtype=np.int64)  # type: ignore[attr-defined]
    assert spill.take(places).to_pylist() == whole.take(pa.array(places)).to_pylist()
    if at:
        assert pa.concat_tables(spill.slices(places, 20)).to_pylist() == whole.take(pa.array(places)).to_pylist()


def test_where_slices_are_cut_follows_from_the_rows_alone() -> None:
    one, two = Spill(), Spill(0)
    one.add(rows(0, 50))
    for at in range(49, -1, -1):
        two.add(rows(at, 1))
    backwards = np.arange(49, -1, -1)
    cuts = [len(table) for table in one.slices(np.arange(50), 20)]
    assert cuts == [len(table) for table in two.slices(backwards, 20)]
    assert len(cuts) > 3


def test_nothing_of_it_lies_under_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    spill = Spill(0)
    spill.add(rows(0, 1000))
    assert list(tmp_path.iterdir()) == []
    assert spill.take(np.array([999])).to_pylist() == rows(999, 1).to_pylist()


def test_the_exchange_of_spilled_rows_is_the_same_file(tmp_path: Path) -> None:
    store, table = Store(str(tmp_path)), rows(0, 60)
    bucket = np.array([n * 7 % 5 for n in range(60)])
    exchange.write(store, "plain.arrow", table, bucket, 6)
    spill = Spill(0)
    for at in range(0, 60, 7):
        spill.add(table[at : at + 7])
    exchange.write_spilled(store, "spilled.arrow", spill, bucket, 6, lambda: None)
    for number in range(6):
        assert exchange.read(store, ["spilled.arrow"], number).equals(exchange.read(store, ["plain.arrow"], number))
