"""The offline scorer from nothing: `python tests/acceptance/offline_scorer.py DATA [--seeds 3] [--work FOLDER] [--write] [--no-sites]`.

DATA's Flickr8k (train) and web photographs are served on loopback, crawled, resized and sharded by shardmill as the embedded sample is;
configs/train/offline_scorer.yaml trains on the shards by the ordinary training stage. Then, on pictures that were not trained on:
retrieval and AUC on Flickr8k val, AUC on the web photographs of sites left out (three more trainings a seed, each without a third of
them), tau-c with the experts' judgements, each with its spread over the seeds. Then what thresholds keep and drop, and the one to
recommend. The first seed's projections are compared with the committed ones, or written in their place (--write). Repeated with the
same --work, what is done is not done again. Exit code 1 where a bound is missed.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image, ImageOps

sys.path.insert(0, str(Path(__file__).parents[2]))
from pipeline.evaluate import Options, evaluate
from stages.evaluate.pairs import auc, mismatched
from stages.lib import offline_scorer
from tests.acceptance.photos import file_server
from tests.support.corpus import fates, shardmill

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "train" / "offline_scorer.yaml"
BOUNDS = {"R@10": 0.72, "auc": 0.98, "web auc": 0.90, "tau-c": 0.53}
# Sites left out together; about a third of the photographs each, each third with food, nature or people, and things.
SITES = (
    ("based-cooking", "18f-gsa-gov", "twentytwentyfive", "rladies-github-io"),
    ("nextdoornature", "carpentries-org", "public-domain-recipes"),
    ("",),  # all others
)
STAY = 0.95  # share of true pairs that the recommended threshold keeps, on val and on the web photographs of sites left out
TOLERANCE = 0.02  # of a similarity, between the committed projections and those trained anew


def third(file: str) -> int:
    """Which part of the web photographs a file belongs to: a site is what stands before its number."""
    site = file.removeprefix("images/").rpartition("_")[0]
    return next(at for at, sites in enumerate(SITES) if site in sites or sites == ("",))


def lists(data: Path) -> dict[str, list[tuple[str, str]]]:
    """Of each run (path on the server, caption): Flickr8k's train photographs (five captions each), and the web photographs in thirds."""
    with (data / "flickr8k" / "images.csv").open(encoding="utf-8") as file:
        train = {row["image"] for row in csv.DictReader(file) if row["split"] == "train"}
    with (data / "flickr8k" / "captions.csv").open(encoding="utf-8") as file:
        rows = [(f"/flickr8k/train/{row['image']}", row["caption"]) for row in csv.DictReader(file) if row["image"] in train]
    found = {"flickr8k": rows, **{f"web{at}": [] for at in range(len(SITES))}}
    for row in web(data):
        found[f"web{third(row['file'])}"].append((f"/web_photos/{row['file']}", row["alt"]))
    return found


