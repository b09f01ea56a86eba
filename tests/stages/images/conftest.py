"""Photographs to work on, and the stage as a function of bodies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.stages.images.pictures import Run, run_images


@pytest.fixture(scope="session")
def images() -> Run:
    return run_images


@pytest.fixture(scope="session")
def scene() -> Image.Image:
    """320 x 200 pixels that look different from every side, smooth enough for JPEG."""
    y, x = np.mgrid[0:200, 0:320]
    image = Image.fromarray(
        np.stack([x * 255 // 320, y * 255 // 200, 128 + 100 * np.sin(x / 30) * np.cos(y / 20)], axis=2).astype(np.uint8)
    )
    draw = ImageDraw.Draw(image)
    draw.ellipse((20, 20, 90, 90), fill=(250, 240, 20))
    draw.rectangle((200, 120, 300, 180), fill=(20, 40, 200))
    return image


@pytest.fixture(scope="session")
def photographs(data_dir: Path) -> list[bytes]:
    """Real ones: some of each type of the web's, and of Flickr8k's."""
    web = sorted((data_dir / "web_photos" / "images").iterdir())
    kinds = [[path for path in web if path.suffix == suffix] for suffix in (".jpg", ".webp", ".png", ".avif")]
    picked = [path for paths in kinds for path in paths[:: max(1, len(paths) // 5)][:5]]
    return [path.read_bytes() for path in [*picked, *sorted((data_dir / "flickr8k" / "val").glob("*.jpg"))[:6]]]
