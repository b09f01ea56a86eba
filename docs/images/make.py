"""Makes docs/images/laion_subset.jpg and the credits beside it from a finished run: `python docs/images/make.py runs/laion_subset`.

Twenty samples as they stand in the shards, with their captions. They are taken in turn from the sample's photographs whose credit
states a licence or the public domain; within a photograph by key. Left out are pairs whose caption belongs to another picture: some of
them pass the sample's judge.
"""

from __future__ import annotations

import io
import itertools
import json
import sys
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from textwrap import wrap
from typing import Any

import pyarrow.parquet as pq
import yaml
from PIL import Image, ImageDraw, ImageFont

FOLDER = Path(__file__).resolve().parent
VIEWS = FOLDER.parent.parent / "pipeline" / "sample" / "views.yaml"
FREE = ("CC0", "public domain", "CC BY 2.0", "no known copyright restrictions")
COLUMNS, COUNT, SIDE, GAP, LINES = 5, 20, 156, 8, 3
FONT, INK, PAPER = 10.5, (40, 40, 40), (255, 255, 255)
STEP, HEIGHT = SIDE + GAP, SIDE + GAP + LINES * 14


def samples(run: Path) -> Iterator[tuple[int, Image.Image, str]]:
    """Row, picture and caption of every sample of the run's current shards, in order of their keys."""
    manifest = json.loads((run / "shards" / "manifest.json").read_text(encoding="utf-8"))
    for shard in manifest["shards"]:
        with tarfile.open(run / "shards" / manifest["key"] / shard["name"]) as tar:
            files = {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]
        for name in sorted(name for name in files if name.endswith(".jpg")):
            meta = json.loads(files[name.removesuffix("jpg") + "json"])
            yield meta["row"], Image.open(io.BytesIO(files[name])), meta["caption"]


def chosen(run: Path, views: dict[str, Any]) -> list[tuple[str, Image.Image, str]]:
    """Photograph, picture and caption of COUNT samples."""
    listed = json.loads((run / "run.json").read_text(encoding="utf-8"))["files"][0]["url"].removeprefix("file://")
    truth = pq.read_table(Path(listed).with_name("truth.parquet"), columns=["row", "photo", "truth"]).to_pylist()
    photo_of = {line["row"]: line["photo"] for line in truth if line["truth"] != "mismatch"}
    found: dict[str, list[tuple[str, Image.Image, str]]] = defaultdict(list)
    for row, image, caption in samples(run):
        if (photo := photo_of.get(row)) and views[photo]["credit"].endswith(FREE):
            found[photo].append((photo, image, caption))
    rounds = itertools.zip_longest(*(found[photo] for photo in views if photo in found))
    return [sample for turn in rounds for sample in turn if sample][:COUNT]


def font_of_matplotlib() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which has more letters than Pillow's own font."""
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", FONT)


def sheet(pictures: list[tuple[str, Image.Image, str]]) -> Image.Image:
    """The pictures in a grid, each with its caption under it."""
    out = Image.new("RGB", (COLUMNS * STEP + GAP, -(-len(pictures) // COLUMNS) * HEIGHT + GAP), PAPER)
    draw, font = ImageDraw.Draw(out), font_of_matplotlib()
    for place, (_, image, caption) in enumerate(pictures):
        left, top = GAP + place % COLUMNS * STEP, GAP + place // COLUMNS * HEIGHT
        out.paste(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left, top))
        lines = wrap(caption, 24)
        shown = [*lines[: LINES - 1], f"{lines[LINES - 1]} …"] if len(lines) > LINES else lines
        draw.multiline_text((left, top + SIDE + 2), "\n".join(shown), INK, font, spacing=2)
    return out


def credits(pictures: list[tuple[str, Image.Image, str]], views: dict[str, Any]) -> str:
    lines = [f"| {photo} | {views[photo]['credit']} | `{views[photo]['file']}` |" for photo in dict.fromkeys(p for p, _, _ in pictures)]
    head = "# Pictures\n\n`laion_subset.jpg`: twenty samples of the shards that `configs/laion_subset.yaml` makes, with their captions.\n"
    how = "Made by `python docs/images/make.py runs/laion_subset`, as is this page. The photographs come from the wheels of\n"
    whose = "scikit-image, scikit-learn and matplotlib; they were cut, resized and encoded anew.\nCC BY 2.0: https://creativecommons.org/licenses/by/2.0/\n"
    return "\n".join([head + how + whose, "| photograph | by | file in its wheel |", "| --- | --- | --- |", *lines, ""])


def main() -> None:
    views = yaml.safe_load(VIEWS.read_text(encoding="utf-8"))
    pictures = chosen(Path(sys.argv[1]), views)
    sheet(pictures).save(FOLDER / "laion_subset.jpg", quality=72, optimize=True)
    (FOLDER / "README.md").write_text(credits(pictures, views), encoding="utf-8")


if __name__ == "__main__":
    main()
