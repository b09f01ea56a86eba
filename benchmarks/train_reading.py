"""The training loader against a bare webdataset loop over the same shards: CPU, wall time, and requests on object storage.

Both give batches of uint8 pixels (224 x 224) and open_clip's tokens out of a torch DataLoader with the same number of workers:
  stored     pictures are stored at 224 pixels and taken as they are
  augmented  random resized crop of 0.9 to 1.0 of the area, back to 224 pixels
The peer is open_clip's own pipeline: webdataset's tar reader, `decode("pilrgb")`, torchvision's transform, its tokenizer, no shuffling.
`webdataset, our decoder` is the same loop with this project's decode and resize, so that only the reading differs.
CPU is that of the loader's processes alone, from the first batch asked for to the workers' end, without imports.

    python benchmarks/train_reading.py [--samples 3000] [--rounds 5] [--workers 2] [--shards FOLDER_OF_TARS]
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import results

BATCH, SIZE, PER_SHARD = 128, 224, 500
WAYS = ("ours", "open_clip's pipeline", "webdataset, our decoder")
TARGET = 0.9


def make_shards(folder: Path, samples: int) -> None:
    """Crops of scikit-image's photographs, 224 pixels, JPEG 95, about 20 KB each; 1.2 KB of JSON and a caption, as our shards have them."""
    import skimage.data
    from PIL import Image

    photos = [Image.fromarray(getattr(skimage.data, name)()) for name in ("astronaut", "coffee", "chelsea", "rocket")]
    rng = np.random.default_rng(0)
    for shard, begin in enumerate(range(0, samples, PER_SHARD)):
        with tarfile.open(folder / f"{shard:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
            for at in range(begin, min(samples, begin + PER_SHARD)):
                photo = photos[at % len(photos)]
                side = int(rng.integers(150, min(photo.size)))
                left, top = (int(rng.integers(0, room - side + 1)) for room in photo.size)
                out = io.BytesIO()
                photo.crop((left, top, left + side, top + side)).resize((SIZE, SIZE)).save(out, "JPEG", quality=95)
                texts = {"jpg": out.getvalue(), "json": json.dumps({f"key{n}": "x" * 40 for n in range(22)}).encode()}
                for suffix, body in {**texts, "txt": f"a photograph of something, number {at}, seen in a park".encode()}.items():
                    info = tarfile.TarInfo(f"{at:09d}.{suffix}")
                    info.size = len(body)
                    archive.addfile(info, io.BytesIO(body))


def ours(folder: str, workers: int, augmented: bool, tokenizer: Any, index: str) -> Iterator[tuple[Any, Any]]:
    from stages.train.augment import Augment
    from stages.train.corpus import open_corpora
    from stages.train.loader import Loader
    from stages.train.order import Order
    from stages.train.prepare import Prepare

    corpora = open_corpora([folder], index_root=index)
    prepare = Prepare(tokenizer, SIZE, Augment() if augmented else None)
    with Loader(corpora, Order(corpora.sizes, BATCH), 0, 1, workers, prepare, epochs=1) as loader:
        for batch in loader.batches(0):
            yield batch.image, batch.text


def bare(folder: str, workers: int, augmented: bool, tokenizer: Any, own_decoder: bool) -> Iterator[tuple[Any, Any]]:
    import torch
    import webdataset as wds
    from torchvision.transforms import Compose, InterpolationMode, PILToTensor, RandomResizedCrop

    steps = [RandomResizedCrop(SIZE, scale=(0.9, 1.0), interpolation=InterpolationMode.BICUBIC)] if augmented else []
    decode: list[Any] = [] if own_decoder else [wds.decode("pilrgb")]
    image: Callable[[Any], Any] = _decoder(augmented) if own_decoder else Compose([*steps, PILToTensor()])
    dataset = wds.DataPipeline(
        wds.SimpleShardList(sorted(map(str, Path(folder).glob("*.tar")))),
        wds.split_by_worker,
        wds.tarfile_to_samples(),
        *decode,
        wds.rename(image="jpg;png;jpeg;webp", text="txt"),
        wds.map_dict(image=image, text=lambda text: tokenizer(text if isinstance(text, str) else text.decode())[0]),
        wds.to_tuple("image", "text"),
        wds.batched(BATCH, partial=True, collation_fn=lambda rows: tuple(torch.stack(column) for column in zip(*rows, strict=True))),
    )
    yield from wds.WebLoader(dataset, batch_size=None, num_workers=workers)


def _decoder(augmented: bool) -> Callable[[bytes], Any]:
    import torch

    from stages.train.augment import Augment, draws, picture

    config = Augment() if augmented else None
    count = iter(range(1 << 40))

    def decode(body: bytes) -> Any:
        out = np.empty((SIZE, SIZE, 3), np.uint8)
        picture(body, out, draws(0, 0, [next(count)])[0], config)
        return torch.from_numpy(out).permute(2, 0, 1)

    return decode


def used() -> float:
    """CPU seconds of this process and of the children that have ended."""
    return sum(part.ru_utime + part.ru_stime for part in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def once(way: str, folder: str, workers: int, augmented: bool, index: str) -> None:
    """One measurement, printed as JSON; runs in a process of its own."""
    from stages.lib import torchvision_shim

    torchvision_shim.ensure()
    import open_clip
    import torch

    torch.set_num_threads(1)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    tokenizer(["warm"])
    began, cpu = time.perf_counter(), used()
    made = (
        ours(folder, workers, augmented, tokenizer, index)
        if way == WAYS[0]
        else bare(folder, workers, augmented, tokenizer, way == WAYS[2])
    )
    seen = sum(len(image) for image, _ in made)
    del made
    print(json.dumps({"samples": seen, "wall": time.perf_counter() - began, "cpu": used() - cpu}))


def compare(folder: str, args: argparse.Namespace, augmented: bool, index: str) -> None:
    """Alternating rounds of all ways; medians of CPU and wall time a sample."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(args.rounds):
        for way in WAYS:
            command = [sys.executable, __file__, "--once", way, "--shards", folder, "--workers", str(args.workers), "--index", index]
            told = subprocess.run([*command, *(["--augmented"] if augmented else [])], capture_output=True, text=True, check=True)
            found[way].append(json.loads(told.stdout.splitlines()[-1]))
    label = "augmented" if augmented else "stored"
    for measure in ("cpu", "wall"):
        ms = {way: statistics.median(1000 * one[measure] / one["samples"] for one in rounds) for way, rounds in found.items()}
        for way in WAYS:
            spread = [round(1000 * one[measure] / one["samples"], 3) for one in found[way]]
            print(f"{label:10} {measure:5} {way:26} {ms[way]:7.3f} ms a sample   rounds {spread}")
        for way in WAYS[1:]:
            ratio = ms[way] / ms[WAYS[0]]
            noted(f"train_reading: {label}, {measure} ms a sample, peer {way}", ms[WAYS[0]], ms[way], ratio, TARGET, ratio >= TARGET)


def bucket(folder: str, index: str) -> None:
    """Requests and bytes of one epoch read by 4 ranks from an S3 API on loopback; the peer streams each shard once."""
    import s3fs

    from stages.train.corpus import open_corpora
    from stages.train.loader import Loader
    from stages.train.order import Order
    from stages.train.prepare import Prepare
    from tests.stages.train.s3_traffic import traffic
    from tests.support.s3 import s3_server

    def nothing(texts: list[str]) -> Any:
        import torch

        return torch.zeros(len(texts), 1, dtype=torch.int64)

    with s3_server("data") as options:
        tars = sorted(map(str, Path(folder).glob("*.tar")))
        s3fs.S3FileSystem(**options).put(tars, "data/shards/")
        with traffic() as first:
            corpora = open_corpora(["s3://data/shards"], options, index)
            for at in range(len(tars)):
                corpora.bounds(at)
        order = Order(corpora.sizes, BATCH)
        with traffic() as counted:
            for rank in range(4):
                with Loader(corpora, order, rank, 4, 0, Prepare(nothing, SIZE), epochs=1) as loader:
                    for _ in loader.batches(0):
                        pass
    trained = order.steps(0) * BATCH
    whole = sum(Path(tar).stat().st_size for tar in tars)
    used_bytes = whole * trained / corpora.n
    gets = 1000 * counted.gets / trained
    ratio = counted.bytes / used_bytes
    print(f"S3: {gets:.1f} GETs a 1,000 samples (of {counted.requests} requests {counted.gets} GETs), {ratio:.3f} x the bytes used;")
    print(f"    index, once: {first.requests} requests, {first.bytes / whole:.3f} x the shards' bytes (DALI's .idx beside them saves it)")
    megabytes = counted.bytes / 1e6, used_bytes / 1e6
    noted("train_reading: GETs a 1,000 samples on S3, 4 ranks", gets, 1000 * len(tars) / trained, None, 40, gets <= 40)
    noted("train_reading: MB read, MB used on S3, 4 ranks (at most)", *megabytes, ratio, 1.1, ratio <= 1.1)


def noted(name: str, mine: float, peer: float, ratio: float | None, target: float, met: bool) -> None:
    results.add(name, mine, peer, target, met, ratio)
    print(f"{'met   ' if met else 'MISSED'} {name}: ours {mine:.3f}, peer {peer:.3f}, target {target}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shards", help="a folder of tars instead of made ones")
    parser.add_argument("--once", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--augmented", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--index", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    results.begin(parser, args)
    if args.once:
        once(args.once, args.shards, args.workers, args.augmented, args.index)
        return
    with tempfile.TemporaryDirectory() as temp:
        folder = args.shards or f"{temp}/shards"
        if not args.shards:
            Path(folder).mkdir()
            make_shards(Path(folder), args.samples)
        compare(folder, args, False, f"{temp}/index")
        compare(folder, args, True, f"{temp}/index")
        bucket(folder, f"{temp}/index")


if __name__ == "__main__":
    main()
