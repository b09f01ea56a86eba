"""A text file as lines: unpacked (.gz, .zst), as UTF-8, and each line with what keeps it from being one."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import zstandard

MAX_LINE = 8 << 20  # bytes; a longer line is malformed
TEXT_CHARS = 300  # of a malformed line, kept as its detail


class Line(NamedTuple):
    """`bad` says why the line is none: too long, or not UTF-8."""

    text: str
    bad: str | None


class _Readable(Protocol):
    def readline(self, size: int, /) -> bytes: ...


def unpacked(raw: Any, url: str) -> io.BufferedReader:
    if url.lower().endswith(".gz"):
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), 1 << 20)
    return io.BufferedReader(_Zstd(raw) if url.lower().endswith(".zst") else raw, 1 << 20)


class _Zstd(io.RawIOBase):
    """All frames of a zstd file, and EOFError where the last one is cut off: python-zstandard's own reader ends there in silence."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self.frame: Any = None
        self.fed = b""
        self.out = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.out:
            self.fed = self.fed or self.raw.read(4096)  # little at a time: what it unpacks to is held in memory
            if not self.fed:
                if self.frame is not None:
                    raise EOFError("the zstd stream ends in the middle")
                return 0
            self.frame = self.frame or zstandard.ZstdDecompressor().decompressobj()
            self.out = memoryview(self.frame.decompress(self.fed))
            self.fed = b""
            if self.frame.eof:
                self.fed, self.frame = self.frame.unused_data, None
        count = min(len(buffer), len(self.out))
        buffer[:count], self.out = self.out[:count], self.out[count:]
        return count


class _Recoded:
    """Lines of another encoding, or that end in CR alone, as UTF-8 and with LF."""

    def __init__(self, handle: io.BufferedReader, encoding: str, end: str) -> None:
        # What is no UTF-8 must reach `lines` as it is; what is no UTF-16 becomes U+FFFD.
        self.errors = "surrogateescape" if encoding == "utf-8" else "replace"
        self.text = io.TextIOWrapper(handle, encoding, self.errors, newline=end)

    def readline(self, size: int, /) -> bytes:
        line = self.text.readline(size)
        return (f"{line[:-1]}\n" if line.endswith("\r") else line).encode("utf-8", self.errors)


def _as_utf8(handle: io.BufferedReader) -> _Readable:
    """UTF-16 (Excel's "Unicode text", PowerShell's files) and UTF-32 are known by the first bytes; CR alone by a first MiB without LF."""
    head = handle.peek()
    encoding = json.detect_encoding(head[:4]).replace("-sig", "")
    end = "\r" if b"\r" in head[:-1] and b"\n" not in head else "\n"
    return handle if (encoding, end) == ("utf-8", "\n") else _Recoded(handle, encoding, end)


def lines(packed: io.BufferedReader) -> Iterator[Line]:
    handle = _as_utf8(packed)
    first = True
    while raw := handle.readline(MAX_LINE):
        bad = None
        if len(raw) >= MAX_LINE and not raw.endswith(b"\n"):
            while (more := handle.readline(MAX_LINE)) and not more.endswith(b"\n"):
                pass
            raw, bad = raw[:TEXT_CHARS], f"longer than {MAX_LINE} bytes"
        if first:
            raw, first = raw.removeprefix(b"\xef\xbb\xbf"), False
        try:
            yield Line(raw.decode(), bad)
        except UnicodeDecodeError as err:
            yield Line(raw.decode(errors="replace"), bad or f"not UTF-8 ({err.reason} at byte {err.start})")
