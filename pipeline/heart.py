"""What a worker process is doing now: which stage on which part since when, and what it has done so far.

The engine sends snapshots of it to the driver, which shows progress and ends a run whose stage has stalled.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Timing:
    """Wall and CPU seconds of a stage and the rows that went through it.

    CPU is the stage's own thread's; None for a stage that shares its thread with others (download's event loop).
    """

    rows: int = 0
    seconds: float = 0.0
    cpu_seconds: float | None = 0.0


@dataclass
class Mark:
    """A stage at work on a part. `since`: when it began, or last said that it goes on."""

    part: str
    stage: str
    since: float

    def goes_on(self) -> None:
        """Says that some rows are done, so that the watchdog's clock begins anew."""
        self.since = time.monotonic()


@dataclass
class Heart:
    """One a process. All methods may be called from any thread."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    now: dict[int, Mark] = field(default_factory=dict)
    totals: dict[str, Timing] = field(default_factory=lambda: defaultdict(Timing))
    ids: Iterator[int] = field(default_factory=itertools.count)

    @contextmanager
    def at(self, part: str, stage: str, rows: int, timings: dict[str, Timing] | None = None, own_thread: bool = True) -> Iterator[Mark]:
        """Notes that `stage` works on `rows` rows of `part` while the block runs; adds its time to `timings`."""
        number = next(self.ids)
        start, cpu = time.monotonic(), time.thread_time()
        mark = Mark(part, stage, start)
        with self.lock:
            self.now[number] = mark
        try:
            yield mark
        finally:
            seconds, cpu_seconds = time.monotonic() - start, time.thread_time() - cpu
            with self.lock:
                del self.now[number]
                for timing in (self.totals[stage], (timings if timings is not None else {}).setdefault(stage, Timing())):
                    timing.rows += rows
                    timing.seconds += seconds
                    timing.cpu_seconds = timing.cpu_seconds + cpu_seconds if own_thread and timing.cpu_seconds is not None else None

    def snapshot(self) -> dict[str, Any]:
        """{"now": [(part, stage, seconds since it began or went on)], "rows": {stage: rows so far}}."""
        with self.lock:
            clock = time.monotonic()
            return {
                "now": [(mark.part, mark.stage, clock - mark.since) for mark in self.now.values()],
                "rows": {stage: timing.rows for stage, timing in self.totals.items()},
            }


HEART = Heart()


def as_dict(timings: dict[str, Timing]) -> dict[str, dict[str, float | None]]:
    """Timings as JSON."""
    return {
        stage: {
            "rows": t.rows,
            "seconds": round(t.seconds, 4),
            "cpu_seconds": None if t.cpu_seconds is None else round(t.cpu_seconds, 4),
        }
        for stage, t in timings.items()
    }
