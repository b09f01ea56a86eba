"""DuckDB over a run's committed files: what is known of every row, in bounded memory (DuckDB spills to disk).

Joins, global orders and counts of narrow columns are DuckDB's; image bytes never come here. Results are always fetched whole:
a half-read one would block the connection.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from pipeline.errors import TransientError
from pipeline.parts import Part, addition_of
from pipeline.storage import Store
from stages.lib.singles import single

MEMORY_LIMIT, THREADS = "2GB", 8  # each thread holds buffers: DuckDB wants 125 MB for one at least, twice that where it joins
HASHED = "1GB"  # the share that joins and sorts may plan with; what they pin besides has to fit, too, or they fail at ten million rows
SPILL, YOUNG_S = "shardmill-spill-", 60
HOST = r"^[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#@]*@)?(\[[^\]/]*\]|[^/:?#]+)"  # a URL's host, as DuckDB's regexp_extract takes it
INTERRUPTED = "Query interrupted"  # all that DuckDB says, by a plain RuntimeError, where Ctrl-C ends a query


@contextmanager
def connect(store: Store, memory: str = MEMORY_LIMIT) -> Iterator[Any]:
    """A DuckDB connection that reads this store's files, with a spill folder of its own.

    DuckDB's own errors are told as what they are of the store: a damaged file, a storage that refuses, a disk without room.
    Ctrl-C while a query works is a KeyboardInterrupt, as anywhere else.
    """
    import duckdb

    spill, held = _spill_folder()
    con = duckdb.connect(config={"memory_limit": memory, "temp_directory": spill, "preserve_insertion_order": False})
    con.execute(f"SET operator_memory_limit = '{HASHED}'")
    con.execute(f"SET threads = least(current_setting('threads'), {THREADS})")
    try:
        if not store.local:
            con.register_filesystem(store.committed)
            con.execute("SET parquet_metadata_cache = true")
        yield con
    except duckdb.OutOfMemoryException as err:
        raise TransientError(f"DuckDB has no room to join in: {_line(err)}; {_way_out(err, memory, spill)}") from err
    except duckdb.InterruptException as err:
        raise KeyboardInterrupt from err
    except RuntimeError as err:
        if str(err) == INTERRUPTED:
            raise KeyboardInterrupt from err
        raise
    except duckdb.Error as err:
        if not store.local and store.committed.fault:
            raise store.committed.fault from err
        if type(err) in (duckdb.Error, duckdb.InvalidInputException, duckdb.IOException, duckdb.SerializationException):
            store.check_tables()
        raise
    finally:
        con.close()
        shutil.rmtree(spill, ignore_errors=True)
        held.close()


def _spill_folder() -> tuple[str, IO[str]]:
    """A new folder and the open file that says it is in use; folders that a killed process left, gigabytes it may be, are removed."""
    for left in Path(tempfile.gettempdir()).glob(f"{SPILL}*"):
        # Another user's, or one that another process removes just now, is none of our business; a young one may not be locked yet.
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > YOUNG_S:
                with (left / "in-use").open("r+") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left)
    spill = tempfile.mkdtemp(prefix=SPILL)
    held = (Path(spill) / "in-use").open("w")
    fcntl.flock(held, fcntl.LOCK_EX)
    return spill, held


def _way_out(err: Exception, memory: str, spill: str) -> str:
    if "max_temp_directory_size" in str(err):
        return f"free space below {spill}, then repeat the command"
    return f"repeat the command; if it fails again report it with the number of rows: DuckDB may hold {memory}, which were too little"


def _line(err: Exception) -> str:
    return " ".join(str(err).split())[:200]


def files(con: Any, name: str, store: Store, paths: list[str], schema: pa.Schema) -> None:
    """View `name` over Parquet files, with their address in `filename`; without files, an empty table of `schema`."""
    if not paths:
        fields = [*(pa.field(one.name, single(one.type)) for one in schema), pa.field("filename", pa.string())]
        con.register(f"{name}_none", pa.schema(fields).empty_table())
        con.execute(f'CREATE OR REPLACE VIEW "{name}" AS SELECT * FROM "{name}_none"')
        return
    listed = ", ".join(quote(store.address(path)) for path in paths)
    con.execute(f'CREATE OR REPLACE VIEW "{name}" AS SELECT * FROM read_parquet([{listed}], filename=true, union_by_name=true)')


def rows(con: Any, name: str, store: Store, parts: list[Part], schema: pa.Schema) -> None:
    """View `name` over the parts' files with run-wide `row` numbers and each row's `part`."""
    files(con, f"{name}_files", store, [part.path for part in parts], schema)
    bases = {
        "filename": pa.array([store.address(part.path) for part in parts], pa.string()),
        "base": pa.array([part.base for part in parts], pa.int64()),
        "parent_base": pa.array([part.parent_base for part in parts], pa.int64()),
        "part": pa.array([part.no for part in parts], pa.int64()),
    }
    con.register(f"{name}_bases", pa.table(bases))
    parent = ", r.parent + b.parent_base AS parent" if "parent" in schema.names else ""
    con.execute(
        f'CREATE OR REPLACE VIEW "{name}" AS SELECT r.* EXCLUDE (filename) REPLACE (r.row + b.base AS row{parent}), b.part '
        f'FROM "{name}_files" r JOIN "{name}_bases" b USING (filename)'
    )


def latest(con: Any, name: str, store: Store, folder: str, unit: str, schema: pa.Schema) -> list[str]:
    """View `name` over an addressed folder (pool, scores): of several files with one `unit`, the latest addition wins.

    Returns the files' names.
    """
    names = store.names(folder, ".parquet")
    files(con, f"{name}_all", store, [f"{folder}/{n}" for n in names], schema)
    source = f'SELECT * FROM "{name}_all"'
    if any(addition_of(n)[1] > 0 for n in names):
        additions = {"filename": [store.address(f"{folder}/{n}") for n in names], "addition": [addition_of(n)[1] for n in names]}
        con.register(f"{name}_additions", pa.table(additions))
        newest = f"QUALIFY row_number() OVER (PARTITION BY {unit} ORDER BY addition DESC) = 1"
        source = f'{source} JOIN "{name}_additions" USING (filename) {newest}'
    con.execute(f'CREATE OR REPLACE VIEW "{name}" AS {source}')
    return names


def batches(con: Any, sql: str, rows: int = 65_536) -> Iterator[pa.RecordBatch]:
    """Streams a query's result as record batches."""
    yield from con.sql(sql).to_arrow_reader(rows)


