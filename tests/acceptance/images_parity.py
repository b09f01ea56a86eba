"""The images stage against img2dataset's own Resizer on real photographs: `python tests/acceptance/images_parity.py DATA [COUNT]`.

DATA holds web_photos/images and flickr8k/train; COUNT photographs of each are used (default 120). Prints sizes and crops mode by mode,
the quality and the speed of both, and the differences that are wanted. Exit code 1 if a size or a crop differs, or if the mean PSNR is
more than 0.5 dB under img2dataset's.
"""

from __future__ import annotations

import io
import itertools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import numpy as np
import pyarrow as pa
from img2dataset.resizer import Resizer
from PIL import Image

from pipeline.frame import apply, framed
from pipeline.sample import encode
from stages.images import Images

MODES = ("center_crop", "border", "keep_ratio", "keep_ratio_largest", "no")
SIZES = (96, 224, 240, 700)  # all photographs shrink, most do, some have that side already, most grow
MAX_LOSS = 0.5  # dB
LOSSY = {"format": "jpg", "quality": 95, "downscale": "area"}
LOSSLESS = {"format": "png", "quality": 1, "downscale": "cubic"}


def main() -> int:
    data, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 120
    web = _spread(sorted((data / "web_photos" / "images").iterdir()), count)
    flickr = _spread(sorted((data / "flickr8k" / "train").glob("*.jpg")), count)
    faults = _sizes_and_crops(_spread(web, count // 6) + _spread(flickr, count // 12))
    for name, files in (
        ("web_photos, JPEG", [body for body in web if body[:2] == b"\xff\xd8"]),
        ("web_photos, all", web),
        ("flickr8k", flickr),
    ):
        faults += _quality_and_speed(name, files)
    _wanted(Image.open(io.BytesIO(web[0])).convert("RGB"))
    print("\n".join(f"FAULT {fault}" for fault in faults) or "no faults")
    return bool(faults)


def _spread(items: list[Any], count: int) -> list[Any]:
    """At most `count` of them, evenly spread; files as their bytes."""
    picked = items[:: max(1, len(items) // max(1, count))][:count]
    return [item.read_bytes() if isinstance(item, Path) else item for item in picked]


def ours(bodies: list[bytes], **options: Any) -> list[dict[str, Any]]:
    stage = Images(Images.Config(**options))
    stage.open()
    return apply(stage, framed(pa.table({"body": pa.array(bodies, pa.large_binary())}))).drop(["body"]).to_pylist()


def theirs(size: int, mode: str, only_if_bigger: bool, options: dict[str, Any] = LOSSY) -> Callable[[bytes], tuple[Any, ...]]:
    renamed = {"format": "encode_format", "quality": "encode_quality", "downscale": "downscale_interpolation"}
    resizer = Resizer(size, mode, only_if_bigger, **{renamed[name]: value for name, value in options.items()})
    return lambda body: resizer(io.BytesIO(body))


def _sizes_and_crops(bodies: list[bytes]) -> list[str]:
    """Sizes of the files as they are; and, of the same pixels as PNG, stored as PNG unreduced, every pixel."""
    lossless = [encode.png(Image.open(io.BytesIO(body)).convert("RGB")) for body in bodies[:: max(1, len(bodies) // 12)]]
    faults = []
    print(f"{'mode':20} {'only_if_bigger':15} {'size':>5} {'sizes equal':>12} {'pixels equal':>13}")
    for mode, only, size in itertools.product(MODES, (False, True), SIZES):
        same = sum(_facts(row) == _row(out) for row, out in _both(bodies, size, mode, only))
        exact = sum(
            _facts(row) == _row(out) and np.array_equal(pixels(row["image"]), pixels(out[0]))
            for row, out in _both(lossless, size, mode, only, LOSSLESS)
        )
        print(f"{mode:20} {only!s:15} {size:5} {same:5} of {len(bodies):3} {exact:6} of {len(lossless):3}")
        if same < len(bodies) or exact < len(lossless):
            faults.append(f"{mode}, only_if_bigger {only}, size {size}: {len(bodies) - same} sizes, {len(lossless) - exact} crops differ")
    return faults


def _both(bodies: list[bytes], size: int, mode: str, only: bool, options: dict[str, Any] = LOSSY) -> list[tuple[dict[str, Any], Any]]:
    rows = ours(bodies, size=size, mode=mode, only_if_bigger=only, **options)
    return list(zip(rows, map(theirs(size, mode, only, options), bodies), strict=True))


def _facts(row: dict[str, Any]) -> tuple[int, ...]:
    return row["width"], row["height"], row["original_width"], row["original_height"]


def _row(out: tuple[Any, ...]) -> tuple[int, ...]:
    return out[1:5]


def pixels(body: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(body)).convert("RGB"))


def _quality_and_speed(name: str, bodies: list[bytes]) -> list[str]:
    """Centre crop to 224, JPEG 95; the reference is Pillow's full decode and LANCZOS or BOX, before any encoding."""
    resizer = theirs(224, "center_crop", False)
    faults = []
    rows = ours(bodies, size=224)
    outs = [resizer(body)[0] for body in bodies]
    for label, kernel in (("LANCZOS", Image.Resampling.LANCZOS), ("area (BOX)", Image.Resampling.BOX)):
        wanted = [_reference(body, kernel) for body in bodies]
        mine, other = _mean_psnr(wanted, [row["image"] for row in rows]), _mean_psnr(wanted, outs)
        print(f"{name}: {len(bodies)} photographs, mean PSNR against {label}: ours {mine:.2f} dB, img2dataset {other:.2f} dB")
        if mine < other - MAX_LOSS:
            faults.append(f"{name}: PSNR {mine:.2f} dB against {other:.2f} dB")
    speed_ours = _per_cpu_second(lambda: ours(bodies, size=224), len(bodies))
    speed_theirs = _per_cpu_second(lambda: [resizer(body) for body in bodies], len(bodies))
    print(f"{name}: images per CPU-second: ours {speed_ours:.0f}, EXIF and hash included; img2dataset's Resizer alone {speed_theirs:.0f}")
    return faults


def _reference(body: bytes, kernel: Image.Resampling) -> np.ndarray:
    image = Image.open(io.BytesIO(body))
    if "A" in image.mode:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", rgba.size, "white")
        image.paste(rgba, mask=rgba.getchannel("A"))
    image = image.convert("RGB")
    factor = 224 / min(image.size)
    kernel = kernel if factor < 1 else Image.Resampling.LANCZOS
    image = image.resize((round(image.width * factor), round(image.height * factor)), kernel)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    return np.asarray(image.crop((left, top, left + 224, top + 224)))


def _mean_psnr(wanted: list[np.ndarray], bodies: list[bytes]) -> float:
    return float(np.mean([psnr(a, pixels(body)) for a, body in zip(wanted, bodies, strict=True)]))


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal to noise in dB, at most 60."""
    return float(10 * np.log10(255**2 / max(0.065, np.mean((a.astype(float) - b) ** 2))))


def _per_cpu_second(work: Callable[[], Any], count: int) -> float:
    """The best of three rounds, in CPU time of this process; both use one thread."""
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return count / best


def _wanted(image: Image.Image) -> None:
    """What differs on purpose: EXIF orientation, and what is stored of grey and cut-off files."""
    image = encode.scaled(image, 400)
    print(f"\nwanted differences (an upright picture of {image.width} x {image.height})")
    cases = {f"EXIF orientation {n}": encode.rotated(image, n) for n in range(2, 9)}
    cases |= {"grey JPEG": encode.grey(image), "CMYK JPEG": encode.cmyk(image), "alpha PNG": encode.alpha(image)}
    cases |= {"JPEG cut at 90 %": encode.cut(encode.jpeg(image), 0.9), "WebP, data zeroed": encode.broken_webp(image)}
    resizer = theirs(200, "keep_ratio_largest", False)
    for (name, body), row in zip(cases.items(), ours(list(cases.values()), size=200, mode="keep_ratio_largest"), strict=True):
        out = resizer(body)
        mine = f"{row['width']} x {row['height']} {_likeness(image, row['image'])}" if row["image"] else row["fate"]
        other = f"{out[1]} x {out[2]} {_likeness(image, out[0])}" if out[0] else out[5]
        print(f"  {name:20} ours: {mine:36} img2dataset: {other}")


def _likeness(image: Image.Image, body: bytes) -> str:
    seen = Image.open(io.BytesIO(body))
    small = np.asarray(image.resize(seen.size, Image.Resampling.LANCZOS))
    return f"{seen.mode}, {psnr(small, np.asarray(seen.convert('RGB'))):.0f} dB to upright"


if __name__ == "__main__":
    raise SystemExit(main())
