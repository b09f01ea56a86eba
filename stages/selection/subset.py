"""Files that list uids: DataComp's subset files (.npy), plain lists (.txt) and tables (.parquet)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import UserError
from pipeline.stage import file_digest

PAIR = np.dtype([("f0", "<u8"), ("f1", "<u8")])  # uid[:16] and uid[16:] as numbers
UIDS = pa.schema([("uid", pa.binary(16))])
BATCH = 1 << 20
HEX = re.compile(r"[0-9a-fA-F]{32}")


def digest(path: str) -> str | None:
    """The file's SHA-256; None where it cannot be read (`read` says why, before any work)."""
    try:
        return file_digest(path)
    except (OSError, ValueError, ImportError):
        return None


def read(path: str) -> pa.RecordBatchReader:
    """Streams a file's uids as `uid` binary(16), in the file's order, repeats included.

    Raises UserError at once for a file that is not there or no list of uids; for a bad line further down, when it is reached.
    """
    import fsspec

    kinds = {".npy": _pairs, ".txt": _lines, ".parquet": _column}
    suffix = Path(path).suffix.lower()
    if suffix not in kinds:
        raise UserError(f"{path}: subset files end in {', '.join(kinds)}")
    try:
        handle = fsspec.open(path, "rb").open()
        batches = kinds[suffix](handle, path)
        first = next(batches, None)
    except (OSError, ValueError, ImportError, pa.ArrowException) as err:
        raise UserError(f"{path}: cannot read the subset file: {err}") from err
    return pa.RecordBatchReader.from_batches(UIDS, _closing(handle, first, batches))


def _closing(handle: Any, first: pa.RecordBatch | None, rest: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    with handle:
        if first is not None:
            yield first
        yield from rest


def _pairs(handle: Any, path: str) -> Iterator[pa.RecordBatch]:
    """A .npy of PAIR, or the same without a header (DataComp maps such files)."""
    if handle.read(6) == b"\x93NUMPY":
        handle.seek(0)
        version = np.lib.format.read_magic(handle)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(handle)
        if len(shape) != 1 or dtype.itemsize != 16 or [kind.str for kind, *_ in (dtype.fields or {}).values()] != ["<u8", "<u8"]:
            raise UserError(f"{path}: expected one dimension of dtype u8,u8 (a uid's high and low half); it is {shape} of {dtype}")
    else:
        handle.seek(0)
    while data := handle.read(BATCH * PAIR.itemsize):
        if len(data) % PAIR.itemsize:
            raise UserError(f"{path}: ends within a uid; the file is cut short")
        swapped = np.frombuffer(data, "<u8").astype(">u8")  # as the uid's 16 bytes are written
        yield _batch(swapped.tobytes())


def _lines(handle: Any, path: str) -> Iterator[pa.RecordBatch]:
    numbered = enumerate(handle, 1)
    while lines := list(itertools.islice(numbered, BATCH)):
        texts = ((at, line.strip().decode("ascii", "replace")) for at, line in lines)
        yield _batch(b"".join(_uid(text, path, f"line {at}") for at, text in texts if text))


def _column(handle: Any, path: str) -> Iterator[pa.RecordBatch]:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(handle)
    if "uid" not in file.schema_arrow.names:
        raise UserError(f"{path}: has no column uid; it has {', '.join(file.schema_arrow.names)}")
    for batch in file.iter_batches(BATCH, columns=["uid"]):
        yield _batch(b"".join(_uid(str(text), path, f"uid {text!r}") for text in batch.column(0).to_pylist() if text is not None))


def _uid(text: str, path: str, where: str) -> bytes:
    if not HEX.fullmatch(text):
        raise UserError(f"{path}: {where}: a uid has 32 hex digits, not {text[:60]!r}")
    return bytes.fromhex(text)


def _batch(raw: bytes) -> pa.RecordBatch:
    uids = pa.Array.from_buffers(UIDS.field(0).type, len(raw) // 16, [None, pa.py_buffer(raw)])
    return pa.record_batch([uids], schema=UIDS)
