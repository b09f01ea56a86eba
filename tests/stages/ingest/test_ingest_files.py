"""Finding files: what a path names, in which order, what changes an etag, and what is refused before any work."""

from __future__ import annotations

import pickle
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from stages.ingest.files import InputFile, list_files, stream


def table(rows: int, first: int = 0) -> pa.Table:
    return pa.table({"URL": [f"http://a.test/{first + i}.jpg" for i in range(rows)], "TEXT": [f"text {first + i}" for i in range(rows)]})


def names(files: list[InputFile]) -> list[str]:
    return [Path(file.url).name for file in files]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for name, rows in (("b.parquet", 3), ("a.parquet", 2), ("sub/c.parquet", 4)):
        pq.write_table(table(rows), tmp_path / name)
    for name in ("_SUCCESS", ".hidden.parquet", "a.npz", "README.md", "dataset_info.json", "_tmp.parquet"):
        (tmp_path / name).write_text("{}")
    return tmp_path


def test_folders_globs_and_lists(folder: Path) -> None:
    assert names(list_files(str(folder))) == ["a.parquet", "b.parquet", "c.parquet"]
    assert [file.rows for file in list_files(str(folder))] == [2, 3, 4]
    assert names(list_files(f"{folder}/*.parquet")) == ["a.parquet", "b.parquet"]
    assert names(list_files([f"{folder}/sub", f"{folder}/b.parquet", str(folder)])) == ["c.parquet", "b.parquet", "a.parquet"]
    assert names(list_files(f"file://{folder}/b.parquet")) == ["b.parquet"]


def test_relative_paths_become_absolute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "sub")
    assert list_files("../a.parquet") == list_files(str(folder / "a.parquet"))


def test_an_etag_changes_with_the_file_and_only_then(folder: Path) -> None:
    before = {file.url: file.etag for file in list_files(str(folder))}
    assert before == {file.url: file.etag for file in list_files(str(folder))}
    pq.write_table(table(3, first=5), folder / "b.parquet")
    after = {file.url: file.etag for file in list_files(str(folder))}
    assert [Path(url).name for url in after if after[url] != before[url]] == ["b.parquet"]


def test_files_travel_to_workers(folder: Path) -> None:
    files = list_files(str(folder))
    assert pickle.loads(pickle.dumps(files)) == files


def test_any_fsspec_url() -> None:
    with fsspec.open("memory://lists/one.csv", "wb") as handle:
        handle.write(b"url,text\nhttp://a.test/1.jpg,one\n")
    (file,) = list_files("memory://lists")
    assert (file.url, file.format, file.rows) == ("memory:///lists/one.csv", "csv", None)
    assert list_files(file.url) == [file]
    assert next(stream(file, 0, 10))["text"].to_pylist() == ["one"]


@pytest.mark.parametrize(
    ("path", "format", "message"),
    [
        ("none.parquet", "auto", "no such file, and no folder or glob with files in it"),
        ("*.csv", "auto", "no such file, and no folder or glob with files in it"),
        ("README.md", "auto", "has no known ending"),
        ("", "xml", "input.format: xml is unknown; valid: auto, parquet"),
        ("sub", "csv", "none of its 1 files is csv"),
        ("sub", "img2dataset-", "unknown"),
        ("mixed", "auto", "holds csv and jsonl; choose by input.format or a glob"),
        ("broken.parquet", "auto", "no whole Parquet file"),
        ("nothing://x", "auto", "Protocol not known"),
    ],
)
def test_what_is_refused(folder: Path, path: str, format: str, message: str) -> None:
    (folder / "mixed").mkdir()
    (folder / "mixed/a.csv").write_text("url\n")
    (folder / "mixed/a.jsonl").write_text("{}\n")
    (folder / "broken.parquet").write_bytes(b"PAR1 but not for long")
    with pytest.raises(UserError) as caught:
        list_files(path if "://" in path else f"{folder}/{path}", format)
    assert message in str(caught.value)


