"""Phase `selection`: which rows are kept, by rules and clusters over all columns, and each one's shard and place."""

from __future__ import annotations

from typing import Any

from pipeline import views
from pipeline.errors import ContractError
from pipeline.known import Known
from pipeline.ledger import SELECTION as SCHEMA
from pipeline.parts import part_name
from pipeline.phases import append
from pipeline.workers import Done


def run_phase(known: Known, con: Any) -> list[Done]:
    """Writes selection/KEY/part-N.parquet for all rows, then done.json. Needs the views `known` and `rows`."""
    layout, store, folder = known.run.layout, known.run.store, known.folder("selection")
    stage = selection_stage(known)
    dedup = layout.dedup.stage.config.on if layout.dedup else None
    stage.run(con, "known", seed=known.run.config.run.seed, shards=layout.shards.stage.config, dedup_on=dedup)
    if known.appends_to:
        append.merge(known, con, known.appends_to, dedup)
    rows = 0
    sql = "SELECT r.part, s.* FROM selected s JOIN rows r ON r.row = s.row ORDER BY r.part, s.row"
    for part, table in views.grouped(con, sql, "part"):
        store.write_table(f"{folder}/{part_name(part)}", table.select(SCHEMA.names).cast(SCHEMA))
        rows += len(table)
    expected = sum(part.rows for part in known.parts)
    if rows != expected:
        raise ContractError(f"selection gave {rows} fates for {expected} rows")
    kept, shards = con.execute("SELECT count(*) FILTER (fate = 'kept'), coalesce(max(shard) + 1, 0) FROM selected").fetchall()[0]
    store.write_json(f"{folder}/done.json", {"rows": rows, "kept": kept, "shards": shards})
    return []


def selection_stage(known: Known) -> Any:
    """The config's selection, or one without rules."""
    from stages.selection import Selection

    entry = known.run.layout.selection
    return entry.stage if entry else Selection()


def view_selected(known: Known, con: Any) -> None:
    """View `selected` over the committed selection."""
    folder = known.folder("selection")
    paths = [f"{folder}/{name}" for name in known.run.store.names(folder, ".parquet")]
    views.files(con, "selected", known.run.store, paths, SCHEMA)
