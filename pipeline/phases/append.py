"""Selection after `retry --append`: what was kept stays where it is, and the newly kept rows get shards of their own after it."""

from __future__ import annotations

from typing import Any

from pipeline import views
from pipeline.known import Known
from pipeline.ledger import SELECTION as SCHEMA

MEMBERS = {"caption": ["cluster"], "image": ["image_cluster"], "both": ["cluster", "image_cluster"]}


def merge(known: Known, con: Any, base: dict[str, Any], dedup_on: str | None) -> None:
    """Turns table `selected` (all rows chosen anew) into the selection that extends `base` (a retry's note).

    A newly fetched row that would win its cluster over a row already in a shard is dropped as its near-duplicate.
    """
    store, before = known.run.store, f"selection/{base['selection']}"
    shards = int(store.read_json(f"{before}/done.json")["shards"])
    views.files(con, "previous", store, [f"{before}/{name}" for name in store.names(before, ".parquet")], SCHEMA)
    columns = [name for name in MEMBERS.get(dedup_on or "", []) if name in _columns(con)]
    taken = "false"
    if columns:
        names = ", ".join(f'k."{name}"' for name in columns)
        con.execute(
            f"CREATE OR REPLACE TEMP TABLE taken AS SELECT DISTINCT {names} FROM known k "
            "JOIN previous p ON p.row = k.row WHERE p.fate = 'kept'"
        )
        taken = "EXISTS (SELECT 1 FROM taken t WHERE " + " AND ".join(f't."{name}" = k."{name}"' for name in columns) + ")"
    con.execute(
        "CREATE OR REPLACE TEMP TABLE merged AS SELECT s.row, p.fate = 'kept' AS old, s.fate = 'kept' AND p.fate <> 'kept' AS fresh, "
        f'{taken} AS taken, s.fate, s.detail, p.shard, p."index" '
        "FROM selected s JOIN previous p ON p.row = s.row JOIN known k ON k.row = s.row"
    )
    samples, seed = known.run.layout.shards.stage.config.samples, known.run.config.run.seed
    con.execute(
        "CREATE OR REPLACE TEMP TABLE fresh AS SELECT row, CAST(row_number() OVER (ORDER BY md5(concat_ws(':', "
        f"{seed}, row))) - 1 AS BIGINT) AS n, CAST(count(*) OVER () AS BIGINT) AS total FROM merged WHERE fresh AND NOT taken"
    )
    duplicate = "selection:near_duplicate_" + ("image" if dedup_on == "image" else "caption")
    con.execute(
        "CREATE OR REPLACE TEMP TABLE selected AS SELECT m.row, "
        f"CASE WHEN m.old THEN 'kept' WHEN m.fresh AND m.taken THEN '{duplicate}' ELSE m.fate END AS fate, "
        "CASE WHEN m.old THEN NULL WHEN m.fresh AND m.taken THEN 'a row of its cluster was in a shard already' "
        "ELSE m.detail END AS detail, "
        f"CAST(CASE WHEN f.row IS NULL THEN m.shard ELSE {shards} + f.n // {samples} END AS INTEGER) AS shard, "
        f'CAST(CASE WHEN m.old THEN m."index" WHEN f.row IS NOT NULL THEN f.n % {samples} END AS INTEGER) AS "index" '
        "FROM merged m LEFT JOIN fresh f ON f.row = m.row"
    )


def _columns(con: Any) -> set[str]:
    return {name for name, *_ in con.execute("DESCRIBE known").fetchall()}
