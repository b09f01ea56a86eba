"""`shardmill compare`: two runs side by side, as JSON and as a page: fates, distributions, overlap by uid, and which rows moved, and why.

A row that stands in a list n times is the same row n times: rows are paired by uid and, among equal uids, by their order.
"""

from __future__ import annotations

import json
from typing import Any

from pipeline import views
from pipeline.errors import UserError
from pipeline.known import Known
from pipeline.ledger import Balance
from pipeline.phases.select import view_selected
from pipeline.report import page, tables
from pipeline.runs import reopen
from pipeline.stage import KEPT

MOVES, EACH, CHARS = 30, 5, 200  # kinds of moves that are told, rows of each, characters of a text
VALUE = 5_000  # characters of a value of a config
MOVED = "FROM facts_a a JOIN facts_b b ON a.uid = b.uid AND a.nth = b.nth WHERE a.final <> b.final"  # rows of both whose fate differs


def compare(run_a: str, run_b: str) -> dict[str, Any]:
    """Compares two finished runs; all counts are of their committed files. Raises UserError where one is unfinished."""
    a, b = reopen(run_a), reopen(run_b)
    for known, folder in ((a, run_a), (b, run_b)):
        if not known.published:
            raise UserError(f"{folder}: the run is not finished; repeat `shardmill run`")
    with views.connect(b.run.store) as con:
        if not a.run.store.local and a.run.store.fs.protocol != b.run.store.fs.protocol:  # else DuckDB has it already
            con.register_filesystem(a.run.store.committed)
        _make(a, con, "facts_a")
        _make(b, con, "facts_b")
        names = [name for name in tables.measures(b) if name in tables.measures(a)]
        return {
            "a": _side(a, con, "facts_a", run_a),
            "b": _side(b, con, "facts_b", run_b),
            "config": _differences(a, b),
            "expanded": _expanded(a, b),
            "funnel": _funnel(con),
            "overlap": _overlap(con),
            "moved": _moved(con),
            "moves": _moves(con),
            "histograms": {name: found for name in names if (found := _histograms(con, name))},
            "categories": _categories(con, [name for name in tables.categories_of(b) if name in tables.categories_of(a)]),
        }


def _make(known: Known, con: Any, name: str) -> None:
    """Table `name`: the run's facts, with `nth`: which of the rows with its uid a row is."""
    known.view_known(con, "known", image_dedup=True)
    view_selected(known, con)
    tables.make_facts(known, con)
    con.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS SELECT *, row_number() OVER (PARTITION BY uid ORDER BY row) AS nth FROM facts")
    con.execute("DROP TABLE facts")


def _side(known: Known, con: Any, name: str, folder: str) -> dict[str, Any]:
    ((rows, kept),) = con.execute(f"SELECT count(*), count(*) FILTER (final = '{KEPT}') FROM {name}").fetchall()
    return {"run": known.run.config.run.name, "folder": folder, "shards": known.keys["shards"], "rows_in": rows, "kept": kept}


def _differences(a: Known, b: Known) -> list[dict[str, Any]]:
    """The config's keys that differ, as texts; names and places of the runs are left out."""
    one, other = (_flat((known.run.given or known.run.config).model_dump(mode="json")) for known in (a, b))
    skipped = ("run.name", "run.root", "about")
    keys = [key for key in dict.fromkeys((*one, *other)) if not key.startswith(skipped)]
    return [{"key": key, "a": _short(one.get(key)), "b": _short(other.get(key))} for key in keys if one.get(key) != other.get(key)]


