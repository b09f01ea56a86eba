"""images: a downloaded body becomes one upright RGB picture of the asked size, encoded once, with its facts; or gets its fate.

Decoding, colour, sizes, blur and hash are functions in stages/lib/image*.py and phash.py; this file holds the options, the order of the
rules and their reasons.
"""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from pipeline.errors import UserError
from pipeline.stage import KEPT, Column, Resources, Stage, Strict
from stages.images import engine_img2dataset
from stages.lib import imageblur, imagedecode, imageencode, imageresize, imagetype, phash
from stages.lib.imagedecode import Decoded, Refused
from stages.lib.imageresize import Filter, Mode, Plan

KINDS = {"jpg": "jpeg", "webp": "webp", "png": "png"}
Kind = Literal["jpeg", "png", "gif", "webp", "avif", "bmp", "tiff"]


class Options(Strict):
    """Sizes, crops and encodings as img2dataset's options of the same meaning. A rule that is not asked for drops nothing."""

    engine: Literal["shardmill", "img2dataset"] = "shardmill"
    """`img2dataset`: that package's own resizer (extra img2dataset), for the bytes that it would have stored."""
    size: int = Field(224, ge=1, le=16_383)
    """Pixels: the side that `mode` brings to this length."""
    mode: Mode = "center_crop"
    """`center_crop`: shorter side to size, the middle square · `border`: longer side to size, white around it to a square ·
    `keep_ratio`: shorter side to size · `keep_ratio_largest`: longer side to size · `no`: as it is."""
    only_if_bigger: bool = False
    """Leave pictures that needn't shrink entirely as they are: no enlarging, and no crop or border either, so sizes differ."""
    downscale: Filter | Literal["antialiased"] = "area"
    """OpenCV's filter for shrinking; or `antialiased`, Pillow's BICUBIC (extra resize). With it and with `area`, large pictures are first
    halved once to thrice (JPEGs by decoding them so)."""
    upscale: Filter = "lanczos"
    """OpenCV's filter for enlarging."""
    format: Literal["jpg", "webp", "png"] = "jpg"
    """What is stored."""
    quality: int = Field(95, ge=0, le=100)
    """jpg and webp: 1 to 100. png: compression, 0 to 9; it must be set for png."""
    skip_reencode: bool = False
    """Store the original bytes where they are of `format` already and nothing had to be done to the picture. They keep their metadata."""
    formats: tuple[Kind, ...] = ("jpeg", "png", "gif", "webp", "avif", "bmp", "tiff")
    """Types that are taken, judged by content. Of animated ones the first frame counts."""
    min_bytes: int | None = Field(None, ge=1)
    """Bytes of the body. LAION, COYO: 5000."""
    max_bytes: int | None = Field(None, ge=1)
    """Bytes of the body."""
    max_pixels: int = Field(89_478_485, ge=1, le=500_000_000)
    """Width times height, read before anything is decoded; also bounds what enlarging may make. Pillow's own limit."""
    min_side: int | None = Field(None, ge=1)
    """Pixels of the shorter side. DataComp, COYO: 200."""
    max_aspect: float | None = Field(None, ge=1)
    """Longer side by shorter side; equal passes. DataComp, COYO: 3."""
    exif: bool = True
    """Fill the column `exif`. GPS positions, serial numbers of bodies, maker notes and thumbnails are never taken."""
    blur_boxes: bool | Literal["found"] = False
    """Blur boxes: `true` those of the column `face_boxes`, given for the picture as stored, before EXIF turns it (as in DataComp); `found`
    those that the stage `faces` found, which has to stand before this one."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.format == "png" and self.quality > 9:
            raise ValueError(f"quality {self.quality} with format png, where it is the compression, 0 to 9; set quality: 6")
        if self.format != "png" and self.quality < 1:
            raise ValueError(f"quality 0 with format {self.format}: it is 1 to 100")
        if self.min_bytes and self.max_bytes and self.min_bytes > self.max_bytes:
            raise ValueError(f"min_bytes {self.min_bytes} is over max_bytes {self.max_bytes}: no picture could pass")
        if self.blur_boxes == "found" and self.engine != "shardmill":
            raise ValueError("blur_boxes: found wants engine shardmill; img2dataset's takes boxes of the picture before it is turned")
        if self.downscale == "antialiased" and self.engine != "shardmill":
            raise ValueError("downscale: antialiased wants engine shardmill; img2dataset knows OpenCV's filters alone")
        if not self.formats:
            raise ValueError("formats is empty: no picture could pass")
        return self


@dataclass
class Found:
    """One row's columns, filled as far as its picture came."""

    fate: str = KEPT
    detail: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    grey: np.ndarray | None = None  # what flatness and hash are made of, for a whole table at once


