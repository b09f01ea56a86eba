"""How tables lie in a run's files: every column compressed and with its least and largest value, but media."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.storage import Store

BOX = pa.struct({"box": pa.list_(pa.float32()), "of": pa.map_(pa.string(), pa.int32())})
OTHERS = {
    "row": pa.array([1, 2], pa.int64()),
    "fate": pa.array(["kept", None]),
    "embedding": pa.array([[0.5, 1.0], None], pa.list_(pa.float32())),
    "fixed": pa.array([[0.5, 1.0], [0.0, 2.0]], pa.list_(pa.float32(), 2)),
    "cues": pa.array([[{"text": "a", "at": [1.0]}], []], pa.list_(pa.struct({"text": pa.string(), "at": pa.list_(pa.float64())}))),
    "tags": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())),
    "site": pa.array(["a.test", None]).dictionary_encode(),
    "boxes": pa.array([[{"box": [1.0], "of": {"a": 1}}], None], pa.large_list(BOX)),
    "image.width": pa.array([1, None]),
}
MEDIA_COLUMNS = {
    "image": pa.array([b"a", None], pa.large_binary()),
    "frames": pa.array([[b"a", b"b"], None], pa.list_(pa.large_binary())),
}


@pytest.mark.parametrize("columns", [OTHERS, MEDIA_COLUMNS, {**OTHERS, **MEDIA_COLUMNS}], ids=["no media", "media", "both"])
@pytest.mark.parametrize("whole", [True, False])
def test_all_but_media_is_compressed_and_read_as_it_was(tmp_path: Path, columns: dict[str, pa.Array], whole: bool) -> None:
    store, table = Store(str(tmp_path)), pa.table(columns)
    if whole:
        store.write_table("t.parquet", table)
    else:
        store.write_tables("t.parquet", [table[:1], table[1:]], lambda: None)
    assert store.read_table("t.parquet").equals(table)
    group = pq.ParquetFile(tmp_path / "t.parquet").metadata.row_group(0)
    leaves = [group.column(at) for at in range(group.num_columns)]
    assert leaves
    for leaf in leaves:
        media = leaf.path_in_schema in ("image", "frames.list.element")
        assert leaf.compression == ("UNCOMPRESSED" if media else "ZSTD"), leaf.path_in_schema
        assert (leaf.statistics is None) == media, leaf.path_in_schema


@pytest.mark.parametrize("rows", [0, 1, 300])
def test_tables_without_rows_and_pictures_that_are_null_are_written_too(tmp_path: Path, rows: int) -> None:
    pictures = [None if n % 3 == 0 else bytes([n % 256]) * n for n in range(rows)]
    table = pa.table({"row": pa.array(range(rows), pa.int64()), "image": pa.array(pictures, pa.large_binary())})
    Store(str(tmp_path)).write_table("t.parquet", table, row_group_rows=100)
    assert Store(str(tmp_path)).read_table("t.parquet").equals(table)


def test_a_flipped_bit_of_a_picture_is_found_wherever_it_is(tmp_path: Path) -> None:
    """It lies there as it is: no codec would find it."""
    store, picture = Store(str(tmp_path)), bytes(range(256)) * 4
    store.write_table("t.parquet", pa.table({"row": [0, 1], "image": pa.array([picture, picture], pa.large_binary())}))
    whole = (tmp_path / "t.parquet").read_bytes()
    begin = whole.index(picture)
    for at in range(begin, begin + 2 * len(picture), 97):
        (tmp_path / "t.parquet").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(UserError, match="is damaged"):
            store.read_table("t.parquet")
        with pytest.raises(UserError, match="is damaged"):
            list(store.read_tables("t.parquet", ["image"]))


def test_files_of_before_media_lay_as_they_are_are_read(tmp_path: Path) -> None:
    table = pa.table({**OTHERS, **MEDIA_COLUMNS})
    pq.write_table(table, tmp_path / "t.parquet", compression="zstd", write_page_checksum=True)
    assert Store(str(tmp_path)).read_table("t.parquet").equals(table)
