"""The order of training: which sample stands at which place of which batch, as a function of (seed, epoch) alone.

Ranks, loader workers and restarts do not appear here: whoever wants a place computes it. That makes a run the same for any
number of processes, and its resume exact to the sample.

An epoch is a list of ids, read from storage in runs of `chunk` consecutive samples. Each corpus's shards are permuted, their chunks
stand one after the other, each shard's from a random one on; a *window* takes the next chunks of every corpus in proportion (about
`window` shards in all); the chunks of a window are permuted, and the samples of a chunk. The list is cut into groups of
batch * chunk samples; position j of a group's batch k is list[j * K + k], K being the group's number of batches. So each batch
takes one sample each of many chunks, while whoever holds a range of positions reads each of its chunks once, whole.

What is left at the list's end (less than a batch) opens the next epoch's list, which leaves those samples out of its own.

Random numbers are Philox's raw ones (Salmon et al. 2011), keyed by (seed, epoch), and permutations their stable sort: both are
the same in every version of numpy, which numpy does not promise of its distributions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from pipeline.errors import UserError

SHARDS, ROTATION, CUT, CHUNKS, SAMPLES = range(5)  # what random numbers are for
WORD = (1 << 64) - 1
HELD = 4  # windows and epochs that are kept at hand


@dataclass(frozen=True)
class Order:
    """Samples have the ids 0..n-1: corpora one after the other, shards in the manifest's order, samples as they stand in them.

    `sizes`: samples of each shard, by corpus. `batch`: the global one. `weights`: share of each corpus in an epoch (any positive
    numbers); an epoch then takes as many samples as no corpus must repeat one for, others in each epoch. None: all samples.
    Memory: O(shards + a window's chunks + batch * chunk). Time: 0.1 µs a sample of the slice that is asked for, and 0.06 s
    an epoch for 100,000 shards. Raises UserError where there is less than one batch.
    """

    sizes: tuple[tuple[int, ...], ...]
    batch: int
    seed: int = 0
    weights: tuple[float, ...] | None = None
    chunk: int = 32
    window: int = 16
    _epochs: dict[int, _Epoch] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.batch < 1 or self.chunk < 1 or self.window < 1:
            raise UserError(f"batch {self.batch}, chunk {self.chunk} and window {self.window} must be at least 1")
        if self.weights is not None and (len(self.weights) != len(self.sizes) or min(self.weights, default=0) <= 0):
            raise UserError(f"train.data: {len(self.sizes)} sources have the weights {list(self.weights)}; give each a positive one")
        if sum(self.quotas) < self.batch:
            raise UserError(
                f"train.batch: {self.batch} is more than the {sum(self.quotas)} samples of an epoch, so there would be no step; "
                "lower it or add data"
            )

    @property
    def n(self) -> int:
        return sum(map(sum, self.sizes))

    @property
    def quotas(self) -> tuple[int, ...]:
        """How many samples an epoch takes of each corpus, not counting what the epoch before left over."""
        owned = [sum(sizes) for sizes in self.sizes]
        if self.weights is None:
            return tuple(owned)
        shares = [weight / sum(self.weights) for weight in self.weights]
        total = min(n / share for n, share in zip(owned, shares, strict=True))
        return tuple(min(n, int(share * total + 1e-6)) for n, share in zip(owned, shares, strict=True))

    def length(self, epoch: int) -> int:
        """Samples in the epoch's list."""
        return self._epoch(epoch).length

    def steps(self, epoch: int) -> int:
        """Batches of the epoch. With weights it may be one more in some epochs than in others."""
        return self.length(epoch) // self.batch

    def leftover(self, epoch: int) -> np.ndarray:
        """The ids (int64) that the epoch has no batch for: the next epoch begins with them."""
        return self.entries(epoch, self.steps(epoch) * self.batch, self.length(epoch))

    def entries(self, epoch: int, lo: int, hi: int) -> np.ndarray:
        """The epoch's list from `lo` to `hi`: ids, int64, shape (hi - lo,)."""
        return self._epoch(epoch).entries(lo, hi)

    def groups(self, epoch: int, start_step: int = 0, positions: slice = slice(None)) -> Iterator[tuple[int, np.ndarray]]:
        """(first step, ids of shape (positions, K)) of each group from the one of `start_step` on: column k is of step first + k.

        Of the first group only the columns from `start_step` on are given.
        """
        first, last, _ = positions.indices(self.batch)
        size, length, steps = self.batch * self.chunk, self.length(epoch), self.steps(epoch)
        for step in range(start_step - start_step % self.chunk, steps, self.chunk):
            at = step // self.chunk * size
            rows = min(size, length - at) // self.batch
            ids = self.entries(epoch, at + first * rows, at + last * rows).reshape(last - first, rows)
            skipped = max(0, start_step - step)
            yield step + skipped, ids[:, skipped:]

    def batches(self, epoch: int, start_step: int = 0, positions: slice = slice(None)) -> Iterator[np.ndarray]:
        """The ids, int64, at `positions` of each global batch from `start_step` on."""
        for _, ids in self.groups(epoch, start_step, positions):
            yield from ids.T

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            known = max((at for at in self._epochs if at < epoch), default=-1)
            for at in range(known + 1, epoch + 1):
                self._epochs[at] = _Epoch(self, at, self.leftover(at - 1) if at else np.zeros(0, np.int64))
                _forget(self._epochs)
        return self._epochs[epoch]


class _Epoch:
    """One epoch's list. `leftover` stands first, as it is; then come the windows, without `out`, which are the ids left out."""

    def __init__(self, order: Order, epoch: int, leftover: np.ndarray) -> None:
        self.order, self.epoch, self.leftover = order, epoch, leftover
        firsts = np.cumsum([0, *map(sum, order.sizes)])
        self.corpora = [
            _Corpus(order, epoch, at, int(firsts[at]), quota) for at, quota in enumerate(order.quotas) if quota
        ]  # one that gives nothing has no chunks to share out
        self.out = np.unique(np.concatenate([leftover, *(corpus.cut for corpus in self.corpora)]))
        self.windows = max(1, -(-sum(corpus.shards for corpus in self.corpora) // order.window))
        self.ranks = [np.arange(self.windows + 1) * corpus.count // self.windows for corpus in self.corpora]
        ends = sum(corpus.samples_before(ranks) for corpus, ranks in zip(self.corpora, self.ranks, strict=True))
        gone = np.zeros(self.windows + 1, np.int64)
        for corpus, ranks in zip(self.corpora, self.ranks, strict=True):
            taken = corpus.ranks(self.out)
            gone += np.bincount(np.searchsorted(ranks, taken, "right"), minlength=self.windows + 1)
        self.ends = np.asarray(ends - np.cumsum(gone) + len(leftover))  # where each window ends in the list; first where they begin
        self.length = int(self.ends[-1])
        self.held: dict[int, _Window] = {}

    def entries(self, lo: int, hi: int) -> np.ndarray:
        pieces = [self.leftover[lo:hi]] if lo < len(self.leftover) else []
        at = max(lo, len(self.leftover))
        while at < hi:
            number = int(np.searchsorted(self.ends, at, "right")) - 1
            begin, end = int(self.ends[number]), min(hi, int(self.ends[number + 1]))
            pieces.append(self._window(number).entries(at - begin, end - begin))
            at = end
        return np.concatenate(pieces) if pieces else np.zeros(0, np.int64)

    def _window(self, number: int) -> _Window:
        if number not in self.held:
            self.held[number] = _Window(self, number)
            _forget(self.held)
        return self.held[number]


class _Corpus:
    """One corpus's chunks in an epoch's order: a chunk's place there is its *rank*, 0..count-1.

    `cut`: ids of the last chunk that are beyond the quota.
    """

    def __init__(self, order: Order, epoch: int, number: int, base: int, quota: int) -> None:
        sizes = np.asarray(order.sizes[number], np.int64)
        self.chunk, self.base, self.end = order.chunk, base, base + int(sizes.sum())
        self.by_shard = np.cumsum(sizes) - sizes + base  # first id of each shard, in the manifest's order
        self.shard = np.argsort(_random(order.seed, epoch, SHARDS, number, len(sizes)), kind="stable")
        self.place = np.argsort(self.shard)
        self.size, self.first = sizes[self.shard], self.by_shard[self.shard]
        self.chunks = -(-self.size // order.chunk)
        turns = _random(order.seed, epoch, ROTATION, number, len(sizes))
        self.turn = (turns % np.maximum(self.chunks, 1).astype(np.uint64)).astype(np.int64)
        self.chunks_before = np.cumsum(self.chunks) - self.chunks
        self.before = np.cumsum(self.size) - self.size
        self.count = self._chunks_for(quota)
        self.shards = int(np.searchsorted(self.chunks_before, self.count))
        first, size = (int(value[0]) for value in self.spans(np.asarray([self.count - 1])))
        spare = int(self.samples_before(np.asarray([self.count]))[0]) - quota
        self.cut = first + np.argsort(_random(order.seed, epoch, CUT, number, size), kind="stable")[size - spare :]

    def _at(self, rank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The shard (its place) of each rank, and the number that the chunk has in it."""
        shard = np.searchsorted(self.chunks_before + self.chunks, rank, "right").clip(max=len(self.size) - 1)
        return shard, rank - self.chunks_before[shard]

    def spans(self, rank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First id and number of samples of the chunks."""
        shard, nth = self._at(rank)
        begin = (nth + self.turn[shard]) % self.chunks[shard] * self.chunk
        return self.first[shard] + begin, np.minimum(self.chunk, self.size[shard] - begin)

    def samples_before(self, rank: np.ndarray) -> np.ndarray:
        """How many samples the chunks of lower rank have. A shard's last chunk, which may be short, stands where its turn puts it."""
        shard, nth = self._at(rank)
        chunks = np.maximum(self.chunks[shard], 1)
        short = self.chunks[shard] * self.chunk - self.size[shard]
        out: np.ndarray = self.before[shard] + nth * self.chunk - short * (nth > (chunks - 1 - self.turn[shard]) % chunks)
        return out

    def ranks(self, ids: np.ndarray) -> np.ndarray:
        """The ranks of those ids that are this corpus's and whose chunks the epoch takes."""
        ids = ids[(ids >= self.base) & (ids < self.end)]
        number = np.searchsorted(self.by_shard, ids, "right") - 1  # of shards without samples the last one: the one that has the id
        shard = self.place[number]
        nth = ((ids - self.by_shard[number]) // self.chunk - self.turn[shard]) % np.maximum(self.chunks[shard], 1)
        rank: np.ndarray = self.chunks_before[shard] + nth
        return rank[rank < self.count]

    def _chunks_for(self, quota: int) -> int:
        """The least number of chunks with `quota` samples."""
        shard = int(np.searchsorted(self.before + self.size, quota))
        begin = int(self.chunks_before[shard])
        more = self.samples_before(begin + np.arange(int(self.chunks[shard])))
        return begin + int(np.searchsorted(more, quota))


class _Window:
    """The chunks of a window in their permuted order: first ids, sizes, and where each one's samples end in the window's list."""

    def __init__(self, epoch: _Epoch, number: int) -> None:
        self.epoch, self.number = epoch, number
        spans = [
            corpus.spans(np.arange(ranks[number], ranks[number + 1])) for corpus, ranks in zip(epoch.corpora, epoch.ranks, strict=True)
        ]
        first, size = (np.concatenate(columns) for columns in zip(*spans, strict=True))
        order = np.argsort(_random(epoch.order.seed, epoch.epoch, CHUNKS, number, len(first)), kind="stable")
        self.first, self.size = first[order], size[order]
        left_out = np.searchsorted(epoch.out, self.first + self.size) - np.searchsorted(epoch.out, self.first)
        self.ends = np.cumsum(self.size - left_out)

    def entries(self, lo: int, hi: int) -> np.ndarray:
        """Ids from `lo` to `hi` of the window's list; only their chunks are permuted."""
        a, b = int(np.searchsorted(self.ends, lo, "right")), int(np.searchsorted(self.ends, hi)) + 1
        order, chunk = self.epoch.order, self.epoch.order.chunk
        wide = -(-chunk // 4) * 4  # a Philox counter gives four numbers, so that a row's can be had without those before it
        keys = _random(order.seed, self.epoch.epoch, SAMPLES, self.number, (b - a) * wide, a * wide // 4).reshape(b - a, wide)[:, :chunk]
        column = np.arange(chunk)
        keys = np.where(column < self.size[a:b, None], keys, np.uint64(WORD))
        ids = self.first[a:b, None] + np.argsort(keys, axis=1, kind="stable")
        listed = ids[column < self.size[a:b, None]]
        if len(self.epoch.out):
            at = np.searchsorted(self.epoch.out, listed).clip(max=len(self.epoch.out) - 1)
            listed = listed[self.epoch.out[at] != listed]
        begin = int(self.ends[a - 1]) if a else 0
        return listed[lo - begin : hi - begin]


def _random(seed: int, epoch: int, purpose: int, number: int, count: int, skip: int = 0) -> np.ndarray:
    """`count` raw 64-bit numbers of their own for each (seed, epoch, purpose, number), from the 4 * `skip`th on."""
    generator = np.random.Philox(key=[seed & WORD, epoch & WORD], counter=[skip, number, purpose, 0])
    out: np.ndarray = generator.random_raw(count)
    return out


def _forget(held: dict[int, _Epoch] | dict[int, _Window]) -> None:
    """Drops the oldest of more than HELD."""
    while len(held) > HELD:
        del held[next(iter(held))]
