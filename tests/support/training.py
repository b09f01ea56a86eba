"""Training without shards: a source of small made-up pictures with captions, and model configs of a few thousand weights."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from stages.train.config import Train

VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
CLIP = {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": TEXT}
POOLED = {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 4, "output_tokens": True}
COCA = {
    "embed_dim": 32,
    "vision_cfg": {**VISION, **POOLED},
    "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    "custom_text": True,
}
SIGLIP = {**CLIP, "init_logit_bias": -10, "init_logit_scale": 2.302585}
MODELS = {"micro": CLIP, "micro_coca": COCA, "micro_sig": SIGLIP}
SAMPLES = 40


def config(folder: Path, kind: str = "micro", /, **options: Any) -> Train:
    """A config for `Pictures`, writing to folder/out; the model's JSON is put into `folder`."""
    path = folder / f"{kind}.json"
    path.write_text(json.dumps(MODELS[kind]))
    given: dict[str, Any] = {"batch": 8, "epochs": 2, "log_every": 1, "tensorboard": False, "optimizer": {"lr": 1e-3}}
    wanted = options.pop("model", {})
    return Train.model_validate({**given, "out": str(folder / "out"), **options, "model": {"name": str(path), **wanted}})


class Pictures:
    """Sample i is noise seeded by i, or a clip of `frames` of it, with a caption that names i; an epoch is a permutation."""

    samples = SAMPLES
    fingerprint = "pictures"
    frames = 0

    def __init__(self, wanted: Train, model: Any, context: Any) -> None:
        self.wanted, self.model = wanted, model
        self.share = wanted.batch // context.world
        self.first = context.rank * self.share

    def steps(self, epoch: int) -> int:
        return self.samples // self.wanted.batch

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Any]:
        import torch

        for step in range(start_step, self.steps(epoch)):
            order = np.random.default_rng([self.wanted.seed, epoch]).permutation(self.samples)
            ids = order[step * self.wanted.batch :][self.first : self.first + self.share]
            text = self.model.tokenizer([f"picture number {i} of many{' things' * (i % 3)}" for i in ids])
            image = torch.stack([torch.from_numpy(self.picture(int(i))) for i in ids])
            yield SimpleNamespace(step=step, ids=ids, image=image, text=text, keys=[f"{i:05d}" for i in ids], replaced=0, wait_s=0.0)

    def picture(self, i: int) -> np.ndarray:
        shape = (*([self.frames] if self.frames else []), 3, *self.model.image_size)
        return np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8)


class Clips(Pictures):
    frames = 3


def write_shards(folder: Path, samples: int, per_shard: int = 100, size: int = 224) -> Path:
    """Tars as img2dataset writes them, by webdataset's own writer: JPEGs of a coloured disc, captioned by its place and colour."""
    from webdataset import TarWriter

    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, samples, per_shard):
        with TarWriter(str(folder / f"{first // per_shard:05d}.tar")) as tar:
            for i in range(first, min(first + per_shard, samples)):
                image, caption = _disc(i, size)
                tar.write({"__key__": f"{i:09d}", "jpg": image, "txt": caption.encode(), "json": json.dumps({"caption": caption}).encode()})
    return folder


def _disc(i: int, size: int) -> tuple[bytes, str]:
    import cv2

    dice = np.random.default_rng(i)
    names = {"red": (40, 40, 220), "green": (40, 200, 40), "blue": (220, 60, 40), "white": (240, 240, 240), "yellow": (40, 220, 230)}
    name = list(names)[i % len(names)]
    x, y = dice.uniform(0.2, 0.8, 2)
    pixels = np.full((size, size, 3), int(dice.integers(20, 160)), np.uint8)
    pixels = cv2.circle(pixels, (int(x * size), int(y * size)), int(dice.uniform(0.1, 0.2) * size), names[name], -1)
    pixels = np.clip(pixels + dice.integers(-8, 9, pixels.shape), 0, 255).astype(np.uint8)
    where = f"{'top' if y < 0.5 else 'bottom'} {'left' if x < 0.5 else 'right'}"
    return cv2.imencode(".jpg", pixels)[1].tobytes(), f"a {name} disc at the {where}, number {i}"


def curve(wanted: Train, source: Any = Pictures, world: int = 1, stop_after: int = 0) -> list[dict[str, Any]]:
    """Trains on `world` ranks (more than one: processes joined by gloo) and returns the lines of metrics.

    `stop_after`: a stop is asked for when so many steps were taken; on one rank only.
    """
    from pipeline.storage import Store
    from stages.train import loop, metrics

    if world == 1:
        left = iter(range(stop_after - 1)) if stop_after else None
        stop = (lambda: next(left, None) is None) if left is not None else (lambda: False)
        with _group(0, 1, None) if wanted.strategy == "fsdp" else nullcontext():
            outcome = loop.train(wanted, loop.Context(stop=stop), source)
        assert outcome.state == (loop.STOPPED if stop_after else loop.DONE)
    else:
        import torch

        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(_rank, (world, wanted, source, f"{folder}/store"), nprocs=world)
    return metrics.read(Store(wanted.out or ""))


def _rank(rank: int, world: int, wanted: Train, source: Any, file: str) -> None:
    import torch

    from stages.train import loop

    torch.set_num_threads(1)
    with _group(rank, world, file):
        outcome = loop.train(wanted, loop.Context(rank=rank, world=world), source)
        assert outcome.state == loop.DONE, outcome.error
    # torch keeps gloo's threads beyond destroy_process_group where a model used the group, and a rank that then ends while one
    # still runs may abort ("terminate called without an active exception"). The outcome is written: leave without tearing down.
    os._exit(0)


@contextmanager
def _group(rank: int, world: int, file: str | None) -> Iterator[None]:
    import torch

    store = torch.distributed.FileStore(file, world) if file else torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def apart(a: list[dict[str, Any]], b: list[dict[str, Any]], name: str = "loss") -> float:
    """The largest difference of two curves, which must have the same steps and the same samples in the same places."""
    assert [(line["step"], line["order"]) for line in a] == [(line["step"], line["order"]) for line in b]
    return max(abs(one[name] - other[name]) for one, other in zip(a, b, strict=True))


def write_config(folder: Path, shards: Path, kind: str = "micro", /, **options: Any) -> Path:
    """A config file for `shardmill train` on shards, with a model of a few thousand weights, writing to folder/out."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = config(folder, kind, **{"batch": 16, "data": [{"shards": str(shards)}], **options})
    path = folder / "train.json"  # JSON is YAML
    path.write_text(json.dumps({"train": wanted.model_dump(mode="json", exclude_unset=True)}))
    return path
