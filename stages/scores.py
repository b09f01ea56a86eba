"""scores: how well image and caption fit, by a model with two towers: the cosine of their embeddings, as a column to select on.

Any open_clip model, or the bundled offline scorer, which needs no download and is for demonstrations alone (stages/lib/towers.py).

The image is the stored, encoded one: what is judged is what is trained on, and a resumed run gives the same numbers. Batches
are cut at fixed places of the table, since a model's numbers depend a little on the batch that it sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.errors import UserError
from pipeline.stage import Column, Resources, Stage, Strict, drop, keyless
from stages.lib.towers import Choice, ModelError, Precision, Towers

IMAGE = Column(pa.large_binary(), "the stored, encoded image (media: frames: `frames`, those of a clip)")
FRAMES = Column(pa.list_(pa.large_binary()), "the stored, encoded frames of a clip")
CAPTION = Column(pa.string(), "the cleaned caption; null is scored as an empty text")


class Scores(Stage):
    """Similarity of each image to its caption (Radford et al. 2021, section 2.3: cosine of the two normalised embeddings).

    Of a clip it is the mean of its frames' similarities, and not the cosine of their pooled embedding (CLIP4Clip's mean pooling, Luo et al.
    2021, section 3.3): that is the same number divided by the length of the mean, which is the smaller the more the frames differ. So
    thresholds mean what they mean for images, and a clip of cuts gains nothing by them.
    """

    name = "scores"
    version = 1
    reads = {"image": IMAGE, "caption": CAPTION}
    adds = {"similarity": Column(pa.float32(), "cosine of image and caption embedding, -1 to 1; unscaled by the model's logit scale")}
    reasons = {"undecodable": "the stored image, or a frame, cannot be decoded again"}

    class Config(Strict):
        model: str
        """An open_clip model's name (`ViT-B-32`), `hf-hub:ORG/NAME`, or a local folder with open_clip_config.json and weights.

        `offline-scorer`: the bundled demonstration scorer (docs/models/offline_scorer.md)."""
        pretrained: str | None = None
        """The tag of its weights (`openai`, `laion2b_s34b_b79k`, …) or a file of weights; hub and folder models bring theirs, and so does
        the offline scorer, unless a file of projections is named. A file's content is part of the key, as that of a local folder is."""
        media: Literal["image", "frames"] = "image"
        """What is judged: `frames` for videos. Of a clip `similarity` is the mean over its frames, and image_embedding the mean of their
        embeddings, normalised."""
        batch: int = Field(256, ge=1)
        """Pairs at once (of clips: so many frames at once). Part of the key: numbers differ in the last digits with the batch."""
        precision: Precision = "auto"
        """`auto`: bf16 on a GPU, fp32 on a CPU; the offline scorer takes fp32 everywhere."""
        embeddings: bool = False
        """Keep both embeddings as float16 columns, image_embedding and text_embedding."""
        gpus: float = keyless(0.0, ge=0)
        """GPUs of one worker (0.25 lets four share one); 0 scores on CPUs."""
        workers: int = keyless(1, ge=1)
        """How many workers score at once in the whole Ray cluster."""
        cpus: float = keyless(1.0, gt=0)
        """CPUs of one worker, for decoding and, without a GPU, the model."""
        memory: int = keyless(6 << 30, ge=1 << 30)
        """Bytes of memory of one worker."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.choice = Choice(self.config.model, self.config.pretrained, self.config.precision)
        self.version = Scores.version + self.choice.version  # type: ignore[misc]
        self.files = self.choice.files()
        if (media := self.config.media) == "frames":
            self.reads = {"frames": FRAMES, "caption": CAPTION}
        self.resources = Resources(self.config.cpus, self.config.gpus, self.config.memory, self.config.workers)
        if self.config.embeddings:
            kinds = {"image_embedding": "image" if media == "image" else "clip (mean of its frames')", "text_embedding": "caption"}
            type_ = pa.list_(pa.float16())
            self.adds = {**Scores.adds, **{n: Column(type_, f"normalised embedding of the {kind}") for n, kind in kinds.items()}}

    @property
    def demonstration(self) -> str | None:
        """What has to be said of the scores in every output, where the model is a stand-in; None for a model to be taken at its word."""
        return self.choice.demonstration

    def check_ready(self) -> None:
        """Raises UserError for what is missing: the extra, the model's name, its weights."""
        with _told():
            self.choice.check()

    def open(self) -> None:
        with _told():
            self.towers = Towers(self.choice, self.config.gpus, max(1, round(self.config.cpus)))

    def close(self) -> None:
        self.towers.close()

    def __call__(self, table: pa.Table) -> pa.Table:
        return pa.concat_tables([self._scored(table[start:stop]) for start, stop in self._batches(table)])

    def _batches(self, table: pa.Table) -> Iterator[tuple[int, int]]:
        """Rows whose pictures are at most `batch`, a row at least."""
        ends = np.cumsum(_counts(table[self.config.media]))
        start = done = 0
        while start < len(ends):
            stop = max(start + 1, int(np.searchsorted(ends, done + self.config.batch, side="right")))
            yield start, stop
            start, done = stop, int(ends[stop - 1])

    def _scored(self, table: pa.Table) -> pa.Table:
        """One batch; what cannot be decoded is left out of the model's batch."""
        media = table[self.config.media]
        counts = _counts(media)
        pixels, found = self.towers.decoded(_bodies(media))
        faults = _by_row(found, counts)
        good = np.array([fault is None for fault in faults])
        images = self._images([pixels[at] for at in np.flatnonzero(np.repeat(good, counts))], counts[good])
        captions = table["caption"].fill_null("").to_pylist()
        text = self.towers.embed_texts([captions[at] for at in np.flatnonzero(good)])
        index = np.full(len(table), -1)
        index[good] = np.arange(good.sum())
        where = pa.array(index, mask=index < 0)
        table = table.append_column("similarity", pa.array(np.einsum("ij,ij->i", images, text), pa.float32()).take(where))
        if self.config.embeddings:
            pooled = images if self.config.media == "image" else images / np.linalg.norm(images, axis=1, keepdims=True)
            for name, values in (("image_embedding", pooled), ("text_embedding", text)):
                table = table.append_column(name, _lists(values).take(where))
        return drop(table, pa.array(~good), "scores:undecodable", pa.array(faults, pa.string()))

    def _images(self, pixels: list[Any], counts: np.ndarray) -> np.ndarray:
        """float32, shape (rows, width): the mean of the embeddings of each row's pictures, `counts` of them for each row."""
        batch = self.config.batch
        made = [self.towers.embed_images(pixels[at : at + batch]) for at in range(0, max(1, len(pixels)), batch)]
        embedded = np.concatenate(made)
        if len(embedded) == len(counts):
            return embedded
        return np.asarray(np.add.reduceat(embedded, np.cumsum(counts) - counts) / counts[:, None], dtype=np.float32)


