"""Seconds of a corpus of videos, over the union of spans: overlaps count once, so that in = kept + dropped by reason.

Two balances: of the cues, which became segments or were lost (each video's detail in the ledger says it), and of the segments, which became
clips in the shards or fell later. Segments hold the pauses between their cues too, so theirs is not the first one's `kept`.
"""

from __future__ import annotations

from typing import Any

from pipeline.known import Known
from pipeline.stage import KEPT

IN = r"^(\d+\.\d{3}) s of cues: "
EACH = r"([a-z_]+) (\d+\.\d{3})"


def find(known: Known, con: Any) -> dict[str, Any]:
    """`cues` and `segments`, each {"in", "kept", "dropped"}; {} where the run has no spans of time. Needs the table `facts` and the views
    `known` and `parents`."""
    if not {"start_s", "end_s"} <= {name for name, *_ in con.execute("DESCRIBE facts").fetchall()}:
        return {}
    found = {"cues": _cues(con), "segments": _segments(known, con)}
    return {name: one for name, one in found.items() if one["in"]}


def told(found: dict[str, Any]) -> list[str]:
    """A line for each balance."""
    names = {"cues": ("of cues", "in segments"), "segments": ("of segments", "kept")}
    return [f"seconds {of}: {_sum(found[name], kept)}" for name, (of, kept) in names.items() if name in found]


def _sum(one: dict[str, Any], kept: str) -> str:
    lost = ", ".join(f"{reason} {seconds:,.1f}" for reason, seconds in one["dropped"].items())
    return f"{one['in']:,.1f} = {one['kept']:,.1f} {kept} + {sum(one['dropped'].values()):,.1f} dropped" + (f" ({lost})" if lost else "")


def _cues(con: Any) -> dict[str, Any]:
    source, number = f"FROM parents WHERE regexp_matches(detail, '{IN}')", "DECIMAL(18, 3)"
    ((total,),) = con.execute(f"SELECT sum(CAST(regexp_extract(detail, '{IN}', 1) AS {number})) {source}").fetchall()
    both = ", ".join(f"unnest(regexp_extract_all(detail, '{EACH}', {n})) AS {name}" for n, name in ((1, "name"), (2, "s")))
    sql = f"SELECT name, sum(CAST(s AS {number})) FROM (SELECT {both} {source}) GROUP BY name ORDER BY 2 DESC, 1"
    each = {name: float(seconds) for name, seconds in con.execute(sql).fetchall()}
    return {"in": float(total or 0), "kept": each.pop(KEPT, 0.0), "dropped": each}


def _segments(known: Known, con: Any) -> dict[str, Any]:
    """Of what overlaps, kept segments have the time, then those that came furthest."""
    order = [entry.stage.name for _, entries in known.run.layout.phases() for entry in entries]
    fates = [fate for (fate,) in con.execute("SELECT DISTINCT final FROM facts").fetchall()]
    rank = {stage: -at for at, stage in enumerate(order)}
    fates.sort(key=lambda fate: (fate != KEPT, rank.get(fate.rpartition(":")[0], 0), fate))
    place = " ".join(f"WHEN '{fate.replace(chr(39), chr(39) * 2)}' THEN {at}" for at, fate in enumerate(fates))
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE spans AS SELECT k.parent, CASE f.final {place} END AS place, "
        "CAST(round(f.start_s * 1000) AS BIGINT) AS a, CAST(round(f.end_s * 1000) AS BIGINT) AS b "
        "FROM known k JOIN facts f ON f.row = k.row WHERE f.end_s > f.start_s"
    )
    reached = [_covered(con, at) for at in range(len(fates))]
    con.execute("DROP TABLE spans")
    each = {fate: round((now - before) / 1000, 3) for fate, now, before in zip(fates, reached, [0, *reached], strict=False)}
    kept = each.pop(KEPT, 0.0)
    dropped = dict(sorted(((fate, seconds) for fate, seconds in each.items() if seconds), key=lambda item: (-item[1], item[0])))
    return {"in": reached[-1] / 1000 if reached else 0.0, "kept": kept, "dropped": dropped}


def _covered(con: Any, place: int) -> int:
    """Milliseconds that the spans up to this place cover, those of each video for itself."""
    before = "max(b) OVER (PARTITION BY parent ORDER BY a, b ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)"
    inner = f"SELECT a, b, coalesce({before}, a) AS reached FROM spans WHERE place <= {place}"
    ((covered,),) = con.execute(f"SELECT coalesce(sum(greatest(0, b - greatest(a, reached))), 0) FROM ({inner})").fetchall()
    return int(covered)
