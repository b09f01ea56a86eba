"""What-if: how many rows would be kept with another threshold on a score, and the command that makes it so.

The counts are those of a run with that threshold, not estimates: the selection itself is run again over the facts. Once is enough
where a threshold cannot change which row of a cluster is kept: near-duplicates keep the best by similarity, so whoever stands for a
cluster without a threshold stands for it with any threshold that it passes. For another score only the near-duplicates are looked at for
each threshold; and where a later rule counts rows, the whole selection is run for each.
"""

from __future__ import annotations

import decimal
import json
import re
import shlex
from typing import Any

import pyarrow as pa

from pipeline.known import Known, columns_known
from pipeline.phases.select import selection_stage
from pipeline.report import examples, tables
from pipeline.stage import KEPT
from stages.selection import best_first, passes, subset
from stages.selection.rules import Rule, Rules

STEPS, RUNS = 100, 12  # thresholds of a slider: where one run of the selection gives them all, and where each needs its own
COLUMNS = 4  # sliders
IN_POOL = {"alignability"}  # scores of stages that look at the bytes as they come
NO_SCORES = {"eval_similarity"}  # floats by which nobody keeps anything
LEAST_IS_BEST = {"claimed_punsafe", "claimed_pwatermark"}  # of what one keeps the smallest
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


def possible(known: Known) -> bool:
    """Whether the selection can be run again: the files of uids that its rules name are still there."""
    return all(subset.digest(rule.subset_file) for rule in selection_stage(known).rules if rule.subset_file is not None)


def columns(known: Known, con: Any) -> list[str]:
    """The scores that hold numbers: the stages' own first, then those that came with the list."""
    there = columns_known(known.run)
    own = {name for entry in known.run.layout.scores for name in entry.stage.adds if name not in NO_SCORES} | IN_POOL
    scores = [n for n, kind in there.items() if (n in own or n.startswith("claimed_")) and pa.types.is_floating(kind)]
    scores.sort(key=lambda name: (name != "similarity", name not in own))
    return [n for n in scores if con.execute(f'SELECT min("{n}") < max("{n}") FROM facts').fetchall()[0][0]][:COLUMNS]


def make(known: Known, con: Any, column: str, kept: int) -> dict[str, Any]:
    """The slider of one column: thresholds as texts, and the rows kept with `column >= threshold`; `sign` is `<=` of what is better
    the smaller it is. Leaves the table `open_rows`.

    `rows`: some rows at even places of the column's order. `now`: the place of the run's own threshold, None where no rule is one
    on this column alone.
    """
    rules = list(selection_stage(known).rules)
    sign = _sign(rules, column)
    at = next((n for n, rule in enumerate(rules) if _threshold(rule, column, sign) is not None), None)
    free = [rule for n, rule in enumerate(rules) if n != at]
    own = _threshold(rules[at], column, sign) if at is not None else None
    _select(known, con, free)
    con.execute(
        f'CREATE OR REPLACE TEMP TABLE open_rows AS SELECT f.row, f."{column}" FROM facts f JOIN temp.selected s ON s.row = f.row '
        f"WHERE s.fate = '{KEPT}'"
    )
    once = _one_run_is_enough(known, con, column, sign, [] if at is None else rules[at + 1 :])
    thresholds = _thresholds(con, column, sign, STEPS if once else RUNS, own)
    if once:
        counts = ", ".join(f'count(*) FILTER ("{column}" {sign} {text})' for text in thresholds)
        found = list(con.execute(f"SELECT {counts} FROM open_rows").fetchall()[0]) if thresholds else []
    elif all(rule.keep is not None for rule in ([] if at is None else rules[at + 1 :])):
        found = _kept_of_clusters(known, con, column, free, [f"{sign} {text}" for text in thresholds])
    else:
        found = [_kept_with(known, con, _placed(rules, at, f"{column} {sign} {text}", column)) for text in thresholds]
    con.execute("DROP TABLE IF EXISTS temp.selected")
    now = thresholds.index(own) if own in thresholds else None
    if now is not None and rules[at or 0].keep and found[now] != kept:
        now = None  # these shards were appended to: a run with the same rules makes others
    return {
        "column": column,
        "sign": sign,
        "thresholds": thresholds,
        "kept": found,
        "now": now,
        "rows": examples.around(con, column),
        "kept_without": con.execute("SELECT count(*) FROM open_rows").fetchall()[0][0],
        "rule": rules[at].meaning if at is not None else None,
        "command": _command(known, rules, at, f"{column} {sign} {{}}", column),
    }


