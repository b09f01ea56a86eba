"""What is evaluated: anything that embeds images and texts into one space, by the name a user gives it.

An open_clip model (a name and the tag or file of its weights, or a folder as open_clip's hub models have), a checkpoint of our own
training, or the bundled `offline-scorer`. Figures are computed from embeddings alone, so that all are measured by the same code.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import fsspec
import numpy as np
from PIL import Image

from pipeline.errors import ShardmillError, UserError
from stages.lib import hub, offline_scorer, torchvision_shim
from stages.train.checkpoint import WEIGHTS

THREADS = min(8, os.cpu_count() or 1)  # that decode and transform images
OFFLINE = "offline-scorer"
CONFIG = "open_clip_config.json"
SCHEMAS = ("hf-hub:", "local-dir:")  # names that bring their weights
BELOW = ("", "model/", "train/model/")  # where a model's folder may lie: itself, a training's folder, a run's


class Scorer(Protocol):
    """Embeds a batch. Rows need no normalising: whoever compares does it. `about` says what it is, for eval.json."""

    about: dict[str, Any]

    def encode_image(self, images: Sequence[Image.Image]) -> np.ndarray:
        """float32[n, d] of n RGB images."""
        ...

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """float32[n, d]."""
        ...


@dataclass
class OpenClip:
    """A model of open_clip's interface in evaluation mode, with its transform and tokenizer."""

    model: Any
    transform: Any
    tokenizer: Any
    about: dict[str, Any]
    device: str = "cpu"

    def pixels(self, images: Sequence[Image.Image]) -> Any:
        """Transformed images, a tensor [n, 3, height, width] of the model's own type on its device."""
        import torch

        dtype = next(parameter.dtype for parameter in self.model.parameters() if parameter.is_floating_point())
        with ThreadPoolExecutor(THREADS) as pool:
            return torch.stack(list(pool.map(self.transform, images))).to(self.device, dtype)

    def encode_image(self, images: Sequence[Image.Image]) -> np.ndarray:
        import torch

        with torch.inference_mode():
            return np.asarray(self.model.encode_image(self.pixels(images)).float().cpu().numpy())

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        import torch

        with torch.inference_mode():
            return np.asarray(self.model.encode_text(self.tokenizer(list(texts)).to(self.device)).float().cpu().numpy())

    @property
    def captions(self) -> bool:
        """Whether the model writes captions (CoCa)."""
        return hasattr(self.model, "text_decoder")


def load(name: str, pretrained: str | None = None, device: str = "cpu", storage_options: dict[str, Any] | None = None) -> Scorer:
    """The scorer of this name: see the module. `storage_options`: fsspec's, for a folder at a URL.

    Raises UserError for what is not there, or cannot be loaded.
    """
    check_ready()
    torchvision_shim.ensure()
    _check_device(device)
    if name == OFFLINE:
        return _offline(pretrained, device)
    with _local(name, storage_options or {}) as folder:
        if pretrained and (folder or name.startswith(SCHEMAS)):
            raise UserError(f"eval: --pretrained {pretrained}: {name} brings its own weights; leave it out")
        if folder and (Path(folder) / offline_scorer.DESCRIBED_IN).is_file():
            scorer = _offline(f"{folder}/{WEIGHTS}", device)
            scorer.about = {**scorer.about, "weights": name}
            return scorer
        return _open_clip(name, folder, pretrained, device)


def check_ready() -> None:
    """Raises UserError where the extra is not installed."""
    if importlib.util.find_spec("open_clip") is None or importlib.util.find_spec("torch") is None:
        raise UserError('eval: needs the extra clip: make setup EXTRAS=clip, or pip install "shardmill[clip]"')


def _check_device(device: str) -> None:
    import torch

    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as err:  # no such device, no driver, a torch without it
        said = " ".join(str(err).split())[:200]
        raise UserError(f"eval: --device {device}: torch cannot use it: {said}; give cpu, or leave it out") from err


