"""The generator of benchmarks/dedup.py makes what it says: mostly lone captions, clusters by a power law, one template of 1 %."""

from __future__ import annotations

from collections import Counter

from benchmarks.captions_generator import ALONE, MOST, SINGLE, TEMPLATE_CLUSTER, generate

REAL = [f"{who} {what} {where} while {other} watches" for who in ("a man", "two dogs", "the old woman", "a child in red") for what in
        ("runs along", "sleeps near", "jumps over", "looks at") for where in ("a river", "the wooden fence", "a stone wall", "some snow")
        for other in ("nobody", "a small crowd", "another dog")]  # fmt: skip


def generated(count: int, seed: int = 0) -> tuple[list[str], list[int]]:
    chunks = list(generate(REAL, count, seed, chunk=700))
    assert all(len(texts) == len(clusters) == 700 for texts, clusters in chunks[:-1])
    return [text for texts, _ in chunks for text in texts], [one for _, clusters in chunks for one in clusters]


def test_the_same_seed_gives_the_same_captions() -> None:
    assert generated(2000) == generated(2000)
    assert generated(2000) != generated(2000, seed=1)


def test_shares_and_sizes() -> None:
    texts, clusters = generated(20_000)
    assert len(texts) == 20_000
    sizes = Counter(clusters)
    alone = sizes.pop(SINGLE) + sum(size == 1 for size in sizes.values())
    assert alone / 20_000 >= 0.8
    assert abs(sizes.pop(TEMPLATE_CLUSTER) / 20_000 - 0.01) < 0.003
    assert max(sizes.values()) <= MOST
    by_size = Counter(sizes.values())
    assert by_size[2] > by_size[4] > by_size[8] > 0
    assert ALONE < 1 - 0.01
