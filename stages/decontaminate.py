"""decontaminate: which images are near-duplicates of an evaluation set's, so that a rule can drop them before a model is trained.

Compared are perceptual hashes, which other sizes and encodings hardly change; a crop changes them, and is found by its embedding, where the
evaluation set was scored by the same model. The stage marks; selection decides (`keep: "eval_distance IS NULL"`), so that another limit
costs no more than a selection.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from pydantic import Field, ValidationInfo, model_validator

from pipeline.errors import UserError
from pipeline.stage import Column, Stage, Strict, of_the_past
from stages.lib import imagedecode, imagetype, phash
from stages.lib.hamming import parse_hashes

CELLS = 1 << 22  # comparisons at a time: 32 MB of bit differences
BEGINNING = 4096  # bytes of a file by which its type is known
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
NAMES = ("key", "uid", "url")  # the columns of a Parquet file that name its images: the first that holds anything


class Options(Strict):
    """Evaluation sets, and how near is near."""

    sets: dict[str, str] = Field(min_length=1)
    """Name -> local path: a folder of images (subfolders included), of WebDataset tars, or of Parquet files with `phash` (and
    `image_embedding`), such as the shards of a run over the evaluation set; or one such file. Of shards whose Parquet has no `phash`, as
    img2dataset's, the tars are read. Images are hashed anew by every worker, some 5 ms each: make shards of a large set first."""
    max_distance: int = Field(8, ge=0, le=20)
    """Bits of 64 that may differ. At 8, other sizes and encodings are found; from 10 on, pictures that only look alike."""
    min_similarity: float | None = Field(None, gt=0, le=1)
    """Cosine of two image embeddings from which on a picture counts as found, crops being what it finds; null: not compared. Needs
    `scores.embeddings: true` before this stage, and sets in Parquet with embeddings of the same model."""

    @model_validator(mode="after")
    def _there(self, info: ValidationInfo) -> Self:
        for name, path in self.sets.items():
            if "/" in name:
                raise ValueError(f"sets.{name}: a set's name holds no /, which stands between it and an image's name")
            if not Path(path).exists() and not of_the_past(info):
                raise ValueError(f"sets.{name}: there is no {path}")
        return self


@dataclass(frozen=True)
class Known:
    """All evaluation images: names as SET/NAME, hashes (uint64, shape (n,), flat pictures left out), embeddings or None."""

    names: list[str]
    hashes: np.ndarray
    embedded: list[str]
    embeddings: np.ndarray | None


class Decontaminate(Stage):
    """Finds for each picture the nearest evaluation image within the limits."""

    name = "decontaminate"
    version = 3
    adds = {
        "eval_match": Column(pa.string(), "SET/NAME of the nearest evaluation image within the limits; null: none"),
        "eval_distance": Column(pa.int32(), "bits of 64 that differ from that image's perceptual hash; null: none within max_distance"),
    }

    class Config(Options):
        pass

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.files = [str(file) for path in self.config.sets.values() for file in _files(Path(path))]
        self.reads = {"phash": Column(pa.string(), "perceptual hash, 16 hexadecimal digits; null: not compared")}
        if self.config.min_similarity is not None:
            self.reads = {**self.reads, "image_embedding": Column(pa.list_(pa.float16()), "normalised embedding of the image")}
            told = "greatest cosine with an evaluation image's embedding; null: below min_similarity"
            self.adds = {**type(self).adds, "eval_similarity": Column(pa.float32(), told)}

    def check_ready(self) -> None:
        """Raises UserError for a set without an image, or without what is compared, as far as it shows without decoding a picture."""
        for name, path in self.config.sets.items():
            files = _files(Path(path))
            if not files:
                raise UserError(f"stages.decontaminate.sets.{name}: {path} holds no images, tars or Parquet files")
            if self.config.min_similarity is not None and {file.suffix.lower() for file in files} != {".parquet"}:
                raise UserError(
                    f"stages.decontaminate.sets.{name}: min_similarity needs Parquet with image_embedding, as shards with scores.embeddings"
                )
            for file in files:
                _check(name, file, self.config.min_similarity is not None)

    def open(self) -> None:
        self.check_ready()
        self._known = read(self.config.sets, embeddings=self.config.min_similarity is not None)

    def __call__(self, table: pa.Table) -> pa.Table:
        known, match = self._known, np.full(len(table), None, dtype=object)
        distance, at = nearest(table["phash"], known.hashes)
        near = distance <= self.config.max_distance
        match[near] = [known.names[place] for place in at[near].tolist()]
        table = table.append_column("eval_distance", pa.array(distance, pa.int32(), mask=~near))
        if known.embeddings is not None:
            self._check_width(table["image_embedding"], known.embeddings.shape[1])
            cosine, at = likest(table["image_embedding"], known.embeddings)
            alike = cosine >= self.config.min_similarity
            match[alike & ~near] = [known.embedded[place] for place in at[alike & ~near].tolist()]
            table = table.append_column("eval_similarity", pa.array(cosine, pa.float32(), mask=~alike))
        return table.add_column(table.schema.get_field_index("eval_distance"), "eval_match", pa.array(match, pa.string()))

    @staticmethod
    def _check_width(lists: pa.ChunkedArray, width: int) -> None:
        mine = next((len(one) for one in lists if one.is_valid), width)
        if mine != width:
            raise UserError(f"stages.decontaminate.sets: their embeddings have {width} values, those of this run {mine}; take one model")


