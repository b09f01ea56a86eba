"""A stage of one's own: how bright the stored image is, and a limit for pictures that are all but black.

In a config, with this file in the current folder (or on PYTHONPATH):

    stages:
      …
      images: {size: 224}
      brightness:Brightness: {min_brightness: 10}
"""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from pipeline.stage import Column, Stage, Strict, drop


class Brightness(Stage):
    """Measures the mean luma of the stored image and drops what is darker than a limit."""

    name = "brightness"
    version = 1
    reads = {"image": Column(pa.large_binary(), "the stored, encoded image")}
    adds = {"brightness": Column(pa.float32(), "mean luma (ITU-R BT.601), 0 black to 255 white")}
    reasons = {"dark": "the mean luma is under min_brightness"}

    class Config(Strict):
        min_brightness: float = 0.0
        """Mean luma, 0 to 255; 0 keeps everything."""

    def __call__(self, table: pa.Table) -> pa.Table:
        values = [np.asarray(Image.open(io.BytesIO(image)).convert("L")).mean() for image in table["image"].to_pylist()]
        brightness = pa.array(values, pa.float32())
        table = table.append_column("brightness", brightness)
        return drop(table, pc.less(brightness, self.config.min_brightness), "brightness:dark")
