"""Shards as input: every row of their Parquet, and the places of the bytes that lie in their tars."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from stages.download import stored
from stages.ingest.files import list_files, stream
from stages.ingest.stage import Ingest


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """What img2dataset leaves: two shards, one row of each failed."""
    for shard in range(2):
        keys = [f"{shard * 10000 + i:09d}" for i in range(4)]
        good = [0, 2, 3]
        status = ["success" if i in good else "failed_to_download" for i in range(4)]
        columns = {
            "caption": [f"caption {key}" for key in keys],
            "url": [f"http://a.test/{key}.jpg" for key in keys],
            "key": keys,
            "status": status,
            "error_message": [None if s == "success" else "HTTP Error 404: Not Found" for s in status],
            "width": pa.array([256 if s == "success" else None for s in status], pa.int32()),
            "height": pa.array([256 if s == "success" else None for s in status], pa.int32()),
            "original_width": pa.array([640 if s == "success" else None for s in status], pa.int32()),
            "original_height": pa.array([480 if s == "success" else None for s in status], pa.int32()),
            "exif": ["{}"] * 4,
            "sha256": ["ab" * 32] * 4,
        }
        pq.write_table(pa.table(columns), tmp_path / f"{shard:05d}.parquet", row_group_size=2)
        members = {}
        for i in (3, 0, 2):  # samples stand in the order in which they were finished
            members[f"{keys[i]}.jpg"] = f"picture {keys[i]}".encode()
            members[f"{keys[i]}.json"] = b"{}"
            members[f"{keys[i]}.txt"] = f"caption {keys[i]}".encode()
        tar(tmp_path / f"{shard:05d}.tar", members)
        (tmp_path / f"{shard:05d}_stats.json").write_text("{}")
    return tmp_path


def test_an_img2dataset_folder(shards: Path) -> None:
    files = list_files(str(shards))
    assert [(Path(file.url).name, file.rows, file.format) for file in files] == [
        ("00000.parquet", 4, "img2dataset"),
        ("00001.parquet", 4, "img2dataset"),
    ]
    rows = [row for file in files for raw in stream(file, 0, 3) for row in Ingest().normalise(raw, 0).to_pylist()]
    assert [row["source_id"] for row in rows] == [f"{s * 10000 + i:09d}" for s in range(2) for i in range(4)]
    for row in rows:
        assert (row["url"], row["source_caption"]) == (f"http://a.test/{row['source_id']}.jpg", f"caption {row['source_id']}")
        if row["source_id"].endswith("1"):
            assert row["stored_at"] is None
            assert row["expected_hash"] == f"sha256:{'ab' * 32}"
            assert json.loads(row["carried"])["error_message"] == "HTTP Error 404: Not Found"
        else:
            assert stored.read(row["stored_at"], 1000, {}) == f"picture {row['source_id']}".encode()
            assert row["expected_hash"] is None  # the hash is the original's, the stored picture is another one
            assert (row["claimed_width"], row["claimed_height"]) == (640, 480)


def test_a_glob_of_the_tables_finds_their_tars(shards: Path) -> None:
    assert list_files(f"{shards}/*.parquet", "img2dataset") == list_files(str(shards))
    assert [file.format for file in list_files(f"{shards}/*.parquet")] == ["parquet", "parquet"]


def test_another_tar_is_another_input(shards: Path) -> None:
    before = [file.etag for file in list_files(str(shards))]
    tar(shards / "00000.tar", {"000000000.jpg": b"other"})
    after = [file.etag for file in list_files(str(shards))]
    assert before[0] != after[0]
    assert before[1] == after[1]
    raw = next(stream(list_files(str(shards))[0], 0, 10))
    assert raw["__stored_at__"].null_count == 3


@pytest.mark.parametrize("length", [512 * 6 + 100, 512 * 7 + 3])  # in a header, in a picture
def test_a_tar_that_is_cut_off_costs_the_places_of_what_is_missing(shards: Path, length: int) -> None:
    path = shards / "00000.tar"
    path.write_bytes(path.read_bytes()[:length])
    rows = Ingest().normalise(next(stream(list_files(str(shards))[0], 0, 10)), 0)
    assert len(rows) == 4
    assert rows["stored_at"].null_count == 3
    assert set(rows["fate"].to_pylist()) == {"kept"}


def test_plain_webdataset_tars(tmp_path: Path) -> None:
    members = {
        "a/one.jpg": b"1",
        "a/one.json": b'{"url": "http://a.test/1.jpg", "score": 3, "__stored_at__": "/etc/passwd"}',
        "a/one.txt": b"first",
        "a/two.png": b"22",
        "a/two.txt": b"second",
        "three.txt": b"no picture",
        "four.webp": b"4",
        "four.json": b"{broken",
    }
    tar(tmp_path / "data.tar", members)
    (file,) = list_files(str(tmp_path))
    assert (file.format, file.rows) == ("tar", None)
    rows = [row for raw in stream(file, 0, 3) for row in Ingest().normalise(raw, 0).to_pylist()]
    assert [row["source_id"] for row in rows] == ["a/one", "a/two", "three", "four"]
    assert [row["source_caption"] for row in rows] == ["first", "second", "no picture", None]
    assert [row["url"] for row in rows] == ["http://a.test/1.jpg", None, None, None]
    assert [row["stored_at"] and stored.read(row["stored_at"], 9, {}) for row in rows] == [b"1", b"22", None, b"4"]
    assert [row["fate"] for row in rows] == ["kept", "kept", "kept", "ingest:malformed"]
    assert len({row["uid"] for row in rows}) == 4


def test_a_plain_tar_that_is_cut_off_says_so(tmp_path: Path) -> None:
    path = tar(tmp_path / "data.tar", {f"{i:04d}.{end}": b"x" * 600 for i in range(9) for end in ("jpg", "txt")})
    path.write_bytes(path.read_bytes()[:9000])
    rows = Ingest().normalise(next(stream(list_files(str(path))[0], 0, 100)), 0).to_pylist()
    assert [row["fate"] for row in rows][-1] == "ingest:malformed"
    assert "ends too early" in rows[-1]["detail"]
    assert [row["fate"] for row in rows][:-1] == ["kept"] * (len(rows) - 1)


def test_a_parquet_that_knows_no_keys_is_refused(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", {"0.jpg": b"x"})
    pq.write_table(pa.table({"url": ["http://a.test/1.jpg"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="has no column `key`"):
        next(stream(list_files(str(tmp_path))[0], 0, 10))


def _mutated(data: bytes, changes: list[tuple[int, int]]) -> bytes:
    out = bytearray(data)
    for at, value in changes:
        out[at % len(out)] = value
    return bytes(out)


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_tars_give_rows_and_never_an_exception(tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]) -> None:
    folder = tmp_path_factory.mktemp("tar")
    path = tar(folder / "data.tar", {"1.jpg": b"x", "1.json": b"{}", "2.jpg": b"y" * 700, "2.txt": b"two"})
    path.write_bytes(_mutated(path.read_bytes(), changes))
    for raw in stream(list_files(str(path))[0], 0, 100):
        rows = Ingest().normalise(raw, 0)
        assert len(rows) <= 10
