"""Keys: what a phase's output depends on, hashed. Two phases with one key hold the same thing, so it is made once."""

from __future__ import annotations

import hashlib
import json
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.catalog import Entry
from pipeline.stage import keyed_config

SETTLED_NS = 2_000_000_000
FORMAT = 1  # raised when the engine itself changes what it writes for the same stages


def digest(made_of: Any) -> str:
    """16 hex digits of SHA-256 over canonical JSON."""
    text = json.dumps(made_of, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def ingredients(entries: list[Entry], **more: Any) -> dict[str, Any]:
    """What a phase's key is made of: its stages' versions, keyed options and (for a user's own) source, and `more`."""
    stages = {
        entry.name: {
            "version": entry.stage.version,
            "config": keyed_config(entry.stage.config),
            **({"source": entry.source} if entry.source else {}),
            **({"files": [content(path) for path in entry.stage.files]} if entry.stage.files else {}),
        }
        for entry in entries
    }
    return {"format": FORMAT, "stages": stages, **more}


def content(path: str) -> str:
    """xxh3_128 of a local file's bytes (cheap: weights of 1 GB take a fraction of a second), read once a state of the file.

    One that was written a moment ago may be written again within a tick of the clock that stamps files: it is read in any case.
    """
    stat = Path(path).stat()
    read = _content.__wrapped__ if time.time_ns() - stat.st_mtime_ns < SETTLED_NS else _content
    return read(path, stat.st_size, stat.st_mtime_ns)


@lru_cache
def _content(path: str, _size: int, _mtime: int) -> str:
    import xxhash

    found = xxhash.xxh3_128()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 24):
            found.update(block)
    return found.hexdigest()
