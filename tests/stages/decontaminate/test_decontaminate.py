"""Evaluation images found again by hash and by embedding, in folders, tars and Parquet."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import pipeline
from pipeline.catalog import entry
from pipeline.errors import UserError
from pipeline.keys import ingredients


def picture(seed: int, side: int = 256) -> Image.Image:
    """Smooth noise: as different from others of its kind as photographs are."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def hashes(bodies: list[bytes]) -> list[str | None]:
    out: list[str | None] = pipeline.use("images", size=64)(pa.table({"body": pa.array(bodies, pa.large_binary())}))["phash"].to_pylist()
    return out


def marked(sets: dict[str, str], phashes: list[str | None], **options: Any) -> list[tuple[str | None, int | None]]:
    table = pipeline.use("decontaminate", sets=sets, **options)(pa.table({"phash": pa.array(phashes, pa.string())}))
    return list(zip(table["eval_match"].to_pylist(), table["eval_distance"].to_pylist(), strict=True))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "eval" / "deep").mkdir(parents=True)
    (tmp_path / "eval" / "a.jpg").write_bytes(encoded(picture(1)))
    (tmp_path / "eval" / "deep" / "b.png").write_bytes(encoded(picture(2), "PNG"))
    (tmp_path / "eval" / "flat.png").write_bytes(encoded(Image.new("RGB", (50, 50), (9, 9, 9)), "PNG"))
    (tmp_path / "eval" / "notes.txt").write_text("no image")
    return tmp_path / "eval"


def test_other_sizes_and_encodings_are_found_in_a_folder_and_others_are_not(folder: Path) -> None:
    bodies = [encoded(picture(1).resize((120, 120)), quality=50), encoded(picture(2), "WEBP", quality=60), encoded(picture(3)), b"no image"]
    bodies.append((folder / "flat.png").read_bytes())
    found = marked({"coco": str(folder)}, hashes(bodies))
    assert [match for match, _ in found] == ["coco/a.jpg", "coco/deep/b.png", None, None, None]
    assert all((distance is None) == (match is None) for match, distance in found)
    assert marked({"coco": str(folder)}, hashes(bodies), max_distance=0)[2:] == [(None, None)] * 3