def _offline(pretrained: str | None, device: str) -> Scorer:
    from safetensors import SafetensorError

    try:
        scorer: Scorer = offline_scorer.load(device, pretrained)
    except ModuleNotFoundError as err:
        raise UserError(f"eval: {err}") from err
    except (OSError, RuntimeError, SafetensorError) as err:
        said = " ".join(str(err).split())[:300]
        raise UserError(f"eval: {pretrained or OFFLINE}: no weights of the offline scorer: {said}") from err
    return scorer


def _open_clip(name: str, folder: str | None, pretrained: str | None, device: str) -> OpenClip:
    import open_clip

    from stages.train import models

    models.register()
    full = f"local-dir:{folder}" if folder else name
    brings = full.startswith(SCHEMAS)
    if not brings:
        _check_weights(name, pretrained)
    if away := hub.lacking(full):
        raise UserError(f"eval: {away}")
    with models.hushed(), models.asked(f"eval: open_clip cannot load {name} ({'its own weights' if brings else pretrained})"):
        # weights_only: a checkpoint is a stranger's data and must not run code. require_pretrained: else a folder without gets random ones.
        model, _, transform = open_clip.create_model_and_transforms(
            full, pretrained=pretrained, device=device, weights_only=True, require_pretrained=True, output_dict=True
        )
        tokenizer = open_clip.get_tokenizer(full)
    about = {"model": name, "pretrained": pretrained, "parameters": sum(p.numel() for p in model.parameters())}
    return OpenClip(model.eval(), transform, tokenizer, about, device)


def found_folder(name: str, storage_options: dict[str, Any] | None = None) -> str | None:
    """The model's folder below `name`: itself, or what training left of a training or a run there; None where `name` is no folder.

    Raises UserError for a folder without a model, and where its storage refuses it.
    """
    if "://" not in name and not Path(name).is_dir():
        return None
    with answered(name):
        fs, root = fsspec.core.url_to_fs(name, **(storage_options or {}))
        for below in BELOW:
            if any(fs.exists(f"{root.rstrip('/')}/{below}{file}") for file in (CONFIG, offline_scorer.DESCRIBED_IN)):
                return f"{name.rstrip('/')}/{below}".rstrip("/")
    raise UserError(f"{name}: has no {CONFIG}, as open_clip's hub models have, nor {' nor '.join(BELOW[1:])} of shardmill train")


@contextmanager
def answered(name: str) -> Iterator[None]:
    """Turns what a file system or its client library raises into a UserError; that nothing is there passes."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, ShardmillError):
        raise
    except Exception as err:  # no credentials, no endpoint, no client: each library has errors of its own
        said = " ".join(str(err).split())[:300]
        mend = "check the URL, its endpoint and keys (storage options, or the environment)"
        raise UserError(f"eval: {name}: cannot be read: {type(err).__name__}: {said}; {mend}") from err


@contextmanager
def _local(name: str, storage_options: dict[str, Any]) -> Iterator[str | None]:
    """A local copy of the model's folder for the time of the block (the folder itself, if it is local); None: `name` is no folder."""
    folder = found_folder(name, storage_options)
    if folder is None or "://" not in folder:
        yield folder
        return
    with tempfile.TemporaryDirectory() as copy:
        with answered(name):
            fs, root = fsspec.core.url_to_fs(folder, **storage_options)
            for path in fs.find(root):
                target = Path(copy) / path[len(root) + 1 :]
                target.parent.mkdir(parents=True, exist_ok=True)
                fs.get_file(path, str(target))
        yield copy


def _check_weights(name: str, pretrained: str | None) -> None:
    import difflib

    import open_clip

    known = open_clip.list_models()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"eval: open_clip knows no model {name}, and there is no such folder{hint}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not (pretrained and Path(pretrained).is_file()) and pretrained not in tags:
        said = f"{pretrained!r} is none of" if pretrained else "a model without weights answers nothing; choose by --pretrained one of"
        raise UserError(f"eval: {said} {name}'s weights: {', '.join(tags) or 'none'} (or a file)")
