"""What tells a shard's content, wherever it lies: whether training goes on with the samples that it began with.

A time of change is no such thing (copying changes it), and size alone is blind to captions that changed places.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import fsspec
import numpy as np

from pipeline.errors import TransientError

HASHES = ("md5Hash", "crc32c", "blob_id", "ETag", "etag")  # what listings of object stores tell that follows from the bytes
PIECES, PIECE_BYTES = 16, 64 << 10  # of a tar: more than a sample each, as a rule


def told(info: Mapping[str, Any]) -> str:
    """What the storage's listing says of a file's content; "" where that is nothing."""
    return next((f"{name} {info[name]}" for name in HASHES if info.get(name)), "")


def of_manifest(manifest: Any, folder: str) -> dict[tuple[str, int], str]:
    """Name and bytes -> content of the shards in `folder` (a name), by the manifest of a run that keeps them there; {} if it does not."""
    if not isinstance(manifest, dict) or manifest.get("key") != folder:
        return {}
    return {(shard["name"], shard["bytes"]): by_sha256(shard["sha256"]) for shard in manifest.get("shards", [])}


def by_sha256(digest: str) -> str:
    return f"sha256 {digest}"


def read(url: str, size: int, options: Mapping[str, Any]) -> str:
    """The content by PIECES of a file of `size` bytes, spread evenly from its first byte to its last; a small file is read whole.

    Raises TransientError where it cannot be read.
    """
    starts = [0]
    if size > PIECES * PIECE_BYTES:
        starts = np.linspace(0, size - PIECE_BYTES, PIECES).astype(int).tolist()
    ends = [min(start + PIECE_BYTES, size) for start in starts] if len(starts) > 1 else [size]
    fs, path = fsspec.core.url_to_fs(url, **options)
    try:
        pieces = fs.cat_ranges([path] * len(starts), starts, ends, on_error="raise") if size else []
    except Exception as err:  # each client library has its own
        raise TransientError(f"train.data: {url}: cannot be read: {type(err).__name__}: {' '.join(str(err).split())[:200]}") from err
    return f"pieces {hashlib.sha256(b''.join(map(bytes, pieces))).hexdigest()}"
