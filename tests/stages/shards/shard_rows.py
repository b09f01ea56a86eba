"""Rows as the engine hands them to the writer, made for the tests of shards."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline import catalog
from stages import shards

SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("index", pa.int32()),
        ("fate", pa.string()),
        ("detail", pa.string()),
        ("row", pa.int64()),
        ("uid", pa.string()),
        ("url", pa.string()),
        ("source_caption", pa.string()),
        ("carried", pa.string()),
        ("caption", pa.string()),
        ("language", pa.string()),
        ("sha256", pa.string()),
        ("format", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("exif", pa.string()),
        ("flat", pa.bool_()),
        ("similarity", pa.float32()),
        ("fetch_id", pa.string()),
        ("image", pa.large_binary()),
    ]
)


def picture(seed: int, kind: str = "JPEG") -> bytes:
    """A small encoded image, another for each seed."""
    noise = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).resize((32, 24)).save(out, kind)
    return out.getvalue()


def kept(at: int, **more: Any) -> dict[str, Any]:
    body = picture(at)
    return {
        **{"shard": 0, "index": at, "fate": "kept", "row": at * 7, "uid": f"{at:032x}", "url": f"http://example.org/{at}.jpg"},
        **{"source_caption": f"Photo {at}&amp;", "caption": f"photo {at}", "carried": "{}", "language": "en", "format": "jpg"},
        **{"sha256": hashlib.sha256(body).hexdigest(), "width": 32, "height": 24, "original_width": 64, "original_height": 48},
        **{"exif": "{}", "flat": False, "similarity": 0.28, "image": body, **more},
    }


def dropped(at: int, fate: str, detail: str | None = None, **more: Any) -> dict[str, Any]:
    return {"shard": 0, "fate": fate, "detail": detail, "row": at * 7, "uid": f"{at:032x}", "url": f"http://example.org/{at}.jpg", **more}


def table(rows: list[dict[str, Any]], *fields: pa.Field) -> pa.Table:
    return pa.Table.from_pylist(rows, pa.schema([*SCHEMA, *fields]))


def write(folder: Path, rows: pa.Table, shard: int = 0, total: int = 1, **options: Any) -> shards.ShardFacts:
    """Writes one shard as the engine does."""
    folder.mkdir(exist_ok=True)
    return shards.write_shard(folder, shard, rows, catalog.entry("shards", options).stage.config, total)
