"""Frozen towers see each sample once: what they make of it is kept beside the training, and epochs over it cost seconds (LiT).

For a model whose `net` has `trunk_image(uint8 pixels)` and `trunk_text(tokens)` and whose forward pass takes what these give. Of each
picture `frozen_features` augmented views are kept, of each sample all its captions, as float16. A picture that stands in several
samples (one for each of its captions) is worked on once. Which view and caption an epoch takes follows from (seed, epoch, sample)
alone, and the order is that of all training: the same on any number of ranks. What is missing after a kill is made again, no more.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xxhash

from pipeline.errors import TransientError, UserError
from pipeline.storage import Store
from stages.lib import torchvision_shim
from stages.lib.offline_scorer import DESCRIBED_IN, NAME, VERSION, name_classes, network, read_weights
from stages.lib.offline_towers import MAX_TOKENS, SIZE, missing
from stages.train.augment import CAPTION, draws
from stages.train.config import Train
from stages.train.corpus import Corpora
from stages.train.loader import Batch
from stages.train.models import Model
from stages.train.order import Order
from stages.train.prepare import Parts, Prepare, captions, stand_ins
from stages.train.reading import Reader, pictures

PART = 512  # pictures, or samples, a file
AT_ONCE = 16  # pictures in memory and in the towers
SAMPLES = "samples.npz"
FEATURES_SEED = 0  # of the views' augmentation; another seed of training takes the same features
WAIT_S = 3600.0  # that ranks wait for one another
log = logging.getLogger("shardmill")


def build(config: Train) -> Model:
    """The offline scorer as the loop wants it, with fresh projections, or those of the file `model.pretrained`.

    Raises UserError for packages or a file that are not there.
    """
    if lacking := missing():
        raise UserError(f"train.model: offline-scorer needs {', '.join(lacking)}; see docs/models/offline_scorer.md")
    from safetensors import SafetensorError

    device = "cuda" if config.gpus else "cpu"
    net = network(device, bias=config.loss.kind == "siglip", drop=config.model.drop)
    if config.model.pretrained:
        try:
            read_weights(net, config.model.pretrained)
        except (OSError, RuntimeError, SafetensorError) as err:
            said = " ".join(str(err).split())[:300]
            raise UserError(f"train.model.pretrained: {config.model.pretrained} holds no weights of the offline scorer: {said}") from err
    else:
        torchvision_shim.ensure()
        from open_clip import IMAGENET_CLASSNAMES

        name_classes(net, IMAGENET_CLASSNAMES)
    return Model(
        net=net,
        image_size=(SIZE, SIZE),
        mean=(),
        std=(),
        tokenizer=net.tokenize,
        context_length=MAX_TOKENS,
        loss="siglip" if config.loss.kind == "siglip" else "clip",
        resize="squash",
        description={"model": NAME, "version": VERSION},
        described_in=DESCRIBED_IN,
    )


@dataclass(frozen=True)
class Held:
    """What is kept of a corpus of n samples. `texts`: sample i's captions are the rows `texts[i]` to `texts[i + 1]` of `text`."""

    picture: np.ndarray  # int64[n]: the row of `image`
    texts: np.ndarray  # int64[n + 1]
    keys: np.ndarray  # str[n]
    source: np.ndarray  # int64[n]: the sample itself, or where it is bad the next one that is not
    image: np.ndarray  # float16[views, pictures, width]
    text: np.ndarray  # float16[captions, width]


class Features:
    """A rank's batches, of features instead of pixels and tokens; see `stages.train.loop.Source`."""

    def __init__(self, held: list[Held], corpora: Corpora, order: Order, seed: int, positions: slice) -> None:
        self.held, self.order, self.seed, self.positions = _joined(held), order, seed, positions
        self.samples, self.fingerprint = corpora.n, corpora.fingerprint

    def steps(self, epoch: int) -> int:
        return self.order.steps(epoch)

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        for at, ids in enumerate(self.order.batches(epoch, start_step, self.positions)):
            yield self.batch(start_step + at, epoch, ids)

    def batch(self, step: int, epoch: int, ids: np.ndarray) -> Batch:
        """Features of these ids: float32 tensors [b, width] of the pictures' view and of a caption of that epoch."""
        import torch

        held, views = self.held, len(self.held.image)
        source = held.source[ids]
        first, last = held.texts[source], held.texts[source + 1]
        drawn = draws(self.seed, epoch, ids)[:, CAPTION]
        image = held.image[(epoch + source) % views, held.picture[source]]
        text = held.text[first + (drawn * (last - first)).astype(np.int64)]
        features, words = (torch.from_numpy(value.astype(np.float32)) for value in (image, text))
        return Batch(step, ids, features, words, held.keys[source].tolist(), int((source != ids).sum()))


