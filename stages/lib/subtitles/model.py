"""What a subtitle file is read into: a `Track` of `Cue`s, and the one error that a reader raises.

Readers of formats speak of whole milliseconds (`RawCue`), so that comparing times never depends on rounding; seconds are made once,
at the end.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

MAX_MS = 1000 * 3600 * 1000
"""Times beyond a thousand hours are taken for errors. Streams joined end to end reach a few hundred."""

WordTimes = Literal["real", "interpolated", "none"]

REASONS = {
    "empty": "the subtitle file holds nothing but white space",
    "undecodable": "no encoding gives readable text",
    "unknown_format": "the content is in none of the formats that are read",
    "malformed": "broken before its first cue: JSON, XML or a pickle that cannot be read",
    "refused": "could do harm: a pickle that names code, XML with a DTD, or nested too deeply",
}


class SubtitleError(ValueError):
    """The only error that `parse` raises: `reason` is one of REASONS, `detail` says what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class Word:
    """A word with the time from which it is said, and until when at the latest: the next word's start, or its cue's end.

    Words to which a format gives one time together share it.
    """

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Cue:
    """A timed text, without tags, its lines parted by a newline. `words` is empty where the format times no words."""

    start_s: float
    end_s: float
    text: str
    words: tuple[Word, ...] = ()


@dataclass(frozen=True)
class Track:
    """The cues of one file, by start. `cues_in` counts them as the file has them, before repeats and empty ones are removed."""

    cues: tuple[Cue, ...]
    format: str
    encoding: str
    language: str | None = None
    automatic: bool = False
    """Made by a machine: of YouTube's rolling form, or recognised here. False says only that nothing shows it."""
    word_times: WordTimes = "none"
    """`interpolated`: the steps within a line are all equal, as in translated tracks; of no use below the line."""
    cues_in: int = 0
    oddities: Mapping[str, int] = field(default_factory=dict)
    """What was repaired or left out, and how often: `bad_timing`, `repeated_lines`, `no_signature`, …"""


@dataclass(frozen=True, slots=True)
class RawCue:
    """A cue as its format has it. Each of `pieces` is (time or None, text); a time holds for its text and the pieces after it."""

    start: int
    end: int | None
    pieces: tuple[tuple[int | None, str], ...]
    marked: bool = False
    """WebVTT's `position:0%`, by which YouTube places rolling captions."""

    def end_or_start(self) -> int:
        return self.start if self.end is None else self.end

    def timed(self) -> bool:
        return any(time is not None for time, _ in self.pieces)


@dataclass
class Found:
    """What a format's reader hands to `finish`."""

    raws: list[RawCue] = field(default_factory=list)
    odd: Counter[str] = field(default_factory=Counter)
    language: str | None = None
    rolling: bool | None = None
    """None: to be seen from the cues (WebVTT); True: lines are shown longer than they are said, but not repeated (json3, srv3)."""
    automatic: bool = False
    """Known to be made by a machine, whatever its form."""


def to_ms(seconds: Any) -> int | None:
    """Milliseconds of a number of seconds, or None where it is no time: not a number, negative, or beyond MAX_MS."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float | str):
        return None
    try:
        value = float(seconds)
    except (ValueError, OverflowError):
        return None
    if not math.isfinite(value) or not 0 <= value * 1000 <= MAX_MS:
        return None
    return round(value * 1000)
