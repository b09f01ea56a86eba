"""A shard's tar: the same samples give the same bytes, and every reader of WebDataset groups them as they were written."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

BLOCK = 512


class Member(NamedTuple):
    """A file in a tar: suffix without the dot, offset of its bytes, their number, its name."""

    suffix: str
    offset: int
    size: int
    name: str


def write_tar(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> list[list[Member]]:
    """Writes samples (key, {suffix: bytes}) in their order, members of one sorted by suffix; returns where all lie.

    USTAR with mtime 0, mode 0444 and img2dataset's owner. Keys are short and ASCII, so that each header is one block.
    """
    written = []
    with path.open("wb") as handle, tarfile.open(fileobj=handle, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, members in samples:  # row by row: a tar is a sequence of files
            written.append([_add(tar, key, suffix, members[suffix]) for suffix in sorted(members)])
    return written


def _add(tar: tarfile.TarFile, key: str, suffix: str, data: bytes) -> Member:
    info = tarfile.TarInfo(f"{key}.{suffix}")
    info.size, info.mtime, info.mode = len(data), 0, 0o444
    info.uname = info.gname = "bigdata"
    offset = tar.offset + BLOCK
    tar.addfile(info, io.BytesIO(data))
    return Member(suffix, offset, len(data), info.name)


def dali_index(samples: list[list[Member]]) -> str:
    """The text of DALI's index v1.2 of a tar: a line with the number of samples, then one a sample."""
    lines = (" ".join(f"{m.suffix} {m.offset} {m.size} {m.name}" for m in sample) for sample in samples)
    return "".join(f"{line}\n" for line in (f"v1.2 {len(samples)}", *lines))
