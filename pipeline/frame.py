"""What surrounds a stage: dead rows aside and back, columns and order checked, and the guilty row of a failing table found.

No Ray here. The engine calls `apply`; so does anyone who uses a stage on a table of their own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import MACHINE_ERRNOS, ContractError, ShardmillError
from pipeline.stage import KEPT, Expanded, Stage, alive

FRAME_COLUMNS = {"row": pa.int64(), "fate": pa.string(), "detail": pa.string()}
DETAIL_CHARS = 500


def framed(table: pa.Table, first_row: int = 0) -> pa.Table:
    """The table with `row`, `fate` and `detail` added where they are missing: what a bare table needs to enter a stage."""
    n = len(table)
    if "row" not in table.column_names:
        table = table.append_column("row", pa.array(np.arange(first_row, first_row + n), pa.int64()))
    if "fate" not in table.column_names:
        table = table.append_column("fate", pa.repeat(pa.scalar(KEPT), n))
    if "detail" not in table.column_names:
        table = table.append_column("detail", pa.nulls(n, pa.string()))
    return table


def apply(stage: Stage, table: pa.Table) -> pa.Table:
    """Runs a rows stage over the alive rows of `table`; dead rows keep their fate and get nulls in the new columns."""
    mask = _alive(table)
    out = _work(stage, _view(stage, table, mask)) if pc.any(mask).as_py() else None
    return _merge(stage, table, mask, out)


async def apply_stream(stage: Any, table: pa.Table) -> AsyncIterator[pa.Table]:
    """`apply` for a stage with `stream`, which yields its rows in tables as they are finished, in any order.

    Yields tables of `table`'s rows with the stage's columns; together they hold each row once. Dead rows come first.
    Such a stage must not raise for a row.
    """
    dead, rows, view = _apart(stage, table)
    if dead is not None:
        yield dead
    coming = _Coming(stage, rows)
    async for out in stage.stream(view) if len(rows) else _nothing():
        yield coming.merged(out)
    coming.end()


def apply_pieces(stage: Stage, table: pa.Table, goes_on: Callable[[], None]) -> Iterator[pa.Table]:
    """`apply` for a stage with `pieces`: tables of `table`'s rows with the stage's columns, as they are finished.

    Together they hold each row once; dead rows come first. Where the stage fails, the rows that it had not given yet are halved, as in
    `apply`.
    """
    if type(stage).pieces is Stage.pieces:
        yield apply(stage, table)
        return
    dead, rows, view = _apart(stage, table)
    if dead is not None:
        yield dead
    coming = _Coming(stage, rows)
    try:
        for out in stage.pieces(view, goes_on) if len(rows) else ():
            yield coming.merged(out)
            goes_on()
    except Exception as err:
        if machine_fault(err):
            raise
        left = view.filter(pa.array(~coming.seen))
        if not len(left):
            raise
        yield coming.merged(_work(stage, left) if len(rows) > 1 else _failed(stage, left, error_text(err)))
    coming.end()


def _apart(stage: Stage, table: pa.Table) -> tuple[pa.Table | None, pa.Table, pa.Table]:
    """The dead rows with the stage's columns, the rows that are alive, and what the stage sees of these."""
    mask = _alive(table)
    rows = _living(table, mask)
    dead = None
    if len(rows) < len(table):
        dead = table.filter(pc.invert(mask))
        dead = _merge(stage, dead, alive(dead), None)
    return dead, rows, _view(stage, rows, alive(rows))


class _Coming:
    """Rows that a stage gives back piece by piece: each once, and none that it did not get."""

    def __init__(self, stage: Stage, rows: pa.Table) -> None:
        self.stage, self.rows = stage, rows
        self.numbers = rows["row"].to_numpy()
        self.seen = np.zeros(len(rows), dtype=bool)
        self.sorter = np.argsort(self.numbers)

    def merged(self, out: pa.Table) -> pa.Table:
        """The rows of a piece with the columns that they had and the stage's."""
        got = out["row"].to_numpy()
        at = self.sorter[np.minimum(np.searchsorted(self.numbers, got, sorter=self.sorter), len(self.rows) - 1)]
        if (self.numbers[at] != got).any():
            raise ContractError(f"{self.stage.name} returned a row that it did not get")
        if self.seen[at].any() or len(np.unique(at)) < len(at):
            raise ContractError(f"{self.stage.name} returned a row twice")
        self.seen[at] = True
        batch = self.rows.take(pa.array(at))
        return _merge(self.stage, batch, alive(batch), _checked(self.stage, batch, out))

    def end(self) -> None:
        if not self.seen.all():
            raise ContractError(f"{self.stage.name} lost {int((~self.seen).sum())} of {len(self.rows)} rows")


