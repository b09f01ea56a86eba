"""Rows as the run knows them: one set of columns out of any table, row for row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import frame
from pipeline.errors import UserError
from stages.ingest.files import list_files, stream
from stages.ingest.rebatch import MALFORMED
from stages.ingest.stage import Ingest, check_columns


def ingest(columns: dict[str, Any], first: int = 0, mapping: Any = "auto") -> list[dict[str, Any]]:
    table = Ingest().normalise(pa.table(columns), first, mapping)
    expected = {
        "row": pa.int64(),
        **{name: column.type for name, column in Ingest.adds.items()},
        "fate": pa.string(),
        "detail": pa.string(),
    }
    assert {field.name: field.type for field in table.schema} == expected
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def uid(url: str, caption: str) -> str:
    return xxhash.xxh3_128_hexdigest(f"{url}\0{caption}".encode())


def test_laion_400m() -> None:
    nan = float("nan")
    first, second = ingest(
        {
            "SAMPLE_ID": pa.array([7.7e12, None], pa.float64()),
            "URL": [" http://a.test/1.jpg ", "http://a.test/2.jpg"],
            "TEXT": ["One &amp; two", None],
            "HEIGHT": pa.array([640.0, nan]),
            "WIDTH": pa.array([480.0, nan]),
            "LICENSE": ["?", "https://creativecommons.org/licenses/by/4.0/"],
            "NSFW": ["UNLIKELY", None],
            "similarity": pa.array([0.31, nan]),
        },
        first=40,
    )
    assert (first["row"], first["url"], first["source_caption"]) == (40, "http://a.test/1.jpg", "One &amp; two")
    assert (first["claimed_width"], first["claimed_height"]) == (640, 480)  # the list has them swapped
    assert (first["source_id"], first["uid"]) == ("7700000000000", uid("http://a.test/1.jpg", "One &amp; two"))
    assert (first["claimed_similarity"], first["claimed_nsfw"], first["licence"]) == (pytest.approx(0.31), "UNLIKELY", None)
    assert (second["claimed_width"], second["claimed_similarity"], second["source_id"]) == (None, None, None)
    assert (second["uid"], second["licence"][:5]) == (uid("http://a.test/2.jpg", ""), "https")
    assert (first["carried"], first["fate"]) == (None, "kept")


def test_datacomp() -> None:
    own = "0123456789abcdef0123456789abcdef"
    first, second = ingest(
        {
            "uid": [own, "ABC"],
            "url": ["http://a.test/1.jpg", "http://a.test/2.jpg"],
            "text": ["one", "two"],
            "original_width": pa.array([500, 0], pa.int64()),
            "original_height": pa.array([333, 2**40], pa.int64()),
            "clip_b32_similarity_score": pa.array([0.25, 0.5], pa.float32()),
            "clip_l14_similarity_score": pa.array([0.125, 0.5], pa.float32()),
            "face_bboxes": [[[0.1, 0.2, 0.3, 0.4]], []],
            "sha256": ["AB" * 32, "not a hash"],
        }
    )
    assert (first["uid"], first["source_id"], second["source_id"]) == (own, None, "ABC")
    assert second["uid"] == uid("http://a.test/2.jpg", "two")
    assert (first["claimed_width"], first["claimed_height"], second["claimed_width"], second["claimed_height"]) == (500, 333, None, None)
    assert (first["claimed_similarity"], json.loads(first["carried"])) == (0.25, {"clip_l14_similarity_score": 0.125})
    assert (json.loads(first["face_boxes"]), second["face_boxes"]) == ([[0.1, 0.2, 0.3, 0.4]], None)
    assert (first["expected_hash"], second["expected_hash"]) == (f"sha256:{'ab' * 32}", None)


def test_a_list_of_captions_or_urls_gives_its_first() -> None:
    rows = ingest({"image_urls": [["http://a.test/1.jpg", "x"], [], None], "all_captions": [["one", "two"], None, []]})
    assert [(row["url"], row["source_caption"]) for row in rows] == [("http://a.test/1.jpg", "one"), (None, None), (None, None)]


def test_rows_without_a_url_go_on_to_the_download_which_judges_them() -> None:
    rows = ingest({"url": ["", "  ", None, "not a url"], "text": ["a", "b", "c", "d"]})
    assert [(row["url"], row["fate"]) for row in rows] == [(None, "kept")] * 3 + [("not a url", "kept")]


def test_bytes_and_bad_utf8_are_decoded_with_replacement() -> None:
    raw = pa.array([b"caf\xe9", "caf\xe9".encode(), None], pa.binary())
    assert [row["source_caption"] for row in ingest({"url": ["u"] * 3, "text": raw})] == ["caf\ufffd", "caf\xe9", None]
    unchecked = raw.view(pa.string())
    assert [row["source_caption"] for row in ingest({"url": ["u"] * 3, "text": unchecked})] == ["caf\ufffd", "caf\xe9", None]


@pytest.mark.parametrize(
    "kind", [pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.string(), pa.large_string(), pa.null(), pa.uint8()]
)
def test_sizes_of_any_type(kind: pa.DataType) -> None:
    given = pa.nulls(2, kind) if kind == pa.null() else pa.array([200, None]).cast(kind)
    expected = [None, None] if kind == pa.null() else [200, None]
    assert [row["claimed_width"] for row in ingest({"url": ["u", "v"], "width": given})] == expected


def test_sizes_that_are_no_numbers_are_null() -> None:
    rows = ingest({"url": ["u"] * 6, "width": ["200px", "", " 30 ", "1e2", "-5", "nan"]})
    assert [row["claimed_width"] for row in rows] == [None, None, 30, 100, None, None]


def test_malformed_rows_keep_their_place() -> None:
    rows = ingest({"url": ["u", None, "w"], MALFORMED: [None, "1 cells, expected 2: x", None]}, first=7)
    assert [row["row"] for row in rows] == [7, 8, 9]
    assert [row["fate"] for row in rows] == ["kept", "ingest:malformed", "kept"]
    assert (rows[1]["detail"], rows[0]["detail"]) == ("1 cells, expected 2: x", None)
    assert {row["fate"] for row in ingest({MALFORMED: ["a", "b"]})} == {"ingest:malformed"}
    with pytest.raises(UserError, match="no column of the table"):
        ingest({"words": ["a", None], MALFORMED: [None, "b"]})


def test_a_table_of_no_rows_is_a_table() -> None:
    assert ingest({"url": pa.array([], pa.string()), "face_bboxes": pa.array([], pa.list_(pa.list_(pa.float64())))}) == []


cell = st.none() | st.text(max_size=20)
values = st.one_of(
    st.lists(st.none() | st.text(max_size=8), min_size=3, max_size=3),
    st.lists(st.none() | st.integers(-(2**62), 2**62), min_size=3, max_size=3),
    st.lists(st.none() | st.booleans(), min_size=3, max_size=3),
    st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False), min_size=3, max_size=3),
    st.lists(st.none() | st.lists(st.text(max_size=3), max_size=2), min_size=3, max_size=3),
)


@settings(max_examples=100)
@given(st.dictionaries(st.text(min_size=1, max_size=6).map(lambda name: f"extra {name}"), values, max_size=4))
def test_what_is_not_used_is_carried_as_it_was(extra: dict[str, list[Any]]) -> None:
    rows = ingest({"url": ["u", "v", "w"], **{name: pa.array(column) for name, column in extra.items()}})
    for i, row in enumerate(rows):
        assert (json.loads(row["carried"]) if row["carried"] else {}) == {name: column[i] for name, column in extra.items()}


def test_numbers_that_json_does_not_know_are_null() -> None:
    (row,) = ingest(
        {"url": ["u"], "score": pa.array([float("nan")]), "far": pa.array([float("-inf")]), "when": pa.array([0], pa.timestamp("s"))}
    )
    assert json.loads(row["carried"]) == {"score": None, "far": None, "when": "1970-01-01 00:00:00"}


@settings(max_examples=50)
@given(
    rows=st.lists(st.tuples(st.none() | st.text(max_size=20), st.none() | st.text(max_size=20)), min_size=1, max_size=20),
    cut=st.integers(0, 20),
)
def test_rows_do_not_depend_on_their_batch(rows: list[tuple[str | None, str | None]], cut: int) -> None:
    table = pa.table({"url": pa.array([url for url, _ in rows], pa.string()), "text": pa.array([text for _, text in rows], pa.string())})
    whole = Ingest().normalise(table, 5)
    cut = min(cut, len(rows))
    parts = [Ingest().normalise(table.slice(0, cut), 5), Ingest().normalise(table.slice(cut), 5 + cut)]
    assert pa.concat_tables(parts).equals(whole)
    assert np.array_equal(whole["row"].to_numpy(), np.arange(5, 5 + len(rows)))


def test_a_wrong_mapping_is_refused_before_any_work(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("LINK_2,ALT\nhttp://a.test/1.jpg,one\n", encoding="utf-8")
    files = list_files(str(path))
    check_columns(files, {"url": "LINK_2"}, "auto", {})
    with pytest.raises(UserError, match=r"list\.csv: input\.columns\.url: the table has no column 'LINK' \(the nearest: LINK_2\)"):
        check_columns(files, {"url": "LINK"}, "auto", {})
    path.write_text("", encoding="utf-8")
    check_columns(list_files(str(path)), "auto", "auto", {})


def test_a_later_file_without_urls_is_refused_before_any_work(tmp_path: Path) -> None:
    good = pa.table({"url": ["http://a.test/1.jpg"], "caption": ["one"]})
    for i in range(4):
        pq.write_table(good, tmp_path / f"{i}.parquet")
    pq.write_table(good.rename_columns(["foo", "caption"]).slice(0, 0), tmp_path / "empty.parquet")
    check_columns(list_files(str(tmp_path)), "auto", "auto", {})
    pq.write_table(good.rename_columns(["foo", "caption"]), tmp_path / "9.parquet")
    with pytest.raises(UserError, match=r"/9\.parquet: input\.columns: no column"):
        check_columns(list_files(str(tmp_path)), "auto", "auto", {})
    with pytest.raises(UserError, match=r"/0\.parquet: input\.columns\.url: the table has no column 'foo'"):
        check_columns(list_files(str(tmp_path)), {"url": "foo"}, "auto", {})


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_later_text_file_without_urls_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    for name, column in (("a", "url"), ("b", "foo")):
        text = f"{column},caption\nx,one\n" if ending == "csv" else json.dumps({column: "x", "caption": "one"})
        (tmp_path / f"{name}.{ending}").write_text(text)
    files = list_files(str(tmp_path))
    with pytest.raises(UserError, match=rf"/b\.{ending}: input\.columns: no column"):
        check_columns(files, "auto", "auto", {})
    monkeypatch.setattr("stages.ingest.stage.CHECKED", 1)
    check_columns(files, "auto", "auto", {})
    with pytest.raises(UserError, match=rf"/b\.{ending}: input\.columns: no column"):  # the worker's error
        Ingest().normalise(next(stream(files[1], 0, 10)), 0)


def test_the_next_stages_take_the_rows(data_dir: Path) -> None:
    """The frame accepts the table, and of 2,000 real rows none is lost or alike to another but for equal pairs."""
    from stages.captions import Captions

    (file,) = list_files(str(data_dir / "captions/tables/laion_style_URL_TEXT.parquet"))
    raw = pa.concat_tables(list(stream(file, 0, 300)))
    table = Ingest().normalise(raw, 0)
    assert table["url"].to_pylist() == raw["URL"].to_pylist()
    pairs = set(zip(raw["URL"].to_pylist(), raw["TEXT"].to_pylist(), strict=True))
    assert len(set(table["uid"].to_pylist())) == len(pairs)
    assert frame.apply(Captions(), table)["row"].equals(table["row"])
