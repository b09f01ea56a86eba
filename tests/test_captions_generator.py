"""The generator of benchmarks/dedup.py makes what it says: mostly lone captions, clusters by a power law, one template of 1 %."""

from __future__ import annotations

import random
from collections import Counter

from benchmarks.captions_generator import ALONE, MOST, SINGLE, TEMPLATE, TEMPLATE_CLUSTER, generate
from stages.lib.comparable import normal
from stages.lib.shingles import shingles

REAL = [f"{who} {what} {where} while {other} watches" for who in ("a man", "two dogs", "the old woman", "a child in red") for what in
        ("runs along", "sleeps near", "jumps over", "looks at") for where in ("a river", "the wooden fence", "a stone wall", "some snow")
        for other in ("nobody", "a small crowd", "another dog")]  # fmt: skip


def generated(count: int, seed: int = 0) -> tuple[list[str], list[int]]:
    chunks = list(generate(REAL, count, seed, chunk=700))
    assert all(len(texts) == len(clusters) == 700 for texts, clusters in chunks[:-1])
    return [text for texts, _ in chunks for text in texts], [one for _, clusters in chunks for one in clusters]


def clusters_of(count: int) -> Counter[int]:
    _, clusters = generated(count)
    sizes = Counter(clusters)
    del sizes[SINGLE], sizes[TEMPLATE_CLUSTER]
    return sizes


def jaccard(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other)


def test_the_same_seed_gives_the_same_captions() -> None:
    assert generated(2000) == generated(2000)
    assert generated(2000) != generated(2000, seed=1)


def test_shares_and_sizes() -> None:
    texts, clusters = generated(60_000)
    assert len(texts) == 60_000
    sizes = Counter(clusters)
    alone = sizes.pop(SINGLE) + sum(size == 1 for size in sizes.values())
    assert alone / 60_000 >= 0.8
    assert ALONE + TEMPLATE < 1
    assert abs(sizes.pop(TEMPLATE_CLUSTER) / 60_000 - TEMPLATE) < 0.002
    assert 100 < max(sizes.values()) <= MOST


def test_sizes_of_clusters_follow_a_power_law() -> None:
    sizes = Counter(clusters_of(200_000).values())
    total = sum(count for size, count in sizes.items() if size > 1)
    for least in (4, 8, 16, 32):  # P(size >= s) = 2 / s
        share = sum(count for size, count in sizes.items() if size >= least) / total
        assert 0.8 < share * least / 2 < 1.2


def test_captions_of_a_cluster_are_near_duplicates_and_others_are_not() -> None:
    texts, clusters = generated(20_000)
    members: dict[int, list[set[str]]] = {}
    for text, cluster in zip(texts, clusters, strict=True):
        members.setdefault(cluster, []).append(shingles(normal(text), 5))
    alone = members.pop(SINGLE)
    near = [jaccard(rows[0], other) for rows in members.values() for other in rows[1:]]
    assert sum(value >= 0.7 for value in near) / len(near) > 0.9
    draw = random.Random(0)
    assert max(jaccard(*draw.sample(alone, 2)) for _ in range(5000)) < 0.7