def test_sets_in_tars_and_in_parquet(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for name, body in {"000.jpg": encoded(picture(5)), "000.txt": b"words"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    (made,) = hashes([encoded(picture(6))])
    pq.write_table(pa.table({"key": ["k0", None], "phash": [made, None]}), tmp_path / "set.parquet")
    sets = {"tars": str(tmp_path / "00000.tar"), "table": str(tmp_path / "set.parquet"), "files": str(folder)}
    found = marked(sets, hashes([encoded(picture(at)) for at in (5, 6, 1, 7)]))
    assert found == [("tars/000.jpg", 0), ("table/k0", 0), ("files/a.jpg", 0), (None, None)]


def test_crops_are_found_by_embedding(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    known = rng.normal(size=(3, 8))
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    type_ = pa.list_(pa.float16())
    pq.write_table(
        pa.table(
            {"key": list("abc"), "phash": pa.nulls(3, pa.string()), "image_embedding": pa.array(list(known.astype(np.float16)), type_)}
        ),
        tmp_path / "set.parquet",
    )
    stage = pipeline.use("decontaminate", sets={"s": str(tmp_path / "set.parquet")}, min_similarity=0.95)
    mine = pa.array([known[1].astype(np.float16), -known[1].astype(np.float16), None], type_)
    table = stage(pa.table({"phash": pa.nulls(3, pa.string()), "image_embedding": mine}))
    assert table["eval_match"].to_pylist() == ["s/b", None, None]
    assert table["eval_similarity"].to_pylist() == [pytest.approx(1, abs=2e-3), None, None]
    assert table["eval_similarity"][0].as_py() <= 1


def test_what_cannot_be_compared_is_refused_before_the_run(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no"):
        entry("decontaminate", {"sets": {"x": str(tmp_path / "none")}})
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        entry("decontaminate", {"sets": {"x": str(tmp_path / "empty")}}).stage.check_ready()  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="needs Parquet with image_embedding"):
        entry("decontaminate", {"sets": {"x": str(folder)}, "min_similarity": 0.9}).stage.check_ready()  # type: ignore[attr-defined]
    (folder / "a.jpg").write_bytes(b"<html>no picture</html>")
    with pytest.raises(UserError, match=r"a\.jpg cannot be compared: no image"):
        entry("decontaminate", {"sets": {"x": str(folder)}}).stage.check_ready()  # type: ignore[attr-defined]
    pq.write_table(pa.table({"uid": ["a"]}), tmp_path / "bare.parquet")
    with pytest.raises(UserError, match="has no column phash"):
        entry("decontaminate", {"sets": {"x": str(tmp_path / "bare.parquet")}}).stage.check_ready()  # type: ignore[attr-defined]
    (folder / "a.jpg").write_bytes(b"\xff\xd8\xffbroken")
    with pytest.raises(UserError, match=r"a\.jpg cannot be compared"):
        entry("decontaminate", {"sets": {"x": str(folder)}}).stage.open()


def test_another_image_in_a_set_is_another_key(folder: Path) -> None:
    before = ingredients([entry("decontaminate", {"sets": {"x": str(folder)}})])
    (folder / "a.jpg").write_bytes(encoded(picture(9)))
    assert ingredients([entry("decontaminate", {"sets": {"x": str(folder)}})]) != before


def embedding_set(path: Path, vectors: list[Any]) -> dict[str, str]:
    names, hashes = [str(n) for n in range(len(vectors))], pa.nulls(len(vectors), pa.string())
    pq.write_table(pa.table({"key": names, "phash": hashes, "image_embedding": pa.array(vectors, pa.list_(pa.float16()))}), path)
    return {path.stem: str(path)}


def test_embeddings_of_another_model_are_told_of_and_no_row_is_blamed(tmp_path: Path) -> None:
    half = np.float16
    sets = embedding_set(tmp_path / "a.parquet", [np.ones(8, half), None])
    mine = pa.table({"phash": pa.nulls(2, pa.string()), "image_embedding": pa.array([None, np.ones(4, half)], pa.list_(pa.float16()))})
    with pytest.raises(UserError, match="have 8 values, those of this run 4"):
        pipeline.use("decontaminate", sets=sets, min_similarity=0.9)(mine)
    more = embedding_set(tmp_path / "b.parquet", [np.ones(4, half)])
    with pytest.raises(UserError, match="embeddings of 4 and 8 values"):
        entry("decontaminate", {"sets": {**sets, **more}, "min_similarity": 0.9}).stage.open()
    with pytest.raises(UserError, match="they hold no embedding"):
        entry("decontaminate", {"sets": embedding_set(tmp_path / "c.parquet", [None, None]), "min_similarity": 0.9}).stage.open()


def test_shards_whose_parquet_has_no_hashes_are_read_by_their_tars(tmp_path: Path) -> None:
    """As img2dataset's and clip_benchmark's."""
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard:05d}.tar", "w") as tar:
            body = encoded(picture(20 + shard))
            info = tarfile.TarInfo(f"{shard:05d}0000.jpg")
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
        pq.write_table(pa.table({"key": [f"{shard:05d}0000"], "url": ["http://x.test/"]}), tmp_path / f"{shard:05d}.parquet")
    found = marked({"s": str(tmp_path)}, hashes([encoded(picture(20)), encoded(picture(21)), encoded(picture(22))]))
    assert [match for match, _ in found] == ["s/000000000.jpg", "s/000010000.jpg", None]


def test_rows_of_shards_that_were_dropped_have_names_of_their_own(tmp_path: Path) -> None:
    """Shards list them too, with a null for a key; a place in the file would stand for one row of each shard."""
    bodies = [encoded(picture(30 + n)) for n in range(4)]
    mine = hashes(bodies)
    for shard in range(2):
        told = {"key": [f"0000{shard}", None], "uid": [f"a{shard}", f"b{shard}"], "phash": mine[2 * shard : 2 * shard + 2]}
        pq.write_table(pa.table(told), tmp_path / f"{shard:05d}.parquet")
    assert [match for match, _ in marked({"s": str(tmp_path)}, mine)] == ["s/00000", "s/b0", "s/00001", "s/b1"]


@pytest.mark.parametrize("name", ["x.tar", "x.parquet"])
def test_a_damaged_set_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"damaged" * 100)
    with pytest.raises(UserError, match=rf"sets\.s: .*{name} cannot be read"):
        entry("decontaminate", {"sets": {"s": str(tmp_path)}}).stage.open()
