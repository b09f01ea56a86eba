"""Shards: img2dataset's files to the letter, so that webdataset, open_clip, HF datasets, DALI and wids read them as they are.

A shard NNNNN is NNNNN.tar (KEY.jpg, KEY.json, KEY.txt of each sample; of a clip KEY.000.jpg, KEY.001.jpg … and as asked KEY.mp4, KEY.flac),
NNNNN.parquet (a line a row, also for dropped ones),
NNNNN_stats.json and, if asked, NNNNN.idx for DALI. Images are written as they are stored, never encoded again. All bytes
but the three times in the statistics are a function of the rows.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from pipeline.errors import ContractError
from pipeline.stage import KEPT, MEDIA, Column, Resources, Stage, Strict
from stages.lib.bodies import list_views, views
from stages.shards.listing import as_json, listing
from stages.shards.tar import dali_index, write_tar

SUFFIXES = {"jpg", "webp", "png"}
SOUNDS = {"flac": b"fLaC", "wav": b"RIFF"}  # and how they begin
TIMES = ("duration", "start_time", "end_time")  # of the statistics: all that differs between runs
BATCH = 1000  # samples whose JSON is held at once


class Options(Strict):
    samples: int = Field(10_000, ge=1)
    """About so many samples a shard, never more; `order: input` counts dropped rows too."""
    order: Literal["shuffled", "input"] = "shuffled"
    """`shuffled`: kept samples in random order (run.seed), shards equal to one sample; `input`: img2dataset's own numbering."""
    multiple_of: int = Field(1, ge=1)
    """The number of shards is a multiple of this (the trainer's ranks times its workers)."""
    caption: Literal["cleaned", "source"] = "cleaned"
    """Which caption is the sample's text: as the captions stage left it, or as the input has it."""
    idx: bool = False
    """Write an index for NVIDIA DALI beside each tar."""
    whole_json: bool = False
    """Each sample's JSON holds every column of the Parquet, as video2dataset's stages ask of what they read; else lists, structs and what
    is often unknown stand in the Parquet alone, since HF datasets infers types from the first samples."""

    @model_validator(mode="after")
    def _input_order(self) -> Options:
        if self.order == "input" and self.multiple_of > 1:
            raise ValueError("order input has img2dataset's number of shards; multiple_of needs order shuffled")
        return self


class Shards(Stage):
    """Writes the shards: tar, Parquet and statistics as img2dataset, and indices for open_clip, wids and DALI."""

    name = "shards"
    version = 2
    shape = "sink"
    reads = {
        "uid": Column(pa.string(), "of the input row"),
        "url": Column(pa.string(), "of the input row"),
        "format": Column(pa.string(), "jpg, webp or png: the suffix of the image, or of a clip's frames; null where there are none"),
    }
    resources = Resources(memory=3 << 30)

    class Config(Options):
        pass

    def key_sql(self, shard: str, index: str, total: int) -> str:
        """SQL of a sample's key out of its shard's number and its place there, for `total` shards. See `keys`."""
        digits, places = shard_digits(total), index_digits(self.config.samples)
        return f"printf('%0{digits}d%0{places}d', {shard}, {index})" if places else f"printf('%0{digits}d', {shard})"


