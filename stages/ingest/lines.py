"""Text tables: CSV, TSV, JSON lines, and the JSON forms of SBU and RedCaps; plain, .gz or .zst.

One Python step a line: pyarrow's CSV reader neither numbers a broken line nor goes on after an unbalanced quote, and its JSON
reader refuses a whole block for one bad line. Here each of these is one malformed row.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import re
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import zstandard

from stages.ingest.rebatch import MALFORMED, OWN, array_of, sound, unique

ROWS = 8192  # rows a table
MAX_LINE = 8 << 20  # bytes; a longer line is malformed
MAX_JSON = 2 << 30  # bytes of a file that is one JSON value, and so must be held as a whole
TEXT_CHARS = 300  # of a malformed line, kept as its detail
PEEKED = 20  # lines that tell the columns of a table without a header

PUBLISHED = {"cc3m": ("caption", "url", "labels", "mids", "scores"), "cc12m": ("url", "caption")}
_URL = re.compile(r"\s*(https?|ftp|s3|gs)://\S+\s*$|\s*//[\w-]+(\.[\w-]+)+/\S*\s*$", re.IGNORECASE)
_HEX = re.compile(r"[0-9a-fA-F]+")


class BrokenError(Exception):
    """The file as a whole cannot be read on."""


class Bad(NamedTuple):
    """A line that is no row."""

    why: str
    text: str


class Line(NamedTuple):
    """`bad` says why the line is none: too long, or not UTF-8."""

    text: str
    bad: str | None


def tables(opened: Callable[[], Any], format: str, header: str | Sequence[str], url: str) -> Iterator[pa.Table]:
    """Raw tables of at most 8,192 rows, with `__malformed__`. Raises BrokenError for a file that ends too early or is no JSON."""
    with opened() as raw, _unpacked(raw, url) as handle:
        try:
            if format == "json":
                yield from _objects(iter(_whole(handle)))
            elif format == "jsonl":
                yield from _objects(map(_object, _filled(_lines(handle))))
            else:
                records = _csv_records(_lines(handle)) if format == "csv" else _tsv_records(_lines(handle))
                yield from _cells(records, header)
        except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as err:
            raise BrokenError(f"{type(err).__name__}: {err}") from err


def _unpacked(raw: Any, url: str) -> io.BufferedReader:
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


def _lines(handle: io.BufferedReader) -> Iterator[Line]:
    first = True
    while raw := handle.readline(MAX_LINE):
        bad = None
        if len(raw) == MAX_LINE and not raw.endswith(b"\n"):
            while (more := handle.readline(MAX_LINE)) and not more.endswith(b"\n"):
                pass
            raw, bad = raw[:TEXT_CHARS], f"longer than {MAX_LINE} bytes"
        if first:
            raw, first = raw.removeprefix(b"\xef\xbb\xbf"), False
        try:
            yield Line(raw.decode(), bad)
        except UnicodeDecodeError as err:
            yield Line(raw.decode(errors="replace"), bad or f"not UTF-8 ({err.reason} at byte {err.start})")


def _filled(given: Iterator[Line]) -> Iterator[Line]:
    """Without blank lines, which are no rows."""
    return (line for line in given if not line.text.isspace())


def _tsv_records(given: Iterator[Line]) -> Iterator[list[str] | Bad]:
    """Quoting is off: a caption may begin with a quote and never end it."""
    for text, bad in _filled(given):
        yield Bad(bad, text) if bad else text.rstrip("\r\n").split("\t")


class _Feed:
    """Gives csv.reader its lines, remembers those of the record under way, and takes lines back."""

    def __init__(self, given: Iterator[Line]) -> None:
        self.given = given
        self.back: deque[Line] = deque()
        self.taken: list[Line] = []

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        line = self.back.popleft() if self.back else next(self.given)
        self.taken.append(line)
        return line.text

    def first_alone(self) -> Line:
        """The record's first line; the others are read again, as records of their own."""
        first, *rest = self.taken
        self.back.extendleft(reversed(rest))
        return first


def _csv_records(given: Iterator[Line]) -> Iterator[list[str] | Bad]:
    feed = _Feed(given)
    reader = csv.reader(feed)
    width: int | None = None
    while True:
        feed.taken.clear()
        why = None
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as err:
            cells, why = [], str(err)
        why = next((line.bad for line in feed.taken if line.bad), why)
        if not cells and not why:
            continue  # a blank line
        width = width or len(cells)
        # An unbalanced quote takes the lines behind it along: only the first one is malformed.
        if why or (len(feed.taken) > 1 and len(cells) != width):
            line = feed.first_alone()
            yield Bad(line.bad or why or "a quote that is never closed", line.text)
        else:
            yield cells


