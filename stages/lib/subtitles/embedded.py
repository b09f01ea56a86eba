"""Text tracks inside mp4, mkv and webm files, by PyAV (extra `video`), read from their packets: no decoder is needed, and WebVTT has
none.

Times are those of the container's clock, less where it starts. mp4's mov_text packets are a length of two bytes and the text, an
empty one for each gap; Matroska's SubRip and WebVTT packets are the text alone; ASS packets are the fields of a dialogue line, the
text after the eighth comma.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any, BinaryIO

from stages.lib.subtitles.cuetext import srt_text, vtt_pieces
from stages.lib.subtitles.finish import finish
from stages.lib.subtitles.model import MAX_MS, Found, RawCue, SubtitleError, Track

_IMAGES = {"dvd_subtitle", "dvb_subtitle", "hdmv_pgs_subtitle", "xsub", "dvb_teletext"}


def embedded_tracks(file: str | BinaryIO) -> dict[int, Track]:
    """The text tracks by their stream's index; {} where there is none. Raises SubtitleError("malformed") for a file that cannot be opened.

    Subtitles that are images have no text and are left out. The whole file is read through once, packet by packet.
    """
    import av

    try:
        with av.open(file, "r") as container:
            streams = [stream for stream in container.streams if stream.type == "subtitle" and _codec(stream) not in _IMAGES]
            return _read(container, streams) if streams else {}
    except av.error.FFmpegError as err:
        raise SubtitleError("malformed", f"container: {err.strerror}") from None


def _read(container: Any, streams: list[Any]) -> dict[int, Track]:
    import av

    found = {stream.index: Found(rolling=False, language=stream.metadata.get("language")) for stream in streams}
    offset = Fraction(container.start_time or 0, 1_000_000)
    try:
        for packet in container.demux(streams):
            _packet(packet, _codec(packet.stream), offset, found[packet.stream.index])
    except av.error.FFmpegError:
        for each in found.values():
            each.odd["cut_off"] = 1
    return {stream.index: finish(found[stream.index], f"embedded_{_codec(stream)}", "utf-8") for stream in streams}


def _codec(stream: Any) -> str:
    """The codec's name. FFmpeg here has no decoder for WebVTT, and so PyAV no context."""
    return stream.codec_context.name if stream.codec_context is not None else "webvtt"


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
