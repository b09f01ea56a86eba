"""A raw column's values, of whatever type the input has, as the one type that the run wants. What cannot be read is null."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.ingest.jsontext import json_text
from stages.ingest.rebatch import array_of, unique
from stages.lib.text import valid

_NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"
# What to_pylist and as_py raise: bad UTF-8, times too far away, unknown time zones, fields of one name.
_UNTOLD = (ValueError, OverflowError, LookupError, TypeError, pa.ArrowException)
_VIEWS = (pa.ListViewType, pa.LargeListViewType)
_LISTS = (pa.ListType, pa.LargeListType, pa.FixedSizeListType, *_VIEWS)
_SPECIAL = r'["\\\x00-\x1f]'


def whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """One array, of a plain type where it was a dictionary's or a view's."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return array


def strings(column: pa.ChunkedArray | pa.Array) -> pa.StringArray:
    """Text, valid UTF-8: bytes decoded with errors replaced, of a list its first element, whole numbers without a decimal point."""
    array = whole(column)
    kind = array.type
    if isinstance(kind, _LISTS):
        return strings(_firsts(array))
    if pa.types.is_null(kind):
        return pa.nulls(len(array), pa.string())
    if pa.types.is_floating(kind):
        return _number_texts(array.cast(pa.float64()))
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        array = array.cast(pa.binary()).view(pa.string())
    if not pa.types.is_string(array.type):
        array = _texts(array)
    return pc.if_else(array.is_valid(), valid(pc.fill_null(array, "")), pa.scalar(None, pa.string()))


def _firsts(array: pa.Array) -> pa.Array:
    """The first element of each list; null for an empty or missing one."""
    inner = array.type.value_type
    if isinstance(array.type, _VIEWS) or pa.types.is_nested(inner) or inner in (pa.string_view(), pa.binary_view()):
        # Arrow has no kernels for views, and those for lists within lists take minutes where a stranger nests them deeply.
        return array_of([_first(value) for value in plain_values(array)])
    if pa.types.is_fixed_size_list(array.type):
        array = array.cast(pa.list_(array.type.value_type))
    some = pc.fill_null(pc.greater(pc.list_value_length(array), 0), False)
    lists = pc.if_else(some, array, pa.scalar(None, array.type))
    at = np.flatnonzero(some.to_numpy(zero_copy_only=False))
    places = np.full(len(array), -1, dtype=np.int64)
    places[at] = np.arange(len(at))
    first = pc.list_element(lists.take(pa.array(at)), 0) if len(at) else pa.nulls(0, array.type.value_type)
    return first.take(pa.array(places, mask=places < 0))


def _first(value: Any) -> Any:
    while isinstance(value, list):
        value = value[0] if value else None
    return value


def _number_texts(array: pa.Array) -> pa.StringArray:
    """Ids that went through pandas are float64: 7.7e12 is the id 7700000000000."""
    known = pc.and_(pc.is_finite(array), pc.less(pc.abs(array), 2.0**53))
    integral = pc.fill_null(pc.and_(known, pc.equal(pc.floor(array), array)), False)
    integers = pc.if_else(integral, array, None).cast(pa.int64()).cast(pa.string())
    texts = pc.if_else(pc.fill_null(pc.is_finite(array), False), array.cast(pa.string()), pa.scalar(None, pa.string()))
    return pc.if_else(integral, integers, texts)


