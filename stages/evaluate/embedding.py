"""Evaluation data to embeddings, batch by batch: images are read, embedded and forgotten; captions and vectors stay.

100,000 images and 500,000 captions at 512 dimensions are 1.2 GB.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from stages.evaluate.captioning import Captioner
from stages.evaluate.scorers import THREADS, Scorer


@dataclass(frozen=True)
class Item:
    """One sample of evaluation data. `image`: its encoded frames, one for a photograph, several for a clip; `identity`: what makes it
    the same image as another sample's."""

    key: str
    identity: str
    image: Sequence[bytes]
    captions: Sequence[str]
    label: str | None = None


@dataclass
class Embedded:
    """n images and m captions. `image` float32[n, d] and `text` float32[m, d], normalised; caption j belongs to image owner[j] (int64)."""

    image: np.ndarray
    text: np.ndarray
    owner: np.ndarray
    captions: list[str]
    labels: list[str | None]
    written: list[str]  # one caption an image by the model itself, where it was asked to write any
    unusable: list[str]  # keys of the samples whose image cannot be decoded


@dataclass
class _Gathered:
    vectors: list[np.ndarray] = field(default_factory=list)
    owner: list[int] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)  # identity -> image


def embed(scorer: Scorer, items: Iterable[Item], batch: int, captioner: Captioner | None = None) -> Embedded:
    """Every image once, by its identity, with all its captions; an image that cannot be decoded is left out with them, and named."""
    all_ = _Gathered()
    with ThreadPoolExecutor(THREADS, thread_name_prefix="decode") as pool:
        for group in _batched(items, batch):
            _add_images(all_, scorer, captioner, _fresh(group, all_.seen), pool, batch)
            for item in group:
                at = all_.seen.get(item.identity)
                if at is None:
                    all_.unusable.append(item.key)
                    continue
                all_.owner += [at] * len(item.captions)
                all_.captions += item.captions
    text = [_normalised(scorer.encode_text(all_.captions[at : at + batch])) for at in range(0, len(all_.captions), batch)]
    owner = np.array(all_.owner, np.int64)
    return Embedded(_joined(all_.vectors), _joined(text), owner, all_.captions, all_.labels, all_.written, all_.unusable)


def _add_images(
    all_: _Gathered, scorer: Scorer, captioner: Captioner | None, fresh: list[Item], pool: ThreadPoolExecutor, batch: int
) -> None:
    good = [(item, frames) for item, frames in zip(fresh, pool.map(_decoded, fresh), strict=True) if frames]
    if not good:
        return
    for item, _ in good:
        all_.seen[item.identity] = len(all_.labels)
        all_.labels.append(item.label)
    all_.vectors.append(_of_images(scorer, [frames for _, frames in good], batch))
    if captioner:
        all_.written += captioner([frames[0] for _, frames in good])


def _fresh(group: list[Item], seen: dict[str, int]) -> list[Item]:
    """The first sample of each image that was not embedded yet."""
    out: dict[str, Item] = {}
    for item in group:
        if item.identity not in seen:
            out.setdefault(item.identity, item)
    return list(out.values())


def _batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    group: list[Item] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _decoded(item: Item) -> list[Image.Image]:
    """RGB frames; [] where one cannot be decoded."""
    out = []
    for body in item.image:
        try:
            with Image.open(io.BytesIO(body)) as opened:
                out.append(opened.convert("RGB"))
        except Exception:  # noqa: BLE001 - strangers' bytes: decoders raise errors of every kind (RuntimeError for a damaged AVIF)
            return []
    return out


def _of_images(scorer: Scorer, images: list[list[Image.Image]], batch: int) -> np.ndarray:
    """Normalised vectors, float32[n, d]; a clip's is the mean of its frames', as in training. `batch`: pictures or frames at once."""
    frames = [frame for some in images for frame in some]
    flat = np.concatenate([scorer.encode_image(frames[at : at + batch]) for at in range(0, len(frames), batch)])
    starts = np.cumsum([0, *(len(some) for some in images)])[:-1]
    lengths = np.array([len(some) for some in images], np.float32)
    return _normalised(np.add.reduceat(flat, starts, axis=0) / lengths[:, None])


def _normalised(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-12), np.float32)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)