def web(data: Path) -> list[dict[str, str]]:
    with (data / "web_photos" / "pairs.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def shards(data: Path, work: Path) -> None:
    """Runs shardmill for each list; images as the embedded sample has them."""
    with file_server(data) as port:
        for name, rows in lists(data).items():
            if (work / "runs" / name / "shards" / "manifest.json").is_file():
                continue
            urls = [f"http://photos{at % 20}.test{quote(path)}" for at, path in enumerate(sorted({path for path, _ in rows}))]
            of = dict(zip(sorted({path for path, _ in rows}), urls, strict=True))
            pq.write_table(
                pa.table({"url": [of[path] for path, _ in rows], "caption": [text for _, text in rows]}), work / f"{name}.parquet"
            )
            raw = {
                "input": {"path": str(work / f"{name}.parquet")},
                "run": {"name": name, "root": str(work / "runs"), "part_rows": 2000, "seed": 7},
                "stages": {
                    "ingest": {},
                    "captions": {},
                    "download": {
                        "resolve": {"*": f"127.0.0.1:{port}"},
                        "allow_networks": ["127.0.0.1/32"],
                        "per_host": {"concurrency": 8, "per_second": None},
                    },
                    "images": {"size": 224, "mode": "center_crop", "format": "jpg", "quality": 95},
                },
                "shards": {"samples": 2000},
            }
            (work / f"{name}.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
            began = time.monotonic()
            shardmill("run", str(work / f"{name}.yaml"), timeout=7200)
            print(f"{name}: {len(rows)} rows in {time.monotonic() - began:.0f} s: {fates(work / 'runs' / name)}", flush=True)


def trained(work: Path, seed: int, left_out: int | None = None) -> Path:
    """The projections of a training, which is made where it is not there yet."""
    out = work / "trained" / f"seed{seed}-{'all' if left_out is None else f'without{left_out}'}"
    weights = out / "model" / "open_clip_model.safetensors"
    settings = yaml.safe_load(CONFIG.read_text())["train"]
    if settings.get("ema"):
        weights = out / "model_ema" / "open_clip_model.safetensors"
    if (out / "done").is_file():
        return weights
    shared = work / "trained" / "features"  # one corpus's features serve every training that reads it
    (out / "features").parent.mkdir(parents=True, exist_ok=True)
    shared.mkdir(exist_ok=True)
    if not (out / "features").exists():
        (out / "features").symlink_to(shared, target_is_directory=True)
    sources = settings["data"]
    sources[1]["shards"] = [path for path in sources[1]["shards"] if left_out is None or not path.endswith(f"web{left_out}")]
    began = time.monotonic()
    options = [f"train.seed={seed}", f"train.out={out}", f"train.data={json.dumps(sources)}"]
    arguments = [word for option in options for word in ("--set", option)]
    run_in(work, "train", str(CONFIG), *arguments)
    (out / "done").touch()
    print(f"trained {out.name} in {time.monotonic() - began:.0f} s", flush=True)
    return weights


def run_in(work: Path, *arguments: str) -> None:
    out = shardmill(*arguments, cwd=work, timeout=7200, check=False)
    if out.returncode:
        raise SystemExit(out.stdout + out.stderr)


class Remembering(offline_scorer.Scorer):
    """A scorer that runs the frozen towers once for each picture and caption, whatever the projections."""

    seen: dict[bytes | str, np.ndarray] = {}

    def embed_image(self, images: np.ndarray) -> np.ndarray:
        import torch

        names = [image.tobytes() for image in images]
        new = [at for at, name in enumerate(names) if name not in self.seen]
        if new:
            self.seen.update(zip([names[at] for at in new], self.net.trunk_image(torch.from_numpy(images[new])).numpy(), strict=True))
        with torch.inference_mode():
            return np.asarray(self.net.encode_image(torch.from_numpy(np.stack([self.seen[name] for name in names]))).numpy())

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        import torch

        new = list(dict.fromkeys(text for text in texts if text not in self.seen))
        if new:
            self.seen.update(zip(new, self.net.trunk_text(self.net.tokenize(new)).numpy(), strict=True))
        with torch.inference_mode():
            return np.asarray(self.net.encode_text(torch.from_numpy(np.stack([self.seen[text] for text in texts]))).numpy())


def scorer(weights: Path) -> Remembering:
    loaded = offline_scorer.load(weights=weights)
    return Remembering(loaded.net)


def figures(data: Path, weights: Path) -> dict[str, float]:
    """On Flickr8k val and the judged photographs, none of them trained on."""
    flickr = data / "flickr8k"
    judged = (str(flickr / "judgements_expert.csv"), str(flickr / "judged"))
    options = Options(data=(str(flickr / "captions.csv"),), images=str(flickr / "val"), judgements=judged)
    found = evaluate(scorer(weights), options)
    recalls = {f"R@{k}": found["retrieval"][f"image_to_text_R@{k}"] for k in (1, 5, 10)}
    back = {"text->image R@10": found["retrieval"]["text_to_image_R@10"]}
    ratings = found["judgements"]
    agreed = {"tau-c": ratings["tau_c_others"], "tau-c with own": ratings["tau_c"]}  # the first as published for CLIPScore
    val = of_val(data, weights)
    return {**recalls, **back, "auc": found["pairs"]["auc"], "auc all": auc(val.true, val.all), **agreed}


@dataclass(frozen=True)
class Scored:
    """Similarities, float32[n]. `strict`: shuffled pairs among the pictures that are judged; `all`: all that there are."""

    true: np.ndarray
    strict: np.ndarray
    all: np.ndarray


def of_sites(data: Path, weights: Path, part: int) -> Scored:
    """Of the photographs of one part, by projections that never saw their sites; of `all`'s captions they saw those of the other parts."""
    rows, judge = web(data), scorer(weights)
    here = np.asarray([third(row["file"]) == part for row in rows])
    files = [data / "web_photos" / row["file"] for row, wanted in zip(rows, here, strict=True) if wanted]
    similar = judge.encode_image([ImageOps.exif_transpose(Image.open(file)) for file in files])
    similar = similar @ judge.encode_text([row["alt"] for row in rows]).T
    own = np.eye(len(rows), dtype=bool)[here]
    return Scored(similar[own], similar[:, here][~own[:, here]], similar[~own])


def of_val(data: Path, weights: Path) -> Scored:
    """Of Flickr8k val; each caption with its photograph, with another one (`strict`: evaluate's pairs) and with every other one."""
    judge, files = scorer(weights), sorted((data / "flickr8k" / "val").glob("*.jpg"))
    at = {path.name: place for place, path in enumerate(files)}
    with (data / "flickr8k" / "captions.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["image"] in at]
    owner = np.asarray([at[row["image"]] for row in rows])
    image = judge.encode_image([Image.open(path) for path in files])
    text = judge.encode_text([row["caption"] for row in rows])
    similar = text @ image.T
    places = np.arange(len(rows))
    return Scored(
        similar[places, owner], similar[places, mismatched(owner, len(files), 0)], similar[owner[:, None] != np.arange(len(files))]
    )


def web_figures(parts: list[Scored]) -> dict[str, float]:
    strict = [auc(part.true, part.strict) for part in parts]
    found = {"web auc": float(np.average(strict, weights=[len(part.true) for part in parts]))}
    found |= {f"web auc {at}": one for at, one in enumerate(strict)}
    return found | {"web auc all": auc(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("true", "all")))}


def thresholds(val: Scored, parts: list[Scored]) -> None:
    """Prints what thresholds keep of true and drop of shuffled pairs, the recommended one among them."""
    true, false = (np.concatenate([getattr(part, name) for part in parts]) for name in ("true", "strict"))
    rule = min(float(np.quantile(one, 1 - STAY)) for one in (val.true, true))
    chosen = math.floor(100 * rule) / 100
    print("threshold  val: kept, dropped  web: kept, dropped")
    for at in sorted({chosen, *(round(chosen + step, 2) for step in (-0.04, -0.02, 0.02, 0.04, 0.08))}):
        shares = [(val.true >= at).mean(), (val.strict < at).mean(), (true >= at).mean(), (false < at).mean()]
        print(f"{at:9.2f}  " + "  ".join(f"{share:.3f}" for share in shares) + ("  recommended" if at == chosen else ""))


def compared(weights: Path, data: Path) -> float:
    """The largest difference of a similarity between these projections and the committed ones, on val's photographs and captions."""
    with (data / "flickr8k" / "captions.csv").open(encoding="utf-8") as file:
        captions = {row["image"]: row["caption"] for row in csv.DictReader(file)}
    files = sorted((data / "flickr8k" / "val").glob("*.jpg"))[:200]
    made = []
    for path in (weights, offline_scorer.WEIGHTS):
        judge = scorer(path)
        made.append(judge.encode_image([Image.open(one) for one in files]) @ judge.encode_text([captions[one.name] for one in files]).T)
    return float(np.abs(made[0] - made[1]).max())


def write(weights: Path) -> None:
    """The committed file: float16, no scale."""
    import torch
    from safetensors.torch import load_file, save_file

    kept = {name: value.to(torch.float16).contiguous() for name, value in load_file(str(weights)).items()}
    save_file(kept, str(offline_scorer.WEIGHTS), metadata={"licence": "Apache-2.0", "made_by": "tests/acceptance/offline_scorer.py"})
    print(f"wrote {offline_scorer.WEIGHTS} ({offline_scorer.WEIGHTS.stat().st_size:,} bytes)")


@contextmanager
def folder(given: Path | None) -> Iterator[Path]:
    if given:
        given.mkdir(parents=True, exist_ok=True)
        yield given.resolve()
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--no-sites", action="store_true")
    given = parser.parse_args()
    data, began = given.data.resolve(), time.monotonic()
    with folder(given.work) as work:
        shards(data, work)
        first = yaml.safe_load(CONFIG.read_text())["train"]["seed"]
        seeds = range(first, first + given.seeds)
        rows = [figures(data, trained(work, seed)) for seed in seeds]
        if not given.no_sites:
            for figure, seed in zip(rows, seeds, strict=True):
                figure.update(web_figures([of_sites(data, trained(work, seed, part), part) for part in range(len(SITES))]))
        faults = shown(rows)
        if not given.no_sites:
            parts = [of_sites(data, trained(work, first, part), part) for part in range(len(SITES))]
            thresholds(of_val(data, trained(work, first)), parts)
        if given.write:
            write(trained(work, first))
        apart = compared(trained(work, first), data)
        faults += [f"similarities differ by {apart:.3f} from the committed projections'"] if apart > TOLERANCE else []
        print(f"committed projections: largest difference of a similarity {apart:.4f}; {time.monotonic() - began:.0f} s in all")
    print("\n".join(f"FAULT {fault}" for fault in faults) or "all bounds are met")
    return int(bool(faults))


def shown(rows: list[dict[str, float]]) -> list[str]:
    """Prints mean and spread over the seeds; returns what misses its bound (by its mean)."""
    faults = []
    for name in rows[0]:
        values = np.asarray([row[name] for row in rows])
        bound = BOUNDS.get(name)
        print(
            f"{name:18} {values.mean():.4f} +- {values.std(ddof=1) if len(values) > 1 else 0:.4f}" + (f"  (goal {bound})" if bound else "")
        )
        if bound and values.mean() < bound:
            faults.append(f"{name} is {values.mean():.4f}, not {bound}")
    return faults


if __name__ == "__main__":
    sys.exit(main())
