"""Metrics: a line of JSON a logged step in metrics.jsonl, the same for tensorboard, and what a person sees meanwhile.

A resumed run cuts the lines after its checkpoint off and goes on, so the file holds one undisturbed curve.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, TextIO

from pipeline.storage import Store

log = logging.getLogger("shardmill")
NAME = "metrics.jsonl"
BOARD = "tensorboard"
Line = dict[str, Any]


class Metrics:
    """The files of one run of training on rank 0. `step`: the step from which it goes on (0 at first).

    On a local disk each line is there at once; in an object store, where nothing can be appended, with each `flush`.
    """

    def __init__(self, store: Store, step: int, tensorboard: bool) -> None:
        self.store = store
        kept = [line for line in read(store) if line["step"] <= step]
        self.lines = [json.dumps(line) for line in kept]
        self.folder = Path(store.full("")) if store.local else Path(tempfile.mkdtemp(prefix="shardmill-"))
        store.write(NAME, "".join(f"{line}\n" for line in self.lines).encode())
        self.handle: TextIO | None = (self.folder / NAME).open("a", encoding="utf-8") if store.local else None
        self.writer: Any = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            self.writer = SummaryWriter(str(self.folder / BOARD), purge_step=step + 1 if step else None)

    def write(self, line: Line) -> None:
        text = json.dumps(line)
        if self.handle is not None:
            self.handle.write(f"{text}\n")
            self.handle.flush()
        else:
            self.lines.append(text)
        if self.writer is not None:
            for name, value in line.items():
                if isinstance(value, int | float) and name != "step":
                    self.writer.add_scalar(f"train/{name}", value, line["step"])

    def flush(self) -> None:
        """Brings everything to storage; called with each checkpoint."""
        if self.writer is not None:
            self.writer.flush()
        if self.handle is None:
            self.store.write(NAME, "".join(f"{line}\n" for line in self.lines).encode())
            for path in (self.folder / BOARD).glob("*"):
                self.store.write(f"{BOARD}/{path.name}", path.read_bytes())

    def close(self) -> None:
        self.flush()
        if self.writer is not None:
            self.writer.close()
        if self.handle is not None:
            self.handle.close()
        else:
            shutil.rmtree(self.folder)


def read(store: Store) -> list[Line]:
    """The lines of metrics.jsonl; a last line that a kill cut off is left out."""
    if not store.exists(NAME):
        return []
    found: list[Line] = []
    for text in store.read(NAME).decode("utf-8", "replace").splitlines():
        try:
            found.append(json.loads(text))
        except ValueError:
            break
    return found


class Quiet:
    """Says nothing; for the Python API."""

    def begin(self, step: int, steps: int) -> None:
        """Training goes on from `step` (0 at first) of `steps`."""

    def note(self, text: str) -> None:
        """What goes on before the first step."""

    def show(self, line: Line) -> None:
        """A line of metrics."""

    def close(self) -> None:
        """Training ended."""


class Lines(Quiet):
    """key=value lines: for logs."""

    def begin(self, step: int, steps: int) -> None:
        self.steps = steps
        log.info("train step=%d/%d", step, steps)

    def note(self, text: str) -> None:
        log.info("train: %s", text)

    def show(self, line: Line) -> None:
        shown = {
            name: f"{value:.4g}" if isinstance(value, float) else value for name, value in line.items() if name not in ("step", "order")
        }
        log.info("train step=%d/%d %s", line["step"], self.steps, " ".join(f"{name}={value}" for name, value in shown.items()))


class Live(Quiet):
    """A bar with loss, rate and time left, redrawn in place: for terminals."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self.terminal = os.fdopen(os.dup(2), "w")
        columns = [TextColumn("train      "), BarColumn(bar_width=12), MofNCompleteColumn(), TextColumn("{task.fields[clock]}")]
        self.bars: Any = Progress(*columns, TextColumn("[dim]{task.fields[note]}"), console=Console(file=self.terminal))
        self.bars.start()
        self.bar: Any = None

    def begin(self, step: int, steps: int) -> None:
        self.note("")
        self.bars.update(self.bar, completed=step, total=steps)
        self.began, self.first, self.steps = time.monotonic(), step, steps

    def note(self, text: str) -> None:
        if self.bar is None:
            self.bar = self.bars.add_task("train", total=None, clock="", note="")
        self.bars.update(self.bar, note=text)

    def show(self, line: Line) -> None:
        seconds, done = time.monotonic() - self.began, line["step"] - self.first
        left = seconds / max(done, 1) * (self.steps - line["step"])
        note = (
            f"epoch {line['epoch']} · loss {line['loss']:.4f} · {line['samples_per_s']:,.0f} samples/s · wait {line['data_wait_share']:.0%}"
        )
        self.bars.update(self.bar, completed=line["step"], clock=f"{seconds:.0f} s, {left:.0f} s left", note=note)

    def close(self) -> None:
        self.bars.stop()
        self.terminal.close()


def for_terminal() -> Quiet:
    """Live on a terminal, else lines."""
    return Live() if sys.stderr.isatty() else Lines()