def _texts(array: pa.Array) -> pa.StringArray:
    try:
        return array.cast(pa.string(), safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.array([_one_text(value) for value in plain_values(array)], pa.string())


def _one_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else json_text(value)


def plain_values(array: pa.Array) -> list[Any]:
    """The values as Python's. One that Python cannot hold as it is makes each be told by itself, bit by bit."""
    try:
        values: list[Any] = array.to_pylist()
    except _UNTOLD:
        values = [_told(value) for value in array]
    return values


def _told(value: pa.Scalar) -> Any:
    """Bad UTF-8 replaced, fields of one name renamed; null for a time too far away, or of a zone that this machine does not know."""
    if not value.is_valid:
        return None
    if isinstance(value, pa.StructScalar):
        names = unique([field.name for field in value.type])
        return {name: _told(value[i]) for i, name in enumerate(names)}
    if isinstance(value, pa.MapScalar):
        return [[_told(pair[0]), _told(pair[1])] for pair in value.values]
    if isinstance(value, pa.ListScalar):  # and its kin: large, of fixed size, views
        return [_told(one) for one in value.values]
    if isinstance(value, pa.DictionaryScalar):
        return _told(value.value)
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return bytes(value.as_buffer()).decode("utf-8", "replace")
    except _UNTOLD:
        return None


def blank_to_null(texts: pa.StringArray) -> pa.StringArray:
    """Without white space at the ends; null where nothing else was there."""
    trimmed = pc.utf8_trim_whitespace(texts)
    return pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)


def floats(column: pa.ChunkedArray | pa.Array) -> pa.FloatArray:
    """float32; null for NaN, infinity and what is no number."""
    doubles = _doubles(column)
    return pc.if_else(pc.fill_null(pc.is_finite(doubles), False), doubles, pa.scalar(None, pa.float64())).cast(pa.float32(), safe=False)


def sizes(column: pa.ChunkedArray | pa.Array) -> pa.Int32Array:
    """int32 pixels; null for what is no number from 1 to 2^31 - 1."""
    doubles = _doubles(column)
    known = pc.fill_null(pc.and_(pc.greater_equal(doubles, 1.0), pc.less(doubles, 2.0**31)), False)
    return pc.if_else(known, pc.floor(doubles), pa.scalar(None, pa.float64())).cast(pa.int32())


def _doubles(column: pa.ChunkedArray | pa.Array) -> pa.DoubleArray:
    array = whole(column)
    kind = array.type
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return array.cast(pa.float64(), safe=False)
    texts = strings(array)
    numbers = pc.fill_null(pc.match_substring_regex(texts, _NUMBER), False)
    return pc.utf8_trim_whitespace(pc.if_else(numbers, texts, pa.scalar(None, pa.string()))).cast(pa.float64())


def json_objects(table: pa.Table) -> pa.StringArray:
    """Each row of the table as a JSON object, its columns in order; NaN and infinity become null. Null for a table without columns."""
    if not table.num_columns:
        return pa.nulls(len(table), pa.string())
    parts: list[Any] = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        parts.append(pa.scalar(("," if parts else "{") + json.dumps(name, ensure_ascii=False) + ":"))
        parts.append(_json_texts(whole(column)))
    return pc.binary_join_element_wise(*parts, "}", "")


def _json_texts(array: pa.Array) -> pa.StringArray:
    """Each value as JSON. Whole columns at once, but for strings that need escapes and for nested values."""
    kind = array.type
    if pa.types.is_floating(kind):
        finite = pc.fill_null(pc.is_finite(array), False)
        texts = pc.if_else(finite, array.cast(pa.string()), pa.scalar(None, pa.string()))
    elif pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        texts = array.cast(pa.string())
    elif pa.types.is_null(kind):
        texts = pa.nulls(len(array), pa.string())
    elif pa.types.is_nested(kind):
        texts = pa.array([None if value is None else json_text(value) for value in plain_values(array)], pa.string())
    else:
        texts = _quoted(strings(array))
    return pc.fill_null(texts, "null")


def _quoted(texts: pa.StringArray) -> pa.StringArray:
    quoted = pc.binary_join_element_wise('"', texts, '"', "")
    special = pc.fill_null(pc.match_substring_regex(texts, _SPECIAL), False)
    if not pc.any(special).as_py():
        return quoted
    escaped = [json.dumps(text, ensure_ascii=False) for text in texts.filter(special).to_pylist()]
    return pc.replace_with_mask(quoted, special, pa.array(escaped, pa.string()))
