"""Link list to shards, end to end, beside img2dataset and Daft: `python benchmarks/images.py DATA [--rows 4000] [--rounds 3]`.

Runs under the name `antialiased` are ours with that filter; shardmill has its default, img2dataset's INTER_AREA.

1,000 JPEGs of 85 to 105 KB, 300 x 400 to 1600 x 1200, made of DATA's web photographs, are served by nginx on loopback under as many
URLs as there are rows, and become 224-pixel centre crops, JPEG of quality 95, in WebDataset tars (Daft: squashed, in Parquet). In each
round every program does the same rows; CPU seconds are those of its whole process tree, the server's left out. What a program needs to
start is measured by a run of a few rows, cut into as many parts and shards so that as many processes start, and taken off; it is printed
beside. A rate is of the pictures that were made. Then, for pictures of these very runs: PSNR against a full decode with an antialiased
resize; and what fetching, decoding, resizing and encoding cost by themselves, the rest being overhead.
Peers live in venvs of their own (`make bench-setup`).
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import random
import statistics
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image, ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import results
from benchmarks.measure import Cost, cost, medians, nginx, pictures_in

ROOT = Path(__file__).resolve().parents[1]
PEERS = Path(os.environ.get("SHARDMILL_PEERS", ROOT / ".bench"))
FILES, FEW, JUDGED = 1000, 64, 300
PART, SHARD = 2000, 1000  # rows of a part, samples of a shard
SMALLEST, LARGEST, BYTES = (300, 400), (1600, 1200), (85_000, 105_000)
TARGET, WITHIN_DB, OVERHEAD = 4.0, 0.5, 0.15


def pictures(data: Path, folder: Path) -> None:
    """Writes FILES JPEGs as the docstring above says; the same for the same DATA."""
    if len(list(folder.glob("*.jpg"))) == FILES:
        return
    folder.mkdir(parents=True, exist_ok=True)
    sources = sorted((data / "web_photos" / "images").glob("*.jpg"))
    draw = random.Random(1)
    for at in range(FILES):
        image = ImageOps.exif_transpose(Image.open(sources[at % len(sources)]).convert("RGB"))
        share = draw.random()
        size = tuple(round(low + share * (high - low)) for low, high in zip(SMALLEST, LARGEST, strict=True))
        (folder / f"{at}.jpg").write_bytes(_of_bytes(ImageOps.fit(image, size, Image.Resampling.LANCZOS)))


def _of_bytes(image: Image.Image) -> bytes:
    """A JPEG of that picture whose quality brings it nearest to BYTES."""
    low, high = 20, 98
    body = b""
    while low <= high:
        quality, out = (low + high) // 2, io.BytesIO()
        image.save(out, "JPEG", quality=quality)
        body = out.getvalue()
        if BYTES[0] <= len(body) <= BYTES[1]:
            break
        low, high = (quality + 1, high) if len(body) < BYTES[0] else (low, quality - 1)
    return body


def write_list(path: Path, port: int, rows: int) -> Path:
    urls = [f"http://127.0.0.1:{port}/{at % FILES}.jpg?{at}" for at in range(rows)]
    pq.write_table(pa.table({"url": urls, "caption": [f"photograph number {at} of a series" for at in range(rows)]}), path)
    return path


def shardmill(listed: Path, out: Path, share: float, downscale: str = "area") -> Cost:
    raw = {
        "input": {"path": str(listed)},
        "run": {"name": "bench", "root": str(out), "part_rows": round(PART * share)},
        "stages": {
            "ingest": {},
            "captions": {},
            "download": {"allow_networks": ["127.0.0.1/32"], "per_host": {"concurrency": 64, "per_second": None}},
            "images": {"size": 224, "mode": "center_crop", "downscale": downscale, "format": "jpg", "quality": 95},
        },
        "shards": {"samples": round(SHARD * share)},
    }
    config = out.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(raw, sort_keys=False))
    return cost([sys.executable, "-m", "pipeline.cli", "run", str(config)], env={**os.environ, "PYTHONPATH": str(ROOT)})


def img2dataset(listed: Path, out: Path, share: float) -> Cost:
    options = {
        "url_list": listed, "output_folder": out, "input_format": "parquet", "url_col": "url", "caption_col": "caption",
        "output_format": "webdataset", "image_size": 224, "resize_mode": "center_crop", "encode_quality": 95,
        "processes_count": 2, "thread_count": 64, "number_sample_per_shard": round(SHARD * share),
    }  # fmt: skip
    words = [f"--{name}={value}" for name, value in options.items()]
    return cost([str(PEERS / "img2dataset" / "bin" / "img2dataset"), *words], env={**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"})


DAFT = """
import sys, daft
from daft import col
frame = daft.read_parquet(sys.argv[1])
image = col("url").download(max_connections=64).decode_image(mode="RGB").resize(224, 224).encode_image("JPEG")
frame.with_column("image", image).write_parquet(sys.argv[2])
"""


def daft(listed: Path, out: Path, _share: float) -> Cost:
    return cost([str(PEERS / "daft" / "bin" / "python"), "-c", DAFT, str(listed), str(out)])


RUNNERS: dict[str, Callable[[Path, Path, float], Cost]] = {
    "shardmill": shardmill,
    "antialiased": partial(shardmill, downscale="antialiased"),
    "img2dataset": img2dataset,
    "daft": daft,
}
OURS = {"shardmill": "", "antialiased": ", downscale: antialiased"}


def made(out: Path) -> int:
    """Pictures that a program wrote."""
    tables = [] if any(out.rglob("*.tar")) else [pq.read_table(path, columns=["image"]) for path in out.rglob("*.parquet")]
    return sum(len(table) - table["image"].null_count for table in tables) or pictures_in(out)


def stored(out: Path) -> Iterator[tuple[int, Image.Image]]:
    """(number of the file, picture) of the samples in the tars below a folder."""
    for path in sorted(out.rglob("*.tar")):
        with tarfile.open(path) as tar:
            files = {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]
        for name in sorted(name for name in files if name.endswith(".jpg")):
            url = json.loads(files[name[:-3] + "json"])["url"]
            yield int(url.rpartition("/")[2].partition(".")[0]), Image.open(io.BytesIO(files[name]))


def psnr(folder: Path, out: Path) -> tuple[float, int]:
    """Mean PSNR in dB of pictures 0 to JUDGED, of each program the same ones, against full decode, Pillow's antialiased bicubic and
    img2dataset's sizes and crop (another crop would be half a pixel beside, and all that is compared here drown in that); how many differ
    in size."""
    from stages.lib import imageresize

    found, odd, seen = [], 0, set[int]()
    for at, image in stored(out):
        if at in seen or at >= JUDGED:
            continue
        seen.add(at)
        whole = Image.open(folder / f"{at}.jpg").convert("RGB")
        plan = imageresize.plan(*whole.size, 224, "center_crop", only_if_bigger=False)
        if image.size != plan.stored:
            odd += 1
            continue
        wanted = imageresize.fit(np.asarray(whole.resize(plan.scaled, Image.Resampling.BICUBIC)), plan.stored)
        error = np.mean((np.asarray(image.convert("RGB"), np.float64) - wanted.astype(np.float64)) ** 2)
        found.append(10 * np.log10(255**2 / error))
    return float(np.mean(found)), odd


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?", default=os.environ.get("SHARDMILL_TEST_DATA"))
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--only", action="append", choices=RUNNERS)
    given = parser.parse_args()
    results.begin(parser, given)
    if given.data is None:
        print("images: no DATA, nothing measured (name the folder, or set SHARDMILL_TEST_DATA)")
        return 0
    with tempfile.TemporaryDirectory() as name:
        work = (given.work or Path(name)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        pictures(Path(given.data), work / "pictures")
        with nginx(work / "pictures", work) as port:
            names = [one for one in RUNNERS if one in (given.only or RUNNERS)]
            return compared(Path(name), work / "pictures", port, given.rows, given.rounds, names)


def bare(folder: Path, seconds: float = 10.0) -> dict[str, float]:
    """CPU seconds a picture of decode, resize and encode alone, one thread, bodies in memory: what no program of these steps can pass."""
    from stages.lib import imagedecode, imageencode, imageresize

    bodies, done = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))[:200]], 0
    took = dict.fromkeys(("decode", "resize", "encode"), 0.0)
    while sum(took.values()) < seconds:
        began = time.process_time()
        head = imagedecode.header("jpeg", bodies[done % len(bodies)])
        plan = imageresize.plan(head.width, head.height, 224, "center_crop", only_if_bigger=False)
        decoded = imagedecode.decode(head, plan.scaled)
        there = time.process_time()
        pixels = imageresize.fit(imageresize.scale(decoded.pixels, plan.scaled, "area", decoded.extent), plan.stored)
        fitted = time.process_time()
        imageencode.encode(pixels, "jpg", 95)
        for step, spent in zip(took, (there - began, fitted - there, time.process_time() - fitted), strict=True):
            took[step] += spent
        done += 1
    return {step: spent / done for step, spent in took.items()}


def fetching(port: int, rows: int = 2000) -> float:
    """CPU seconds a picture of fetching alone: aiohttp, 64 at once, bodies dropped."""
    import aiohttp

    async def some(session: aiohttp.ClientSession, numbers: Iterator[int]) -> None:
        for at in numbers:
            async with session.get(f"http://127.0.0.1:{port}/{at % FILES}.jpg?{at}") as answer:
                await answer.read()

    async def whole() -> float:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=64)) as session:
            began, numbers = time.process_time(), iter(range(rows))
            await asyncio.gather(*(some(session, numbers) for _ in range(64)))
            return time.process_time() - began

    return asyncio.run(whole()) / rows


def compared(work: Path, folder: Path, port: int, rows: int, rounds: int, names: list[str]) -> int:
    few, many = write_list(work / "few.parquet", port, FEW), write_list(work / "many.parquet", port, rows)
    rates: dict[str, list[float]] = {name: [] for name in names}
    costs: dict[str, list[Cost]] = {name: [] for name in names}
    lacking = Counter[str]()
    for at in range(rounds):
        for name in names:
            start = RUNNERS[name](few, work / f"{name}-few-{at}", FEW / rows)
            whole = RUNNERS[name](many, out := work / f"{name}-{at}", 1)
            cpu, count = whole.cpu_s - start.cpu_s, made(out)
            lacking[name] += rows - count
            costs[name].append(whole)
            rates[name].append((count - FEW) / cpu)
            print(
                f"round {at} {name:12} {rates[name][-1]:6.1f} images/CPU-s ({1000 * cpu / (count - FEW):.2f} CPU-ms each); start "
                f"{start.cpu_s:.1f} CPU-s {start.wall_s:.1f} s; whole {whole.cpu_s:.1f} CPU-s {whole.wall_s:.1f} s, {whole.peak_mb:.0f} MB",
                flush=True,
            )
    quality = {name: psnr(folder, work / f"{name}-0") for name in names if name != "daft"}  # which squashes, and encodes as it likes
    for name, (mean, odd) in quality.items():
        print(f"{name}: mean PSNR {mean:.2f} dB, {odd} of other sizes")
    for name in names:
        missing = f", {lacking[name]} PICTURES NOT MADE" if lacking[name] else ""
        print(f"{name}, medians: {medians(costs[name])}{missing}")
    steps = {"fetch": fetching(port), **bare(folder)}
    each = 1000 * sum(steps.values())
    print(f"alone, CPU-ms each: {', '.join(f'{step} {1000 * took:.2f}' for step, took in steps.items())}; in all {each:.2f}")
    if "shardmill" in names:
        beside = 1 - sum(steps.values()) * statistics.median(rates["shardmill"])
        print(f"shardmill: {beside:.0%} of its CPU is none of these (target {OVERHEAD:.0%})")
        results.add("images: share of the CPU that is not fetch, decode, resize, encode", beside, None, OVERHEAD, beside <= OVERHEAD)
    for ours in [name for name in OURS if name in names]:
        verdict(ours, {name: statistics.median(found) for name, found in rates.items()}, quality, lacking[ours])
    return 0


def verdict(ours: str, rates: dict[str, float], quality: dict[str, tuple[float, int]], lacking: int) -> None:
    """Says and notes how one of OURS stands to the peers that were run."""
    as_good = quality[ours][1] == lacking == 0
    if "img2dataset" in rates:
        ours_db, peer_db = quality[ours][0], quality["img2dataset"][0]
        as_good = as_good and ours_db >= peer_db - WITHIN_DB
        results.add(f"images: mean PSNR in dB, peer img2dataset{OURS[ours]}", ours_db, peer_db, round(peer_db - WITHIN_DB, 3), as_good)
    for name in [other for other in rates if other not in OURS]:
        ratio = rates[ours] / rates[name]
        told = f"images: list to shards, images per CPU-second, peer {name}{OURS[ours]}"
        results.add(told, rates[ours], rates[name], TARGET, as_good and ratio >= TARGET, ratio)
        print(f"{ours} / {name}: {ratio:.2f} (target {TARGET}){'' if as_good else ', at a loss of quality'}")


if __name__ == "__main__":
    sys.exit(main())
