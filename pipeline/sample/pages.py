"""What the sample's web server does for each address, and the file in which that is kept between building and serving."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

PLAIN = "plain"  # status, headers, body
STALL = "stall"  # the connection is taken, and then nothing
DRIP = "drip"  # the head, then a byte every now and then
ENDLESS = "endless"  # a body without an end
HUGE = "huge"  # a Content-Length of a terabyte
SHORT = "short"  # the connection ends in the middle of the announced body
RESET = "reset"  # the connection ends instead of an answer
BUSY_ONCE = "busy_once"  # 429 with Retry-After: 1 until a second after the first request, then the page
BUSY = "busy"  # 429 with Retry-After: 3600, always
FAILS_ONCE = "fails_once"  # 503 at the first request, then the page

SCHEMA = pa.schema(
    [("address", pa.string()), ("behaviour", pa.string()), ("status", pa.int16()), ("headers", pa.string()), ("body", pa.large_binary())]
)


@dataclass(frozen=True)
class Page:
    """An answer. Content-Length and Connection are the server's to add."""

    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200
    behaviour: str = PLAIN


def address(url: str) -> str:
    """What the server knows a URL by: host in lower case, decoded path, query. Scheme, port and fragment do not count."""
    parts = urlsplit(url)
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.hostname or ''}{unquote(parts.path) or '/'}{query}"


def write(path: Path, pages: Mapping[str, Page]) -> None:
    """One row an address, in the order of the addresses."""
    rows = [(name, page.behaviour, page.status, json.dumps(dict(page.headers)), page.body) for name, page in sorted(pages.items())]
    columns = list(zip(*rows, strict=True))
    table = pa.table([pa.array(column, kind) for column, kind in zip(columns, SCHEMA.types, strict=True)], schema=SCHEMA)
    pq.write_table(table, path, compression="none")


def read(path: Path) -> dict[str, Page]:
    """All pages by address, bodies in memory (the sample's are about 15 MB)."""
    return {
        row["address"]: Page(row["body"], json.loads(row["headers"]), row["status"], row["behaviour"])
        for row in pq.read_table(path, schema=SCHEMA).to_pylist()
    }
