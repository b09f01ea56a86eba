"""Records of delimited text: the cells of a line or, in CSV, of the lines that a quoted cell goes over.

Where a quote stays open, csv.reader takes the rows behind it for one long cell, and that it ends in the right number of cells proves
nothing: the next quote of the file closes it. So a record of more than one line has to be quoted to the letter, and must not look
like several rows one below the other; else its first line alone is malformed and the others are read again, as records of their own.
"""

from __future__ import annotations

import csv
import re
from collections import Counter, deque
from collections.abc import Iterator
from typing import NamedTuple

from stages.ingest.unpack import MAX_LINE, Line

URL = re.compile(r"\s*(https?|ftp|s3|gs)://\S+\s*$|\s*//[\w-]+(\.[\w-]+)+/\S*\s*$", re.IGNORECASE)
_URL_BEGINS = re.compile(r"\s*((https?|ftp|s3|gs):)?//\S", re.IGNORECASE)
MAX_LINES = 1000  # of one record: how far the end of a quoted cell is looked for
OPEN = "a quote that is never closed"
LONE_CR = "a line break (CR) outside quotes"


class Bad(NamedTuple):
    """A line that is no row."""

    why: str
    text: str


def filled(given: Iterator[Line]) -> Iterator[Line]:
    """Without blank lines, which are no rows."""
    return (line for line in given if line.bad or not line.text.isspace())


def tsv(given: Iterator[Line]) -> Iterator[list[str] | Bad]:
    """Quoting is off: a caption may begin with a quote and never end it."""
    for text, bad in filled(given):
        yield Bad(bad, text) if bad else text.rstrip("\r\n").split("\t")


class _Feed:
    """Gives csv.reader its lines, remembers those of the record under way, and takes lines back."""

    def __init__(self, given: Iterator[Line]) -> None:
        self.given = given
        self.back: deque[Line] = deque()
        self.taken: list[Line] = []
        self.chars = 0

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        if len(self.taken) == MAX_LINES or (self.taken and self.chars > MAX_LINE):
            raise csv.Error("the record does not end")
        line = self.back.popleft() if self.back else next(self.given)
        self.taken.append(line)
        self.chars += len(line.text)
        return line.text

    def begin(self) -> None:
        self.taken, self.chars = [], 0

    def first_alone(self) -> Line:
        """The record's first line; the others are read again."""
        first, *rest = self.taken
        self.back.extendleft(reversed(rest))
        return first


def quoted(given: Iterator[Line]) -> Iterator[list[str] | Bad]:
    """The records of CSV."""
    feed = _Feed(given)
    reader = csv.reader(feed, strict=True)
    widths: Counter[int] = Counter()
    while True:
        feed.begin()
        cells: list[str] = []
        why = None
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as err:
            why = str(err)
        if len(feed.taken) == 1:
            (line,) = feed.taken
            if why:
                cells, why = _loosely(line.text)
        elif why or any(line.bad for line in feed.taken) or len(cells) != _usual(widths, cells) or _several(feed.taken, cells):
            line, why = feed.first_alone(), OPEN
        else:
            line = feed.taken[0]
        if line.text.isspace() and not line.bad:
            continue
        if why or line.bad:
            yield Bad(line.bad or why or OPEN, line.text)
        else:
            widths[len(cells)] += 1
            yield cells


def _usual(widths: Counter[int], cells: list[str]) -> int:
    """How many cells most records have had so far."""
    return widths.most_common(1)[0][0] if widths else len(cells)


def _loosely(text: str) -> tuple[list[str], str | None]:
    """The cells of a line whose quotes are not to the letter ("Red" shoes), or why they cannot be told."""
    try:
        (cells,) = csv.reader([text.rstrip("\r\n") + "\n"])
    except csv.Error as err:
        return [], LONE_CR if str(err).startswith("new-line character") else str(err)
    return cells, OPEN if "\n" in cells[-1] else None  # only an open quote keeps the line's end


def _several(taken: list[Line], cells: list[str]) -> bool:
    """Whether two of the record's lines are records on the face of it: cells enough, and a URL where the record has its own."""
    width = len(cells)
    places = [i for i, cell in enumerate(cells) if URL.match(cell)] or [i for i, cell in enumerate(cells) if _URL_BEGINS.match(cell)]
    found = 0
    for line in taken:
        plain = line.text.split(",")
        # Counted from either end, since commas within the open cell shift what is behind it.
        whole = len(plain) >= width and any(URL.match(plain[at].strip(' "\r\n')) for i in places for at in (i, i - width))
        found += whole
        if found == 2:
            return True
    return False
