"""Phase `ledger`: one line for each input row (and each child), composed from what is committed, and checked for balance."""

from __future__ import annotations

from typing import Any

from pipeline import views
from pipeline.known import Known
from pipeline.ledger import SCHEMA, Balance, balance
from pipeline.parts import part_name
from pipeline.phases import rows
from pipeline.stage import KEPT


def run_phase(known: Known, con: Any) -> dict[str, Balance]:
    """Writes ledger/KEY/part-N.parquet (and parents/ for rows that were expanded). Needs the views `rows` and `selected`.

    Returns the balance of each level: `rows`, and `children` where a stage expands rows.
    """
    run, folder = known.run, f"ledger/{known.keys['shards']}"
    level = run.layout.level
    parent = "r.parent" if level == "children" else "NULL"
    sink: Any = run.layout.shards.stage
    key = sink.key_sql("s.shard", 's."index"', shards_total(known))
    con.execute(
        f"CREATE OR REPLACE TEMP VIEW ledger AS SELECT r.part, r.row, {parent} AS parent, r.uid, r.url, s.fate, s.detail, "
        f"CAST(s.shard AS INTEGER) AS shard, CASE WHEN s.fate = '{KEPT}' THEN {key} END AS key FROM rows r JOIN selected s ON s.row = r.row"
    )
    _write(known, con, "ledger", folder)
    balances = {level: balance(con, "ledger", sum(part.rows for part in known.parts))}
    if level == "children":
        balances["rows"] = _parents(known, con, f"{folder}/parents")
    run.store.write_json(f"{folder}/done.json", {name: vars(found) for name, found in balances.items()})
    return balances


def committed(known: Known) -> dict[str, Balance] | None:
    """The balances that `run_phase` wrote, or None where a file of the ledger is missing."""
    store, folder = known.run.store, f"ledger/{known.keys['shards']}"
    wanted = {folder: len(known.parts)}
    if known.run.layout.level == "children":
        wanted[f"{folder}/parents"] = len(rows.parts(known.run, known.files, "rows"))
    if not store.exists(f"{folder}/done.json") or any(len(store.names(at, ".parquet")) != parts for at, parts in wanted.items()):
        return None
    return {name: Balance(**found) for name, found in store.read_json(f"{folder}/done.json").items()}


def shards_total(known: Known) -> int:
    """How many shards the selection made."""
    return int(known.run.store.read_json(f"{known.folder('selection')}/done.json")["shards"])


def _parents(known: Known, con: Any, folder: str) -> Balance:
    """The level of the input rows: a parent is kept when it has children; what became of them stands in their own lines."""
    parts = rows.parts(known.run, known.files, "rows")
    views.rows(con, "parents", known.run.store, parts, known.row_schema("rows"))
    con.execute(
        "CREATE OR REPLACE TEMP VIEW parents_ledger AS SELECT part, row, NULL AS parent, uid, url, fate, detail, "
        "NULL AS shard, NULL AS key FROM parents"
    )
    _write(known, con, "parents_ledger", folder)
    return balance(con, "parents_ledger", sum(part.rows for part in parts))


def _write(known: Known, con: Any, view: str, folder: str) -> None:
    for part, table in views.grouped(con, f"SELECT * FROM {view} ORDER BY part, row", "part"):
        known.run.store.write_table(f"{folder}/{part_name(part)}", table.select(SCHEMA.names).cast(SCHEMA))


def view_ledger(known: Known, con: Any) -> None:
    """View `ledger` over the committed files."""
    folder = f"ledger/{known.keys['shards']}"
    paths = [f"{folder}/{name}" for name in known.run.store.names(folder, ".parquet")]
    views.files(con, "ledger", known.run.store, paths, SCHEMA)
