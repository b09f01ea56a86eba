"""What a person sees while a run works: a live line a phase on a terminal, quiet key=value lines in a log."""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Any

from pipeline.engine import Progress

log = logging.getLogger("shardmill")
LOG_EVERY_S = 15.0


class Quiet:
    """Says nothing; for the Python API."""

    def phase(self, name: str) -> None:
        """A phase begins."""

    def beat(self, progress: Progress) -> None:
        """The engine's word on the running phase: once a second, and when a part is done."""

    def phase_ended(self, jobs: int) -> None:
        """The phase ended; `jobs` 0: all of it was committed before."""

    def close(self) -> None:
        """The run ended."""


class Lines(Quiet):
    """key=value lines, at the end of a phase and every 15 s: for logs."""

    def __init__(self) -> None:
        self.name = ""
        self.last = self.began = 0.0

    def phase(self, name: str) -> None:
        self.name = name
        self.last = self.began = time.monotonic()

    def beat(self, progress: Progress) -> None:
        if time.monotonic() - self.last < LOG_EVERY_S:
            return
        self.last = time.monotonic()
        seconds = self.last - self.began
        stages = "".join(f" {stage}={count} {stage}_per_s={count / seconds:.0f}" for stage, count in working(progress))
        at = f"parts={progress.done}/{progress.jobs} rows={progress.rows_in} kept={progress.rows_kept}"
        log.info("phase=%s %s%s seconds=%.1f left_s=%s", progress.phase, at, stages, seconds, _left(progress, seconds))

    def phase_ended(self, jobs: int) -> None:
        log.info("phase=%s done parts=%d seconds=%.1f", self.name, jobs, time.monotonic() - self.began)


class Live(Quiet):
    """A bar a phase with rows, rates and time left, redrawn in place: for terminals."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bars

        self.terminal = os.fdopen(os.dup(2), "w")  # its own: the engine holds stderr while Ray starts
        name, clock, note = "{task.description:<11}", "{task.fields[clock]}", "[dim]{task.fields[note]}"
        columns = [TextColumn(name), BarColumn(bar_width=12), MofNCompleteColumn(), TextColumn(clock), TextColumn(note)]
        self.bars: Any = Bars(*columns, console=Console(file=self.terminal))
        self.bars.start()
        self.bar: Any = None
        self.began = 0.0

    def phase(self, name: str) -> None:
        self.began = time.monotonic()
        self.bar = self.bars.add_task(name, total=None, clock="", note="")

    def beat(self, progress: Progress) -> None:
        seconds = max(time.monotonic() - self.began, 1e-3)
        rows, kept = progress.rows_in, progress.rows_kept
        notes = [f"{rows:,} rows" + (f", {kept:,} kept" if kept else "")] if rows else []
        notes += [f"{stage} {count / seconds:,.0f}/s" for stage, count in working(progress)]
        clock = f"{seconds:.0f} s" + (f", {_left(progress, seconds)} s left" if 0 < progress.done < progress.jobs else "")
        self.bars.update(self.bar, total=progress.jobs, completed=progress.done, clock=clock, note=" · ".join(notes))

    def phase_ended(self, jobs: int) -> None:
        """The bar stays, full, with what the phase said last."""
        clock = f"{time.monotonic() - self.began:.1f} s"
        if jobs:
            self.bars.update(self.bar, total=jobs, completed=jobs, clock=clock)
        else:
            self.bars.update(self.bar, total=1, completed=1, clock=clock, note="nothing left to do for workers")

    def close(self) -> None:
        self.bars.stop()
        self.terminal.close()


def working(progress: Progress) -> list[tuple[str, int]]:
    """Each stage that is at work now, with the rows that it has done in this session."""
    now = {stage for _, stage, _ in progress.now}
    return [(stage, count) for stage, count in progress.rows.items() if stage in now and count]


def _left(progress: Progress, seconds: float) -> str:
    return f"{seconds / progress.done * (progress.jobs - progress.done):.0f}" if progress.done else "?"


def for_terminal() -> Quiet:
    """Live on a terminal, else lines."""
    return Live() if sys.stderr.isatty() else Lines()
