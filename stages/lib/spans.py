"""Sets of spans of time in whole milliseconds, and the balance of a video: seconds in = seconds kept + seconds dropped by reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

Spans = list[tuple[int, int]]
Number = TypeVar("Number", int, float)


def union(spans: Iterable[tuple[Number, Number]]) -> list[tuple[Number, Number]]:
    """Disjoint spans in order that cover the same time; those without length cover none."""
    out: list[tuple[Number, Number]] = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out


def both(one: Spans, two: Spans) -> Spans:
    """The time that two unions share."""
    out: Spans = []
    a = b = 0
    while a < len(one) and b < len(two):
        start, end = max(one[a][0], two[b][0]), min(one[a][1], two[b][1])
        if start < end:
            out.append((start, end))
        if one[a][1] < two[b][1]:
            a += 1
        else:
            b += 1
    return out


def without(one: Spans, two: Spans) -> Spans:
    """The time of one union that another does not cover."""
    if not one:
        return []
    low, high = one[0][0], one[-1][1]
    edges = [low, *(edge for span in two for edge in span), high]
    gaps = zip(edges[::2], edges[1::2], strict=True)
    return both(one, [(start, end) for start, end in gaps if start < end])


def length(spans: Spans) -> int:
    return sum(end - start for start, end in spans)


@dataclass(frozen=True)
class Balance:
    """Milliseconds of a video's cues: `total == kept + sum(dropped.values())`, exactly, over the union of their spans.

    `outside`: what the kept segments cover beyond the cues, pauses between them for the most part.
    """

    total: int
    kept: int
    dropped: Mapping[str, int]
    outside: int

    def text(self) -> str:
        lost = "".join(f", {reason} {ms / 1000:.3f}" for reason, ms in self.dropped.items() if ms)
        return f"{self.total / 1000:.3f} s of cues: kept {self.kept / 1000:.3f}{lost}"


def balance(cues: Iterable[tuple[int, int]], kept: Iterable[tuple[int, int]], dropped: Mapping[str, Iterable[tuple[int, int]]]) -> Balance:
    """Accounts for every millisecond of the cues once: kept before dropped, then by the order of `dropped`; what nothing covers is
    `silence`."""
    whole, used = union(cues), union(kept)
    out: dict[str, int] = {}
    rest = without(whole, used)
    for reason, spans in dropped.items():
        out[reason] = length(both(rest, union(spans)))
        rest = without(rest, union(spans))
    out["silence"] = length(rest)
    return Balance(length(whole), length(both(whole, used)), out, length(without(used, whole)))
