"""`shardmill report`: what came of a run, as report.json and as a summary on the terminal. Every count is a query."""

from __future__ import annotations

import shlex
from typing import Any

import pyarrow as pa

from pipeline import views
from pipeline.errors import UserError
from pipeline.known import Known, columns_known
from pipeline.ledger import Balance
from pipeline.stage import KEPT
from pipeline.storage import Store

BINS = 20


def write(known: Known, con: Any, balances: dict[str, Balance], facts: dict[str, Any], phases: list[dict[str, Any]]) -> dict[str, Any]:
    """Makes report/report.json from the views `known` and `selected`; returns it."""
    run, level = known.run, known.run.layout.level
    manifest = run.store.read_json("shards/manifest.json")
    report: dict[str, Any] = {
        "run": run.config.run.name,
        "shards_at": run.store.address(known.folder("shards")),
        "scored": "yes" if run.layout.scorer else "not scored",
        "scorer": run.layout.scorer,
        **facts,
        **_level(balances[level]),
        **({"parents": _level(balances["rows"])} if level == "children" else {}),
        "shards": {"count": len(manifest["shards"]), "samples": manifest["samples"], "bytes": sum(s["bytes"] for s in manifest["shards"])},
        "histograms": _histograms(known, con),
        "bytes": _bytes(con),
        "near_duplicates": _near_duplicates(known),
        "stages": _stages(run.store, con),
        "session": _session(phases),
    }
    run.store.write_json("report/report.json", report)
    return report


def _level(found: Balance) -> dict[str, Any]:
    dropped = dict(sorted(found.dropped.items(), key=lambda item: (-item[1], item[0])))
    return {"rows_in": found.rows_in, "kept": found.kept, "dropped": dropped}


