"""Text tracks inside mp4, mkv and webm files, by PyAV (extra `video`), read from their packets: no decoder is needed, and WebVTT has
none.

Times are those of the container's clock, less where it starts. mp4's mov_text packets are a length of two bytes and the text, an
empty one for each gap; Matroska's SubRip and WebVTT packets are the text alone; ASS packets are the fields of a dialogue line, the
text after the eighth comma.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from stages.lib import containers
from stages.lib.subtitles.cuetext import srt_text, vtt_pieces
from stages.lib.subtitles.finish import finish
from stages.lib.subtitles.model import MAX_MS, Found, RawCue, SubtitleError, Track

# ISO 639-2 (both of its codes where there are two) to 639-1: what containers say to what configs say.
_THREE_LETTERS = {
    three: two
    for two, codes in {
        "ar": "ara", "bg": "bul", "cs": "ces cze", "da": "dan", "de": "deu ger", "el": "ell gre", "en": "eng", "es": "spa", "et": "est",
        "fa": "fas per", "fi": "fin", "fr": "fra fre", "he": "heb", "hi": "hin", "hr": "hrv", "hu": "hun", "id": "ind", "it": "ita",
        "ja": "jpn", "ko": "kor", "lt": "lit", "lv": "lav", "nl": "nld dut", "no": "nor", "pl": "pol", "pt": "por", "ro": "ron rum",
        "ru": "rus", "sk": "slk slo", "sl": "slv", "sr": "srp", "sv": "swe", "th": "tha", "tr": "tur", "uk": "ukr", "vi": "vie",
        "zh": "zho chi",
    }.items()
    for three in codes.split()
}  # fmt: skip
_CODEC = re.compile(r"[a-z0-9_]{1,20}")
_TEXTS = {"srt", "subrip", "text", "ass", "ssa", "mov_text", "webvtt"}  # pictures, closed captions and teletext are no text as they are


@dataclass(frozen=True)
class Embedded:
    """A text track as its container has it. `default` and `forced` (for foreign parts alone) are what the file claims."""

    index: int
    codec: str
    default: bool
    forced: bool
    found: Found

    def track(self) -> Track:
        return finish(self.found, f"embedded_{self.codec}", "utf-8")


def embedded_tracks(path: str) -> dict[int, Track]:
    """The text tracks by their stream's index; {} where there is none. Raises SubtitleError as `read_tracks` does."""
    return {each.index: each.track() for each in read_tracks(path)}


def read_tracks(path: str, max_bytes: int = 1 << 30) -> list[Embedded]:
    """The text tracks of a file. Raises SubtitleError("malformed") where it cannot be opened or its texts exceed `max_bytes` bytes.

    Subtitles that are images, teletext or closed captions are left out. The whole file is read through once, packet by packet.
    """
    import av

    try:
        with containers.open_file(path) as container:
            streams = [stream for stream in container.streams if stream.type == "subtitle" and _codec(stream) in _TEXTS]
            return _read(container, streams, max_bytes) if streams else []
    except (av.error.FFmpegError, OSError, ValueError) as err:
        if isinstance(err, SubtitleError):
            raise
        raise SubtitleError("malformed", f"container: {containers.words(containers.to_blame(err))}") from None


def choose(tracks: Sequence[Embedded], languages: Sequence[str] = ()) -> Embedded | None:
    """The track to take: one with cues, in the first of `languages` (en; eng is taken for it) that there is, else the file's default, else
    its first; forced ones last."""

    def rank(track: Embedded) -> tuple[int, bool, bool, int]:
        said = (track.found.language or "").lower()
        at = next((n for n, wanted in enumerate(languages) if _same_language(said, wanted.lower())), len(languages))
        return at, track.forced, not track.default, track.index

    return min((track for track in tracks if track.found.raws), key=rank, default=None)


def _same_language(said: str, wanted: str) -> bool:
    """Files say eng, en or en-US."""
    return said == wanted or said.partition("-")[0] == wanted or _THREE_LETTERS.get(said) == wanted