class Images(Stage):
    """Checks, decodes, turns upright, resizes and encodes each picture once, and measures its perceptual hash."""

    name = "images"
    version = 5
    reads = {"body": Column(pa.large_binary(), "the bytes as they were downloaded", stored=False)}
    adds = {
        "image": Column(pa.large_binary(), "the picture as it goes into the shards"),
        "format": Column(pa.string(), "its encoding: jpg, webp or png"),
        "width": Column(pa.int32(), "its pixels a row"),
        "height": Column(pa.int32(), "its rows"),
        "original_width": Column(pa.int32(), "pixels a row before resizing, upright"),
        "original_height": Column(pa.int32(), "rows before resizing, upright"),
        "original_format": Column(pa.string(), "what the body is by content: jpeg, png, gif, webp, avif, bmp, tiff, heic …"),
        "exif": Column(pa.string(), "EXIF tags as a JSON object, {} where there are none; null if not asked for"),
        "exif_orientation": Column(pa.int32(), "1 to 8; 1 where there is none; already applied to the picture"),
        "phash": Column(pa.string(), f"16 hex digits, {phash.ALGORITHM} of the upright original; null for flat pictures"),
        "flat": Column(pa.bool_(), f"nearly one brightness: deviation of 32 x 32 grey levels < {phash.FLAT_DEVIATION}"),
    }
    reasons = {
        "too_few_bytes": "body under min_bytes",
        "too_many_bytes": "body over max_bytes",
        "not_an_image": "no image by its first bytes: HTML, SVG, text, nothing",
        "unsupported_format": "an image of a type that is not in `formats`, or that no decoder here reads (HEIC, JPEG XL, float TIFF …)",
        "too_many_pixels": "the header claims more than max_pixels; nothing was decoded",
        "too_small": "shorter side under min_side",
        "aspect": "longer side by shorter side over max_aspect",
        "truncated": "the end of the file is missing",
        "undecodable": "damaged inside: the decoder's words stand in the detail",
        "result_too_large": "the stored picture would be larger than its format or max_pixels allows",
        "bad_boxes": "faces are to be blurred, and the boxes cannot be read or were not found out, so faces might stay visible",
    }
    resources = Resources(memory=2 << 30)

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._resize: engine_img2dataset.Img2dataset | None = None
        # Which column, and of which picture the boxes are shares: as stored, or upright.
        self._boxed = {True: "face_boxes", "found": "found_faces"}.get(self.config.blur_boxes)
        if self._boxed:
            boxes = Column(pa.string(), "JSON [[left, top, right, bottom] …], shares of width and height")
            self.reads = {**type(self).reads, self._boxed: boxes}

    class Config(Options):
        pass

    def check_ready(self) -> None:
        """Raises UserError where the engine's or the filter's package is missing."""
        if self.config.engine == "img2dataset":
            engine_img2dataset.require()
        if self.config.downscale == "antialiased" and importlib.util.find_spec("cykooz_resizer") is None:
            raise UserError(
                "stages.images.downscale: antialiased wants cykooz.resizer, which is not installed; make setup EXTRAS=resize, or "
                'pip install "shardmill[resize]"'
            )

    def open(self) -> None:
        import cv2

        self.check_ready()
        if self.config.engine == "img2dataset":
            self._resize = engine_img2dataset.Img2dataset(self.config)
        warnings.filterwarnings("ignore", module=r"PIL\.")  # on damaged metadata; what matters of it becomes a fate
        cv2.setNumThreads(1)  # a worker is one CPU; the engine runs several

    def __call__(self, table: pa.Table) -> pa.Table:
        """Row by row: each picture is a codec's work of milliseconds."""
        boxes = table[self._boxed].to_pylist() if self._boxed else [None] * len(table)
        found = [self._picture(body.as_py(), boxes[row]) for row, body in enumerate(table["body"])]
        _hash([one for one in found if one.grey is not None])
        columns = {
            "fate": pa.array([one.fate for one in found], pa.string()),
            "detail": pa.array([one.detail for one in found], pa.string()),
        }
        for name, column in self.adds.items():
            columns[name] = pa.array([one.facts.get(name) for one in found], column.type)
        return pa.table({"row": table["row"], **columns})

    def _picture(self, body: bytes | None, boxes: str | None) -> Found:
        out = Found()
        try:
            self._work(body or b"", boxes, out)
        except Refused as err:
            out.fate, out.detail = f"{self.name}:{err.reason}", err.detail
            out.facts.pop("image", None)
        return out

    def _work(self, body: bytes, boxes_text: str | None, out: Found) -> None:
        """Fills `out` as far as it comes. Raises Refused."""
        config, facts = self.config, out.facts
        kind = self._kind(body, facts)
        head = imagedecode.header(kind, body)
        self._size_rules(head.width, head.height)
        boxes = self._boxes(boxes_text)
        stored = imageresize.plan(head.width, head.height, config.size, config.mode, config.only_if_bigger)
        self._result_rules(stored)
        facts["format"] = config.format
        if self._resize is not None:
            self._by_img2dataset(self._resize(body, boxes), head, out)
            return
        margin = imageresize.ENOUGH.get(config.downscale) if stored.shrinks else None
        decoded = imagedecode.decode(head, stored.scaled, margin) if margin else imagedecode.decode(head, None)
        plan = imageresize.plan(decoded.width, decoded.height, config.size, config.mode, config.only_if_bigger)
        scaled = decoded.pixels
        if plan.resizes:
            scaled = imageresize.scale(scaled, plan.scaled, config.downscale if plan.shrinks else config.upscale, decoded.extent)
        self._measure(decoded, scaled if margin and min(plan.scaled) >= phash.ENOUGH else decoded.pixels, out)
        facts["width"], facts["height"] = plan.stored
        if config.blur_boxes != "found":
            boxes = imageblur.turned(boxes, decoded.orientation)
        untouched = decoded.plain and not plan.resizes and not boxes and kind == KINDS[config.format]
        facts["image"] = body if config.skip_reencode and untouched else self._stored(scaled, plan, boxes)

    def _kind(self, body: bytes, facts: dict[str, Any]) -> str:
        config = self.config
        if config.min_bytes is not None and len(body) < config.min_bytes:
            raise Refused("too_few_bytes", f"{len(body)} bytes < {config.min_bytes}")
        if config.max_bytes is not None and len(body) > config.max_bytes:
            raise Refused("too_many_bytes", f"{len(body)} bytes > {config.max_bytes}")
        kind = imagetype.sniff(body)
        facts["original_format"] = kind
        if kind is None:
            raise Refused("not_an_image", f"{len(body)} bytes, begin with {body[:12].hex(' ')}" if body else "no bytes")
        if kind not in config.formats:
            raise Refused("unsupported_format", kind)
        return kind

    def _size_rules(self, width: int, height: int) -> None:
        """On the size as stored, which turning does not change for any of them."""
        config = self.config
        short, long = sorted((width, height))
        if width * height > config.max_pixels:
            raise Refused("too_many_pixels", f"{width} x {height} = {width * height} pixels > {config.max_pixels}")
        if config.min_side is not None and short < config.min_side:
            raise Refused("too_small", f"{width} x {height}: {short} pixels < {config.min_side}")
        if config.max_aspect is not None and long / short > config.max_aspect:
            raise Refused("aspect", f"{width} x {height}: {long / short:.3f} > {config.max_aspect:g}")

    def _result_rules(self, plan: Plan) -> None:
        """Before enlarging: a strip of 5000 x 3 pixels would become 426,667 x 256."""
        for width, height in (plan.scaled, plan.stored):
            if width * height > self.config.max_pixels:
                raise Refused("result_too_large", f"{width} x {height} = {width * height} pixels > {self.config.max_pixels}")
        if (side := max(plan.stored)) > (most := imageencode.MAX_SIDE[self.config.format]):
            raise Refused("result_too_large", f"{side} pixels > {most}, the most that {self.config.format} holds")

    def _boxes(self, text: str | None) -> list[imageblur.Box]:
        if text is None and self.config.blur_boxes == "found":
            raise Refused("bad_boxes", "the stage faces could not look at the picture (its max_pixels?)")
        try:
            return imageblur.boxes(text)
        except (ValueError, RecursionError) as err:
            raise Refused("bad_boxes", str(err)[:200]) from err

    def _by_img2dataset(self, made: engine_img2dataset.Resized, head: imagedecode.Header, out: Found) -> None:
        facts = out.facts
        facts["width"], facts["height"], facts["image"] = made.width, made.height, made.image
        orientation, tags = imagedecode.exif(head)
        decoded = Decoded(made.pixels, made.original_width, made.original_height, orientation, tags, plain=False)
        self._measure(decoded, decoded.pixels, out)

    def _measure(self, decoded: Decoded, hashed: np.ndarray, out: Found) -> None:
        facts = out.facts
        facts["original_width"], facts["original_height"] = decoded.width, decoded.height
        facts["exif"] = decoded.exif if self.config.exif else None
        facts["exif_orientation"] = decoded.orientation
        out.grey = phash.luminance(hashed)

    def _stored(self, scaled: np.ndarray, plan: Plan, boxes: list[imageblur.Box]) -> bytes:
        pixels = imageresize.fit(imageblur.blur(scaled, boxes), plan.stored)
        return imageencode.encode(pixels, self.config.format, self.config.quality)


def _hash(found: list[Found]) -> None:
    if not found:
        return
    greys = np.stack([one.grey for one in found if one.grey is not None])
    for one, flat, hashed in zip(found, phash.flat(greys).tolist(), phash.phash(greys), strict=True):
        one.facts |= {"flat": flat, "phash": None if flat else hashed}
