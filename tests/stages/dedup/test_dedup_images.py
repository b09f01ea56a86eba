"""image_dedup on one table: distances against brute force, equal bytes, flat images."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.dedup.images import ImageDedup
from stages.dedup.local import cluster_table


def table_of(hashes: list[int | None], sha: list[str | None] | None = None, flat: list[bool] | None = None) -> pa.Table:
    n = len(hashes)
    columns = {
        "uid": pa.array([xxhash.xxh3_128_hexdigest(f"{i}".encode()) for i in range(n)], pa.string()),
        "phash": pa.array([None if value is None else f"{value:016x}" for value in hashes], pa.string()),
        "flat": pa.array(flat or [value is None for value in hashes], pa.bool_()),
        "sha256": pa.array(sha or [f"{i:064x}" for i in range(n)], pa.string()),
    }
    return pa.table(columns)


def partition(table: pa.Table, stage: ImageDedup, *division: int) -> set[frozenset[str]]:
    out, _ = cluster_table(stage, table, *division)
    members: dict[str, set[str]] = {}
    for uid, cluster in zip(table["uid"].to_pylist(), out["image_cluster"].to_pylist(), strict=True):
        members.setdefault(cluster, set()).add(uid)
    assert all(min(each) == cluster for cluster, each in members.items())
    return {frozenset(each) for each in members.values()}


def brute(table: pa.Table, distance: int) -> set[frozenset[str]]:
    rows = table.to_pylist()
    root = list(range(len(rows)))

    def find(i: int) -> int:
        while root[i] != i:
            i = root[i]
        return i

    for i, x in enumerate(rows):
        for j, y in enumerate(rows[:i]):
            shaped = x["phash"] is not None and y["phash"] is not None and not x["flat"] and not y["flat"]
            near = shaped and (int(x["phash"], 16) ^ int(y["phash"], 16)).bit_count() <= distance
            if near or (x["sha256"] is not None and x["sha256"] == y["sha256"]):
                root[find(i)] = find(j)
    members: dict[int, set[str]] = {}
    for i, row in enumerate(rows):
        members.setdefault(find(i), set()).add(row["uid"])
    return {frozenset(each) for each in members.values()}


def hashes_with_neighbours(count: int, seed: int) -> list[int | None]:
    chance = random.Random(seed)
    out: list[int | None] = []
    for _ in range(count):
        value = chance.getrandbits(64)
        out.append(value)
        for _ in range(chance.randrange(3)):
            near = value
            for bit in chance.sample(range(64), chance.randrange(9)):
                near ^= 1 << bit
            out.append(near)
    chance.shuffle(out)
    return out


@pytest.mark.parametrize(("distance", "pieces"), [(0, None), (1, None), (4, None), (4, 5), (4, 8), (8, 10)])
def test_pairs_are_those_of_brute_force(distance: int, pieces: int | None) -> None:
    table = table_of(hashes_with_neighbours(150, distance))
    stage = ImageDedup(ImageDedup.Config(max_distance=distance, pieces=pieces))
    assert partition(table, stage) == brute(table, distance)


ROW = st.tuples(st.sampled_from([None, 0, 1, 15, 31, 2**64 - 1]), st.sampled_from([None, "a" * 64, "b" * 64, "c" * 64]), st.booleans())


@given(st.lists(ROW, min_size=1, max_size=9), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=80)
def test_flat_images_nulls_and_equal_bytes(rows: list[tuple[Any, Any, bool]], parts: int, buckets: int) -> None:
    table = table_of(*(list(column) for column in zip(*rows, strict=True)))
    assert partition(table, ImageDedup(), parts, buckets) == brute(table, 4)


def test_order_and_division_of_rows_do_not_show() -> None:
    table = table_of([value for value in hashes_with_neighbours(400, 9) for _ in range(2)])
    stage = ImageDedup(ImageDedup.Config(max_bucket=2, max_component=3))
    _, counts = cluster_table(stage, table)
    assert counts["split_components"] > 0
    assert counts["hot_keys"] > 0
    for parts, buckets in ((1, 1), (2, 3), (7, 5)):
        mixed = table.take(np.random.default_rng(parts).permutation(len(table)))
        assert partition(mixed, stage, parts, buckets) == partition(table, stage)
        assert cluster_table(stage, mixed, parts, buckets)[1] == counts


def test_many_equal_images_cost_no_pairs() -> None:
    stage = ImageDedup()
    table = table_of([7] * 20_000, ["a" * 64] * 20_000).append_column("row", pa.array(range(20_000)))
    found = stage.pairs(stage.keyed(table))
    assert len(found.edges) <= 4 * 20_000
    labels, counts = stage.components(iter([found.edges]))
    assert labels["size"].unique().to_pylist() == [20_000]
    assert counts["split_components"] == 0


def test_config_and_entries() -> None:
    assert ImageDedup().entries_per_row == 17
    assert ImageDedup(ImageDedup.Config(max_distance=0)).entries_per_row == 3
    with pytest.raises(ValidationError, match="must be more than max_distance"):
        ImageDedup.Config(max_distance=4, pieces=4)
    with pytest.raises(TypeError, match="leaves no pairs"):
        ImageDedup().verify(table_of([1]))
