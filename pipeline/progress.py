"""What a person sees while a run works: a live line a phase on a terminal, quiet key=value lines in a log."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from pipeline.engine import Progress

log = logging.getLogger("shardmill")
LOG_EVERY_S = 15.0


class Quiet:
    """Says nothing; for the Python API."""

    def phase(self, name: str, jobs: int, note: str = "") -> None:
        """A phase begins: `jobs` parts are missing (0: all is committed already)."""

    def beat(self, progress: Progress) -> None:
        """The engine's word on a running phase."""

    def close(self) -> None:
        """The run ended."""


class Lines(Quiet):
    """key=value lines, at the begin and end of a phase and every 15 s: for logs."""

    def __init__(self) -> None:
        self.last = self.began = 0.0

    def phase(self, name: str, jobs: int, note: str = "") -> None:
        self.last = self.began = time.monotonic()
        log.info("phase=%s parts_to_do=%d%s", name, jobs, f" {note}" if note else "")

    def beat(self, progress: Progress) -> None:
        ended = progress.done == progress.jobs
        if not ended and time.monotonic() - self.last < LOG_EVERY_S:
            return
        self.last = time.monotonic()
        seconds = self.last - self.began
        done, rows = f"{progress.done}/{progress.jobs}", rows_done(progress)
        log.info("phase=%s parts=%s rows=%d %sseconds=%.1f", progress.phase, done, rows, rates(progress, seconds), seconds)


class Live(Quiet):
    """A bar a phase with rows, rate and time left, redrawn in place: for terminals."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self.console = Console(stderr=True)
        self.bars: Any = Bars(
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("parts"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=self.console,
        )
        self.bars.start()
        self.bar: Any = None
        self.began = 0.0

    def phase(self, name: str, jobs: int, note: str = "") -> None:
        self.began = time.monotonic()
        note = note or ("" if jobs else "all committed before")
        self.bar = self.bars.add_task(name, total=max(jobs, 1), completed=0 if jobs else 1, note=note)

    def beat(self, progress: Progress) -> None:
        if self.bar is not None:
            note = rates(progress, time.monotonic() - self.began).strip()
            self.bars.update(self.bar, total=progress.jobs, completed=progress.done, note=note)

    def close(self) -> None:
        self.bars.stop()


def rows_done(progress: Progress) -> int:
    """Rows of the finished parts."""
    return sum(int(done.get("rows", 0)) for done in progress.results)


def rates(progress: Progress, seconds: float) -> str:
    """Rows a second of each stage that has worked in this session, as `download=812/s images=790/s `."""
    if seconds < 1:
        return ""
    working = {stage for _, stage, _ in progress.now}
    return "".join(f"{stage}={count / seconds:,.0f}/s " for stage, count in progress.rows.items() if stage in working and count)


def for_terminal() -> Quiet:
    """Live on a terminal, else lines."""
    return Live() if sys.stderr.isatty() else Lines()
