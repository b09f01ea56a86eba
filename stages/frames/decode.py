"""The frames of a video that are on screen at wanted times, decoded once and in order, by PyAV (extra `video`).

The frame of time t is the one with pts <= t < the next frame's pts, in the container's time (its start is 0). Of a GOP in which nothing is
wanted the packets are read and not decoded: that costs a hundredth of decoding, and needs no index and no trust in seeking. Everything is
compared in whole ticks of the stream's clock.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import re
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import ceil, floor
from typing import Any

from pipeline.errors import UserError
from stages.lib import containers

SKIPPED, BROKEN, CUT = "skipped", "broken", "cut"  # in place of frames
HELD_BYTES = 32 << 20  # of a GOP's packets that wait to be decoded or dropped; longer GOPs are decoded at once
REFRESH = re.compile(rb"\x06\x06[\x01-\x10][\x00-\x7f]")  # SEI, recovery point, its size, and a count of frames above 0
LATE = 64  # packets of which the times are kept: more than wait for one another


class UnreadableError(Exception):
    """Why nothing can be had of a file: `reason` as in the stage's reasons."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def require(stage: str, *more: str) -> None:
    """Raises UserError where PyAV, or another package of the extra `video` that the stage needs, cannot be imported."""
    for name in ("av", *more):
        try:
            importlib.import_module(name)
        except ImportError as err:
            raise UserError(f"stages.{stage}: needs {name} ({err}); install shardmill[video]") from None


@dataclass(frozen=True)
class Shown:
    """What is on screen at wanted times: their places in the caller's list, the frame, and its pts in seconds of the container's time."""

    wanted: list[int]
    frame: Any
    at_s: float


@dataclass(frozen=True)
class Missing:
    """Wanted times at which no frame is on screen: `before` the first or `after` the last, or in a `damaged` stretch."""

    wanted: list[int]
    why: str


@dataclass(frozen=True)
class Played:
    """A frame and the time for which it is on screen, in seconds of the container's time, exactly."""

    frame: Any
    at: Fraction
    until: Fraction


class _Spans:
    """Spans of pts in which everything is wanted. `now`: the latest pts that was decoded."""

    def __init__(self, spans: Sequence[tuple[int, int]]) -> None:
        self.starts = sorted(start for start, _ in spans)
        self.ends = list(itertools.accumulate((end for _, end in sorted(spans)), max))
        self.now = self.starts[0] if spans else 0

    def seen(self, p: int, after: int) -> bool:
        begun = bisect_left(self.starts, after)
        return begun > 0 and self.ends[begun - 1] > p

    def wanted(self) -> int:
        """The smallest pts of interest from now on."""
        begun = bisect_right(self.starts, self.now)
        inside = begun > 0 and self.ends[begun - 1] > self.now
        return self.now if inside else self.starts[min(begun, len(self.starts) - 1)]

    def over(self) -> bool:
        return self.now >= self.ends[-1]


