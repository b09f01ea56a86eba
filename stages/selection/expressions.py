"""What a rule's expression may be: one boolean value a row, out of that row's columns alone.

The expression is run later on a connection that may read files, so everything but columns, constants, operators and
functions without a will of their own is refused here, by what DuckDB's own parser makes of it, not by its text.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import pyarrow as pa

from pipeline.errors import UserError
from stages.lib.singles import single

CLASSES = {"COLUMN_REF", "CONSTANT", "COMPARISON", "CONJUNCTION", "OPERATOR", "FUNCTION", "CAST", "CASE", "BETWEEN", "COLLATE", "TYPE"}
SAID = {
    "SUBQUERY": "a subquery",
    "WINDOW": "a window function (a rule sees one row)",
    "STAR": "*",
    "LAMBDA": "a lambda",
    "PARAMETER": "a parameter",
    "POSITIONAL_REFERENCE": "a position",
}
EMPTY_CLAUSES = ("where_clause", "having", "qualify", "sample", "group_expressions", "group_sets", "modifiers")
TIME_OR_ENGINE = ("current_", "__internal", "json_serialize", "json_deserialize", "json_execute")
SINCE_TODAY = {"age"}  # its way with one argument counts from now


def columns_of(expression: str, columns: Mapping[str, pa.DataType], rule: str) -> list[str]:
    """The columns that a `keep` expression reads, in its order. Raises UserError for anything but a boolean of one row."""
    import duckdb

    con = duckdb.connect(config={"enable_external_access": False})
    try:
        used = list(dict.fromkeys(_parts(con, expression, columns, rule)))
        con.register("one_row", pa.schema([(name, single(kind)) for name, kind in columns.items()]).empty_table())
        try:
            ((_, kind, *_),) = con.execute(f"DESCRIBE SELECT {wrapped(expression)} AS keep FROM one_row").fetchall()
        except duckdb.Error as err:
            raise UserError(f"{_place(rule)}: {_words(err)} (keep: {expression})") from err
    finally:
        con.close()
    if kind != "BOOLEAN":
        raise UserError(f"{_place(rule)}: keep must be true or false for a row, but {expression!r} is {kind}; compare it with something")
    return used


def wrapped(expression: str) -> str:
    """A checked expression as a part of a statement: null where it fails on a row. The line break ends a comment in it."""
    return f"TRY((\n{expression}\n))"


def _parts(con: Any, expression: str, columns: Mapping[str, pa.DataType], rule: str) -> Iterator[str]:
    """Names of the columns in an expression; refuses whatever is more than an expression over one row."""
    ((text,),) = con.execute("SELECT json_serialize_sql(?)", [f"SELECT {expression}\n"]).fetchall()
    parsed = json.loads(text)
    if parsed["error"]:
        raise UserError(f"{_place(rule)}: {parsed['error_message']} (keep: {expression})")
    node = parsed["statements"][0]["node"]
    more = node["type"] != "SELECT_NODE" or any(node.get(clause) for clause in EMPTY_CLAUSES) or node["cte_map"]["map"]
    if len(parsed["statements"]) != 1 or more or node["from_table"]["type"] != "EMPTY" or len(node["select_list"]) != 1:
        raise UserError(f"{_place(rule)}: keep is one expression, not a statement or a list (keep: {expression})")
    if node["select_list"][0].get("alias"):
        raise UserError(f"{_place(rule)}: keep takes no AS (keep: {expression})")
    names = {name.lower(): name for name in columns}
    for part in _walk(node["select_list"]):
        if part["class"] not in CLASSES:
            raise UserError(f"{_place(rule)}: keep holds {SAID.get(part['class'], part['class'])}; {_allowed()} (keep: {expression})")
        if part["class"] == "FUNCTION":
            _check_function(part["function_name"], rule)
        if part["class"] == "COLUMN_REF":
            yield _column(part["column_names"], names, rule)


def _walk(node: Any) -> Iterator[dict[str, Any]]:
    """Every expression of a parsed tree."""
    if isinstance(node, list):
        for inner in node:
            yield from _walk(inner)
    elif isinstance(node, dict):
        if "class" in node:
            yield node
        for inner in node.values():
            yield from _walk(inner)


def _column(path: list[str], names: Mapping[str, str], rule: str) -> str:
    """The name of a known column; a struct's field comes after its column."""
    found = names.get(path[0].lower())
    if found is None:
        raise UserError(f"{_place(rule)}: unknown column {'.'.join(path)}; {_nearest(path[-1], names)}")
    return found


def check_number(column: str, columns: Mapping[str, pa.DataType], rule: str) -> None:
    """Refuses a column that is not there or holds no numbers."""
    if column not in columns:
        raise UserError(f"{_place(rule)}: unknown column {column}; {_nearest(column, columns)}")
    kind = columns[column]
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise UserError(f"{_place(rule)}: {column} holds {kind}, and only numbers have an order of merit")


def check_texts(column: str, columns: Mapping[str, pa.DataType], rule: str) -> None:
    """Refuses a column that is not there or holds no lists of texts."""
    if column not in columns:
        raise UserError(f"{_place(rule)}: unknown column {column}; {_nearest(column, columns)} (the stage concepts makes lists of words)")
    kind = columns[column]
    if not (pa.types.is_list(kind) and pa.types.is_string(kind.value_type)):
        raise UserError(f"{_place(rule)}: {column} holds {kind}, and max_per_concept needs lists of texts (stage concepts)")


def _nearest(name: str, names: Any) -> str:
    near = difflib.get_close_matches(name.lower(), list(names), n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(names))}"


@cache
def _functions() -> tuple[frozenset[str], frozenset[str]]:
    """DuckDB's functions that give one value a row out of their arguments alone, and all its scalar ones."""
    import duckdb

    with duckdb.connect(config={"enable_external_access": False}) as con:
        con.execute("SELECT json_valid('{}')")  # loads the extension whose functions are then listed
        # Times with a zone follow the session's zone; what else a function takes says whether it is calm ("+" takes such times too).
        zoned = "list_has_any(parameter_types, ['TIMESTAMP WITH TIME ZONE', 'TIMESTAMPTZ_NS'])"
        rows = con.execute(
            f"SELECT function_name, coalesce(bool_and(stability = 'CONSISTENT') FILTER (NOT {zoned}), false) FROM duckdb_functions() "
            "WHERE function_type = 'scalar' GROUP BY ALL"
        ).fetchall()
    calm = {name for name, consistent in rows if consistent and name not in SINCE_TODAY and not name.startswith(TIME_OR_ENGINE)}
    return frozenset(calm), frozenset(name for name, _ in rows)


def _check_function(name: str, rule: str) -> None:
    calm, scalar = _functions()
    if name.lower() in calm:
        return
    if name.lower() in scalar:
        raise UserError(f"{_place(rule)}: {name} may give another value each time, or reads what is no column; {_allowed()}")
    near = difflib.get_close_matches(name.lower(), calm, n=1, cutoff=0.7)
    hint = f"did you mean {near[0]}?" if near else _allowed()
    raise UserError(f"{_place(rule)}: {name} is no function of one row's values; {hint}")


def _allowed() -> str:
    return "allowed are columns, constants, operators, CASE, CAST and DuckDB's scalar functions of them"


def _place(rule: str) -> str:
    return f"stages.selection.{rule}"


def _words(err: Exception) -> str:
    """DuckDB's own words, without the drawing of the statement."""
    return " ".join(str(err).partition("\n\nLINE")[0].split())
