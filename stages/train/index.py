"""Where the samples of a tar begin, so that any run of them is one range of bytes.

DALI's index beside the shard tells it; without one, a pass over the tar's headers does (on an object store: the whole tar is
read once), and is kept under `root`, so that no process of a machine has to do it again.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import re
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import numpy as np

from pipeline.errors import UserError
from pipeline.storage import Store

BLOCK = 512  # bytes: a tar's header, and what its members are padded to
STREAM_BYTES = 8 << 20  # of one request while a tar is read through
META = re.compile(r"__[^/]*__($|/)")  # what webdataset passes over
DAMAGED = (tarfile.TarError, ValueError, OverflowError, EOFError)  # what tarfile raises for headers that make no sense


def default_root() -> str:
    """The user's cache: $XDG_CACHE_HOME/shardmill/index."""
    return str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shardmill" / "index")


@dataclass(frozen=True)
class Index:
    """Of one tar. `bounds`, int64 (samples + 1,): sample i is the bytes from bounds[i] to bounds[i + 1], padding included.

    `fault`: where and how the tar is damaged, so that samples may be missing; "" where its headers were read to its end, or none had to be.
    """

    bounds: np.ndarray
    fault: str = ""


@dataclass(frozen=True)
class Indices:
    """The indices of shards; `root`: the folder (path or fsspec URL) that keeps those that were made."""

    root: str = field(default_factory=default_root)
    options: Mapping[str, Any] = field(default_factory=dict)

    def of(self, url: str, size: int, mark: str, options: Mapping[str, Any]) -> Index:
        """The index of the tar at `url`. `size`: its bytes, `mark`: what changes when they do.

        A tar that ends too early has the samples that are whole.
        """
        store = Store(self.root, dict(self.options))
        name = f"{hashlib.sha256(f'{url} {size} {mark}'.encode()).hexdigest()[:32]}.npz"
        found = _kept(store, name)
        if found is not None:
            return found
        try:
            with _alone(store, name):
                found = _kept(store, name)
                return self._made(store, name, url, size, options) if found is None else found
        except PermissionError as err:
            raise UserError(f"the index of {url} cannot be kept in {self.root}, or it cannot be read: {err}") from err

    def _made(self, store: Store, name: str, url: str, size: int, options: Mapping[str, Any]) -> Index:
        bounds = _beside(url, size, options)
        found = scan(url, options) if bounds is None else Index(bounds)
        packed = io.BytesIO()
        np.savez(packed, bounds=found.bounds, fault=np.asarray(found.fault))
        store.write(name, packed.getvalue())
        return found


def scan(url: str, options: Mapping[str, Any]) -> Index:
    """The index by a pass over the tar's headers; samples are what webdataset takes for them: neighbours with one key."""
    from webdataset.tariterators import base_plus_ext

    bounds, key, end, fault = [0], None, 0, ""
    with opened(url, options) as handle:
        size = handle.seek(0, 2)
        handle.seek(0)
        try:
            for info in (members := _Members(handle)):
                prefix, _ = base_plus_ext(info.name)
                if prefix is None or not info.isreg() or META.match(info.name):
                    continue
                if key is not None and prefix != key:
                    bounds.append(end)
                if info.size < 0 or info.offset_data + info.size > size:
                    return Index(np.asarray(bounds, np.int64), f"cut off at byte {size}, within a file")  # this sample is not whole
                key, end = prefix, info.offset_data + -(-info.size // BLOCK) * BLOCK
            fault = _end(handle, members.at)
        except DAMAGED as err:  # what stands before is whole
            fault = f"damaged from byte {end} on: {' '.join(str(err).split())}"
    return Index(np.asarray(bounds if key is None else [*bounds, min(end, size)], np.int64), fault)


def _end(handle: BinaryIO, at: int) -> str:
    """What is wrong with a tar's end, where its last member ends at byte `at`: it is to be marked, by zeros, with nothing behind."""
    handle.seek(at)
    mark = handle.read(BLOCK)
    if not mark:
        return f"cut off at byte {at}, without the mark of a tar's end"
    if any(mark):
        return f"damaged from byte {at} on: no tar header"
    while rest := handle.read(STREAM_BYTES):
        if any(rest):
            return f"damaged from byte {at} on: zeros, as a tar ends, and more behind them"
    return ""


def dali(text: str, size: int) -> np.ndarray | None:
    """The bounds by a DALI index (v1.1, v1.2: `suffix offset size [name]` for each member); None where it does not fit the tar."""
    version, *lines = text.splitlines() or [""]
    width = {"v1.1": 3, "v1.2": 4}.get(version.split(" ")[0])
    if width is None:
        return None
    bounds = [0]
    for line in lines:
        fields = line.split(" ")
        if len(fields) % width or not all(value.isdecimal() for value in (*fields[1::width], *fields[2::width])):
            return None  # names with spaces, or no such index
        ends = [int(at) + -(-int(n) // BLOCK) * BLOCK for at, n in zip(fields[1::width], fields[2::width], strict=True)]
        if min(ends) <= bounds[-1]:
            return None
        bounds.append(max(ends))
    return np.asarray(bounds, np.int64) if bounds[-1] <= size else None


@contextmanager
def opened(url: str, options: Mapping[str, Any]) -> Iterator[BinaryIO]:
    """A reader that goes through a file from front to back in few requests."""
    fs, path = fsspec.core.url_to_fs(url, **options)
    local = "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))
    more = {} if local else {"block_size": STREAM_BYTES, "cache_type": "readahead"}
    with fs.open(path, "rb", **more) as handle:
        yield handle


@dataclass
class _Members:
    """The members of a tar; `at`: where the last one ends, once they were gone through. tarfile ends at what it takes for no header."""

    handle: BinaryIO
    at: int = 0

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        with tarfile.open(fileobj=self.handle, mode="r:") as archive:
            while info := archive.next():
                archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
                yield info
            self.at = archive.offset


def _beside(url: str, size: int, options: Mapping[str, Any]) -> np.ndarray | None:
    fs, path = fsspec.core.url_to_fs(url, **options)
    try:
        text = bytes(fs.cat_file(f"{path.removesuffix('.tar')}.idx")).decode()
    except (FileNotFoundError, PermissionError, UnicodeDecodeError):  # S3 forbids what is not there to those who may not list
        return None
    return dali(text, size)


def _kept(store: Store, name: str) -> Index | None:
    try:
        held = np.load(io.BytesIO(store.read(name)), allow_pickle=False)
        return Index(held["bounds"], str(held["fault"]))
    except (FileNotFoundError, ValueError, KeyError, zipfile.BadZipFile):
        return None


@contextmanager
def _alone(store: Store, name: str) -> Iterator[None]:
    """One process of this machine at a time; the others then find what it wrote."""
    folder = Path(store.full("")) if store.local else Path(tempfile.gettempdir()) / f"shardmill-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f".{name}.lock"
    handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
        path.unlink(missing_ok=True)
    finally:
        os.close(handle)
