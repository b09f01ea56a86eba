"""Selection: which rows are kept, by rules over all their columns, and each one's shard and place in it.

It sees no image: everything is DuckDB over narrow columns, which spills to disk, so that ten million rows need no more
memory than one. Rules act in their order, each on the rows that the rules before it left; near-duplicates come last, so
that of a cluster the best row that passed every rule is kept. A changed rule costs this stage and the shards, no download.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline.errors import UserError
from pipeline.stage import KEPT, Column, Stage
from stages.selection import subset
from stages.selection.expressions import check_number, check_texts, columns_of, wrapped
from stages.selection.rules import NEAR_DUPLICATE, Rule, Rules

SHOWN_COLUMNS = 4  # how many of a rule's columns a detail quotes
SHOWN_CHARS = 60
AREA = ("original_width", "original_height")
IMAGE_EVIDENCE = ("image_cluster", "phash", "sha256", "url")  # what says that two rows show one image; the first is the widest


class Selection(Stage):
    """Keeps the rows that pass every rule, one of each cluster of near-duplicates, and gives each a shard and a place."""

    name = "selection"
    version = 1
    shape = "shuffle"
    reads = {"uid": Column(pa.string(), "decides ties and, with run.seed, the order")}
    reasons = NEAR_DUPLICATE
    Config = Rules  # type: ignore[assignment]  # the YAML is a list, so no Strict

    def __init__(self, config: Rules | None = None) -> None:
        super().__init__(config)
        self.rules: list[Rule] = self.config.root
        self.reasons = {**{rule.name: rule.meaning for rule in self.rules}, **NEAR_DUPLICATE}

    def check(self, columns: Mapping[str, pa.DataType]) -> None:
        """Raises UserError for a rule that cannot be applied to rows with these columns. Called before any work."""
        for rule in self.rules:
            columns_of_rule(rule, columns)
            if rule.subset_file is not None:
                subset.read(rule.subset_file).close()

    def run(self, con: Any, view: str, *, seed: int, shards: Any, dedup_on: str | None, clusters: bool = True) -> None:
        """Makes the temporary table `selected` of the DuckDB connection `con`: one line for each row of `view`.

        `view` has `row`, `fate`, `detail`, `uid` and any other columns; `row` counts from 0 without a gap. `selected` has
        `row` BIGINT, `fate`, `detail` VARCHAR, `shard`, `index` INTEGER (index null for dropped rows, but for order input).
        `shards`: has samples, order, multiple_of. `dedup_on`: caption, image, both or None; without `clusters` no
        near-duplicate falls. Raises UserError as `check`.
        """
        columns = {field.name: field.type for field in con.sql(f'SELECT * FROM "{view}" LIMIT 0').to_arrow_table().schema}
        self.check(columns)
        order = passes(columns, dedup_on) if clusters else []
        wanted = ["row", "fate", "detail", "uid", *(name for rule in self.rules for name in columns_of_rule(rule, columns))]
        wanted += [name for name in ("similarity", *AREA) if name in columns]
        wanted += [name for keys, _ in order for name in keys]
        listed = ", ".join(f'"{name}"' for name in dict.fromkeys(wanted))
        _replace(con, f'SELECT {listed} FROM "{view}"')
        for keeps, group in itertools.groupby(self.rules, key=lambda rule: rule.keep is not None):
            if keeps:
                _keep(con, list(group), columns)
                continue
            for rule in group:
                _choose(con, rule, seed)
        for keys, reason in order:
            _one_of_each(con, keys, reason, columns)
        _place(con, seed, shards)
        con.execute("DROP TABLE choice")


def columns_of_rule(rule: Rule, columns: Mapping[str, pa.DataType]) -> list[str]:
    """The columns that a rule reads. Raises UserError for one that is not there, or is of another type than the rule takes."""
    if rule.keep is not None:
        return columns_of(rule.keep, columns, rule.name)
    if rule.top_fraction is not None:
        check_number(rule.column, columns, rule.name)
        return [rule.column]
    if rule.max_per_concept is not None:
        check_texts(rule.column, columns, rule.name)
        return [rule.column]
    return []


def passes(columns: Mapping[str, Any], dedup_on: str | None) -> list[tuple[list[str], str]]:
    """The columns of which a combination may stand once among the kept rows, with the reason for the others, in order."""
    evidence = [name for name in IMAGE_EVIDENCE if name in columns]
    images = [(["image_cluster"], "near_duplicate_image")] if "image_cluster" in columns else []
    if dedup_on == "caption":
        return [(["cluster"], "near_duplicate_caption"), *images]
    if dedup_on == "both":
        return [(["cluster", name], "near_duplicate_caption") for name in evidence]
    if dedup_on == "image" and not images:
        return [([name], "near_duplicate_image") for name in evidence if name != "url"]
    return images


def _replace(con: Any, sql: str) -> None:
    """Table `choice` becomes the result of `sql`, which may read it. A new table, since updates in place stay in memory."""
    con.execute(f"CREATE OR REPLACE TEMP TABLE next_choice AS {sql}")
    con.execute("DROP TABLE IF EXISTS choice")
    con.execute("ALTER TABLE next_choice RENAME TO choice")


def _drop(con: Any, test: str, reason: str, detail: str) -> None:
    """Gives every kept row for which `test` is true its fate; `test` and `detail` are SQL."""
    hit = f"fate = '{KEPT}' AND ({test})"
    _replace(
        con,
        f"SELECT * EXCLUDE (hit) REPLACE (CASE WHEN hit THEN {_text(f'selection:{reason}')} ELSE fate END AS fate, "
        f"CASE WHEN hit THEN {detail} ELSE detail END AS detail) FROM (SELECT *, {hit} AS hit FROM choice)",
    )


def _keep(con: Any, rules: list[Rule], columns: Mapping[str, pa.DataType]) -> None:
    """Applies neighbouring keep rules in one pass: the first that is not true of a row drops it."""
    tests = " ".join(f"WHEN {wrapped(rule.keep or '')} IS NOT TRUE THEN {at}" for at, rule in enumerate(rules))
    fates = " ".join(f"WHEN {at} THEN {_text(f'selection:{rule.name}')}" for at, rule in enumerate(rules))
    details = " ".join(f"WHEN {at} THEN {_keep_detail(rule, columns)}" for at, rule in enumerate(rules))
    _replace(
        con,
        f"SELECT * EXCLUDE (hit) REPLACE (CASE hit {fates} ELSE fate END AS fate, CASE hit {details} ELSE detail END AS detail) "
        f"FROM (SELECT *, CASE WHEN fate <> '{KEPT}' THEN NULL {tests} END AS hit FROM choice)",
    )


def _keep_detail(rule: Rule, columns: Mapping[str, pa.DataType]) -> str:
    """SQL of `similarity 0.21; keep: similarity >= 0.28`."""
    expression = rule.keep or ""
    values = [_value(name) for name in columns_of(expression, columns, rule.name)[:SHOWN_COLUMNS]]
    said = " || ', ' || ".join(values) if values else "'no column'"
    unknown = f"CASE WHEN {wrapped(expression)} IS NULL THEN ' (neither true nor false)' ELSE '' END"
    return f"{said} || {_text(f'; {rule.meaning}')} || {unknown}"


def _value(name: str) -> str:
    """SQL of a column's name and value as text."""
    return f"{_text(name + ' ')} || coalesce(left(CAST(\"{name}\" AS VARCHAR), {SHOWN_CHARS}), 'is null')"


