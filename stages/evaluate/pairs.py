"""How well a score parts true pairs from mismatched ones: AUC, histogram, and what a threshold costs.

A mismatched pair is a caption with the image of another one: each caption gets one other image, chosen evenly by seed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

BINS = 100  # of the histogram, over cosines from -1 to 1
KEPT = (0.99, 0.95, 0.9)  # shares of true pairs whose thresholds are told


def mismatched(owner: np.ndarray, images: int, seed: int) -> np.ndarray:
    """Another image for each caption: int64[m], never owner[j]; needs two images at least."""
    if images < 2:
        raise ValueError("mismatched pairs need two images at least")
    return np.asarray((owner + np.random.default_rng(seed).integers(1, images, len(owner))) % images)


def auc(true: np.ndarray, false: np.ndarray) -> float:
    """The probability that a true pair scores above a false one; ties count half (Mann and Whitney 1947; Hanley and McNeil 1982).

    By ranks: (R - n(n+1)/2) / (n m), R the sum of the true pairs' ranks among all, tied ones at their mean rank.
    """
    from scipy.stats import rankdata

    n, m = len(true), len(false)
    among_all = rankdata(np.concatenate([true, false]))
    return float((among_all[:n].sum() - n * (n + 1) / 2) / (n * m))


def figures(image: np.ndarray, text: np.ndarray, owner: np.ndarray, seed: int) -> dict[str, Any]:
    """AUC, histograms and thresholds of normalised embeddings; shapes as in `retrieval.ranks`."""
    true = np.einsum("ij,ij->i", text, image[owner])
    false = np.einsum("ij,ij->i", text, image[mismatched(owner, len(image), seed)])
    edges = np.linspace(-1, 1, BINS + 1)
    return {
        "pairs": len(true),
        "auc": auc(true, false),
        "true": _described(true, edges),
        "shuffled": _described(false, edges),
        "thresholds": [_threshold(true, false, kept) for kept in KEPT],
        "histogram_edges": [round(float(edge), 6) for edge in edges],
    }


def _described(scores: np.ndarray, edges: np.ndarray) -> dict[str, Any]:
    quantiles = {f"p{round(100 * q):02d}": float(np.quantile(scores, q)) for q in (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)}
    counted = np.histogram(np.clip(scores, -1, 1), edges)[0]  # rounding may leave a cosine of 1 just above it
    return {"mean": float(scores.mean()), "std": float(scores.std()), **quantiles, "histogram": counted.tolist()}


def _threshold(true: np.ndarray, false: np.ndarray, kept: float) -> dict[str, float]:
    """The greatest threshold that keeps at least this share of the true pairs, and what it does to both."""
    at = np.sort(true)[int(np.floor((1 - kept) * len(true) + 1e-9))]
    return {"similarity": float(at), "true_kept": float((true >= at).mean()), "shuffled_dropped": float((false < at).mean())}