def _sign(rules: list[Rule], column: str) -> str:
    """How a threshold on the column goes: as a rule that is one has it, else by what the column is."""
    for sign in (">=", "<="):
        if any(_threshold(rule, column, sign) is not None for rule in rules):
            return sign
    return "<=" if column in LEAST_IS_BEST else ">="


def _threshold(rule: Rule, column: str, sign: str) -> str | None:
    """The number of a rule that is `column >= number` (or `<=`) and nothing else; "" of one that takes the best share by the column."""
    if rule.top_fraction is not None:
        return "" if rule.column == column and sign == ">=" else None
    match = re.fullmatch(rf"\s*{re.escape(column)}\s*{sign}\s*({NUMBER})\s*", rule.keep or "", re.IGNORECASE)
    return match[1] if match else None


def _one_run_is_enough(known: Known, con: Any, column: str, sign: str, after: list[Rule]) -> bool:
    """Whether no later rule counts rows, and clusters keep their best by this very column (a NaN is its greatest, yet never the best)."""
    if any(rule.keep is None for rule in after):
        return False
    dedup: Any = known.run.layout.dedup
    there = columns_known(known.run)
    if column != "similarity" or sign != ">=":
        return not passes(there, dedup.stage.config.on if dedup else None)
    return not con.execute("SELECT count(*) FROM facts WHERE isnan(similarity)").fetchall()[0][0]


def _thresholds(con: Any, column: str, sign: str, steps: int, own: str | None) -> list[str]:
    """Quantiles of the rows that stay without a threshold, as short numbers, and the run's own. At the loose end every number passes."""
    source = f'(SELECT CAST("{column}" AS DOUBLE) AS x FROM open_rows WHERE isfinite("{column}"))'
    ((count,),) = con.execute(f"SELECT count(*) FROM {source}").fetchall()
    found = tables.quantiles(con, source, count, [round(1_000_000 * n / steps) for n in range(steps + 1)]) if count else []
    texts = {float(f"{value:.3g}"): f"{value:.3g}" for value in found}
    if found:
        text = _passed(con, column, sign, found[0] if sign == ">=" else found[-1])
        texts[float(text)] = text
    if own:
        texts[float(own)] = own
    return [texts[value] for value in sorted(texts)]


def _passed(con: Any, column: str, sign: str, bound: float) -> str:
    """The loosest number as a short one that all rows pass: rounded to the nearest, or where that is too strict, the other way."""
    text = f"{bound:.3g}"
    (all_pass,) = con.execute(f'SELECT bool_and("{column}" {sign} {text}) FROM open_rows WHERE isfinite("{column}")').fetchall()[0]
    if all_pass:
        return text
    with decimal.localcontext(prec=3, rounding=decimal.ROUND_FLOOR if sign == ">=" else decimal.ROUND_CEILING):
        return f"{float(+decimal.Decimal(bound)):.3g}"


def _placed(rules: list[Rule], at: int | None, keep: str, column: str) -> list[Rule]:
    """The rules with a threshold in the place of the one that is there, or last."""
    name = rules[at].name if at is not None else _free_name(rules, column)
    rule = Rule(name=name, keep=keep)
    return [*rules, rule] if at is None else [*rules[:at], rule, *rules[at + 1 :]]


