"""EXIF as plain JSON: names and values of the tags that say how a picture was taken, nothing binary, no place, no thumbnail."""

from __future__ import annotations

import json
import math
from typing import Any

from PIL import ExifTags, Image

ORIENTATION, EXIF_IFD = 0x0112, 0x8769
LEFT_OUT = {EXIF_IFD, 0x8825, 0xA005, 0x927C, 0x0201, 0x0202, 0x02BC, 0x8773, 0xA430, 0xA431, 0xA435, 0xC62F}
"""Offsets of other directories, GPS, maker note, thumbnail, XMP and ICC blocks, the camera's owner and serial numbers."""
MAX_CHARS, MAX_VALUES, MAX_TAGS = 200, 16, 100


def orientation(exif: Image.Exif) -> int:
    """1 to 8; 1 where the tag is missing or no such number."""
    value = exif.get(ORIENTATION)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def tags(exif: Image.Exif) -> str:
    """A JSON object of tag name to value, names sorted; `{}` without EXIF.

    Texts are cut to 200 characters, lists to 16 values, tags to 100. Raises whatever Pillow raises of damaged EXIF.
    """
    found = {**dict(exif), **exif.get_ifd(EXIF_IFD)}
    named = {ExifTags.TAGS[tag]: _plain(value) for tag, value in found.items() if tag in ExifTags.TAGS and tag not in LEFT_OUT}
    kept = sorted((name, value) for name, value in named.items() if value is not None)[:MAX_TAGS]
    return json.dumps(dict(kept), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        text = value.split("\0")[0].strip().encode("utf-8", "ignore").decode()[:MAX_CHARS]
        return text or None
    if isinstance(value, bool | int):
        return value if abs(value) < 1 << 53 else None
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value[:MAX_VALUES]]
    if isinstance(value, bytes):
        return None
    try:
        number = float(value)  # Pillow's fractions
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return round(number, 6) if math.isfinite(number) else None
