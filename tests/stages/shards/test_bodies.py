"""Views of binary columns are the values themselves, whatever the chunks, slices and nulls."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.lib.bodies import list_views, views

VALUES = st.lists(st.none() | st.binary(max_size=40), max_size=12)
LISTS = st.lists(st.none() | st.lists(st.none() | st.binary(max_size=9), max_size=4), max_size=8)
KINDS = st.sampled_from([pa.binary(), pa.large_binary()])


def chunked(values: list, kind: pa.DataType, start: int) -> tuple[pa.ChunkedArray, list]:
    """The values twice: all, and from `start` on, as a slice of the same memory."""
    array = pa.array(values, kind)
    return pa.chunked_array([array, array.slice(start)], kind), values + values[start:]


@given(values=VALUES, kind=KINDS, start=st.integers(0, 3))
def test_views_are_the_values(values: list[bytes | None], kind: pa.DataType, start: int) -> None:
    column, wanted = chunked(values, kind, start)
    assert [None if view is None else bytes(view) for view in views(column)] == wanted


@given(values=LISTS, kind=KINDS, start=st.integers(0, 3), large=st.booleans())
def test_views_of_lists_are_the_values(values: list[list[bytes | None] | None], kind: pa.DataType, start: int, large: bool) -> None:
    column, wanted = chunked(values, pa.large_list(kind) if large else pa.list_(kind), start)
    found = [None if one is None else [None if view is None else bytes(view) for view in one] for one in list_views(column)]
    assert found == wanted


def test_a_column_of_nulls_and_one_of_texts() -> None:
    assert views(pa.chunked_array([pa.nulls(2)])) == [None, None]
    with pytest.raises(TypeError, match="bytes are wanted, not string"):
        views(pa.chunked_array([["a"]]))