@contextmanager
def _told() -> Iterator[None]:
    """Faults of the model in the words of this stage's options."""
    try:
        yield
    except ModelError as err:
        raise UserError(f"stages.scores{err.option and '.'}{err.option}: {err.text}") from err


def _counts(media: pa.ChunkedArray) -> np.ndarray:
    """How many pictures each row has; a row without any is counted as one that is not there."""
    if not pa.types.is_list(media.type):
        return np.ones(len(media), dtype=np.int64)
    return np.asarray(pc.max_element_wise(pc.fill_null(pc.list_value_length(media), 0), 1).to_numpy(), dtype=np.int64)


def _bodies(media: pa.ChunkedArray) -> list[memoryview | None]:
    """The encoded pictures of all rows."""
    rows = ([item] for item in media) if not pa.types.is_list(media.type) else (clip.values or [pa.scalar(None)] for clip in media)
    return [memoryview(body.as_buffer()) if body.is_valid else None for row in rows for body in row]


def _by_row(faults: list[str | None], counts: np.ndarray) -> list[str | None]:
    """The first fault of each row's pictures."""
    ends = np.cumsum(counts)
    spans = zip((ends - counts).tolist(), ends.tolist(), strict=True)
    return [next((fault for fault in faults[start:end] if fault), None) for start, end in spans]


def _lists(values: np.ndarray) -> pa.ListArray:
    """float16 lists, one a row."""
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.astype(np.float16).ravel()))
