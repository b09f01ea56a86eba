"""The sound of spans of a file: 16,000 samples a second of one channel, at their places in the container's time.

Sample n of a clip is what is heard at start + n / 16,000 s. What the file lacks is silence, and counted.
"""

from __future__ import annotations

import io
import itertools
import wave
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

import numpy as np

from stages.frames.decode import exact
from stages.lib import containers
from stages.lib.audio import RATE, stretches

LEAD_S = 1  # of sound that is decoded before a span: codecs need some packets until they are right


def sounds(
    path: str, spans_s: Sequence[tuple[float, float]], goes_on: Callable[[], None]
) -> Iterator[tuple[int, np.ndarray | None, float]]:
    """(place in `spans_s`, samples as int16, seconds of them that the file lacks) of each span, by their ends as far as they are known.

    None for samples where the file has no sound in the span, or none that can be decoded.
    """
    import av

    order = sorted(range(len(spans_s)), key=lambda n: spans_s[n])
    try:
        container = containers.open_file(path)
    except (av.error.FFmpegError, OSError, ValueError) as err:
        containers.to_blame(err)
        yield from ((n, None, 0.0) for n in order)
        return
    with container:
        stream = container.streams.best("audio")
        coming: Iterator[tuple[int, np.ndarray]] = iter(())
        if stream is not None and stream.codec_context is not None:
            containers.only(container, [stream])
            coming = stretches(container, stream, _near([spans_s[n] for n in order]), goes_on)
        yield from _placed(coming, [(n, *spans_s[n]) for n in order])


def _placed(
    coming: Iterator[tuple[int, np.ndarray]], spans: list[tuple[int, float, float]]
) -> Iterator[tuple[int, np.ndarray | None, float]]:
    """`spans`: (place, start, end), rising. `coming`: (sample since the container's start, samples)."""
    waiting = iter(spans)
    ahead = next(waiting, None)
    held: list[tuple[int, int, np.ndarray, np.ndarray]] = []  # place, first sample, samples, which of them are there
    for first, samples in coming:
        last = first + len(samples)
        while ahead is not None and _sample(ahead[1]) < last:
            length = max(1, _sample(ahead[2]) - _sample(ahead[1]))
            held.append((ahead[0], _sample(ahead[1]), np.zeros(length, np.int16), np.zeros(length, bool)))
            ahead = next(waiting, None)
        left = []
        for place, begin, out, there in held:
            a, b = max(first, begin), min(last, begin + len(out))
            if a < b:
                out[a - begin : b - begin] = samples[a - first : b - first]
                there[a - begin : b - begin] = True
            if begin + len(out) <= last:
                yield _told(place, out, there)
            else:
                left.append((place, begin, out, there))
        held = left
        if not held and ahead is None:
            return
    for place, _, out, there in held:
        yield _told(place, out, there)
    for span in itertools.chain([ahead] if ahead else [], waiting):
        yield span[0], None, 0.0


def _told(place: int, out: np.ndarray, there: np.ndarray) -> tuple[int, np.ndarray | None, float]:
    return (place, out, int((~there).sum()) / RATE) if there.any() else (place, None, 0.0)


def _sample(seconds: float) -> int:
    return round(exact(seconds) * RATE)


def _near(spans: list[tuple[float, float]]) -> Callable[[float, float], bool]:
    """Whether sound from a to b (seconds) is in one of the spans (rising), up to LEAD_S before one, or just after one: times in the file
    are rounded."""
    starts, ends = [start - LEAD_S for start, _ in spans], list(itertools.accumulate((end + 0.01 for _, end in spans), max))

    def near(a: float, b: float) -> bool:
        before = bisect_left(starts, b)
        return before > 0 and ends[before - 1] > a

    return near


def encode(samples: np.ndarray, kind: str) -> bytes:
    """int16 samples of one channel as `flac` or `wav`; the same samples give the same bytes."""
    out = io.BytesIO()
    if kind == "wav":
        with wave.open(out, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes(samples.astype("<i2").tobytes())
        return out.getvalue()
    import av

    with av.open(out, "w", format="flac", container_options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("flac", rate=RATE, layout="mono", format="s16")
        stream.codec_context.open()
        step = stream.codec_context.frame_size or 4096
        for at in range(0, len(samples), step):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None, at : at + step]), format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, at, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()
