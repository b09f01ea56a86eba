"""A file under its final name is whole, on a disk and on an object store."""

from __future__ import annotations

import errno
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline import exchange, views
from pipeline.errors import TransientError, UserError
from pipeline.parts import Attempts, Part, addition_name, addition_of
from pipeline.storage import Store
from tests.support.s3 import s3_server


@pytest.fixture(scope="module")
def bucket() -> Iterator[Store]:
    with s3_server("corpus") as options:
        yield Store("s3://corpus/run", options)


@pytest.fixture(params=["disk", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "disk":
        return Store(str(tmp_path / "run"))
    return request.getfixturevalue("bucket").sub(request.node.name.replace("[", "-").replace("]", ""))


TABLE = pa.table({"row": pa.array([0, 1, 2], pa.int64()), "text": ["a", None, "ü"]})


def test_what_is_written_is_read_back(store: Store) -> None:
    store.write("a/b.txt", b"one")
    store.write("a/b.txt", b"two")
    store.write_table("a/t.parquet", TABLE)
    assert store.read("a/b.txt") == b"two"
    assert store.read_table("a/t.parquet").equals(TABLE)
    assert store.read_table("a/t.parquet", ["text"]).column_names == ["text"]
    assert store.rows("a/t.parquet") == 3
    assert store.names("a") == ["b.txt", "t.parquet"]
    assert store.names("a", ".parquet") == ["t.parquet"]
    assert store.names("nowhere") == []
    assert store.exists("a/b.txt")
    assert not store.exists("a/c.txt")
    store.remove("a")
    store.remove("a")
    assert store.names("a") == []


def test_a_store_travels_in_a_pickle(store: Store) -> None:
    store.write("x", b"1")
    assert pickle.loads(pickle.dumps(store)).read("x") == b"1"


def test_a_relative_folder_stays_the_same_folder_in_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store("runs/a")
    store.write("x", b"1")
    travelled = pickle.dumps(store)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert pickle.loads(travelled).read("x") == b"1"


def test_copy_leaves_both(store: Store) -> None:
    store.write("old/x", b"1")
    store.copy("old/x", "new/x")
    store.copy("old/x", "new/x")
    assert store.read("new/x") == store.read("old/x") == b"1"


def _half(target: Path) -> None:
    target.write_bytes(b"half")
    raise RuntimeError("half way")


def test_a_failed_write_leaves_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError, match="half"), store.atomic("a/x") as target:
        _half(target)
    assert not store.exists("a/x")
    assert store.names("a") == []
    assert store.sweep() == []


def test_a_full_disk_is_said_plainly(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(TransientError, match=r"no space left.*repeat the command"), store.atomic("x"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert store.names("") == []


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EBUSY, errno.EREMOTEIO, errno.EACCES, None])
def test_what_the_storage_refuses_may_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None) -> None:
    """As an object store's client says that it is asked too often (EBUSY), or a network drive that it is gone."""
    store = Store(str(tmp_path))
    store.write_table("a.parquet", TABLE)
    fault = OSError(number, "asked too often") if number else TimeoutError("asked too often")

    def refuse(*_: object, **__: object) -> None:
        raise fault

    for name in ("open", "ls", "cat_file", "rm"):
        monkeypatch.setattr(store.fs, name, refuse)
    monkeypatch.setattr(Path, "exists", refuse)
    monkeypatch.setattr(Path, "replace", refuse)
    asks = [store.read, store.names, store.read_table, store.rows, store.columns, store.remove, store.exists]
    asks += [lambda path: store.write(path, b""), lambda path: store.write_table(path, TABLE)]
    for ask in asks:
        with pytest.raises(TransientError, match=r"the storage refuses a.parquet: .*asked too often; mend that, then repeat the command"):
            ask("a.parquet")


def test_a_storage_that_refuses_duckdb_may_pass_too(bucket: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store = bucket.sub("busy")
    store.write_table("a.parquet", TABLE)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EBUSY, "asked too often")

    monkeypatch.setattr(store.fs, "cat_file", refuse)
    with pytest.raises(TransientError, match=r"the storage refuses .*asked too often"), views.connect(store) as con:
        views.files(con, "a", store, ["a.parquet"], TABLE.schema)


def joined(store: Store, path: str) -> None:
    with views.connect(store) as con:
        views.files(con, "pool", store, [path], TABLE.schema)
        con.execute("SELECT sum(row), count(text) FROM pool").fetchall()


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes(255 - byte for byte in data[at : at + 4]) + data[at + 4 :]


@pytest.mark.parametrize("kind", ["cut", "garbage", "flipped page", "flipped header"])
def test_a_damaged_file_is_named_with_its_mend(store: Store, kind: str) -> None:
    """Also where a value is another and all else reads well: pages have checksums."""
    table = TABLE.append_column("image", pa.array([bytes(np.random.default_rng(n).bytes(3000)) for n in range(3)], pa.large_binary()))
    store.write_table("pool/k/part-00000.0.parquet", table)
    whole = store.read("pool/k/part-00000.0.parquet")
    changes = {"cut": whole[:4000], "garbage": b"garbage", "flipped page": flipped(whole, 5000), "flipped header": flipped(whole, 6)}
    for path in ("pool/k/part-00000.0.parquet", "dedup/k/part-00000.parquet"):
        store.write(path, changes[kind])
    store.write_json("dedup/k/done.json", {})
    with pytest.raises(UserError, match=r"pool/k/part-00000.0.parquet: the file is damaged \(.*\); remove it, then repeat the command"):
        store.read_table("pool/k/part-00000.0.parquet")
    with pytest.raises(UserError, match=r"the file is damaged .*; remove the folder .*dedup/k, then repeat the command"):
        store.read_table("dedup/k/part-00000.parquet")
    if kind == "flipped page":
        return  # images never reach DuckDB
    with pytest.raises(UserError, match=r"part-00000.0?.?parquet: the file is damaged"):
        joined(store, "pool/k/part-00000.0.parquet")


