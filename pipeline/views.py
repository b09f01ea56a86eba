"""DuckDB over a run's committed files: what is known of every row, in bounded memory (DuckDB spills to disk).

Joins, global orders and counts of narrow columns are DuckDB's; image bytes never come here.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.parts import Part, addition_of
from pipeline.storage import Store

MEMORY_LIMIT = "2GB"


@contextmanager
def connect(store: Store, memory: str = MEMORY_LIMIT) -> Iterator[Any]:
    """A DuckDB connection that reads this store's files, with a spill folder of its own."""
    import duckdb

    spill = tempfile.mkdtemp(prefix="shardmill-spill-")
    con = duckdb.connect(config={"memory_limit": memory, "temp_directory": spill, "preserve_insertion_order": False})
    try:
        if not store.local:
            con.register_filesystem(store.fs)
        yield con
    finally:
        con.close()
        shutil.rmtree(spill, ignore_errors=True)


def files(con: Any, name: str, store: Store, paths: list[str], schema: pa.Schema) -> None:
    """View `name` over Parquet files, with their address in `filename`; without files, an empty table of `schema`."""
    if not paths:
        fields = [*schema, pa.field("filename", pa.string())]
        con.register(f"{name}_none", pa.schema(fields).empty_table())
        con.execute(f'CREATE OR REPLACE VIEW "{name}" AS SELECT * FROM "{name}_none"')
        return
    listed = ", ".join(quote(store.address(path)) for path in paths)
    con.execute(f'CREATE OR REPLACE VIEW "{name}" AS SELECT * FROM read_parquet([{listed}], filename=true, union_by_name=true)')


def rows(con: Any, name: str, store: Store, parts: list[Part], schema: pa.Schema) -> None:
    """View `name` over the parts' files with run-wide `row` numbers and each row's `part`."""
    files(con, f"{name}_files", store, [part.path for part in parts], schema)
    con.register(
        f"{name}_bases",
        pa.table(
            {
                "filename": [store.address(p.path) for p in parts],
                "base": pa.array([p.base for p in parts], pa.int64()),
                "part": pa.array([p.no for p in parts], pa.int64()),
            }
        )
        if parts
        else pa.schema([("filename", pa.string()), ("base", pa.int64()), ("part", pa.int64())]).empty_table(),
    )
    con.execute(
        f'CREATE OR REPLACE VIEW "{name}" AS SELECT r.* EXCLUDE (filename) REPLACE (r.row + b.base AS row), b.part '
        f'FROM "{name}_files" r JOIN "{name}_bases" b USING (filename)'
    )


def latest(con: Any, name: str, store: Store, folder: str, unit: str, schema: pa.Schema) -> list[str]:
    """View `name` over an addressed folder (pool, scores): of several files with one `unit`, the latest addition wins.

    Returns the files' names.
    """
    names = store.names(folder, ".parquet")
    files(con, f"{name}_all", store, [f"{folder}/{n}" for n in names], schema)
    retried = [n for n in names if addition_of(n)[1] > 0]
    source = f'SELECT * FROM "{name}_all"'
    if retried:
        con.register(
            f"{name}_additions",
            pa.table({"filename": [store.address(f"{folder}/{n}") for n in names], "addition": [addition_of(n)[1] for n in names]}),
        )
        source = (
            f'{source} JOIN "{name}_additions" USING (filename) QUALIFY row_number() OVER (PARTITION BY {unit} ORDER BY addition DESC) = 1'
        )
    con.execute(f'CREATE OR REPLACE VIEW "{name}" AS {source}')
    return names


def batches(con: Any, sql: str, rows: int = 65_536) -> Iterator[pa.RecordBatch]:
    """Streams a query's result as record batches."""
    yield from con.execute(sql).to_arrow_reader(rows)


def grouped(con: Any, sql: str, by: str) -> Iterator[tuple[int, pa.Table]]:
    """Streams a query that is ordered by the integer column `by` as one table for each of its values, without that column."""
    current: int | None = None
    held: list[pa.RecordBatch] = []
    for batch in batches(con, sql):
        values = batch.column(by).to_numpy(zero_copy_only=False)
        if not len(values):
            continue
        cuts = [0, *(np.flatnonzero(values[1:] != values[:-1]) + 1).tolist(), len(values)]
        for start, end in zip(cuts[:-1], cuts[1:], strict=True):
            value = int(values[start])
            if current is not None and value != current:
                yield current, pa.Table.from_batches(held).drop_columns([by])
                held = []
            current = value
            held.append(batch.slice(start, end - start))
    if current is not None:
        yield current, pa.Table.from_batches(held).drop_columns([by])


def quote(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"