def _short(text: str | None) -> str | None:
    return f"{text[:VALUE]} …" if text and len(text) > VALUE else text


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Dotted key -> text; the rules of a selection go by their names."""
    if isinstance(value, list) and all(isinstance(one, dict) and "name" in one for one in value):
        value = {one["name"]: {key: inner for key, inner in one.items() if key != "name"} for one in value}
    if isinstance(value, dict) and value:
        return {
            key: text for name, inner in value.items() for key, text in _flat(inner, f"{prefix}.{name}" if prefix else str(name)).items()
        }
    return {prefix: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}


def _funnel(con: Any) -> list[dict[str, Any]]:
    """Rows of each fate in both runs, the greatest first."""
    counts = "SELECT final AS fate, count(*) AS rows FROM {} GROUP BY final"
    sql = (
        "SELECT fate, coalesce(x.rows, 0) AS a, coalesce(y.rows, 0) AS b "
        f"FROM ({counts.format('facts_a')}) x FULL JOIN ({counts.format('facts_b')}) y USING (fate) "
        f"ORDER BY fate <> '{KEPT}', coalesce(x.rows, 0) + coalesce(y.rows, 0) DESC, fate"
    )
    return _lines(con, sql)


def _expanded(a: Known, b: Known) -> list[dict[str, Any]]:
    """Of runs that make several rows of one: fate and rows of the input's rows in both (null where a run makes none); else []."""
    if not (a.run.layout.expand or b.run.layout.expand):
        return []
    ended = [_of_input(known) if known.run.layout.expand else None for known in (a, b)]
    dropped = [balance.dropped if balance else {} for balance in ended]
    lines: list[dict[str, Any]] = [{"fate": "expanded", "a": ended[0] and ended[0].kept, "b": ended[1] and ended[1].kept}]
    for fate in sorted({*dropped[0], *dropped[1]}, key=lambda fate: (-sum(one.get(fate, 0) for one in dropped), fate)):
        lines.append({"fate": fate, "a": ended[0] and dropped[0].get(fate, 0), "b": ended[1] and dropped[1].get(fate, 0)})
    return lines


def _of_input(known: Known) -> Balance:
    """What became of the input's rows, as the ledger has it."""
    return Balance(**known.run.store.read_json(f"ledger/{known.keys['shards']}/done.json")["rows"])


