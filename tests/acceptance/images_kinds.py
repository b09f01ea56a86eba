"""The images stage against img2dataset's own Resizer on every kind of picture: `python tests/acceptance/images_kinds.py DATA [COUNT]`.

COUNT photographs of DATA/web_photos (default 40), brought to longer sides of 120 to 3,000 pixels, are saved as each kind and become
224-pixel centre crops, JPEG of quality 95. For each kind: sizes, and the mean PSNR in dB of ours by `area` and by `antialiased` and of
img2dataset's against the photograph itself (where the file is lossy: what Pillow decodes of it), resized by Pillow's BICUBIC and by
OpenCV's INTER_AREA. Then tiny pictures, which grow. Exit code 1 where a size differs, or where the mean is more than 0.5 dB under
img2dataset's: of `area` against either, of `antialiased` against BICUBIC.
"""

from __future__ import annotations

import io
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import cv2
import numpy as np
from img2dataset.resizer import Resizer
from PIL import Image, ImageOps

from stages.lib import imageresize
from tests.stages.images.pictures import opened, psnr, run_images, saved

SIZE, MAX_LOSS = 224, 0.5
TINY = ((1, 1), (2, 3), (10, 7), (3, 200), (64, 64), (223, 224), (225, 226))
REFERENCES: dict[str, Callable[[Image.Image, tuple[int, int]], np.ndarray]] = {
    "BICUBIC": lambda image, to: np.asarray(image.resize(to, Image.Resampling.BICUBIC)),
    "INTER_AREA": lambda image, to: cv2.resize(np.asarray(image), to, interpolation=cv2.INTER_AREA),
}
Made = tuple[bytes, Image.Image | None]
"""A file, and the picture that it stands for; None: what Pillow decodes of it."""


def grey(image: Image.Image) -> Image.Image:
    return image.convert("L").convert("RGB")


def see_through(image: Image.Image) -> Image.Image:
    """With an alpha that rises from left to right."""
    alpha = np.tile(np.linspace(0, 255, image.width).round().astype(np.uint8), (image.height, 1))
    out = image.convert("RGBA")
    out.putalpha(Image.fromarray(alpha))
    return out


def on_white(image: Image.Image) -> Image.Image:
    out = Image.new("RGBA", image.size, "white")
    out.alpha_composite(image.convert("RGBA"))
    return out.convert("RGB")


def alpha_png(image: Image.Image) -> Made:
    seen = see_through(image)
    return saved(seen, "PNG"), on_white(seen)


def grey_alpha_png(image: Image.Image) -> Made:
    seen = see_through(image).convert("LA")
    return saved(seen, "PNG"), on_white(seen)


def deep_png(image: Image.Image, channels: int) -> Made:
    pixels = np.asarray(image if channels == 3 else image.convert("L"))
    body = cv2.imencode(".png", (pixels[..., ::-1] if channels == 3 else pixels).astype(np.uint16) * 257)[1].tobytes()
    return body, image if channels == 3 else grey(image)


def palette_png(image: Image.Image) -> Made:
    few = image.quantize(200)
    return saved(few, "PNG"), few.convert("RGB")


def animated(image: Image.Image, kind: str, **options: Any) -> Made:
    others = [ImageOps.invert(image), ImageOps.mirror(image)]
    return saved(image, kind, save_all=True, append_images=others, duration=100, **options), image if options.get("lossless") else None


def turned_jpeg(image: Image.Image) -> Made:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(image, "JPEG", quality=95, exif=exif), None


KINDS: dict[str, Callable[[Image.Image], Made]] = {
    "JPEG": lambda image: (saved(image, "JPEG", quality=90), None),
    "JPEG 4:4:4, progressive": lambda image: (saved(image, "JPEG", quality=95, subsampling=0, progressive=True), None),
    "JPEG 4:2:2": lambda image: (saved(image, "JPEG", quality=90, subsampling=1), None),
    "JPEG, grey": lambda image: (saved(image.convert("L"), "JPEG", quality=92), None),
    "JPEG, CMYK": lambda image: (saved(image.convert("CMYK"), "JPEG", quality=95), None),
    "JPEG, EXIF-turned": turned_jpeg,
    "PNG": lambda image: (saved(image, "PNG", compress_level=1), image),
    "PNG, grey": lambda image: (saved(image.convert("L"), "PNG"), grey(image)),
    "PNG, palette": palette_png,
    "PNG, alpha": alpha_png,
    "PNG, grey and alpha": grey_alpha_png,
    "PNG, 16 bit": lambda image: deep_png(image, 3),
    "PNG, 16 bit, grey": lambda image: deep_png(image, 1),
    "WebP": lambda image: (saved(image, "WEBP", quality=85), None),
    "WebP, lossless, alpha": lambda image: (saved(see_through(image), "WEBP", lossless=True, exact=True), on_white(see_through(image))),
    "WebP, animated": lambda image: animated(image, "WEBP", lossless=True, quality=0, method=0),
    "GIF, animated": lambda image: animated(image, "GIF"),
    "AVIF": lambda image: (saved(image, "AVIF", quality=80, speed=10), None),
    "BMP": lambda image: (saved(image, "BMP"), image),
    "TIFF": lambda image: (saved(image, "TIFF"), image),
}


