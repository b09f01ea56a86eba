"""What was noted of written shards, and a tar read again, as a trainer would, and compared with its Parquet."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from stages.lib.imagetype import sniff
from stages.shards import SOUNDS, SUFFIXES, TIMES, FileFacts, ShardFacts, statistics

COLUMNS = ("key", "status", "fate", "width", "height", "caption")  # of the Parquet that are compared
CLIPS = ("frame_times", "clip_frames", "sound_format")  # and of clips these, as far as there are such


@dataclass(frozen=True)
class Line:
    """A shard in the manifest."""

    name: str
    bytes: int
    sha256: str
    samples: int

    @property
    def stem(self) -> str:
        return self.name.removesuffix(".tar")


@dataclass(frozen=True)
class Manifest:
    """shards/manifest.json."""

    key: str
    shards: list[Line]
    samples: int

    @property
    def bytes(self) -> int:
        return sum(line.bytes for line in self.shards)


@dataclass(frozen=True)
class Noted:
    """done.json of the shards."""

    shards: list[ShardFacts]
    beside: dict[str, FileFacts]


@dataclass
class Read:
    """What a tar held: its bytes, its samples' keys, and (key, fault); the key is "" for a fault of the tar itself."""

    file: FileFacts
    keys: set[str] = field(default_factory=set)
    faults: list[tuple[str, str]] = field(default_factory=list)


def read_tar(handle: BinaryIO, stem: str, listing: pa.Table | None) -> Read:
    """Reads the tar of shard `stem` once, to its last byte; without `listing` (COLUMNS) its samples are compared with nothing."""
    hashed, out = _Hashed(handle), Read(FileFacts(0, ""))
    listed = None
    if listing is not None:
        listed = {row["key"]: row for row in listing.filter(pc.equal(listing["status"], "success")).to_pylist()}
    try:
        for sample in _samples(hashed):
            key = sample["__key__"]
            faults = [] if key.startswith(stem) else [f"does not begin with its shard's number {stem}"]
            faults += ["stands twice"] if key in out.keys else []
            faults += _sample_faults(sample, listed) if listed is not None else []
            out.faults += [(key, fault) for fault in faults]
            out.keys.add(key)
    except (tarfile.TarError, ValueError, EOFError) as err:
        out.faults.append(("", f"cannot be read to its end: {_text(err)}"))
    while hashed.read(1 << 20):
        pass
    out.file = FileFacts(hashed.bytes, hashed.sha256.hexdigest())
    if lacking := set(listed or ()) - out.keys:
        out.faults.append(("", f"lacks {len(lacking)} samples that its Parquet lists, the first is {min(lacking)}"))
    return out


def statistics_faults(stats: dict[str, Any], listing: pa.Table) -> list[str]:
    """Where _stats.json does not count what the Parquet lists; its times may be any."""
    counted = statistics(listing)
    names = [name for name in {**counted, **stats} if name not in TIMES and stats.get(name) != counted.get(name)]
    return [f"{name} is {stats.get(name)}, the Parquet has {counted.get(name)}" for name in names]


class _Hashed:
    """A reader that hashes and counts what goes through it, so that a shard is read once and never held whole."""

    def __init__(self, handle: BinaryIO) -> None:
        self.handle, self.sha256, self.bytes = handle, hashlib.sha256(), 0

    def read(self, size: int = -1) -> bytes:
        data = self.handle.read(size)
        self.sha256.update(data)
        self.bytes += len(data)
        return data


def _samples(stream: _Hashed) -> Iterator[dict[str, Any]]:
    """The samples of a tar, read and grouped by webdataset itself."""
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    yield from group_by_keys({**file, "__url__": ""} for file in tar_file_iterator(stream))


def _sample_faults(sample: dict[str, Any], listed: dict[str, Any]) -> Iterator[str]:
    row = listed.get(sample["__key__"])
    if row is None:
        yield "is not in the Parquet, or not as a success"
        return
    if sample.get("txt") != (row["caption"] or "").encode():
        yield "its txt is not the Parquet's caption"
    images = {suffix: body for suffix, body in sample.items() if suffix.rpartition(".")[2] in SUFFIXES}
    wanted = range(len(row["frame_times"])) if "frame_times" in row else None
    numbers = sorted(suffix.partition(".")[0] for suffix in images)
    yield from _clip_faults(sample, row)
    if not images and (wanted is None or len(wanted)):
        yield "has no image"
    elif wanted is not None and numbers != [f"{n:03d}" for n in wanted]:
        yield f"has frames {', '.join(numbers)}, the Parquet times of {len(wanted)}"
    for suffix, image in sorted(images.items()):
        yield from _image_faults(image, row, "image" if wanted is None else f"frame {suffix.partition('.')[0]}")


def _clip_faults(sample: dict[str, Any], row: dict[str, Any]) -> Iterator[str]:
    """Of its film and its sound: whether they are there, and the film has the frames that the Parquet counts."""
    if row.get("clip_frames") is not None:
        found = _film_frames(sample.get("mp4", b""))
        if found != row["clip_frames"]:
            yield f"its mp4 has {'no' if found is None else found} frames, the Parquet says {row['clip_frames']}"
    kind = row.get("sound_format")
    if kind is not None and sample.get(kind, b"")[:4] != SOUNDS.get(kind):
        yield f"has no sound as {kind}"


def _film_frames(body: bytes) -> int | None:
    """How many frames a film holds, by its packets; None of what cannot be opened."""
    import av

    try:
        with av.open(io.BytesIO(body), "r", format="mp4") as film:
            return sum(1 for packet in film.demux(film.streams.video[0]) if packet.size)
    except (av.error.FFmpegError, IndexError):
        return None


def _image_faults(image: bytes, row: dict[str, Any], name: str) -> Iterator[str]:
    from stages.lib.imagedecode import READERS

    reader = READERS.get(sniff(image) or "")
    if reader is None:
        yield f"its {name} cannot be decoded: its first bytes are those of no picture"
        return
    try:
        with reader(io.BytesIO(image)) as opened:  # and not Image.open, which judges sizes by a limit of its own
            opened.load()
            size = opened.size
    except MemoryError:
        raise
    except Exception as err:  # noqa: BLE001 - a decoder raises anything on bytes that are not its format's
        yield f"its {name} cannot be decoded: {_text(err)}"
        return
    if size != (row["width"], row["height"]):
        yield f"{name} is {size}, the Parquet says {(row['width'], row['height'])}"


def _text(err: Exception) -> str:
    return f"{type(err).__name__}: {' '.join(str(err).split())}"[:200]
