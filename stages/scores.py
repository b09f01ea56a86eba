"""scores: how well image and caption fit, by a model with two towers: the cosine of their embeddings, as a column to select on.

Any open_clip model, or the bundled offline scorer, which needs no download and is for demonstrations alone.

The image is the stored, encoded one: what is judged is what is trained on, and a resumed run gives the same numbers. Batches
are cut at fixed places of the table, since a model's numbers depend a little on the batch that it sees.
"""

from __future__ import annotations

import difflib
import importlib.util
import io
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipeline.errors import UserError
from pipeline.stage import Column, Resources, Stage, Strict, drop, keyless
from stages.lib import offline_scorer, torchvision_shim

Precision = Literal["fp32", "bf16", "fp16"]
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


class Scores(Stage):
    """Similarity of each image to its caption (Radford et al. 2021, section 2.3: cosine of the two normalised embeddings)."""

    name = "scores"
    version = 1
    reads = {
        "image": Column(pa.large_binary(), "the stored, encoded image"),
        "caption": Column(pa.string(), "the cleaned caption; null is scored as an empty text"),
    }
    adds = {"similarity": Column(pa.float32(), "cosine of image and caption embedding, -1 to 1; unscaled by the model's logit scale")}
    reasons = {"undecodable": "the stored image cannot be decoded again"}

    class Config(Strict):
        model: str
        """An open_clip model's name (`ViT-B-32`), `hf-hub:ORG/NAME`, or a local folder with open_clip_config.json and weights.

        `offline-scorer`: the bundled demonstration scorer (docs/models/offline_scorer.md)."""
        pretrained: str | None = None
        """The tag of its weights (`openai`, `laion2b_s34b_b79k`, …) or a file of weights; hub and folder models bring theirs, and so does
        the offline scorer, unless a file of projections is named. A file's content is part of the key, as that of a local folder is."""
        batch: int = Field(256, ge=1)
        """Pairs at once. Part of the key: numbers differ in the last digits with the batch."""
        precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
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
        if self.demonstration:
            # Other weights in a later release give other numbers under another key.
            self.version = Scores.version + 1000 * offline_scorer.VERSION  # type: ignore[misc]
        self.files = _local_files(self.config.model, self.config.pretrained)
        self.resources = Resources(self.config.cpus, self.config.gpus, self.config.memory, self.config.workers)
        if self.config.embeddings:
            kinds = {"image_embedding": "image", "text_embedding": "caption"}
            type_ = pa.list_(pa.float16())
            self.adds = {**Scores.adds, **{n: Column(type_, f"normalised embedding of the {kind}") for n, kind in kinds.items()}}

    @property
    def demonstration(self) -> str | None:
        """What has to be said of the scores in every output, where the model is a stand-in; None for a model to be taken at its word."""
        return offline_scorer.DEMONSTRATION if self.config.model == offline_scorer.NAME else None

    def check_ready(self) -> None:
        """Raises UserError for what is missing: the extra, the model's name, its weights."""
        if self.demonstration:
            self._check_offline()
            return
        if importlib.util.find_spec("open_clip") is None or importlib.util.find_spec("torch") is None:
            raise UserError('stages.scores: needs the extra clip: make setup EXTRAS=clip, or pip install "shardmill[clip]"')
        model, pretrained = self.config.model, self.config.pretrained
        if Path(model).is_dir() and not (Path(model) / "open_clip_config.json").is_file():
            raise UserError(f"stages.scores.model: {model} has no open_clip_config.json; give a folder as open_clip's hub models have")
        if Path(model).is_dir() and not any(path.suffix in WEIGHTS for path in Path(model).iterdir()):
            raise UserError(f"stages.scores.model: {model} holds no weights ({', '.join(WEIGHTS)}); a model without them judges nothing")
        if _brings_weights(model) or (pretrained and Path(pretrained).is_file()):
            return
        torchvision_shim.ensure()
        import open_clip

        tags = open_clip.list_pretrained_tags_by_model(model)
        if model not in open_clip.list_models():
            near = difflib.get_close_matches(model, open_clip.list_models(), n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise UserError(f"stages.scores.model: open_clip knows no model {model}, and there is no such folder{hint}")
        if pretrained not in tags:
            said = f"{pretrained!r} is none of" if pretrained else "a model without weights judges nothing; choose one of"
            raise UserError(f"stages.scores.pretrained: {said} {model}'s weights: {', '.join(tags) or 'none'} (or a file)")

    def _check_offline(self) -> None:
        if lacking := offline_scorer.missing():
            raise UserError(
                f"stages.scores.model: offline-scorer needs {', '.join(lacking)}; docs/models/offline_scorer.md says how to install them"
            )
        if self.config.precision not in ("auto", "fp32"):
            raise UserError(f"stages.scores.precision: offline-scorer computes in fp32; leave out precision: {self.config.precision}")
        if (given := self.config.pretrained) and not Path(given).is_file():
            raise UserError(f"stages.scores.pretrained: {given} is no file; offline-scorer takes projections of its own training, or none")

    def open(self) -> None:
        self.check_ready()
        import torch

        self._device = torch.device("cuda" if self.config.gpus and torch.cuda.is_available() else "cpu")
        if self.config.gpus and self._device.type == "cpu":
            raise UserError("stages.scores.gpus: torch sees no GPU here; install a CUDA torch (docs/install.md), or set gpus: 0")
        self._threads = ThreadPoolExecutor(max(1, round(self.config.cpus)), thread_name_prefix="decode")
        if self.demonstration:
            self._model: Any = self._offline()
            self._transform: Callable[[Any], Any] = offline_scorer.pixels
        else:
            self._open_clip()

    def _offline(self) -> offline_scorer.Scorer:
        from safetensors import SafetensorError

        try:
            return offline_scorer.load(self._device.type, self.config.pretrained)
        except (OSError, RuntimeError, SafetensorError) as err:
            said = " ".join(str(err).split())[:300]
            raise UserError(f"stages.scores.pretrained: {self.config.pretrained} holds no projections of offline-scorer: {said}") from err

    def _open_clip(self) -> None:
        torchvision_shim.ensure()
        import open_clip
        import torch
        from safetensors import SafetensorError

        asked: Precision = self.config.precision if self.config.precision != "auto" else ("bf16" if self._device.type == "cuda" else "fp32")
        name = f"local-dir:{self.config.model}" if Path(self.config.model).is_dir() else self.config.model
        weights = None if _brings_weights(self.config.model) else self.config.pretrained
        options = {"precision": asked, "device": self._device, "require_pretrained": True}
        try:  # weights_only: a checkpoint is data of strangers and must not run code
            model = open_clip.create_model(name, weights, weights_only=True, **options)
        except (OSError, RuntimeError, ValueError, KeyError, EOFError, SafetensorError, pickle.UnpicklingError) as err:
            said = " ".join(str(err).split())[:300]
            raise UserError(f"stages.scores: cannot load {self.config.model} ({weights or 'its own weights'}): {said}") from err
        preprocessing = open_clip.transform.PreprocessCfg(**model.visual.preprocess_cfg)
        self._transform = open_clip.transform.image_transform_v2(preprocessing, is_train=False)
        self._dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[asked]
        self._model = model.eval()
        if self._device.type == "cuda":
            self._model = self._model.to(memory_format=torch.channels_last)
        self._tokenizer = open_clip.get_tokenizer(name)

    def close(self) -> None:
        self._threads.shutdown()

    def __call__(self, table: pa.Table) -> pa.Table:
        made = [self._scored(table[at : at + self.config.batch]) for at in range(0, len(table), self.config.batch)]
        return pa.concat_tables(made)

    def _scored(self, table: pa.Table) -> pa.Table:
        """One batch; what cannot be decoded is left out of the model's batch."""
        pixels, faults = self._decoded(table["image"])
        good = [at for at, fault in enumerate(faults) if fault is None]
        captions = table["caption"].fill_null("").to_pylist()
        image, text = self._embed([pixels[at] for at in good], [captions[at] for at in good])
        index = np.full(len(table), -1)
        index[good] = np.arange(len(good))
        where = pa.array(index, mask=index < 0)
        table = table.append_column("similarity", pa.array(np.einsum("ij,ij->i", image, text), pa.float32()).take(where))
        if self.config.embeddings:
            for name, values in (("image_embedding", image), ("text_embedding", text)):
                table = table.append_column(name, _lists(values).take(where))
        return drop(table, pa.array([fault is not None for fault in faults]), "scores:undecodable", pa.array(faults, pa.string()))

    def _decoded(self, images: pa.ChunkedArray) -> tuple[list[Any], list[str | None]]:
        """Transformed images, each of shape (3, size, size), and for each what hindered it, if anything."""
        done = list(self._threads.map(self._decode, images))
        return [pixels for pixels, _ in done], [fault for _, fault in done]

    def _decode(self, image: pa.Scalar) -> tuple[Any, str | None]:
        from PIL import Image

        if not image.is_valid:
            return None, "there is no image"
        try:
            with Image.open(io.BytesIO(image.as_buffer())) as opened:
                return self._transform(opened.convert("RGB")), None
        except (OSError, ValueError, SyntaxError) as err:
            return None, f"{type(err).__name__}: {err}"

    def _embed(self, pixels: list[Any], captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Both embeddings, normalised, float32, shape (n, width)."""
        import torch

        if not pixels:
            return np.zeros((0, 1), np.float32), np.zeros((0, 1), np.float32)
        if self.demonstration:
            return self._model.embed_image(np.stack(pixels)), self._model.encode_text(captions)
        with torch.inference_mode():
            stacked = torch.stack(pixels).to(self._device, self._dtype, non_blocking=True)
            if self._device.type == "cuda":
                stacked = stacked.contiguous(memory_format=torch.channels_last)
            tokens = self._tokenizer(captions).to(self._device)
            image = self._model.encode_image(stacked, normalize=True).float().cpu().numpy()
            text = self._model.encode_text(tokens, normalize=True).float().cpu().numpy()
        return image, text


def _brings_weights(model: str) -> bool:
    return Path(model).is_dir() or model.startswith(("hf-hub:", "local-dir:"))


def _local_files(model: str, pretrained: str | None) -> list[str]:
    """The local files that make the model what it is: the folder's config and weights, or the file of weights."""
    folder = Path(model.removeprefix("local-dir:"))
    if folder.is_dir():
        return sorted(str(path) for path in folder.iterdir() if path.suffix in (*WEIGHTS, ".json") and path.is_file())
    return [pretrained] if pretrained and Path(pretrained).is_file() else []


def _lists(values: np.ndarray) -> pa.ListArray:
    """float16 lists, one a row."""
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.astype(np.float16).ravel()))
