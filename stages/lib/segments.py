"""Cues to segments: spans of time with the text that is spoken in them, and everything left out with its reason.

`sentences` and `windows` are ours; `howto100m` and `milnce` are the clip rules of the two loaders, each caption taken once instead of drawn
(antoine77340/howto100m `youtube_dataloader.py`, antoine77340/MIL-NCE_HowTo100M `video_loader.py`); `cues` takes cues as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from stages.lib.spans import Balance, balance
from stages.lib.speech import Token, in_turn, is_speech, joined, ms, tokens_of
from stages.lib.subtitles.model import Cue

Method = Literal["sentences", "windows", "cues", "howto100m", "milnce"]

DROPPED = {
    "non_speech": "music, applause and other sounds: nothing is spoken",
    "too_fast": "more words a second than max_words_per_s: the times are wrong",
    "too_long": "longer than max_s or max_words, and nowhere to cut it",
    "too_short": "shorter than min_s, and no neighbour near enough to join",
    "too_few_words": "fewer words than min_words, and no neighbour near enough to join",
    "overlap": "overlaps the segment before it (overlap: drop)",
}


@dataclass(frozen=True)
class Rules:
    """How cues become segments; times in milliseconds. Meanings: the options of the stage `segments`."""

    method: Method = "sentences"
    min_ms: int = 2000
    max_ms: int = 15_000
    min_words: int = 4
    max_words: int = 60
    pause_ms: int = 600
    max_gap_ms: int = 2000
    max_words_per_s: float = 8.0
    keep_overlap: bool = True
    candidates: int = 1


@dataclass(frozen=True, slots=True)
class Segment:
    """A span in milliseconds with its text. `exact`: both ends are times that the file gives. `tokens`: its words, where they are
    single."""

    start: int
    end: int
    text: str
    exact: bool
    tokens: tuple[Token, ...] = ()
    candidates: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Lost:
    """A span that became no segment; `reason` is one of DROPPED."""

    start: int
    end: int
    text: str
    reason: str


@dataclass(frozen=True)
class Cut:
    """What became of a video's cues."""

    segments: tuple[Segment, ...]
    lost: tuple[Lost, ...]
    balance: Balance


def cut(cues: Sequence[Cue], rules: Rules, exact_words: bool) -> Cut:
    """Cuts a video's cues. `exact_words`: the times of its words are real, not interpolated."""
    speech = [cue for cue in cues if is_speech(cue.text)]
    lost = [Lost(ms(cue.start_s), ms(cue.end_s), cue.text, "non_speech") for cue in cues if not is_speech(cue.text)]
    if rules.method in ("sentences", "windows"):
        segments = []
        tokens = [token for cue in in_turn(speech, rules.max_words_per_s) for token in tokens_of(cue, exact_words)]
        for group in _groups(tokens, rules):
            if reason := _unfit(group, rules):
                lost.append(Lost(group[0].start, _end(group), joined(group), reason))
            else:
                exact = group[0].start_known and group[-1].end_known
                segments.append(Segment(group[0].start, _end(group), joined(group), exact, tuple(group)))
    else:
        segments = list(_from_cues(speech, rules, lost))
    if not rules.keep_overlap:
        segments = _disjoint(segments, lost)
    return Cut(tuple(segments), tuple(lost), _account(cues, segments, lost))


def _account(cues: Sequence[Cue], segments: Sequence[Segment], lost: Sequence[Lost]) -> Balance:
    dropped = {reason: [(each.start, each.end) for each in lost if each.reason == reason] for reason in DROPPED}
    return balance([(ms(cue.start_s), ms(cue.end_s)) for cue in cues], [(each.start, each.end) for each in segments], dropped)


def why_none(result: Cut) -> str:
    """For a video without a segment: the reason that took the most time, of equals the one that stands first in DROPPED."""
    counts = {reason: sum(each.reason == reason for each in result.lost) for reason in DROPPED}
    return max(DROPPED, key=lambda reason: (result.balance.dropped[reason], counts[reason]))


# Sentences and windows


def _groups(tokens: Sequence[Token], rules: Rules) -> Iterator[list[Token]]:
    """Runs of tokens that become a segment or are lost, in order; every token is in one."""
    far = lambda before, after: after.start - before.end >= rules.max_gap_ms  # noqa: E731
    for block in _split(tokens, far):
        if rules.method == "windows":
            atoms = [[token] for token in block]
        else:
            atoms = [part for atom in _split(block, lambda a, b: _boundary(a, b, rules)) for part in _shortened(atom, rules)]
        yield from _packed(atoms, rules)


def _split(tokens: Sequence[Token], between: Callable[[Token, Token], bool]) -> list[list[Token]]:
    out: list[list[Token]] = []
    for n, token in enumerate(tokens):
        if n and not between(tokens[n - 1], token):
            out[-1].append(token)
        else:
            out.append([token])
    return out


def _boundary(before: Token, after: Token, rules: Rules) -> bool:
    """Between two tokens a sentence ends: by its sign, by a pause, or since another speaker begins."""
    return before.ends_sentence() or after.speaker or after.start - before.end >= rules.pause_ms


def _shortened(atom: list[Token], rules: Rules) -> Iterator[list[Token]]:
    """A run that is too long, cut where the pause is longest within its middle half; a comma counts as 0.3 s."""
    if len(atom) < 2 or not _too_long(atom, rules):
        yield atom
        return
    quarter = len(atom) // 4
    at = max(range(max(1, quarter), max(2, len(atom) - quarter)), key=lambda n: (_pause(atom, n), -abs(2 * n - len(atom))))
    yield from _shortened(atom[:at], rules)
    yield from _shortened(atom[at:], rules)


