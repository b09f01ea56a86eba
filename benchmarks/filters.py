"""What a filter for shrinking costs, and how near to the whole picture's it comes: `python benchmarks/filters.py DATA [--pictures 200]`.

The pictures of benchmarks/images.py to 224-pixel centre crops, one thread, bodies in memory: CPU-ms to decode and resize as the image
stage does it, with each filter, and in img2dataset's way (all pixels, then OpenCV's INTER_AREA). Mean PSNR in dB, of the crop as it is,
and encoded as JPEG of quality 95, against a full decode resized by Pillow's BICUBIC, by its LANCZOS and by OpenCV's INTER_AREA. Last,
encoded and against BICUBIC: by how many dB the worst picture is better (below 0: worse) than img2dataset's, and how many are worse.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.images import pictures
from stages.lib import imagedecode, imageencode, imageresize

SIZE = 224
PEER = "area, all pixels"
WAYS = {
    **{name: (name, margin) for name, margin in imageresize.ENOUGH.items()},
    "antialiased, 1.25": ("antialiased", 1.25),  # what a smaller margin would cost
    "antialiased, 1": ("antialiased", 1.0),
    PEER: ("area", None),
}
REFERENCES: dict[str, Callable[[Image.Image, tuple[int, int]], np.ndarray]] = {
    "BICUBIC": lambda image, to: np.asarray(image.resize(to, Image.Resampling.BICUBIC)),
    "LANCZOS": lambda image, to: np.asarray(image.resize(to, Image.Resampling.LANCZOS)),
    "INTER_AREA": lambda image, to: cv2.resize(np.asarray(image), to, interpolation=cv2.INTER_AREA),
}


def shrunk(body: bytes, name: str, margin: float | None) -> np.ndarray:
    head = imagedecode.header("jpeg", body)
    plan = imageresize.plan(head.width, head.height, SIZE, "center_crop", only_if_bigger=False)
    decoded = imagedecode.decode(head, plan.scaled, margin) if margin else imagedecode.decode(head, None)
    scaled = imageresize.scale(decoded.pixels, plan.scaled, name, decoded.extent)  # type: ignore[arg-type]
    return imageresize.fit(scaled, plan.stored)


def wanted(body: bytes, by: Callable[[Image.Image, tuple[int, int]], np.ndarray]) -> np.ndarray:
    whole = Image.open(io.BytesIO(body)).convert("RGB")
    plan = imageresize.plan(*whole.size, SIZE, "center_crop", only_if_bigger=False)
    return imageresize.fit(by(whole, plan.scaled), plan.stored)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-3, np.mean((a.astype(float) - b.astype(float)) ** 2))))


def encoded(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(imageencode.encode(pixels, "jpg", 95))).convert("RGB"))


def _encoded_psnr(pictured: list[np.ndarray], right: list[np.ndarray]) -> np.ndarray:
    return np.array([psnr(encoded(pixels), reference) for pixels, reference in zip(pictured, right, strict=True)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?", default=os.environ.get("SHARDMILL_TEST_DATA"))
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    if given.data is None:
        print("filters: no DATA, nothing measured (name the folder, or set SHARDMILL_TEST_DATA)")
        return 0
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        pictures(Path(given.data), Path(name))
        bodies = [path.read_bytes() for path in sorted(Path(name).glob("*.jpg"))[: given.pictures]]
    print(f"{'':18} CPU-ms  " + "".join(f"{name + ', encoded':>26}" for name in REFERENCES) + "   beside img2dataset")
    made = {way: [shrunk(body, *how) for body in bodies] for way, how in WAYS.items()}
    took: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(given.rounds):
        for way, how in WAYS.items():
            began = time.process_time()
            for body in bodies:
                shrunk(body, *how)
            took[way].append(1000 * (time.process_time() - began) / len(bodies))
    right = {name: [wanted(body, by) for body in bodies] for name, by in REFERENCES.items()}
    peer = _encoded_psnr(made[PEER], right["BICUBIC"])
    for way, pictured in made.items():
        line = f"{way:18} {np.median(took[way]):6.2f}  "
        for references in right.values():
            plain = np.mean([psnr(*pair) for pair in zip(pictured, references, strict=True)])
            line += "{:>26}".format(f"{plain:.2f}, {_encoded_psnr(pictured, references).mean():.2f}")
        better = _encoded_psnr(pictured, right["BICUBIC"]) - peer
        print(f"{line}   {better.min():+.2f} dB, {np.mean(better < 0):.0%} worse")
    return 0


if __name__ == "__main__":
    sys.exit(main())
