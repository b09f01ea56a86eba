"""The exchange: rows on their way from parts to buckets, on the run's storage.

A writer sorts its rows by bucket and commits one Arrow file whose b-th record batch holds bucket b; a reader takes batch b
of every such file. So a writer's rows are written once, committed like everything else (a resumed run finds them), and a
reader fetches only its own bytes. Nothing is compressed: keys are hashes and images are JPEG, which compression does not make smaller.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa

from pipeline.spill import Spill
from pipeline.storage import Store

PIECE = 1 << 17  # rows that are sorted at a time: their columns stay in the cache


def write(store: Store, path: str, rows: pa.Table, bucket: np.ndarray, buckets: int) -> None:
    """Commits `rows` as `buckets` record batches; `bucket` (integers, shape (n,)) says where each row belongs.

    Within a bucket rows keep their order.
    """
    pieces = [list[pa.RecordBatch]() for _ in range(buckets)]
    bucket = bucket.astype(np.uint16 if buckets <= 1 << 16 else np.int64, copy=False)  # numpy sorts 16 bits by radix
    start = 0
    for piece in rows.to_batches(max_chunksize=PIECE):
        here = bucket[start : start + len(piece)]
        start += len(piece)
        in_one = len(here) == 0 or bool((here == here[0]).all())
        batch = piece if in_one else piece.take(pa.array(np.argsort(here, kind="stable")))
        ends = np.cumsum(np.bincount(here, minlength=buckets)).tolist()
        for number, (begin, end) in enumerate(itertools.pairwise([0, *ends])):
            if begin < end:
                pieces[number].append(batch.slice(begin, end - begin))
    _commit(store, path, rows.schema, (pa.concat_batches(each) if each else None for each in pieces))


def write_spilled(store: Store, path: str, rows: Spill, bucket: np.ndarray, buckets: int, goes_on: Callable[[], None]) -> None:
    """As `write`, of rows that are not all in memory: one bucket after the other is taken."""
    order = np.argsort(bucket, kind="stable")
    ends = np.cumsum(np.bincount(bucket, minlength=buckets)).tolist()

    def taken() -> Iterator[pa.RecordBatch | None]:
        for begin, end in itertools.pairwise([0, *ends]):
            yield rows.take(order[begin:end]).combine_chunks().to_batches()[0] if begin < end else None
            goes_on()

    _commit(store, path, rows.schema, taken())


def _commit(store: Store, path: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch | None]) -> None:
    empty = pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)
    with store.atomic(path) as target, pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(empty if batch is None else batch)


def bucket_of(keys: np.ndarray, buckets: int) -> np.ndarray:
    """The bucket (at most 65,536) of each key, of which the highest bits are as good as random; faster than a remainder."""
    return (((keys >> np.uint64(32)) * np.uint64(buckets)) >> np.uint64(32)).astype(np.uint16)


def read(store: Store, paths: list[str], bucket: int) -> pa.Table:
    """The rows of one bucket from all files, in the order of `paths`."""
    return pa.Table.from_batches(list(_batches(store, paths, bucket)))


def _batches(store: Store, paths: list[str], bucket: int) -> Iterator[pa.RecordBatch]:
    for path in paths:
        with store.ranges(path) as handle:
            yield pa.ipc.open_file(handle).get_batch(bucket)
