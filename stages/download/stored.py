"""Bytes that lie somewhere already: `stored_at`, as input from img2dataset's folders has it. No HTTP here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import MACHINE_ERRNOS
from stages.download.reasons import FetchError
from stages.download.spool import Sink

BLOCK = 1 << 20
_WEB = ("http", "https", "ftp", "github", "dask", "jupyter")


def read(stored_at: str, max_bytes: int, options: Mapping[str, Any]) -> bytes:
    """The bytes at {"path", "offset", "length"} (offset 0 and the whole file where they are missing). Blocks: call it in a thread.

    Raises FetchError: stored_unreadable (also for an address of the web: those are fetched by `url`, behind the guard), too_large.
    """
    path, offset, length = _place(stored_at)
    if length is not None and length > max_bytes:
        raise FetchError("too_large", f"{length} stored bytes are over max_bytes")
    try:
        system, inner = fsspec.url_to_fs(path, **options)
        body: bytes = system.cat_file(inner, start=offset, end=offset + (max_bytes + 1 if length is None else length))
    except (OSError, ValueError, ImportError, EOFError) as err:
        raise _unreadable(err) from None
    if len(body) > max_bytes:
        raise FetchError("too_large", "the stored bytes go beyond max_bytes")
    if length is not None and len(body) < length:
        raise FetchError("stored_unreadable", f"{len(body)} of {length} bytes: the file is shorter")
    return body


def to_disk(stored_at: str, max_bytes: int, options: Mapping[str, Any], sink: Sink) -> tuple[str, int, str]:
    """Path on this machine, bytes and SHA-256 of what lies at `stored_at`, or at a plain path.

    It is copied to `sink` only where it lies elsewhere or is a part of a file. Blocks; raises FetchError as `read` does.
    """
    path, offset, length = _place(stored_at if stored_at.startswith("{") else json.dumps({"path": stored_at}))
    try:
        system, inner = fsspec.url_to_fs(path, **options)
        whole = offset == 0 and length is None and isinstance(system, LocalFileSystem)
        with system.open(inner, "rb", **({} if whole else {"cache_type": "readahead"})) as file:
            file.seek(offset)
            left = max_bytes + 1 if length is None else length
            while left and (data := file.read(min(left, BLOCK))):
                left -= len(data)
                sink.append(data, keep=not whole)
    except (OSError, ValueError, ImportError, EOFError) as err:
        raise _unreadable(err) from None
    if sink.size > max_bytes:
        raise FetchError("too_large", "the stored bytes go beyond max_bytes")
    if length is not None and left:
        raise FetchError("stored_unreadable", f"{sink.size} of {length} bytes: the file is shorter")
    if whole:
        sink.discard()
        return inner, sink.size, sink.hash.hexdigest()
    sink.finish()
    return str(sink.path), sink.size, sink.hash.hexdigest()


def _unreadable(err: Exception) -> Exception:
    """Why bytes cannot be had. The machine's own faults become no row's reason: they stay what they are."""
    if isinstance(err, OSError) and err.errno in MACHINE_ERRNOS:
        return err
    return FetchError("stored_unreadable", f"{type(err).__name__}: {' '.join(str(err).split())}"[:300])


def _place(stored_at: str) -> tuple[str, int, int | None]:
    try:
        given = json.loads(stored_at)
        path, offset, length = given["path"], given.get("offset") or 0, given.get("length")
    except (ValueError, TypeError, KeyError, AttributeError):
        raise FetchError("stored_unreadable", 'stored_at is not {"path", "offset", "length"}') from None
    numbers = [offset, *([] if length is None else [length])]
    if not isinstance(path, str) or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise FetchError("stored_unreadable", 'stored_at is not {"path", "offset", "length"}')
    if any(part.partition(":")[0].lower() in _WEB for part in path.split("::")):
        raise FetchError("stored_unreadable", "stored_at names an address of the web")
    return path, offset, length