def _session(phases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What this session did: jobs, rows and wall seconds of each phase, waiting for workers included.

    Rows are null where no worker had a job: nothing was missing, or (selection) DuckDB did it in the driver.
    """
    out = []
    for phase in phases:
        rows = sum(int(done.get("rows", 0)) for done in phase["done"]) if phase["jobs"] else None
        rate = rows and round(rows / max(phase["seconds"], 1e-9), 1)
        out.append({**{name: phase[name] for name in ("phase", "jobs", "seconds")}, "rows": rows, "rows_per_second": rate})
    return out


def _stages(store: Store, con: Any) -> dict[str, dict[str, float]]:
    """What each stage took in all sessions of the run together: rows, seconds, CPU seconds, rows a CPU second.

    Seconds are the sum over parts, of which a worker has several at once; CPU is null for download, which shares its thread.
    """
    paths = [f"metrics/{name}" for name in store.names("metrics", ".parquet")]
    columns = [("stage", pa.string()), ("rows", pa.int64()), ("seconds", pa.float64()), ("cpu_seconds", pa.float64())]
    views.files(con, "metrics", store, paths, pa.schema(columns))
    sql = "SELECT stage, sum(rows), round(sum(seconds), 3), round(sum(cpu_seconds), 3) FROM metrics GROUP BY stage ORDER BY stage"
    return {
        stage: {"rows": int(rows), "seconds": seconds, "cpu_seconds": cpu, "rows_per_cpu_second": cpu and round(rows / max(cpu, 1e-9), 1)}
        for stage, rows, seconds, cpu in con.execute(sql).fetchall()
    }


def _near_duplicates(known: Known) -> dict[str, dict[str, int]]:
    """Of each dedup phase: clusters, clustered rows, pairs that were cut, and what else its stage counted."""
    phases = [name for name in ("dedup", "image_dedup") if name in known.keys]
    return {name: known.run.store.read_json(f"{known.folder(name)}/done.json")["counts"] for name in phases}


def _histograms(known: Known, con: Any) -> dict[str, Any]:
    """Counts before and after selection of score and size, over the rows that have them; none of a stage that did not run."""
    there = columns_known(known.run)
    return {name: _histogram(con, name) for name in ("original_width", "original_height", "chars", "similarity") if name in there}


def _histogram(con: Any, column: str) -> dict[str, Any]:
    """Rows from each edge up to the next (the last one included), before and after selection; NaN and infinities stand in no bin."""
    value = f'k."{column}"'
    source = (
        f"(SELECT {value} AS x, s.fate = '{KEPT}' AS kept FROM known k JOIN selected s ON s.row = k.row "
        f"WHERE isfinite(CAST({value} AS DOUBLE)))"
    )
    low, high = con.execute(f"SELECT min(x), max(x) FROM {source}").fetchall()[0]
    if low is None:
        return {"edges": [], "rows": [], "kept": []}
    width = (high - low) / BINS or 1
    edges = [low + at * width for at in range(BINS)]
    bins = " ".join(f"WHEN x < CAST('{edge!r}' AS DOUBLE) THEN {at}" for at, edge in enumerate(edges[1:]))
    found = con.execute(
        f"SELECT CASE {bins} ELSE {BINS - 1} END AS bin, count(*), count(*) FILTER (kept) FROM {source} GROUP BY bin"
    ).fetchall()
    rows, kept = [0] * BINS, [0] * BINS
    for at, n, k in found:
        rows[at], kept[at] = n, k
    return {"edges": [*edges, max(high, edges[-1] + width)], "rows": rows, "kept": kept}


def _bytes(con: Any) -> dict[str, int]:
    once = "SELECT any_value(fetched_bytes) AS n FROM known GROUP BY fetch_id"
    (total,) = con.execute(f"SELECT coalesce(sum(n), 0) FROM ({once})").fetchall()[0]
    return {"downloaded": int(total)}


def show(run: str) -> None:
    """Prints the summary of a finished run, and whether it is of former shards or something was begun since.

    Raises UserError where there is none.
    """
    store = Store(run)
    if not store.exists("report/report.json"):
        raise UserError(f"{run}: no report here; run the config first")
    report = store.read_json("report/report.json")
    print_summary(report, store.address("report/report.json"))
    for line in _since(store, report) if store.exists("run.json") else []:
        print(line)


def _since(store: Store, report: dict[str, Any]) -> list[str]:
    """What is not as the report says, a line each."""
    from pipeline.runs import states

    begun, published = states(store)
    lines = []
    if published and published["keys"]["shards"] != report["shards_at"].rpartition("/")[2]:
        lines.append("former: this report is of former shards; `shardmill run` repeated makes that of the published ones")
    if published is not begun:
        lines.append(f"unfinished: {begun['where']} was begun after these shards; repeat `shardmill run`")
    return lines


def print_summary(report: dict[str, Any], path: str) -> None:
    """The summary that ends a run: the funnel with shares, what was made, where it lies, what to do next."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    title = f"{report['run']}: {report['rows_in']:,} rows in"
    table = Table(title=title, box=None, title_justify="left", title_style="bold", padding=(0, 2, 0, 0))
    table.add_column("fate")
    table.add_column("rows", justify="right")
    table.add_column("share", justify="right")
    table.add_column("")
    for fate, rows in [("kept", report["kept"]), *report["dropped"].items()]:
        share = rows / max(1, report["rows_in"])
        bar = "█" * max(1 if rows else 0, round(32 * share))
        table.add_row(fate, f"{rows:,}", f"{share:.1%}", bar, style="green" if fate == "kept" else None)
    console.print(table)
    shards = report["shards"]
    made = f"{shards['samples']:,} samples in {shards['count']:,} shards, {shards['bytes'] / 1e6:,.1f} MB"
    console.print(f"\n{made}: {report['shards_at']}", soft_wrap=True)
    if report["scored"] != "yes":
        console.print("not scored: no image was compared with its caption; mismatched pairs are still in", soft_wrap=True)
    else:
        console.print(f"scored by {report['scorer']}", soft_wrap=True)
    worked = [f"{p['phase']} {p['rows']:,} rows in {p['seconds']:,.1f} s" for p in report["session"] if p["rows"]]
    if worked:
        console.print(" · ".join(worked), soft_wrap=True)
    if "demonstration" in report:
        console.print(f"demonstration: {report['demonstration'].get('photographs')} distinct photographs; nothing to train on")
    console.print(f"took {report['seconds']:.1f} s, of which starting Ray {report['ray_start_s']:.1f} s")
    root = shlex.quote(report["shards_at"].rpartition("/shards/")[0])
    console.print(f"report: {path}\nnext:   shardmill verify {root}   ·   shardmill explain {root} URL", soft_wrap=True)
