"""The exchange: rows on their way from parts to buckets, on the run's storage.

A writer sorts its rows by bucket and commits one Arrow file whose b-th record batch holds bucket b; a reader takes batch b
of every such file. So a writer's rows are written once, committed like everything else (a resumed run finds them), and a
reader fetches only its own bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pipeline.storage import Store

OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


def write(store: Store, path: str, rows: pa.Table, bucket: np.ndarray, buckets: int) -> None:
    """Commits `rows` as `buckets` record batches; `bucket` (integers, shape (n,)) says where each row belongs.

    Within a bucket rows keep their order.
    """
    order = np.argsort(bucket, kind="stable")
    ends = np.cumsum(np.bincount(bucket, minlength=buckets))
    rows = rows.take(pa.array(order)).combine_chunks()
    with store.atomic(path) as target, pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, rows.schema, options=OPTIONS) as writer:
        start = 0
        for end in ends.tolist():
            writer.write_batch(_one_batch(rows.slice(start, end - start)))
            start = end


def read(store: Store, paths: list[str], bucket: int) -> pa.Table:
    """The rows of one bucket from all files, in the order of `paths`."""
    return pa.Table.from_batches(list(_batches(store, paths, bucket)))


def _batches(store: Store, paths: list[str], bucket: int) -> Iterator[pa.RecordBatch]:
    for path in paths:
        with store.ranges(path) as handle:
            yield pa.ipc.open_file(handle).get_batch(bucket)


def _one_batch(rows: pa.Table) -> pa.RecordBatch:
    columns = [column.combine_chunks() if column.num_chunks != 1 else column.chunk(0) for column in rows.columns]
    columns = [column if isinstance(column, pa.Array) else pa.concat_arrays(column.chunks) for column in columns]
    return pa.RecordBatch.from_arrays(columns, schema=rows.schema)
