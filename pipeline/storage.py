"""A run's files on any fsspec file system: whole-file reads, atomic writes, tables as Parquet.

A file under its final name is always whole: local files are written beside it under a hidden temporary name, flushed and
renamed; on object stores a whole-object PUT does the same. Readers ignore hidden names.
"""

from __future__ import annotations

import errno
import io
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import TransientError

FULL = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True)
class Store:
    """A folder (path or fsspec URL); paths given to its methods are relative to it."""

    url: str
    options: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        fs, root = fsspec.core.url_to_fs(self.url, **self.options)
        return fs, root.rstrip("/")

    @property
    def fs(self) -> Any:
        return self._opened[0]

    @property
    def local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def __getstate__(self) -> dict[str, Any]:
        # A worker may have another current folder: a relative path travels as a whole one.
        return {"url": self._opened[1] if self.local else self.url, "options": self.options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def sub(self, name: str) -> Store:
        """The store of a folder below this one."""
        return Store(f"{self.url.rstrip('/')}/{name}", self.options)

    def full(self, path: str) -> str:
        """The path as the file system knows it."""
        return f"{self._opened[1]}/{path}" if path else self._opened[1]

    def address(self, path: str) -> str:
        """The path with its protocol, as DuckDB and people want it."""
        return self.full(path) if self.local else str(self.fs.unstrip_protocol(self.full(path)))

    @contextmanager
    def _answered(self, path: str) -> Iterator[None]:
        """Turns a client library's own errors (no credentials, no endpoint, too many requests) into a TransientError.

        OSErrors pass: a missing file means something to the caller.
        """
        try:
            yield
        except (OSError, TransientError):
            raise
        except Exception as err:
            text = " ".join(str(err).split())
            raise TransientError(
                f"{self.url}: the storage refuses {path or 'its root'}: {type(err).__name__}: {text}; check its endpoint and "
                "credentials (run.storage_options, or the environment), then repeat the command"
            ) from err

    def exists(self, path: str) -> bool:
        if self.local:
            return Path(self.full(path)).exists()
        with self._answered(path):
            self.fs.invalidate_cache()
            return bool(self.fs.exists(self.full(path)))

    def names(self, folder: str, suffix: str = "") -> list[str]:
        """Sorted names of the files in a folder; hidden ones (temporary files) are left out; [] if there is no such folder."""
        try:
            with self._answered(folder):
                self.fs.invalidate_cache()
                found = self.fs.ls(self.full(folder), detail=False)
        except FileNotFoundError:
            return []
        names = (path.rstrip("/").rpartition("/")[2] for path in found)
        return sorted(name for name in names if name and not name.startswith(".") and name.endswith(suffix))

    def read(self, path: str) -> bytes:
        with self._answered(path):
            return bytes(self.fs.cat_file(self.full(path)))

    def read_json(self, path: str) -> Any:
        return json.loads(self.read(path))

    def open(self, path: str) -> BinaryIO:
        """A seekable binary reader."""
        handle: BinaryIO = self.fs.open(self.full(path), "rb")
        return handle

    def ranges(self, path: str) -> BinaryIO:
        """A reader that fetches exactly the bytes that it is asked for: for Parquet and Arrow files, whose readers know what they want.

        An object store's own reader fetches 50 MB ahead of each of them.
        """
        return self.open(path) if self.local else self.committed.open(self.full(path))

    @cached_property
    def committed(self) -> Committed:
        """The run's committed files for DuckDB: their sizes are asked for once."""
        return Committed(self.fs)

    def _forget(self, path: str) -> None:
        """What was known of a file that is written anew."""
        if not self.local:
            self.committed.known.pop(self.full(path), None)

    def write(self, path: str, data: bytes) -> None:
        """Writes a whole file atomically. Raises TransientError when the disk is full."""
        if not self.local:
            with self._answered(path):
                self.fs.pipe_file(self.full(path), data)
            self._forget(path)
            return
        with self.atomic(path) as target:
            target.write_bytes(data)

    def write_json(self, path: str, value: Any) -> None:
        """As JSON; keys keep their order, which means something (a run's stages)."""
        self.write(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())

    @contextmanager
    def atomic(self, path: str) -> Iterator[Path]:
        """A local path to write to; on leaving without an error it becomes `path`, whole, at once."""
        final = Path(self.full(path)) if self.local else Path(os.environ.get("TMPDIR", "/tmp")) / path.rpartition("/")[2]  # noqa: S108
        target = final.parent / f".{final.name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            yield target
            self._commit(target, path)
        except OSError as err:
            if err.errno in FULL:
                raise TransientError(
                    f"{self.address(path)}: no space left; what is committed is safe: free space, then repeat the command"
                ) from err
            raise
        finally:
            with suppress(FileNotFoundError):
                target.unlink()

    def _commit(self, target: Path, path: str) -> None:
        if not self.local:
            with self._answered(path):
                self.fs.put_file(str(target), self.full(path))
            self._forget(path)
            return
        with target.open("rb") as handle:
            os.fsync(handle.fileno())
        target.replace(self.full(path))
        folder = os.open(Path(self.full(path)).parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def put(self, local: Path, path: str) -> None:
        """Moves a finished local file to `path`, atomically."""
        if self.local:
            with self.atomic(path) as target:
                local.replace(target) if _same_device(local, target.parent) else target.write_bytes(local.read_bytes())
        else:
            with self._answered(path):
                self.fs.put_file(str(local), self.full(path))
            self._forget(path)
            local.unlink()

    def copy(self, source: str, path: str) -> None:
        """A second name for a finished file: a hard link, or a copy made by the object store itself."""
        if self.local:
            Path(self.full(path)).parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                Path(self.full(path)).hardlink_to(self.full(source))
        else:
            self.fs.cp_file(self.full(source), self.full(path))

    def write_table(self, path: str, table: pa.Table, row_group_rows: int = 10_000) -> None:
        """Writes one Parquet file (zstd) atomically; the same table gives the same bytes."""
        with self.atomic(path) as target:
            pq.write_table(table, target, compression="zstd", row_group_size=row_group_rows)

    def read_table(self, path: str, columns: list[str] | None = None) -> pa.Table:
        """Reads a Parquet file whole; only the bytes of `columns` are fetched."""
        with self._answered(path), self.ranges(path) as handle:
            return pq.ParquetFile(handle, pre_buffer=not self.local).read(columns=columns)

    def columns(self, path: str) -> list[str]:
        """Column names of a Parquet file, from its footer."""
        with self.open(path) as handle:
            return list(pq.ParquetFile(handle).schema_arrow.names)

    def rows(self, path: str) -> int:
        """Row count of a Parquet file, from its footer."""
        with self._answered(path), self.ranges(path) as handle:
            return int(pq.ParquetFile(handle).metadata.num_rows)

    def remove(self, path: str) -> None:
        """Removes a file or a whole folder; nothing happens when it is not there."""
        with suppress(FileNotFoundError):
            self.fs.rm(self.full(path), recursive=True)

    def sweep(self) -> list[str]:
        """Removes temporary files that killed writers left behind (local file systems only); nobody may be writing."""
        if not self.local:
            return []
        root = Path(self.full(""))
        left = [path for path in root.rglob(".*.tmp") if path.is_file()]
        for path in left:
            path.unlink()
        return [str(path.relative_to(root)) for path in left]


class Committed(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """An object store's files as DuckDB may read them: whole, and changed by this process alone, so that each one's size is asked for once.

    DuckDB asks for a file's existence, size and age anew for every query and every mention of a view: 4,000 requests for a run
    of 6 parts without this. Reads are ranged GETs of exactly the wanted bytes.
    """

    cachable = False

    def __init__(self, fs: Any) -> None:
        super().__init__()
        self.fs, self.protocol = fs, fs.protocol
        self.known: dict[str, Any] = {}

    def info(self, path: str, **_: Any) -> Any:
        path = self.fs._strip_protocol(path)
        if path not in self.known:
            self.known[path] = self.fs.info(path)
        return self.known[path]

    def glob(self, path: str, **_: Any) -> list[str]:
        """The path itself; our own names hold no wildcards."""
        return [path]

    def modified(self, path: str) -> datetime:
        """What DuckDB's own caches are checked against."""
        found = self.info(path).get("LastModified")
        return found if isinstance(found, datetime) else datetime.fromtimestamp(0, UTC)

    def open(self, path: str, _mode: str = "rb", **_: Any) -> Any:
        return io.BufferedReader(_Ranges(self.fs, self.fs._strip_protocol(path), int(self.info(path)["size"])))


class _Ranges(io.RawIOBase):
    """A seekable file whose every read is one ranged request."""

    def __init__(self, fs: Any, path: str, size: int) -> None:
        self.fs, self.path, self.size, self.at = fs, path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence]
        return self.at

    def readinto(self, buffer: Any) -> int:
        end = min(self.at + len(buffer), self.size)
        if end <= self.at:
            return 0
        data = self.fs.cat_file(self.path, start=self.at, end=end)
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


def _same_device(a: Path, b: Path) -> bool:
    return a.stat().st_dev == b.stat().st_dev