def nearest(texts: pa.ChunkedArray, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each perceptual hash (16 hexadecimal digits or null) the least distance to any of `hashes`, and its place; 65 for a null."""
    distance, at = np.full(len(texts), 65, dtype=np.int32), np.zeros(len(texts), dtype=np.int64)
    have = np.flatnonzero(texts.is_valid().to_numpy())
    if not len(have) or not len(hashes):
        return distance, at
    mine = parse_hashes(texts.take(have).combine_chunks())
    step = max(1, CELLS // len(hashes))
    for start in range(0, len(mine), step):
        rows = have[start : start + step]
        bits = np.bitwise_count(mine[start : start + step, None] ^ hashes[None, :])
        at[rows] = bits.argmin(axis=1)
        distance[rows] = bits[np.arange(len(rows)), at[rows]]
    return distance, at


def likest(lists: pa.ChunkedArray, embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each embedding (list of float16 or null) the greatest cosine with any of `embeddings`, and that one's place; -1 for a null."""
    cosine, at = np.full(len(lists), -1, dtype=np.float32), np.zeros(len(lists), dtype=np.int64)
    have = np.flatnonzero(lists.is_valid().to_numpy())
    if len(have):
        mine = _matrix(lists.take(have))
        for start in range(0, len(mine), 1024):
            rows = have[start : start + 1024]
            found = mine[start : start + 1024] @ embeddings.T
            at[rows] = found.argmax(axis=1)
            cosine[rows] = np.minimum(found[np.arange(len(rows)), at[rows]], 1)  # float16 are of length 1 to three digits
    return cosine, at


def read(sets: dict[str, str], embeddings: bool) -> Known:
    """All sets. Raises UserError for a Parquet file without what is wanted, or an image that cannot be read."""
    names, hashes, embedded, vectors = list[str](), list[str](), list[str](), list[np.ndarray]()
    for name, path in sets.items():
        for file in _files(Path(path)):
            if file.suffix.lower() == ".parquet":
                table, labels = _table(name, file, embeddings)
                for label, text in zip(labels, table["phash"].to_pylist(), strict=True):
                    if text is not None:
                        names.append(label)
                        hashes.append(text)
                if embeddings and len(have := table["image_embedding"].drop_null()):
                    vectors.append(_matrix(have))
                    valid = table["image_embedding"].is_valid().to_pylist()
                    embedded += [label for label, there in zip(labels, valid, strict=True) if there]
                continue
            try:
                for inner, body in _bodies(file, Path(path)):
                    if (found := _hash(body, f"{file}: {inner}")) is not None:
                        names.append(f"{name}/{inner}")
                        hashes.append(found)
            except (OSError, tarfile.TarError) as err:
                raise UserError(f"stages.decontaminate.sets.{name}: {file} cannot be read: {err}") from err
    if embeddings and len(widths := {one.shape[1] for one in vectors}) != 1:
        said = f"embeddings of {' and '.join(map(str, sorted(widths)))} values; make them by one model" if widths else "no embedding"
        raise UserError(f"stages.decontaminate.sets: min_similarity is set, and they hold {said}")
    return Known(names, parse_hashes(pa.array(hashes, pa.string())), embedded, np.concatenate(vectors) if vectors else None)


def _files(path: Path) -> list[Path]:
    """What a set's path holds: its Parquet files if there are any, else its tars, else its images; for a Parquet file without hashes the
    tar beside it."""
    if path.is_file():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.is_file())
    kinds = ({".parquet"}, {".tar"}, SUFFIXES)
    files = next((files for kind in kinds if (files := [file for file in found if file.suffix.lower() in kind])), [])
    return [_hashed(file) if file.suffix.lower() == ".parquet" else file for file in files]


