"""Recognised speech as a subtitle file, so that it goes the way of all others: JSON of our own form, with the times of the words."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from stages.lib.subtitles import embedded
from stages.lib.subtitles.model import Found


def as_file(found: Found) -> bytes:
    cues = [[raw.start, raw.end, raw.pieces] for raw in found.raws]
    return json.dumps({"recognised": True, "language": found.language, "cues": cues}, ensure_ascii=False).encode()


def is_file(data: Any) -> bool:
    return isinstance(data, dict) and data.get("recognised") is True and isinstance(data.get("cues"), list)


def read_file(data: Any) -> Found:
    """What `as_file` wrote; raises SubtitleError("malformed") for what it cannot have written."""
    return replace(embedded.read_file(data), automatic=True)
