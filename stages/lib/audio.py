"""The sound of a file as 16,000 samples a second of one channel, at their places in the container's time, by PyAV (extra `video`).

Within a stretch without a gap samples are counted, not timed, so places are as exact as the time of its first sample: half a sample, and
half a tick of the container (Matroska: 0.5 ms). Where the file's times run away from the count by more than DRIFT_S, the count begins anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from stages.lib import containers

RATE = 16_000
DRIFT_S = Fraction(2, 1000)


def stretches(
    container: Any, stream: Any, near: Callable[[float, float], bool], goes_on: Callable[[], None]
) -> Iterator[tuple[int, np.ndarray]]:
    """(sample since the container's start, samples as int16) of what is near, in the order of the file. `near`: whether sound from a to b
    (seconds) is wanted."""
    start = Fraction(container.start_time or 0, 1_000_000)
    run: _Run | None = None
    for frame in _frames(container, stream, near, goes_on):
        if frame is None or frame.pts is None:
            if run is not None:
                yield from run.rest()
            run = None
            continue
        at = frame.pts * frame.time_base - start
        if run is not None and not run.goes_on_with(frame, at):
            yield from run.rest()
            run = None
        run = run or _Run(frame, at)
        yield from run.add(frame)
    if run is not None:
        yield from run.rest()


def _frames(container: Any, stream: Any, near: Callable[[float, float], bool], goes_on: Callable[[], None]) -> Iterator[Any]:
    """Decoded frames; None for a gap: what is not near, and what cannot be decoded."""
    context, start = stream.codec_context, (container.start_time or 0) / 1_000_000
    skipping = False
    for packet in containers.packets(container, stream, goes_on):
        if packet is None:
            return
        if packet.pts is not None:
            at = float(packet.pts * packet.time_base) - start
            if not near(at, at + max(0.2, float((packet.duration or 0) * packet.time_base))):
                skipping = True
                continue
        if skipping:
            context.flush_buffers()
            skipping = False
            yield None
        yield from containers.decoded(context, packet)
    if not skipping:
        yield from containers.decoded(context, None)


class _Run:
    """A stretch of sound without a gap, on its way to RATE."""

    def __init__(self, frame: Any, at: Fraction) -> None:
        import av

        self.kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        self.resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
        self.begin, self.taken = at, 0
        self.next = round(at * RATE)

    def goes_on_with(self, frame: Any, at: Fraction) -> bool:
        expected = self.begin + Fraction(self.taken, self.kind[2])
        return self.kind == (frame.format.name, frame.layout.name, frame.sample_rate) and abs(at - expected) <= DRIFT_S

    def add(self, frame: Any) -> Iterator[tuple[int, np.ndarray]]:
        self.taken += frame.samples
        frame.pts = None  # places are counted
        yield from self._out(frame)

    def rest(self) -> Iterator[tuple[int, np.ndarray]]:
        yield from self._out(None)

    def _out(self, frame: Any) -> Iterator[tuple[int, np.ndarray]]:
        for made in self.resampler.resample(frame):
            samples = made.to_ndarray().reshape(-1)
            yield self.next, samples
            self.next += len(samples)
