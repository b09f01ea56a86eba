"""What is no picture, or none to use: one reason each, no exception, never a half picture."""

from __future__ import annotations

import resource
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.sample import encode
from stages.images import Images
from tests.stages.images.pictures import Run, opened, run_images, saved

SOUND = {"jpeg": encode.jpeg, "png": encode.png, "webp": encode.webp, "avif": encode.avif, "gif": encode.animated}
SIGNATURES = (
    b"\xff\xd8\xff\xe1", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\x00", b"MM\x00*", b"BM" + bytes(12) + b"\x28\0\0\0",
    b"RIFF\x40\0\0\0WEBPVP8X", b"\0\0\0\x1cftypavif",
)  # fmt: skip
FATES = {"kept", *(f"images:{reason}" for reason in Images.reasons)}


@pytest.mark.parametrize("kind", SOUND)
def test_cut_files_are_truncated(kind: str, scene: Image.Image, images: Run) -> None:
    body = SOUND[kind](scene)
    shares = (0.1, 0.2) if kind == "gif" else (0.3, 0.5, 0.7, 0.9, 0.99)  # a GIF's first frame is whole after a third
    for row in images(*(encode.cut(body, share) for share in shares)):
        assert row["fate"] == "images:truncated", row["detail"]
        assert row["image"] is None


@pytest.mark.parametrize("options", [{}, {"optimize": True, "progressive": True}])
def test_no_jpeg_is_kept_in_part(options: dict[str, bool], scene: Image.Image, images: Run) -> None:
    body = encode.jpeg(scene, **options)
    for row in images(*(body[:at] for at in range(2, len(body) - 1, 97))):
        assert row["fate"] in ("images:truncated", "images:undecodable", "images:not_an_image"), row["detail"]


def test_damaged_inside(scene: Image.Image, images: Run) -> None:
    broken = [
        encode.broken_jpeg(scene),
        encode.broken_png(scene),
        encode.broken_webp(scene),
        encode.noise(20_000, 0),
        encode.noise(20_000, 1),
    ]
    for row in images(*broken):
        assert row["fate"] == "images:undecodable"
        assert row["detail"]


def test_wrong_checksum_of_png_pixels(images: Run) -> None:
    """Damage that zlib does not notice: stored, not compressed, data."""
    body = bytearray(saved(Image.new("RGB", (40, 40)), "PNG", compress_level=0))
    body[2000] ^= 0xFF
    (row,) = images(bytes(body))
    assert row["fate"] == "images:undecodable"
    assert row["detail"].startswith("the checksum of the pixels")


def test_details_hold_no_addresses(scene: Image.Image, images: Run) -> None:
    for row in images(*(encode.cut(make(scene), 0.2) for make in SOUND.values()), *SIGNATURES):
        assert row["fate"] != "kept"
        assert "0x" not in row["detail"]
        assert "/" not in row["detail"]


def test_bombs_cost_nothing(scene: Image.Image, images: Run) -> None:
    side = 30_000
    bombs = [encode.png_bomb(side), encode.jpeg_bomb(scene), encode.gif_bomb(scene)]
    webp = bytearray(saved(scene, "WEBP", lossless=True))
    webp[21:25] = (0x3FFF | 0x3FFF << 14).to_bytes(4, "little")
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    for row in images(*bombs, bytes(webp)):
        assert row["fate"] == "images:too_many_pixels"
        assert row["detail"].endswith("pixels > 89478485")
    assert time.process_time() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_scan_bomb(scene: Image.Image, images: Run) -> None:
    """A progressive JPEG whose last scan is repeated a thousand times: a few bytes each, a pass over all pixels each."""
    body = encode.jpeg(scene, progressive=True)
    last = body[body.rindex(b"\xff\xda") : -2]
    (row,) = images(body[:-2] + last * 1000 + body[-2:])
    assert (row["fate"], row["detail"]) == ("images:undecodable", "1010 scans > 64")


def test_no_image(scene: Image.Image, images: Run) -> None:
    for row in images(b"<!DOCTYPE html><html></html>", encode.svg("x"), b"", None, b"hello", b"RIFF1234WAVEfmt "):
        assert row["fate"] == "images:not_an_image"


