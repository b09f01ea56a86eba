"""The order of training: what holds of every epoch, whatever the shards, the batch and who asks."""

from __future__ import annotations

import itertools
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from stages.train.order import Order

SHARDS = st.lists(st.integers(0, 40), min_size=1, max_size=8)


@st.composite
def orders(draw: Any, weighted: bool | None = None) -> Order:
    sizes = draw(st.lists(SHARDS, min_size=1, max_size=3).filter(lambda found: all(sum(one) for one in found)))
    with_weights = draw(st.booleans()) if weighted is None else weighted
    weights = tuple(draw(st.floats(0.2, 5)) for _ in sizes) if with_weights else None
    shape = {"seed": draw(st.integers(0, 2**63)), "chunk": draw(st.integers(1, 9)), "window": draw(st.integers(1, 5)), "weights": weights}
    total = sum(Order(tuple(map(tuple, sizes)), 1, **shape).quotas)
    return Order(tuple(map(tuple, sizes)), draw(st.integers(1, total)), **shape)


def whole(order: Order, epoch: int) -> np.ndarray:
    return np.asarray(list(order.batches(epoch)))


@given(orders())
@settings(max_examples=150)
def test_no_sample_twice_in_an_epoch_and_the_rest_opens_the_next(order: Order) -> None:
    before = np.zeros(0, np.int64)
    for epoch in range(4):
        listed = order.entries(epoch, 0, order.length(epoch))
        assert len(set(listed.tolist())) == len(listed)
        assert listed.min() >= 0
        assert listed.max() < order.n
        assert listed[: len(before)].tolist() == before.tolist()
        batches = whole(order, epoch)
        assert batches.shape == (order.steps(epoch), order.batch)
        before = order.leftover(epoch)
        assert len(before) < order.batch
        assert sorted([*batches.ravel(), *before]) == sorted(listed)


@given(orders(weighted=False))
@settings(max_examples=60)
def test_without_weights_an_epoch_lists_every_sample(order: Order) -> None:
    for epoch in range(3):
        assert sorted(order.entries(epoch, 0, order.length(epoch)).tolist()) == list(range(order.n))


@given(orders(weighted=True))
@settings(max_examples=60)
def test_with_weights_an_epoch_takes_each_corpus_s_share(order: Order) -> None:
    assert order.weights is not None
    ends = np.cumsum([sum(sizes) for sizes in order.sizes])
    counts = np.bincount(np.searchsorted(ends, order.entries(0, 0, order.length(0)), "right"), minlength=len(ends))
    assert tuple(counts) == order.quotas
    total = min(sum(sizes) * sum(order.weights) / weight for sizes, weight in zip(order.sizes, order.weights, strict=True))
    assert all(abs(n - weight / sum(order.weights) * total) <= 1 for n, weight in zip(counts, order.weights, strict=True))


@given(orders(), st.integers(1, 6), st.integers(0, 2), st.data())
@settings(max_examples=100)
def test_any_split_into_ranks_and_any_start_gives_the_same_batches(order: Order, world: int, epoch: int, data: Any) -> None:
    expected = whole(order, epoch)
    start = data.draw(st.integers(0, order.steps(epoch)))
    cuts = [order.batch * rank // world for rank in range(world + 1)]
    fresh = [Order(order.sizes, order.batch, order.seed, order.weights, order.chunk, order.window) for _ in range(world)]
    found = [list(one.batches(epoch, start, slice(a, b))) for one, (a, b) in zip(fresh, itertools.pairwise(cuts), strict=True)]
    for step, parts in enumerate(zip(*found, strict=True)):
        assert np.concatenate(parts).tolist() == expected[start + step].tolist()
    assert all(len(part) == len(expected) - start for part in found)


def test_epochs_and_seeds_differ() -> None:
    order, other = (Order(((50, 50, 50),), 15, seed) for seed in (1, 2))
    seen = {tuple(one.entries(epoch, 0, 150).tolist()) for one in (order, other) for epoch in (0, 1, 2)}
    assert len(seen) == 6


def test_the_order_is_the_same_for_ever() -> None:
    """A checkpoint of today must be resumed in the same order by later versions: of shardmill, and of numpy."""
    order = Order(((7, 5, 9), (6, 4)), 4, seed=11, weights=(2.0, 1.0), chunk=3, window=2)
    expected = [[20, 9, 23, 11], [18, 8, 21, 0], [7, 22, 10, 1], [2, 3, 25, 29], [6, 4, 26, 27], [5, 24, 28, 12], [13, 14, 19, 17]]
    assert [batch.tolist() for batch in order.batches(1)] == expected


def test_positions_read_whole_chunks() -> None:
    """Whoever holds a range of positions reads about one chunk a position and group, and each of its samples is of those."""
    order = Order((tuple([10_000] * 64),), 256, chunk=32, window=16)
    for _, ids in itertools.islice(order.groups(0, 0, slice(64, 128)), 5):
        chunks = {(one // 10_000, one % 10_000 // 32) for one in ids.ravel().tolist()}
        assert len(chunks) <= 64 * 1.02 + 2
        assert all(len({(one // 10_000, one % 10_000 // 32) for one in column}) >= 60 for column in ids.T.tolist())


def test_a_batch_mixes_corpora_by_their_weights_all_through_the_epoch() -> None:
    order = Order(((20_000,), tuple([1000] * 100)), 1000, weights=(1.0, 4.0))
    shares = [(batch < 20_000).mean() for batch in order.batches(0)]
    assert abs(np.mean(shares) - 0.2) < 0.001
    assert max(abs(share - 0.2) for share in shares) < 0.08


def test_samples_of_a_small_share_are_chosen_evenly() -> None:
    """Over many epochs no sample of a corpus is favoured by its place in a shard."""
    order = Order(((100, 100), (40,)), 10, weights=(1.0, 1.0), chunk=8)
    seen = np.zeros(order.n)
    for epoch in range(400):
        np.add.at(seen, np.concatenate(list(order.batches(epoch))), 1)
    assert abs(seen[:200] / 400 - 0.2).max() < 0.1
    assert abs(seen[:200].reshape(2, 100).mean(0)[96:].mean() / 400 - 0.2) < 0.04


def test_a_billion_samples_cost_little_memory_and_time() -> None:
    order = Order((tuple([10_000] * 100_000),), 32_768)
    tracemalloc.start()
    try:
        batch = next(order.batches(0, 30_000, slice(512, 1024)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert batch.shape == (512,)
    assert peak < 100 << 20


@pytest.mark.parametrize("broken", [{"batch": 11}, {"batch": 0}, {"weights": (1.0, 2.0)}, {"weights": (0.0,)}, {"chunk": 0}])
def test_what_cannot_be_is_the_users_error(broken: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        Order(**{"sizes": ((10,),), "batch": 2, **broken})
