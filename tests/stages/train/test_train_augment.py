"""Pictures for training: decoded like everyone else's, resized as open_clip does, augmented by (seed, epoch, sample) alone."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stages.train import augment as subject
from stages.train.augment import DRAWS, Augment, BadSampleError, crop, draws, picture

ROW = draws(1, 0, [5])[0]


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with some edges, as photographs have."""
    noise = np.random.default_rng(seed).integers(0, 255, (min(6, height // 8 + 1), min(6, width // 8 + 1), 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **more: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **more)
    return out.getvalue()


def made(body: bytes, size: tuple[int, int] = (64, 64), draw: np.ndarray = ROW, **more: Any) -> np.ndarray:
    out = np.full((*size, 3), 77, np.uint8)
    picture(body, out, draw, more.pop("augment", None), more.pop("resize", "shortest"))
    return out


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("PNG", "P"), ("PNG", "RGBA"), ("WEBP", "RGB")]
)
def test_a_picture_of_the_wanted_size_has_pillow_s_pixels(kind: str, mode: str) -> None:
    body = encoded(photo(64, 64).convert(mode), kind)
    assert np.array_equal(made(body), np.asarray(Image.open(io.BytesIO(body)).convert("RGB")))


@pytest.mark.parametrize("shape", [(100, 64), (64, 100), (300, 200), (2000, 1500), (40, 30), (64, 64)])
@pytest.mark.parametrize("resize", ["shortest", "longest", "squash"])
def test_resize_modes_are_open_clip_s(shape: tuple[int, int], resize: Any) -> None:
    pytest.importorskip("torch")
    from stages.lib import torchvision_shim

    torchvision_shim.ensure()
    image_transform = pytest.importorskip("open_clip").image_transform

    body = encoded(photo(*shape), quality=98)
    transform = image_transform(64, is_train=False, mean=(0, 0, 0), std=(1, 1, 1), resize_mode=resize)
    theirs = (transform(Image.open(io.BytesIO(body))) * 255).round().permute(1, 2, 0).numpy()
    ours = made(body, resize=resize).astype(float)
    assert np.abs(ours - theirs).mean() < 3.5  # of 255: another filter, and half a pixel's shift at the most
    assert ((ours == 0).all(2).mean() > 0.1) == (resize == "longest" and shape[0] != shape[1])


@given(st.integers(1, 3000), st.integers(1, 3000), st.floats(0.05, 1), st.floats(0.3, 1), st.integers(0, 2**40))
@settings(max_examples=200)
def test_a_random_crop_lies_within_the_picture(width: int, height: int, low: float, flat: float, id_: int) -> None:
    left, top, w, h = crop(width, height, (low, 1.0), (flat, 1 / flat), draws(3, 1, [id_])[0])
    assert left >= 0 <= top
    assert 1 <= w <= width - left
    assert 1 <= h <= height - top


def test_random_crops_are_spread_as_torchvision_s() -> None:
    torch = pytest.importorskip("torch")
    from stages.lib import torchvision_shim

    torchvision_shim.ensure()
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    image = Image.new("RGB", (320, 240))
    theirs = np.asarray([RandomResizedCrop.get_params(image, [0.3, 1.0], [0.75, 4 / 3]) for _ in range(2000)])[:, [1, 0, 3, 2]]
    ours = np.asarray([crop(320, 240, (0.3, 1.0), (0.75, 4 / 3), row) for row in draws(0, 0, range(2000))])
    assert np.abs(ours.mean(0) - theirs.mean(0)).max() < 4
    assert np.abs(ours.std(0) - theirs.std(0)).max() < 4


def test_draws_depend_on_seed_epoch_and_sample_only() -> None:
    table = draws(7, 3, range(1000))
    assert table.shape == (1000, DRAWS)
    assert table.min() >= 0
    assert table.max() < 1
    assert np.abs(table.mean(0) - 0.5).max() < 0.05
    assert np.array_equal(draws(7, 3, [999, 5]), table[[999, 5]])
    assert not np.isin(table, draws(7, 4, range(1000))).any()
    assert not np.isin(table, draws(8, 3, range(1000))).any()


FULL = Augment(scale=(0.2, 1.0), hflip=True, color_jitter=(0.4, 0.4, 0.4, 0.1), color_jitter_prob=1.0, gray_scale_prob=0.2)


def test_augmentation_is_a_function_of_the_draws() -> None:
    pytest.importorskip("torch")
    body = encoded(photo(200, 150))
    views = [made(body, draw=row, augment=FULL) for row in draws(1, 0, range(40))]
    again = [made(body, draw=row, augment=FULL) for row in draws(1, 0, range(40))]
    assert all(np.array_equal(a, b) for a, b in zip(views, again, strict=True))
    assert len({view.tobytes() for view in views}) == 40
    gray = sum(bool((view[..., 0] == view[..., 2]).all()) for view in views)
    assert 2 <= gray <= 16


def test_flips_mirror_half_of_the_pictures_and_only_if_asked() -> None:
    body = encoded(photo(64, 64))
    plain = made(body)
    views = [made(body, draw=row, augment=Augment(scale=None, hflip=True)) for row in draws(1, 0, range(200))]
    assert 70 < sum(bool(np.array_equal(view, plain[:, ::-1])) for view in views) < 130
    assert all(np.array_equal(view, plain) or np.array_equal(view, plain[:, ::-1]) for view in views)
    assert np.array_equal(made(body, augment=Augment(scale=None)), plain)


def test_colours_change_as_torchvision_changes_them() -> None:
    pytest.importorskip("torch")
    image = photo(64, 64)
    body = encoded(image, "PNG")
    for at, most in enumerate(np.eye(4)):
        row = ROW.copy()
        row[subject.FACTORS + at] = 0.999999  # the largest change
        view = made(body, draw=row, augment=Augment(scale=None, color_jitter=tuple(most * (0.5 if at == 3 else 0.4)), color_jitter_prob=1))
        from torchvision.transforms import functional as change

        names = ("adjust_brightness", "adjust_contrast", "adjust_saturation", "adjust_hue")
        expected = np.asarray(getattr(change, names[at])(image, 0.5 if at == 3 else 1.4))
        assert np.abs(view.astype(int) - expected).max() <= 1 or at == 3
        assert not np.array_equal(view, np.asarray(image))


@pytest.mark.parametrize("cut", [0.3, 0.9])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_half_a_picture_is_a_bad_sample(kind: str, cut: float) -> None:
    body = encoded(photo(64, 64), kind)
    with pytest.raises(BadSampleError):
        made(body[: int(len(body) * cut)])


@pytest.mark.parametrize("body", [b"", b"\xff\xd8\xff", b"<html>", b"\xff\xd8\xff\xe0" + bytes(100), b"GIF89a" + bytes(20)])
def test_what_is_no_picture_is_a_bad_sample(body: bytes) -> None:
    with pytest.raises(BadSampleError):
        made(body)


def test_too_many_pixels_are_never_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "MAX_PIXELS", 64 * 64 - 1)
    for kind in ("JPEG", "PNG"):
        with pytest.raises(BadSampleError, match="pixels"):
            made(encoded(photo(64, 64), kind))


def test_a_jpeg_of_very_many_scans_is_refused() -> None:
    body = encoded(photo(64, 64), progressive=True)
    at = body.index(b"\xff\xda")
    with pytest.raises(BadSampleError, match="scans"):
        made(body[:at] + body[at:] * 50)


def test_stray_bytes_that_pillow_forgives_are_forgiven() -> None:
    body = encoded(photo(64, 64))
    stray = body[:-2] + b"\0\0\0" + body[-2:]
    assert np.array_equal(made(stray), made(body))


@given(st.binary(max_size=200), st.sampled_from(["JPEG", "PNG", "WEBP", "GIF"]), st.integers(0, 600))
@settings(max_examples=150)
def test_no_bytes_raise_anything_else(junk: bytes, kind: str, at: int) -> None:
    body = encoded(photo(24, 24), kind)
    at = min(at, len(body))
    try:
        out = made(body[:at] + junk + body[at + len(junk) :], (16, 16))
    except BadSampleError:
        return
    assert out.dtype == np.uint8
