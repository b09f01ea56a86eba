"""Bodies in, rows out; pictures to bytes and back."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.frame import apply, framed
from stages.images import Images

Run = Callable[..., list[dict[str, Any]]]


def run_images(*bodies: bytes | None, boxes: list[str | None] | None = None, **options: Any) -> list[dict[str, Any]]:
    stage = Images(Images.Config(**options))
    stage.open()
    columns = {"body": pa.array(bodies, pa.large_binary())} | ({"face_boxes": pa.array(boxes, pa.string())} if boxes else {})
    return apply(stage, framed(pa.table(columns))).drop(["body"]).to_pylist()


def opened(body: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(body))
    image.load()
    return image


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def psnr(a: Any, b: Any) -> float:
    return float(10 * np.log10(255**2 / max(0.01, np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2))))
