"""Selection after `retry --append`: what was kept stays where it is, and the newly kept rows get shards of their own after it."""

from __future__ import annotations

from typing import Any

from pipeline import views
from pipeline.known import Known
from pipeline.ledger import SELECTION as SCHEMA
from pipeline.stage import KEPT

DETAIL = "a row of its cluster stood in a shard before the retry"


def merge(known: Known, con: Any, base: dict[str, Any], dedup_on: str | None) -> None:
    """Turns table `selected` (all rows chosen anew) into the selection that extends `base` (a retry's note).

    A newly fetched row that would win its cluster over a row already in a shard is dropped as its near-duplicate.
    """
    store, before = known.run.store, f"selection/{base['selection']}"
    shards = int(store.read_json(f"{before}/done.json")["shards"])
    views.files(con, "previous", store, [f"{before}/{name}" for name in store.names(before, ".parquet")], SCHEMA)
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE merged AS SELECT s.row, p.fate = '{KEPT}' AS old, "
        f"s.fate = '{KEPT}' AND p.fate <> '{KEPT}' AS fresh, "
        f'{_taken(con, dedup_on)} AS taken, s.fate, s.detail, p.shard, p."index" '
        "FROM selected s JOIN previous p ON p.row = s.row JOIN known k ON k.row = s.row"
    )
    samples, seed = known.run.layout.shards.stage.config.samples, known.run.config.run.seed
    con.execute(
        "CREATE OR REPLACE TEMP TABLE fresh AS SELECT row, CAST(row_number() OVER (ORDER BY md5(concat_ws(':', "
        f"{seed}, row))) - 1 AS BIGINT) AS n FROM merged WHERE fresh AND taken IS NULL"
    )
    con.execute(
        "CREATE OR REPLACE TEMP TABLE selected AS SELECT m.row, "
        f"CASE WHEN m.old THEN '{KEPT}' WHEN m.fresh AND m.taken IS NOT NULL THEN m.taken ELSE m.fate END AS fate, "
        f"CASE WHEN m.old THEN NULL WHEN m.fresh AND m.taken IS NOT NULL THEN {views.quote(DETAIL)} ELSE m.detail END AS detail, "
        f"CAST(CASE WHEN f.row IS NULL THEN m.shard ELSE {shards} + f.n // {samples} END AS INTEGER) AS shard, "
        f'CAST(CASE WHEN m.old THEN m."index" WHEN f.row IS NOT NULL THEN f.n % {samples} END AS INTEGER) AS "index" '
        "FROM merged m LEFT JOIN fresh f ON f.row = m.row"
    )


def _taken(con: Any, dedup_on: str | None) -> str:
    """SQL of the fate of a row whose place (in a cluster, say) a row of the former shards holds already; else null."""
    from stages.selection import passes

    columns = {name: kind for name, kind, *_ in con.execute("DESCRIBE known").fetchall()}
    whens = []
    for number, (names, reason) in enumerate(passes(columns, dedup_on)):
        listed = ", ".join(f'k."{name}"' for name in names)
        con.execute(
            f"CREATE OR REPLACE TEMP TABLE taken_{number} AS SELECT DISTINCT {listed} FROM known k "
            f"JOIN previous p ON p.row = k.row WHERE p.fate = '{KEPT}'"
        )
        same = " AND ".join(f't."{name}" = k."{name}"' for name in names)
        whens.append(f"WHEN EXISTS (SELECT 1 FROM taken_{number} t WHERE {same}) THEN 'selection:{reason}'")
    return f"CASE {' '.join(whens)} END" if whens else "CAST(NULL AS VARCHAR)"
