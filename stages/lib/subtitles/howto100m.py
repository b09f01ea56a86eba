"""HowTo100M's captions: caption.json, raw_caption.json and users' pickles of them, and the CSV files of MIL-NCE.

Sources: antoine77340/howto100m README ({id: {"start": […], "end": […], "text": […]}}, seconds), antoine77340/MIL-NCE_HowTo100M
`video_loader.py` (one CSV a video: start,end,text), fairseq's examples/MMPT `dedupprocessor.py` (pickles of {id: JSON text}). Many
of these tracks still repeat: each line holds the line before it and the new words; MMPT removes the overlap too, by characters and
by a coin, we by words.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

from stages.lib.subtitles.cuetext import tidy
from stages.lib.subtitles.model import Found, RawCue, SubtitleError, to_ms

_KEYS = ("start", "end", "text")
_NEAR_MS = 1000
REPEATED = 200  # words of a line, at most, that the next one repeats


def is_captions(data: Any) -> bool:
    """True for one video's captions."""
    return isinstance(data, dict) and all(isinstance(data.get(key), list | tuple) for key in _KEYS)


def pick(data: Any, video: str | None) -> Any:
    """One video's captions, out of a collection by its id. Raises SubtitleError("unknown_format") where there is none."""
    if isinstance(data, dict) and not is_captions(data) and data:
        if video is None and len(data) == 1:
            video = str(next(iter(data)))
        if video is None:
            raise SubtitleError("unknown_format", f"captions of {len(data)} videos, and no video id says which")
        data = data.get(video)
    if isinstance(data, str):
        data = loads(data)
    if not is_captions(data):
        raise SubtitleError("unknown_format", "no start, end and text of captions" + (f" for video {video}" if video else ""))
    return data


def loads(text: str) -> Any:
    """JSON; raises SubtitleError("malformed")."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as err:
        raise SubtitleError("malformed", f"JSON: {err}"[:200]) from None


def read_captions(data: dict[str, Any]) -> Found:
    starts, ends, texts = (data[key] for key in _KEYS)
    found = _read(zip(starts, ends, texts, strict=False))
    if len({len(starts), len(ends), len(texts)}) > 1:
        found.odd["unequal_lists"] += 1
    return found


def is_csv(text: str) -> bool:
    head = text[:500].partition("\n")[0].strip().lower()
    return set(_KEYS) <= {name.strip(' "') for name in head.split(",")}


def read_csv(text: str) -> Found:
    lines = io.StringIO(text.replace("\x00", ""), newline="")
    try:
        header = [name.strip().lower() for name in next(csv.reader(lines))]
        at = [header.index(key) for key in _KEYS]
        rows = [row for row in csv.reader(lines) if len(row) > max(at)]
    except (csv.Error, ValueError) as err:
        raise SubtitleError("malformed", f"CSV: {err}") from None
    return _read((row[at[0]], row[at[1]], row[at[2]]) for row in rows)


def _read(rows: Iterable[tuple[Any, Any, Any]]) -> Found:
    found = Found(rolling=False)
    for start, end, text in rows:
        begin, stop = to_ms(start), to_ms(end)
        if begin is None or stop is None:
            found.odd["bad_timing"] += 1
        else:
            found.raws.append(RawCue(begin, stop, ((None, text if isinstance(text, str) else ""),)))
    found.raws = without_overlap(found.raws, found)
    return found


def without_overlap(raws: list[RawCue], found: Found) -> list[RawCue]:
    """Lines without the words that the line before them ends with, where most lines of the track begin so."""
    words = [tidy(raw.pieces[0][1]).split() for raw in raws]
    near = [n for n in range(1, len(raws)) if raws[n].start - raws[n - 1].end_or_start() <= _NEAR_MS and words[n] and words[n - 1]]
    shared = {n: _shared(words[n - 1], words[n]) for n in near}
    repeating = [n for n in near if shared[n]]
    if len(repeating) <= len(near) / 2:
        return raws
    found.odd["overlapping_words"] = len(repeating)
    return [RawCue(raw.start, raw.end, ((None, " ".join(words[n][shared[n] :])),)) if shared.get(n) else raw for n, raw in enumerate(raws)]


def _shared(before: list[str], after: list[str]) -> int:
    """How many words `before` ends and `after` begins with."""
    return next((k for k in range(min(len(before), len(after), REPEATED), 0, -1) if before[-k:] == after[:k]), 0)


def entries(chunks: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """(id, captions) of a collection's JSON text, one after the other: no more than the largest entry is held at once.

    `chunks` are pieces of the text of any size. Raises SubtitleError("malformed") where it is not one JSON object.
    """
    decoder = json.JSONDecoder()
    source = iter(chunks)
    buffer, ended, first = "", False, True
    while True:
        try:
            taken = _entry(decoder, buffer, first)
        except (ValueError, RecursionError):
            taken = None
        if taken is None:
            if ended:
                raise SubtitleError("malformed", f"JSON: no entry at {buffer[:40]!r}")
            more = next(source, None)
            ended = more is None
            buffer += "".join([more or "", *(() if ended else _grow(source, len(buffer)))])
            continue
        key, value, rest = taken
        if key is None:
            return
        yield key, value
        buffer, first = rest, False


def _grow(source: Iterator[str], length: int) -> Iterator[str]:
    """Takes as much again as is held, so that a long entry is tried a few times only."""
    got = 0
    while got < length:
        more = next(source, None)
        if more is None:
            return
        got += len(more)
        yield more


def _entry(decoder: json.JSONDecoder, text: str, first: bool) -> tuple[str | None, Any, str] | None:
    """The first `"id": value` of the text and what follows it; (None, …) at the object's end; ValueError where it is cut."""
    rest = text.lstrip()
    if first and rest[:1] != "{":
        raise ValueError("no object")
    if rest[:1] == "}" or (first and rest[1:].lstrip()[:1] == "}"):
        return None, None, ""
    if not first and rest[:1] != ",":
        raise ValueError("no comma")
    rest = rest[1:].lstrip()
    key, at = decoder.raw_decode(rest)
    rest = rest[at:].lstrip()
    if not isinstance(key, str) or rest[:1] != ":":
        raise ValueError("no key")
    value, at = decoder.raw_decode(rest[1:].lstrip())
    after = rest[1:].lstrip()[at:]
    if not after.lstrip():
        raise ValueError("may be cut")
    return key, value, after
