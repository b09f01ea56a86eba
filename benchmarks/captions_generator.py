"""Any number of captions with near-duplicates whose truth is known, recombined and edited from real ones, a chunk at a time.

At least 80 % of the captions stand alone; clusters have sizes by a power law (two and more, at most MOST) and lie scattered over some
AHEAD captions or more; one template ("… on a plain white background") makes up 1 % of all. The same for the same captions, number and seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

ALONE, TEMPLATE, MOST = 0.82, 0.01, 1000
EXPONENT = 2.0  # of a cluster's size: P(size = s) falls as s ** -EXPONENT
AHEAD = 2000  # captions of clusters that are waiting to be drawn
SINGLE, TEMPLATE_CLUSTER = -1, 0


def generate(real: Sequence[str], count: int, seed: int = 0, chunk: int = 50_000) -> Iterator[tuple[list[str], list[int]]]:
    """Chunks of (captions, clusters): `cluster` is SINGLE for a caption that stands alone, TEMPLATE_CLUSTER for the template's."""
    draw = random.Random(seed)
    split = [caption.split() for caption in real]
    words = sorted({word for caption in split for word in caption if word.isalpha() and len(word) > 3})
    captions, clusters = list[str](), list[int]()
    cluster, waiting = TEMPLATE_CLUSTER, list[tuple[int, str]]()
    for _ in range(count):
        kind = draw.random()
        if kind < ALONE:
            text, of = recombined(split, words, draw), SINGLE
        elif kind < ALONE + TEMPLATE:
            text, of = f"royalty free studio photograph of a {draw.choice(words)} isolated on a plain white background", TEMPLATE_CLUSTER
        else:
            while len(waiting) < AHEAD:
                cluster += 1
                size = min(MOST, int(2 * (1 - draw.random()) ** (-1 / (EXPONENT - 1))))
                waiting += [(cluster, recombined(split, words, draw))] * size
            at = draw.randrange(len(waiting))
            waiting[at], waiting[-1] = waiting[-1], waiting[at]
            of, seedling = waiting.pop()
            text = edited(seedling, draw)
        captions.append(text)
        clusters.append(of)
        if len(captions) == chunk:
            yield captions, clusters
            captions, clusters = [], []
    if captions:
        yield captions, clusters


def recombined(real: Sequence[Sequence[str]], words: Sequence[str], draw: random.Random) -> str:
    """Two or three words of each of three captions, from any place, with a word between them that none had.

    Halves of captions would not do: there are so few of them that each of ten million captions would share one with hundreds, and the
    number of pairs that are alike by half, which no web has, would grow with the square of the captions.
    """
    made = list[str]()
    for _ in range(3):
        caption = draw.choice(real)
        long = 2 + (draw.random() < 0.5)
        at = int(draw.random() * max(1, len(caption) - long + 1))
        made += [*caption[at : at + long], draw.choice(words)]
    return " ".join(made)


def edited(text: str, draw: random.Random) -> str:
    """What reposts do: case, an end mark, a letter more or less, a short word at an end; or nothing."""
    at = draw.randrange(max(1, len(text)))
    edits = (text, text.upper(), text + "!", text[:at] + text[at + 1 :], text[:at] + "x" + text[at:], text + " pic", "the " + text)
    return draw.choice(edits)
