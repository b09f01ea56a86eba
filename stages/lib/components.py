"""Clusters from edges: connected components, those that are too large cut into stars; the same for any order of the edges.

Edges are tables of `EDGES`. `same` edges join rows that are identical, which are never parted. Rows are ordered by `order`, then
by row; a cluster's root is its smallest row. An edge may leave `order` null, but each of its rows must have it on one line.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

EDGES = pa.schema([("a", pa.int64()), ("b", pa.int64()), ("order", pa.int64()), ("same", pa.bool_())])
"""An edge between the rows a and b, and the order of b where it is known; a line with a = b tells the order and nothing else."""

LABELS = pa.schema([("row", pa.int64()), ("root", pa.int64()), ("size", pa.int64())])

FOLD = 1 << 20  # lines that tell orders, before they are folded


class Labels(NamedTuple):
    """`labels` (LABELS): each row of a cluster of two or more. `counts`: what happened, for the report."""

    labels: pa.Table
    counts: dict[str, int]


def components(tables: Iterable[pa.Table], max_size: int) -> Labels:
    """The clusters of all edges. One of more than `max_size` rows becomes stars: its smallest row with all that have an edge to
    it, then the smallest row left with all that are left and have an edge to it, and so on."""
    a, b, same, rows = _ranked(tables)
    root = _roots(a[same], b[same], len(rows))  # identical rows are one from here on
    weight = np.bincount(root, minlength=len(rows))
    a, b = root[a[~same]], root[b[~same]]
    apart = a != b
    a, b = a[apart], b[apart]
    whole = _roots(a, b, len(rows))[root]
    size = np.bincount(whole, minlength=len(rows))
    large = size > max_size
    cut = large[whole[a]]
    star = np.arange(len(rows))
    if cut.any():
        star = _stars(a[cut], b[cut], len(rows))
    final = np.where(large[whole], star[root], whole)
    sizes = np.bincount(final, minlength=len(rows))
    kept = sizes[final] > 1
    chains = large & (size > weight)  # a large one of identical rows alone is a star already
    labels = pa.table([rows[kept], rows[final[kept]], sizes[final[kept]]], schema=LABELS)
    counts = {
        "clusters": int((sizes > 1).sum()),
        "clustered_rows": int(kept.sum()),
        "split_components": int(chains.sum()),
        "split_rows": int(size[chains].sum()),
    }
    return Labels(labels, counts)


def edge_table(a: Any, b: Any, order_a: Any, order_b: Any, same: bool) -> pa.Table:
    """Edges with the order of both ends (arrays of int64, shape (n,)): one line each, and one for each different a."""
    edges = pa.table([a, b, order_b, pa.repeat(pa.scalar(same), len(a))], schema=EDGES)
    return pa.concat_tables([edges, order_table(a, order_a)])


def order_table(rows: Any, order: Any) -> pa.Table:
    """Lines of EDGES that tell the order of rows (repeated ones told once)."""
    unique, at = np.unique(np.asarray(rows, dtype=np.int64), return_index=True)
    return pa.table([unique, unique, np.asarray(order, dtype=np.int64)[at], pa.repeat(pa.scalar(False), len(unique))], schema=EDGES)


def proven_table(a: Any, b: Any) -> pa.Table:
    """Edges whose order other lines tell."""
    return pa.table([a, b, pa.nulls(len(a), pa.int64()), pa.repeat(pa.scalar(False), len(a))], schema=EDGES)


def _ranked(tables: Iterable[pa.Table]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Both ends of each edge as ranks in the order of rows, `same`, and the row of each rank; of rows that have an edge alone.

    A row's order is told again and again, once for each key that it shares: such lines are folded while they come.
    """
    edges = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, bool))]
    orders = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
    for table in tables:
        a, b, same = (table[name].to_numpy() for name in ("a", "b", "same"))
        edge = a != b
        edges.append((a[edge], b[edge], same[edge]))
        known = table.filter(table["order"].is_valid())
        orders.append((known["b"].to_numpy(), known["order"].to_numpy()))
        if sum(len(rows) for rows, _ in orders[1:]) > max(FOLD, len(orders[0][0])):
            orders = [_folded(orders)]
    a, b, same = (np.concatenate(column) for column in zip(*edges, strict=True))
    rows, order = _folded(orders)
    of_edges = np.zeros(len(rows), dtype=bool)
    for ends in (a, b):
        of_edges[_places(rows, ends)] = True
    rows, order = rows[of_edges], order[of_edges]
    by_order = np.lexsort((rows, order))
    rank = np.empty(len(rows), dtype=np.int64)
    rank[by_order] = np.arange(len(rows))
    return rank[_places(rows, a)], rank[_places(rows, b)], same, rows[by_order]


def _folded(orders: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Rows, sorted, each once, and their order."""
    rows, order = (np.concatenate(column) for column in zip(*orders, strict=True))
    rows, at = np.unique(rows, return_index=True)
    return rows, order[at]


def _places(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each wanted row stands among the sorted `rows`."""
    at = np.searchsorted(rows, wanted)
    missing = at == len(rows)
    missing[~missing] = rows[at[~missing]] != wanted[~missing]
    if missing.any():
        raise ValueError(f"the order of row {wanted[missing][0]} is on no line of the edges, {missing.sum()} ends of edges lack it")
    return at


def _roots(a: np.ndarray, b: np.ndarray, n: int) -> np.ndarray:
    """The smallest node of each node's component."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not len(a):
        return np.arange(n)
    graph = coo_array((np.ones(len(a), dtype=np.int8), (a, b)), shape=(n, n))
    _, label = connected_components(graph, directed=False)
    _, first = np.unique(label, return_index=True)
    out: np.ndarray = first[label]
    return out


def _stars(a: np.ndarray, b: np.ndarray, n: int) -> np.ndarray:
    """The centre of each node's star, as if nodes were taken in order.

    In rounds: an undecided node without a smaller undecided neighbour is a centre, and its neighbours are none. Orders are
    hashes, so about log n rounds do.
    """
    low, high = np.minimum(a, b), np.maximum(a, b)
    is_centre, decided = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    left_low, left_high = low, high
    while len(left_low):
        first = ~decided
        first[left_high] = False
        is_centre[left_low[first[left_low]]] = True
        decided |= is_centre
        decided[left_high[is_centre[left_low]]] = True
        left = ~(decided[left_low] | decided[left_high])
        left_low, left_high = left_low[left], left_high[left]
    is_centre |= ~decided
    joins = is_centre[low] & ~is_centre[high]
    nearest = np.full(n, n, dtype=np.int64)
    np.minimum.at(nearest, high[joins], low[joins])
    return np.where(nearest < n, nearest, np.arange(n))
