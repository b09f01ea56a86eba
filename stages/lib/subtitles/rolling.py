"""YouTube's rolling captions: each line of speech stands once, with the time at which it was first shown.

A line comes in a cue of its own under the line before it, word by word; a cue of 10 ms then holds it without times; live tracks show three
lines and let the last one grow. So the lines at the end of one cue begin the next: those, and those alone, are repeats. A line that is said
twice stands twice. Measured on 16 tracks and against the converted SRT of one of them: docs/decisions/0003-subtitles.md.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from stages.lib.subtitles.cuetext import tidy
from stages.lib.subtitles.model import RawCue

HELD_MS = 15
LINES_SHOWN = 8  # at once, at most; live tracks show three
ROLLED_FEW = 5  # cues that say nothing yet: somebody may sing a line twice
LAST_WORD_MS = 600
"""How long the last word of a line may last: 98 % of the steps between words are shorter, and a cue's end lies up to 43 s after it."""

Pieces = list[tuple[int | None, str]]
_SOUND = re.compile(r"\[[^\[\]]*\]")


@dataclass
class Line:
    """A line that is being shown."""

    start: int
    end: int
    pieces: Pieces
    text: str


def is_rolling(raws: Sequence[RawCue]) -> bool:
    """True where word times stand in cues at `position:0%`, or more than three cues in ten last 10 ms or begin with the line that the one
    before them ends with, and have one more: converters leave out positions, times of words, and what lasts 10 ms."""
    if any(raw.marked and raw.timed() for raw in raws):
        return True
    held = sum(1 for raw in raws if raw.end is not None and 0 < raw.end - raw.start <= HELD_MS)
    return held > 0.3 * len(raws) or ((rolled := _rolled(raws)) > ROLLED_FEW and rolled > 0.3 * len(raws))


def _rolled(raws: Sequence[RawCue]) -> int:
    """How many cues repeat the last lines of the one before them and add to them."""
    shown = [[text for pieces in split_lines(raw.pieces) if (text := tidy("".join(text for _, text in pieces)))] for raw in raws]
    return sum(any(one[-k:] == two[:k] for k in range(1, min(len(one) + 1, len(two), LINES_SHOWN))) for one, two in pairwise(shown))


def unroll(raws: Sequence[RawCue], odd: Counter[str]) -> list[RawCue]:
    """A cue for each line of speech."""
    out: list[Line] = []
    shown: list[tuple[str, Line | None]] = []
    for raw in raws:
        lines = [(tidy("".join(text for _, text in pieces)), pieces) for pieces in split_lines(raw.pieces)]
        kept = _shared([text for text, _ in shown], [text for text, _ in lines])
        now: list[tuple[str, Line | None]] = []
        for n, (text, pieces) in enumerate(lines):
            line = shown[len(shown) - kept + n][1] if n < kept else None
            if line and text != line.text:
                line.pieces, line.text, line.end = pieces, text, raw.end_or_start()
            elif line:
                odd["repeated_lines"] += 1
            elif text:
                line = Line(raw.start, raw.end_or_start(), pieces, text)
                out.append(line)
            now.append((text, line))
        while now and not now[-1][0]:
            now.pop()
        shown = now
    return [RawCue(line.start, line.end, tuple(line.pieces)) for line in out]


def _shared(before: list[str], after: list[str]) -> int:
    """How many lines `before` ends and `after` begins with; the last of them may have grown."""
    for k in range(min(len(before), len(after), LINES_SHOWN), 0, -1):
        *same, last = before[-k:]
        if same == after[: k - 1] and (after[k - 1] == last or (last and after[k - 1].startswith(last))):
            return k
    return 0


def split_lines(pieces: Sequence[tuple[int | None, str]]) -> list[Pieces]:
    """The pieces of each line; a piece that goes over a newline is parted."""
    lines: list[Pieces] = [[]]
    for time, text in pieces:
        first, *rest = text.split("\n")
        lines[-1].append((time, first))
        lines += [[(time, part)] for part in rest]
    return lines


def trim(raws: Sequence[RawCue], real: bool = True) -> list[RawCue]:
    """Ends where the speech ends, not where the display does: at the next line, or soon after the last word.

    `[Music]` and lines whose words have no times, or none that are `real`, last as shown, but not beyond the next line.
    """
    out = []
    for n, raw in enumerate(raws):
        last = max([raw.start, *(time for time, text in raw.pieces if time is not None and text.strip())])
        end = raw.end if raw.end is not None else last + LAST_WORD_MS
        text = tidy("".join(text for _, text in raw.pieces))
        if (real and raw.timed()) or (" " not in text and not _SOUND.fullmatch(text)):
            end = min(end, last + LAST_WORD_MS)
        if n + 1 < len(raws) and raws[n + 1].start > last:
            end = min(end, raws[n + 1].start)
        out.append(RawCue(raw.start, max(end, raw.start), raw.pieces))
    return out