def open_features(config: Train, model: Model, context: Any, corpora: Corpora, order: Order, prepare: Prepare) -> Features:
    """The features of these corpora, computed where they are not there yet; ranks share the work.

    Raises UserError for a model that cannot give any.
    """
    if not hasattr(model.net, "trunk_image") or not hasattr(model.net, "trunk_text"):
        raise UserError(f"train.frozen_features: {config.model.name} has no frozen trunks of its own (offline-scorer has); set it to 0")
    store = Store(config.out or "", dict(config.storage_options)).sub("features")
    held = []
    for shards, options in zip(corpora.corpora, corpora.options, strict=True):
        one = Corpora((shards,), (options,), corpora.indices)
        place = store.sub(_key(config, model, one, prepare))
        with _autocast(config, context.device):
            held.append(_Maker(place, model, one, prepare, config.frozen_features, context).make())
    share = config.batch // context.world
    return Features(held, corpora, order, config.seed, slice(context.rank * share, (context.rank + 1) * share))


def _key(config: Train, model: Model, corpus: Corpora, prepare: Prepare) -> str:
    """12 hex digits of all that a corpus's features follow from."""
    shown = [corpus.fingerprint, getattr(model.net, "trunk", ""), prepare.resize, prepare.caption, FEATURES_SEED]
    told = [*shown, prepare.image_size, str(_dtype(config)), config.augment.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]


def _dtype(config: Train) -> Any:
    """Of autocast, as the loop has it; None for float32."""
    import torch

    asked = config.precision if config.precision != "auto" else ("bf16" if config.gpus else "fp32")
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[asked]


def _autocast(config: Train, device: str) -> Any:
    import torch

    dtype = _dtype(config)
    return torch.autocast(device.partition(":")[0], dtype=dtype, enabled=dtype is not None)


COUNTS = (lambda one: len(one.picture), lambda one: one.image.shape[1], lambda one: len(one.text))


def _joined(held: list[Held]) -> Held:
    """Corpora one after the other."""
    n, images, texts = (np.cumsum([0, *(count(one) for one in held)]) for count in COUNTS)
    return Held(
        picture=np.concatenate([one.picture + at for one, at in zip(held, images[:-1], strict=True)]),
        texts=np.concatenate([*(one.texts[:-1] + at for one, at in zip(held, texts[:-1], strict=True)), texts[-1:]]),
        keys=np.concatenate([one.keys for one in held]),
        source=np.concatenate([one.source + at for one, at in zip(held, n[:-1], strict=True)]),
        image=np.concatenate([one.image for one in held], 1),
        text=np.concatenate([one.text for one in held]),
    )


