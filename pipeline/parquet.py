"""How a run's tables are written as Parquet: pages with checksums, zstd, and media as they are, since they are compressed already."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline.stage import MEDIA


def options(schema: pa.Schema) -> dict[str, Any]:
    """pyarrow's options for writing tables of this schema."""
    media = [leaf for field in schema if field.name in MEDIA for leaf in _leaves(field)]
    if not media:
        return {"compression": "zstd", "write_page_checksum": True}
    others = [leaf for field in schema if field.name not in MEDIA for leaf in _leaves(field)]
    compression = {**dict.fromkeys(others, "ZSTD"), **dict.fromkeys(media, "NONE")}
    # Least and largest picture are of no use, and each page's header would hold both.
    return {"compression": compression, "use_dictionary": others, "write_statistics": others, "write_page_checksum": True}


def _leaves(field: pa.Field) -> Iterator[str]:
    """The names of a column's values in a Parquet file."""
    if pa.types.is_struct(field.type):
        for child in field.type:
            yield from (f"{field.name}.{leaf}" for leaf in _leaves(child))
    elif pa.types.is_list(field.type) or pa.types.is_large_list(field.type) or pa.types.is_fixed_size_list(field.type):
        yield from (f"{field.name}.list.{leaf}" for leaf in _leaves(field.type.value_field.with_name("element")))
    else:
        yield field.name
