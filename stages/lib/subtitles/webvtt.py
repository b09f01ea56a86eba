"""WebVTT by the W3C's parsing rules, and the two things found in the wild beside them: no signature, and files joined end to end.

Source: W3C WebVTT, sections 6.1 (file parser), "collect a WebVTT block", "collect WebVTT cue timings and settings". Cue settings
are not kept but for `position:0%`, by which YouTube's rolling captions are known; STYLE, REGION and NOTE are blocks without a cue.
Joined HLS pieces are placed by RFC 8216, section 3.5 (X-TIMESTAMP-MAP).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from stages.lib.subtitles.cuetext import vtt_pieces
from stages.lib.subtitles.model import MAX_MS, Found, RawCue

_STAMP = r"(?:(\d+):)?([0-5]\d):([0-5]\d)\.(\d{3})"
_TIMING = re.compile(rf"[ \t\f]*{_STAMP}[ \t\f]*-->[ \t\f]*{_STAMP}(?!\d)(.*)")
_SIGNATURE = re.compile(r"WEBVTT(?:[ \t]|$)")
_MAP = re.compile(r"X-TIMESTAMP-MAP=(?=.*LOCAL:(?:(\d+):)?(\d+):(\d+)\.(\d{3}))(?=.*MPEGTS:(\d{1,12}))")
_LANGUAGE = re.compile(r"Language:[ \t]*([A-Za-z0-9-]+)")
_WRAP = 1 << 33  # of MPEG's clock of 90 kHz


@dataclass(frozen=True)
class _Part:
    """One of several files joined end to end: where its cues begin, and its map from LOCAL (ms) to MPEGTS (ticks)."""

    first: int
    local: int
    ticks: int


def read(text: str) -> Found:
    """All cues in the file's order."""
    found = Found()
    lines = re.split(r"\r\n|\r|\n", text)
    parts: list[_Part] = []
    at = _header(lines, found, parts)
    while at < len(lines):
        if _SIGNATURE.match(lines[at]) and found.raws:
            found.odd["joined_files"] += 1
            at = _header_lines(lines, at + 1, found, parts)
        elif lines[at] == "":
            at += 1
        else:
            at = _block(lines, at, found)
    if len(parts) > 1:
        _place(found, parts)
    return found


def _header(lines: list[str], found: Found, parts: list[_Part]) -> int:
    if not _SIGNATURE.match(lines[0]):
        found.odd["no_signature"] = 1
        return 0
    return _header_lines(lines, 1, found, parts)


def _header_lines(lines: list[str], at: int, found: Found, parts: list[_Part]) -> int:
    """The lines up to the first blank one; a line with an arrow belongs to the first cue."""
    while at < len(lines) and lines[at] != "" and "-->" not in lines[at]:
        if language := _LANGUAGE.match(lines[at]):
            found.language = found.language or language.group(1)
        if mapped := _MAP.match(lines[at]):
            hours, minutes, seconds, ms, ticks = (int(number or 0) for number in mapped.groups())
            parts.append(_Part(len(found.raws), ((hours * 60 + minutes) * 60 + seconds) * 1000 + ms, ticks))
        at += 1
    return at


def _block(lines: list[str], at: int, found: Found) -> int:
    """One block: a cue, or a comment, style sheet, region or junk. Returns where the next begins."""
    begin, timing, seen = at, None, False
    payload: list[str] = []
    while at < len(lines) and lines[at] != "":
        if "-->" in lines[at]:
            if at - begin > 1 or seen:
                break
            seen, payload = True, []
            timing = _timing(lines[at], found)
        else:
            payload.append(lines[at])
        at += 1
    if timing:
        start, end, marked = timing
        found.raws.append(RawCue(start, end, vtt_pieces("\n".join(payload)), marked))
    return at


def _timing(line: str, found: Found) -> tuple[int, int, bool] | None:
    matched = _TIMING.match(line)
    if matched:
        start, end = _ms(matched.groups()[:4]), _ms(matched.groups()[4:8])
        if max(start, end) <= MAX_MS:
            return start, end, "position:0%" in matched.group(9)
    found.odd["bad_timing"] += 1
    return None


def _ms(groups: tuple[str | None, ...]) -> int:
    hours, minutes, seconds, ms = (int((group or "0")[-9:]) for group in groups)
    return ((hours * 60 + minutes) * 60 + seconds) * 1000 + ms


def _place(found: Found, parts: list[_Part]) -> None:
    """Puts the cues of joined HLS pieces on one clock, that of the first piece; cues that two pieces share stay once."""
    first = parts[0]
    raws = list(found.raws[: first.first])
    for part, end in zip(parts, [*(part.first for part in parts[1:]), len(found.raws)], strict=True):
        ticks = (part.ticks - first.ticks + _WRAP // 2) % _WRAP - _WRAP // 2
        shift = round(ticks / 90) - (part.local - first.local)
        raws += [_shifted(raw, shift) for raw in found.raws[part.first : end] if raw.start + shift >= 0]
    once = dict.fromkeys(sorted(raws, key=lambda raw: raw.start))
    found.odd["repeated_cues"] += len(raws) - len(once)
    found.odd["bad_timing"] += len(found.raws) - len(raws)
    found.raws = list(once)


def _shifted(raw: RawCue, by: int) -> RawCue:
    pieces = tuple((None if time is None else time + by, text) for time, text in raw.pieces)
    return RawCue(raw.start + by, None if raw.end is None else raw.end + by, pieces, raw.marked)
