"""The stage contract: what a stage declares, and from which plan, keys, docs and schemas follow.

A stage works without Ray, on a pyarrow Table. The frame (pipeline/frame.py) surrounds it: a stage sees only rows that
are alive, only the columns that it reads, and never counts, times or isolates failures itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

KEPT = "kept"
MEDIA = ("image", "frames", "clip", "sound")
"""Columns of the pool that hold what goes into the shards: bytes that pass neither through the driver nor through DuckDB."""

Shape = Literal["rows", "expand", "shuffle", "sink"]

# Reasons that every stage can give, because the frame or the engine gives them on its behalf.
COMMON_REASONS = {
    "error": "the stage raised an exception on this row alone; the ledger's detail holds its text",
    "crashed": "the process died while this stage worked on this row alone",
    "out_of_memory": "this row alone needs more memory than the stage may use",
}


class Strict(BaseModel):
    """Base of every config: unknown keys are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def of_the_past(info: ValidationInfo) -> bool:
    """Whether a config is validated to read what it made: then a validator lets files that it names be gone, or lie elsewhere."""
    return bool(info.context and info.context.get("past"))


def keyless(default: Any, **options: Any) -> Any:
    """A config field that cannot change what the stage puts out (a rate, a time-out) and so is left out of the key."""
    info: FieldInfo = Field(default, json_schema_extra={"keyless": True}, **options)
    return info


def file_digest(path: str) -> str:
    """SHA-256, as hex digits, of a local file or fsspec URL that a config names: where it goes into the config, a changed file is another
    config although its name is the same. Raises OSError, ValueError or ImportError."""
    import fsspec

    with fsspec.open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Column:
    """A column's Arrow type and, in one line, its meaning with unit and range.

    `stored=False`: the column only travels between the stages of one phase (a downloaded body) and is never committed.
    """

    type: pa.DataType
    meaning: str
    stored: bool = True


@dataclass(frozen=True)
class Resources:
    """What one worker of a stage needs. `memory` bytes bound what the stage may allocate; concurrency None = by CPUs."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory: int = 1 << 30
    concurrency: int | None = None


class Expanded(NamedTuple):
    """What an expand stage returns: its rows (with fates for those without children) and the children.

    `children` has `parent` (int64, the row number of its parent) as first column, then the stage's `adds`; the children
    of one parent stand together, in the order of their parents.
    """

    rows: pa.Table
    children: pa.Table


class Stage:
    """Base of all stages. Subclasses set the class attributes and define `__call__` (shapes rows and expand).

    A rows stage gets a Table with `row` (int64), its `reads`, and `fate`/`detail`, and returns every row, in order,
    with its `adds` appended and, for the rows that it drops, `fate` and `detail` set (use `drop`). It keeps nothing
    between calls but what `open` loaded, and does not know what runs before or after it.
    """

    name: ClassVar[str]
    version: ClassVar[int]  # raised when the same input and config give another output
    shape: ClassVar[Shape] = "rows"
    # Of the class; an instance may set its own where they follow from its config.
    reads: Mapping[str, Column] = {}
    may_read: Mapping[str, Column] = {}  # taken where an earlier stage of the same phase (of a shuffle: any) adds them
    adds: Mapping[str, Column] = {}
    reasons: Mapping[str, str] = {}
    resources: Resources = Resources()
    files: Sequence[str] = ()  # local files that decide about the output (weights): their content is part of the key

    class Config(Strict):
        pass

    def __init__(self, config: Any = None) -> None:
        self.config: Any = self.Config() if config is None else config

    def open(self) -> None:
        """Loads what the stage needs, once a worker. Heavy imports belong here or into functions."""

    def close(self) -> None:
        """Gives back what `open` took."""

    def pieces(self, table: pa.Table, goes_on: Callable[[], None]) -> Iterator[pa.Table]:  # noqa: ARG002
        """The rows of `__call__` in tables as they are finished, in any order: for a stage (rows shape) that would else hold much or work
        long. It calls `goes_on` whenever it got further, by which the run's watchdog knows that it does not hang."""
        yield self(table)

    def __call__(self, table: pa.Table) -> Any:
        raise TypeError(f"stage {self.name} of shape {self.shape} is not called with a table (got {len(table)} rows)")


def drop(table: pa.Table, mask: pa.Array | pa.ChunkedArray, fate: str, detail: Any = None) -> pa.Table:
    """Sets `fate` (and `detail`: None, a text, or an array of texts) where `mask` is true and the row is still alive.

    A null in `mask` counts as false. Returns the table with its other columns untouched.
    """
    mask = pc.and_(pc.fill_null(mask, False), pc.equal(table["fate"], KEPT))
    fates = pc.if_else(mask, pa.scalar(fate), table["fate"])
    details = pc.if_else(mask, pa.scalar(detail, pa.string()) if _single(detail) else detail, table["detail"])
    table = table.set_column(table.schema.get_field_index("fate"), "fate", fates)
    return table.set_column(table.schema.get_field_index("detail"), "detail", details)


def _single(detail: Any) -> bool:
    return detail is None or isinstance(detail, str)


def alive(table: pa.Table) -> pa.ChunkedArray:
    """Boolean mask of the rows that no stage has dropped yet."""
    return pc.equal(table["fate"], KEPT)


def keyed_config(config: BaseModel) -> dict[str, Any]:
    """The part of a config that decides about the output: everything but `keyless` fields, ready for JSON."""
    out: dict[str, Any] = {}
    for name, info in type(config).model_fields.items():
        extra = info.json_schema_extra
        if not (isinstance(extra, dict) and extra.get("keyless")):
            out[name] = _keyed(getattr(config, name))
    return out


def _keyed(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return keyed_config(value)
    if isinstance(value, Mapping):
        return {str(key): _keyed(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_keyed(inner) for inner in value]
    if isinstance(value, set | frozenset):
        return sorted(to_jsonable_python(value))
    return to_jsonable_python(value)
