"""What the run's work took, from the metrics that workers leave beside each committed part: totals by stage, and the download over time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import views
from pipeline.storage import Store

BINS = 60  # of the download's time
FETCHING = "download"


def view(store: Store, con: Any) -> None:
    """View `metrics`, with null in `ended` where a former version wrote them."""
    paths = [f"metrics/{name}" for name in store.names("metrics", ".parquet")]
    columns = [("stage", pa.string()), ("rows", pa.int64()), ("seconds", pa.float64()), ("cpu_seconds", pa.float64())]
    schema = pa.schema([*columns, ("ended", pa.float64())])
    con.register("metrics_none", schema.empty_table())
    views.files(con, "metrics_files", store, paths, schema)
    con.execute("CREATE OR REPLACE VIEW metrics AS SELECT * FROM metrics_files UNION ALL BY NAME SELECT * FROM metrics_none")


def stages(con: Any) -> dict[str, dict[str, float]]:
    """What each stage took in all sessions of the run together: rows, seconds, CPU seconds, rows a CPU second.

    Seconds are the sum over parts, of which a worker has several at once; CPU is null for download, which shares its thread.
    """
    # Metrics hold ten-thousandths of a second; as whole numbers their sum does not follow from the order of the files.
    seconds, cpu = (f"round(sum(CAST(round({name} * 10000) AS BIGINT)) / 10000, 3)" for name in ("seconds", "cpu_seconds"))
    sql = f"SELECT stage, sum(rows), {seconds}, {cpu} FROM metrics GROUP BY stage ORDER BY stage"
    return {
        stage: {"rows": int(rows), "seconds": seconds, "cpu_seconds": cpu, "rows_per_cpu_second": cpu and round(rows / max(cpu, 1e-9), 1)}
        for stage, rows, seconds, cpu in con.execute(sql).fetchall()
    }


def throughput(con: Any) -> dict[str, Any]:
    """Fetches a second while the run was downloading: `edges` (seconds of that time, pauses between sessions left out) and `rates`
    between them; `parts` it is made from. {} without a download whose time is known.

    A part's fetches are taken as spread evenly over its time, so nothing shorter than a part shows.
    """
    sql = f"SELECT ended - seconds, ended, rows FROM metrics WHERE stage = {views.quote(FETCHING)} AND ended IS NOT NULL AND rows > 0"
    found = con.execute(f"{sql} ORDER BY ALL").fetchnumpy()
    starts, ends, rows = (np.asarray(values, np.float64) for values in found.values())
    if not len(rows):
        return {}
    starts, ends = active(starts, np.maximum(ends, starts + 1e-3))
    edges = np.linspace(0, ends.max(), BINS + 1)
    # How many fetches were done by each edge; parts one after the other in batches, since there may be a million.
    done = np.zeros(BINS + 1)
    for at in range(0, len(rows), 10_000):
        here = slice(at, at + 10_000)
        share = np.clip((edges[:, None] - starts[here]) / (ends[here] - starts[here]), 0, 1)
        done += share @ rows[here]
    rates = np.diff(done) / np.diff(edges)
    return {"parts": len(rows), "edges": [round(float(e), 3) for e in edges], "rates": [round(float(r), 3) for r in rates]}


def active(starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same spans on a clock that stands still while there is none."""
    order = np.argsort(starts, kind="stable")
    reached = np.maximum.accumulate(ends[order])
    gaps = np.maximum(starts[order][1:] - reached[:-1], 0)
    paused = np.empty(len(starts))
    paused[order] = np.concatenate([[0.0], np.cumsum(gaps)]) + starts[order][0]
    return starts - paused, ends - paused
