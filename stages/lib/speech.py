"""Cues to tokens: the words of the speech with times, what is no speech apart.

A token has the time that the file gives its word; where a file times no words, a cue's span is shared among its words by their letters,
and only the cue's own start and end are known (`start_known`, `end_known`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

from stages.lib.subtitles.model import Cue

_MUSIC = re.compile(r"[♪♫♬🎵🎶]")
_ASIDE = re.compile(r"\[[^\[\]]*\]|\([^()]*\)|（[^（）]*）|【[^【】]*】|\*[^*]*\*")
_OPENS = re.compile(r"\[|\([♪♫♬🎵🎶]")  # what is never spoken; other round brackets may be part of a sentence
_WORD = re.compile(r"\w")
_PARTS = re.compile(r"[^\s。！？]+[。！？]*|[。！？]+")
_SPEAKER = re.compile(r"(?:>>+|&gt;&gt;|[-–—](?=\s|[^\W\d]))\s*")  # before a digit it is a minus
_END = re.compile(r"(?:[.!?…]|[。！？؟।])[\"'”’»)\]]*$")
_CJK = re.compile(r"[\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")
_THAI = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")  # and Lao, Burmese, Khmer: vowels and tones are letters of their own
_ABBREVIATION = re.compile(r"(?:mr|mrs|ms|dr|prof|st|vs|etc|no|jr|sr|e\.g|i\.e|[a-z])\.$", re.I)
start_of = attrgetter("start_s")
Said = tuple[str, int, int, bool, bool]
"""Text, start and end in milliseconds, and whether the file gives either."""


@dataclass(frozen=True, slots=True)
class Token:
    """A word of the speech; times in milliseconds. `speaker`: someone else begins to speak with it."""

    text: str
    start: int
    end: int
    start_known: bool
    end_known: bool
    speaker: bool = False

    def ends_sentence(self) -> bool:
        """Ends with a sentence's sign and is no abbreviation or initial."""
        return bool(_END.search(self.text)) and not _ABBREVIATION.match(self.text)

    def words(self) -> int:
        """1, but in scripts without blanks between words one for every two letters (kana, Han) or four (Thai, Lao, Burmese, Khmer): an
        estimate."""
        return _words(self.text)


def _words(text: str) -> int:
    return max(1, (2 * len(_CJK.findall(text)) + len(_THAI.findall(text))) // 4)


def joined(tokens: Sequence[Token]) -> str:
    """The tokens' text; where one ends with a CJK sentence's sign no blank follows."""
    return "".join(token.text + ("" if token.text[-1:] in "。！？" else " ") for token in tokens).strip()


def ms(seconds: float) -> int:
    return round(seconds * 1000)


def is_speech(text: str) -> bool:
    """False for `[Music]`, `(applause)`, `♪ a song ♪`, `- -`: nothing spoken is left. A sign of music that stands alone, in its line or
    in brackets, says nothing of the words beside it."""
    lines = _ASIDE.sub("", text).split("\n")
    return any(map(_WORD.search, lines)) and not any(_MUSIC.search(line) and _WORD.search(line) for line in lines)


def in_turn(cues: Sequence[Cue], words_per_s: float) -> list[Cue]:
    """Cues of one start become one, and cues that overlap where the first could not be said before the next begins: two speak at once, or
    a line is shown in pieces. Each ends where the next begins at the latest."""
    groups: list[list[Cue]] = []
    words, until = 0, 0.0  # of the last group
    for cue in sorted(cues, key=start_of):
        begin = groups[-1][0].start_s if groups else cue.start_s
        count = sum(map(_words, cue.text.split()))
        untimed = bool(groups) and not groups[-1][-1].words and not cue.words
        hurried = untimed and words_per_s * (cue.start_s - begin) < words <= words_per_s * (until - begin)
        if groups and (cue.start_s == begin or hurried):
            groups[-1].append(cue)
            words, until = words + count, max(until, cue.end_s)
        else:
            groups.append([cue])
            words, until = count, cue.end_s
    merged = [
        Cue(group[0].start_s, max(cue.end_s for cue in group), "\n".join(cue.text for cue in group)) if group[1:] else group[0]
        for group in groups
    ]
    nexts = [*(cue.start_s for cue in merged[1:]), float("inf")]
    return [Cue(cue.start_s, min(cue.end_s, after), cue.text, cue.words) for cue, after in zip(merged, nexts, strict=False)]


def tokens_of(cue: Cue, exact: bool) -> list[Token]:
    """The tokens of a cue, without asides in brackets and signs for speakers. `exact`: its words' times are to be trusted."""
    timed = _timed(cue, exact) or _shared_out(cue.text, ms(cue.start_s), ms(cue.end_s))
    out: list[Token] = []
    last_of = {bracket: max((n for n, said in enumerate(timed) if bracket in said[0]), default=-1) for bracket in "])"}
    speaker, closes = False, ""  # `closes`: the bracket that ends the aside that is left out now
    for n, (said, start, end, start_known, end_known) in enumerate(timed):
        text = said
        first, last = n == 0, n == len(timed) - 1
        if not closes and (opens := _OPENS.match(text)):
            bracket = "]" if opens.group() == "[" else ")"
            closes = bracket if last_of[bracket] >= n else ""
        if closes:
            _, found, text = text.partition(closes)
            closes = "" if found else closes
            if not _WORD.search(text):
                continue
        if sign := _SPEAKER.match(text):
            speaker, text = True, text[sign.end() :]
        elif text in ("-", "–", "—", "--", "*"):
            speaker = speaker or first
            continue
        if not _WORD.search(text):
            _attach(out, text)
            continue
        stop = min(end, ms(cue.end_s))
        out.append(Token(text, start, max(start, stop), start_known or first, end_known or last, speaker))
        speaker = False
    return out


def _attach(out: list[Token], text: str) -> None:
    """Signs that stand alone belong to the word before them."""
    if text and out and not _MUSIC.search(text):
        last = out[-1]
        out[-1] = Token(f"{last.text} {text}", last.start, last.end, last.start_known, last.end_known, last.speaker)


def _timed(cue: Cue, exact: bool) -> list[Said]:
    """The cue's timed words; those to which the file gives one time share the span up to the next one's."""
    out: list[Said] = []
    for (start, end), words in groupby(cue.words, lambda word: (word.start_s, word.end_s)):
        texts = [word.text for word in words]
        shared = _shared_out(" ".join(texts), ms(start), ms(end)) if len(texts) > 1 else []
        said = shared or [(text, ms(start), ms(end), False, False) for text in texts]
        out += [(text, a, b, exact and n == 0, exact and n == len(said) - 1) for n, (text, a, b, _, _) in enumerate(said)]
    return out


def _shared_out(text: str, start: int, end: int) -> list[Said]:
    """The words of a text that is said from `start` to `end`, with times in proportion to their letters; CJK parts at the ends of its
    sentences."""
    parts: list[str] = _PARTS.findall(text)
    total = sum(len(part) for part in parts)
    out, done = [], 0
    for part in parts:
        begin = start + (end - start) * done // total
        done += len(part)
        out.append((part, begin, start + (end - start) * done // total, False, False))
    return out
