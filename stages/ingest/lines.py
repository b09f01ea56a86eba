"""Text tables: CSV, TSV, JSON lines, and the JSON forms of SBU and RedCaps; plain, .gz or .zst.

One Python step a line: pyarrow's CSV reader neither numbers a broken line nor goes on after an unbalanced quote, and its JSON
reader refuses a whole block for one bad line. Here each of these is one malformed row.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import zstandard

from stages.ingest import records, unpack
from stages.ingest.columns import SPELLINGS
from stages.ingest.rebatch import MALFORMED, OWN, array_of, sound, unique
from stages.ingest.records import URL, Bad
from stages.ingest.unpack import TEXT_CHARS, Line
from stages.lib.subtitles import SubtitleError, howto100m

ROWS = 8192  # rows a table
MAX_JSON = 2 << 30  # bytes of a file that is one JSON value, and so must be held as a whole
JSON_CHUNK = 1 << 16  # characters of an object of objects that are read at once: each entry copies what is held
PEEKED = 20  # lines that tell the columns of a table without a header

PUBLISHED = {"cc3m": ("caption", "url", "labels", "mids", "scores"), "cc12m": ("url", "caption")}
_HEX = re.compile(r"[0-9a-fA-F]+")


class BrokenError(Exception):
    """The file as a whole cannot be read on."""


def tables(opened: Callable[[], Any], format: str, header: str | Sequence[str], url: str) -> Iterator[pa.Table]:
    """Raw tables of at most 8,192 rows, with `__malformed__`. Raises BrokenError for a file that ends too early or is no JSON."""
    with opened() as raw, unpack.unpacked(raw, url) as handle:
        try:
            if format == "json":
                yield from _objects(iter(_whole(handle)))
            elif format == "howto100m":
                yield from _objects(_captions(handle))
            elif format == "jsonl":
                yield from _objects(map(_object, records.filled(unpack.lines(handle))))
            else:
                found = records.quoted if format == "csv" else records.tsv
                yield from _cells(found(unpack.lines(handle)), header)
        except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as err:
            raise BrokenError(f"{type(err).__name__}: {err}") from err


def _cells(given: Iterator[list[str] | Bad], header: str | Sequence[str]) -> Iterator[pa.Table]:
    peeked = list(itertools.islice(given, PEEKED))
    rows = [record for record in peeked if not isinstance(record, Bad)]
    names, head = _columns(rows, header)
    if head is not None:
        peeked.remove(head)
    all_records = itertools.chain(peeked, given)
    width = len(names)
    while chunk := list(itertools.islice(all_records, ROWS)):
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


def _columns(rows: list[list[str]], header: str | Sequence[str]) -> tuple[list[str], list[str] | None]:
    """The columns' names, and the row that is the header, if there is one: the first of the usual width.

    Before it may stand lines of another width, a comment for one; they are malformed rows. Then it must name a column that is known. A
    URL up to there says that there is no header.
    """
    width = Counter(map(len, rows)).most_common(1)[0][0] if rows else 0
    if header != "auto":
        given = PUBLISHED.get(header, ()) if isinstance(header, str) else header
        return [*given, *(f"column_{i}" for i in range(len(given), width))][: max(width, 2) if isinstance(header, str) else None], None
    if not rows:
        return [], None
    usual = [row for row in rows if len(row) == width]
    first = rows.index(usual[0])
    if any(URL.match(cell) for row in rows[: first + 1] for cell in row) or (first and not _names_one(usual[0])):
        return _guessed(usual, width), None
    return unique([cell.strip() or f"column_{i}" for i, cell in enumerate(usual[0])], OWN), usual[0]


def _names_one(row: list[str]) -> bool:
    known = {spelling for spellings in SPELLINGS.values() for spelling in spellings}
    return any(cell.strip().lower() in known for cell in row)


def _guessed(rows: list[list[str]], width: int) -> list[str]:
    """Names for the columns of a table without header: the URLs, hex digests by their length, and of the rest the wordiest."""
    names = [f"column_{i}" for i in range(width)]
    columns = list(zip(*rows, strict=True))
    urls = [sum(bool(URL.match(cell)) for cell in column) for column in columns]
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


def _captions(handle: io.BufferedReader) -> Iterator[dict[str, Any] | Bad]:
    """A row each of the videos of HowTo100M's caption.json or raw_caption.json, which has 8 GB and more: it is streamed."""
    text = io.TextIOWrapper(handle, "utf-8", "replace")
    try:
        for video, captions in howto100m.entries(iter(lambda: text.read(JSON_CHUNK), "")):
            if howto100m.is_captions(captions):
                yield {"video_id": video, "subtitle": json.dumps(captions)}
            else:
                yield Bad("no start, end and text of captions", f"{video}: {json.dumps(captions)}")
    except SubtitleError as err:
        raise BrokenError(f"{err.detail}; it should be one JSON object of video id -> start, end, text") from err


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
