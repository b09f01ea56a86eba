"""The segments of a table by their videos, and where they lie in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.compute as pc


def spans(table: pa.Table) -> list[tuple[float | None, float | None]]:
    """(start, end) of each row in seconds of its video, shifted by `shift_s` where the table has that; None where it is unknown."""
    shift = pc.fill_null(table["shift_s"], 0).cast(pa.float64()) if "shift_s" in table.column_names else pa.scalar(0.0)
    ends = (pc.add(table[name].cast(pa.float64()), shift).to_pylist() for name in ("start_s", "end_s"))
    return list(zip(*ends, strict=True))


def in_order(table: pa.Table, pieces: Iterator[pa.Table]) -> pa.Table:
    """What a stage's `pieces` gives of a table, as one table in its order."""
    made = pa.concat_tables(pieces)
    return made.take(pc.index_in(table["row"], made["row"]))


def by_video(table: pa.Table, work: Callable[[str, pa.Table], pa.Table]) -> Iterator[pa.Table]:
    """`work` of each video's path and its rows."""
    for path in table["video"].unique().to_pylist():
        yield work(path, table.filter(pc.equal(table["video"], path)))