def as_file(track: Embedded) -> bytes:
    """The track as a file of its own, which `parse` reads: JSON of our own form, since its formats have none in common."""
    cues = [[raw.start, raw.end, raw.pieces] for raw in track.found.raws]
    said = {"text_track": track.codec, "language": track.found.language, "odd": dict(track.found.odd), "cues": cues}
    return json.dumps(said, ensure_ascii=False).encode()


def is_file(data: Any) -> bool:
    return isinstance(data, dict) and bool(_CODEC.fullmatch(str(data.get("text_track")))) and isinstance(data.get("cues"), list)


def read_file(data: Any) -> Found:
    """What `as_file` wrote; raises SubtitleError("malformed") for what it cannot have written."""
    try:
        raws = [
            RawCue(int(s), None if e is None else int(e), tuple((_ms(at), str(text)) for at, text in pieces))
            for s, e, pieces in data["cues"]
        ]
        odd = Counter({str(name): int(count) for name, count in data.get("odd", {}).items()})
        language = data.get("language")
    except (TypeError, ValueError, AttributeError, OverflowError):
        raise SubtitleError("malformed", "JSON that is no text track as it is written here") from None
    if not all(0 <= raw.start <= MAX_MS and all(map(_possible, (raw.end, *(at for at, _ in raw.pieces)))) for raw in raws):
        raise SubtitleError("malformed", "a text track with impossible times")
    return Found(raws, odd, language if isinstance(language, str) else None)


def _possible(ms: int | None) -> bool:
    """What `as_file` writes of a cue that begins by MAX_MS."""
    return ms is None or abs(ms) <= 2 * MAX_MS


def _ms(value: Any) -> int | None:
    return None if value is None else int(value)


def _read(container: Any, streams: list[Any], max_bytes: int) -> list[Embedded]:
    import av

    containers.only(container, streams)
    said = {stream.index: stream.metadata.get("language") for stream in streams}
    found = {index: Found(language=None if language == "und" else language) for index, language in said.items()}  # und: undetermined
    offset, left = Fraction(container.start_time or 0, 1_000_000), max_bytes
    try:
        for packet in container.demux(streams):
            left -= packet.size
            if left < 0:
                raise SubtitleError("malformed", f"text tracks of more than {max_bytes} bytes")
            _packet(packet, _codec(packet.stream), offset, found[packet.stream.index])
    except av.error.FFmpegError:
        for each in found.values():
            each.odd["cut_off"] = 1
    kinds = av.stream.Disposition
    return [
        Embedded(s.index, _codec(s), bool(s.disposition & kinds.default), bool(s.disposition & kinds.forced), found[s.index])
        for s in streams
    ]


def _codec(stream: Any) -> str:
    """The codec's name. FFmpeg here has no decoder for WebVTT, and so PyAV no context; nor has it one for teletext in MPEG-TS and TTML in
    mp4, which are read otherwise."""
    if stream.codec_context is not None:
        return str(stream.codec_context.name)
    return "webvtt" if "matroska" in stream.container.format.name else "unknown"


def _packet(packet: Any, codec: str, offset: Fraction, found: Found) -> None:
    if packet.pts is None or not packet.size:
        return
    start = round((packet.pts * packet.time_base - offset) * 1000)
    if not 0 <= start <= MAX_MS:
        found.odd["bad_timing"] += 1
        return
    text = _text(bytes(packet), codec)
    if codec == "mov_text" and not text:
        return  # a gap
    end = start + round(packet.duration * packet.time_base * 1000) if packet.duration else None
    pieces = vtt_pieces(text) if codec == "webvtt" else ((None, srt_text(text)),)
    found.raws.append(RawCue(start, end, pieces))


def _text(data: bytes, codec: str) -> str:
    if codec == "mov_text":
        data = data[2 : 2 + int.from_bytes(data[:2], "big")]
    text = data.split(b"\0", 1)[0].decode("utf-8", "replace")
    if codec in ("ass", "ssa"):
        text = re.sub(r"\\[Nn]", "\n", text.split(",", 8)[-1])
    return text.replace("\r\n", "\n").replace("\r", "\n")
