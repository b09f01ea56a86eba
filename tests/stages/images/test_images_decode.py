"""Every type and colour mode becomes the same upright RGB picture."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from pipeline.sample import encode
from tests.stages.images.pictures import Run, opened, psnr, saved

AS_IS = {"mode": "no", "format": "png", "quality": 1}


def sixteen_bit(image: Image.Image) -> bytes:
    return cv2.imencode(".png", np.asarray(image)[..., ::-1].astype(np.uint16) * 257)[1].tobytes()


def transparent_palette(image: Image.Image) -> bytes:
    """The scene's left half; the right one is of a transparent colour."""
    palette = image.quantize(64)
    palette.paste(63, (160, 0, 320, 200))
    return saved(palette, "GIF", transparency=63)


COLOURED: dict[str, Callable[[Image.Image], bytes]] = {
    "jpeg": lambda image: encode.jpeg(image, 95),
    "progressive jpeg": lambda image: encode.jpeg(image, 95, progressive=True),
    "4:1:1 jpeg": lambda image: encode.jpeg(image, 95, subsampling="4:1:1"),
    "cmyk jpeg": encode.cmyk,
    "png": encode.png,
    "palette png": encode.palette,
    "16 bit png": sixteen_bit,
    "webp": lambda image: encode.webp(image, 95),
    "lossless webp": lambda image: saved(image, "WEBP", lossless=True),
    "animated webp": lambda image: saved(image, "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGB", image.size)]),
    "avif": lambda image: encode.avif(image, 95),
    "bmp": lambda image: saved(image, "BMP"),
    "tiff": lambda image: saved(image, "TIFF"),
    "cmyk tiff": lambda image: saved(image.convert("CMYK"), "TIFF"),
    "compressed tiff": lambda image: saved(image, "TIFF", compression="tiff_lzw"),
    "animated gif": encode.animated,
}


@pytest.mark.parametrize("name", COLOURED)
def test_colour(name: str, scene: Image.Image, images: Run) -> None:
    (row,) = images(COLOURED[name](scene), **AS_IS)
    assert row["fate"] == "kept", row["detail"]
    assert (row["width"], row["height"], row["original_width"], row["original_height"]) == (320, 200, 320, 200)
    assert row["original_format"] == name.rsplit(maxsplit=1)[-1]
    got = opened(row["image"])
    assert got.mode == "RGB"
    assert psnr(got, scene) > (24 if name in ("palette png", "animated gif") else 29)


GREY: dict[str, Callable[[Image.Image], bytes]] = {
    "jpeg": encode.grey,
    "png": lambda image: encode.png(image.convert("L")),
    "16 bit png": lambda image: encode.png(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)),
    "png with alpha": lambda image: encode.png(image.convert("LA")),
    "16 bit tiff": lambda image: saved(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), "TIFF"),
}


@pytest.mark.parametrize("name", GREY)
def test_grey_becomes_rgb(name: str, scene: Image.Image, images: Run) -> None:
    (row,) = images(GREY[name](scene), **AS_IS)
    got = opened(row["image"])
    assert got.mode == "RGB"
    assert psnr(got, scene.convert("L").convert("RGB")) > 40


def test_one_bit(images: Run) -> None:
    (row,) = images(encode.png(Image.new("1", (40, 30), 1)), **AS_IS)
    assert opened(row["image"]).getpixel((0, 0)) == (255, 255, 255)


def test_transparency_lies_on_white(scene: Image.Image, images: Run) -> None:
    half = scene.copy()
    half.putalpha(128)
    corners, palette, mixed = images(encode.alpha(scene), transparent_palette(scene), encode.png(half), **AS_IS)
    assert opened(corners["image"]).getpixel((0, 0)) == (255, 255, 255)
    assert opened(corners["image"]).getpixel((160, 100)) == scene.getpixel((160, 100))
    assert opened(palette["image"]).getpixel((300, 100)) == (255, 255, 255)
    white = Image.blend(Image.new("RGB", scene.size, "white"), scene, 128 / 255)
    assert psnr(opened(mixed["image"]), white) > 48


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int, scene: Image.Image, images: Run) -> None:
    jpeg = encode.rotated(scene, orientation) if orientation > 1 else encode.jpeg(scene, 95)
    stored, exif = opened(jpeg).copy(), Image.Exif()
    exif[0x0112] = orientation
    others = [saved(stored, kind, exif=exif, quality=95) for kind in ("PNG", "WEBP", "TIFF", "AVIF")]
    for row in images(jpeg, *others, **AS_IS):
        assert (row["fate"], row["exif_orientation"], row["width"], row["height"]) == ("kept", orientation, 320, 200), row[
            "original_format"
        ]
        assert (row["original_width"], row["original_height"]) == (320, 200)
        got = opened(row["image"])
        assert psnr(got, scene) > 28
        assert not got.getexif()


