"""Evaluation images planted in a corpus, found again: `python tests/acceptance/decontamination.py DATA [--images 300]`.

The evaluation set is photographs of Flickr8k val. The corpus holds each of them in another size and encoding (20 to 150 % of its sides,
JPEG of quality 40 to 95, WebP, PNG), a crop of it that keeps 60 to 95 % of its area, and as many photographs of the train split, which
are none of them. Prints recall and precision of perceptual hashes on copies and crops, and of the offline scorer's embeddings on crops,
for several limits. Exit code 1 where hashes at 8 bits find less than 0.99 of the copies.
"""

from __future__ import annotations

import argparse
import io
import random
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))
import pipeline
from stages.lib import offline_scorer

LEAST_RECALL, DISTANCES, SIMILARITIES = 0.99, (4, 6, 8, 10), (0.80, 0.85, 0.90, 0.95)
FORMATS = (("JPEG", 40), ("JPEG", 70), ("JPEG", 95), ("WEBP", 60), ("PNG", None))


def as_jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=95)
    return out.getvalue()


def copy(image: Image.Image, draw: random.Random) -> bytes:
    """The picture in another size and encoding."""
    share = draw.uniform(0.2, 1.5)
    kind, quality = draw.choice(FORMATS)
    out = io.BytesIO()
    smaller = image.resize((max(32, round(image.width * share)), max(32, round(image.height * share))), Image.Resampling.BICUBIC)
    smaller.save(out, kind, **({"quality": quality} if quality else {}))
    return out.getvalue()


def crop(image: Image.Image, draw: random.Random) -> bytes:
    """A part of the picture, 60 to 95 % of its area, anywhere."""
    side = draw.uniform(0.6, 0.95) ** 0.5
    width, height = round(image.width * side), round(image.height * side)
    left, top = draw.randint(0, image.width - width), draw.randint(0, image.height - height)
    out = io.BytesIO()
    image.crop((left, top, left + width, top + height)).save(out, "JPEG", quality=85)
    return out.getvalue()


def known(bodies: list[bytes], scorer: offline_scorer.Scorer) -> pa.Table:
    """What a run knows of these pictures: `phash` and `image_embedding`."""
    made = pipeline.use("images", size=224)(pa.table({"body": pa.array(bodies, pa.large_binary())}))
    if lost := [fate for fate in made["fate"].to_pylist() if fate != "kept"]:
        raise SystemExit(f"{len(lost)} pictures were not taken: {lost[0]}")
    vectors = scorer.encode_image([Image.open(io.BytesIO(image)).convert("RGB") for image in made["image"].to_pylist()])
    return pa.table({"phash": made["phash"], "image_embedding": pa.array(list(vectors.astype(np.float16)), pa.list_(pa.float16()))})


def found(table: pa.Table, folder: Path, distance: int, similarity: float | None) -> list[int]:
    """Of each picture the number of the evaluation image that it is said to be, -1 for none."""
    stage = pipeline.use("decontaminate", sets={"val": str(folder)}, max_distance=distance, min_similarity=similarity)
    return [-1 if match is None else int(match.removeprefix("val/")) for match in stage(table)["eval_match"].to_pylist()]


def rates(said: list[int], others: list[int]) -> tuple[float, float]:
    """(recall, precision): picture i is a copy of evaluation image i, and all others of none."""
    right = sum(one == at for at, one in enumerate(said))
    wrong = sum(one not in (at, -1) for at, one in enumerate(said)) + sum(one != -1 for one in others)
    return right / len(said), right / max(1, right + wrong)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=300)
    given = parser.parse_args()
    draw, scorer = random.Random(1), offline_scorer.load()
    flickr = given.data / "flickr8k"
    chosen = [Image.open(path).convert("RGB") for path in draw.sample(sorted((flickr / "val").glob("*.jpg")), given.images)]
    strangers = [path.read_bytes() for path in draw.sample(sorted((flickr / "train").glob("*.jpg")), given.images)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        originals = known([as_jpeg(image) for image in chosen], scorer)
        pq.write_table(originals.append_column("key", pa.array([str(at) for at in range(len(chosen))])), folder / "val.parquet")
        copies, crops = (known([make(image, draw) for image in chosen], scorer) for make in (copy, crop))
        others = known(strangers, scorer)
        worst = 1.0
        print(f"{given.images} evaluation images, {given.images} strangers\n")
        print(f"| {'pictures':8} | by                | recall | precision |\n|{' --- |' * 4}")
        for distance in DISTANCES:
            for what, table in (("copies", copies), ("crops", crops)):
                recall, precision = rates(found(table, folder, distance, None), found(others, folder, distance, None))
                print(f"| {what:8} | hash, {distance:2} bits     | {recall:.3f}  | {precision:.3f}     |")
                if what == "copies" and distance == 8:
                    worst = recall
        for similarity in SIMILARITIES:
            recall, precision = rates(found(crops, folder, 0, similarity), found(others, folder, 0, similarity))
            print(f"| {'crops':8} | embedding >= {similarity:.2f} | {recall:.3f}  | {precision:.3f}     |")
    print(f"recall of copies at 8 bits: {worst:.3f}, bound {LEAST_RECALL}")
    return int(worst < LEAST_RECALL)


if __name__ == "__main__":
    sys.exit(main())