async def _nothing() -> AsyncIterator[pa.Table]:
    return
    yield  # makes this an async generator


def apply_all(stages: Iterable[Stage], table: pa.Table) -> pa.Table:
    """Runs rows stages one after the other."""
    for stage in stages:
        table = apply(stage, table)
    return table


def expand(stage: Stage, table: pa.Table) -> Expanded:
    """Runs an expand stage; a parent that stays `kept` has at least one child, and only such parents have children."""
    mask = _alive(table)
    if not pc.any(mask).as_py():
        return Expanded(table, _empty_children(stage))
    parts = _expand_work(stage, _view(stage, table, mask))
    rows = pa.concat_tables([part.rows for part in parts])
    children = pa.concat_tables([part.children for part in parts])
    merged = _merge(stage, table, mask, rows, adds=False)
    _check_parents(stage, merged.filter(alive(merged))["row"].to_numpy(), children["parent"].to_numpy())
    return Expanded(merged, children)


def _check_parents(stage: Stage, kept: np.ndarray, parents: np.ndarray) -> None:
    """Each kept row has children, only they have, and the children stand in the order of their parents."""
    firsts = np.ones(len(parents), dtype=bool)
    firsts[1:] = parents[1:] != parents[:-1]
    if np.array_equal(parents[firsts], kept):
        return
    childless, orphans = len(np.setdiff1d(kept, parents)), int((~np.isin(parents, kept)).sum())
    if childless or orphans:
        raise ContractError(f"{stage.name}: {childless} rows are kept without a child and {orphans} children have no kept parent")
    raise ContractError(f"{stage.name}: the children of one parent must stand together, in the order of their parents")


def kept(table: pa.Table) -> int:
    """How many rows no stage has dropped yet."""
    return int(pc.sum(alive(table)).as_py() or 0)


def machine_fault(err: BaseException) -> bool:
    """True for faults of the machine, for which no row is to blame. Never decided by OSError alone: Pillow's, SSL's and
    time-out errors are OSErrors too."""
    if isinstance(err, MemoryError | ShardmillError) or type(err).__name__ == "OutOfMemoryError":
        return True
    return isinstance(err, OSError) and err.errno in MACHINE_ERRNOS


def error_text(err: BaseException) -> str:
    """Class and message of an error on one line, cut to what a ledger should hold."""
    return f"{type(err).__name__}: {' '.join(str(err).split())}"[:DETAIL_CHARS]


def _alive(table: pa.Table) -> pa.ChunkedArray:
    if unknown := table["fate"].null_count:
        raise ContractError(f"{unknown} rows have no fate; framed(table) gives every row one")
    return alive(table)


def _view(stage: Stage, table: pa.Table, mask: Any) -> pa.Table:
    missing = [name for name in stage.reads if name not in table.column_names]
    if missing:
        raise ContractError(f"{stage.name} reads {', '.join(missing)}, which the table lacks; it has {', '.join(table.column_names)}")
    here = [name for name in stage.may_read if name in table.column_names]
    names = list(dict.fromkeys(["row", *stage.reads, *here, "fate", "detail"]))
    return _living(table.select(names), mask)


def _living(table: pa.Table, mask: Any) -> pa.Table:
    """The rows of a mask: the table itself where it holds for all, since a filter copies every body."""
    return table if pc.all(mask).as_py() else table.filter(mask)


def _work(stage: Stage, rows: pa.Table) -> pa.Table:
    """Runs `stage`; of a failing table only the rows that fail alone get a fate (by halving)."""
    try:
        out = stage(rows)
    except Exception as err:
        if machine_fault(err):
            raise
        if len(rows) == 1:
            return _failed(stage, rows, error_text(err))
        half = len(rows) // 2
        return pa.concat_tables([_work(stage, rows[:half]), _work(stage, rows[half:])])
    return _checked(stage, rows, out)


def _expand_work(stage: Stage, rows: pa.Table) -> list[Expanded]:
    try:
        out: Expanded = stage(rows)
    except Exception as err:
        if machine_fault(err):
            raise
        if len(rows) == 1:
            failed = _with_fate(rows, f"{stage.name}:error", error_text(err))
            return [Expanded(failed.select(list(FRAME_COLUMNS)), _empty_children(stage))]
        half = len(rows) // 2
        return _expand_work(stage, rows[:half]) + _expand_work(stage, rows[half:])
    if not isinstance(out, Expanded):
        raise ContractError(f"{stage.name} returned {type(out).__name__}, not Expanded(rows, children)")
    _check_rows(stage, rows, out.rows)
    wanted = ["parent", *stage.adds]
    types = [pa.int64(), *(column.type for column in stage.adds.values())]
    same = _typed(stage, out.rows, list(FRAME_COLUMNS), list(FRAME_COLUMNS.values()))
    return [Expanded(same, _typed(stage, out.children, wanted, types))]


