"""What the machine can do and how near each step comes to it: `python benchmarks/roofline.py [DATA] [--pictures 200]`.

One thread, medians of rounds. First the machine's limits: bytes copied, hashed by SHA-256 and written to new files (page cache) a
CPU-second, multiplications and additions of float32 (matrices) and of uint32 (numpy, within the cache). Then each step as a run does it, on
real pictures and captions, beside the dearest thing that it cannot do without, done by itself in the library that does it: the step's rate
as a share of that is what is left to gain without another codec, model or hash. GB/s: what the step reads from memory and writes to it at
least, which beside the copy's says whether memory can be what limits it. A whole run is more than its steps: benchmarks/images.py,
dedup.py, scale.py.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import simplejpeg

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.captions import PERMUTATIONS, RULES, SHINGLE, captions, signed
from benchmarks.images import FILES, fetching, pictures
from benchmarks.measure import nginx
from benchmarks.shards import table
from pipeline import catalog
from pipeline.frame import framed
from stages.dedup.captions import Dedup
from stages.download.stage import Download
from stages.images import Images
from stages.lib import imagedecode, imageresize, text_language
from stages.lib.shingles import code_points, shingle_hashes
from stages.shards import Options, write_shard

ROUNDS = 3
ENTRY = 33  # bytes of an entry of the exchange
SIZE, FETCHES, CAPTIONS, SAMPLES = 224, 2000, 20_000, 3000


@dataclass(frozen=True)
class Step:
    """`work` and `bound` do the same `units` of work; `touched`: bytes that `work` reads and writes at least."""

    name: str
    unit: str
    units: int
    work: Callable[[], object]
    bound: Callable[[], object]
    bound_is: str
    touched: float


def cpu_s(work: Callable[[], object]) -> float:
    """CPU seconds of this process, the median of ROUNDS after one unmeasured."""
    work()
    found = []
    for _ in range(ROUNDS):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return statistics.median(found)


def machine(folder: Path) -> dict[str, float]:
    """Limits, in GB or thousand million operations a CPU-second."""
    block, other = np.ones(64 << 20, np.uint8), np.empty(64 << 20, np.uint8)
    small = np.ones(8192, np.uint32)
    square = np.ones((1024, 1024), np.float32)

    def integers() -> None:
        for _ in range(5000):
            np.multiply(small, np.uint32(3), out=small)
            np.add(small, np.uint32(5), out=small)

    def write() -> None:
        (folder / "written").unlink(missing_ok=True)
        (folder / "written").write_bytes(block)

    return {
        "copied, GB (read and written)": 2 * block.nbytes / 1e9 / cpu_s(lambda: np.copyto(other, block)),
        "SHA-256, GB": block.nbytes / 1e9 / cpu_s(lambda: hashlib.sha256(block).digest()),
        "written to a new file, GB": block.nbytes / 1e9 / cpu_s(write),
        "float32 operations of a matrix product, G": 2 * 1024**3 / 1e9 / cpu_s(lambda: square @ square),
        "uint32 operations of numpy, G": 10_000 * small.size / 1e9 / cpu_s(integers),
    }


def of_pictures(bodies: list[bytes]) -> list[Step]:
    heads = [imagedecode.header("jpeg", body) for body in bodies]
    plans = [imageresize.plan(head.width, head.height, SIZE, "center_crop", only_if_bigger=False) for head in heads]
    decoded = [imagedecode.decode(head, plan.scaled) for head, plan in zip(heads, plans, strict=True)]
    held = [one.pixels.copy() for one in decoded]
    size = sum(map(len, bodies))
    stage: Any = Images(Images.Config(size=SIZE))
    stage.open()
    rows = framed(pa.table({"body": pa.array(bodies, pa.large_binary())}))

    def decode() -> None:
        for body, pixels in zip(bodies, held, strict=True):
            simplejpeg.decode_jpeg(body, "RGB", min_height=pixels.shape[0], min_width=pixels.shape[1])

    def codecs() -> None:
        for body, pixels, plan in zip(bodies, held, plans, strict=True):
            simplejpeg.decode_jpeg(body, "RGB", min_height=pixels.shape[0], min_width=pixels.shape[1])
            scaled = cv2.resize(pixels, plan.scaled, interpolation=cv2.INTER_AREA)
            cv2.imencode(".jpg", imageresize.fit(scaled, plan.stored), [cv2.IMWRITE_JPEG_QUALITY, 95])

    def reader() -> None:
        for body, plan in zip(bodies, plans, strict=True):
            imagedecode.decode(imagedecode.header("jpeg", body), plan.scaled)

    pixels = sum(one.nbytes for one in held)
    made = 3 * SIZE * SIZE * len(bodies)
    return [
        Step("header, EXIF, decode", "pictures", len(bodies), reader, decode, "libjpeg-turbo", size + pixels),
        Step(
            "images, whole stage",
            "pictures",
            len(bodies),
            lambda: stage(rows),
            codecs,
            "decode, INTER_AREA, encode",
            size + 2 * pixels + 2 * made,
        ),
    ]


def of_fetches(port: int, rows: int, size: float) -> Step:
    """`size`: bytes of a body, on the mean."""
    limits = {"allow_networks": ["127.0.0.1/32"], "per_host": {"concurrency": 64, "per_second": None}}
    urls = [f"http://127.0.0.1:{port}/{at % FILES}.jpg?{at}" for at in range(rows)]
    listed = framed(pa.table({"url": urls, "expected_hash": pa.nulls(rows, pa.string()), "stored_at": pa.nulls(rows, pa.string())}))

    def fetch() -> None:
        stage: Any = Download(Download.Config.model_validate(limits))
        stage(listed)
        stage.close()

    return Step("download", "bodies", rows, fetch, lambda: fetching(port, rows), "aiohttp", 2 * size * rows)


def of_captions(texts: list[str]) -> list[Step]:
    stage: Any = catalog.entry("captions", RULES).stage
    stage.open()
    model, rows = text_language.load(), framed(pa.table({"source_caption": texts}))
    array = pa.array(texts)
    hashes, few = shingle_hashes(code_points(array), SHINGLE), np.ones(8192, np.uint32)
    names, urls = (pa.array([form.format(at) for at in range(len(texts))]) for form in ("{:032x}", "http://a.test/{}"))
    pairs, dedup = pa.table({"row": np.arange(len(texts)), "uid": names, "url": urls, "caption": texts}), Dedup(Dedup.Config())

    def predict() -> None:
        for one in texts:
            model.predict(f"{one}\n", 1, 0.0, "strict")

    def arithmetic() -> None:
        for _ in range(PERMUTATIONS * len(hashes.values) // len(few)):
            np.multiply(few, np.uint32(3), out=few)
            np.add(few, np.uint32(5), out=few)
            np.minimum.reduceat(few, (0, 4000))

    size = array.nbytes
    touched = size + 4.0 * (len(hashes.values) + PERMUTATIONS * len(texts))  # the rest stays in the cache
    return [
        Step("captions, whole stage", "captions", len(texts), lambda: stage(rows), predict, "fastText's prediction", 4 * size),
        Step("signature", "captions", len(texts), lambda: signed(array), arithmetic, "its arithmetic in numpy", touched),
        Step(
            "dedup, keys of a part",
            "captions",
            len(texts),
            lambda: dedup.keyed(pairs),
            lambda: signed(array),
            "the signature",
            touched + ENTRY * dedup.entries_per_row * len(texts),
        ),
    ]


def of_shards(folder: Path) -> Step:
    rows = table(SAMPLES)
    bodies = rows["image"].to_pylist()
    size = sum(map(len, bodies))

    def write() -> None:
        for path in folder.glob("0*"):
            path.unlink()
        write_shard(folder, 0, rows, Options(samples=SAMPLES), 1)

    def bare() -> None:
        (folder / "bare").unlink(missing_ok=True)
        digest = hashlib.sha256()
        with (folder / "bare").open("wb", buffering=0) as handle:
            for body in bodies:
                digest.update(body)
                handle.write(body)

    return Step("shards", "samples", SAMPLES, write, bare, "SHA-256 and writing", 3 * size)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?", default=os.environ.get("SHARDMILL_TEST_DATA"))
    parser.add_argument("--pictures", type=int, default=200)
    given = parser.parse_args()
    if given.data is None:
        print("roofline: no DATA, nothing measured (name the folder, or set SHARDMILL_TEST_DATA)")
        return 0
    pa.set_cpu_count(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # nginx's worker is another user
        (folder / "out").mkdir()
        limits = machine(folder / "out")
        for what, rate in limits.items():
            print(f"{what} a CPU-second: {rate:.1f}")
        copied = next(iter(limits.values()))
        pictures(Path(given.data), folder / "pictures")
        bodies = [(folder / "pictures" / f"{at}.jpg").read_bytes() for at in range(given.pictures)]
        texts = captions(Path(given.data))["English"][:CAPTIONS]
        print(f"\n| step | a CPU-second | {'the bound':26} | a CPU-second | share | GB/s | of the copy |\n|{' --- |' * 7}")
        with nginx(folder / "pictures", folder / "out") as port:
            steps = [of_fetches(port, FETCHES, sum(map(len, bodies)) / len(bodies)), *of_pictures(bodies), *of_captions(texts)]
            for step in [*steps, of_shards(folder / "out")]:
                took, least = cpu_s(step.work), cpu_s(step.bound)
                speed = step.touched / 1e9 / took
                print(
                    f"| {step.name} | {step.units / took:,.0f} {step.unit} | {step.bound_is} | {step.units / least:,.0f} "
                    f"| {least / took:.2f} | {speed:.2f} | {speed / copied:.0%} |",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
