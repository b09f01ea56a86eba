"""Raw tables: made of Python values, and cut to one size. Their columns may differ in type from one table to the next."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from stages.ingest.jsontext import json_text

MALFORMED = "__malformed__"
STORED_AT = "__stored_at__"  # JSON {"path", "offset", "length"}
FILE = "file"  # a raw table's metadata: the URL of the file that it is of
OWN = (MALFORMED, STORED_AT)  # an input's own columns of these names are left out: a stranger's table must not name files of this machine


def cut(tables: Iterator[pa.Table], skip: int, rows: int) -> Iterator[pa.Table]:
    """Leaves out the first `skip` rows, then yields tables of exactly `rows` rows; the last may be shorter, none is empty."""
    held: list[pa.Table] = []
    have = 0
    for table in tables:
        if skip >= len(table):
            skip -= len(table)
            continue
        held.append(table.slice(skip))
        have += len(held[-1])
        skip = 0
        while have >= rows:
            whole = joined(held)
            yield whole.slice(0, rows)
            held, have = [whole.slice(rows)], have - rows
    if have:
        yield joined(held)


def joined(tables: list[pa.Table]) -> pa.Table:
    """One table; a column that is missing in some of them is null there, one whose types do not go together becomes text."""
    if len(tables) == 1:
        return tables[0]
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        names = list(dict.fromkeys(name for table in tables for name in table.column_names))
        columns = [[table[name].to_pylist() if name in table.column_names else [None] * len(table) for table in tables] for name in names]
        return pa.table([array_of([value for part in parts for value in part]) for parts in columns], names=names)


def array_of(values: list[Any]) -> pa.Array:
    """An array of Arrow's own type for the values; of mixed ones (and those that no Arrow type holds) each as text.

    Where some are lists all are, so that the first of a list is found whatever the other rows hold.
    """
    try:
        return pa.array(values)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        if not any(isinstance(value, list) for value in values):
            return pa.array([_text(value) for value in values], pa.string())
        lists = [value if isinstance(value, list) or value is None else [value] for value in values]
        return pa.array([None if one is None else [_text(value) for value in one] for one in lists], pa.list_(pa.string()))


def _text(value: Any) -> str | None:
    """As values.strings has it for a column of one type: 7.0 is 7."""
    if isinstance(value, float):
        whole = math.isfinite(value) and abs(value) < 2.0**53 and value == int(value)
        return str(int(value)) if whole else pa.scalar(value if math.isfinite(value) else None, pa.float64()).cast(pa.string()).as_py()
    return value if value is None else sound(value if isinstance(value, str) else json_text(value))


def sound(text: str) -> str:
    """Valid Unicode: JSON may hold half of a surrogate pair."""
    return text.encode("utf-8", "replace").decode()


def unique(names: Sequence[str], taken: Sequence[str] = ()) -> list[str]:
    """The names, one that stood before (or is taken) with _2, _3 … behind it."""
    out: list[str] = []
    for name in names:
        tries = itertools.chain([name], (f"{name}_{n}" for n in itertools.count(2)))
        out.append(next(one for one in tries if one not in out and one not in taken))
    return out