def _cells(records: Iterator[list[str] | Bad], header: str | Sequence[str]) -> Iterator[pa.Table]:
    peeked = list(itertools.islice(records, PEEKED))
    rows = [record for record in peeked if not isinstance(record, Bad)]
    names, headed = _columns(rows, header)
    if headed:
        peeked.remove(rows[0])
    records = itertools.chain(peeked, records)
    width = len(names)
    while chunk := list(itertools.islice(records, ROWS)):
        wrong = [_wrong(record, width) for record in chunk]
        empty = [None] * width
        good = [empty if why else record for record, why in zip(chunk, wrong, strict=True)]
        columns = [pa.array(column, pa.string()) for column in zip(*good, strict=True)]
        yield pa.table([*columns, pa.array(wrong, pa.string())], names=[*names, MALFORMED])


def _wrong(record: list[str] | Bad, width: int) -> str | None:
    if isinstance(record, Bad):
        return _said(record)
    return None if len(record) == width else _said(Bad(f"{len(record)} cells, expected {width}", " | ".join(record)))


def _said(bad: Bad) -> str:
    return f"{bad.why}: {bad.text.strip()[:TEXT_CHARS]}"


def _columns(rows: list[list[str]], header: str | Sequence[str]) -> tuple[list[str], bool]:
    """The columns' names, and whether the first row is a header. A header has no cell that is a URL."""
    width = Counter(map(len, rows)).most_common(1)[0][0] if rows else 0
    if header != "auto":
        given = PUBLISHED.get(header, ()) if isinstance(header, str) else header
        return [*given, *(f"column_{i}" for i in range(len(given), width))][: max(width, 2) if isinstance(header, str) else None], False
    if not rows:
        return [], False
    if len(rows[0]) == width and not any(_URL.match(cell) for cell in rows[0]):
        return unique([cell.strip() or f"column_{i}" for i, cell in enumerate(rows[0])], OWN), True
    return _guessed([row for row in rows if len(row) == width], width), False


def _guessed(rows: list[list[str]], width: int) -> list[str]:
    """Names for the columns of a table without header: the URLs, hex digests by their length, and of the rest the wordiest."""
    names = [f"column_{i}" for i in range(width)]
    columns = list(zip(*rows, strict=True))
    urls = [sum(bool(_URL.match(cell)) for cell in column) for column in columns]
    at = urls.index(max(urls))
    names[at] = "url"
    for i, column in enumerate(columns):
        for name, digits in (("sha256", 64), ("md5", 32)):
            if name not in names and all(len(cell) == digits and _HEX.fullmatch(cell) for cell in column):
                names[i] = name
    rest = [i for i in range(width) if names[i].startswith("column_")]
    if rest:
        names[max(rest, key=lambda i: (sum(cell.strip().count(" ") for cell in columns[i]), -i))] = "caption"
    return names


def _object(line: Line) -> dict[str, Any] | Bad:
    if line.bad:
        return Bad(line.bad, line.text)
    try:
        value = json.loads(line.text)
    except (ValueError, RecursionError) as err:
        return Bad(f"no JSON ({err})", line.text)
    return value if isinstance(value, dict) else Bad("no JSON object", line.text)


def _objects(rows: Iterator[dict[str, Any] | Bad]) -> Iterator[pa.Table]:
    known: dict[str, None] = {}  # all names so far, so that a table of rows that lack a column has it all the same
    while chunk := list(itertools.islice(rows, ROWS)):
        wrong = [_said(row) if isinstance(row, Bad) else None for row in chunk]
        good: list[dict[str, Any]] = [{} if isinstance(row, Bad) else row for row in chunk]
        known |= dict.fromkeys(name for row in good for name in row if name not in OWN)
        columns = [array_of([row.get(name) for row in good]) for name in known]
        yield pa.table([*columns, pa.array(wrong, pa.string())], names=[*map(sound, known), MALFORMED])


def _whole(handle: io.BufferedReader) -> list[Any]:
    """The rows of a file that is one JSON value: a list of objects, parallel lists (SBU), or `annotations` (RedCaps)."""
    data = handle.read(MAX_JSON + 1)
    if len(data) > MAX_JSON:
        raise BrokenError(f"one JSON value of more than {MAX_JSON >> 30} GiB; write it as JSON lines")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as err:
        raise BrokenError(f"no JSON ({err}); if it holds an object a line, set input.format: jsonl") from err
    if isinstance(value, dict) and isinstance(value.get("annotations"), list):
        value = value["annotations"]
    if isinstance(value, dict):
        value = _parallel(value)
    if not isinstance(value, list):
        raise BrokenError("neither a list of objects, nor parallel lists, nor `annotations`")
    return [row if isinstance(row, dict) else Bad("no JSON object", json.dumps(row)) for row in value]


def _parallel(value: dict[str, Any]) -> list[dict[str, Any]]:
    lists = {name: inner for name, inner in value.items() if isinstance(inner, list)}
    lengths = {name: len(inner) for name, inner in lists.items()}
    if not lists or len(set(lengths.values())) > 1:
        raise BrokenError(f"parallel lists must have one length; found {lengths or 'no list'}")
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