def _choose(con: Any, rule: Rule, seed: int) -> None:
    """Applies a rule that looks at all rows: all ways but keep."""
    ((rows,),) = con.execute(f"SELECT count(*) FROM choice WHERE fate = '{KEPT}'").fetchall()
    if rule.top_fraction is not None:
        _top(con, rule, rows, int(rows * rule.top_fraction))
    elif rule.max_per_concept is not None:
        _balance(con, rule, rule.max_per_concept, seed)
    elif rule.sample is not None:
        con.execute(
            f"CREATE OR REPLACE TEMP TABLE chosen AS SELECT row FROM choice WHERE fate = '{KEPT}' "
            f"ORDER BY md5(concat_ws(':', {seed}, uid)), row LIMIT {rule.sample}"
        )
        detail = f"not among the {rule.sample} drawn from {rows} rows"
        _drop(con, "row NOT IN (SELECT row FROM chosen)", rule.name, _text(detail))
        con.execute("DROP TABLE chosen")
    else:
        con.register("subset_file", subset.read(str(rule.subset_file)))
        con.execute("CREATE OR REPLACE TEMP TABLE chosen AS SELECT DISTINCT uid FROM subset_file")
        con.unregister("subset_file")
        _drop(con, "unhex(uid) NOT IN (SELECT uid FROM chosen)", rule.name, _text(f"its uid is not in {rule.subset_file}"))
        con.execute("DROP TABLE chosen")


def _top(con: Any, rule: Rule, rows: int, place: int) -> None:
    """DataComp's arithmetic: the threshold is the value at `place` (from 0) in descending order, and all equal to it stay.

    Nulls and NaN stand last and never pass. Where fewer than `place` + 1 rows have a value, all of those stay.
    """
    value = _number(rule.column)
    found = con.execute(
        f"SELECT v FROM (SELECT {value} AS v FROM choice WHERE fate = '{KEPT}') WHERE v IS NOT NULL ORDER BY v DESC LIMIT 1 OFFSET {place}"
    ).fetchone()
    test = f"{value} IS NULL" if found is None else f"coalesce({value} < CAST('{found[0]!r}' AS DOUBLE), true)"
    least = "" if found is None else f" < {found[0]:.6g}"
    _drop(con, test, rule.name, f"{_value(rule.column)} || {_text(f'{least}; {rule.meaning} of {rows} rows')}")