class Video:
    """An opened file; use as a context manager. Raises UnreadableError where it has no video that can be decoded."""

    def __init__(self, path: str, max_pixels: int, threads: int = 1, goes_on: Callable[[], None] = lambda: None) -> None:
        """`goes_on` is called now and then while the file is read."""
        import av

        self.path, self.goes_on = path, goes_on
        try:
            self.container: Any = containers.open_file(path)
        except (av.error.FFmpegError, OSError, ValueError) as err:
            raise UnreadableError("not_a_video", containers.words(containers.to_blame(err))) from None
        try:
            self.stream: Any = self._pick(max_pixels, threads)
        except BaseException:
            self.container.close()
            raise
        self.converter: Any = av.video.reformatter.VideoReformatter()
        self.damaged = self.cut = self.tainted = False  # tainted: from a fault on, until a picture that needs no other
        self.fed: list[int] = []  # pts of the packets that were decoded, rising, of late
        self.read = 0  # packets
        # AVI has no times of its own: where frames are stored out of order, they are on screen as they come out of the decoder.
        self.untimed = "avi" in self.container.format.name.split(",") and bool(self.stream.codec_context.has_b_frames)
        self.place = 0  # of the last frame, then
        self.last: int | None = None  # until when (pts) the packets go that were read
        self.late: deque[tuple[int | None, int | None]] = deque(maxlen=LATE)  # pts and dts of the last ones

    def _pick(self, max_pixels: int, threads: int) -> Any:
        import av

        stream = self.container.streams.best("video")
        if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
            kinds = ", ".join(sorted({other.type for other in self.container.streams})) or "nothing"
            raise UnreadableError("no_video", f"the file holds {kinds}" + (" and a cover picture" if stream else ""))
        context = stream.codec_context
        if context is None:
            raise UnreadableError("unsupported_codec", "no decoder for the video's codec")
        if context.width * context.height > max_pixels:
            raise UnreadableError("too_many_pixels", f"{context.width} x {context.height} > {max_pixels}")
        # Pictures may grow on the way; and where bits are wrong a decoder would else make up what is lacking, and not tell.
        context.options = {"max_pixels": str(max_pixels), "err_detect": "explode"}
        context.thread_type, context.thread_count = "AUTO", threads
        with contextlib.suppress(av.error.FFmpegError):  # packets will tell
            context.open(strict=False)  # before `skip_frame` is set: dav1d (AV1) looks at that once, and would leave out frames for good
        containers.only(self.container, [stream])
        return stream

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    @property
    def start_ticks(self) -> Fraction:
        """Where the container's time begins, in ticks of the stream. FFmpeg gives microseconds, cut off; the stream's own are exact."""
        base, own = self.stream.time_base, self.stream.start_time
        start = Fraction(self.container.start_time or 0, 1_000_000) / base
        return Fraction(own) if own is not None and abs(start - own) * base < Fraction(2, 1_000_000) else start

    def duration_s(self) -> float | None:
        """As the container claims it."""
        return None if not self.container.duration else float(self.container.duration) / 1_000_000

    def shown(self, times_s: Sequence[float]) -> Iterator[Shown | Missing]:
        """What is on screen at each of the times (seconds of the container's time to the microsecond, in any order); each comes once."""
        base, start = self.stream.time_base, self.start_ticks
        last_pts = [floor(exact(t) / base + start) for t in times_s]  # a frame is on screen by t if its pts is at most this
        pending = deque(sorted((pts, n) for n, pts in enumerate(last_pts)))
        before: Any = None  # the frame on screen, until the next one is known
        why = "before"
        rising = sorted(last_pts)
        frames = self._frames(lambda p, after: bisect_left(rising, p) < bisect_left(rising, after), lambda: pending[0][0])
        for frame in frames if pending else ():
            if frame is SKIPPED:
                self.fed.clear()
            if isinstance(frame, str) or frame.is_corrupt:
                if before is not None and frame is BROKEN and (due := _until(pending, self._at_gap(before, before.duration or 0))):
                    yield self._shown(due, before, start)
                self.damaged = self.damaged or frame is not SKIPPED
                before, why = None, "damaged"
                if not pending:
                    return
                continue
            if frame.pts is None or (before is not None and frame.pts <= before.pts):
                continue  # without a time, or back in time: it is on screen at no time that can be named
            if due := _until(pending, frame.pts):
                yield from [Missing(due, why)] if before is None else self._told(due, before, last_pts, start)
            before, why = frame, "after"
            if not pending:
                return
        if before is not None and (due := _until(pending, before.pts + self._ticks_of(before))):
            yield self._shown(due, before, start)
        if pending:
            yield Missing([n for _, n in pending], "damaged" if self.damaged else why)

    def played(self, spans_s: Sequence[tuple[float, float]]) -> Iterator[Played]:
        """Every frame that is on screen within one of the spans (seconds of the container's time), in order.

        Where frames are lacking, or cannot be decoded, the next one begins later than the one before it ends.
        """
        base, start = self.stream.time_base, self.start_ticks
        spans = _Spans([(floor(exact(a) / base + start), ceil(exact(b) / base + start)) for a, b in spans_s])
        before: Any = None
        for frame in self._frames(spans.seen, spans.wanted) if spans_s else ():
            if frame is SKIPPED:
                self.fed.clear()
            if isinstance(frame, str) or frame.is_corrupt:
                if before is not None:  # where the file is cut off nobody knows how long it would have stayed
                    until = before.pts + 1 if frame is CUT else self._at_gap(before, self._ticks_of(before))
                    yield from self._played(before, until, spans, start)
                self.damaged = self.damaged or frame is not SKIPPED
                before = None
            elif frame.pts is not None and (before is None or frame.pts > before.pts):
                if before is not None:
                    yield from self._played(before, frame.pts, spans, start)
                before, spans.now = frame, max(spans.now, frame.pts)
                if spans.over():
                    return
        if before is not None:
            yield from self._played(before, before.pts + self._ticks_of(before), spans, start)

    def _played(self, frame: Any, until: int, spans: _Spans, start: Fraction) -> Iterator[Played]:
        """The frame, if anybody sees it: until a later packet gave none, or else until `until` (pts)."""
        fed = [] if frame.interlaced_frame else self._fed_after(frame.pts, until)
        until = min([until, *(p for p, after in pairwise([*fed, until]) if spans.seen(p, after))])
        if spans.seen(frame.pts, until):
            base = self.stream.time_base
            yield Played(frame, (frame.pts - start) * base, (until - start) * base)

    def _fed_after(self, pts: int, until: int) -> list[int]:
        """The pts of packets that were decoded between a frame and the next one that came of them. Two packets may make one interlaced
        frame: then nothing can be said."""
        del self.fed[: bisect_left(self.fed, pts)]
        if not self.fed or self.fed[0] != pts:
            return []
        return self.fed[1 : bisect_left(self.fed, until)]

    def _told(self, due: list[int], frame: Any, last_pts: list[int], start: Fraction) -> Iterator[Shown | Missing]:
        lost = set(self._lost(due, frame, last_pts))
        if lost:
            self.damaged = True
            yield Missing(sorted(lost), "damaged")
        if there := [n for n in due if n not in lost]:
            yield self._shown(there, frame, start)

    def _lost(self, due: list[int], frame: Any, last_pts: list[int]) -> list[int]:
        """Those of the wanted places `due` at which a later frame than this should be on screen, whose packet gave none: it is damaged.

        Two packets may make one interlaced frame, so of those nothing can be said.
        """
        del self.fed[: bisect_left(self.fed, frame.pts)]
        if frame.interlaced_frame or not self.fed or self.fed[0] != frame.pts:
            return []
        return [n for n in due if self.fed[bisect_right(self.fed, last_pts[n]) - 1] > frame.pts]

    def _shown(self, due: list[int], frame: Any, start: Fraction) -> Shown:
        return Shown(due, frame, float((frame.pts - start) * self.stream.time_base))

    def _at_gap(self, frame: Any, ticks: int) -> int:
        """Until when (pts) a frame stays that a gap follows: its own duration, but not beyond a packet that was decoded for later."""
        after = bisect_right(self.fed, frame.pts)
        return int(min([frame.pts + ticks, *self.fed[after : after + 1]]))

    def _ticks_of(self, frame: Any) -> int:
        """How long the last frame stays: its own duration, else the stream's average, else a tick."""
        if frame.duration:
            return int(frame.duration)
        rate = self.stream.average_rate
        return max(1, round(1 / (rate * self.stream.time_base))) if rate else 1

    def _frames(self, seen: Callable[[int, int], bool], wanted: Callable[[], int]) -> Iterator[Any]:
        """Decoded frames in order of presentation, those of GOPs left out in which nothing is wanted, and with them frames that nobody
        sees and that no other needs. SKIPPED and BROKEN stand for gaps.

        `seen(p, after)`: whether a frame that is on screen from p until before `after` (pts) is wanted. `wanted()`: the smallest pts of
        interest, asked whenever a GOP begins.
        """
        context = self.stream.codec_context
        held: list[Any] = []  # packets since the last keyframe, while it is open whether they are needed
        size, holding, gap = 0, False, False
        for packet in self._packets():
            key = packet.is_keyframe and packet.pts is not None and not packet.is_discard and not _refreshes(packet)
            if key and packet.pts <= wanted():  # all before it is of no interest any more
                gap = gap or bool(held)
                held, size, holding = [packet], packet.size, True
                continue
            if holding and not key and size < HELD_BYTES:
                held.append(packet)
                size += packet.size
                continue
            todo, held, size, holding = [*held, packet], [], 0, False
            if gap:
                context.flush_buffers()
                gap = False
                yield SKIPPED
            yield from self._decoded(todo, _unseen(todo, seen))
        if gap:
            context.flush_buffers()
            yield SKIPPED
        yield from self._decoded(held)
        if self._breaks_off():
            yield CUT  # what is still in the decoder lacks the frames between: their packets would have come later
        else:
            yield from self._decoded([None])

    def _breaks_off(self) -> bool:
        """Reading ended by a fault, or the file is shorter than its container says; where that says nothing, by a second and more, or
        frames are lacking between the last ones."""
        whole = containers.is_whole(self.path)
        if self.cut or whole or (whole is False and not self._all_samples()):
            return self.cut or not whole
        claimed = self.stream.duration and (self.stream.start_time or 0) + self.stream.duration
        if not claimed and self.container.duration:
            claimed = Fraction(self.container.duration, 1_000_000) / self.stream.time_base
        lacking = claimed - self.last if claimed and self.last is not None else 0
        return lacking > 1 / self.stream.time_base or self._torn(lacking)

    def _torn(self, lacking: Fraction | int) -> bool:
        """Whether the file ends within frames that are stored out of order: before one that is shown later than the last that was stored
        there is a gap wider than those before it. MPEG's containers claim no length; others may lack these very frames."""
        times = [(pts, dts) for pts, dts in self.late if pts is not None and dts is not None]
        last = sorted(pts for pts, _ in times)[-LATE // 2 :]  # of those before some have gone already
        steps = [(after - before, after) for before, after in pairwise(last)]
        usual = max((step for step, after in steps if after <= times[-1][1]), default=0)
        if not usual:
            return False
        if "mpeg" not in self.container.format.name and 2 * lacking < usual:
            return False
        return any(2 * step > 3 * usual and after > times[-1][1] for step, after in steps)

    def _all_samples(self) -> bool:
        """As many were read as mp4's table has: then what lacks is of something else, or of a box that says too much."""
        return bool(0 < self.stream.frames <= self.read)

    def _packets(self) -> Iterator[Any]:
        """All packets of the stream; where the file breaks off, those before."""
        for packet in containers.packets(self.container, self.stream, self.goes_on):
            if packet is None:
                self.cut = True
                return
            self.read += 1
            until = (packet.pts or packet.dts or 0) + (packet.duration or 0)
            self.last = until if self.last is None else max(self.last, until)
            self.late.append((packet.pts, packet.dts))
            packet.pts = None if self.untimed else packet.pts
            yield packet

    def _decoded(self, packets: Sequence[Any], unseen: frozenset[int] = frozenset()) -> Iterator[Any]:
        """A packet that cannot be decoded leaves a gap, up to the next keyframe: what comes between refers to what is lacking. The packet
        None empties the decoder. Frames whose pts is among `unseen` are left out where no other frame refers to them."""
        for packet in packets:
            if packet is not None and packet.pts is not None and not packet.is_discard:
                insort(self.fed, packet.pts)
            self.stream.codec_context.skip_frame = "NONREF" if packet is not None and packet.pts in unseen else "DEFAULT"
            for frame in containers.decoded(self.stream.codec_context, packet):
                self.tainted = frame is None or (self.tainted and not frame.key_frame)
                if self.untimed and frame is not None:
                    frame.pts = self.place = self.place + 1 if frame.dts is None else frame.dts
                yield BROKEN if self.tainted else frame


def exact(seconds: float) -> Fraction:
    """Times are meant to the microsecond."""
    return Fraction(round(seconds * 1_000_000), 1_000_000)


def _refreshes(packet: Any) -> bool:
    """Whether H.264 counts this packet for a keyframe by which the picture is only renewed piece by piece over the next frames."""
    return bool(packet.stream.codec_context.codec.canonical_name == "h264" and REFRESH.search(bytes(memoryview(packet)[:1024])))


def _unseen(packets: Sequence[Any], seen: Callable[[int, int], bool]) -> frozenset[int]:
    """The pts among these packets of frames that nobody sees. Of the last one nobody knows yet."""
    pts = sorted(packet.pts for packet in packets if packet.pts is not None)
    if len(pts) < len(packets):
        return frozenset()
    return frozenset(p for p, after in pairwise(pts) if not seen(p, after))


def _until(pending: deque[tuple[int, int]], pts: int) -> list[int]:
    """Takes the wanted times that lie before `pts`."""
    due = []
    while pending and pending[0][0] < pts:
        due.append(pending.popleft()[1])
    return due
