"""Keys: what a phase's output depends on, hashed. Two phases with one key hold the same thing, so it is made once."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pipeline.catalog import Entry
from pipeline.stage import keyed_config

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
        }
        for entry in entries
    }
    return {"format": FORMAT, "stages": stages, **more}
