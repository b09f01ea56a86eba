"""The rows of the input where a stage makes several rows of one, as a video's clips: their own fates, and how many came of each."""

from __future__ import annotations

from typing import Any

from pipeline.known import Known
from pipeline.ledger import Balance
from pipeline.report import examples, seconds, tables
from pipeline.stage import KEPT


def find(known: Known, con: Any, found: Balance) -> dict[str, Any]:
    """`funnel`: the fates of the input's rows; `children`: the histogram of how many rows were made of one, whose `kept` are the rows of
    which any was kept; `with_kept`: how many those are; `seconds`: see seconds.py. Needs the table `facts` and the view `known`; leaves the
    view `parents`.
    """
    known.view_parents(con)
    made = f"SELECT count(*) AS children, CASE WHEN count(*) FILTER (f.final = '{KEPT}') > 0 THEN '{KEPT}' END AS final"
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE of_parents AS {made} FROM known k JOIN facts f ON f.row = k.row GROUP BY k.parent",
    )
    children = tables.histogram(con, "children", "of_parents")
    con.execute("DROP TABLE of_parents")
    funnel = tables.funnel(known, found.kept, found.dropped)
    funnel[-1]["meaning"] = "rows were made of it, whose fates stand below"
    return {"funnel": funnel, "children": children, "with_kept": sum(children["kept"]), "seconds": seconds.find(known, con)}


def shown(con: Any, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Fate -> a few of the input's rows, by chance. Needs the view `parents`."""
    order = f"md5(concat_ws(':', {seed}, row))"
    chosen = con.execute(f"SELECT arg_min(row, {order}, {examples.EACH}) FROM parents GROUP BY fate").fetchall()
    rows = ", ".join(str(row) for (found,) in chosen for row in found) or "NULL"
    texts = ", ".join(f"left({name}, {examples.CHARS}) AS {name}" for name in ("url", "stored_at", "source_caption", "detail"))
    out: dict[str, list[dict[str, Any]]] = {}
    sql = f"SELECT row, source_id, fate, {texts} FROM parents WHERE row IN ({rows}) ORDER BY {order}"
    for line in con.sql(sql).to_arrow_table().to_pylist():
        out.setdefault(line["fate"], []).append(line)
    return out
