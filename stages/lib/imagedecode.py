"""Header and pixels of a hostile picture: nothing is decoded before its size is known, and a half picture is none.

Pillow reads headers and decodes, but for what is most frequent: libjpeg-turbo (simplejpeg) decodes JPEG, at 1/2, 1/4 or 1/8 where that
is enough, and OpenCV plain WebP. Other pictures are reduced by the same factor after the decode, so that the same is done to all.
Everything that goes wrong is a `Refused`; MemoryError alone passes through.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from stages.lib import imagecolour, imageexif, imagetype

READERS: dict[str, type[ImageFile.ImageFile]] = {
    "jpeg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "avif": AvifImagePlugin.AvifImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
}
MARGIN = 2.0
"""A reduced picture keeps this many pixels a side for each one that is wanted, unless fewer are said to do."""
MAX_SCANS = 64
"""Scans of a progressive JPEG; each costs a pass over all pixels and may be a few bytes long. Encoders write at most about ten."""


class Refused(Exception):  # noqa: N818 - it is a verdict
    """Why a picture is not taken; here `reason` is `truncated`, `undecodable` or `unsupported_format`, `detail` the decoder's words."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Header:
    """What a file says of itself. Width and height are as stored, in pixels (of a TIFF upright: Pillow turns it); `image` has not been
    decoded (None for WebP)."""

    kind: str
    body: bytes
    width: int
    height: int
    image: ImageFile.ImageFile | None


@dataclass(frozen=True)
class Decoded:
    """`pixels` (height, width, 3) uint8 sRGB, upright; fewer than the picture's `width` x `height` if it was reduced.

    `exif` is JSON; `plain`: these pixels are the file's own, one frame, in three channels, without turning, blending or conversion.
    `factor`: by what each side was reduced. Where it does not divide a side, the last pixel of that side stands for less than a whole one,
    or the rest of the side has none: the picture spans `extent` pixels.
    """

    pixels: np.ndarray
    width: int
    height: int
    orientation: int
    exif: str
    plain: bool
    factor: int = 1

    @property
    def extent(self) -> tuple[float, float]:
        """Width and height of the whole picture in units of `pixels`."""
        return self.width / self.factor, self.height / self.factor


def header(kind: str, body: bytes) -> Header:
    """Reads the size of a body of a `kind` in READERS. Raises Refused."""
    if kind == "webp":
        size = imagetype.webp_size(body)
        if size is None or not all(size):
            raise Refused("truncated" if imagetype.ends_early(kind, body) else "undecodable", "no size in the header")
        _refuse_blank(body)
        return Header(kind, body, *size, None)
    if kind == "avif":
        _refuse_blank(body)
    image = _guarded(kind, body, lambda: _open(kind, body))
    width, height = image.size
    if not (width and height):
        raise Refused("undecodable", f"{width} x {height} pixels")
    return Header(kind, body, width, height, image)


def decode(head: Header, wanted: tuple[int, int] | None, margin: float = MARGIN) -> Decoded:
    """Decodes the first frame. Raises Refused.

    `wanted` (width, height; as stored): what it will be scaled to; the picture may then come at 1/2, 1/4 or 1/8, `margin` times as large at
    the least. None: all pixels.
    """
    return _guarded(head.kind, head.body, lambda: _decode(head, wanted, margin))


