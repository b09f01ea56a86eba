"""From the cues as a format has them to those of a `Track`: one text each, in order, with word times that hold."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from stages.lib.subtitles import rolling
from stages.lib.subtitles.cuetext import tidy
from stages.lib.subtitles.model import MAX_MS, Cue, Found, RawCue, Track, Word, WordTimes

OPEN_END_MS = 5000
"""How long a cue without an end lasts where no other follows sooner."""
_MISPLACED = 0.05
_EQUAL_MS = 2


def finish(found: Found, kind: str, encoding: str) -> Track:
    """Repeats and empty texts removed, order and ends mended, each repair counted."""
    raws, odd = found.raws, found.odd
    automatic = rolling.is_rolling(raws) if found.rolling is None else found.rolling
    count = len(raws) + odd["repeated_cues"]
    if automatic and found.rolling is None:
        raws = rolling.unroll(raws, odd)
    if kind == "srt":
        raws = _without_hidden(raws, odd)
    raws = [raw for raw in raws if tidy("".join(text for _, text in raw.pieces))]
    if not automatic:
        odd["empty_text"] += count - len(raws) - odd["hidden"] - odd["repeated_cues"]
        once = list(dict.fromkeys(raws))  # joined files, and the shadows of styled texts
        odd["repeated_cues"] += len(raws) - len(once)
        raws = once
    if any(one.start > two.start for one, two in pairwise(raws)):
        odd["unsorted"] = 1
        raws = sorted(raws, key=lambda raw: raw.start)
    raws, times = _word_times(raws, odd)
    if automatic:
        raws = rolling.trim(raws, times != "interpolated")
    raws = _ends(raws, odd)
    cues = tuple(_cue(raw, automatic and times == "real") for raw in raws)
    oddities = {name: n for name, n in sorted(odd.items()) if n}
    return Track(cues, kind, encoding, found.language, automatic or found.automatic, times, count, oddities)


def _without_hidden(raws: list[RawCue], odd: Counter[str]) -> list[RawCue]:
    """SRT hides data in cues of no length, which no player shows."""
    shown = [raw for raw in raws if raw.end != raw.start]
    odd["hidden"] = len(raws) - len(shown)
    return shown


def _word_times(raws: list[RawCue], odd: Counter[str]) -> tuple[list[RawCue], WordTimes]:
    """Drops all word times of a track where many lie outside their cues (live tracks count them from another zero); else says what
    they are."""
    inside = outside = 0
    for raw in raws:
        for time, text in raw.pieces:
            if time is not None and text.strip():
                good = raw.start <= time and (raw.end is None or time <= raw.end)
                inside, outside = inside + good, outside + (not good)
    if outside > _MISPLACED * (inside + outside):
        odd["word_times_elsewhere"] = outside
        raws = [RawCue(raw.start, raw.end, tuple((None, text) for _, text in raw.pieces)) for raw in raws]
        return raws, "none"
    if not inside:
        return raws, "none"
    return raws, "interpolated" if _all_steps_equal(raws) else "real"


def _all_steps_equal(raws: Sequence[RawCue]) -> bool:
    """True where nine lines in ten, of those with four timed words and more, have steps that are equal to 2 ms; of 20 steps and more."""
    equal = several = count = 0
    for raw in raws:
        times = [raw.start, *(time for time, text in raw.pieces if time is not None and text.strip())]
        steps = [after - before for before, after in pairwise(times) if after != raw.start]
        if len(steps) >= 3:
            several, count = several + 1, count + len(steps)
            equal += max(steps) - min(steps) <= _EQUAL_MS
    return count >= 20 and equal >= 0.9 * several


def _ends(raws: Sequence[RawCue], odd: Counter[str]) -> list[RawCue]:
    """Gives cues without an end one, and none an end before its start."""
    out = []
    following: int | None = None  # the first start after this one
    for n in range(len(raws) - 1, -1, -1):
        raw = raws[n]
        if n + 1 < len(raws) and raws[n + 1].start > raw.start:
            following = raws[n + 1].start
        end = raw.end if raw.end is None or raw.end <= MAX_MS else None
        if end is None:
            odd["no_end"] += 1
            end = raw.start + OPEN_END_MS if following is None else min(following, raw.start + OPEN_END_MS)
        elif end < raw.start:
            odd["end_before_start"] += 1
            end = raw.start
        out.append(RawCue(raw.start, end, raw.pieces))
    return out[::-1]


def _cue(raw: RawCue, single: bool) -> Cue:
    """`single`: a line of one word needs no time tag, it is said from the cue's start."""
    end = raw.end_or_start()
    lines = [tidy("".join(text for _, text in pieces)) for pieces in rolling.split_lines(raw.pieces)]
    text = "\n".join(line for line in lines if line)
    words: list[tuple[str, int]] = []
    if raw.timed():
        words = timed_words(raw)
    elif single and " " not in text and not text.startswith("["):
        words = [(text, raw.start)]
    return Cue(raw.start / 1000, end / 1000, text, tuple(_with_ends(words, end)))


def timed_words(raw: RawCue) -> list[tuple[str, int]]:
    """Each word with the time of the piece that its first letter stands in: pieces may hold parts of words, or several."""
    words: list[tuple[list[str], int]] = []  # a word in its parts
    end = raw.end_or_start()
    open_, at = False, raw.start
    for time, text in raw.pieces:
        at = max(at, min(time, end)) if time is not None else at
        for part in re.split(r"(\s+)", text):
            if not part or part.isspace():
                open_ = open_ and not part
            elif clean := tidy(part):
                if open_:
                    words[-1][0].append(clean)
                else:
                    words.append(([clean], at))
                open_ = True
    return [("".join(parts), at) for parts, at in words]


def _with_ends(words: Sequence[tuple[str, int]], end: int) -> list[Word]:
    out: list[Word] = []
    until, after = end, end
    for text, start in reversed(words):
        if start < after:
            until, after = after, start
        out.append(Word(text, start / 1000, max(until, start) / 1000))
    return out[::-1]