def test_a_damaged_note_or_exchange_is_named_too(store: Store) -> None:
    store.write("selection/k/done.json", b"")
    with pytest.raises(UserError, match=r"selection/k/done.json: the file is damaged .*; remove the folder"):
        store.read_json("selection/k/done.json")
    exchange.write(store, "x/0.arrow", TABLE, np.zeros(3, np.int64), 1)
    store.write("x/0.arrow", store.read("x/0.arrow")[:-50])
    with pytest.raises(UserError, match=r"x/0.arrow: the file is damaged .*; remove it"):
        exchange.read(store, ["x/0.arrow"], 0)


def test_a_killed_writers_leftover_is_no_file_and_is_swept(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write("rows/part-00000.parquet", b"whole")
    (tmp_path / "rows" / ".part-00001.parquet.ab12.tmp").write_bytes(b"torn")
    assert store.names("rows") == ["part-00000.parquet"]
    assert store.sweep() == ["rows/.part-00001.parquet.ab12.tmp"]
    assert store.names("rows") == ["part-00000.parquet"]


def test_same_table_same_bytes(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write_table("a.parquet", TABLE)
    store.write_table("b.parquet", TABLE)
    assert store.read("a.parquet") == store.read("b.parquet")


def test_the_exchange_brings_each_row_to_its_bucket(store: Store) -> None:
    rng = np.random.default_rng(1)
    tables = []
    for number in range(3):
        rows = pa.table({"row": np.arange(100) + 100 * number, "body": pa.array([bytes([i]) * i for i in range(100)], pa.large_binary())})
        bucket = rng.integers(0, 5, 100)
        exchange.write(store, f"x/{number}.arrow", rows, bucket, 7)
        tables.append(rows.append_column("bucket", pa.array(bucket)))
    everything = pa.concat_tables(tables)
    paths = [f"x/{number}.arrow" for number in range(3)]
    for b in range(7):
        expected = everything.filter(pa.compute.equal(everything["bucket"], b)).drop_columns(["bucket"])
        assert exchange.read(store, paths, b).to_pylist() == expected.to_pylist()


def test_views_number_rows_across_files_and_take_the_latest_addition(store: Store) -> None:
    store.write_table("rows/k1/part-00000.parquet", TABLE)
    store.write_table("rows/k2/part-00000.parquet", TABLE)
    parts = [Part(0, "k1", 0, 0, 3, 0, "f"), Part(1, "k2", 0, 3, 3, 3, "g")]
    store.write_table("pool/k/part-00000.0.parquet", pa.table({"fetch_id": ["a", "b"], "fate": ["kept", "download:timeout"]}))
    store.write_table("pool/k/part-00000.1.parquet", pa.table({"fetch_id": ["b"], "fate": ["kept"]}))
    with views.connect(store) as con:
        views.rows(con, "rows", store, parts, TABLE.schema)
        assert con.execute("SELECT row, part FROM rows ORDER BY row").fetchall() == [(i, i // 3) for i in range(6)]
        cut = list(views.grouped(con, "SELECT part, row FROM rows ORDER BY part, row", "part"))
        assert [(part, table["row"].to_pylist()) for part, table in cut] == [(0, [0, 1, 2]), (1, [3, 4, 5])]
        views.latest(con, "pool", store, "pool/k", "fetch_id", pa.schema([("fetch_id", pa.string()), ("fate", pa.string())]))
        assert con.execute("SELECT fetch_id, fate FROM pool ORDER BY fetch_id").fetchall() == [("a", "kept"), ("b", "kept")]
        views.latest(con, "none", store, "pool/none", "fetch_id", pa.schema([("fetch_id", pa.string())]))
        assert con.execute("SELECT count(*) FROM none").fetchone() == (0,)


def test_attempts_are_counted_until_the_part_is_committed(store: Store) -> None:
    assert Attempts(store, "rows/k/part-00000").begin() == 0
    assert Attempts(store, "rows/k/part-00000").begin() == 1
    assert Attempts(store, "rows/k/part-00001").begin() == 0
    Attempts(store, "rows/k/part-00000").end()
    assert Attempts(store, "rows/k/part-00000").begin() == 0
    failed = Attempts(store, "rows/k/part-00000")
    assert failed.begin() == 1
    failed.withdraw()
    assert Attempts(store, "rows/k/part-00000").begin() == 1


def test_addition_names_are_read_back() -> None:
    assert addition_of(addition_name(12, 3)) == (12, 3)
    assert addition_of(addition_name(123456, 0)) == (123456, 0)


def test_a_protocol_that_nobody_knows_is_told_in_a_line() -> None:
    with pytest.raises(UserError, match=r"^nowhere://a/b: cannot be opened: Protocol not known"):
        Store("nowhere://a/b").exists("run.json")


def test_a_server_that_is_not_there_may_come_back() -> None:
    with pytest.raises(TransientError, match=r"^ftp://127.0.0.1:1/x: cannot be opened: .*refused"):
        Store("ftp://127.0.0.1:1/x").exists("run.json")