def test_senseless_orientations_count_as_1(scene: Image.Image, images: Run) -> None:
    for value in (0, 9, 4711):
        exif = Image.Exif()
        exif[0x0112] = value
        (row,) = images(encode.jpeg(scene, exif=exif))
        assert (row["fate"], row["exif_orientation"]) == ("kept", 1)


def test_float_samples_have_no_range(images: Run) -> None:
    deep = Image.fromarray(np.linspace(0, 1e6, 400, dtype=np.float32).reshape(20, 20))
    (row,) = images(saved(deep, "TIFF"))
    assert (row["fate"], row["detail"]) == ("images:unsupported_format", "pixels of mode F")


def profile(red: tuple[float, ...], green: tuple[float, ...], blue: tuple[float, ...], gamma: float) -> bytes:
    """A version 2 ICC display profile of three primaries (XYZ, D50) and one gamma (ICC.1:2001-04, 6.3.1.2)."""

    def xyz(values: tuple[float, ...]) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))

    name = b"a test's own\0"
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    described = b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(79)
    tags = {b"desc": described, b"wtpt": xyz((0.9642, 1, 0.8249)), b"rXYZ": xyz(red), b"gXYZ": xyz(green), b"bXYZ": xyz(blue)}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, data, at = b"", b"", 128 + 4 + 12 * len(tags)
    for tag, value in tags.items():
        table += tag + struct.pack(">II", at + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    body = struct.pack(">I", len(tags)) + table + data
    head = struct.pack(">I4sI4s4s4s12s4s", 128 + len(body), b"", 0x02100000, b"mntr", b"RGB ", b"XYZ ", bytes(12), b"acsp")
    return head.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061) + bytes(48) + body


RED, GREEN, BLUE = (0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7142)  # sRGB's, adapted to D50


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_profile_is_obeyed(kind: str, scene: Image.Image, images: Run) -> None:
    """A profile that calls red blue and blue red: who obeys it sees the channels swapped."""
    swapped = profile(BLUE, GREEN, RED, 2.2)
    (row,) = images(saved(scene, kind, icc_profile=swapped, quality=95), **AS_IS)
    red, green, blue = scene.split()
    assert psnr(opened(row["image"]), Image.merge("RGB", (blue, green, red))) > 25
    assert psnr(opened(row["image"]), scene) < 15


def test_profiles_that_say_nothing(scene: Image.Image, images: Run) -> None:
    """sRGB's own, one of another colour space, and one that cannot be read: the pixels stay as they are."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for row in images(*(saved(scene, "PNG", icc_profile=icc) for icc in (srgb, lab, b"no profile at all" * 20)), **AS_IS):
        assert np.array_equal(opened(row["image"]), scene)


def test_display_p3_photograph(data_dir: Any, images: Run) -> None:
    body = (data_dir / "web_photos" / "images" / "remysharp-com_049.jpg").read_bytes()
    image = opened(body)
    wanted = ImageCms.profileToProfile(image, io.BytesIO(image.info["icc_profile"]), ImageCms.createProfile("sRGB"), outputMode="RGB")
    (row,) = images(body, **AS_IS)
    assert psnr(opened(row["image"]), wanted) > 55 > psnr(image, wanted)


def test_real_photographs(photographs: list[bytes], images: Run) -> None:
    for body, row in zip(photographs, images(*photographs), strict=True):
        assert (row["fate"], row["detail"], row["width"], row["height"], row["format"]) == ("kept", None, 224, 224, "jpg")
        assert opened(row["image"]).size == (224, 224)
        assert (row["original_width"], row["original_height"]) == opened(body).size  # none of these is turned
