"""Readings of subtitle files that share no code with stages/lib/subtitles, to compare it with."""

from __future__ import annotations

import json
import re

TIMING = re.compile(r"(?:(\d+):)?(\d\d):(\d\d)\.(\d{3}) --> (?:(\d+):)?(\d\d):(\d\d)\.(\d{3})")


def seconds(hours: str | None, minutes: str, secs: str, ms: str) -> float:
    return int(hours or 0) * 3600 + int(minutes) * 60 + int(secs) + int(ms) / 1000


def rolling_lines(text: str) -> list[tuple[float, str]]:
    """YouTube's two-line form read by its letter: the second line of each cue that lasts longer than 10 ms, with the cue's start.

    After a pause the line may stand first, then the second is blank and the first has not been shown before.
    """
    out: list[tuple[float, str]] = []
    for block in re.split(r"\n\n+", text.replace("\r\n", "\n")):
        head, *lines = block.split("\n")
        timing = TIMING.match(head)
        if not timing or not lines:
            continue
        start, end = seconds(*timing.groups()[:4]), seconds(*timing.groups()[4:])
        if end - start < 0.0105:
            continue
        line = plain(lines[1]) if len(lines) > 1 else ""
        if line:
            out.append((start, line))
    return out


def shown(text: str) -> list[tuple[float, float, str]]:
    """Start, end and lines of each cue of a WebVTT file, without tags."""
    out = []
    for block in re.split(r"\n\n+", text.replace("\r\n", "\n")):
        head, *lines = block.split("\n")
        if timing := TIMING.match(head):
            start, end = seconds(*timing.groups()[:4]), seconds(*timing.groups()[4:])
            out.append((start, end, "\n".join(re.sub(r"<[^>]*>", "", line) for line in lines)))
    return out


def plain(line: str) -> str:
    line = re.sub(r"<[^>]*>", "", line)
    for name, sign in (("&gt;", ">"), ("&lt;", "<"), ("&nbsp;", " "), ("&amp;", "&")):
        line = line.replace(name, sign)
    return " ".join(line.split())


def json3_words(body: bytes) -> list[tuple[str, int]]:
    """Every word of a json3 track with its milliseconds."""
    events = [event for event in json.loads(body)["events"] if "segs" in event]
    return [
        (segment["utf8"].strip(), event["tStartMs"] + segment.get("tOffsetMs", 0))
        for event in events
        for segment in event["segs"]
        if segment["utf8"].strip()
    ]


def write_rolling(lines: list[list[tuple[int, str]]], gap_ms: int = 0) -> str:
    """YouTube's automatic form: lines of (start in ms, word), each in a cue that builds it and one of 10 ms that holds it."""
    out = ["WEBVTT", "Kind: captions", "Language: en", ""]
    before = " "
    for n, line in enumerate(lines):
        start = line[0][0]
        end = lines[n + 1][0][0] - 10 if n + 1 < len(lines) else line[-1][0] + 700
        timed = line[0][1] + "".join(f"<{stamp(at)}><c> {word}</c>" for at, word in line[1:])
        out += [f"{stamp(start)} --> {stamp(end)} align:start position:0%", before, timed, ""]
        before = " ".join(word for _, word in line)
        out += [f"{stamp(end)} --> {stamp(end + 10)} align:start position:0%", before, " ", ""]
    return "\n".join(out)


def write_plain(cues: list[tuple[float, float, str]]) -> str:
    blocks = [f"{stamp(round(start * 1000))} --> {stamp(round(end * 1000))}\n{text}" for start, end, text in cues]
    return "\n\n".join(["WEBVTT", *blocks])


def stamp(ms: int) -> str:
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}.{ms % 1000:03}"


def srt_stamp(seconds: float) -> str:
    return stamp(round(seconds * 1000)).replace(".", ",")
