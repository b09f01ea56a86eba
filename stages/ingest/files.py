"""The input's files: found, named, counted where that is cheap, and read as raw tables of a fixed number of rows.

Raw tables hold the columns as the input spells them, and `__malformed__`: null, or what is wrong with a line and its text.
Such a line is a row like any other, so that row numbers never depend on what can be parsed.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError
from stages.ingest import lines, parquet, shards
from stages.ingest.rebatch import FILE, cut, unique

Format = Literal["parquet", "csv", "tsv", "jsonl", "json", "howto100m", "img2dataset", "tar"]
Header = str | Sequence[str]

SUFFIXES: Mapping[str, Format] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".txt": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".tar": "tar",
}
FORMATS = ("auto", "parquet", "csv", "tsv", "jsonl", "json", "howto100m", "img2dataset")
COMPRESSED = (".gz", ".zst")
# What Arrow raises for a damaged file, and for names of columns that are no UTF-8; see _damage.
UNREADABLE = (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, UnicodeDecodeError, OSError)
ETAGS = ("ETag", "etag", "md5Hash", "content_md5", "crc32c", "mtime", "LastModified", "last_modified", "updated")


@dataclass(frozen=True)
class InputFile:
    """A file of the input. `rows` is None where only reading it all would tell. `url`: absolute path, or fsspec URL.

    format `img2dataset`: `url` is the shard's Parquet, `tar` the tar beside it (None where there is none). format `tar`: a
    webdataset tar that has no Parquet. `columns`: the names in a Parquet's footer; None for other formats.
    """

    url: str
    etag: str
    rows: int | None
    format: Format
    tar: str | None = None
    columns: tuple[str, ...] | None = None


def list_files(path: str | Sequence[str], format: str = "auto", storage_options: Mapping[str, Any] | None = None) -> list[InputFile]:
    """The files that `path` names (file, folder with all below it, glob, fsspec URL, or a list of these), each once.

    In the order of `path`'s entries, and within a folder or glob by name. `etag` is made of size and ETag or time of change.
    Hidden files and those whose names begin with _ are passed over in folders and globs. Raises UserError where an entry
    names nothing, a format is unknown, or a folder mixes formats.
    """
    options = dict(storage_options or {})
    found: dict[str, InputFile] = {}
    for entry in [path] if isinstance(path, str) else path:
        for file in _entry(entry, format, options):
            found.setdefault(file.url, file)
    if not found:
        raise UserError("input.path: empty; name at least one file, folder or glob")
    one: dict[Any, Any] = {}  # files of one kind share their names: there may be many thousand of them
    with ThreadPoolExecutor(8) as pool:
        counted = pool.map(lambda file: _counted(file, options), found.values())
        return [replace(file, columns=one.setdefault(file.columns, file.columns)) for file in counted]


def stream(
    file: InputFile, start_row: int, batch_rows: int, *, header: Header = "auto", storage_options: Mapping[str, Any] | None = None
) -> Iterator[pa.Table]:
    """Raw tables of exactly `batch_rows` rows (the last one shorter), from `start_row` on. Memory: a few batches.

    Only `.json` (one value for the whole file) is read as a whole. The tables' metadata name the file. Raises UserError for a file
    that cannot be read as its format.
    """
    try:
        for table in _raw(file, start_row, batch_rows, header, dict(storage_options or {})):
            yield table.replace_schema_metadata({FILE: file.url})
    except (*UNREADABLE, EOFError, lines.BrokenError) as err:
        if not _damage(err):
            raise
        what = " ".join(str(err).split())[:300]
        raise UserError(f"{file.url}: cannot be read as {file.format}: {what}; fetch it again, or set input.format") from err


def _raw(file: InputFile, start_row: int, batch_rows: int, header: Header, options: dict[str, Any]) -> Iterator[pa.Table]:
    if file.format in ("parquet", "img2dataset"):
        for table in parquet.stream(file.url, file.etag, start_row, batch_rows, options):
            yield table if file.tar is None else shards.with_places(table, file.tar, file.etag, options)
    elif file.format == "tar":
        yield from cut(shards.rows(file.url, options), start_row, batch_rows)
    else:
        yield from cut(lines.tables(_open(file.url, options), file.format, header, file.url), start_row, batch_rows)


def _damage(err: Exception) -> bool:
    """Arrow says `Corrupt snappy compressed data` and the like by an OSError without a number; others are the storage's faults."""
    return not isinstance(err, OSError) or (type(err) is OSError and err.errno is None)


def _entry(entry: str, format: str, options: dict[str, Any]) -> list[InputFile]:
    fs, path = _system(entry, options)
    whole = not _is_glob(entry, path)
    try:
        if whole and fs.isfile(path):
            names = [path]
        elif whole and fs.isdir(path):
            names = [name for name in sorted(fs.find(path)) if _visible(name[len(path) :])]
        elif not whole:
            names = [name for name in sorted(fs.glob(path)) if _visible(name.rpartition("/")[2]) and fs.isfile(name)]
        else:
            names = []
    except (OSError, ValueError) as err:
        raise UserError(f"input.path: {entry}: {type(err).__name__}: {' '.join(str(err).split())[:300]}") from err
    if not names:
        raise UserError(f"input.path: {entry}: no such file, and no folder or glob with files in it")
    if format == "img2dataset":
        names = _with_tars(fs, names)
    chosen = _chosen(names, format, entry, single=names == [path])
    return [InputFile(_address(fs, name), _etag(fs, name), None, kind, tar and _address(fs, tar)) for name, kind, tar in chosen]


