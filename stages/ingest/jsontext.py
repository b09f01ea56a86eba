"""Values as JSON to the letter."""

from __future__ import annotations

import json
import math
from typing import Any


def json_text(value: Any) -> str:
    """NaN and infinity are null, bytes are decoded as UTF-8, others are told as text; what nests too deeply is null."""
    try:
        try:
            return json.dumps(value, ensure_ascii=False, default=_told, allow_nan=False)
        except ValueError:
            return json.dumps(_finite(value), ensure_ascii=False, default=_told)
    except RecursionError:
        return "null"


def _told(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value
