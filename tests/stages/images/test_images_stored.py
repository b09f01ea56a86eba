"""What is stored of a picture: one encoding, its own bytes where asked, no visible faces; and its facts: EXIF, hash, flatness."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor

import imagehash
import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from pydantic import ValidationError

from pipeline.catalog import entry
from pipeline.errors import UserError
from pipeline.sample import encode
from stages.images import Images
from tests.stages.images.pictures import Run, opened, psnr, run_images, saved


@pytest.mark.parametrize(("form", "kind", "quality"), [("jpg", "JPEG", 95), ("webp", "WEBP", 95), ("png", "PNG", 6)])
def test_formats(form: str, kind: str, quality: int, scene: Image.Image, images: Run) -> None:
    (row,) = images(encode.png(scene), mode="no", format=form, quality=quality)
    got = Image.open(io.BytesIO(row["image"]))
    assert (got.format, got.mode, row["format"]) == (kind, "RGB", form)
    assert psnr(got, scene) > 30


def test_quality_of_png_is_compression(scene: Image.Image, images: Run) -> None:
    with pytest.raises(UserError, match="quality 95 with format png, where it is the compression, 0 to 9; set quality: 6"):
        entry("images", {"format": "png"})
    with pytest.raises(ValidationError, match="quality 0 with format jpg"):
        Images.Config(quality=0)
    sizes = [len(images(encode.png(scene), format="png", quality=quality)[0]["image"]) for quality in (0, 1, 9)]
    assert sizes[0] > sizes[1] > sizes[2]


def test_skip_reencode_keeps_bytes_of_what_was_not_touched(scene: Image.Image, images: Run) -> None:
    jpeg, webp, png = encode.jpeg(scene), encode.webp(scene), encode.png(scene)
    for body, form, quality in ((jpeg, "jpg", 95), (webp, "webp", 95), (png, "png", 6)):
        for options in ({"mode": "no"}, {"mode": "center_crop", "size": 500, "only_if_bigger": True}):
            (row,) = images(body, skip_reencode=True, format=form, quality=quality, **options)
            assert row["image"] == body
            assert images(body, format=form, quality=quality, **options)[0]["image"] != body
    touched = [encode.rotated(scene, 3), encode.grey(scene), encode.cmyk(scene), webp, encode.cut(jpeg, 0.9)]
    for body, row in zip(touched, images(*touched, mode="no", skip_reencode=True), strict=True):
        assert row["image"] != body
    assert images(jpeg, size=100, skip_reencode=True)[0]["image"] != jpeg
    moving = saved(scene, "WEBP", save_all=True, append_images=[Image.new("RGB", scene.size)])
    (row,) = images(moving, mode="no", format="webp", skip_reencode=True)
    assert getattr(opened(row["image"]), "n_frames", 1) == 1


@pytest.fixture(scope="module")
def face(scene: Image.Image) -> Image.Image:
    """The scene with a chequered square of yellow and black on it."""
    image = scene.copy()
    for left in range(30, 90, 10):
        for top in range(20, 80, 10):
            image.paste((250, 240, 20) if (left + top) % 20 else (0, 0, 0), (left, top, left + 10, top + 10))
    return image


BOX = json.dumps([[0.08, 0.08, 0.3, 0.42]])  # around the square


def test_blur_forces_reencoding(face: Image.Image, images: Run) -> None:
    """img2dataset stores the picture unblurred here."""
    body = encode.jpeg(face)
    options = {"mode": "no", "skip_reencode": True, "blur_boxes": True}
    blurred, empty, none = images(body, body, body, boxes=[BOX, "[]", None], **options)
    assert empty["image"] == none["image"] == body
    assert blurred["image"] != body
    assert not yellow(opened(blurred["image"])).any()
    assert yellow(face).any()
    assert psnr(opened(blurred["image"]).crop((200, 0, 320, 200)), opened(body).crop((200, 0, 320, 200))) > 35


@pytest.mark.parametrize("orientation", range(2, 9))
def test_boxes_are_of_the_picture_as_stored(orientation: int, face: Image.Image, images: Run) -> None:
    """The square's place in the turned file, found by its colour, as a detector would that ignores EXIF."""
    body = encode.rotated(face, orientation)
    stored = opened(body)
    rows, columns = np.nonzero(yellow(stored))
    width, height = stored.size
    box = [columns.min() / width, rows.min() / height, columns.max() / width, rows.max() / height]
    for mode in ("no", "center_crop", "border"):
        (row,) = images(body, boxes=[json.dumps([box])], blur_boxes=True, mode=mode, size=180)
        assert not yellow(opened(row["image"])).any()
        assert yellow(opened(images(body, mode=mode, size=180)[0]["image"])).any() or mode == "center_crop"  # which may cut it off


