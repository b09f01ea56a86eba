"""SRT as it is found, and SBV. SRT has no standard: what players accept is the rule, and what is left out is counted.

Compared with others' readers on the same files: docs/decisions/0003-subtitles.md.
"""

from __future__ import annotations

import re

from stages.lib.subtitles.cuetext import srt_text
from stages.lib.subtitles.model import MAX_MS, Found, RawCue

_STAMP = r"(?:(\d+)\s*:\s*)?(\d+)\s*:\s*(\d+)(?:[,.:](?:\s*(\d+))?)?"
# What follows the end is dropped: coordinates ("X1:000 X2:…") and WebVTT's settings.
_TIMING = re.compile(rf"\s*{_STAMP}\s*-+>\s*{_STAMP}(?:\s.*)?")
_ARROW = re.compile(r"-->")
_INDEX = re.compile(r"\s*\d+\s*")
_SBV = re.compile(r"\s*(\d+):(\d\d):(\d\d)\.(\d{3}),(\d+):(\d\d):(\d\d)\.(\d{3})\s*")


def read_srt(text: str) -> Found:
    """Cues in the file's order. A block after a blank line that has no timing belongs to the cue before it, unless it begins with an index:
    then it is a cue without a time, left out as `no_timing`."""
    found = Found()
    lines = re.split(r"\r\n|\r|\n", text)
    timings = [n for n, line in enumerate(lines) if _ARROW.search(line)]
    before = _strip_index(lines[: timings[0]] if timings else lines)
    if any(line.strip() for line in before):
        found.odd["text_before_first_cue"] += 1
    for here, after in zip(timings, [*timings[1:], None], strict=True):
        body = lines[here + 1 : after]
        if after is not None:
            body = _strip_index(body)
        start, end = _timing(lines[here])
        if start is None or end is None:
            found.odd["bad_timing"] += 1
        else:
            found.raws.append(RawCue(start, end, ((None, srt_text(_own(body, found))),)))
    return found


def _strip_index(lines: list[str]) -> list[str]:
    """Without the number that stands directly before a timing line."""
    return lines[:-1] if lines and _INDEX.fullmatch(lines[-1]) else lines


def _own(body: list[str], found: Found) -> str:
    """The lines that belong to a cue, of those up to the next timing."""
    blocks: list[list[str]] = [[]]
    for line in body:
        if line.strip():
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    kept = blocks[0]
    for block in filter(None, blocks[1:]):
        if _INDEX.fullmatch(block[0]):
            found.odd["no_timing"] += 1
        else:
            found.odd["blank_line_in_text"] += 1
            kept = kept + block
    above = "\n" if body and body[0].isspace() else ""  # of a rolling track a line with a blank alone, above a line that is new
    return above + "\n".join(kept)


def _timing(line: str) -> tuple[int | None, int | None]:
    matched = _TIMING.fullmatch(line)
    if not matched:
        return None, None
    return _ms(matched.groups()[:4]), _ms(matched.groups()[4:8])


def _ms(groups: tuple[str | None, ...]) -> int | None:
    hours, minutes, seconds = (int((group or "0")[-9:]) for group in groups[:3])
    fraction = int(((groups[3] or "") + "000")[:3])
    ms = ((hours * 60 + minutes) * 60 + seconds) * 1000 + fraction
    return ms if ms <= MAX_MS else None


def read_sbv(text: str) -> Found:
    """YouTube's SBV: a line of two times, then the text, up to a blank line."""
    found = Found()
    open_: tuple[int, int] | None = None
    payload: list[str] = []
    for line in [*re.split(r"\r\n|\r|\n", text), ""]:
        if matched := _SBV.fullmatch(line):
            _close(found, open_, payload)
            start, end = _ms(matched.groups()[:4]), _ms(matched.groups()[4:])
            open_ = (start, end) if start is not None and end is not None else None
            payload = []
        elif line.strip():
            payload.append(line.replace("[br]", "\n"))
    _close(found, open_, payload)
    return found


def _close(found: Found, times: tuple[int, int] | None, payload: list[str]) -> None:
    if times:
        found.raws.append(RawCue(*times, ((None, "\n".join(payload)),)))
    elif payload:
        found.odd["text_before_first_cue"] += 1


def is_sbv(text: str) -> bool:
    """True where one of the first lines is a timing of SBV."""
    return any(_SBV.fullmatch(line) for line in text[:2000].splitlines()[:20])
