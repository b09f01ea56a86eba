"""A shard's Parquet: img2dataset's columns first, to the letter, then ours; and the same of a sample as JSON."""

from __future__ import annotations

import json
from json.encoder import encode_basestring_ascii
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.stage import KEPT, MEDIA
from stages.lib.text import valid

# What img2dataset 1.47 writes with a caption column, extract_exif and compute_hash sha256, in its order.
IMG2DATASET = pa.schema(
    [
        ("caption", pa.string()),
        ("url", pa.string()),
        ("key", pa.string()),
        ("status", pa.string()),
        ("error_message", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("exif", pa.string()),
        ("sha256", pa.string()),
    ]
)
OURS_FIRST = ("uid", "row", "fate", "similarity", "language", "cluster", "phash", "carried")
# Bytes, places, what error_message says, and times, which are another in each run.
NOT_LISTED = {*MEDIA, "shard", "index", "detail", "fetch_id", "part", "latency_ms"}
# Lists that stand in the JSON too: a clip's frames are of no use without their times.
LISTS = ("frame_times", "frame_lags", "segment_words")
# Numbers that often nobody knows: as 0 in the JSON they would claim something (a punsafe of 0 is a verdict). The Parquet has them.
OFTEN_UNKNOWN = ("claimed_", "tokens")


def listing(rows: pa.Table, keys: pa.Array, caption: str) -> pa.Table:
    """One line for each of `rows`, in their order, with `keys` (null without one) and the column named `caption` as caption.

    A failed row's error_message is its detail, or its fate where there is none.
    """
    columns: dict[str, Any] = {name: _text(rows[name]) for name in rows.column_names if name not in NOT_LISTED}
    if caption != "caption" and "caption" in columns:
        columns["cleaned_caption"] = columns.pop("caption")
    fate = rows["fate"]
    detail = _text(rows["detail"]) if "detail" in rows.column_names else pa.nulls(len(rows), pa.string())
    made = {
        "caption": columns.get(caption),
        "key": keys,
        "status": status_of(fate),
        "error_message": pc.if_else(pc.equal(fate, KEPT), pa.scalar(None, pa.string()), pc.coalesce(detail, fate)),
    }
    columns |= {name: values for name, values in made.items() if values is not None}
    order = dict.fromkeys([*IMG2DATASET.names, *(name for name in OURS_FIRST if name in columns), *columns])
    out = {name: columns[name] if name in columns else pa.nulls(len(rows), IMG2DATASET.field(name).type) for name in order}
    table = pa.table(out)
    return table.cast(pa.schema([IMG2DATASET.field(f.name) if f.name in IMG2DATASET.names else f for f in table.schema]))


def status_of(fate: pa.ChunkedArray) -> pa.ChunkedArray:
    """img2dataset's word for a fate; `filtered`, which it has not, for what our own rules dropped. `fate` tells all."""
    of = {stage: np.asarray(_bools(pc.starts_with(fate, f"{stage}:"))) for stage in ("download", "images", "frames")}
    cases = pa.StructArray.from_arrays(
        [np.asarray(_bools(pc.equal(fate, KEPT))), of["download"], of["images"] | of["frames"]], names=["kept", "download", "made"]
    )
    return pc.case_when(cases, "success", "failed_to_download", "failed_to_resize", "filtered")


def _bools(values: Any) -> np.ndarray:
    out: np.ndarray = values.to_numpy(zero_copy_only=False) if isinstance(values, pa.Array) else values.to_numpy()
    return out.astype(bool)


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A text column as valid UTF-8 strings; others as they are."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        return column
    return pa.chunked_array([valid(chunk.cast(pa.string())) for chunk in column.chunks], pa.string())


def as_json(table: pa.Table, whole: bool = False) -> list[str]:
    """Each row of a listing as JSON, as img2dataset formats it: indent 4, ASCII, keys in the order of the columns.

    Every text has the same keys with the same types, as HF datasets infers them from the first samples: a null text is "",
    a null number 0, a null bool false; NaN and infinities, which JSON has not, are 0.0. Lists but LISTS, structs, bytes and
    OFTEN_UNKNOWN stand in the Parquet alone; with `whole` they stand here too, null where they are unknown.
    """
    if whole:
        return _whole(table)
    named = [name for name in table.column_names if not name.startswith(OFTEN_UNKNOWN)]
    encoded = [(name, _listed(table[name]) if name in LISTS else _encoded(table[name])) for name in named]
    there = [(encode_basestring_ascii(name).replace("%", "%%"), values) for name, values in encoded if values is not None]
    text = "{\n" + ",\n".join(f"    {name}: %s" for name, _ in there) + "\n}"
    return [text % row for row in zip(*(values for _, values in there), strict=True)]


def _whole(table: pa.Table) -> list[str]:
    """Each row with every column; the usual ones as `as_json` has them."""
    usual = [json.loads(text) for text in as_json(table)]
    more = [name for name in table.column_names if not usual or name not in usual[0]]
    values = zip(*(table[name].to_pylist() for name in more), strict=True) if more else [()] * len(usual)
    rows = ({**dict(zip(more, known, strict=True)), **row} for known, row in zip(values, usual, strict=True))
    return [json.dumps({name: row[name] for name in table.column_names}, indent=4, default=_plain) for row in rows]


def _plain(value: Any) -> Any:
    """What JSON has not: bytes as hex digits, a float16 as a number."""
    return value.hex() if isinstance(value, bytes) else float(value)


def _listed(column: pa.ChunkedArray) -> list[str]:
    return [json.dumps(value or []) for value in column.to_pylist()]


def _encoded(column: pa.ChunkedArray) -> list[str] | None:
    """A column's values as JSON texts; None for a type that JSON has not."""
    kind = column.type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return None
    if pa.types.is_boolean(kind):
        return ["true" if value else "false" for value in column.to_pylist()]
    if pa.types.is_integer(kind):
        return list(map(str, pc.fill_null(column, 0).to_pylist()))
    if pa.types.is_floating(kind):
        values = column.to_numpy()  # a null becomes NaN
        return list(np.where(np.isfinite(values), values, 0).astype(values.dtype).astype(str).tolist())
    return [encode_basestring_ascii(text or "") for text in column.cast(pa.string()).to_pylist()]
