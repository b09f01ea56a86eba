"""Clusters against a plain union-find and a plain greedy choice of stars; the order of edges never shows."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.lib.components import components, edge_table, order_table, proven_table

Edge = tuple[int, int, bool]


def order_of(row: int) -> int:
    return row * 7919 % 101  # not the order of the rows' numbers


def tables(edges: list[Edge]) -> list[pa.Table]:
    """Same edges with the order of both ends, others without, and the order of all rows on lines of their own."""
    out = [order_table([row for edge in edges for row in edge[:2]], [order_of(row) for edge in edges for row in edge[:2]])]
    for a, b, same in edges:
        out.append(edge_table([a], [b], [order_of(a)], [order_of(b)], True) if same else proven_table(np.array([a]), np.array([b])))
    return out


def plain(edges: list[Edge], most: int) -> dict[int, tuple[int, int]]:
    """row -> (root, size), by loops: identical rows joined, then components, then stars of those that are too large."""
    rows = sorted({row for edge in edges for row in edge[:2]}, key=lambda row: (order_of(row), row))
    rank = {row: i for i, row in enumerate(rows)}
    same = joined([(rank[a], rank[b]) for a, b, equal in edges if equal], len(rows))
    near = [(same[rank[a]], same[rank[b]]) for a, b, equal in edges if not equal]
    whole = [joined(near, len(rows))[same[i]] for i in range(len(rows))]
    root = list(whole)
    for component in set(whole):
        if whole.count(component) > most:
            members = [i for i in range(len(rows)) if whole[i] == component]
            centre: dict[int, int] = {}
            for node in sorted({same[i] for i in members}):
                if node not in centre:
                    ends = [(b if a == node else a) for a, b in near if node in (a, b)]
                    centre |= {node: node} | {end: node for end in ends if end not in centre}
            for i in members:
                root[i] = centre[same[i]]
    sizes = {each: root.count(each) for each in root}
    return {rows[i]: (rows[root[i]], sizes[root[i]]) for i in range(len(rows)) if sizes[root[i]] > 1}


def joined(edges: list[tuple[int, int]], n: int) -> list[int]:
    root = list(range(n))
    for _ in range(n):
        for a, b in edges:
            root[a] = root[b] = min(root[a], root[b])
    return root


def test_an_edge_between_identical_rows_is_no_reason_to_wait() -> None:
    edges = [(0, 1, True), (0, 1, False), (1, 2, False), (2, 3, False)]
    assert components(tables(edges), 2).labels.num_rows == len(plain(edges, 2))


EDGE = st.tuples(st.integers(0, 25), st.integers(0, 25), st.sampled_from([False, False, False, True]))


@given(st.lists(EDGE, max_size=40), st.integers(2, 12), st.randoms(use_true_random=False))
@settings(max_examples=150)
def test_clusters_are_those_of_the_plain_way(edges: list[Edge], most: int, chance: random.Random) -> None:
    edges = [edge for edge in edges if edge[0] != edge[1]]
    given_tables = tables(edges)
    chance.shuffle(given_tables)
    found = components(given_tables, most)
    labels = {line["row"]: (line["root"], line["size"]) for line in found.labels.to_pylist()}
    assert labels == plain(edges, most)
    assert found.counts["clustered_rows"] == len(labels)
    assert found.counts["clusters"] == len({root for root, _ in labels.values()})


def test_a_chain_is_cut_into_stars_and_counted() -> None:
    a = np.arange(4999)
    found = components([order_table(np.arange(5000), np.arange(5000)), proven_table(a, a + 1)], 1000)
    assert found.counts == {"clusters": 2500, "clustered_rows": 5000, "split_components": 1, "split_rows": 5000}
    assert set(found.labels["size"].to_pylist()) == {2}


def test_identical_rows_are_never_parted() -> None:
    b = np.arange(1, 3000)
    edges = edge_table(np.zeros(2999, np.int64), b, np.zeros(2999, np.int64), b, same=True)
    found = components([edges], 1000)
    assert found.labels["size"].unique().to_pylist() == [3000]
    assert found.counts["split_components"] == 0


def test_no_edges_no_clusters_and_a_row_without_order_is_an_error() -> None:
    assert len(components(iter([]), 10).labels) == 0
    with pytest.raises(ValueError, match="the order of row 8"):
        components([order_table([1], [1]), proven_table(np.array([8]), np.array([1]))], 10)
