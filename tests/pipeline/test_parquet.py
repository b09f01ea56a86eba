"""How tables lie in a run's files: every column compressed and with its least and largest value, but media."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.stage import MEDIA
from pipeline.storage import Store

OTHERS = {
    "row": pa.array([1, 2], pa.int64()),
    "fate": pa.array(["kept", None]),
    "embedding": pa.array([[0.5, 1.0], None], pa.list_(pa.float32())),
    "fixed": pa.array([[0.5, 1.0], [0.0, 2.0]], pa.list_(pa.float32(), 2)),
    "cues": pa.array([[{"text": "a", "at": [1.0]}], []], pa.list_(pa.struct({"text": pa.string(), "at": pa.list_(pa.float64())}))),
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
        media = leaf.path_in_schema.partition(".")[0] in MEDIA
        assert leaf.compression == ("UNCOMPRESSED" if media else "ZSTD"), leaf.path_in_schema
        assert (leaf.statistics is None) == media, leaf.path_in_schema
