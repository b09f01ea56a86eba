"""A finished run's shards through the field's own readers: `python tests/acceptance/readers.py runs/laion_subset`.

webdataset, open_clip's get_wds_dataset (is_train=False, no workers), HF datasets and wids must give the manifest's number of
samples and the same first caption. Prints a line a reader; exit code 1 where one differs. Needs the extras dev and clip.
"""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def by_webdataset(folder: Path, names: list[str]) -> tuple[int, str]:
    import webdataset as wds

    samples = list(wds.WebDataset([str(folder / name) for name in names], shardshuffle=False))
    return len(samples), samples[0]["txt"].decode()


def by_open_clip(folder: Path, names: list[str]) -> tuple[int, str]:
    from stages.lib import torchvision_shim

    torchvision_shim.ensure()
    from open_clip_train.data import get_wds_dataset
    from PIL import Image

    captions: list[str] = []

    def tokenizer(text: str) -> list[str]:
        captions.append(text)
        return [text]

    last = names[-1].removesuffix(".tar")
    data = f"{folder}/{{{names[0].removesuffix('.tar')}..{last}}}.tar"
    args = Namespace(
        train_data=data, val_data=data, train_num_samples=None, val_num_samples=None, dataset_resampled=False,
        train_data_upsampling_factors=None, seed=0, batch_size=1, workers=0, world_size=1, distributed=False,
    )  # fmt: skip
    info = get_wds_dataset(args, lambda image: int(isinstance(image, Image.Image)), is_train=False, tokenizer=tokenizer)
    seen = sum(len(images) for images, _ in info.dataloader)
    return seen, captions[0]


def by_datasets(folder: Path, names: list[str]) -> tuple[int, str]:
    import tempfile

    from datasets import load_dataset

    with tempfile.TemporaryDirectory() as cache:
        data = load_dataset("webdataset", data_files={"train": [str(folder / name) for name in names]}, split="train", cache_dir=cache)
        return len(data), data[0]["txt"]


def by_wids(folder: Path, names: list[str]) -> tuple[int, str]:
    import wids

    data = wids.ShardListDataset(str(folder / "shardindex.json"), base=str(folder), keep=True)
    return len(data), data[0][".txt"]


READERS: dict[str, Callable[[Path, list[str]], tuple[int, str]]] = {
    "webdataset": by_webdataset,
    "open_clip get_wds_dataset": by_open_clip,
    "HF datasets": by_datasets,
    "wids": by_wids,
}


def main(run: Path) -> int:
    manifest = json.loads((run / "shards" / "manifest.json").read_text())
    folder = (run / "shards" / manifest["key"]).resolve()
    names = [shard["name"] for shard in manifest["shards"]]
    found = {reader: read(folder, names) for reader, read in READERS.items()}
    firsts = {caption for _, caption in found.values()}
    for reader, (samples, caption) in found.items():
        print(f"{reader:28} {samples:6} samples   first caption: {caption!r}")
    print(f"{'manifest':28} {manifest['samples']:6} samples")
    return int(len(firsts) != 1 or {samples for samples, _ in found.values()} != {manifest["samples"]})


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    sys.exit(main(Path(sys.argv[1])))