def test_a_named_format_reads_files_of_any_name(tmp_path: Path) -> None:
    (tmp_path / "part-00000").write_text("url\tcaption\nhttp://a.test/1.jpg\tone\n")
    (file,) = list_files(str(tmp_path), "tsv")
    assert next(stream(file, 0, 10))["caption"].to_pylist() == ["one"]


@settings(max_examples=60)
@given(starts=st.lists(st.integers(0, 11), min_size=1, max_size=8), group=st.integers(1, 60))
def test_parts_of_parquet_in_any_order(tmp_path_factory: pytest.TempPathFactory, starts: list[int], group: int) -> None:
    """As workers ask for them: one table each, here and there; a reader that stayed open gives the same rows as a new one."""
    path = tmp_path_factory.mktemp("parquet") / "a.parquet"
    whole = table(100)
    pq.write_table(whole, path, row_group_size=group)
    (file,) = list_files(str(path))
    for start in starts:
        part = next(stream(file, start * 9, 9), None)
        assert (part["URL"].to_pylist() if part else []) == whole["URL"].to_pylist()[start * 9 : start * 9 + 9]


def test_a_file_that_changed_is_read_anew(tmp_path: Path) -> None:
    for first in (0, 50):
        pq.write_table(table(20, first), tmp_path / "a.parquet")
        (file,) = list_files(str(tmp_path))
        assert next(stream(file, 0, 5))["TEXT"][0].as_py() == f"text {first}"
        assert next(stream(file, 5, 5))["TEXT"][0].as_py() == f"text {first + 5}"


@settings(max_examples=80)
@given(start=st.integers(0, 120), batch=st.integers(1, 130), group=st.integers(1, 60))
def test_parquet_rows_from_any_start(tmp_path_factory: pytest.TempPathFactory, start: int, batch: int, group: int) -> None:
    path = tmp_path_factory.mktemp("parquet") / "a.parquet"
    whole = table(100)
    pq.write_table(whole, path, row_group_size=group)
    (file,) = list_files(str(path))
    got = list(stream(file, start, batch))
    assert [len(part) for part in got[:-1]] == [batch] * (len(got) - 1)
    assert [url for part in got for url in part["URL"].to_pylist()] == whole["URL"].to_pylist()[start:]


def test_columns_of_one_name_do_not_stop_the_reader(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([pa.array(["http://a.test/1.jpg"]), pa.array(["one"]), pa.array(["two"])], names=["url", "text", "text"])
    pq.write_table(twice, tmp_path / "a.parquet")
    (file,) = list_files(str(tmp_path))
    assert next(stream(file, 0, 10)).column_names == ["url", "text", "text_2"]


@pytest.mark.parametrize("codec", ["snappy", "zstd", "gzip", "lz4", "brotli"])
def test_a_parquet_that_is_damaged_inside_is_named(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table(40_000), path, compression=codec, row_group_size=10_000)
    data = bytearray(path.read_bytes())
    at = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data[at + 100 : at + 400] = bytes(byte ^ 0xFF for byte in data[at + 100 : at + 400])
    path.write_bytes(data)
    (file,) = list_files(str(path))
    assert len(next(stream(file, 0, 1000))) == 1000
    for _ in range(2):  # a reader that stayed open must not take the damage for the file's end
        with pytest.raises(UserError, match=r"a\.parquet: cannot be read as parquet: .*; fetch it again"):
            list(stream(file, 1000, 1000))
    assert len(next(stream(file, 30_000, 1000))) == 1000


def test_a_footer_that_is_damaged_inside_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table(10), path)
    data = bytearray(path.read_bytes())
    data[-60:-12] = b"\xff" * 48
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.parquet: no whole Parquet file"):
        list_files(str(path))


def test_faults_of_the_storage_are_none_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(table(10), tmp_path / "a.parquet")
    (file,) = list_files(str(tmp_path))
    for err in (OSError(5, "Input/output error"), ConnectionResetError("reset"), TimeoutError()):

        def failing(*_: object, err: OSError = err) -> None:
            raise err

        monkeypatch.setattr("stages.ingest.parquet.stream", failing)
        with pytest.raises(type(err)):
            list(stream(file, 0, 5))