def _checked(stage: Stage, rows: pa.Table, out: Any) -> pa.Table:
    """The stage's columns in declared order and type; raises ContractError where the stage broke its word."""
    _check_rows(stage, rows, out)
    return _typed(
        stage,
        out,
        [*FRAME_COLUMNS, *stage.adds],
        [*FRAME_COLUMNS.values(), *(column.type for column in stage.adds.values())],
    )


def _check_rows(stage: Stage, rows: pa.Table, out: Any) -> None:
    if not isinstance(out, pa.Table):
        raise ContractError(f"{stage.name} returned {type(out).__name__}, not a pyarrow Table")
    if lost := [name for name in FRAME_COLUMNS if name not in out.column_names]:
        raise ContractError(f"{stage.name} returned a table without {', '.join(lost)}")
    if not out["row"].equals(rows["row"]):
        raise ContractError(f"{stage.name} lost, added or moved rows ({len(rows)} went in, {len(out)} came out)")
    _check_fates(stage, out)


def _typed(stage: Stage, table: pa.Table, names: list[str], types: list[pa.DataType]) -> pa.Table:
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise ContractError(f"{stage.name} declares {', '.join(missing)} but did not add it")
    table = table.select(names)
    declared = pa.schema(list(zip(names, types, strict=True)))
    both = zip(table.schema, declared, strict=True)
    wrong = [f"{got.name} is {got.type}, declared {want.type}" for got, want in both if got.type != want.type]
    if wrong:
        raise ContractError(f"{stage.name}: {'; '.join(wrong)}")
    return table.cast(declared)


def _check_fates(stage: Stage, out: pa.Table) -> None:
    given = set(pc.unique(out["fate"]).to_pylist()) - {KEPT}
    allowed = {f"{stage.name}:{reason}" for reason in (*stage.reasons, "error")}
    if unknown := given - allowed:
        raise ContractError(f"{stage.name} gave fates that it does not declare: {', '.join(map(str, sorted(unknown, key=str)))}")


def _merge(stage: Stage, table: pa.Table, mask: Any, out: pa.Table | None, adds: bool = True) -> pa.Table:
    """Puts the stage's rows back among the dead ones, with the stage's columns added."""
    n = len(table)
    made = {} if out is None else {name: out[name] for name in ("fate", "detail", *(stage.adds if adds else ()))}
    whole = out is not None and len(out) == n  # nothing has to be put in its place then, and no body is copied
    if not whole:
        index = _places(mask)
        made = {name: values.take(index) for name, values in made.items()}
    for name in ("fate", "detail") if made else ():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, name, made[name] if whole else pc.if_else(mask, made[name], table[name]))
    for name, column in (stage.adds if adds else {}).items():
        values = made[name] if made else pa.nulls(n, column.type)
        at = table.schema.get_field_index(name)
        field = pa.field(name, column.type)
        if at < 0:
            table = table.append_column(field, values)
            continue
        if table.schema.field(at).type == column.type:  # a stage that rewrites a column: dead rows keep what they had
            values = values if whole else pc.if_else(mask, values, table[name]) if made else table[name]
        table = table.set_column(at, field, values)
    return table


def _places(mask: Any) -> pa.Array:
    """Of each row its place among those of the mask, null for the others."""
    here = np.asarray(mask.combine_chunks() if isinstance(mask, pa.ChunkedArray) else mask)
    return pa.array(np.cumsum(here) - 1, mask=~here)


def _failed(stage: Stage, rows: pa.Table, text: str) -> pa.Table:
    rows = _with_fate(rows, f"{stage.name}:error", text).select(list(FRAME_COLUMNS))
    for name, column in stage.adds.items():
        rows = rows.append_column(name, pa.nulls(len(rows), column.type))
    return rows


def _with_fate(rows: pa.Table, fate: str, text: str) -> pa.Table:
    n = len(rows)
    rows = rows.set_column(rows.schema.get_field_index("fate"), "fate", pa.repeat(pa.scalar(fate), n))
    return rows.set_column(rows.schema.get_field_index("detail"), "detail", pa.repeat(pa.scalar(text), n))


def _empty_children(stage: Stage) -> pa.Table:
    fields = [("parent", pa.int64()), *((name, column.type) for name, column in stage.adds.items())]
    return pa.schema(fields).empty_table()