def _hashed(file: Path) -> Path:
    """A Parquet file, or where it has no hashes the tar beside it."""
    tar = file.with_suffix(".tar")
    try:
        return tar if tar.is_file() and "phash" not in ds.dataset(file).schema.names else file
    except (OSError, pa.ArrowException):
        return file  # it is told when it is read


def _check(name: str, file: Path, embeddings: bool) -> None:
    if file.suffix.lower() == ".parquet":
        _opened(name, file, embeddings)
    elif file.suffix.lower() != ".tar":
        try:
            with file.open("rb") as handle:
                kind = imagetype.sniff(handle.read(BEGINNING))
        except OSError as err:
            raise UserError(f"stages.decontaminate.sets.{name}: {file} cannot be read: {err}") from err
        if kind not in imagedecode.READERS:
            told = f"{kind} is not read" if kind else "no image by its first bytes"
            raise UserError(f"stages.decontaminate.sets.{name}: {file} cannot be compared: {told}")


def _opened(name: str, file: Path, embeddings: bool) -> tuple[ds.Dataset, list[str]]:
    """A Parquet file and its columns that are compared."""
    wanted = ["phash", *(["image_embedding"] if embeddings else [])]
    try:
        data = ds.dataset(file)
    except (OSError, pa.ArrowException) as err:
        raise UserError(f"stages.decontaminate.sets.{name}: {file} cannot be read: {err}") from err
    if lacking := [column for column in wanted if column not in data.schema.names]:
        raise UserError(
            f"stages.decontaminate.sets.{name}: {file} has no column {' and '.join(lacking)}; it has {', '.join(data.schema.names)}"
        )
    return data, wanted


def _table(name: str, file: Path, embeddings: bool) -> tuple[pa.Table, list[str]]:
    data, wanted = _opened(name, file, embeddings)
    by = [column for column in NAMES if column in data.schema.names]
    table = data.to_table([*wanted, *by])
    labels = pc.coalesce(*(table[column].cast(pa.string()) for column in by)).to_pylist() if by else range(len(table))
    return table, [f"{name}/{label if label is not None else at}" for at, label in enumerate(labels)]


def pictures(sets: dict[str, str], labels: set[str]) -> dict[str, bytes]:
    """Bytes of the evaluation images with these labels (SET/NAME), as far as they are at hand: a folder's, a tar's, and of Parquet
    files those in the tar beside one, as in shards. A set that is gone, or damaged by now, has none."""
    found: dict[str, bytes] = {}
    for name, path in sets.items():
        wanted = {label.removeprefix(f"{name}/") for label in labels if label.startswith(f"{name}/")}
        for file in _files(Path(path)) if wanted and Path(path).exists() else []:
            if not wanted:
                break
            keyed = file.suffix.lower() == ".parquet"
            source = file.with_suffix(".tar") if keyed else file
            if source.suffix.lower() != ".tar" and _inner(source, Path(path)) not in wanted:
                continue  # not read
            try:
                for inner, body in _bodies(source, Path(path)) if source.exists() else ():
                    if (own := inner.partition(".")[0] if keyed else inner) in wanted:
                        found[f"{name}/{own}"] = body
                        wanted.remove(own)
            except (OSError, tarfile.TarError):
                continue
    return found


def _inner(file: Path, root: Path) -> str:
    """An image's name within its set."""
    return file.name if file == root else file.relative_to(root).as_posix()


def _bodies(file: Path, root: Path) -> Iterator[tuple[str, bytes]]:
    """(name within the set, bytes) of the image, or of a tar's images one after the other by their names there."""
    if file.suffix.lower() != ".tar":
        yield _inner(file, root), file.read_bytes()
        return
    with tarfile.open(file, "r|") as archive:
        for info in archive:
            if info.isfile() and Path(info.name).suffix.lower() in SUFFIXES and (member := archive.extractfile(info)):
                yield info.name, member.read()


def _hash(body: bytes, where: str) -> str | None:
    """As the stage images makes it; None for a flat picture."""
    kind = imagetype.sniff(body)
    try:
        if kind is None:
            raise imagedecode.Refused("not_an_image", "no image by its first bytes")
        grey = phash.luminance(imagedecode.decode(imagedecode.header(kind, body), None).pixels)[None]
    except imagedecode.Refused as err:
        raise UserError(f"stages.decontaminate.sets: {where} cannot be compared: {err.reason}: {err.detail}") from err
    return None if phash.flat(grey)[0] else phash.phash(grey)[0]


def _matrix(lists: pa.ChunkedArray) -> np.ndarray:
    """float32, shape (n, width), of lists that are all of one length, none null."""
    values = lists.combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    out: np.ndarray = values.reshape(len(lists), -1)
    return out
