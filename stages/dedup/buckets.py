"""Entries that share a key: sorted, identical content folded, and paired. Vectorised over all keys of a bucket."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from stages.dedup.contract import ENTRIES


@dataclass(frozen=True)
class Groups:
    """Entries of keys that two or more share, those of a key end to end in the order of rows: arrays of shape (n,) each."""

    key: np.ndarray
    row: np.ndarray
    order: np.ndarray
    content: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        """Where each key begins, and n."""
        return np.append(np.flatnonzero(first_of(self.key)), len(self.key))

    def take(self, at: np.ndarray) -> Groups:
        return Groups(self.key[at], self.row[at], self.order[at], self.content[at])


def first_of(values: np.ndarray) -> np.ndarray:
    """True where a value of a sorted array is not the one before it."""
    out = np.ones(len(values), dtype=bool)
    out[1:] = values[1:] != values[:-1]
    return out


def spread(keys: np.ndarray) -> np.ndarray:
    """Keys (uint64, shape (kinds of keys, n)) such that those of each kind lie in a range of their own, and so in few buckets."""
    kinds = len(keys)
    first = np.arange(kinds, dtype=np.uint64) * np.uint64((1 << 64) // kinds - 1)
    out: np.ndarray = keys // np.uint64(kinds + 1) + first[:, None]
    return out


def groups(entries: pa.Table, kind: int) -> Groups:
    """The entries of this kind, without those that are alone under their key."""
    columns = {name: entries[name].to_numpy() for name in ENTRIES.names}
    at = np.flatnonzero(columns.pop("kind") == kind)
    at = _shared(columns["key"], at)
    at = at[np.argsort(columns["key"][at])]
    first = first_of(columns["key"][at])
    alone = first & np.append(first[1:], True)
    at = at[~alone]
    found = Groups(**{name: values[at] for name, values in columns.items()})
    return found.take(np.lexsort((found.row, found.order, found.key)))


def _shared(keys: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Of the entries at `at` those whose key another has too, and a few more: most keys are alone, and to count is cheaper than to sort.

    Counted are other bits of the keys each time. `keys` are hashes, spread evenly.
    """
    for shift in (0, 24):
        bits = min(24, max(1, 4 * len(at)).bit_length())
        slot = ((keys[at] >> np.uint64(shift)) & np.uint64((1 << bits) - 1)).view(np.int64)
        at = at[np.bincount(slot, minlength=1 << bits)[slot] > 1]
    return at


def fold(found: Groups) -> Groups:
    """Of a key's entries with the same content only the smallest row; keys with one content left are gone."""
    by_content = np.lexsort((np.arange(len(found.key)), found.content, found.key))
    key, content = found.key[by_content], found.content[by_content]
    smallest = np.sort(by_content[first_of(key) | first_of(content)])
    found = found.take(smallest)
    first = first_of(found.key)
    return found.take(np.flatnonzero(~(first & np.append(first[1:], True))))


@dataclass(frozen=True)
class Indexed:
    """Pairs as indices of Groups, a before b; `hot`: keys with more entries than allowed, `cut`: pairs left out for that."""

    a: np.ndarray
    b: np.ndarray
    hot: int
    cut: int


def pair_up(found: Groups, most: int) -> Indexed:
    """All pairs of each key; of a key with more than `most` entries only those with the smallest. Each pair of rows once."""
    starts = found.starts
    size = np.diff(starts)
    hot = size > most
    after = np.repeat(starts[1:], size) - np.arange(len(found.key)) - 1  # entries of the key that come later
    later = np.repeat(hot, size)
    later[starts[:-1]] = False
    after[later] = 0
    a = np.repeat(np.arange(len(found.key)), after)
    b = a + 1 + np.arange(len(a)) - np.repeat(np.cumsum(after) - after, after)
    rows, local = np.unique(found.row, return_inverse=True)
    _, once = np.unique(local[a] * len(rows) + local[b], return_index=True)
    m = size[hot].astype(np.int64)
    return Indexed(a[once], b[once], int(hot.sum()), int(((m - 1) * (m - 2) // 2).sum()))


def stars(found: Groups) -> tuple[np.ndarray, np.ndarray]:
    """Indices (a, b): the smallest row of each key with each other one."""
    starts = found.starts
    size = np.diff(starts)
    centre = np.repeat(starts[:-1], size)
    b = np.flatnonzero(np.arange(len(found.key)) != centre)
    return centre[b], b
