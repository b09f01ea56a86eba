"""`shardmill report`: what came of a run, as report.json, as a page to look at, and as a summary on the terminal.

Every count is a query over committed files (`tables`, `whatif`); `examples` picks rows to look at, `concerns` what to ask about,
`page` and `card` write it down.
"""

from __future__ import annotations

import shlex
from importlib import metadata
from typing import Any

from pipeline import thumbnails, views
from pipeline.errors import UserError
from pipeline.keys import digest
from pipeline.known import Known
from pipeline.ledger import Balance
from pipeline.report import card, concerns, marked, page, parents, seconds, tables, whatif, work
from pipeline.storage import Store

FORMER, GONE = "former: ", "run.json is missing: this report cannot be made anew"
PAGES = ("index.html", "README.md", "croissant.json")
FILES = {*PAGES, "report.json", thumbnails.SHEET.rpartition("/")[2]}  # beside them comparisons may lie, which are no part of it
PAGE_ROWS = 100_000  # above, a run does not wait for the page: `shardmill report RUN` writes it


def write(known: Known, con: Any, balances: dict[str, Balance], facts: dict[str, Any], phases: list[dict[str, Any]]) -> dict[str, Any]:
    """Makes report/report.json from the views of `view_known`, and `selected`; returns it."""
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
        "bytes": _bytes(con),
        "near_duplicates": _near_duplicates(known),
        "session": _session(phases),
    }
    report |= figures(known, con, balances, whole := report["rows_in"] <= PAGE_ROWS)
    report["warnings"] = concerns.find(report)
    if whole:
        pages(known, con, report)
    else:  # those of former shards would be taken for these ones'
        for name in PAGES:
            run.store.remove(f"report/{name}")
    report["files"] = [name for name in run.store.names("report") if name in FILES]
    run.store.write_json("report/report.json", report)
    return report


def key(known: Known, facts: dict[str, Any]) -> str:
    """What a report follows from: another key, another report. `facts`: those of the input."""
    told = {"shards": known.keys["shards"], "report": known.run.config.report.model_dump(mode="json"), "facts": facts}
    return digest({**told, "version": metadata.version("shardmill")})


def standing(known: Known, key: str) -> dict[str, Any] | None:
    """report.json, where it is of this key and the run lies where it says, with all that was written beside it; else None."""
    store = known.run.store
    report: dict[str, Any] = store.read_json("report/report.json") if store.exists("report/report.json") else {}
    whole = report.get("key") == key and {*report["files"]} <= {*store.names("report")}
    return report if whole and report["shards_at"] == store.address(known.folder("shards")) else None


def pages(known: Known, con: Any, report: dict[str, Any]) -> None:
    """Writes what people and other programs read beside report.json. Needs the table `facts`."""
    page.write(known, con, report)
    card.write(known, report, page.template("card.md"))


def sheet(known: Known) -> dict[str, str | None]:
    """Writes report/samples.jpg, or removes it where the config wants no pictures; what report.json says of it."""
    store, wanted = known.run.store, known.run.config.report
    if not wanted.thumbnails:
        store.remove(thumbnails.SHEET)  # of a former run, which had it
        return {}
    names = [f"{known.folder('shards')}/{shard['name']}" for shard in store.read_json("shards/manifest.json")["shards"]]
    if names and not store.exists(names[0]):
        return {}  # the tars were taken elsewhere: the sheet stays as it is
    return {"samples_at": thumbnails.write(store, names, thumbnails.Unsafe(wanted.unsafe_by, wanted.unsafe))}


def remake(run: str) -> dict[str, Any]:
    """Counts and writes the whole report of a finished run again, samples.jpg too.

    What its session took is kept from the report that is there.
    """
    from pipeline.phases.select import view_selected
    from pipeline.runs import reopen

    known = reopen(run)
    store = known.run.store
    report: dict[str, Any] = store.read_json("report/report.json")
    ledger = store.read_json(f"ledger/{known.keys['shards']}/done.json")
    with views.connect(store) as con:
        known.view_known(con, "known", image_dedup=True)
        view_selected(known, con)
        report["shards_at"] = store.address(known.folder("shards"))  # the run may have been moved
        report |= figures(known, con, {level: Balance(**found) for level, found in ledger.items()}, whole=True)
        report["warnings"] = concerns.find(report)
        report |= sheet(known)
        pages(known, con, report)
    store.write_json("report/report.json", report)
    return report