def grouped(con: Any, sql: str, by: str) -> Iterator[tuple[int, pa.Table]]:
    """Streams a query that is ordered by the integer column `by` as one table for each of its values, without that column."""
    current: int | None = None
    held: list[pa.RecordBatch] = []
    for batch in batches(con, sql):
        values = batch.column(by).to_numpy(zero_copy_only=False)
        if not len(values):
            continue
        cuts = [0, *(np.flatnonzero(values[1:] != values[:-1]) + 1).tolist(), len(values)]
        for start, end in itertools.pairwise(cuts):
            value = int(values[start])
            if current is not None and value != current:
                yield current, pa.Table.from_batches(held).drop_columns([by])
                held = []
            current = value
            held.append(batch.slice(start, end - start))
    if current is not None:
        yield current, pa.Table.from_batches(held).drop_columns([by])


@dataclass(frozen=True)
class Difference:
    """Rows that differ: how many, the first one's number, and what both sides say of it."""

    rows: int
    first: int | None
    mine: str
    theirs: str


@dataclass(frozen=True)
class Differences:
    """`lacking`: rows that only `mine` has; `foreign`: rows that only `theirs` has; then each column's."""

    lacking: Difference
    foreign: Difference
    columns: dict[str, Difference]


def differences(con: Any, mine: str, theirs: str, columns: list[str]) -> Differences:
    """Compares two queries that have a line for each `row`, in one pass; nulls are equal."""
    first = "coalesce(m.row, t.row)"
    tests = [("row", "t.row IS NULL"), ("row", "m.row IS NULL")]
    tests += [(column, f'm.row = t.row AND m."{column}" IS DISTINCT FROM t."{column}"') for column in columns]
    picked = []
    for column, test in tests:
        values = (f"arg_min(coalesce(CAST({side}.\"{column}\" AS VARCHAR), 'null'), {first})" for side in "mt")
        picked += [f"{aggregate} FILTER ({test})" for aggregate in ("count(*)", f"min({first})", *values)]
    (found,) = con.execute(f"SELECT {', '.join(picked)} FROM ({mine}) m FULL JOIN ({theirs}) t ON t.row = m.row").fetchall()
    lacking, foreign, *others = (Difference(*found[at : at + 4]) for at in range(0, len(found), 4))
    return Differences(lacking, foreign, dict(zip(columns, others, strict=True)))


def quote(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"
