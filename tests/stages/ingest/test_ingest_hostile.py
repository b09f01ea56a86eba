"""Cells that no Python value holds: they are told as far as they can be, and no other row changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.ingest.files import list_files, stream
from stages.ingest.stage import Ingest

BAD = pa.array([b"caf\xe9", b"fine"], pa.binary()).view(pa.string())
FAR = pa.array([2**62, 1], pa.int64())
LISTS = pa.array([0, 1, 2], pa.int32())


def listed(inner: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(LISTS, inner)


HOSTILE = {
    "text": (listed(BAD), [["caf\ufffd"], ["fine"]]),
    "view": (pa.array([["x"], ["y"]], pa.list_view(pa.string())), [["x"], ["y"]]),
    "text view": (listed(BAD.cast(pa.binary()).cast(pa.binary_view()).view(pa.string_view())), [["caf\ufffd"], ["fine"]]),
    "large text": (listed(BAD.cast(pa.large_binary()).view(pa.large_string())), [["caf\ufffd"], ["fine"]]),
    "dictionary": (listed(pa.DictionaryArray.from_arrays(pa.array([0, 1]), BAD)), [["caf\ufffd"], ["fine"]]),
    "field": (pa.StructArray.from_arrays([BAD, pa.array([1, 2])], ["a", "b"]), [{"a": "caf\ufffd", "b": 1}, {"a": "fine", "b": 2}]),
    "fields of one name": (
        pa.StructArray.from_arrays([pa.array([1, 2]), pa.array([3, 4])], ["a", "a"]),
        [{"a": 1, "a_2": 3}, {"a": 2, "a_2": 4}],
    ),
    "map": (pa.MapArray.from_arrays(LISTS, BAD, pa.array([1, 2])), [[["caf\ufffd", 1]], [["fine", 2]]]),
    "binary keys": (pa.array([[(b"\xff", 1)], [(b"k", 2)]], pa.map_(pa.binary(), pa.int64())), [[["\ufffd", 1]], [["k", 2]]]),
    "time": (listed(FAR.cast(pa.timestamp("us"))), [[None], ["1970-01-01 00:00:00.000001"]]),
    "duration": (listed(FAR.cast(pa.duration("s"))), [[None], ["0:00:01"]]),
    "zone": (listed(pa.array([1, 2]).cast(pa.timestamp("s", "Mars/Base"))), [[None], [None]]),
    "zone above": (pa.array([1, 2]).cast(pa.timestamp("s", "Mars/Base")), [None, None]),
    "no numbers": (pa.array([[0.5, float("nan")], [float("inf"), None]]), [[0.5, None], [None, None]]),
    "no numbers within": (pa.array([[{"a": [float("-inf")]}], [{"a": [1.0]}]]), [[{"a": [None]}], [{"a": [1.0]}]]),
    "no numbers in a map": (pa.array([[("k", float("nan"))], []], pa.map_(pa.string(), pa.float64())), [[["k", None]], []]),
}


def refused(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def carried(array: pa.Array) -> list[Any]:
    table = Ingest().normalise(pa.table({"url": ["u"] * len(array), "extra": array}), 0)
    return [json.loads(text, parse_constant=refused)["extra"] for text in table["carried"].to_pylist()]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_cell_is_carried_as_far_as_it_can_be_told(name: str) -> None:
    array, expected = HOSTILE[name]
    assert carried(array) == expected
    assert [carried(array.slice(i, 1))[0] for i in range(2)] == expected  # and whatever the other rows are


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("column", ["text", "url", "sha256", "similarity", "width", "face_bboxes", "uid", "id", "nsfw"])
def test_a_hostile_cell_stops_no_run_whatever_its_column_means(name: str, column: str) -> None:
    table = Ingest().normalise(pa.table({"url": ["u", "v"], "text": ["one", "two"]} | {column: HOSTILE[name][0]}), 0)
    table.validate(full=True)
    assert table["fate"].to_pylist() == ["kept", "kept"]


def test_boxes_are_json_whatever_they_are() -> None:
    table = pa.table({"url": ["u", "v"], "face_boxes": HOSTILE["binary keys"][0]})
    assert Ingest().normalise(table, 0)["face_boxes"].to_pylist() == ['[["\ufffd", 1]]', '[["k", 2]]']


def test_hostile_cells_in_a_file(tmp_path: Path) -> None:
    names = ["text", "field", "time", "no numbers"]
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"url": ["u", "v"], **{f"my {name}": HOSTILE[name][0] for name in names}}), path)
    (raw,) = stream(list_files(str(path))[0], 0, 10)
    told = [json.loads(text) for text in Ingest().normalise(raw, 0)["carried"].to_pylist()]
    assert told == [{f"my {name}": HOSTILE[name][1][i] for name in names} for i in range(2)]