def yellow(image: Image.Image) -> np.ndarray:
    """Where the square's pure yellow is."""
    red, green, blue = np.moveaxis(np.asarray(image).astype(int), 2, 0)
    return (red > 235) & (green > 225) & (blue < 45)


@pytest.mark.parametrize(
    "text", ["", "x", "{}", "[1]", "[[0,0,1]]", "[[0,0,1,NaN]]", "[[10,20,50,60]]", "[[0.5,0,0.1,1]]", '[["0",0,1,1]]', "[" * 9999]
)
def test_boxes_that_cannot_be_read_drop_the_row(text: str, scene: Image.Image, images: Run) -> None:
    (row,) = images(encode.jpeg(scene), boxes=[text], blur_boxes=True)
    assert (row["fate"], row["image"]) == ("images:bad_boxes", None)


def test_boxes_are_read_only_if_asked(scene: Image.Image) -> None:
    assert "face_boxes" not in Images().reads
    assert "face_boxes" in Images(Images.Config(blur_boxes=True)).reads
    assert "face_boxes" not in Images.reads


def test_exif(scene: Image.Image, images: Run) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0112] = "Camera\0Works", "m" * 900, 1
    exif[0x8769] = {0x829A: TiffImagePlugin.IFDRational(1, 50), 0x9286: b"ASCII\0\0\0binary", 0x927C: b"maker", 0xA431: "serial 1"}
    exif[0x8825] = {1: "N", 2: (52.0, 31.0, 12.0)}
    (row,) = images(encode.jpeg(scene, exif=exif))
    assert json.loads(row["exif"]) == {"ExposureTime": 0.02, "Make": "Camera", "Model": "m" * 200, "Orientation": 1}
    assert images(encode.jpeg(scene))[0]["exif"] == "{}"
    assert images(encode.jpeg(scene, exif=exif), exif=False)[0]["exif"] is None


def test_damaged_exif_costs_no_picture(scene: Image.Image, images: Run) -> None:
    for seed in range(20):
        noise = np.random.default_rng(seed).bytes(200)
        (row,) = images(encode.jpeg(scene, exif=b"Exif\0\0II*\0\x08\0\0\0" + noise))
        assert row["fate"] == "kept"
        json.loads(row["exif"])


def test_hash_is_imagehashs(photographs: list[bytes], images: Run) -> None:
    """Within 2 bits where all pixels were decoded, within 4 where the picture was reduced first."""
    for body, full, reduced in zip(photographs, images(*photographs, mode="no"), images(*photographs), strict=True):
        wanted = imagehash.phash(_on_white(opened(body)))
        assert imagehash.hex_to_hash(full["phash"]) - wanted <= 2
        assert imagehash.hex_to_hash(reduced["phash"]) - wanted <= 4


def _on_white(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image) if image.mode == "RGBA" else image.convert("RGB")


def test_hash_is_of_the_upright_picture(scene: Image.Image, images: Run) -> None:
    upright, *turned = images(encode.jpeg(scene, 95), *(encode.rotated(scene, n) for n in range(2, 9)), mode="border")
    for row in turned:
        assert imagehash.hex_to_hash(row["phash"]) - imagehash.hex_to_hash(upright["phash"]) <= 2


def test_flat_pictures_have_no_hash(images: Run) -> None:
    rng = np.random.default_rng(0)
    noisy = Image.fromarray(np.clip(128 + rng.normal(0, 8, (300, 300, 3)), 0, 255).astype(np.uint8))
    flat = [Image.new("RGB", (200, 100), colour) for colour in ("white", "black", "red")]
    for row in images(*map(encode.jpeg, [*flat, noisy])):
        assert (row["fate"], row["flat"], row["phash"]) == ("kept", True, None)
    (row,) = images(encode.jpeg(encode.placeholder()))
    assert (row["flat"], len(row["phash"])) == (False, 16)


def test_threads_share_nothing(scene: Image.Image) -> None:
    bodies = [encode.jpeg(scene, quality) for quality in range(40, 60)] + [encode.webp(scene), encode.alpha(scene), b"x"]
    once = run_images(*bodies, size=64)
    with ThreadPoolExecutor(4) as pool:
        for rows in pool.map(lambda _: run_images(*bodies, size=64), range(8)):
            assert rows == once
