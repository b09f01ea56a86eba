"""Builds the sample's web into a folder: the list as a crawl would give it, what is true of each row, and every answer.

The same library versions give the same bytes. Files: laion.parquet (LAION-400M's columns, with WIDTH and HEIGHT swapped as they
are there), truth.parquet (TRUTH), web.parquet (pages.py), facts.json. Served by server.py.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.sample import dirt, pages, photos, sound
from pipeline.sample.builder import Builder, Pair
from pipeline.sample.classes import CLASSES

LIST = pa.schema(
    [
        ("SAMPLE_ID", pa.int64()), ("URL", pa.string()), ("TEXT", pa.string()), ("HEIGHT", pa.float64()), ("WIDTH", pa.float64()),
        ("LICENSE", pa.string()), ("NSFW", pa.string()),
    ]
)  # fmt: skip
TRUTH = pa.schema(
    [
        ("row", pa.int64()), ("url", pa.string()), ("truth", pa.string()), ("picture", pa.int32()), ("photo", pa.string()),
        ("group", pa.string()), ("caption", pa.string()), ("expected", pa.string()),
    ]
)  # fmt: skip
PACKAGES = ("pillow", "pyarrow", "numpy", "scikit-image", "scikit-learn", "matplotlib")


def ensure(cache: Path, name: str = "laion") -> Path:
    """The folder of the built web of that name under `cache`, built if it is not there; its name is a key of all that it is made from.

    Raises UserError for a name that no sample has, and where a package is missing.
    """
    make, packages = _makers(name)
    folder = cache / f"{name}-{key(packages)}"
    if not (folder / "facts.json").is_file():
        cache.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".building-", dir=cache))
        try:
            make(made)
            made.replace(folder)
        except OSError:
            if not (folder / "facts.json").is_file():  # otherwise another process was faster, with the same bytes
                raise
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return folder


def _makers(name: str) -> tuple[Callable[[Path], None], tuple[str, ...]]:
    if name == "laion":
        return build, PACKAGES
    if name != "howto100m":
        raise UserError(f"input.path: no sample {name!r}; there are sample://laion and sample://howto100m")
    if importlib.util.find_spec("av") is None:
        raise UserError("the embedded sample of videos needs PyAV, which is not installed: pip install 'shardmill[sample,video]'")
    from pipeline.sample import howto

    return howto.build, howto.PACKAGES


def key(packages: Sequence[str] = PACKAGES) -> str:
    """16 hex digits over this package's sources, the photographs and the versions of the libraries that encode."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.*")):
        if path.suffix in (".py", ".yaml"):
            digest.update(path.read_bytes())
    for path in photos.files():
        digest.update(path.read_bytes())
    for package in packages:
        digest.update(f"{package}=={metadata.version(package)}".encode())
    return digest.hexdigest()[:16]


def build(folder: Path) -> None:
    """Writes the files; about two seconds of CPU."""
    b = Builder()
    sound.add_sound(b)
    sound.add_plain(b)
    sound.add_shared_captions(b)
    dirt.add_dirt(b)
    sound.add_same_pairs(b)
    pairs = _shuffled(b)
    pq.write_table(_list(pairs), folder / "laion.parquet")
    pq.write_table(_truth(pairs), folder / "truth.parquet")
    pages.write(folder / "web.parquet", b.pages)
    (folder / "facts.json").write_text(json.dumps(_facts(pairs), indent=1) + "\n", encoding="utf-8")


def _shuffled(b: Builder) -> list[Pair]:
    """The rows in the list's order. A repetition comes after what it repeats."""
    pairs = b.random.sample(b.pairs, len(b.pairs))
    first = {(pair.url, pair.text): i for i, pair in enumerate(pairs) if pair.truth != "same_pair"}
    for i, pair in enumerate(pairs):
        j = first.get((pair.url, pair.text), i)
        if pair.truth == "same_pair" and i < j:
            pairs[i], pairs[j] = pairs[j], pair
    return pairs


def _list(pairs: list[Pair]) -> pa.Table:
    """LAION-400M's columns. Some ids and sizes are missing, as they are there after the passes through pandas."""
    width = [float(pair.size[0]) if pair.size and i % 23 else None for i, pair in enumerate(pairs)]
    height = [float(pair.size[1]) if pair.size and i % 23 else None for i, pair in enumerate(pairs)]
    columns: list[list[Any]] = [
        [None if i % 29 == 0 else 7_700_000_000_000 + 104_729 * i for i in range(len(pairs))],
        [pair.url for pair in pairs],
        [pair.text for pair in pairs],
        width,  # swapped: LAION's HEIGHT holds the width
        height,
        ["?" for _ in pairs],
        ["UNLIKELY" if i % 31 else None for i in range(len(pairs))],
    ]
    return pa.table([pa.array(column, kind) for column, kind in zip(columns, LIST.types, strict=True)], schema=LIST)


def _truth(pairs: list[Pair]) -> pa.Table:
    columns: list[list[Any]] = [
        list(range(len(pairs))),
        [pair.url for pair in pairs],
        [pair.truth for pair in pairs],
        [pair.picture for pair in pairs],
        [pair.view.photo if pair.view and pair.picture is not None else None for pair in pairs],
        [pair.group for pair in pairs],
        [pair.caption for pair in pairs],
        [CLASSES[pair.truth].fate for pair in pairs],
    ]
    return pa.table([pa.array(column, kind) for column, kind in zip(columns, TRUTH.types, strict=True)], schema=TRUTH)


def _facts(pairs: list[Pair]) -> dict[str, Any]:
    """What a report says about the sample, so that nobody takes it for a real corpus."""
    return {
        "photographs": len(photos.photographs()),
        "pictures": len({pair.picture for pair in pairs if pair.view and pair.picture is not None and pair.picture < dirt.PLACEHOLDER}),
        "rows": len(pairs),
        "truth_classes": len({pair.truth for pair in pairs}),
        "text": f"demonstration: {len(photos.photographs())} distinct photographs",
    }
