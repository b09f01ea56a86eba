"""How a person or a scheduler asks training for a stop."""

from __future__ import annotations

import logging
import signal
import threading
from typing import Any

log = logging.getLogger("shardmill")


class Signals:
    """SIGINT and SIGTERM ask for a stop; a second SIGINT ends at once. Only where this is the main thread.

    Before training has `begun` there is nothing to keep, and either ends at once: counting samples or computing the features of frozen
    towers may take hours. `name`: of the signal that came; "": none.
    """

    def __init__(self) -> None:
        self.name = ""
        self.begun = False
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self.take()
        return self

    def take(self) -> None:
        """Takes the signals; again after Ray's start, which takes SIGTERM for itself."""
        for number in self.before:
            signal.signal(number, self._note)

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        at_once = not self.begun or (self.name and number == signal.SIGINT)
        self.name = signal.Signals(number).name
        if at_once:
            raise KeyboardInterrupt
        log.info("train: %s: stopping after this step, with a checkpoint", self.name)