def _categories(con: Any, names: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Kept rows of both runs by the most frequent values of a column."""
    return {name: found for name in names if (found := _values(con, name))}


def _values(con: Any, name: str) -> list[dict[str, Any]]:
    there = f"final = '{KEPT}' AND \"{name}\" IS NOT NULL"
    counts = f'SELECT CAST("{name}" AS VARCHAR) AS value, count(*) AS rows FROM {{}} WHERE {there} GROUP BY ALL'
    return _lines(
        con,
        "SELECT value, coalesce(x.rows, 0) AS a, coalesce(y.rows, 0) AS b "
        f"FROM ({counts.format('facts_a')}) x FULL JOIN ({counts.format('facts_b')}) y USING (value) "
        f"ORDER BY coalesce(x.rows, 0) + coalesce(y.rows, 0) DESC, value LIMIT {tables.TOP_VALUES}",
    )


def _overlap(con: Any) -> dict[str, int]:
    """Rows that both lists hold, or one; and of those that both hold, who keeps them."""
    kept_a, kept_b = f"a.final = '{KEPT}'", f"b.final = '{KEPT}'"
    ((both, only_a, only_b, kept_both, kept_only_a, kept_only_b),) = con.execute(
        "SELECT count(*) FILTER (a.row IS NOT NULL AND b.row IS NOT NULL), count(*) FILTER (b.row IS NULL), "
        "count(*) FILTER (a.row IS NULL), "
        f"count(*) FILTER ({kept_a} AND {kept_b}), count(*) FILTER ({kept_a} AND b.final <> '{KEPT}'), "
        f"count(*) FILTER (a.final <> '{KEPT}' AND {kept_b}) FROM facts_a a FULL JOIN facts_b b ON a.uid = b.uid AND a.nth = b.nth"
    ).fetchall()
    rows = {"in_both": both, "only_in_a": only_a, "only_in_b": only_b}
    return {**rows, "kept_by_both": kept_both, "kept_by_a_alone": kept_only_a, "kept_by_b_alone": kept_only_b}


def overlap_told(found: dict[str, Any]) -> list[tuple[str, int]]:
    """The overlap in words, the runs by their letters and names."""
    a, b = (f"{side.upper()} ({found[side]['run']})" for side in "ab")
    words = {
        "in_both": "in both lists",
        "only_in_a": f"only in the list of {a}",
        "only_in_b": f"only in the list of {b}",
        "kept_by_both": "in both, kept by both",
        "kept_by_a_alone": f"in both, kept by {a} alone",
        "kept_by_b_alone": f"in both, kept by {b} alone",
    }
    return [(words[name], rows) for name, rows in found["overlap"].items()]


def _moved(con: Any) -> dict[str, int]:
    """Rows of both runs whose fate differs, and in how many ways."""
    sql = f"SELECT count(*) AS rows, count(DISTINCT (a.final, b.final)) AS kinds {MOVED}"
    return _lines(con, sql)[0]


def _moves(con: Any) -> list[dict[str, Any]]:
    """The most frequent of them, by their two fates, with a few of each. Needs B's view `known`."""
    sql = (
        f"SELECT a.final AS a, b.final AS b, count(*) AS rows, arg_min({{'a': a.row, 'b': b.row, 'why_a': a.said, "
        f"'why_b': b.said}}, md5(CAST(b.row AS VARCHAR)), {EACH}) AS examples {MOVED} "
        f"GROUP BY a.final, b.final ORDER BY rows DESC, a.final, b.final LIMIT {MOVES}"
    )
    moves = _lines(con, sql)
    rows = ", ".join(str(one["b"]) for move in moves for one in move["examples"]) or "NULL"
    texts = con.execute(f"SELECT row, url, source_caption FROM known WHERE row IN ({rows})").fetchall()
    told = {row: {"url": (url or "")[:CHARS], "caption": (caption or "")[:CHARS]} for row, url, caption in texts}
    for move in moves:
        move["examples"] = [{**one, **told[one["b"]]} for one in move["examples"]]
    return moves


def _histograms(con: Any, name: str) -> dict[str, Any]:
    """A column's histograms over the same bins; {} where no row of either has a number."""
    both = f'(SELECT "{name}", final FROM facts_a UNION ALL SELECT "{name}", final FROM facts_b)'
    whole = tables.histogram(con, name, both)
    if not whole["rows"] or whole["distinct"] < 2:
        return {}
    edges = whole["edges"], whole["scale"]
    found = [tables.histogram(con, name, table, edges) for table in ("facts_a", "facts_b")]
    nothing = [0] * len(whole["rows"])
    sides = {side: {key: one[key] or nothing for key in ("rows", "kept")} for side, one in zip("ab", found, strict=True)}
    return {**{key: whole[key] for key in ("edges", "scale", "whole")}, **sides}


def _lines(con: Any, sql: str) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = con.sql(sql).to_arrow_table().to_pylist()
    return out


def show(run_a: str, run_b: str) -> None:
    """Writes report/compare-NAME-KEY.json and .html into the second run, for the first one's name and shards; prints the fates."""
    from rich.console import Console
    from rich.table import Table

    found = compare(run_a, run_b)
    store = reopen(run_b).run.store
    name = f"report/compare-{found['a']['run']}-{found['a']['shards'][:8]}"
    store.write_json(f"{name}.json", found)
    columns = [column for column, one in found["histograms"].items() if sum(one["a"]["kept"]) + sum(one["b"]["kept"])]
    values: dict[str, Any] = {"found": found, "overlap": overlap_told(found), "columns": columns}
    store.write(f"{name}.html", page.html("compare.html", "compare.js", {"histograms": found["histograms"]}, **values).encode())
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("fate", "A", "B", "B - A"):
        table.add_column(column, justify="left" if column == "fate" else "right")
    for line in found["funnel"]:
        table.add_row(line["fate"], f"{line['a']:,}", f"{line['b']:,}", f"{line['b'] - line['a']:+,}")
    console = Console(markup=False)
    for side in "ab":
        console.print(f"{side.upper()}: {found[side]['run']}, {found[side]['folder']}", soft_wrap=True)
    console.print(table)
    for words, rows in overlap_told(found):
        console.print(f"{words}: {rows:,}", soft_wrap=True)
    console.print(f"comparison: {store.address(name + '.html')}", soft_wrap=True)
