"""Captions in, rows out; and the real captions, by language."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.frame import apply, framed
from stages.captions import Captions


@lru_cache(maxsize=100)
def stage_of(options: str) -> Captions:
    """An open stage; the tests share it, as the batches of a worker do."""
    stage = Captions(Captions.Config.model_validate_json(options))
    stage.open()
    return stage


def rows_of(captions: list[str | None], **options: Any) -> list[dict[str, Any]]:
    """The rows that a stage with these options makes of some captions, through the frame."""
    table = framed(pa.table({"source_caption": pa.array(captions, pa.string())}))
    rows: list[dict[str, Any]] = apply(stage_of(json.dumps(options, sort_keys=True)), table).to_pylist()
    return rows


def fates(captions: list[str | None], **options: Any) -> list[str]:
    """`kept`, or the reason, of each caption."""
    return [row["fate"].removeprefix("captions:") for row in rows_of(captions, **options)]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="session")
def by_language(data_dir: Path) -> dict[str, list[str]]:
    """Real captions (hi, ko and bn machine translated) by ISO 639-1 code."""
    found: dict[str, list[str]] = defaultdict(list)
    folder = data_dir / "captions"
    for language, name in (("ar", "flickr8k_ar"), ("zh", "flickr8k_zh_human"), ("hi", "flickr8k_hi_machine"), ("vi", "photos_vi"),
                           ("ko", "flickr30k_ko_machine"), ("bn", "flickr30k_bn_machine")):  # fmt: skip
        found[language] += [row["caption"] for row in read(folder / f"{name}.csv")]
    for row in read(folder / "multi30k_en_de_fr_cs.csv"):
        for language in ("en", "de", "fr", "cs"):
            found[language].append(row[language])
    for row in read(folder / "xflickrco_8_languages.csv"):
        found[row["lang"]].append(row["caption"])
    return dict(found)


@pytest.fixture(scope="session")
def alt_texts(data_dir: Path) -> list[str]:
    """What stands beside images on real pages: alt texts, titles of an image search, LAION's TEXT."""
    tables = data_dir / "captions" / "tables"
    laion = pq.read_table(tables / "laion_style_URL_TEXT.parquet")["TEXT"].drop_null().to_pylist()
    titles = [row["title"] for row in read(tables / "image_search_titles_vi.csv")]
    return [*laion, *titles, *(row["alt"] for row in read(data_dir / "web_photos" / "pairs.csv"))]
