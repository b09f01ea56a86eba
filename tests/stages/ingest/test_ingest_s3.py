"""Input on an object store, over its real API: tables, compressed text, and the places of samples in a tar."""

from __future__ import annotations

import gzip
import io
import tarfile
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.download import stored
from stages.ingest.files import list_files, stream
from stages.ingest.stage import Ingest
from tests.support.s3 import s3_server


@pytest.fixture(scope="module")
def options() -> Any:
    with s3_server("lists") as options:
        fs = fsspec.filesystem("s3", **options)
        table = pa.table({"url": [f"http://a.test/{i}.jpg" for i in range(100)], "caption": [f"text {i}" for i in range(100)]})
        out = io.BytesIO()
        pq.write_table(table, out, row_group_size=30)
        fs.pipe_file("lists/tables/a.parquet", out.getvalue())
        fs.pipe_file("lists/text/a.tsv.gz", gzip.compress(b"http://a.test/1.jpg\tone\nhttp://a.test/2.jpg\ttwo\n"))
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as archive:
            info = tarfile.TarInfo("000000001.jpg")
            info.size = 7
            archive.addfile(info, io.BytesIO(b"picture"))
        fs.pipe_file("lists/shards/00000.tar", out.getvalue())
        out = io.BytesIO()
        pq.write_table(pa.table({"url": ["u", "v"], "caption": ["a", "b"], "key": ["000000000", "000000001"]}), out)
        fs.pipe_file("lists/shards/00000.parquet", out.getvalue())
        yield options


def test_parquet(options: dict[str, Any]) -> None:
    (file,) = list_files("s3://lists/tables", storage_options=options)
    assert (file.url, file.rows) == ("s3://lists/tables/a.parquet", 100)
    assert list_files("s3://lists/tables/*.parquet", storage_options=options) == [file]
    got = [table["caption"].to_pylist() for table in stream(file, 25, 40, storage_options=options)]
    assert [text for part in got for text in part] == [f"text {i}" for i in range(25, 100)]


def test_compressed_text(options: dict[str, Any]) -> None:
    (file,) = list_files("s3://lists/text/a.tsv.gz", storage_options=options)
    assert next(stream(file, 0, 10, storage_options=options))["caption"].to_pylist() == ["one", "two"]


def test_shards(options: dict[str, Any]) -> None:
    (file,) = list_files("s3://lists/shards", storage_options=options)
    first, second = Ingest().normalise(next(stream(file, 0, 10, storage_options=options)), 0)["stored_at"].to_pylist()
    assert first is None
    assert stored.read(second, 100, options) == b"picture"
