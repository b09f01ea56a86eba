"""Subtitles of every common form, read from bytes: `parse(body)` gives a `Track` of timed cues or raises `SubtitleError`.

What a file is, is seen from its content; its name is a hint at most (a server may answer srv3 whatever was asked for). Reading is lenient:
what is broken is mended or left out, and counted in `Track.oddities`. Why these readers and no library's: docs/decisions/0003-subtitles.md.
"""

from __future__ import annotations

import re
from typing import Any

from stages.lib.subtitles import embedded, howto100m, recognised, srt, ttml, webvtt, youtube
from stages.lib.subtitles.decode import decode
from stages.lib.subtitles.finish import finish
from stages.lib.subtitles.model import REASONS, Cue, Found, SubtitleError, Track, Word
from stages.lib.subtitles.plainpickle import read_pickle
from stages.lib.subtitles.xmltree import Node, read_xml

__all__ = ["FORMATS", "REASONS", "Cue", "SubtitleError", "Track", "Word", "parse"]

FORMATS = ("vtt", "srt", "sbv", "json3", "srv1", "srv2", "srv3", "ttml", "howto100m", "milnce_csv", "caption_pickle")

_PICKLE = re.compile(rb"\x80[\x02-\x05]|\(d[p\n]|\}q|\}\x94")
_JSON = re.compile(r"\{(?!\d)|\[(?![\dA-Za-z])")  # not "[Script Info]" of ASS, "{1}{25}" of MicroDVD, "[00:12.00]" of lyrics
_COMMA_TIMING = re.compile(r"\d,\d{1,3}\s*-{1,9}>|-{1,9}>\s*[\d:]+,\d")
_INDEXED = re.compile(r"^\s{0,20}\d+[ \t]*(?:\r\n|\r|\n)[ \t]*[-\d:.,]+[ \t]*-->", re.MULTILINE)


def parse(body: bytes, hint: str = "", language: str | None = None, video: str | None = None) -> Track:
    """Reads one subtitle file.

    `hint`: a file name, extension or media type, for what the content leaves open. `language`: for files in old encodings.
    `video`: whose captions, where the file is a collection of HowTo100M's.
    """
    if not body.strip():
        raise SubtitleError("empty", f"{len(body)} bytes")
    if _PICKLE.match(body) and (body[:1] == b"\x80" or "pickle" in hint or hint.endswith("pkl")):
        found = howto100m.read_captions(howto100m.pick(read_pickle(body), video))
        return finish(found, "caption_pickle", "pickle")
    text, encoding, replaced = decode(body, language)
    if not text.strip("\ufeff \t\r\n\f"):
        raise SubtitleError("empty", "white space alone")
    kind, found = _read(text.removeprefix("\ufeff"), hint.lower(), video)
    found.odd["replaced_bytes"] += replaced
    return finish(found, kind, encoding)


def _read(text: str, hint: str, video: str | None) -> tuple[str, Found]:
    start = text.lstrip()
    if _JSON.match(start) and "-->" not in start[:200]:
        return _read_json(howto100m.loads(start), video)
    if start[:1] == "<" and "-->" not in start.partition("\n")[0]:
        return _read_xml(start)
    if howto100m.is_csv(start):
        return "milnce_csv", howto100m.read_csv(start)
    kind = _timed_lines(text, hint)
    if kind == "sbv":
        return kind, srt.read_sbv(text)
    return kind, srt.read_srt(text) if kind == "srt" else webvtt.read(text)


def _timed_lines(text: str, hint: str) -> str:
    """Which of the formats made of lines: vtt, srt or sbv."""
    if re.match(r"WEBVTT(?:[ \t\r\n]|$)", text):
        return "vtt"
    if "-->" not in text:
        if srt.is_sbv(text):
            return "sbv"
        raise SubtitleError("unknown_format", f"begins with {text.strip()[:40]!r}")
    if "vtt" not in hint and (_COMMA_TIMING.search(text) or _INDEXED.search(text) or "srt" in hint or "subrip" in hint):
        return "srt"
    return "srt" if _COMMA_TIMING.search(text) else "vtt"


def _read_json(data: Any, video: str | None) -> tuple[str, Found]:
    if embedded.is_file(data):
        return f"embedded_{data['text_track']}", embedded.read_file(data)
    if recognised.is_file(data):
        return "speech", recognised.read_file(data)
    if youtube.is_json3(data):
        return "json3", youtube.read_json3(data)
    return "howto100m", howto100m.read_captions(howto100m.pick(data, video))


def _read_xml(text: str) -> tuple[str, Found]:
    root, cut = read_xml(text)
    kind, found = _read_tree(root)
    found.odd["cut_off"] += cut
    return kind, found


def _read_tree(root: Node) -> tuple[str, Found]:
    if root.name == "timedtext" and (root.attributes.get("format") == "3" or root.find("p")):
        return "srv3", youtube.read_srv3(root)
    if root.name == "timedtext":
        return "srv2", youtube.read_srv1(root)
    if root.name == "transcript":
        return "srv1", youtube.read_srv1(root)
    if root.name == "tt":
        return "ttml", ttml.read_ttml(root)
    raise SubtitleError("unknown_format", f"XML whose root is {root.name!r}")
