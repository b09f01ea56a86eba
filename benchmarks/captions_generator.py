"""Any number of captions with near-duplicates whose truth is known, recombined and edited from real ones, a chunk at a time.

At least 80 % of the captions stand alone; clusters have sizes by a power law (2 and more, at most MOST); one template ("… on a white
background") makes up 1 % of all. The same for the same captions, number and seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

ALONE, TEMPLATE, EXPONENT, MOST = 0.82, 0.01, 2.0, 1000
SINGLE, TEMPLATE_CLUSTER = -1, 0


def generate(real: Sequence[str], count: int, seed: int = 0, chunk: int = 50_000) -> Iterator[tuple[list[str], list[int]]]:
    """Chunks of (captions, clusters): `cluster` is SINGLE for a caption that stands alone, TEMPLATE_CLUSTER for the template's."""
    draw = random.Random(seed)
    words = sorted({word for caption in real[:20_000] for word in caption.split() if word.isalpha() and len(word) > 3})
    captions, clusters, cluster, open_clusters = list[str](), list[int](), TEMPLATE_CLUSTER, list[tuple[int, str, int]]()
    for _ in range(count):
        kind = draw.random()
        if kind < ALONE:
            text, of = recombined(real, words, draw), SINGLE
        elif kind < ALONE + TEMPLATE:
            text, of = f"royalty free studio photograph of a {draw.choice(words)} isolated on a plain white background", TEMPLATE_CLUSTER
        else:
            if not open_clusters or draw.random() < 0.3:
                cluster += 1
                size = min(MOST, int((1 - draw.random()) ** (-1 / (EXPONENT - 1))) + 1)
                open_clusters.append((cluster, recombined(real, words, draw), size))
            at = draw.randrange(len(open_clusters))
            of, seedling, left = open_clusters[at]
            text = edited(seedling, draw)
            open_clusters[at] = (of, seedling, left - 1)
            if left <= 1:
                open_clusters[at] = open_clusters[-1]
                open_clusters.pop()
        captions.append(text)
        clusters.append(of)
        if len(captions) == chunk:
            yield captions, clusters
            captions, clusters = [], []
    if captions:
        yield captions, clusters


def recombined(real: Sequence[str], words: Sequence[str], draw: random.Random) -> str:
    """The first half of one caption and the second of another, with two words that neither had."""
    first, second = draw.choice(real).split(), draw.choice(real).split()
    made = [*first[: len(first) // 2 + 1], draw.choice(words), *second[len(second) // 2 :], draw.choice(words)]
    return " ".join(made)


def edited(text: str, draw: random.Random) -> str:
    """What reposts do: case, an end mark, a letter more or less, a short word at the end; or nothing."""
    at = draw.randrange(max(1, len(text)))
    edits = (text, text.upper(), text + "!", text[:at] + text[at + 1 :], text[:at] + "x" + text[at:], text + " pic", "the " + text)
    return draw.choice(edits)