def exif(head: Header) -> tuple[int, str]:
    """Orientation (1 to 8) and tags (JSON) of a picture that is not decoded here."""
    return _exif(head.image or _guarded(head.kind, head.body, lambda: _open(head.kind, head.body)))


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """`pixels` (height, width, channels) as EXIF orientation 1 to 8 wants them shown (Exif 2.32, 4.6.4)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _refuse_blank(body: bytes) -> None:
    if zeros := imagetype.blank(body):
        raise Refused("undecodable", f"the last {zeros} of {len(body)} bytes are zeros")


def _open(kind: str, body: bytes) -> ImageFile.ImageFile:
    """The reader itself and not Image.open: that one guesses types, and judges sizes by a limit of its own."""
    return READERS[kind](io.BytesIO(body))


def _decode(head: Header, wanted: tuple[int, int] | None, margin: float) -> Decoded:
    image = head.image or _open(head.kind, head.body)
    if image.size != (head.width, head.height):
        raise Refused("undecodable", f"header and picture differ in size: {head.width} x {head.height}, {image.size[0]} x {image.size[1]}")
    if head.kind == "jpeg" and image.mode in ("RGB", "L"):
        return _decode_jpeg(head, image, wanted, margin)
    if head.kind == "png" and (damage := imagetype.png_damaged(head.body)):
        raise Refused("undecodable", damage)
    tiff = head.kind == "tiff"
    before = _exif(image) if tiff else None  # Pillow turns these itself, and forgets the tag
    one_frame = getattr(image, "n_frames", 1) == 1
    if head.kind == "webp" and image.mode == "RGB" and one_frame and "icc_profile" not in image.info:
        pixels, same = _decode_webp(head), True
    else:
        image.load()
        rgb = imagecolour.to_rgb(image)
        pixels, same = np.asarray(rgb), rgb is image
    orientation, tags = before or _exif(image)  # of a PNG it may stand behind the pixels
    turn = 1 if tiff else orientation
    factor = _factor(head, wanted, margin, turn)
    pixels = turned(_reduced(pixels, factor), turn)
    return Decoded(pixels, *_upright(head, turn), orientation, tags, one_frame and same and orientation == 1, factor)


def _upright(head: Header, orientation: int) -> tuple[int, int]:
    return (head.height, head.width) if orientation >= 5 else (head.width, head.height)


def _decode_jpeg(head: Header, image: ImageFile.ImageFile, wanted: tuple[int, int] | None, margin: float) -> Decoded:
    import simplejpeg

    orientation, tags = _exif(image)
    factor = _factor(head, wanted, margin, orientation)
    if image.info.get("progressive") and (scans := head.body.count(b"\xff\xda")) > MAX_SCANS:
        raise Refused("undecodable", f"{scans} scans > {MAX_SCANS}")
    least = (-(-head.width // factor), -(-head.height // factor)) if factor > 1 else (0, 0)
    try:
        pixels = simplejpeg.decode_jpeg(head.body, "RGB", min_width=least[0], min_height=least[1])
    except ValueError as err:
        if "subsampling" not in str(err):
            raise
        image.load()  # libjpeg knows ways of subsampling that TurboJPEG does not
        pixels = _reduced(np.asarray(image.convert("RGB")), factor)
    plain = image.mode == "RGB" and orientation == 1
    profile = image.info.get("icc_profile")
    if profile and (seen := _through_profile(image.mode, pixels, profile)) is not None:
        pixels, plain = seen, False
    return Decoded(turned(pixels, orientation), *_upright(head, orientation), orientation, tags, plain, factor)


def _through_profile(mode: str, pixels: np.ndarray, profile: bytes) -> np.ndarray | None:
    seen = imagecolour.to_srgb(Image.fromarray(pixels if mode == "RGB" else pixels[:, :, 0]), profile)
    return None if seen is None else np.asarray(seen)


def _decode_webp(head: Header) -> np.ndarray:
    """The same pixels as Pillow's, which goes by way of libwebp's player of animations, in half the time."""
    import cv2

    pixels = cv2.imdecode(np.frombuffer(head.body, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.shape != (head.height, head.width, 3):
        raise ValueError("libwebp could not decode it")
    out: np.ndarray = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    return out


def _factor(head: Header, wanted: tuple[int, int] | None, margin: float, orientation: int) -> int:
    """8, 4 or 2 if as small a part of the picture's sides is still `margin` times what is wanted, else 1.

    A side that is shown the other way round has to be divisible: what is left over would come first (see Decoded.extent). libjpeg's
    fractions between (3/8, 5/8 …) are slow and blur: measured, 33 dB against 40 dB at 1/2 and in full.
    """
    if wanted is None:
        return 1
    mirrored = [side for side, turns in ((head.width, (2, 3, 7, 8)), (head.height, (3, 4, 6, 7))) if orientation in turns]
    for factor in (8, 4, 2):
        large = head.width >= factor * margin * wanted[0] and head.height >= factor * margin * wanted[1]
        if large and not any(side % factor for side in mirrored):
            return factor
    return 1


def _reduced(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Means of `factor` x `factor` pixels; fewer than `factor` columns at the right and rows at the bottom may fall away."""
    if factor == 1:
        return pixels
    import cv2

    height, width = pixels.shape[0] // factor, pixels.shape[1] // factor
    out: np.ndarray = cv2.resize(pixels[: height * factor, : width * factor], (width, height), interpolation=cv2.INTER_AREA)
    return out


def _exif(image: Image.Image) -> tuple[int, str]:
    """Orientation and tags; damaged EXIF costs itself, never the picture."""
    try:
        exif = image.getexif()
        return imageexif.orientation(exif), imageexif.tags(exif)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - strangers' bytes: Pillow raises errors of many kinds here, and none of them matters
        return 1, "{}"


Result = TypeVar("Result")


def _guarded(kind: str, body: bytes, work: Callable[[], Result]) -> Result:
    """`work()`, with every error but MemoryError as Refused."""
    try:
        return work()
    except (MemoryError, Refused):
        raise
    except imagecolour.UnsupportedModeError as err:
        raise Refused("unsupported_format", str(err)) from err
    except Exception as err:  # strangers' bytes: decoders raise errors of every kind, and each is that picture's fate
        text = said(err)
        short = imagetype.ends_early(kind, body)
        if short is None:
            short = "truncated" in text.lower()
        raise Refused("truncated" if short else "undecodable", text) from err


def said(err: Exception) -> str:
    """A decoder's words on one line, without addresses of memory."""
    text = re.sub(r"\s*<[^<>]* at 0x[0-9a-fA-F]+>|\b0x[0-9a-fA-F]{6,}\b", "", " ".join(str(err).split()))
    return text[:200] or type(err).__name__