def _chosen(names: list[str], format: str, entry: str, single: bool) -> list[tuple[str, Format, str | None]]:
    """Which of the files are input, as what, and the tar that belongs to a shard's Parquet."""
    kinds = {name: _kind(name) for name in names}
    tars = {name.removesuffix(".tar"): name for name in names if kinds[name] == "tar"}
    if format not in FORMATS:
        raise UserError(f"input.format: {format} is unknown; valid: {', '.join(FORMATS)}")
    if format == "img2dataset" or (format == "auto" and tars):
        return _shard_files(names, kinds, tars, entry)
    if format != "auto":
        wants = "json" if format == "howto100m" else format
        fitting = [name for name in names if kinds[name] == wants] or [name for name in names if kinds[name] is None or single]
        if not fitting:
            raise UserError(f"input.path: {entry}: none of its {len(names)} files is {format}; the first is {names[0]}")
        return [(name, _named(format), None) for name in fitting]
    present = {kind for kind in kinds.values() if kind}
    # A .json beside tables describes them (dataset_info.json) and is no table.
    wanted = present - {"json"} or present
    if not wanted:
        raise UserError(
            f"input.path: {entry}: {names[0]} has no known ending ({', '.join(SUFFIXES)}, with .gz or .zst); "
            "name the format by input.format"
        )
    if len(wanted) > 1:
        raise UserError(f"input.path: {entry} holds {' and '.join(sorted(wanted))}; choose by input.format or a glob such as */*.parquet")
    return [(name, kind, None) for name, kind in kinds.items() if kind is not None and kind in wanted]


def _shard_files(
    names: list[str], kinds: dict[str, Format | None], tars: dict[str, str], entry: str
) -> list[tuple[str, Format, str | None]]:
    """A shard each: its Parquet with the tar beside it, or a tar alone."""
    tables = {name.rpartition(".")[0]: name for name in names if kinds[name] == "parquet"}
    out: list[tuple[str, Format, str | None]] = [(name, "img2dataset", tars.get(stem)) for stem, name in tables.items()]
    out += [(name, "tar", None) for stem, name in tars.items() if stem not in tables]
    if not out:
        raise UserError(f"input.path: {entry}: no NNNNN.parquet or NNNNN.tar there; is it an img2dataset folder?")
    return sorted(out)


def _with_tars(fs: Any, names: list[str]) -> list[str]:
    """A glob or a single file may name the Parquets alone."""
    beside = [f"{name.removesuffix('.parquet')}.tar" for name in names if name.endswith(".parquet")]
    return names + [tar for tar in beside if tar not in set(names) and fs.exists(tar)]


def _named(format: str) -> Format:
    return next(kind for kind in (*SUFFIXES.values(), "howto100m") if kind == format)


def _kind(name: str) -> Format | None:
    base = name.lower()
    for ending in COMPRESSED:
        base = base.removesuffix(ending)
    kind = SUFFIXES.get(f".{base.rpartition('.')[2]}")
    # Parquet and tars are read at places, which a compressed file does not have.
    return None if kind in ("parquet", "tar") and base != name.lower() else kind


def _visible(inner: str) -> bool:
    return not any(part.startswith((".", "_")) for part in inner.split("/") if part)


def _is_glob(entry: str, path: str) -> bool:
    marks = "*" if entry.startswith(("http://", "https://")) else "*?["
    return any(mark in path for mark in marks)


def _system(url: str, options: dict[str, Any]) -> tuple[Any, str]:
    try:
        fs, path = fsspec.core.url_to_fs(url, **options)
    except (ValueError, ImportError) as err:
        raise UserError(f"input.path: {url}: {err}") from err
    fs.invalidate_cache()
    return fs, (posixpath.normpath(path) if _local(fs) else path.rstrip("/")) or "/"


def _address(fs: Any, path: str) -> str:
    return path if _local(fs) else str(fs.unstrip_protocol(path))


def _local(fs: Any) -> bool:
    protocols = fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,)
    return "file" in protocols


def _etag(fs: Any, path: str) -> str:
    """16 hex digits that change when the file does, and only then."""
    info = fs.info(path)
    marks = [str(info[name]) for name in ETAGS if info.get(name) is not None]
    return hashlib.sha256("\0".join([str(info.get("size")), *marks[:1]]).encode()).hexdigest()[:16]


def _counted(file: InputFile, options: dict[str, Any]) -> InputFile:
    """With the row count of Parquet's footer; a shard's etag covers its tar as well."""
    if file.format not in ("parquet", "img2dataset"):
        return file
    fs, path = _system(file.url, options)
    try:
        with fs.open(path, "rb") as handle:
            reader = pq.ParquetFile(handle)
            rows, columns = int(reader.metadata.num_rows), tuple(unique(reader.schema_arrow.names))
    except UNREADABLE as err:
        if not _damage(err):
            raise
        raise UserError(f"{file.url}: no whole Parquet file ({' '.join(str(err).split())[:200]}); fetch it again or take it away") from err
    etag = file.etag
    if file.tar is not None:
        etag = hashlib.sha256(f"{etag} {_etag(fs, _system(file.tar, options)[1])}".encode()).hexdigest()[:16]
    return replace(file, rows=rows, etag=etag, columns=columns)


def _open(url: str, options: dict[str, Any]) -> Callable[[], Any]:
    def opened() -> Any:
        fs, path = _system(url, options)
        return fs.open(path, "rb")

    return opened
