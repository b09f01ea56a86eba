"""Does curation pay? `python benchmarks/curation.py DATA [--seeds 3] [--work FOLDER]`: DataComp's question in small.

One corpus of Flickr8k's and web photographs with planted noise (captions of other pictures, duplicates by a power law, junk) is crawled
and scored once; then selections of it (unfiltered, deduped, score-filtered, both, and the rows that are known to be clean) each train a
model at the same number of samples seen, and the models are evaluated on Flickr8k val. The judge never saw the corpus: it is trained anew
on other photographs. After the first selection the server is gone, so nothing can be fetched again. Repeated with the same --work, what is
done is not done again, unless the scorer or the recipe changed.
Writes docs/experiments/curation.json and the table of docs/experiments/curation.md.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pipeline.keys import digest
from stages.lib import offline_scorer
from tests.acceptance.offline_scorer import figures, run_in, scorer
from tests.acceptance.photos import file_server
from tests.support.corpus import shardmill

PAGE = Path(__file__).resolve().parents[1] / "docs" / "experiments" / "curation.md"
JUDGE, HELD, CLEAN = 1500, 250, 2200  # photographs: to train the judge, to set its threshold, in the corpus with their own caption
COPIED, MOST_COPIES, FALL = 150, 400, 0.9  # pairs that are copied; the n-th of them MOST_COPIES / n ** FALL times
JUNK = 400
KEEP_TRUE = 0.95  # share of the held photographs' true pairs that the threshold lets pass
BATCH, SEEN = 512, 250_000  # samples a step and in all
SCORE, CLEAN_ONLY = "similarity >= {least:.4f}", "carried->>'$.truth' = 'clean'"
ARMS = {  # dedup, the rows that stay
    "unfiltered": (False, None),
    "deduped": (True, None),
    "score-filtered": (False, SCORE),
    "both": (True, SCORE),
    "known clean": (False, CLEAN_ONLY),
}
BOILERPLATE = ("IMG_{0}.JPG", "click to enlarge", "image {0} of 12", "buy now, free shipping", "untitled design ({0})", "photo {0}")


@dataclass(frozen=True)
class Pair:
    """A row of the corpus: path on the server, caption, what it really is (`clean`, `mismatched`, `copy`, `junk`)."""

    path: str
    caption: str
    truth: str


def flickr(data: Path, seed: int = 0) -> list[tuple[str, list[str]]]:
    """Flickr8k's train photographs in random order: (path on the server, captions)."""
    with (data / "flickr8k" / "images.csv").open(encoding="utf-8") as file:
        captions: dict[str, list[str]] = {row["image"]: [] for row in csv.DictReader(file) if row["split"] == "train"}
    with (data / "flickr8k" / "captions.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["image"] in captions:
                captions[row["image"]].append(row["caption"])
    listed = [(f"data/flickr8k/train/{image}", found) for image, found in sorted(captions.items())]
    random.Random(seed).shuffle(listed)
    return listed


def corpus(data: Path, served: Path, photographs: list[tuple[str, list[str]]], seed: int = 0) -> list[Pair]:
    """The noisy list in random order; files of copies and junk are written below `served`. The same for the same seed."""
    draw = random.Random(seed)
    pairs = [Pair(path, captions[0], "clean") for path, captions in photographs[:CLEAN]]
    with (data / "web_photos" / "pairs.csv").open(encoding="utf-8") as file:
        pairs += [Pair(f"data/web_photos/{row['file']}", row["alt"], "clean") for row in csv.DictReader(file)]
    others = photographs[CLEAN:]
    pairs += [Pair(path, others[at - 1][1][0], "mismatched") for at, (path, _) in enumerate(others)]
    for folder in ("copies", "junk"):
        (served / folder).mkdir(parents=True, exist_ok=True)
    pairs += [
        copy(pair, served, rank, number, draw)
        for rank, pair in enumerate(draw.sample(pairs, COPIED), start=1)
        for number in range(round(MOST_COPIES / rank**FALL))
    ]
    pairs += [junk(served, number, draw) for number in range(JUNK)]
    draw.shuffle(pairs)
    return pairs


def copy(pair: Pair, served: Path, rank: int, number: int, draw: random.Random) -> Pair:
    """The pair once more: its picture smaller and encoded anew, its caption as reposts change it."""
    path = f"copies/{rank:03d}-{number:03d}.jpg"
    share, quality = draw.uniform(0.6, 1.0), draw.randint(60, 90)
    if not (served / path).exists():
        with Image.open(served / pair.path) as image:
            smaller = image.convert("RGB").resize((round(image.width * share), round(image.height * share)))
        smaller.save(served / path, "JPEG", quality=quality)
    words = pair.caption.split()
    at = draw.randrange(len(words))
    changed = (
        pair.caption,
        pair.caption.lower(),
        f"{pair.caption} !",
        " ".join([*words[:at], *words[at + 1 :]]),
        pair.caption.rstrip(" ."),
    )
    return Pair(path, draw.choice(changed) or pair.caption, f"copy of {pair.truth}")


def junk(served: Path, number: int, draw: random.Random) -> Pair:
    """A card, a colour or noise, with a caption that says nothing."""
    path = f"junk/{number:03d}.jpg"
    kind = draw.randrange(3)
    colour = tuple(draw.randrange(256) for _ in range(3))
    image = Image.new("RGB", (240, 200), colour)
    if kind == 1:
        ImageDraw.Draw(image).text((40, 90), "image not available", fill=tuple(255 - value for value in colour))
    if kind == 2:
        image = Image.fromarray(np.random.default_rng(number).integers(0, 256, (200, 240, 3), np.uint8))
    out = io.BytesIO()
    image.save(out, "JPEG")
    (served / path).write_bytes(out.getvalue())
    return Pair(path, draw.choice(BOILERPLATE).format(draw.randrange(1, 9999)), "junk")


def write_list(path: Path, pairs: list[Pair]) -> None:
    urls = [f"http://host{at % 40}.test/{quote(pair.path)}" for at, pair in enumerate(pairs)]
    truths = [pair.truth for pair in pairs]
    pq.write_table(pa.table({"url": urls, "caption": [pair.caption for pair in pairs], "truth": truths}), path)


def make(work: Path, name: str, listed: Path, port: int, dedup: bool = False, judge: str = "", keep: str | None = None) -> Path:
    """A run of shardmill; the folder of its shards. Selections of one list share downloads, pictures and scores."""
    stages: dict[str, Any] = {"ingest": {}, "captions": {}}
    if dedup:
        stages["dedup"] = {"on": "caption", "threshold": 0.7}
    served = {"resolve": {"*": f"127.0.0.1:{port}"}, "allow_networks": ["127.0.0.1/32"], "retries": 0}
    stages["download"] = {**served, "per_host": {"concurrency": 8, "per_second": None}}
    stages["images"] = {"size": 224, "mode": "center_crop", "quality": 95}
    if judge:
        stages["scores"] = {"model": "offline-scorer", "pretrained": judge}
    if dedup:
        stages["image_dedup"] = {"max_distance": 4}
    stages["selection"] = [{"name": "rule", "keep": keep}] if keep else []
    raw = {
        "input": {"path": str(listed)},
        "run": {"name": name, "root": str(work / "runs"), "part_rows": 2000, "seed": 7},
        "stages": stages,
        "shards": {"samples": 2000},
    }
    (work / f"{name}.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    shardmill("run", str(work / f"{name}.yaml"), timeout=7200)
    run = work / "runs" / name
    return run / "shards" / json.loads((run / "shards" / "manifest.json").read_text())["key"]


def train(work: Path, name: str, shards: Path, seed: int, seen: int) -> Path:
    """The projections of a model (LiT over the offline scorer's frozen towers) that saw about `seen` of these samples."""
    samples = sum(json.loads(path.read_text())["successes"] for path in shards.glob("*_stats.json"))
    config = {
        "model": {"name": "offline-scorer", "drop": 0.5},
        "data": [{"shards": str(shards)}],
        "frozen_features": 1,
        "augment": {"scale": None},
        "batch": BATCH,
        "epochs": max(1, round(seen / samples)),
        "optimizer": {"lr": 1e-3, "weight_decay": 0.1},
        "schedule": {"kind": "cosine", "warmup": 0.05},
        "precision": "bf16",
        "seed": seed,
        "log_every": 50,
        "tensorboard": False,
    }
    out = work / "trained" / f"{name}-{seed}-{digest([config, offline_scorer.VERSION])}"
    weights = out / "model" / "open_clip_model.safetensors"
    if (out / "done").exists():
        return weights
    shared = work / "features"
    shared.mkdir(exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "features").exists():
        (out / "features").symlink_to(shared, target_is_directory=True)
    (out / "train.yaml").write_text(yaml.safe_dump({"train": {**config, "out": str(out)}}, sort_keys=False))
    run_in(work, "train", str(out / "train.yaml"))
    (out / "done").touch()
    return weights


def threshold(data: Path, judge: Path, held: list[tuple[str, list[str]]]) -> float:
    """The similarity that KEEP_TRUE of the true pairs of photographs reach that neither judge nor corpus holds."""
    model = scorer(judge)
    images = model.encode_image([Image.open(data / path.removeprefix("data/")).convert("RGB") for path, _ in held])
    texts = model.encode_text([captions[0] for _, captions in held])
    return float(np.quantile(np.einsum("ij,ij->i", images, texts), 1 - KEEP_TRUE))


def survivors(work: Path, listed: Path) -> dict[str, int]:
    """How many rows of each truth the latest selection kept."""
    run = work / "runs" / "corpus"
    key = json.loads((run / "run.json").read_text())["keys"]["shards"]
    ledger = pq.read_table(sorted((run / "ledger" / key).glob("part-*.parquet")), columns=["row", "fate"]).sort_by("row")
    truths = pq.read_table(listed)["truth"].to_pylist()
    kinds = (
        "copy" if truth.startswith("copy") else truth
        for truth, fate in zip(truths, ledger["fate"].to_pylist(), strict=True)
        if fate == "kept"
    )
    return dict(Counter(kinds))


def experiment(data: Path, work: Path, seeds: int, seen: int) -> dict[str, Any]:
    served = work / "served"
    served.mkdir(parents=True, exist_ok=True)
    if not (served / "data").exists():
        (served / "data").symlink_to(data, target_is_directory=True)
    photographs = flickr(data)
    to_judge, held, rest = photographs[:JUDGE], photographs[JUDGE : JUDGE + HELD], photographs[JUDGE + HELD :]
    write_list(work / "judge.parquet", [Pair(path, caption, "clean") for path, captions in to_judge for caption in captions])
    write_list(work / "corpus.parquet", corpus(data, served, rest))
    with file_server(served) as port:
        judge = train(work, "judge", make(work, "judge", work / "judge.parquet", port), 1, 400_000)
        least = threshold(data, judge, held)
        print(f"the judge: AUC {figures(data, judge)['auc']:.4f} on val, threshold {least:.3f}", flush=True)
        make(work, "corpus", work / "corpus.parquet", port, judge=str(judge))
    arms: dict[str, Any] = {}
    for name, (dedup, keep) in ARMS.items():
        began = time.monotonic()
        shards = make(work, "corpus", work / "corpus.parquet", port, dedup, str(judge), keep and keep.format(least=least))
        selected = time.monotonic() - began
        arms[name] = {"kept": survivors(work, work / "corpus.parquet"), "seconds_to_select": round(selected, 1)}
        models = [train(work, name, shards, seed, seen) for seed in range(1, seeds + 1)]
        found = [figures(data, weights) for weights in models]
        arms[name] |= {key: [round(one[key], 4) for one in found] for key in ("R@1", "R@5", "R@10", "text->image R@10", "auc")}
        print(name, json.dumps(arms[name]), flush=True)
    planted = Counter("copy" if pair.startswith("copy") else pair for pair in pq.read_table(work / "corpus.parquet")["truth"].to_pylist())
    return {"planted": dict(planted), "threshold": round(least, 4), "samples_seen": seen, "seeds": seeds, "arms": arms}


def table(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    kinds = list(found["planted"])
    lines = ["| arm | kept: " + " / ".join(kinds) + " | R@1 | R@5 | R@10 | text to image R@10 | AUC |", "| --- " * 7 + "|"]
    lines.append("| (planted) | " + " / ".join(str(found["planted"][kind]) for kind in kinds) + " | | | | | |")
    for name, arm in found["arms"].items():
        cells = [" / ".join(str(arm["kept"].get(kind, 0)) for kind in kinds)]
        cells += [
            f"{np.mean(arm[key]):.3f} ± {np.std(arm[key], ddof=1) if len(arm[key]) > 1 else 0:.3f}"
            for key in ("R@1", "R@5", "R@10", "text->image R@10", "auc")
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seen", type=int, default=SEEN, help="samples that each model sees")
    parser.add_argument("--work", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = (given.work or Path(name)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        found = experiment(given.data.resolve(), work, given.seeds, given.seen)
    print(table(found), f"{time.monotonic() - began:.0f} s in all", sep="\n")
    PAGE.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    if PAGE.exists():
        head, begin, rest = PAGE.read_text(encoding="utf-8").partition("<!-- table -->\n")
        PAGE.write_text(head + begin + table(found) + "<!-- end -->" + rest.partition("<!-- end -->")[2], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
