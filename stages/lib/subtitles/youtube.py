"""YouTube's own track formats: json3, srv3 ("timedtext format 3", also hand-made .ytt uploads), srv2 and srv1.

No specification is published. The fields are as yt-dlp's `youtube/_video.py` asks for them and as served; json3 and srv3 say the
same one to one (`tStartMs dDurationMs aAppend` = `t d a`). A line's duration is how long it is *shown*, until the line after next:
see `rolling.py`.
"""

from __future__ import annotations

import html
import re
from typing import Any

from stages.lib.subtitles.cuetext import srt_text
from stages.lib.subtitles.model import Found, RawCue, to_ms
from stages.lib.subtitles.xmltree import Node

_NOT_BASE = {"2", "3", "4", "5"}
"""srv3's ruby of a pen: 1 is the base, 2 the parentheses for players without ruby, 4 and 5 the reading before and after."""


def is_json3(data: Any) -> bool:
    return isinstance(data, dict) and isinstance(data.get("events"), list)


def read_json3(data: dict[str, Any]) -> Found:
    found = Found()
    for event in data["events"]:
        if not isinstance(event, dict) or not isinstance(event.get("segs"), list):
            continue  # opens a window
        pieces = [(segment.get("tOffsetMs", 0), str(segment.get("utf8") or "")) for segment in event["segs"] if isinstance(segment, dict)]
        _event(found, (event.get("tStartMs", 0), event.get("dDurationMs")), pieces, bool(event.get("aAppend")))
    found.rolling = found.odd.pop("appended", 0) > 0
    return found


def read_srv3(root: Node) -> Found:
    found = Found()
    pens = {pen.attributes.get("id") for pen in root.find("pen") if pen.attributes.get("rb") in _NOT_BASE}
    for line in root.find("p"):
        pieces: list[tuple[Any, str]] = []
        for child in line.children:
            if isinstance(child, str):
                pieces.append((pieces[-1][0] if pieces else 0, child))
            elif child.name == "br":
                pieces.append((pieces[-1][0] if pieces else 0, "\n"))
            elif child.attributes.get("p") not in pens:
                pieces.append((child.attributes.get("t", 0), "".join(part for part in child.children if isinstance(part, str))))
        times = (line.attributes.get("t", 0), line.attributes.get("d"))
        _event(found, times, pieces, line.attributes.get("a") == "1")
    found.rolling = found.odd.pop("appended", 0) > 0
    if not found.rolling:
        found.raws = _without_shadows(found)
    return found


def _event(found: Found, times: tuple[Any, Any], pieces: list[tuple[Any, str]], append: bool) -> None:
    """One line of speech. An appended event holds a newline and is no line."""
    text = "".join(text for _, text in pieces)
    if append and not text.strip():
        found.odd["appended"] += 1
        return
    start, duration = _whole_ms(times[0]), _whole_ms(times[1])
    if start is None:
        found.odd["bad_timing"] += 1
        return
    offsets = [_whole_ms(offset) for offset, _ in pieces]
    timed = len({offset for offset in offsets if offset is not None}) > 1
    at = tuple((start + offset if timed and offset is not None else None, text) for offset, (_, text) in zip(offsets, pieces, strict=True))
    found.raws.append(RawCue(start, None if duration is None else start + duration, at))


def _whole_ms(value: Any) -> int | None:
    try:
        ms = to_ms(float(value) / 1000)
    except (TypeError, ValueError, OverflowError):
        return None
    return ms


def _without_shadows(found: Found) -> list[RawCue]:
    """Styled uploads write a text several times at one place of the clock, for shadows, and again where its look changes: it is said
    once."""
    out: list[RawCue] = []
    last: dict[str, int] = {}  # text -> where it was written last
    for raw in found.raws:
        text = "".join(text for _, text in raw.pieces)
        at = last.get(text)
        if at is not None and out[at].end_or_start() >= raw.start >= out[at].start:
            end = max(out[at].end_or_start(), raw.end_or_start())
            out[at] = RawCue(out[at].start, end, out[at].pieces)
            found.odd["repeated_cues"] += 1
        else:
            last[text] = len(out)
            out.append(raw)
    return out


def read_srv1(root: Node) -> Found:
    """srv1 counts seconds (`start`, `dur`), srv2 milliseconds (`t`, `d`); the text is escaped once more, and may hold HTML."""
    found = Found(rolling=False)
    for line in root.find("text"):
        have = line.attributes
        if "start" in have:
            start, duration = to_ms(have["start"]), to_ms(have.get("dur"))
        else:
            start, duration = _whole_ms(have.get("t")), _whole_ms(have.get("d"))
        if start is None:
            found.odd["bad_timing"] += 1
            continue
        text = "".join(part for part in line.children if isinstance(part, str))
        text = srt_text(re.sub(r"<br\s*/?>", "\n", html.unescape(text)))
        found.raws.append(RawCue(start, None if duration is None else start + duration, ((None, text),)))
    return found
