"""Shards as input: img2dataset's and DataComp's (NNNNN.parquet beside NNNNN.tar), and plain webdataset tars.

Of a tar only the headers and the small text members are read: a sample's picture stays where it is, and `stored_at` says where.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa

from pipeline.errors import UserError
from stages.ingest.rebatch import MALFORMED, STORED_AT, array_of

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "avif", "bmp", "tif", "tiff", "jp2", "jxl", "heic")
TEXTS = ("txt", "caption", "cap")
ROWS = 2048  # rows a table
# What tarfile raises for headers that make no sense.
DAMAGED = (tarfile.TarError, ValueError, OverflowError, EOFError)
MAX_TEXT = 1 << 20  # bytes of a text or JSON member that are read


class Member(NamedTuple):
    """A regular file in a tar. The key is the path up to the first dot of its last part, as webdataset has it."""

    key: str
    suffix: str
    offset: int
    length: int


def with_places(table: pa.Table, tar: str, etag: str, options: dict[str, Any]) -> pa.Table:
    """The rows of a shard's Parquet with `stored_at`, null for those whose `key` has no picture in the tar."""
    if "key" not in table.column_names:
        raise UserError(f"{tar}: the Parquet beside it has no column `key`, so its rows have no samples; move the tar elsewhere")
    places = _pictures(tar, etag, json.dumps(options, sort_keys=True))
    at = [places.get(str(key)) for key in table["key"].to_pylist()]
    return table.append_column(STORED_AT, pa.array([None if found is None else _place(tar, *found) for found in at], pa.string()))


def rows(tar: str, options: dict[str, Any]) -> Iterator[pa.Table]:
    """A row for each sample of a tar without Parquet: `key`, `caption` (txt), the fields of its json, `stored_at`.

    A sample without a picture is a row too, without `stored_at`. A tar that ends too early gives one malformed row at its end.
    """
    known: dict[str, None] = dict.fromkeys(["key", "caption", STORED_AT])
    held: list[dict[str, Any]] = []
    for sample in _samples(tar, options):
        held.append(sample)
        known |= dict.fromkeys(sample)
        if len(held) == ROWS:
            yield _table(held, known)
            held = []
    if held:
        yield _table(held, known)


def _table(held: list[dict[str, Any]], known: dict[str, None]) -> pa.Table:
    names = [name for name in known if name != MALFORMED]
    columns = [array_of([row.get(name) for row in held]) for name in names]
    return pa.table([*columns, pa.array([row.get(MALFORMED) for row in held], pa.string())], names=[*names, MALFORMED])


@lru_cache(maxsize=4)
def _pictures(tar: str, _etag: str, options: str) -> dict[str, tuple[int, int]]:
    """Key -> offset and length of its picture. Cached, since a shard may be cut into several parts."""
    found: dict[str, tuple[int, int]] = {}
    with _opened(tar, json.loads(options)) as handle:
        try:
            for member in _members(handle):
                if member.suffix in PICTURES:
                    found.setdefault(member.key.rpartition("/")[2], (member.offset, member.length))
        except DAMAGED:
            pass  # cut off: the rows of the samples that are missing are fetched by their URL
    return found


def _opened(tar: str, options: dict[str, Any]) -> Any:
    fs, path = fsspec.core.url_to_fs(tar, **options)
    return fs.open(path, "rb")


def _place(tar: str, offset: int, length: int) -> str:
    return json.dumps({"path": tar, "offset": offset, "length": length})


def _members(handle: Any) -> Iterator[Member]:
    """The members whose bytes are all there. Raises tarfile.ReadError where the tar is cut off or damaged."""
    size = handle.seek(0, 2)
    handle.seek(0)
    with tarfile.open(fileobj=handle, mode="r:") as archive:
        while info := archive.next():
            archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
            if info.size < 0 or info.offset_data + info.size > size:  # a negative size would send tarfile round in circles
                raise tarfile.ReadError("unexpected end of data")
            folder, slash, base = info.name.rpartition("/")
            stem, dot, suffix = base.partition(".")
            if info.isreg() and dot and not base.startswith((".", "__")):
                yield Member(f"{folder}{slash}{stem}", suffix.lower(), info.offset_data, info.size)


def _samples(tar: str, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Adjacent members of one key are a sample."""
    with _opened(tar, options) as handle, _opened(tar, options) as content:
        key: str | None = None
        sample: dict[str, Any] = {}
        try:
            for member in _members(handle):
                if key is not None and member.key != key:
                    yield sample
                    sample = {}
                key = member.key
                _add(sample, member, tar, content)
        except DAMAGED as err:
            if key is not None:
                yield sample
            yield {MALFORMED: f"the tar ends too early, or is damaged: {err}"}
            return
        if key is not None:
            yield sample


def _add(sample: dict[str, Any], member: Member, tar: str, content: Any) -> None:
    if not sample:
        sample["key"] = member.key
    if member.suffix in PICTURES:
        sample.setdefault(STORED_AT, _place(tar, member.offset, member.length))
    elif member.suffix in (*TEXTS, "json") and member.length <= MAX_TEXT:
        content.seek(member.offset)
        text = content.read(member.length).decode(errors="replace")
        if member.suffix == "json":
            _add_fields(sample, text)
        else:
            sample["caption"] = text


def _add_fields(sample: dict[str, Any], text: str) -> None:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as err:
        sample[MALFORMED] = f"the sample's json is no JSON ({err}): {text[:300]}"
        return
    for name, value in fields.items() if isinstance(fields, dict) else ():
        if name not in ("key", STORED_AT, MALFORMED):
            sample.setdefault(name, value)