def test_types_that_are_not_read(scene: Image.Image, images: Run) -> None:
    heic, jxl = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", b"\xff\x0a" + bytes(20)
    rows = images(heic, jxl, saved(scene, "JPEG2000"), saved(scene, "ICO", sizes=[(64, 64)]), encode.png(scene), formats=("jpeg",))
    assert {row["fate"] for row in rows} == {"images:unsupported_format"}
    assert [row["detail"] for row in rows] == ["heic", "jxl", "jp2", "ico", "png"]


def test_rules(scene: Image.Image, images: Run) -> None:
    body = encode.png(scene)  # 320 x 200
    for options, fate in (
        ({"min_bytes": len(body) + 1}, "images:too_few_bytes"),
        ({"max_bytes": len(body) - 1}, "images:too_many_bytes"),
        ({"max_pixels": 63_999, "size": 100}, "images:too_many_pixels"),
        ({"min_side": 201}, "images:too_small"),
        ({"max_aspect": 1.59}, "images:aspect"),
        ({"min_bytes": len(body), "max_bytes": len(body), "max_pixels": 64_000, "size": 100, "min_side": 200, "max_aspect": 1.6}, "kept"),
    ):
        assert images(body, **options)[0]["fate"] == fate


def test_a_result_that_its_format_cannot_hold(images: Run) -> None:
    strip = encode.png(Image.new("RGB", (5000, 3)))
    assert images(strip, mode="keep_ratio", size=256)[0]["fate"] == "images:result_too_large"
    assert images(strip, mode="keep_ratio", size=16, format="webp")[0]["detail"] == "26667 pixels > 16383, the most that webp holds"
    assert images(strip, mode="keep_ratio", size=16)[0]["fate"] == "kept"


def test_zeros_at_the_end_of_a_webp_of_one_colour(images: Run) -> None:
    flat = [Image.new("RGB", (side, side), colour) for side in (8, 300, 1000) for colour in ("white", "black", "red")]
    for row in images(*map(encode.webp, flat)):
        assert row["fate"] == "kept"


def test_an_avif_whose_second_half_is_zeros_is_no_picture(images: Run, scene: Image.Image) -> None:
    flat = [Image.new("RGB", (side, side), colour) for side in (8, 300) for colour in ("white", "black")]
    bodies = [*map(encode.avif, flat), encode.avif(scene)]
    damaged = bodies[-1][: len(bodies[-1]) // 2] + bytes(len(bodies[-1]) // 2)
    rows = images(*bodies, damaged)
    assert [row["fate"] for row in rows] == ["kept"] * len(bodies) + ["images:undecodable"]
    assert "zeros" in rows[-1]["detail"]


@settings(max_examples=60)
@given(kind=st.sampled_from(sorted(SOUND)), data=st.data())
def test_mutated_files_always_get_a_fate(kind: str, data: st.DataObject) -> None:
    """Bytes overwritten, cut out or put in anywhere: a fate of ours (never `error`), and if kept, a picture of the right size."""
    body = bytearray(BODIES[kind])
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(body) - 1))
        patch = data.draw(st.binary(max_size=12))
        body[at : at + data.draw(st.integers(0, 12))] = patch
    (row,) = run_images(bytes(body), size=32, max_pixels=1_000_000)
    assert row["fate"] in FATES
    if row["fate"] == "kept":
        assert opened(row["image"]).size == (32, 32)
    else:
        assert row["image"] is None


@settings(max_examples=60)
@given(
    head=st.sampled_from(
        [
            b"\xff\xd8\xff\xe1",
            b"\x89PNG\r\n\x1a\n",
            b"GIF89a",
            b"II*\x00",
            b"MM\x00*",
            b"BM",
            b"RIFF\x40\0\0\0WEBPVP8X",
            b"\0\0\0\x1cftypavif",
        ]
    ),
    rest=st.binary(max_size=300),
)
def test_noise_behind_a_signature(head: bytes, rest: bytes) -> None:
    (row,) = run_images(head + rest, max_pixels=1_000_000)
    assert row["fate"] in FATES


_SMALL = Image.fromarray((np.add.outer(np.arange(48), np.arange(64))[..., None] * np.array([2, 1, 0]) % 256).astype(np.uint8))
_EXIF = Image.Exif()
_EXIF[0x0112], _EXIF[0x010F], _EXIF[0x8769] = 6, "Camera", {0x829A: 0.01}
BODIES = {kind: make(_SMALL) for kind, make in SOUND.items()} | {"jpeg": encode.jpeg(_SMALL, exif=_EXIF)}
