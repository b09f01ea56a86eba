"""A model with two towers that embeds pictures and texts into one space: any of open_clip's, or the bundled offline scorer.

Faults of what was asked for are ModelError, which names the option at fault; a stage says it in its own words.
"""

from __future__ import annotations

import difflib
import importlib.util
import io
import pickle
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stages.lib import hub, offline_scorer, torchvision_shim

Precision = Literal["auto", "fp32", "bf16", "fp16"]
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


class ModelError(Exception):
    """What is wrong with a choice, and of which option: `model`, `pretrained`, `precision`, `gpus`, or "" where none is at fault."""

    def __init__(self, option: str, text: str) -> None:
        super().__init__(text)
        self.option, self.text = option, text


@dataclass(frozen=True)
class Choice:
    """Which model, by which weights. See `Scores.Config` for what each may be."""

    model: str
    pretrained: str | None = None
    precision: Precision = "auto"

    @property
    def demonstration(self) -> str | None:
        """What has to be said of the model in every output, where it is a stand-in."""
        return offline_scorer.DEMONSTRATION if self.model == offline_scorer.NAME else None

    @property
    def version(self) -> int:
        """Of what is made of the model; another release's weights of the bundled one give other numbers under another key."""
        return 1000 * offline_scorer.VERSION if self.demonstration else 0

    @property
    def brings_weights(self) -> bool:
        return Path(self.model).is_dir() or self.model.startswith(("hf-hub:", "local-dir:"))

    def files(self) -> list[str]:
        """The local files that make the model what it is: the folder's config and weights, or the file of weights."""
        folder = Path(self.model.removeprefix("local-dir:"))
        if folder.is_dir():
            return sorted(str(path) for path in folder.iterdir() if path.suffix in (*WEIGHTS, ".json") and path.is_file())
        return [self.pretrained] if self.pretrained and Path(self.pretrained).is_file() else []

    def check(self) -> None:
        """Raises ModelError for what is missing: the extra, the model's name, its weights."""
        if self.demonstration:
            self._check_offline()
            return
        if importlib.util.find_spec("open_clip") is None or importlib.util.find_spec("torch") is None:
            raise ModelError("", 'needs the extra clip: make setup EXTRAS=clip, or pip install "shardmill[clip]"')
        model, pretrained = self.model, self.pretrained
        if Path(model).is_dir() and not (Path(model) / "open_clip_config.json").is_file():
            raise ModelError("model", f"{model} has no open_clip_config.json; give a folder as open_clip's hub models have")
        if Path(model).is_dir() and not any(path.suffix in WEIGHTS for path in Path(model).iterdir()):
            raise ModelError("model", f"{model} holds no weights ({', '.join(WEIGHTS)}); a model without them judges nothing")
        if self.brings_weights or (pretrained and Path(pretrained).is_file()):
            return
        torchvision_shim.ensure()
        import open_clip

        tags = open_clip.list_pretrained_tags_by_model(model)
        if model not in open_clip.list_models():
            near = difflib.get_close_matches(model, open_clip.list_models(), n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ModelError("model", f"open_clip knows no model {model}, and there is no such folder{hint}")
        if pretrained not in tags:
            said = f"{pretrained!r} is none of" if pretrained else "a model without weights judges nothing; choose one of"
            raise ModelError("pretrained", f"{said} {model}'s weights: {', '.join(tags) or 'none'} (or a file)")

    def _check_offline(self) -> None:
        if lacking := offline_scorer.missing():
            raise ModelError("model", f"offline-scorer needs {', '.join(lacking)}; docs/models/offline_scorer.md says how to install them")
        if self.precision not in ("auto", "fp32"):
            raise ModelError("precision", f"offline-scorer computes in fp32; leave out precision: {self.precision}")
        if (given := self.pretrained) and not Path(given).is_file():
            raise ModelError("pretrained", f"{given} is no file; offline-scorer takes projections of its own training, or none")


class Towers:
    """A loaded model. Raises ModelError where it cannot be loaded; `close` when it is of no more use."""

    def __init__(self, choice: Choice, gpus: float = 0.0, threads: int = 1) -> None:
        choice.check()
        import torch

        self.choice = choice
        self.device = torch.device("cuda" if gpus and torch.cuda.is_available() else "cpu")
        if gpus and self.device.type == "cpu":
            raise ModelError("gpus", "torch sees no GPU here; install a CUDA torch (docs/install.md), or set gpus: 0")
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        if choice.demonstration:
            self.model: Any = self._offline()
            self.transform: Callable[[Any], Any] = offline_scorer.pixels
        else:
            self._open_clip()

    def _offline(self) -> offline_scorer.Scorer:
        from safetensors import SafetensorError

        try:
            return offline_scorer.load(self.device.type, self.choice.pretrained)
        except (OSError, RuntimeError, SafetensorError) as err:
            raise ModelError("pretrained", f"{self.choice.pretrained} holds no projections of offline-scorer: {_words(err)}") from err

    def _open_clip(self) -> None:
        torchvision_shim.ensure()
        import open_clip
        import torch
        from safetensors import SafetensorError

        choice = self.choice
        asked = choice.precision if choice.precision != "auto" else ("bf16" if self.device.type == "cuda" else "fp32")
        name = f"local-dir:{choice.model}" if Path(choice.model).is_dir() else choice.model
        weights = None if choice.brings_weights else choice.pretrained
        if away := hub.lacking(name):
            raise ModelError("model", away)
        options = {"precision": asked, "device": self.device, "require_pretrained": True}
        try:  # weights_only: a checkpoint is data of strangers and must not run code
            model = open_clip.create_model(name, weights, weights_only=True, **options)
        except (OSError, RuntimeError, ValueError, KeyError, EOFError, SafetensorError, pickle.UnpicklingError) as err:
            raise ModelError("", f"cannot load {choice.model} ({weights or 'its own weights'}): {_words(err)}") from err
        preprocessing = open_clip.transform.PreprocessCfg(**model.visual.preprocess_cfg)
        self.transform = open_clip.transform.image_transform_v2(preprocessing, is_train=False)
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[asked]
        self.model = model.eval()
        if self.device.type == "cuda":
            self.model = self.model.to(memory_format=torch.channels_last)
        self.tokenizer = open_clip.get_tokenizer(name)

    def close(self) -> None:
        self._threads.shutdown()

    def decoded(self, bodies: Iterable[memoryview | None]) -> tuple[list[Any], list[str | None]]:
        """Transformed pictures of encoded ones, and for each what hindered it, if anything."""
        done = list(self._threads.map(self._decode, bodies))
        return [pixels for pixels, _ in done], [fault for _, fault in done]

    def _decode(self, body: memoryview | None) -> tuple[Any, str | None]:
        from PIL import Image

        if body is None:
            return None, "there is no image"
        try:
            with Image.open(io.BytesIO(body)) as opened:
                return self.transform(opened.convert("RGB")), None
        except (OSError, ValueError, SyntaxError) as err:
            return None, f"{type(err).__name__}: {err}"

    def embed_images(self, pixels: Sequence[Any]) -> np.ndarray:
        """Normalised embeddings of transformed pictures, float32, shape (n, width); (0, 1) of none."""
        import torch

        if not len(pixels):
            return np.zeros((0, 1), np.float32)
        if self.choice.demonstration:
            return np.asarray(self.model.embed_image(np.stack(pixels)))
        with torch.inference_mode():
            stacked = torch.stack(list(pixels)).to(self.device, self.dtype, non_blocking=True)
            if self.device.type == "cuda":
                stacked = stacked.contiguous(memory_format=torch.channels_last)
            return np.asarray(self.model.encode_image(stacked, normalize=True).float().cpu().numpy())

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Normalised embeddings, float32, shape (n, width); (0, 1) of none."""
        import torch

        if not len(texts):
            return np.zeros((0, 1), np.float32)
        if self.choice.demonstration:
            return np.asarray(self.model.encode_text(list(texts)))
        with torch.inference_mode():
            tokens = self.tokenizer(list(texts)).to(self.device)
            return np.asarray(self.model.encode_text(tokens, normalize=True).float().cpu().numpy())


def _words(err: Exception) -> str:
    return " ".join(str(err).split())[:300]
