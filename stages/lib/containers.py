"""Video files of strangers, opened by PyAV (extra `video`) so that nothing else is opened with them."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

# What is opened: no playlists and lists of files (hls, dash, concat …), which would open what a stranger names, and no devices.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,asf,ogg,mxf,rm,nut,ivf,m4v,h264,hevc,av1"

_TAGGED = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")


def open_file(path: str) -> Any:
    """An av.container.InputContainer of a local file. Raises av.error.FFmpegError, OSError or ValueError."""
    import av

    return av.open(f"file:{path}", "r", options={"format_whitelist": FORMATS, "protocol_whitelist": "file"})


def only(container: Any, streams: list[Any]) -> None:
    """Lets a container's other streams be passed over where its format allows it."""
    import av

    for stream in container.streams:
        if stream not in streams:
            stream.discard = av.stream.Discard.all


def tagged_s(stream: Any) -> Fraction | None:
    """A stream's end in seconds by the tag in which Matroska's writers note it: `00:01:28.040000000`."""
    found = _TAGGED.fullmatch(stream.metadata.get("DURATION", ""))
    return ((int(found[1]) * 60 + int(found[2])) * 60) + Fraction(found[3]) if found else None


def others_until(path: str, index: int, from_s: Fraction) -> Fraction:
    """When, in seconds of the file's clock, the last packet of the streams other than `index` ends, of those from about `from_s` on;
    0 where there is none. Of texts the beginning counts: a long one says nothing of where the file ends."""
    import av

    last = Fraction(0)
    try:
        with open_file(path) as container:
            others = [stream for stream in container.streams if stream.index != index and stream.time_base]
            only(container, others)
            container.seek(int(from_s * av.time_base))
            for packet in container.demux(others):
                if packet.size and packet.pts is not None:
                    ticks = packet.pts + (0 if packet.stream.type == "subtitle" else packet.duration or 0)
                    last = max(last, ticks * packet.time_base)
    except (av.error.FFmpegError, OSError, ValueError):
        pass  # what came until then is what is known
    return last


def words(err: BaseException) -> str:
    """What an error of FFmpeg says, without the file's name."""
    return str(getattr(err, "strerror", None) or type(err).__name__)
