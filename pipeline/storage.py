"""A run's files on any fsspec file system: whole-file reads, atomic writes, tables as Parquet.

A file under its final name is always whole: local files are written beside it under a hidden temporary name, flushed and
renamed; on object stores a whole-object PUT does the same. Readers ignore hidden names.

What the storage refuses is a TransientError, whatever the client library makes of it; only FileNotFoundError passes, since a
missing file means something to the caller. A committed file that is no longer what was written is a UserError that names it.
"""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from pipeline import parquet
from pipeline.errors import ShardmillError, TransientError, UserError
from pipeline.stage import MEDIA

FULL = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True)
class Store:
    """A folder (path or fsspec URL); paths given to its methods are relative to it."""

    url: str
    options: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        try:
            fs, root = fsspec.core.url_to_fs(self.url, **self.options)
        except (ValueError, ImportError, OSError) as err:  # a protocol that fsspec does not know or lacks a package for; nobody answers
            raise (TransientError if isinstance(err, OSError) else UserError)(f"{self.url}: cannot be opened: {err}") from err
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
    def _answered(self, path: str, faults: type[Exception] = Exception) -> Iterator[None]:
        """Turns what the file system or its client library raises (a throttle, no credentials, a dead disk) into a TransientError.

        `faults`: OSError where the block does more than ask the file system.
        """
        try:
            yield
        except (FileNotFoundError, ShardmillError):
            raise
        except faults as err:
            raise self._refused(path, err) from err

    def _refused(self, path: str, err: Exception) -> TransientError:
        if isinstance(err, OSError) and err.errno in FULL:
            return TransientError(f"{self.address(path)}: no space left; what is committed is safe: free space, then repeat the command")
        text = f"{type(err).__name__}: {' '.join(str(err).split())}"
        mend = "mend that" if self.local else "check its endpoint and credentials (run.storage_options, or the environment)"
        return TransientError(f"{self.url}: the storage refuses {path or 'its root'}: {text}; {mend}, then repeat the command")

    @contextmanager
    def _sound(self, path: str) -> Iterator[None]:
        """Turns what a parser says of a committed file that is not what was written into a UserError."""
        try:
            yield
        except Exception as err:
            if not _unreadable(err):
                raise
            # Beside done.json a file alone is never made again.
            folder = path.rpartition("/")[0].replace("children/", "rows/", 1)
            what = f"the folder {self.address(folder)}" if self.exists(f"{folder}/done.json") else "it"
            text = " ".join(str(err).split()).rstrip(".")
            raise UserError(
                f"{self.address(path)}: the file is damaged ({text}); remove {what}, then repeat the command, which makes it anew"
            ) from err

    def exists(self, path: str) -> bool:
        with self._answered(path):
            if self.local:
                return Path(self.full(path)).exists()
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
        data = self.read(path)
        with self._sound(path):
            return json.loads(data)

    @contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        """A seekable binary reader."""
        with self._answered(path):
            opened = self.fs.open(self.full(path), "rb")
        with self._answered(path, OSError), opened as handle:
            yield handle

    @contextmanager
    def ranges(self, path: str) -> Iterator[BinaryIO]:
        """A reader that fetches exactly the bytes that it is asked for: for Parquet and Arrow files, whose readers know what they want.

        An object store's own reader fetches 50 MB ahead of each of them. What its parser cannot read in the block is damaged.
        """
        with self._answered(path):
            opened = (self.fs if self.local else self.committed).open(self.full(path), "rb")
        with self._answered(path, OSError), self._sound(path), opened as handle:
            yield handle

    @cached_property
    def committed(self) -> Committed:
        """The run's committed files for DuckDB: their sizes are asked for once."""
        return Committed(self.fs, self._answered)

    def _forget(self, path: str) -> None:
        """What was known of a file that is written anew."""
        if not self.local:
            self.committed.known.pop(self.full(path), None)

    def write(self, path: str, data: bytes) -> None:
        """Writes a whole file atomically."""
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
            with self._answered(path, OSError):
                target.parent.mkdir(parents=True, exist_ok=True)
                yield target
                self._commit(target, path)
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

    @contextmanager
    def locked(self, what: str) -> Iterator[None]:
        """Refuses a second shardmill that makes `what` in this folder (local file systems; on object stores nobody watches)."""
        if not self.local:
            yield
            return
        import fcntl

        path = Path(self.full(".lock"))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TransientError(f"{self.url}: another shardmill works on this {what}; wait for it or stop it") from None
            yield

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
        with self._answered(path):
            if not self.local:
                self.fs.cp_file(self.full(source), self.full(path))
                return
            Path(self.full(path)).parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                Path(self.full(path)).hardlink_to(self.full(source))

    def write_table(self, path: str, table: pa.Table, row_group_rows: int = 10_000) -> None:
        """Writes one Parquet file atomically; the same table gives the same bytes."""
        with self.atomic(path) as target:
            pq.write_table(table, target, row_group_size=row_group_rows, **parquet.options(table.schema))

    def write_tables(self, path: str, tables: Iterable[pa.Table], goes_on: Callable[[], None], row_group_rows: int = 10_000) -> None:
        """As `write_table`, of one table or more of one schema that are not all in memory; each begins a row group."""
        with self.atomic(path) as target:
            first = next(coming := iter(tables))
            with pq.ParquetWriter(target, first.schema, **parquet.options(first.schema)) as writer:
                for table in itertools.chain([first], coming):
                    writer.write_table(table, row_group_size=row_group_rows)
                    goes_on()

    def read_tables(self, path: str, columns: list[str]) -> Iterator[pa.Table]:
        """Reads a Parquet file a row group at a time."""
        with self.ranges(path) as handle:
            file = pq.ParquetFile(handle, page_checksum_verification=True)
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns)

    def read_table(self, path: str, columns: list[str] | None = None) -> pa.Table:
        """Reads a Parquet file whole; only the bytes of `columns` are fetched."""
        with self.ranges(path) as handle:
            return pq.ParquetFile(handle, pre_buffer=not self.local, page_checksum_verification=True).read(columns=columns)

    def columns(self, path: str) -> list[str]:
        """Column names of a Parquet file, from its footer."""
        with self.ranges(path) as handle:
            return list(pq.ParquetFile(handle).schema_arrow.names)

    def rows(self, path: str) -> int:
        """Row count of a Parquet file, from its footer."""
        with self.ranges(path) as handle:
            return int(pq.ParquetFile(handle).metadata.num_rows)

    def check_tables(self) -> None:
        """Reads all of the run's tables but their images; raises UserError for the first that is damaged."""
        with self._answered(""):
            found = sorted(self.fs.find(self.full("")))
        for path in (self.relative(name) for name in found if name.endswith(".parquet")):
            if path.startswith("shards/") or path.rpartition("/")[2].startswith("."):
                continue
            with self.ranges(path) as handle:
                file = pq.ParquetFile(handle, page_checksum_verification=True)
                for group in range(file.num_row_groups):
                    file.read_row_group(group, [name for name in file.schema_arrow.names if name not in MEDIA])

    def relative(self, address: str) -> str:
        """The path within this store of a full path or an address."""
        return str(self.fs._strip_protocol(address)).removeprefix(self._opened[1]).lstrip("/")

    def remove(self, path: str) -> None:
        """Removes a file or a whole folder; nothing happens when it is not there."""
        with suppress(FileNotFoundError), self._answered(path):
            self.fs.rm(self.full(path), recursive=True)

    def sweep(self) -> list[str]:
        """Removes temporary files that killed writers left behind (local file systems only); nobody may be writing."""
        left = [path for path in Path(self.full("")).rglob(".*.tmp") if path.is_file()] if self.local else []
        for path in left:
            path.unlink()
        return [str(path.relative_to(self.full(""))) for path in left]


