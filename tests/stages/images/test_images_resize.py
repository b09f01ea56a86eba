"""Sizes, crops and borders are img2dataset's, pixel for pixel: its own Resizer says what is right."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pipeline.sample import encode
from stages.lib.imageresize import plan
from tests.stages.images.pictures import Run, opened, psnr, run_images

resizer = pytest.importorskip("img2dataset.resizer")
pytestmark = pytest.mark.filterwarnings("ignore:value is deprecated:DeprecationWarning")  # albumentations, as img2dataset calls it
MODES = ("center_crop", "border", "keep_ratio", "keep_ratio_largest", "no")


def by_img2dataset(body: bytes, size: int, mode: str, only_if_bigger: bool, **options: Any) -> tuple[Any, ...]:
    out: tuple[Any, ...] = resizer.Resizer(size, mode, only_if_bigger, **options)(io.BytesIO(body))
    return out


def compare(body: bytes, size: int, mode: str, only: bool, down: str = "area", up: str = "lanczos") -> None:
    (row,) = run_images(body, size=size, mode=mode, only_if_bigger=only, format="png", quality=1, downscale=down, upscale=up)
    filters = {"downscale_interpolation": down, "upscale_interpolation": up}
    image, *sizes, error = by_img2dataset(body, size, mode, only, encode_format="png", encode_quality=1, **filters)
    assert error is None
    assert [row[name] for name in ("width", "height", "original_width", "original_height")] == sizes
    assert np.array_equal(opened(row["image"]), opened(image))


def noise(width: int, height: int) -> bytes:
    return encode.png(Image.fromarray(np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8)))


@settings(max_examples=80)
@given(width=st.integers(1, 70), height=st.integers(1, 70), size=st.integers(1, 60), mode=st.sampled_from(MODES), only=st.booleans())
@example(width=33, height=50, size=22, mode="center_crop", only=False)
@example(width=50, height=33, size=33, mode="center_crop", only=True)
@example(width=61, height=30, size=55, mode="border", only=False)
def test_sizes_crops_and_borders(width: int, height: int, size: int, mode: str, only: bool) -> None:
    """`linear`, since with `area` very large pictures are reduced in two steps; that one is judged by its quality."""
    compare(noise(width, height), size, mode, only, down="linear")


@pytest.mark.parametrize("name", ["nearest", "linear", "bilinear", "cubic", "bicubic", "area", "lanczos", "lanczos4"])
def test_filters_have_the_same_names(name: str, scene: Image.Image) -> None:
    compare(encode.png(scene), 100, "center_crop", False, down=name)
    compare(encode.png(scene), 250, "border", False, up=name)


@settings(max_examples=300)
@given(width=st.integers(1, 70_000), height=st.integers(1, 70_000), size=st.integers(1, 4096))
def test_what_is_scaled_fits(width: int, height: int, size: int) -> None:
    """The crop lies inside the picture and the border around it, whatever the rounding does."""
    for mode, side in (("center_crop", min), ("border", max)):
        made = plan(width, height, size, mode, False)  # type: ignore[arg-type]
        assert side(made.scaled) == size
        assert made.stored == (size, size)


@pytest.mark.parametrize(("width", "height", "side"), [(333, 500, (256, 384)), (257, 300, (256, 299)), (256, 300, (256, 300))])
def test_published_sizes(width: int, height: int, side: tuple[int, int]) -> None:
    assert plan(width, height, 256, "keep_ratio", False).stored == side


def test_odd_border_pixel_goes_to_the_bottom(images: Run) -> None:
    (row,) = images(encode.png(Image.new("RGB", (100, 85), "black")), size=100, mode="border", format="png", quality=1)
    column = np.asarray(opened(row["image"]))[:, 50, 0]
    assert (column == 255).tolist() == [True] * 7 + [False] * 85 + [True] * 8


def test_only_if_bigger_leaves_small_pictures_alone(images: Run) -> None:
    for mode in MODES:
        (row,) = images(noise(100, 50), size=200, mode=mode, only_if_bigger=True)
        assert (row["width"], row["height"]) == (100, 50)


@pytest.mark.parametrize("size", [(800, 500), (801, 500), (803, 501), (806, 507), (799, 515)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_reduced_pictures_are_as_good(kind: str, size: tuple[int, int], scene: Image.Image, images: Run) -> None:
    """Nearly half a million pixels to 40: reduced first, by the decoder or after it; compared with Pillow's exact filter. Sides that the
    reduction does not divide shift nothing."""
    large = scene.resize(size, Image.Resampling.LANCZOS)
    wide = round(size[0] * 40 / size[1])
    left = (wide - 40) // 2
    wanted = large.resize((wide, 40), Image.Resampling.BOX).crop((left, 0, left + 40, 40))
    body = encode.jpeg(large, 95) if kind == "JPEG" else encode.png(large)
    (row,) = images(body, size=40, format="png", quality=1)
    other = by_img2dataset(body, 40, "center_crop", False, encode_format="png", encode_quality=1)[0]
    assert psnr(opened(row["image"]), wanted) > min(45, psnr(opened(other), wanted) - 0.5)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_reduced_pictures_are_as_good_however_they_are_turned(kind: str, orientation: int, scene: Image.Image, images: Run) -> None:
    large = scene.resize((803, 505), Image.Resampling.LANCZOS)
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    large.save(out, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    whole = ImageOps.exif_transpose(Image.open(io.BytesIO(out.getvalue()))).convert("RGB")
    scaled = plan(*whole.size, 40, "keep_ratio", False).scaled
    (row,) = images(out.getvalue(), size=40, mode="keep_ratio", format="png", quality=1)
    assert psnr(opened(row["image"]), whole.resize(scaled, Image.Resampling.BOX)) > 44


def test_real_photographs_have_img2datasets_sizes(photographs: list[bytes], images: Run) -> None:
    for mode in MODES:
        for only in (False, True):
            rows = images(*photographs[::3], size=300, mode=mode, only_if_bigger=only)
            for body, row in zip(photographs[::3], rows, strict=True):
                sizes = by_img2dataset(body, 300, mode, only)[1:5]
                assert tuple(row[name] for name in ("width", "height", "original_width", "original_height")) == sizes
