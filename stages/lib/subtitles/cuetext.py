"""The text of a cue: WebVTT's tags and times, and the tags that are found in SRT.

Source: W3C WebVTT, section 6.4 (cue text parsing rules) and 6.5 (tokenizer): a tag ends at the next ">" or with the cue; unknown tags are
ignored and their text stays; character references are HTML's.
"""

from __future__ import annotations

import html
import re

_TAG = re.compile(r"<([^>]*)(?:>|\Z)")
_TIME = re.compile(r"(?:(\d{2,}):)?([0-5]\d):([0-5]\d)\.(\d{3})\Z")
_NAME = re.compile(r"/?[^\s.]*")
_SRT_TAG = re.compile(r"</?(?:b|i|u|s|em|strong|strike|font|span|c|v|br|p|div|ruby|rt)(?:[\s.][^<>]*)?/?>|<\d[\d:.,]*>|\{\\[^{}]*\}", re.I)
_ZERO_WIDTH = str.maketrans("", "", "\u200b\ufeff")


def timestamp(text: str) -> int | None:
    """Milliseconds of a WebVTT timestamp tag's content, or None."""
    found = _TIME.match(text)
    if not found:
        return None
    hours, minutes, seconds, ms = found.groups()
    return ((int(hours[-9:] if hours else 0) * 60 + int(minutes)) * 60 + int(seconds)) * 1000 + int(ms)


def vtt_pieces(payload: str) -> tuple[tuple[int | None, str], ...]:
    """The text between time tags, each with the time before it; tags removed, of ruby only the base kept."""
    pieces: list[tuple[int | None, str]] = [(None, "")]
    rubies, reading, at = 0, False, 0
    for tag in _TAG.finditer(payload):
        _add(pieces, payload[at : tag.start()], reading)
        at = tag.end()
        inside = tag.group(1)
        found = _NAME.match(inside)
        name = found.group() if found else ""
        if name[:1].isdigit() and (time := timestamp(inside)) is not None:
            pieces.append((time, ""))
        elif name in ("ruby", "/ruby"):
            rubies, reading = max(0, rubies + (1 if name == "ruby" else -1)), False
        elif name in ("rt", "/rt"):
            reading = name == "rt" and rubies > 0
    _add(pieces, payload[at:], reading)
    return tuple((time, text) for time, text in pieces if text or time is not None)


def _add(pieces: list[tuple[int | None, str]], text: str, reading: bool) -> None:
    if text and not reading:
        pieces[-1] = (pieces[-1][0], pieces[-1][1] + html.unescape(text))


def srt_text(payload: str) -> str:
    """SRT's text without the tags and {\\an8}-style overrides that players know. Other angle brackets are text: "2<3"."""
    return html.unescape(_SRT_TAG.sub("", payload))


def tidy(line: str) -> str:
    """A line with single blanks and without the zero-width padding of styled uploads."""
    return " ".join(line.translate(_ZERO_WIDTH).split())
