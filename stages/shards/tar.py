"""A shard's tar: the same samples give the same bytes, and every reader of WebDataset groups them as they were written."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import BinaryIO

BLOCK, RECORD = 512, 10_240  # bytes; a tar is a whole number of records (POSIX.1-1988, ustar)
AT_ONCE, PIECES = 1 << 18, 900  # bytes, and pieces of them (POSIX promises 1,024), that one system call writes
ZEROS = bytes(2 * BLOCK)  # what ends a tar
NAME, SIZE, CHECKSUM = slice(0, 100), slice(124, 136), slice(148, 156)


def write_tar(
    path: Path, samples: Iterable[tuple[str, Mapping[str, bytes | memoryview]]], see: Callable[[bytes | memoryview], object] = len
) -> list[str]:
    """Writes samples (key, {suffix: bytes}) in their order, members of one sorted by suffix; returns where they lie.

    A line a sample, as DALI's index has it: of each member its suffix, the offset of its bytes, their number, its name.

    `see` is shown all bytes as they are written, to hash them, say. USTAR with mtime 0, mode 0444 and img2dataset's owner: the bytes that
    `tarfile` writes, at a fraction of its time. Raises ValueError for a name or a size that does not fit.
    """
    lines: list[str] = []
    pieces: list[bytes | memoryview] = []
    at, flushed = 0, 0
    with path.open("wb") as handle:
        for key, members in samples:  # row by row: a tar is a sequence of files
            places = []
            for suffix in sorted(members):
                name, data = f"{key}.{suffix}", members[suffix]
                size = len(data)
                pieces += (_header(name, size), data, ZEROS[: -size % BLOCK])
                places.append(f"{suffix} {at + BLOCK} {size} {name}")
                at += BLOCK + size + -size % BLOCK
                if at - flushed >= AT_ONCE or len(pieces) >= PIECES:
                    _flush(handle, pieces, see)
                    flushed = at
            lines.append(" ".join(places))
        pieces += (ZEROS, bytes(-(at + len(ZEROS)) % RECORD))
        _flush(handle, pieces, see)
    return lines


def _flush(handle: BinaryIO, pieces: list[bytes | memoryview], see: Callable[[bytes | memoryview], object]) -> None:
    """Writes and shows all pieces, and forgets them."""
    written = os.writev(handle.fileno(), pieces)
    if written < sum(map(len, pieces)):  # a disk that is nearly full: the rest goes, or the error says why not
        handle.write(b"".join(pieces)[written:])
        handle.flush()
    for piece in pieces:
        see(piece)
    pieces.clear()


@cache
def _parts() -> tuple[bytes, bytes, bytes, int]:
    """`tarfile`'s block between name and size, between size and checksum, after the checksum; and the sum of all that members share."""
    info = tarfile.TarInfo()
    info.mtime, info.mode = 0, 0o444
    info.uname = info.gname = "bigdata"
    block = info.tobuf(tarfile.USTAR_FORMAT)
    parts = block[NAME.stop : SIZE.start], block[SIZE.stop : CHECKSUM.start], block[CHECKSUM.stop :]
    return *parts, sum(map(sum, parts)) + sum(b" " * 8)


def _header(name: str, size: int) -> bytes:
    """The block before a member's bytes: what all share, with its name, its size and the sum of all bytes (checksum field as spaces)."""
    ascii_name = name.encode("ascii")
    if len(ascii_name) > 100 or size >= 8 << 30:
        raise ValueError(f"{name} ({size} bytes) does not fit into a USTAR archive: at most 100 characters and 8 GiB")
    before, between, after, rest = _parts()
    octal = b"%011o\0" % size
    return b"".join((ascii_name.ljust(100, b"\0"), before, octal, between, b"%06o\0 " % (rest + sum(ascii_name) + sum(octal)), after))


def dali_index(lines: list[str]) -> str:
    """The text of DALI's index v1.2 of a tar, of the lines that `write_tar` gave: before them stands how many there are."""
    return "".join(f"{line}\n" for line in (f"v1.2 {len(lines)}", *lines))
