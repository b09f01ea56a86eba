"""Agreement with people: Kendall's tau-c between a scorer's similarities and human judgements of captions.

As CLIPScore does on Flickr8k (Hessel et al. 2021, section 4.1): every single rating is a data point, so a caption with three
experts' ratings counts three times with the same similarity; Flickr8k-CF gives one point a caption, the share of yes. Both publish
figures without the pairs whose caption was written for that very image (Anderson et al. 2016): `tau_c_others` is computed like that.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np

from pipeline.errors import UserError
from stages.evaluate.embedding import Embedded, Item

EXPERTS = ("expert1", "expert2", "expert3")
CROWD = "share_yes"


@dataclass(frozen=True)
class Judged:
    """One judged caption: `own` is true where it was written for this image; `ratings` higher is better, NaN left out."""

    image: str
    caption: str
    own: bool
    ratings: tuple[float, ...]


def read(text: str, where: str) -> list[Judged]:
    """Rows of a CSV with `image`, `caption` and either expert1..3 or share_yes; `caption_of` may name the caption's own image."""
    rows = csv.DictReader(io.StringIO(text))
    names = rows.fieldnames or []
    rated = [name for name in EXPERTS if name in names] or [name for name in (CROWD,) if name in names]
    if not rated or not {"image", "caption"} <= set(names):
        raise UserError(
            f"{where}: has the columns {', '.join(names) or 'none'}; judgements need image, caption and either {'..'.join(EXPERTS[::2])}"
            f" or {CROWD}"
        )
    out = []
    for row in rows:
        line = rows.line_num
        if None in (row["image"], row["caption"]):
            raise UserError(f"{where}: line {line}: has {sum(value is not None for value in row.values())} of {len(names)} columns")
        try:
            ratings = tuple(float(row[name]) for name in rated if row[name] not in ("", None))
        except ValueError as err:
            raise UserError(f"{where}: line {line}: a rating is no number: {err}") from err
        ratings = tuple(rating for rating in ratings if not math.isnan(rating))
        out.append(Judged(row["image"], " ".join(row["caption"].split()), row.get("caption_of") == row["image"], ratings))
    if not out:
        raise UserError(f"{where}: holds no judgements")
    return out


def tau_c(scores: np.ndarray, ratings: list[tuple[float, ...]]) -> float | None:
    """Kendall's tau-c (Stuart 1953) of scores float[n] with each of their ratings; None where either side is constant."""
    from scipy.stats import kendalltau

    points = np.repeat(scores, [len(rated) for rated in ratings])
    if len(points) < 2:
        return None
    found = float(kendalltau(points, [rating for rated in ratings for rating in rated], variant="c").statistic)
    return None if math.isnan(found) else found


def items(judged: list[Judged], files: dict[str, str], storage_options: dict[str, Any], prefix: str = "") -> Iterator[Item]:
    """The judged images among `files` (name -> address), each with its captions in their order; `prefix` goes before every caption."""
    for image, some in by_image(judged).items():
        if image in files:
            with fsspec.open(files[image], "rb", **storage_options) as handle:
                yield Item(image, image, [handle.read()], [prefix + judged[at].caption for at in some])


def by_image(judged: list[Judged]) -> dict[str, list[int]]:
    """Image -> places of its judgements."""
    out: dict[str, list[int]] = {}
    for at, one in enumerate(judged):
        out.setdefault(one.image, []).append(at)
    return out


def scored(judged: list[Judged], files: dict[str, str], embedded: Embedded) -> tuple[list[Judged], np.ndarray]:
    """Those whose image was there and could be decoded, with their similarities float32[n]; `embedded` of `items`."""
    lost = set(embedded.unusable)
    places = [at for image, some in by_image(judged).items() if image in files and image not in lost for at in some]
    return [judged[at] for at in places], np.einsum("ij,ij->i", embedded.text, embedded.image[embedded.owner])


def figures(judged: list[Judged], scores: np.ndarray) -> dict[str, Any]:
    """tau-c over all pairs and, as published, over those whose caption is another image's."""
    others = [at for at, one in enumerate(judged) if not one.own]
    out: dict[str, Any] = {"pairs": len(judged), "ratings": sum(len(one.ratings) for one in judged)}
    out["images"] = len({one.image for one in judged})
    out["tau_c"] = tau_c(scores, [one.ratings for one in judged])
    out["pairs_others"] = len(others)
    out["tau_c_others"] = tau_c(scores[others], [judged[at].ratings for at in others])
    return out
