"""How a run's tables are written as Parquet: pages with checksums, zstd, and media as they are, since they are compressed already."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.stage import MEDIA


def options(schema: pa.Schema) -> dict[str, Any]:
    """pyarrow's options for writing tables of this schema."""
    media = _leaves([field for field in schema if field.name in MEDIA])
    if not media:
        return {"compression": "zstd", "write_page_checksum": True}
    others = _leaves([field for field in schema if field.name not in MEDIA])
    compression = {**dict.fromkeys(others, "ZSTD"), **dict.fromkeys(media, "NONE")}
    # Least and largest picture are of no use, and each page's header would hold both.
    return {"compression": compression, "use_dictionary": others, "write_statistics": others, "write_page_checksum": True}


def _leaves(fields: list[pa.Field]) -> list[str]:
    """The names of these columns' values in a Parquet file, by pyarrow itself: of lists, structs and maps they are several words long."""
    if not fields:
        return []
    sink = pa.BufferOutputStream()
    pq.ParquetWriter(sink, pa.schema(fields)).close()
    schema = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    return [schema.column(at).path for at in range(len(schema))]
