"""Video files of strangers, opened by PyAV (extra `video`) so that nothing else is opened with them."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

# What is opened: no playlists and lists of files (hls, dash, concat …), which would open what a stranger names, and no devices.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,asf,ogg,mxf,rm,nut,ivf,m4v,h264,hevc,av1"

GOES_ON = 64  # packets between two signs of life
MOST_BOXES = 1_000_000  # a day in fragments of a second has 170,000
_EBML, _SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"


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


def packets(container: Any, stream: Any, goes_on: Callable[[], None]) -> Iterator[Any]:
    """The packets of a stream that hold anything, in the file's order; a last one None where reading ends by a fault of the file.

    `goes_on` is called now and then.
    """
    import av

    coming = container.demux(stream)
    for number in itertools.count():
        if number % GOES_ON == 0:
            goes_on()
        try:
            packet = next(coming, None)
        except (av.error.FFmpegError, OSError) as err:
            to_blame(err)
            yield None
            return
        if packet is None:
            return
        if packet.size:
            yield packet


def decoded(context: Any, packet: Any) -> Iterator[Any]:
    """The frames of a packet, of None those that the decoder still holds; None in place of what cannot be decoded."""
    import av

    try:
        yield from context.decode(packet)
    except av.error.EOFError:
        return
    except av.error.MemoryError:
        raise
    except (av.error.FFmpegError, ValueError):
        yield None


def is_whole(path: str) -> bool | None:
    """Whether a file is as long as its own boxes (mp4, mov) or segment (Matroska, WebM) say; None where nothing says it."""
    try:
        with Path(path).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            end = _segment_end(file) if file.read(4) == _EBML else _boxes_end(file, size)
    except OSError:
        return None
    return None if end is None else end <= size


def _boxes_end(file: BinaryIO, size: int) -> int | None:
    """Where the last box of the file ends; one of length 0 goes to the end of the file. None where there are more than MOST_BOXES."""
    at = 0
    for _ in range(MOST_BOXES):
        if at >= size:
            return at
        file.seek(at)
        length, kind = int.from_bytes((head := file.read(16))[:4], "big"), head[4:8]
        length = int.from_bytes(head[8:], "big") if length == 1 else length or size - at
        if not (kind.isalnum() and kind.isascii()) or length < 8:
            return None
        at += length
    return None


def _segment_end(file: BinaryIO) -> int | None:
    """Where the segment ends that follows the header; live streams leave that open."""
    file.seek((_vint(file) or 0), os.SEEK_CUR)
    if file.read(4) != _SEGMENT:
        return None
    length = _vint(file)
    return None if length is None else file.tell() + length


def _vint(file: BinaryIO) -> int | None:
    """EBML's number of 1 to 8 bytes; None where all of its bits are set: unknown."""
    first = int.from_bytes(file.read(1), "big")
    more = 8 - first.bit_length()
    if not 0 <= more <= 7:
        return None
    value = int.from_bytes(bytes([first & (0x7F >> more)]) + file.read(more), "big")
    return None if value == (1 << 7 * (more + 1)) - 1 else value


def to_blame(err: BaseException) -> BaseException:
    """The error again, for which the file is to blame. Raises OSError for a fault of the machine: no memory, no file handles."""
    if (number := getattr(err, "errno", None)) in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        raise OSError(number, os.strerror(number)) from None
    return err


def words(err: BaseException) -> str:
    """What an error of FFmpeg says, without the file's name."""
    return str(getattr(err, "strerror", None) or type(err).__name__)
