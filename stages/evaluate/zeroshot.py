"""Zero-shot classification by open_clip's own classifier builder and prompt templates (Radford et al. 2021, section 3.1.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pipeline.errors import UserError
from stages.evaluate.scorers import Scorer
from stages.lib import torchvision_shim

TIE = 1e-6  # as in retrieval: a wrong class as similar as the right one ranks before it
Template = Callable[[str], str]


def templates(named: str, text: str | None = None) -> list[Template]:
    """`openai` (80 templates), `simple` (7), `plain` (the name alone), or the lines of a file, `{}` or `{c}` for the class.

    `text` is the content of the file `named`. Raises UserError for a line without a place for the class.
    """
    if text is not None:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        lacking = [line for line in lines if "{}" not in line and "{c}" not in line]
        if lacking or not lines:
            raise UserError(f"{named}: {f'the template {lacking[0]!r} has no {{}}' if lacking else 'holds no templates'}")
        return [_template(line) for line in lines]
    torchvision_shim.ensure()
    import open_clip

    known: dict[str, Sequence[Template]] = {
        "openai": open_clip.OPENAI_IMAGENET_TEMPLATES,
        "simple": open_clip.SIMPLE_IMAGENET_TEMPLATES,
        "plain": [str],
    }
    if named not in known:
        raise UserError(f"templates: {named!r} is neither a file nor one of {', '.join(known)}")
    return list(known[named])


def _template(line: str) -> Template:
    return lambda name: line.replace("{c}", name).replace("{}", name)


def classifier(scorer: Scorer, classes: Sequence[str], prompts: Sequence[Template]) -> np.ndarray:
    """A normalised vector a class, float32[classes, d]: the mean of its prompts' normalised embeddings, normalised again."""
    torchvision_shim.ensure()
    import open_clip

    weights = open_clip.build_zero_shot_classifier(_Texts(scorer), _Lines, list(classes), list(prompts))
    return np.ascontiguousarray(weights.numpy().T)


class _Lines(list[str]):
    """What the builder takes for tokens: the texts themselves, which the scorer tokenizes."""

    def to(self, _device: Any) -> _Lines:
        return self


class _Texts:
    """What the builder takes for a model: any scorer."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def encode_text(self, texts: _Lines, normalize: bool) -> Any:
        import torch

        embedded = torch.from_numpy(self.scorer.encode_text(texts))
        return torch.nn.functional.normalize(embedded, dim=-1) if normalize else embedded


def figures(image: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """top-1, top-5 and the mean over classes of top-1: `image` float32[n, d], `labels` int64[n], `weights` float32[classes, d].

    With five classes or fewer top-5 is always 1 and says nothing; it is left out.
    """
    rank = _ranks(image, labels, weights)
    seen, counts = np.unique(labels, return_counts=True)
    right = np.bincount(labels[rank == 0], minlength=len(weights))[seen]
    out: dict[str, Any] = {"images": len(labels), "classes": len(weights), "classes_seen": len(seen)}
    out["top1"] = float((rank == 0).mean())
    if len(weights) > 5:
        out["top5"] = float((rank < 5).mean())
    out["mean_per_class"] = float((right / counts).mean())
    return out


def _ranks(image: np.ndarray, labels: np.ndarray, weights: np.ndarray, rows: int = 4096) -> np.ndarray:
    """Rank from 0 of each image's own class: int64[n]."""
    out = np.empty(len(image), np.int64)
    for at in range(0, len(image), rows):
        similar = image[at : at + rows] @ weights.T
        own = labels[at : at + rows, None]
        rivals = similar >= np.take_along_axis(similar, own, axis=1) - TIE
        np.put_along_axis(rivals, own, False, axis=1)
        out[at : at + rows] = rivals.sum(axis=1)
    return out
