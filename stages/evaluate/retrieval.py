"""Retrieval between images and captions, several captions an image, without the whole matrix of similarities in memory.

The protocol is the field's (Karpathy and Fei-Fei 2015; CLIP_benchmark): an image's query is right at k when any of its captions
is among the k best of all captions; a caption's query when its own image is among the k best of all images. **Ties count against
the model**: a wrong answer as similar as the right one ranks before it, so that a model that answers everything alike scores 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TIE = 1e-6
"""Similarities that differ by less are equal: the same vectors' products differ by up to some 1e-7 with the place in a block (float32)."""
BLOCK = 1 << 23  # similarities computed at a time: 32 MB
KS = (1, 5, 10)


@dataclass(frozen=True)
class Ranks:
    """Ranks from 0 of each query's right answer: `image` int64[n], an image's best caption; -1 for an image without one. `text` int64[m].

    `image_tied` and `text_tied`: how many queries would rank better if ties were broken for the model.
    """

    image: np.ndarray
    text: np.ndarray
    image_tied: int
    text_tied: int


def ranks(image: np.ndarray, text: np.ndarray, owner: np.ndarray, block: int = BLOCK) -> Ranks:
    """Ranks both ways in one pass: `image` float32[n, d] and `text` float32[m, d], normalised; caption j belongs to image owner[j].

    Costs n * m * d multiplications and memory for `block` similarities, beside the embeddings.
    """
    right = np.einsum("ij,ij->i", text, image[owner]) if len(text) else np.zeros(0, np.float32)
    best = np.full(len(image), np.inf, np.float32)  # infinite: an image without captions has no query and counts nothing
    with_captions = np.unique(owner)
    best[with_captions] = -np.inf
    np.maximum.at(best, owner, right)
    rows, columns = _shape(len(image), len(text), block)
    counts = {"image": np.zeros(len(image), np.int64), "text": np.zeros(len(text), np.int64)}
    counts |= {f"{name}_above": np.zeros_like(zeros) for name, zeros in counts.items()}
    for i in range(0, len(image), rows):
        for j in range(0, len(text), columns):
            here, there = slice(i, i + rows), slice(j, j + columns)
            similar = image[here] @ text[there].T
            own = np.flatnonzero((owner[there] >= i) & (owner[there] < i + rows))
            similar[owner[there][own] - i, own] = -np.inf  # right answers are no rivals of one another
            _count(similar, best[here], right[there], counts, here, there)
    image_ranks = np.where(np.isfinite(best), counts["image"], -1)
    tied = [int((counts[name] > counts[f"{name}_above"]).sum()) for name in ("image", "text")]
    return Ranks(image_ranks, counts["text"], *tied)


def _count(similar: np.ndarray, best: np.ndarray, right: np.ndarray, counts: dict[str, np.ndarray], here: slice, there: slice) -> None:
    """Adds one block's rivals: those at least as similar as the right answer, and those more similar."""
    counts["image"][here] += np.count_nonzero(similar >= (best - TIE)[:, None], axis=1)
    counts["image_above"][here] += np.count_nonzero(similar > (best + TIE)[:, None], axis=1)
    counts["text"][there] += np.count_nonzero(similar >= (right - TIE)[None], axis=0)
    counts["text_above"][there] += np.count_nonzero(similar > (right + TIE)[None], axis=0)


def _shape(n: int, m: int, block: int) -> tuple[int, int]:
    """Rows and columns of a block: as square as it can be, since a narrow product of matrices is slow."""
    side = max(1, int(block**0.5))
    rows = max(1, min(n, side))
    return rows, max(1, min(m, block // rows))


def recalls(ranked: Ranks, ks: tuple[int, ...] = KS) -> dict[str, float | int]:
    """R@k both ways, as shares of the queries, with the median rank (from 1) and the number of queries that ties decide."""
    out: dict[str, float | int] = {}
    ways = {"image_to_text": (ranked.image[ranked.image >= 0], ranked.image_tied), "text_to_image": (ranked.text, ranked.text_tied)}
    for way, (found, tied) in ways.items():
        for k in ks:
            out[f"{way}_R@{k}"] = float((found < k).mean()) if len(found) else 0.0
        out[f"{way}_median_rank"] = float(np.median(found)) + 1 if len(found) else 0.0
        out[f"{way}_queries"], out[f"{way}_tied"] = len(found), tied
    return out
