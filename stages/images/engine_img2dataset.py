"""`engine: img2dataset`: that package's own Resizer (extra [img2dataset]), for the very bytes that it would have stored.

The type by content, the limits before decode and every reason stay ours. What is given up for parity: pictures are not turned by their EXIF
orientation, colour profiles are not converted, and hash and flatness are those of the stored picture.
"""

from __future__ import annotations

import importlib.util
import io
import os
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import UserError
from stages.lib.imageblur import Box
from stages.lib.imagedecode import Refused

# Resizer points the process's stdout and stderr elsewhere while it works, which two threads at once would leave so.
_ONE_AT_A_TIME = threading.Lock()


def require() -> None:
    """Raises UserError where the extra is not installed."""
    if importlib.util.find_spec("img2dataset") is None:
        raise UserError(
            'stages.images.engine: img2dataset is not installed; make setup EXTRAS=img2dataset, or pip install "shardmill[img2dataset]"'
        )


@dataclass(frozen=True)
class Resized:
    """What the Resizer stored, and its sizes in pixels; `pixels` is the stored picture, (height, width, 3) uint8 RGB."""

    image: bytes
    width: int
    height: int
    original_width: int
    original_height: int
    pixels: np.ndarray


class Img2dataset:
    """img2dataset's Resizer with the stage's options, which have its names and meanings."""

    def __init__(self, options: Any) -> None:
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import would ask the network for a newer version
        from img2dataset.blurrer import BoundingBoxBlurrer
        from img2dataset.resizer import Resizer

        self._resize = Resizer(
            options.size,
            options.mode,
            options.only_if_bigger,
            upscale_interpolation=options.upscale,
            downscale_interpolation=options.downscale,
            encode_quality=options.quality,
            encode_format=options.format,
            skip_reencode=options.skip_reencode,
            blurrer=BoundingBoxBlurrer() if options.blur_boxes else None,
        )

    def __call__(self, body: bytes, boxes: list[Box]) -> Resized:
        """Raises Refused with img2dataset's own words."""
        import cv2

        with _ONE_AT_A_TIME:
            image, width, height, original_width, original_height, said = self._resize(
                io.BytesIO(body), [list(box) for box in boxes] or None
            )
        if said is not None:
            raise Refused("undecodable", f"img2dataset: {' '.join(said.split())}"[:200])
        pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
        return Resized(bytes(image), width, height, original_width, original_height, cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
