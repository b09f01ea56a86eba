"""`downscale: antialiased` is Pillow's BICUBIC of the whole picture, whatever its kind, sides and orientation, and on every processor."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from pydantic import ValidationError

from pipeline.errors import UserError
from stages.images import Images
from stages.lib import imageresize
from tests.stages.images.pictures import opened, psnr, run_images, saved

resizer = pytest.importorskip("cykooz_resizer", reason="extra resize is not installed")


def by_pillow(image: Image.Image, scaled: tuple[int, int]) -> Image.Image:
    return image.convert("RGB").resize(scaled, Image.Resampling.BICUBIC)


@settings(max_examples=60)
@given(width=st.integers(1, 70), height=st.integers(1, 70), to=st.tuples(st.integers(1, 40), st.integers(1, 40)))
@example(width=1, height=70, to=(1, 1))
def test_pixels_are_pillows(width: int, height: int, to: tuple[int, int]) -> None:
    noise = np.random.default_rng(width * 100 + height).integers(80, 176, (height, width, 3), np.uint8)
    made = imageresize.scale(noise, to, "antialiased")
    wanted = np.asarray(by_pillow(Image.fromarray(noise), to))
    assert made.shape == (to[1], to[0], 3)
    assert np.abs(made.astype(int) - wanted).max() <= 2  # both round twice, in another order


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("by", [2.6, 3.7, 5.3, 9.1, 17.2])
@pytest.mark.parametrize("turn", [1, 2, 3, 6, 8])
def test_a_reduced_picture_is_as_good_as_the_whole(scene: Image.Image, kind: str, by: float, turn: int) -> None:
    """Sides that no factor divides: without regard to what is left over they would be shifted, which costs 2 dB and more."""
    large = scene.resize((round(101 * by), round(75 * by)), Image.Resampling.LANCZOS)
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {"lossless": True} if kind == "WEBP" else {"quality": 97} if kind == "JPEG" else {}
    body = saved(large, kind, exif=exif, **options)
    (row,) = run_images(body, size=60, mode="keep_ratio", format="png", quality=1, downscale="antialiased")
    made = opened(row["image"])
    assert psnr(made, by_pillow(ImageOps.exif_transpose(opened(body)), made.size)) > 40


def test_every_processor_makes_the_same(scene: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for extension in (resizer.CpuExtensions.none, resizer.Resizer().cpu_extensions):
        one = resizer.Resizer()
        one.cpu_extensions = extension
        monkeypatch.setattr(imageresize.RESIZER, "one", one, raising=False)
        made.append(imageresize.scale(np.asarray(scene), (97, 61), "antialiased"))
    assert np.array_equal(*made)


def test_img2dataset_does_not_know_it() -> None:
    with pytest.raises(ValidationError, match="antialiased wants engine shardmill"):
        Images.Config(engine="img2dataset", downscale="antialiased")


def test_without_the_package_a_run_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="make setup EXTRAS=resize"):
        Images(Images.Config(downscale="antialiased")).check_ready()
