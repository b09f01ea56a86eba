"""The ledger: one line for each input row, what became of it, and the check that nothing is missing.

There are no counters anywhere: every count is a query over committed files, so a crash or a retry cannot make one lie.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.errors import ContractError
from pipeline.stage import KEPT

SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("parent", pa.int64()),
        ("uid", pa.string()),
        ("url", pa.string()),
        ("fate", pa.string()),
        ("detail", pa.string()),
        ("shard", pa.int32()),
        ("key", pa.string()),
    ]
)

SELECTION = pa.schema([("row", pa.int64()), ("fate", pa.string()), ("detail", pa.string()), ("shard", pa.int32()), ("index", pa.int32())])


@dataclass(frozen=True)
class Balance:
    """rows_in = kept + sum of dropped: counts of one level of the ledger."""

    rows_in: int
    kept: int
    dropped: dict[str, int]

    def check(self) -> None:
        total = self.kept + sum(self.dropped.values())
        if total != self.rows_in:
            raise ContractError(f"ledger out of balance: {self.rows_in} rows in, but {self.kept} kept and {total - self.kept} dropped")


def balance(con: Any, ledger: str, rows_in: int) -> Balance:
    """Counts fates in a DuckDB relation of the ledger and checks them against `rows_in`. Raises ContractError."""
    counts = dict(con.execute(f"SELECT fate, count(*) FROM {ledger} GROUP BY fate ORDER BY fate").fetchall())
    found = Balance(rows_in, counts.pop(KEPT, 0), counts)
    found.check()
    (distinct,) = con.execute(f"SELECT count(DISTINCT row) FROM {ledger}").fetchall()[0]
    if distinct != rows_in:
        raise ContractError(f"ledger holds {distinct} different rows, but {rows_in} came in")
    return found
