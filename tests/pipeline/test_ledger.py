"""The ledger's sum, and the watch over what workers do."""

from __future__ import annotations

import time

import duckdb
import pytest

from pipeline.engine import Progress
from pipeline.errors import ContractError
from pipeline.heart import Heart, Timing, as_dict
from pipeline.ledger import balance
from pipeline.progress import working


def table(*lines: tuple[int, str]) -> duckdb.DuckDBPyConnection:
    con = duckdb.connect()
    con.execute("CREATE TABLE ledger (row BIGINT, fate VARCHAR)")
    con.executemany("INSERT INTO ledger VALUES (?, ?)", lines)
    return con


def test_a_balanced_ledger_counts_fates() -> None:
    found = balance(table((0, "kept"), (1, "download:timeout"), (2, "kept")), "ledger", 3)
    assert (found.kept, found.dropped) == (2, {"download:timeout": 1})


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([(0, "kept")], "2 rows in, but 1 kept and 0 dropped"),
        ([(0, "kept"), (0, "kept")], "holds 1 different rows, but 2 came in"),
    ],
)
def test_a_lost_or_doubled_row_ends_the_run(lines: list[tuple[int, str]], said: str) -> None:
    with pytest.raises(ContractError, match=said):
        balance(table(*lines), "ledger", 2)


def test_the_watchdogs_clock_begins_anew_when_a_stage_says_that_it_goes_on() -> None:
    heart, timings = Heart(), {}
    with heart.at("part-1", "download", 10, timings, own_thread=False) as mark:
        time.sleep(0.05)
        (before,) = heart.snapshot()["now"]
        mark.goes_on()
        (after,) = heart.snapshot()["now"]
    assert before[:2] == after[:2] == ("part-1", "download")
    assert before[2] >= 0.05 > after[2]
    assert heart.snapshot() == {"now": [], "rows": {"download": 10}}
    assert as_dict(timings)["download"]["cpu_seconds"] is None
    assert as_dict({"images": Timing(3, 1.0, 0.5)})["images"] == {"rows": 3, "seconds": 1.0, "cpu_seconds": 0.5}


def test_progress_counts_what_finished_parts_say() -> None:
    seen = Progress("pool", 3, rows={"images": 12, "ingest": 40}, now=[("p", "images", 1.0)])
    seen.ended({"id": "part-0", "rows": 10, "kept": 7})
    seen.ended({"id": "part-1", "rows": 5})
    assert (seen.done, seen.rows_in, seen.rows_kept, seen.finished) == (2, 15, 7, {"part-0", "part-1"})
    assert working(seen) == [("images", 12)]
