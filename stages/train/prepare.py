"""A sample as it lies in a shard becomes a model's input: pixels, tokens, and the next sample instead of one that is bad."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pipeline.errors import UserError
from stages.train.augment import CAPTION, Augment, BadSampleError, Resize, draws, picture
from stages.train.corpus import Corpora
from stages.train.reading import PICTURES, Reader, Sample, fields, pictures

Fault = tuple[int, str, str]
TRIES = 16  # neighbours that are tried in place of a bad sample, in its own shard and in each other one
NAMED = 20  # keys of a sample's json that a message names
SHARDS = 16  # how many other shards are tried before the data is taken for what cannot be trained on


@dataclass(frozen=True)
class Prepare:
    """What is made of a sample.

    `tokenizer`: as open_clip's, list of texts -> int64 tensor (n, context). `image_size`: pixels, of a square or (height, width).
    `augment`: None takes every picture by `resize` alone (open_clip's modes). `caption`: a member's suffix (`txt`) or a key of the
    sample's json; of a list of captions one is drawn in each epoch. `frames`: of a video clip, spread evenly over those that it has;
    0: still pictures; None: as the first sample has. `seed` decides about augmentation and captions.
    """

    tokenizer: Callable[[list[str]], Any]
    image_size: int | tuple[int, int] = 224
    augment: Augment | None = None
    resize: Resize = "shortest"
    caption: str = "txt"
    frames: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UserError for a member that holds no text."""
        if self.caption in ("", "json") or self.caption.startswith("__") or self.caption.rpartition(".")[2] in PICTURES:
            raise UserError(f"train.caption: {self.caption or 'empty'} is no text; give txt, another member of text, or a key of the json")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a sample's pixels: (height, width, 3), or (frames, height, width, 3)."""
        height, width = (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size
        return (self.frames, height, width, 3) if self.frames else (height, width, 3)


@dataclass(frozen=True)
class Part:
    """Some positions of a batch. `pixels`: uint8 tensor (n, [frames,] height, width, 3); `text`: int64 (n, context).

    `faults`: (id, key, why and in which shard) of each bad sample of the order; `replaced`: how many positions have another sample than
    the order's.
    """

    ids: np.ndarray
    pixels: Any
    text: Any
    keys: list[str]
    faults: list[Fault] = field(default_factory=list)
    replaced: int = 0

    @property
    def image(self) -> Any:
        """The pixels as a model wants them, (n, [frames,] 3, height, width): a view, channels last in memory."""
        return self.pixels.movedim(-1, -3)


class Parts:
    """Makes parts: decode, augment, tokenise. One process's; not for several threads."""

    def __init__(self, reader: Reader, prepare: Prepare) -> None:
        self.reader, self.prepare = reader, with_frames(reader, prepare)

    def make(self, epoch: int, ids: np.ndarray, held: dict[int, Sample] | None = None) -> Part:
        """The part of these ids. `held`: samples that were read already; those of `ids` are taken out of it.

        Raises UserError where no sample is found to stand for a bad one, see `stand_ins`.
        """
        import torch

        held = self.reader.read(ids) if held is None else held
        pixels = np.empty((len(ids), *self.prepare.shape), np.uint8)
        randoms = draws(self.prepare.seed, epoch, ids)
        texts, keys = [], []
        faults: list[Fault] = []
        replaced = 0
        for at, id_ in enumerate(ids.tolist()):
            before = len(faults)
            key, text = self._fill(id_, epoch, pixels[at], randoms[at], held, faults)
            texts.append(text)
            keys.append(key)
            replaced += len(faults) > before
        for id_ in ids.tolist():
            held.pop(id_, None)
        tokens = self.prepare.tokenizer(texts) if texts else torch.zeros(0, 0, dtype=torch.int64)
        return Part(ids, torch.from_numpy(pixels), tokens, keys, faults, replaced)

    def _fill(
        self, id_: int, epoch: int, out: np.ndarray, draw: np.ndarray, held: dict[int, Sample], faults: list[Fault]
    ) -> tuple[str, str]:
        """The sample's pixels into `out`; its key and text. Of a bad one: the first good stand-in's, with that one's random numbers."""
        tried, last = 0, ""
        for now, sample in self._candidates(id_, held):
            try:
                if sample is None:
                    raise BadSampleError("missing: the shard has fewer samples, or its bytes are damaged there")
                if tried:
                    draw = draws(self.prepare.seed, epoch, [now])[0]
                return self._sample(sample, out, draw)
            except BadSampleError as err:
                if not tried:
                    faults.append((now, str(sample["__key__"]) if sample else "", f"{err} ({self._shard(now)})"))
                tried, last = tried + 1, f"{err} ({self._shard(now)})"
        raise UserError(
            f"{tried} samples that were tried one after the other cannot be trained on, the last: {last}; is train.data of the right kind?"
        )

    def _candidates(self, id_: int, held: dict[int, Sample]) -> Iterator[tuple[int, Sample | None]]:
        """The sample and its stand-ins; what is not held is read, run by run."""
        for run in stand_ins(self.reader.corpora, id_):
            absent = np.asarray([now for now in run.tolist() if now not in held], np.int64)
            read = self.reader.read(absent)
            yield from ((now, held.get(now) or read.get(now)) for now in run.tolist())

    def _shard(self, id_: int) -> str:
        shard, _ = self.reader.corpora.locate(np.asarray([id_]))
        return self.reader.corpora.shards[int(shard[0])][0].url

    def _sample(self, sample: Sample, out: np.ndarray, draw: np.ndarray) -> tuple[str, str]:
        texts = captions(sample, self.prepare.caption)
        if not texts:
            raise BadSampleError(_absent(sample, self.prepare.caption))
        text = texts[int(float(draw[CAPTION]) * len(texts))]
        image, frames = pictures(sample)
        if self.prepare.frames:
            bodies = frames or ([] if image is None else [image])
            if not bodies:
                raise BadSampleError("no frames")
            for slot, at in enumerate(np.linspace(0, len(bodies) - 1, self.prepare.frames).round().astype(int).tolist()):
                picture(bodies[at], out[slot], draw, self.prepare.augment, self.prepare.resize)
        elif image is None and not frames:
            raise BadSampleError("no picture")
        else:
            picture(image if image is not None else frames[len(frames) // 2], out, draw, self.prepare.augment, self.prepare.resize)
        return str(sample["__key__"]), text


def captions(sample: Sample, name: str) -> list[str]:
    """The sample's captions: the member of that suffix, or that key of its json (a text, or a list of texts). Blank ones are none."""
    if name in sample:
        found: Sequence[Any] = [sample[name].decode(errors="replace")]
    else:
        value = fields(sample).get(name)
        found = value if isinstance(value, list) else [value]
    return [text for text in found if isinstance(text, str) and text.strip()]


def _absent(sample: Sample, name: str) -> str:
    """What is said of a sample without a caption; where `name` was chosen, what there is besides it."""
    others = f"; its json has {', '.join(sorted(fields(sample))[:NAMED]) or 'nothing'}" if name != "txt" else ""
    return f"no caption: {name} is empty or not there{others}"


def stand_ins(corpora: Corpora, id_: int) -> Iterator[np.ndarray]:
    """Runs of ids of which the first good one is trained on: the sample, those after it, and then those of other shards.

    Follows from the corpora alone, so it is the same on all ranks and after a resume. In each shard after the sample's own it begins at
    the sample's place, so the samples of a shard that is cut in half have as many to stand for them; where there are fewer shards than
    SHARDS they are gone through again, from half that place on.
    """
    run = (id_ + np.arange(min(TRIES, corpora.n))) % corpora.n
    yield from (part for part in (run[:1], run[1:2], run[2:]) if len(part))  # most bad samples stand alone: one more is read, not all
    (shard,), (place,) = (values.tolist() for values in corpora.locate(np.asarray([id_])))
    number = len(corpora.shards)
    for further in range(1, SHARDS + 1):
        other = (shard + further) % number
        size = corpora.shards[other][0].samples
        if size:
            yield int(corpora.ends[other]) - size + ((place >> further // number) + np.arange(min(TRIES, size))) % size


def with_frames(reader: Reader, prepare: Prepare) -> Prepare:
    """With `frames` as the first sample that can be read has them, where they are not given."""
    if prepare.frames is not None:
        return prepare
    for run in stand_ins(reader.corpora, 0):
        for _, sample in sorted(reader.read(run).items()):
            image, frames = pictures(sample)
            return replace(prepare, frames=len(frames) if image is None else 0)
    return replace(prepare, frames=0)