def photographs(data: Path, count: int) -> list[Image.Image]:
    """Of all sides, so that some grow and others are reduced to 1/2, 1/4 or 1/8 before they are scaled."""
    files = sorted((data / "web_photos" / "images").glob("*.jpg"))
    draw, out = random.Random(1), []
    for path in files[:: max(1, len(files) // count)][:count]:
        image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        factor = 120 * 25 ** draw.random() / max(image.size)
        out.append(image.resize((max(1, round(image.width * factor)), max(1, round(image.height * factor))), Image.Resampling.LANCZOS))
    return out


def wanted(image: Image.Image, name: str) -> np.ndarray:
    plan = imageresize.plan(*image.size, SIZE, "center_crop", only_if_bigger=False)
    by = REFERENCES[name] if plan.shrinks else lambda image, to: cv2.resize(np.asarray(image), to, interpolation=cv2.INTER_LANCZOS4)
    return imageresize.fit(by(image, plan.scaled), plan.stored)


def compared(kind: str, made: list[Made], resizer: Resizer) -> list[str]:
    """Prints a line; what is wrong."""
    bodies = [body for body, _ in made]
    truths = [truth or on_white(ImageOps.exif_transpose(opened(body))) for body, truth in made]
    ours = {name: run_images(*bodies, size=SIZE, downscale=name) for name in ("area", "antialiased")}
    theirs = [resizer(io.BytesIO(body)) for body in bodies]
    faults = [f"{kind}: {row['fate']}, {row['detail']}" for rows in ours.values() for row in rows if row["image"] is None]
    if faults:
        return faults
    refused = [out[5] for out in theirs if out[5] is not None]
    turned = "turned" in kind
    odd = 0 if turned else sum(_facts(row) != out[1:5] for row, out in zip(ours["area"], theirs, strict=True) if out[5] is None)
    faults = [f"{kind}: {odd} sizes differ"] if odd else []
    line = f"{kind:24} sizes {'(turned)' if turned else 'the same' if not odd else f'{odd} differ':9}"
    for name in REFERENCES:
        right = [wanted(truth, name) for truth in truths]
        mean = {how: _mean(right, [row["image"] for row in rows]) for how, rows in ours.items()}
        peer = None if refused or turned else _mean(right, [out[0] for out in theirs])
        told = "    -" if peer is None else f"{peer:5.1f}"
        line += f" | {name}: area {mean['area']:5.1f}, antialiased {mean['antialiased']:5.1f}, img2dataset {told}"
        for how in ("area", "antialiased") if name == "BICUBIC" else ("area",):
            if peer is not None and mean[how] < peer - MAX_LOSS:
                faults.append(f"{kind}, {how} against {name}: {mean[how]:.2f} dB, img2dataset {peer:.2f} dB")
    print(line + (f" | img2dataset refuses {len(refused)} of {len(bodies)}: {refused[0][:60]}" if refused else ""), flush=True)
    return faults


def _facts(row: dict[str, Any]) -> tuple[int, ...]:
    return row["width"], row["height"], row["original_width"], row["original_height"]


def _mean(right: list[np.ndarray], bodies: list[bytes]) -> float:
    return float(np.mean([psnr(opened(body).convert("RGB"), pixels) for pixels, body in zip(right, bodies, strict=True)]))


def main() -> int:
    data, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 40
    cv2.setNumThreads(1)
    resizer = Resizer(SIZE, "center_crop", False, encode_quality=95)
    pictures, faults = photographs(data, count), list[str]()
    for kind, make in KINDS.items():
        faults += compared(kind, [make(image) for image in pictures], resizer)
    tiny = [pictures[0].resize(size) for size in TINY]
    faults += compared("tiny PNG", [(saved(image, "PNG"), image) for image in tiny], resizer)
    print("\n".join(f"FAULT {fault}" for fault in faults) or "no faults")
    return bool(faults)


if __name__ == "__main__":
    raise SystemExit(main())