def _balance(con: Any, rule: Rule, most: int, seed: int) -> None:
    """Algorithm 1 of MetaCLIP's paper (Xu et al. 2023): a row is drawn for each of its concepts with probability min(1, most / rows that
    hold it). The draw is a hash, so a greater `most` keeps what a smaller one kept, of the same rows."""
    held = f"SELECT row, uid, unnest(list_distinct(\"{rule.column}\")) AS concept FROM choice WHERE fate = '{KEPT}'"
    drawn = f"md5_number_upper(concat_ws(':', {seed}, uid, concept)) / 18446744073709551616.0 < {most} / n"
    counts = "SELECT concept, count(*) AS n FROM held GROUP BY concept"
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE chosen AS WITH held AS ({held}), counts AS ({counts}) "
        f"SELECT DISTINCT row FROM held JOIN counts USING (concept) WHERE {drawn}"
    )
    _drop(con, "row NOT IN (SELECT row FROM chosen)", rule.name, f"{_value(rule.column)} || {_text(f'; {rule.meaning}')}")
    con.execute("DROP TABLE chosen")


def _number(name: str) -> str:
    """SQL of a column as a number that can be compared: DuckDB's NaN would be the greatest."""
    return f'CASE WHEN NOT isnan(CAST("{name}" AS DOUBLE)) THEN CAST("{name}" AS DOUBLE) END'


def _one_of_each(con: Any, keys: list[str], reason: str, columns: Mapping[str, Any]) -> None:
    """Of the kept rows that agree in all of `keys` (none null) the best stays."""
    names = ", ".join(f'"{name}"' for name in keys)
    there = " AND ".join(f'"{name}" IS NOT NULL' for name in keys)
    con.execute(
        "CREATE OR REPLACE TEMP TABLE fallen AS SELECT row, best FROM (SELECT row, first_value(row) OVER "
        f"(PARTITION BY {names} ORDER BY {best_first(columns)}) AS best "
        f"FROM choice WHERE fate = '{KEPT}' AND {there}) WHERE row <> best"
    )
    detail = _text(f"of the rows with its {' and '.join(keys)}, row ") + " || f.best || " + _text(" is the better one")
    _replace(
        con,
        f"SELECT c.* REPLACE (CASE WHEN f.row IS NULL THEN c.fate ELSE {_text(f'selection:{reason}')} END AS fate, "
        f"CASE WHEN f.row IS NULL THEN c.detail ELSE {detail} END AS detail) FROM choice c LEFT JOIN fallen f ON f.row = c.row",
    )
    con.execute("DROP TABLE fallen")


def best_first(columns: Mapping[str, Any]) -> str:
    """SQL of the order by which the best of near-duplicates comes first: by score, size, uid, row."""
    best = [f"{_number('similarity')} DESC NULLS LAST"] if "similarity" in columns else []
    if set(AREA) <= set(columns):
        best.append("CAST(original_width AS BIGINT) * original_height DESC NULLS LAST")
    return ", ".join([*best, "uid", "row"])


def _place(con: Any, seed: int, shards: Any) -> None:
    """Table `selected`: every row's shard, and its place there."""
    if shards.order == "input":  # img2dataset's numbering; it starts a shard at each input file, here the whole input is one
        con.execute(
            "CREATE OR REPLACE TEMP TABLE selected AS SELECT row, fate, detail, "
            f'CAST(row // {shards.samples} AS INTEGER) AS shard, CAST(row % {shards.samples} AS INTEGER) AS "index" FROM choice'
        )
        return
    ((kept,),) = con.execute(f"SELECT count(*) FROM choice WHERE fate = '{KEPT}'").fetchall()
    total = shard_count(kept, shards.samples, shards.multiple_of) or 1  # without samples: one shard, that lists the dropped rows
    n = max(kept, 1)
    order = f"md5(concat_ws(':', {seed}, uid, row)), row"
    con.execute(
        "CREATE OR REPLACE TEMP TABLE selected AS WITH "
        f"kept AS (SELECT row, CAST(row_number() OVER (ORDER BY {order}) - 1 AS BIGINT) AS n FROM choice WHERE fate = '{KEPT}'), "
        f"placed AS (SELECT row, n, n * {total} // {n} AS shard FROM kept) "
        f"SELECT c.row, c.fate, c.detail, CAST(coalesce(p.shard, c.row % {total}) AS INTEGER) AS shard, "
        f'CAST(p.n - (p.shard * {n} + {total} - 1) // {total} AS INTEGER) AS "index" FROM choice c LEFT JOIN placed p ON p.row = c.row'
    )


def shard_count(kept: int, samples: int, multiple_of: int) -> int:
    """The least multiple of `multiple_of` at which no shard holds more than `samples` of the kept rows; 0 without kept rows.

    Raises UserError where that leaves a shard without a sample.
    """
    least = -(-kept // samples)
    total = -(-least // multiple_of) * multiple_of
    if total > kept:
        raise UserError(
            f"shards.multiple_of: {kept} kept samples cannot fill {total} shards; lower shards.multiple_of or raise shards.samples"
        )
    return total


def _text(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"
