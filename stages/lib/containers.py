"""Video files of strangers, opened by PyAV (extra `video`) so that nothing else is opened with them."""

from __future__ import annotations

from typing import Any

# What is opened: no playlists and lists of files (hls, dash, concat …), which would open what a stranger names, and no devices.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,asf,ogg,mxf,rm,nut,ivf,m4v,h264,hevc,av1"


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


def words(err: BaseException) -> str:
    """What an error of FFmpeg says, without the file's name."""
    return str(getattr(err, "strerror", None) or type(err).__name__)