class Committed(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """An object store's files as DuckDB may read them: whole, and changed by this process alone, so that each one's size is asked for once.

    DuckDB asks for a file's existence, size and age anew for every query and every mention of a view: 4,000 requests for a run
    of 6 parts without this. Reads are ranged GETs of exactly the wanted bytes.
    """

    cachable = False

    def __init__(self, fs: Any, answered: Callable[[str], AbstractContextManager[None]]) -> None:
        super().__init__()
        self.fs, self.protocol, self._answered = fs, fs.protocol, answered
        self.known: dict[str, Any] = {}
        self.fault: Exception | None = None  # what the store refused last: DuckDB tells only its text

    @contextmanager
    def answered(self, path: str) -> Iterator[None]:
        try:
            with self._answered(path):
                yield
        except Exception as err:
            self.fault = err
            raise

    def info(self, path: str, **_: Any) -> Any:
        path = self.fs._strip_protocol(path)
        if path not in self.known:
            with self.answered(path):
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
        return io.BufferedReader(_Ranges(self, self.fs._strip_protocol(path), int(self.info(path)["size"])))


class _Ranges(io.RawIOBase):
    """A seekable file whose every read is one ranged request."""

    def __init__(self, store: Committed, path: str, size: int) -> None:
        self.store, self.path, self.size, self.at = store, path, size, 0

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
        with self.store.answered(self.path):
            data = self.store.fs.cat_file(self.path, start=self.at, end=end)
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


def _same_device(a: Path, b: Path) -> bool:
    return a.stat().st_dev == b.stat().st_dev


def _unreadable(err: Exception) -> bool:
    """What parsers raise for bytes that they cannot read; pyarrow's are bare OSErrors without a number where the storage's have one."""
    if isinstance(err, MemoryError):
        return False
    return isinstance(err, pa.ArrowException | json.JSONDecodeError | UnicodeDecodeError) or (type(err) is OSError and err.errno is None)