def _free_name(rules: list[Rule], column: str) -> str:
    base = re.sub(r"[^a-z0-9_]", "_", column.lower())
    names = {rule.name for rule in rules}
    return next(name for name in [base, *(f"{base}_{n}" for n in range(2, 99))] if name not in names)


def _kept_of_clusters(known: Known, con: Any, column: str, free: list[Rule], bounds: list[str]) -> list[int]:
    """Rows kept with each of these bounds on the column, where the rules look at one row each: then they are applied once, and only the
    near-duplicates are looked at for each bound, among those that have any."""
    _select(known, con, free, clusters=False)
    dedup: Any = known.run.layout.dedup
    there = columns_known(known.run)
    keys = [", ".join(f'"{name}"' for name in names) for names, _ in passes(there, dedup.stage.config.on if dedup else None)]
    lone = " AND ".join(f"(({_any_null(names)}) OR count(*) OVER (PARTITION BY {names}) = 1)" for names in keys)
    listed = ", ".join(dict.fromkeys(", ".join(keys).split(", ")))
    con.execute(
        f'CREATE OR REPLACE TEMP TABLE contenders AS SELECT *, {lone} AS lone FROM (SELECT row, "{column}" AS bound, {listed}, '
        f"row_number() OVER (ORDER BY {best_first(there)}) AS rank FROM facts WHERE row IN (SELECT row FROM temp.selected "
        f"WHERE fate = '{KEPT}'))"
    )
    out = []
    for bound in bounds:
        source = f"(SELECT * FROM contenders WHERE NOT lone AND bound {bound})"
        for names in keys:
            source = f"(SELECT * FROM {source} QUALIFY ({_any_null(names)}) OR rank = min(rank) OVER (PARTITION BY {names}))"
        (kept,) = con.execute(
            f"SELECT (SELECT count(*) FROM contenders WHERE lone AND bound {bound}) + (SELECT count(*) FROM {source})"
        ).fetchall()[0]
        out.append(int(kept))
    con.execute("DROP TABLE contenders")
    return out


def _any_null(names: str) -> str:
    return " OR ".join(f"{name} IS NULL" for name in names.split(", "))


def _select(known: Known, con: Any, rules: list[Rule], clusters: bool = True) -> None:
    """Temporary table `selected`: the fates by these rules, near-duplicates among them unless without `clusters`."""
    stage: Any = selection_stage(known)
    layout = known.run.layout
    dedup: Any = layout.dedup
    con.execute("DROP TABLE IF EXISTS temp.selected")
    on = dedup.stage.config.on if dedup else None
    type(stage)(Rules(rules)).run(con, "facts", seed=known.run.config.run.seed, shards=_ONE_SHARD, dedup_on=on, clusters=clusters)


class _OneShard:
    """Shards do not matter for who is kept."""

    samples, order, multiple_of = 1 << 40, "shuffled", 1


_ONE_SHARD = _OneShard()


def _kept_with(known: Known, con: Any, rules: list[Rule]) -> int:
    _select(known, con, rules)
    (n,) = con.execute(f"SELECT count(*) FROM temp.selected WHERE fate = '{KEPT}'").fetchall()[0]
    return int(n)


def _command(known: Known, rules: list[Rule], at: int | None, keep: str, column: str) -> str:
    """The command with `{}` for the threshold; the run's own --set options have to be added by whoever gave them."""
    if at is not None and rules[at].keep:
        change = f"stages.selection.{rules[at].name}.keep={keep}"
    else:
        placed = [
            rule.model_dump(exclude_none=True, exclude_unset=True, exclude={"subset_sha256"}) for rule in _placed(rules, at, keep, column)
        ]
        change = "stages.selection=" + json.dumps(placed, ensure_ascii=False)
    return f"shardmill run {shlex.quote(known.run.where)} --set {shlex.quote(change)}"
