"""Where the segments of a table lie in their videos."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc


def spans(table: pa.Table) -> list[tuple[float | None, float | None]]:
    """(start, end) of each row in seconds of its video, shifted by `shift_s` where the table has that; None where it is unknown."""
    shift = pc.fill_null(table["shift_s"], 0).cast(pa.float64()) if "shift_s" in table.column_names else pa.scalar(0.0)
    ends = (pc.add(table[name].cast(pa.float64()), shift).to_pylist() for name in ("start_s", "end_s"))
    return list(zip(*ends, strict=True))