def figures(known: Known, con: Any, balances: dict[str, Balance], whole: bool) -> dict[str, Any]:
    """All that is counted over the rows; without `whole`, not what other thresholds would keep. Leaves the table `facts`."""
    found = balances[known.run.layout.level]
    tables.make_facts(known, con)
    work.view(known.run.store, con)
    scores = whatif.columns(known, con) if whole and whatif.possible(known) else []
    return {
        "funnel": tables.funnel(known, found.kept, found.dropped),
        "expanded": parents.find(known, con, balances["rows"]) if known.run.layout.expand else {},
        "fetches": tables.fetches(con),
        "histograms": tables.histograms(con, tables.measures(known)),
        "categories": tables.categories(known, con),
        "hosts": tables.hosts(con),
        "tlds": tables.hosts(con, "tld"),
        "clusters": tables.clusters(known, con),
        "repeats": tables.repeats(known, con),
        "concepts": marked.concepts(known, con),
        "decontamination": marked.decontamination(known, con),
        "stages": work.stages(con),
        "throughput": work.throughput(con),
        "what_if": [one for column in scores if (one := whatif.make(known, con, column, found.kept))["thresholds"]],
    }


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


def _near_duplicates(known: Known) -> dict[str, dict[str, int]]:
    """Of each dedup phase: clusters, clustered rows, pairs that were cut, and what else its stage counted."""
    phases = [name for name in ("dedup", "image_dedup") if name in known.keys]
    return {name: known.run.store.read_json(f"{known.folder(name)}/done.json")["counts"] for name in phases}


def _bytes(con: Any) -> dict[str, int]:
    fetched = "fetch_id IN (SELECT fetch_id FROM fetch_of)"
    (total,) = con.execute(f"SELECT coalesce(sum(fetched_bytes), 0) FROM pool WHERE {fetched}").fetchall()[0]
    return {"downloaded": int(total)}


def shown_at(folder: str, report: dict[str, Any]) -> str:
    """What to open: the page, or report.json where the run did not wait for a page."""
    return f"{folder}/report/{'index.html' if report['rows_in'] <= PAGE_ROWS else 'report.json'}"


def show(run: str) -> None:
    """Makes the page anew and prints the summary, and whether it is of former shards or something was begun since.

    Raises UserError where there is none.
    """
    store = Store(run)
    if not store.exists("report/report.json"):
        raise UserError(f"{run}: no report here; run the config first")
    report = store.read_json("report/report.json")
    since = _since(store, report) if store.exists("run.json") else [GONE]
    if not any(line.startswith((FORMER, GONE)) for line in since):
        report = remake(run)
    print_summary(report, store.address("report/index.html"))
    for line in since:
        print(line)


def _since(store: Store, report: dict[str, Any]) -> list[str]:
    """What is not as the report says, a line each."""
    from pipeline.runs import states

    begun, published = states(store)
    lines = []
    if published and published["keys"]["shards"] != report["shards_at"].rpartition("/")[2]:
        lines.append(f"{FORMER}this report is of former shards; `shardmill run` repeated makes that of the published ones")
    if published is not begun:
        lines.append(f"unfinished: {begun['where']} was begun after these shards; repeat `shardmill run`")
    return lines


def print_summary(report: dict[str, Any], path: str) -> None:
    """The summary that ends a run: the funnel with shares, what was made, where it lies, what to do next."""
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False)
    levels = [(f"{report['run']}: {report['rows_in']:,} rows in", "kept", report)]
    if "parents" in report:  # `kept` of the input's rows are those that others were made of
        levels = [(f"{report['run']}: {report['parents']['rows_in']:,} rows in", "expanded", report["parents"])]
        levels.append((f"\n{report['rows_in']:,} rows made of them", "kept", report))
    for title, name, level in levels:
        table = Table(title=title, box=None, title_justify="left", title_style="bold", padding=(0, 2, 0, 0))
        for column in ("fate", "rows", "share", ""):
            table.add_column(column, justify="right" if column in {"rows", "share"} else "left")
        for fate, rows in [(name, level["kept"]), *level["dropped"].items()]:
            share = rows / max(1, level["rows_in"])
            bar = "█" * max(1 if rows else 0, round(32 * share))
            table.add_row(fate, f"{rows:,}", f"{share:.1%}", bar, style="green" if fate == name else None)
        console.print(table)
    for line in seconds.told((report.get("expanded") or {}).get("seconds", {})):
        console.print(line, soft_wrap=True)
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
        console.print(f"{report['demonstration']['text']}; nothing to train on")
    console.print(f"took {report['seconds']:.1f} s, of which starting Ray {report['ray_start_s']:.1f} s")
    root = shlex.quote(report["shards_at"].rpartition("/shards/")[0])
    console.print(f"report: {path}\nnext:   shardmill verify {root}   ·   shardmill explain {root} URL", soft_wrap=True)
