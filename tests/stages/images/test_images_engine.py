"""`engine: img2dataset`: the bytes are its Resizer's own; limits, types and reasons stay ours."""

from __future__ import annotations

import importlib.util
import io
from typing import Any

import pytest
from PIL import Image

from tests.stages.images.pictures import Run, saved

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("img2dataset"), reason="needs the extra img2dataset: make test-all")


def resizer(**options: Any) -> Any:
    from img2dataset.resizer import Resizer

    return Resizer(options["size"], options["mode"], options.get("only_if_bigger", False), encode_format=options.get("format", "jpg"),
                   encode_quality=options.get("quality", 95))  # fmt: skip


@pytest.mark.parametrize("mode", ["center_crop", "border", "keep_ratio", "keep_ratio_largest", "no"])
@pytest.mark.parametrize("more", [{}, {"only_if_bigger": True}, {"format": "png", "quality": 6}, {"format": "webp", "quality": 80}])
def test_what_is_stored_is_what_img2dataset_stores(images: Run, scene: Image.Image, mode: str, more: dict[str, Any]) -> None:
    options = {"size": 96, "mode": mode, **more}
    bodies = [
        saved(scene, "JPEG"),
        saved(scene.resize((60, 40)), "PNG"),
        saved(scene.convert("L"), "WEBP"),
        saved(scene.convert("CMYK"), "JPEG"),
    ]
    rows = images(*bodies, engine="img2dataset", **options)
    for body, row in zip(bodies, rows, strict=True):
        image, width, height, *original, said = resizer(**options)(io.BytesIO(body))
        assert said is None
        assert row["image"] == image
        assert [row[name] for name in ("width", "height", "original_width", "original_height")] == [width, height, *original]
        assert row["phash"]


def test_real_photographs_too(images: Run, photographs: list[bytes]) -> None:
    rows = images(*photographs, engine="img2dataset", size=224)
    theirs = [resizer(size=224, mode="center_crop")(io.BytesIO(body))[0] for body in photographs]
    assert [row["image"] for row in rows] == theirs


def test_our_limits_and_reasons_hold(images: Run, scene: Image.Image) -> None:
    turned = saved(scene, "JPEG", exif=Image.Exif())
    rows = images(b"<html>", saved(scene.resize((400, 40)), "PNG"), turned[: len(turned) // 2], turned, engine="img2dataset", max_aspect=3)
    assert [row["fate"] for row in rows[:2]] == ["images:not_an_image", "images:aspect"]
    assert rows[3]["fate"] == "kept"


def test_boxes_are_blurred_by_it(images: Run, scene: Image.Image) -> None:
    body = saved(scene, "PNG")
    sharp, blurred = (
        images(body, boxes=[boxes], engine="img2dataset", blur_boxes=True, size=96, format="png", quality=6)[0]
        for boxes in ("[]", "[[0.1, 0.1, 0.5, 0.5]]")
    )
    assert sharp["fate"] == blurred["fate"] == "kept"
    assert sharp["image"] != blurred["image"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "TIFF"])
def test_half_a_picture_is_none(images: Run, scene: Image.Image, kind: str) -> None:
    body = saved(scene, kind)
    rows = images(*(body[: int(len(body) * share)] for share in (0.5, 0.75, 0.95)), engine="img2dataset", size=96)
    assert {row["fate"] for row in rows} <= {"images:undecodable", "images:truncated"}
