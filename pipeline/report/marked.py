"""What the marking stages found, as figures of report.json: concepts in captions, and images that are near an evaluation set's."""

from __future__ import annotations

from typing import Any

from pipeline.known import Known, columns_known
from pipeline.phases.select import selection_stage
from pipeline.stage import KEPT

TOP, CURVE = 20, 80  # concepts that are listed at either end; places of the plot
HITS = 24  # rows beside their evaluation image


def concepts(known: Known, con: Any) -> dict[str, Any]:
    """Rows of each concept, all and kept: those with the most, those with the least, and the counts by rank; {} without the stage.

    A row counts for each of its concepts once. `mentions` is their sum, `top_share` the share of it that the `top` most frequent hundredth
    of the concepts holds; `curve` holds counts at places of equal ratio, each column in its own order. `cap`: of a rule max_per_concept.
    """
    if "concepts" not in columns_known(known.run):
        return {}
    held = "SELECT f.final, unnest(list_distinct(k.concepts)) AS concept FROM known k JOIN facts f ON f.row = k.row"
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE concept_counts AS SELECT concept, count(*) AS rows, count(*) FILTER (final = '{KEPT}') AS kept "
        f"FROM ({held}) GROUP BY concept"
    )
    ((found, mentions, kept),) = con.execute(
        "SELECT count(*), coalesce(sum(rows), 0), count(*) FILTER (kept > 0) FROM concept_counts"
    ).fetchall()
    ((without, without_kept),) = con.execute(
        f"SELECT count(*), count(*) FILTER (f.final = '{KEPT}') FROM known k JOIN facts f ON f.row = k.row WHERE len(k.concepts) = 0"
    ).fetchall()
    top = -(-found // 100)
    (share,) = con.execute(
        f"SELECT coalesce(sum(rows), 0) FROM (SELECT rows FROM concept_counts ORDER BY rows DESC LIMIT {top})"
    ).fetchall()[0]
    out = {
        "found": found,
        "found_kept": kept,
        "mentions": int(mentions),
        "rows_without": without,
        "kept_without": without_kept,
        "top": top,
        "top_share": round(int(share) / max(int(mentions), 1), 4),
        "most": _lines(con, f"SELECT * FROM concept_counts ORDER BY rows DESC, concept LIMIT {TOP}"),
        "least": _lines(con, f"SELECT * FROM concept_counts ORDER BY rows, concept LIMIT {TOP}") if found > TOP else [],
        "curve": {column: _curve(con, column, n) for column, n in (("rows", found), ("kept", kept))},
        "cap": next((rule.max_per_concept for rule in selection_stage(known).rules if rule.max_per_concept), None),
    }
    con.execute("DROP TABLE concept_counts")
    return out


def _curve(con: Any, column: str, total: int) -> list[list[int]]:
    """[rank from 1, count] at CURVE places of equal ratio at most, the first and the last among them."""
    ranks = sorted({round(total ** (n / (CURVE - 1))) for n in range(CURVE)}) if total else []
    listed = ", ".join(map(str, ranks)) or "NULL"
    ranked = f"SELECT row_number() OVER (ORDER BY {column} DESC) AS rank, {column} FROM concept_counts WHERE {column} > 0"
    return [list(line) for line in con.execute(f"SELECT * FROM ({ranked}) WHERE rank IN ({listed}) ORDER BY rank").fetchall()]


def decontamination(known: Known, con: Any) -> dict[str, Any]:
    """Rows near an image of each evaluation set, and some of them at even places from the nearest to the farthest; {} without the stage."""
    stage: Any = next((entry.stage for entry in known.run.layout.scores if entry.name == "decontaminate"), None)
    if stage is None:
        return {}
    sql = (
        f"SELECT split_part(eval_match, '/', 1) AS name, count(*) AS rows, count(*) FILTER (final = '{KEPT}') AS kept, "
        "count(DISTINCT eval_match) AS images FROM facts WHERE eval_match IS NOT NULL GROUP BY name"
    )
    found = {line["name"]: line for line in _lines(con, sql)}
    similarity = "eval_similarity" if "eval_similarity" in columns_known(known.run) else "CAST(NULL AS FLOAT)"
    order = "distance NULLS LAST, similarity DESC NULLS LAST, row"
    hits = (
        f"SELECT row, eval_match AS match, eval_distance AS distance, {similarity} AS similarity, final = '{KEPT}' AS kept FROM facts "
        "WHERE eval_match IS NOT NULL"
    )
    placed = f"SELECT *, row_number() OVER (ORDER BY {order}) - 1 AS n, count(*) OVER () AS total FROM ({hits})"
    shown = f"SELECT * EXCLUDE (n, total) FROM ({placed}) WHERE n = 0 OR n * {HITS} // total > (n - 1) * {HITS} // total ORDER BY n"
    none = {"rows": 0, "kept": 0, "images": 0}
    return {"sets": [{"name": name, **none, **found.get(name, {})} for name in stage.config.sets], "hits": _lines(con, shown)}


def _lines(con: Any, sql: str) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = con.sql(sql).to_arrow_table().to_pylist()
    return out