def _pause(atom: list[Token], at: int) -> int:
    return atom[at].start - atom[at - 1].end + (300 if atom[at - 1].text[-1:] in ",;:،、，" else 0)


def _packed(atoms: Sequence[list[Token]], rules: Rules) -> list[list[Token]]:
    """Neighbours joined while the first is too short (windows: while they fit); a short rest joins what is before it."""
    groups: list[list[Token]] = []
    for atom in atoms:
        fits = groups and (rules.method == "windows" or _short(groups[-1], rules)) and not _too_long([*groups[-1], *atom], rules)
        if fits:
            groups[-1].extend(atom)
        else:
            groups.append(list(atom))
    if len(groups) > 1 and _short(groups[-1], rules) and not _too_long([*groups[-2], *groups[-1]], rules):
        groups[-2].extend(groups.pop())
    return groups


def _end(group: Sequence[Token]) -> int:
    return max(token.end for token in group)


def _span(group: Sequence[Token]) -> int:
    return _end(group[-2:]) - group[0].start


def _short(group: Sequence[Token], rules: Rules) -> bool:
    return _span(group) < rules.min_ms or _words(group) < rules.min_words


def _too_long(group: Sequence[Token], rules: Rules) -> bool:
    return _span(group) > rules.max_ms or _words(group) > rules.max_words


def _unfit(group: Sequence[Token], rules: Rules) -> str | None:
    if _words(group) > max(1, rules.max_words_per_s * _span(group) / 1000):
        return "too_fast"
    if _too_long(group, rules):
        return "too_long"
    if _span(group) < max(rules.min_ms, 1):
        return "too_short"
    return "too_few_words" if _words(group) < rules.min_words else None


def _words(group: Sequence[Token]) -> int:
    return sum(token.words() for token in group)


# A segment for each cue


def _from_cues(cues: Sequence[Cue], rules: Rules, lost: list[Lost]) -> Iterator[Segment]:
    texts = [" ".join(cue.text.split()) for cue in cues]
    counts = [len(text.split()) for text in texts]
    starts, ends = [ms(cue.start_s) for cue in cues], [ms(cue.end_s) for cue in cues]
    done: set[tuple[int, int]] = set()
    for n in range(len(cues)):
        if rules.method == "howto100m":
            first, last = widened(starts, ends, counts, n, rules)
            if last - first >= most_joined(rules):
                lost.append(Lost(starts[n], ends[n], texts[n], "too_fast"))
            elif (first, last) not in done:
                done.add((first, last))
                yield Segment(starts[first], ends[last], " ".join(texts[first : last + 1]), True)
        elif rules.method == "milnce":
            start, end = whole_seconds(starts[n], ends[n], rules.min_ms)
            at = nearest(starts, ends, n, rules.candidates)
            yield Segment(
                start, end, texts[n], False, (), tuple(texts[max(0, min(len(texts) - 1, at + k))] for k in range(rules.candidates))
            )
        else:
            yield Segment(starts[n], ends[n], texts[n], True)


def widened(starts: Sequence[int], ends: Sequence[int], words: Sequence[int], at: int, rules: Rules) -> tuple[int, int]:
    """HowTo100M: the caption `at` and neighbours on either side until it has min_words and min_ms, always the one that keeps the
    span shorter. It ends at `most_joined`, too."""
    first = last = at
    count = words[at]
    while last - first < most_joined(rules) and (count < rules.min_words or ends[last] - starts[first] < rules.min_ms):
        before, after = first > 0, last < len(starts) - 1
        if not before and not after:
            break
        if before and after:
            if rules.min_ms > 0:
                before = ends[last] - starts[first - 1] <= ends[last + 1] - starts[first]
            else:
                before = words[last + 1] <= words[first - 1]
        first, last = (first - 1, last) if before else (first, last + 1)
        count += words[first] if before else words[last]
    return first, last


def most_joined(rules: Rules) -> int:
    """How many captions are joined at most: ten a second, and one a word, would be more than anybody says."""
    return 100 + rules.min_ms // 100 + rules.min_words


def whole_seconds(start: int, end: int, least: int) -> tuple[int, int]:
    """MIL-NCE: widened to `least` around its middle, not before 0, both ends cut to whole seconds."""
    if end - start < least:
        begin = max(0.0, start - (least - end + start) / 2)
        return int(begin // 1000) * 1000, int((begin + least) // 1000) * 1000
    return start // 1000 * 1000, end // 1000 * 1000


def nearest(starts: Sequence[int], ends: Sequence[int], at: int, count: int) -> int:
    """MIL-NCE: the first of `count` captions around `at` that together cover the shortest time."""
    first = last = at
    for have in range(1, count):
        if first == 0:
            return 0
        if last == len(starts) - 1:
            return first - (count - have)
        if ends[last] - starts[first - 1] < ends[last + 1] - starts[first]:
            first -= 1
        else:
            last += 1
    return first


def _disjoint(segments: Sequence[Segment], lost: list[Lost]) -> list[Segment]:
    out: list[Segment] = []
    for segment in sorted(segments, key=lambda segment: segment.start):
        if out and segment.start < out[-1].end:
            lost.append(Lost(segment.start, segment.end, segment.text, "overlap"))
        else:
            out.append(segment)
    return out