@dataclass(frozen=True)
class FileFacts:
    """A file as it was written."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardFacts:
    """What was written of one shard. `files`: all its files, the statistics last, which are None since they hold times.

    `bytes` and `sha256` are the tar's. `taken_over`: written by a former key, to which a retry appended; of rows that were dropped
    then it tells what was known then.
    """

    shard: int
    name: str
    files: dict[str, FileFacts | None]
    samples: int
    bytes: int
    sha256: str
    taken_over: bool = False


def facts_of(handle: BinaryIO) -> FileFacts:
    """Reads an open file to its end."""
    digest = hashlib.file_digest(handle, "sha256").hexdigest()  # type: ignore[arg-type]
    return FileFacts(handle.tell(), digest)


def shard_digits(total: int) -> int:
    """How many digits a shard's name has: five as img2dataset's, or what the last of `total` shards needs."""
    return max(5, len(str(total - 1)))


def index_digits(samples: int) -> int:
    """How many digits a sample's place has in its key: img2dataset's ceil(log10(samples))."""
    return len(str(samples - 1)) if samples > 1 else 0


def keys(shard: int, index: pa.Array, samples: int, total: int) -> pa.Array:
    """The samples' keys: img2dataset's shard * 10^m + index, zero-padded; null where `index` (integers) is null."""
    stem, places = f"{shard:0{shard_digits(total)}d}", index_digits(samples)
    return pa.array([None if at is None else stem + (f"{at:0{places}d}" if places else "") for at in index.to_pylist()], pa.string())


def write_shard(folder: Path, shard: int, rows: pa.Table, config: Options, total: int) -> ShardFacts:
    """Writes the files of one shard into `folder`.

    `rows`: shard's rows in their order, kept ones with `image` (or `frames`: a list; `clip` and `sound` as far as there are such) and
    `format`; `index` is the place in the shard, null for a dropped row without one. `total`: number of shards. Raises ContractError for a
    kept row without them.
    """
    began = time.time()
    stem = f"{shard:0{shard_digits(total)}d}"
    caption = "source_caption" if config.caption == "source" or "caption" not in rows.column_names else "caption"
    table = listing(rows, keys(shard, rows["index"], config.samples, total), caption)
    digest = hashlib.sha256()
    lines = write_tar(folder / f"{stem}.tar", _samples(table, rows, config.whole_json), digest.update)
    pq.write_table(table, folder / f"{stem}.parquet", compression="zstd", row_group_size=1 << 16)
    if config.idx:
        (folder / f"{stem}.idx").write_text(dali_index(lines), encoding="ascii")
    files = {f"{stem}.tar": FileFacts((folder / f"{stem}.tar").stat().st_size, digest.hexdigest())}
    for name in (f"{stem}.parquet", *([f"{stem}.idx"] if config.idx else [])):
        with (folder / name).open("rb") as handle:
            files[name] = facts_of(handle)
    ended = time.time()
    stats = statistics(table, dict(zip(TIMES, (ended - began, began, ended), strict=True)))
    (folder / f"{stem}_stats.json").write_text(json.dumps(stats, indent=4), encoding="ascii")
    tar = files[f"{stem}.tar"]
    return ShardFacts(shard, f"{stem}.tar", {**files, f"{stem}_stats.json": None}, len(lines), tar.bytes, tar.sha256)


def _samples(table: pa.Table, rows: pa.Table, whole_json: bool) -> Iterator[tuple[str, Mapping[str, bytes | memoryview]]]:
    """(key, {suffix: bytes}) of each kept one of `rows`; `table` is their listing, in the same order."""
    media = {name: list_views(rows[name]) if name == "frames" else views(rows[name]) for name in MEDIA if name in rows.column_names}
    forms = [name for name in ("row", "format", "sound_format") if name in rows.column_names]
    kept = np.flatnonzero(pc.equal(rows["fate"], KEPT).to_numpy())
    for start in range(0, len(kept), BATCH):
        places = kept[start : start + BATCH]
        batch = table.take(places)
        told = rows.select(forms).take(places).to_pydict()
        columns = (
            batch["key"].to_pylist(),
            as_json(batch, whole_json),
            pc.fill_null(batch["caption"], "").to_pylist(),
            told["row"],
            *(told.get(name, [None] * len(batch)) for name in ("format", "sound_format")),
            places.tolist(),
        )
        for key, meta, text, row, form, sound_form, at in zip(*columns, strict=True):
            members = _media({name: bodies[at] for name, bodies in media.items()}, form, sound_form)
            if key is None or members is None:
                raise ContractError(f"row {row} is kept, but has key {key}, or no image, or format {form}")
            yield key, {**members, "json": meta.encode("ascii"), "txt": text.encode()}


def _media(found: dict[str, Any], form: str | None, sound_form: str | None) -> dict[str, memoryview] | None:
    """{suffix: bytes} of a sample; of frames each has a number of three digits before its suffix. None where one is lacking."""
    if any(one is None for one in found.values()) or ("sound" in found and sound_form not in SOUNDS):
        return None
    suffixed: dict[str, memoryview] = {"mp4": found["clip"]} if "clip" in found else {}
    if "sound" in found and sound_form:
        suffixed[sound_form] = found["sound"]
    if "image" in found:
        suffixed[str(form)] = found["image"]
    pictures = found.get("frames", [])
    suffixed |= {f"{n:03d}.{form}": one for n, one in enumerate(pictures)}
    if form not in SUFFIXES and (pictures or "image" in found):
        return None
    return suffixed or None


def statistics(table: pa.Table, times: Mapping[str, float] = MappingProxyType({})) -> dict[str, Any]:
    """img2dataset's statistics of a shard's Parquet (columns `status` and `fate` are enough), with its TIMES where given.

    `filtered` are rows that our own rules dropped. Failures are counted by fate, not by their texts.
    """
    status, fates = _counted(table["status"]), _counted(pc.if_else(pc.equal(table["fate"], KEPT), "success", table["fate"]))
    names = {"successes": "success", **{name: name for name in ("failed_to_download", "failed_to_resize", "filtered")}}
    return {"count": len(table), **{name: status.get(said, 0) for name, said in names.items()}, **times, "status_dict": fates}


def _counted(texts: pa.ChunkedArray) -> dict[str, int]:
    """How often each text stands there, sorted by the texts."""
    return dict(sorted((entry["values"] or "", entry["counts"]) for entry in pc.value_counts(texts).to_pylist()))


def finish(facts: list[dict[str, Any]], run_name: str) -> dict[str, Any]:
    """The files beside the shards, by name: sizes.json for open_clip, shardindex.json for wids."""
    facts = sorted(facts, key=lambda shard: int(shard["shard"]))
    listed = [{"url": shard["name"], "nsamples": shard["samples"], "filesize": shard["bytes"]} for shard in facts]
    index = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": run_name, "shardlist": listed}
    return {"sizes.json": {shard["name"]: shard["samples"] for shard in facts}, "shardindex.json": index}


def manifest(key: str, facts: list[dict[str, Any]]) -> dict[str, Any]:
    """What a trainer needs to know of the shards of `key`: each one's name, bytes, sha256 and samples, and their sum."""
    facts = sorted(facts, key=lambda shard: int(shard["shard"]))
    shards = [{name: shard[name] for name in ("name", "bytes", "sha256", "samples")} for shard in facts]
    return {"key": key, "shards": shards, "samples": sum(shard["samples"] for shard in shards)}
