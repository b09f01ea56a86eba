"""TTML, DFXP and IMSC: the `p` elements with their times, which count from those of the elements around them.

Source: W3C TTML2, section 12 (timing): `begin`, `end`, `dur`; `timeContainer="seq"` chains; clock times, frames and ticks. Text is
collapsed unless `xml:space="preserve"`; lines break at `br` alone; of ruby the base is kept. Timed spans give words their times.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from stages.lib.subtitles.model import MAX_MS, Found, RawCue
from stages.lib.subtitles.xmltree import Node

_CLOCK = re.compile(r"(?:(\d{1,6}):)?(\d{1,6}):(\d{1,6})(?:[.,](\d{1,9}))?(?::(\d{1,6}))?")
_OFFSET = re.compile(r"(\d{1,15})(?:\.(\d{1,9}))?(h|ms|m|s|f|t)?")
_UNIT: dict[str | None, int | Fraction] = {"h": 3600, "m": 60, "s": 1, "ms": Fraction(1, 1000), None: 1}
_DROPPED = {"text", "textContainer", "delimiter"}
Pieces = list[tuple[int | None, str]]


@dataclass(frozen=True)
class Rates:
    """Seconds of a frame and of a tick."""

    frame: Fraction
    tick: Fraction


@dataclass(frozen=True)
class Span:
    """When an element is active, in seconds; None: without end."""

    begin: Fraction
    end: Fraction | None


class Reader:
    """Walks a document once. `absolute`: nested times count from the document's start, as Apple's lyrics have it."""

    def __init__(self, root: Node, absolute: bool = False) -> None:
        self.root, self.absolute = root, absolute
        self.found = Found(rolling=False, language=root.attributes.get("lang") or None)
        self.outside = 0  # p elements that begin when a timed parent has ended
        self.rates = _rates(root.attributes)
        self.rubies = {style.attributes.get("id"): style.attributes["ruby"] for style in root.find("style") if "ruby" in style.attributes}

    def read(self) -> Found:
        for body in (child for child in self.root.elements() if child.name == "body"):
            self._walk(body, Span(Fraction(0), None))
        return self.found

    def _walk(self, node: Node, parent: Span) -> Span:
        """Reads the p elements below; returns when `node` is active."""
        span = self._span(node, parent)
        if node.name == "p":
            if parent.end is not None and span.begin >= parent.end:
                self.outside += 1
            self._cue(node, span)
            return span
        chain = node.attributes.get("timeContainer") == "seq"
        inner = span
        for child in node.elements():
            done = self._walk(child, inner)
            if chain:
                inner = Span(done.end if done.end is not None else done.begin, span.end)
        if chain and span.end is None:
            span = Span(span.begin, inner.begin)
        return span

    def _span(self, node: Node, parent: Span) -> Span:
        base = Fraction(0) if self.absolute else parent.begin
        begin, end, length = (self._time(node, name) for name in ("begin", "end", "dur"))
        start = base + begin if begin is not None else parent.begin
        ends = [base + end] if end is not None else []
        ends += [start + length] if length is not None else []
        ends += [parent.end] if parent.end is not None else []
        return Span(start, min(ends) if ends else None)

    def _time(self, node: Node, name: str) -> Fraction | None:
        if name not in node.attributes:
            return None
        time = self._seconds(node.attributes[name])
        if time is None:
            self.found.odd["bad_timing"] += 1
        return time

    def _seconds(self, text: str) -> Fraction | None:
        return seconds(text.strip(), self.rates)

    def _cue(self, node: Node, span: Span) -> None:
        if "begin" in node.attributes and self._seconds(node.attributes["begin"]) is None:
            return  # counted; nobody knows when it is said
        pieces: Pieces = []
        spans: list[Span] = []
        self._text(node, span, pieces, spans)
        if spans and "begin" not in node.attributes:
            ends = [inner.end for inner in spans if inner.end is not None]
            last = max(ends) if len(ends) == len(spans) else span.end
            span = Span(min(inner.begin for inner in spans), last)
        start, end = _ms(span.begin), None if span.end is None else _ms(span.end)
        if start <= MAX_MS:
            self.found.raws.append(RawCue(start, end, tuple(pieces)))
        else:
            self.found.odd["bad_timing"] += 1

    def _text(self, node: Node, span: Span, pieces: Pieces, spans: list[Span]) -> None:
        keep = node.attributes.get("space") == "preserve"
        inside = Span(span.begin, span.end)
        for child in node.children:
            if isinstance(child, str):
                pieces.append((_ms(span.begin) if spans else None, child if keep else re.sub(r"\s+", " ", child)))
            elif child.name == "br":
                pieces.append((_ms(span.begin) if spans else None, "\n"))
            elif child.name == "span" and self._ruby(child) not in _DROPPED:
                inner = self._span(child, inside)
                if "begin" in child.attributes:
                    spans.append(inner)
                self._text(child, inner, pieces, spans)
                if node.attributes.get("timeContainer") == "seq":
                    inside = Span(inner.end if inner.end is not None else inner.begin, span.end)

    def _ruby(self, node: Node) -> str | None:
        if "ruby" in node.attributes:
            return node.attributes["ruby"]
        return next((self.rubies[style] for style in node.attributes.get("style", "").split() if style in self.rubies), None)


def read_ttml(root: Node) -> Found:
    """Cues in the document's order. Where lines would begin after their parent's end, times are read from the document's start instead."""
    reader = Reader(root)
    found = reader.read()
    if reader.outside and "timing" not in root.attributes:
        found.odd["outside_parent"] = reader.outside
    if reader.outside:
        found = Reader(root, absolute=True).read()
        found.odd["absolute_nested_times"] = 1
    return found


def seconds(text: str, rates: Rates) -> Fraction | None:
    """A time expression in seconds: `hh:mm:ss.fff`, `hh:mm:ss:ff`, `m:ss.fff`, `12.5s`, `50f`, `100t`."""
    if clock := _CLOCK.fullmatch(text):
        hours, minutes, whole, part, frames = clock.groups()
        if frames is not None and hours is None:
            return None
        base = Fraction((int(hours or 0) * 60 + int(minutes)) * 60 + int(whole))
        return base + _part(part) + int(frames or 0) * rates.frame
    if offset := _OFFSET.fullmatch(text):
        whole, part, unit = offset.groups()
        scale = rates.frame if unit == "f" else rates.tick if unit == "t" else Fraction(_UNIT[unit])
        return (int(whole) + _part(part)) * scale
    return None


def _part(digits: str | None) -> Fraction:
    return Fraction(int(digits), 10 ** len(digits)) if digits else Fraction(0)


def _ms(value: Fraction) -> int:
    return round(value * 1000)


def _rates(attributes: dict[str, str]) -> Rates:
    """`ttp:frameRate` (30 by default) times `ttp:frameRateMultiplier` ("1000 1001"); ticks by `ttp:tickRate`, else the frame rate's."""
    numbers = re.findall(r"\d{1,9}", attributes.get("frameRateMultiplier", ""))
    multiplier = Fraction(int(numbers[0]), int(numbers[1])) if len(numbers) == 2 and int(numbers[1]) else Fraction(1)
    named = _whole(attributes.get("frameRate"))
    frame = 1 / ((named or 30) * (multiplier or Fraction(1)))
    ticks = _whole(attributes.get("tickRate"))
    return Rates(frame, Fraction(1, ticks) if ticks else frame if named else Fraction(1))


def _whole(text: str | None) -> int:
    return int(text) if text and re.fullmatch(r"\d{1,9}", text) else 0
