"""A shard's tar: the same samples give the same bytes, and every reader of WebDataset groups them as they were written."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path

BLOCK, RECORD = 512, 10_240  # bytes; a tar is a whole number of records (POSIX.1-1988, ustar)
AT_ONCE = 1 << 19  # bytes written at once: they stay in the processor's cache from their copy to their hash
ZEROS = bytes(2 * BLOCK)  # what ends a tar
NAME, SIZE, CHECKSUM = slice(0, 100), slice(124, 136), slice(148, 156)


def write_tar(
    path: Path, samples: Iterable[tuple[str, Mapping[str, bytes | memoryview]]], see: Callable[[bytes], object] = len
) -> list[str]:
    """Writes samples (key, {suffix: bytes}) in their order, members of one sorted by suffix; returns where they lie.

    A line a sample, as DALI's index has it: of each member its suffix, the offset of its bytes, their number, its name.

    `see` is shown all bytes as they are written, e.g. to hash them while they are in the processor's cache. USTAR with mtime 0, mode 0444
    and img2dataset's owner: the bytes that `tarfile` writes, at a fraction of its time. Raises ValueError for a name or a size that does
    not fit.
    """
    lines: list[str] = []
    pieces: list[bytes | memoryview] = []
    at, flushed = 0, 0
    with path.open("wb") as handle:

        def flush() -> None:
            block = b"".join(pieces)
            pieces.clear()
            handle.write(block)
            see(block)

        for key, members in samples:  # row by row: a tar is a sequence of files
            places = []
            for suffix in sorted(members):
                name, data = f"{key}.{suffix}", members[suffix]
                size = len(data)
                pieces += (_header(name, size), data, ZEROS[: -size % BLOCK])
                places.append(f"{suffix} {at + BLOCK} {size} {name}")
                at += BLOCK + size + -size % BLOCK
            lines.append(" ".join(places))
            if at - flushed >= AT_ONCE:
                flush()
                flushed = at
        pieces.append(ZEROS)
        pieces.append(bytes(-(at + len(ZEROS)) % RECORD))
        flush()
    return lines


@cache
def _template() -> bytes:
    info = tarfile.TarInfo()
    info.mtime, info.mode = 0, 0o444
    info.uname = info.gname = "bigdata"
    return info.tobuf(tarfile.USTAR_FORMAT)


@cache
def _parts() -> tuple[bytes, bytes, bytes, int]:
    """The template between name and size, between size and checksum, after the checksum; and the sum of all that a member changes not."""
    block = _template()
    parts = block[NAME.stop : SIZE.start], block[SIZE.stop : CHECKSUM.start], block[CHECKSUM.stop :]
    return *parts, sum(map(sum, parts)) + sum(b" " * 8)


def _header(name: str, size: int) -> bytes:
    """The block before a member's bytes: the template with its name, its size and the sum of all bytes (checksum field as spaces)."""
    ascii_name = name.encode("ascii")
    if len(ascii_name) > 100 or size >= 8 << 30:
        raise ValueError(f"{name} ({size} bytes) does not fit into a USTAR archive: at most 100 characters and 8 GiB")
    before, between, after, rest = _parts()
    octal = b"%011o\0" % size
    return b"".join((ascii_name.ljust(100, b"\0"), before, octal, between, b"%06o\0 " % (rest + sum(ascii_name) + sum(octal)), after))


def dali_index(lines: list[str]) -> str:
    """The text of DALI's index v1.2 of a tar, of the lines that `write_tar` gave: before them stands how many there are."""
    return "".join(f"{line}\n" for line in (f"v1.2 {len(lines)}", *lines))