class _Maker:
    """Computes what is missing, part by part; rank r makes the parts r, r + world, …"""

    def __init__(self, store: Store, model: Model, corpora: Corpora, prepare: Prepare, views: int, context: Any) -> None:
        self.store, self.net, self.corpora, self.views = store, model.net, corpora, views
        self.rank, self.world, self.note = context.rank, context.world, context.note
        self.reader = Reader(corpora)
        self.prepare = replace(prepare, frames=0, seed=FEATURES_SEED)
        self.parts = Parts(self.reader, self.prepare)

    def make(self) -> Held:
        if self.rank == 0 and not self.store.exists(SAMPLES):
            _save(self.store, SAMPLES, self._listed())
        known = self._awaited(SAMPLES)
        pieces, all_ids = _cut(known["first"]), _cut(np.arange(self.corpora.n))
        jobs: dict[str, Any] = {
            f"image-{view}-{at:05d}.npz": functools.partial(self._images, view, ids)
            for view in range(self.views)
            for at, ids in enumerate(pieces)
        }
        jobs |= {f"text-{at:05d}.npz": functools.partial(self._texts, ids) for at, ids in enumerate(all_ids)}
        began = time.monotonic()
        for at, (name, job) in enumerate(jobs.items()):
            if at % self.world == self.rank and not self.store.exists(name):
                _save(self.store, name, job())
                self.note(f"features of frozen towers: part {at + 1} of {len(jobs)}, {time.monotonic() - began:.0f} s")
        made = [self._awaited(name) for name in jobs]
        images, texts = made[: self.views * len(pieces)], made[self.views * len(pieces) :]
        undecodable = known["picture"][np.concatenate([one["bad"] for one in images])]
        views = np.concatenate([one["image"] for one in images]).reshape(self.views, len(known["first"]), -1)
        bad = np.isin(known["picture"], undecodable)
        bad[known["bad"]] = True
        return Held(
            picture=known["picture"],
            texts=known["texts"],
            keys=known["keys"],
            source=_sources(bad, self.corpora),
            image=views,
            text=np.concatenate([one["text"] for one in texts]),
        )

    def _listed(self) -> dict[str, np.ndarray]:
        """Every sample's key, picture and number of captions; pictures that are equal byte by byte are one, that of the `first` sample."""
        rows: dict[bytes, int] = {}
        first, picture, counts, keys, bad = list[int](), list[int](), list[int](), list[str](), list[int]()
        for ids in _cut(np.arange(self.corpora.n)):
            held = self.reader.read(ids)
            for id_ in ids.tolist():
                sample = held.get(id_, {})
                image, _ = pictures(sample)
                texts = captions(sample, self.prepare.caption) if sample else []
                if image is None or not texts:
                    bad.append(id_)
                row = rows.setdefault(xxhash.xxh3_128_digest(image or b""), len(rows))
                if row == len(first):
                    first.append(id_)
                picture.append(row)
                counts.append(len(texts))
                keys.append(str(sample.get("__key__", "")))
        numbers = {"first": first, "picture": picture, "texts": [0, *np.cumsum(counts).tolist()], "bad": bad}
        return {**{name: np.asarray(values, np.int64) for name, values in numbers.items()}, "keys": np.asarray(keys)}

    def _images(self, view: int, ids: np.ndarray) -> dict[str, np.ndarray]:
        """`image`: float16[len(ids), width] of a view of these samples' pictures; `bad`: ids of samples that cannot be decoded."""
        made, faults = [], dict[int, str]()
        for begin in range(0, len(ids), AT_ONCE):
            part = self.parts.make(view, ids[begin : begin + AT_ONCE])
            faults |= {id_: f"sample {key} is replaced by another: {why}" for id_, key, why in part.faults}
            made.append(_half(self.net.trunk_image(part.image)))
        for told in faults.values():
            log.warning("train: %s", told)
        return {"image": np.concatenate(made), "bad": np.asarray(sorted(faults), np.int64)}

    def _texts(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """`text`: float16[captions of these samples, width]."""
        held = self.reader.read(ids)
        texts = [text for id_ in ids.tolist() if id_ in held for text in captions(held[id_], self.prepare.caption)]
        return {"text": _half(self.net.trunk_text(self.prepare.tokenizer(texts)))}

    def _awaited(self, name: str) -> dict[str, np.ndarray]:
        """A part, when the rank that makes it has written it. Raises TransientError where it never comes."""
        deadline = time.monotonic() + WAIT_S
        while not self.store.exists(name):
            if time.monotonic() > deadline:
                raise TransientError(f"{self.store.address(name)}: another worker did not write it in {WAIT_S:.0f} s; repeat the command")
            time.sleep(0.5)
        with np.load(io.BytesIO(self.store.read(name)), allow_pickle=False) as found:
            return dict(found)


def _cut(ids: np.ndarray) -> list[np.ndarray]:
    return [ids[begin : begin + PART] for begin in range(0, len(ids), PART)]


def _half(features: Any) -> np.ndarray:
    return np.asarray(features.cpu().numpy().astype(np.float16))


def _save(store: Store, name: str, values: dict[str, np.ndarray]) -> None:
    out = io.BytesIO()
    np.savez(out, **values)  # type: ignore[arg-type]
    store.write(name, out.getvalue())


def _sources(bad: np.ndarray, corpora: Corpora) -> np.ndarray:
    """Each id, or where it is bad its first good stand-in, as the loader of shards takes it. Raises UserError where there is none."""
    source = np.arange(len(bad))
    for id_ in np.flatnonzero(bad).tolist():
        found = next((good[0] for run in stand_ins(corpora, id_) if len(good := run[~bad[run]])), None)
        if found is None:
            shard, _ = corpora.locate(np.asarray([id_]))
            raise UserError(
                f"sample {id_} ({corpora.shards[int(shard[0])][0].url}) and all that were tried in its place cannot be trained on; "
                "is train.data of the right kind?"
            )
        source[id_] = found
    return source
