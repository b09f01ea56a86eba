"""Writes small video files from pictures with times, by PyAV (extra `video`)."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

CLOCK = 1000  # ticks a second

# The display matrix of mp4's track header for a player that has to turn the picture clockwise by so many degrees (ISO 14496-12, 8.3.2).
TURNS = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}


def write(
    path: Path,
    pictures: Iterable[tuple[int, np.ndarray]],
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    subtitles: Iterable[tuple[int, int, str]] = (),
    audio_s: float = 0.0,
) -> None:
    """A file of pictures (height, width, 3; all of one size, both even) with their times in ms. The suffix says which container.

    `options`: the encoder's. `subtitles`: (start, end, text) in ms, as a track of its own (mp4: mov_text, mkv: subrip). `audio_s`: seconds
    of a hum of 220 Hz.
    """
    import av

    # bitexact: Matroska's muxer draws a random number for each file otherwise
    with av.open(str(path), "w", container_options={"fflags": "+bitexact"}) as container:
        video: Any = None
        codec_of_texts = "mov_text" if path.suffix == ".mp4" else "subrip"
        texts = container.add_mux_stream(codec_of_texts) if (said := list(subtitles)) else None
        sound: Any = container.add_stream("aac", rate=16_000, layout="mono") if audio_s else None
        for ms, picture in pictures:
            if video is None:
                video = container.add_stream(codec, rate=Fraction(25), options=options or {})
                video.height, video.width = picture.shape[:2]
                video.pix_fmt, video.thread_count = "yuv420p", 1
                video.time_base = video.codec_context.time_base = Fraction(1, CLOCK)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = ms, Fraction(1, CLOCK)
            container.mux(video.encode(frame))
        if video is not None:
            container.mux(video.encode(None))
        for start, end, text in said:
            container.mux(_text(texts, start, end, text, path.suffix == ".mp4"))
        if sound is not None:
            _hum(container, sound, audio_s)


def _text(stream: Any, start: int, end: int, text: str, counted: bool) -> Any:
    import av

    body = text.encode()
    packet = av.Packet(struct.pack(">H", len(body)) + body if counted else body)
    packet.stream, packet.time_base = stream, Fraction(1, CLOCK)
    packet.pts = packet.dts = start
    packet.duration = end - start
    return packet


def _hum(container: Any, stream: Any, seconds: float) -> None:
    import av

    samples = np.arange(int(16_000 * seconds))
    wave = (3000 * np.sin(2 * np.pi * 220 * samples / 16_000)).astype(np.int16)
    for at in range(0, len(wave), 1024):
        frame = av.AudioFrame.from_ndarray(wave[None, at : at + 1024], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16_000, at, Fraction(1, 16_000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def turn(path: Path, degrees: int) -> None:
    """Notes in an mp4 of one track that players have to turn it clockwise by 90, 180 or 270 degrees."""
    body = bytearray(path.read_bytes())
    at = body.index(b"tkhd") + 4 + 40
    a, b, c, d = (number << 16 for number in TURNS[degrees])
    body[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(body)
