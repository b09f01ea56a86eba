"""What a line of metrics sums up: the steps since the last one, the same whatever stops, resumes and evaluations came between."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Taken:
    """A step that was taken, with its figures still on the device."""

    step: int
    epoch: int
    rate: float
    names: list[str]
    values: Any
    ready: Any
    keys: list[str]
    wait_s: float
    replaced: int
    order: np.uint64
    at: float = field(default_factory=time.monotonic)


@dataclass
class Window:
    """What is summed up from one line of metrics to the next."""

    began: float = field(default_factory=time.monotonic)
    steps: int = 0
    wait_s: float = 0.0
    replaced: int = 0
    order: np.uint64 = field(default_factory=lambda: np.uint64(0))

    def add(self, taken: Taken) -> None:
        self.steps += 1
        self.wait_s += taken.wait_s
        self.replaced += taken.replaced
        with np.errstate(over="ignore"):
            self.order = np.uint64(self.order + taken.order)

    def shared(self, world: int, device: Any) -> dict[str, Any]:
        """As a checkpoint keeps it: counts summed over the ranks, times of this one, in seconds. Every rank has to ask."""
        import torch

        # two counters as exact integers; the order's digest wraps around alike on any number of ranks
        counts = torch.tensor([self.replaced, int(self.order.astype(np.int64))], device=device)
        if world > 1:
            torch.distributed.all_reduce(counts)
        replaced, order = (int(value) for value in counts.tolist())
        times = {"seconds": time.monotonic() - self.began, "wait_s": self.wait_s}
        return {"steps": self.steps, "replaced": replaced, "order": order & (1 << 64) - 1, **times}

    @classmethod
    def resumed(cls, held: dict[str, Any], rank: int) -> Window:
        """Of what `shared` gave; the sums go on at rank 0."""
        replaced, order = (held["replaced"], held["order"]) if rank == 0 else (0, 0)
        return cls(time.monotonic() - held["seconds"], held["steps"], held["wait_s"], replaced, np.uint64(order))


def digest(ids: Any, step: int, first: int) -> np.uint64:
    """Of which samples stand where in a step's global batch; a sum over samples, so that ranks' digests add up (modulo 2^64).

    ids: this rank's, int64[b]; `first`: the place of its first sample in the global batch. Mixing as in splitmix64 (Steele et al. 2014).
    """
    places = np.uint64(2) * (first + np.arange(len(ids))).astype(np.uint64)
    with np.errstate(over="ignore"):
        mixed = (np.asarray(ids).astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * (np.uint64(2 * step + 1) * np.uint64(0xBF58476D1CE4E5B9) + places)
        return np.uint64((mixed ^ (mixed >> np.uint64(27))).sum(dtype=np.uint64))
