"""A segment on its way to a clip: its wanted times, and what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Clip:
    """One row. Times in seconds of the video. `facts`: its columns; `reason` and `detail` where it is dropped."""

    row: int
    start: float
    end: float
    times: list[float]
    pictures: list[bytes | None] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    reason: str | None = None
    detail: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    grey: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.pictures, self.lags = [None] * len(self.times), [0.0] * len(self.times)

    @property
    def done(self) -> bool:
        """Every picture is there, or it is dropped."""
        return self.reason is not None or None not in self.pictures

    @property
    def bytes(self) -> int:
        """Of what goes into the shards."""
        held: Sequence[bytes | None] = (*self.facts.get("frames", ()), self.facts.get("clip"), self.facts.get("sound"))
        return sum(len(one) for one in held if one)

    def drop(self, reason: str, detail: str) -> None:
        """The first reason stays."""
        if self.reason is None:
            self.reason, self.detail = reason, detail

    def forget(self) -> None:
        """Its row is made; nothing is left of it here."""
        self.facts, self.pictures, self.grey = {}, [], None
