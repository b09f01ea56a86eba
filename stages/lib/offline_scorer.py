"""The offline scorer: how well a caption fits a picture, by two small projections over frozen towers that Python packages carry.

For demonstration and research: the projections were learnt from Flickr8k and a few hundred web photographs, by shardmill's own
training stage (configs/train/offline_scorer.yaml); docs/models/offline_scorer.md has figures and limits. It answers as open_clip's
models do, needs neither open_clip nor the network, and is no CLIP.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stages.lib import offline_towers
from stages.lib.offline_towers import CLASSES, KEPT, POOLED, SIZE, WIDTH, ImageTower, TextTower

NAME = "offline-scorer"
VERSION = 2  # of the weights beside this file and of what is made of them; part of what cached scores and features go by
DESCRIBED_IN = "offline_scorer.json"  # in a folder of projections that training left
DEMONSTRATION = "demonstration scorer, learnt from Flickr8k: for trying things out and for research"
WEIGHTS = Path(__file__).with_suffix(".safetensors")
DIM = WIDTH + 4  # of embeddings: the common space, which is MiniLM's own, and what carries the nearness to all pictures or captions
RANK = 96  # of what the text projection adds
CLASS_RANK = 128  # of the class names' embeddings, as they are kept
CROWD, NEAREST, NEARNESS = 256, 3, 0.3  # pictures and captions kept; the nearest that count; weight of what is subtracted for them
TEXT, IMAGE = 0, 1  # sides of `_told_apart`
DROP, TEXT_DROP = 0.5, 0.1  # shares of features that a training step leaves out
missing = offline_towers.missing


def pixels(image: Image.Image) -> np.ndarray:
    """uint8[3, 224, 224], RGB: the whole picture, resized to the square whatever its shape, as in training."""
    if image.mode != "RGB":
        image = image.convert("RGB")
    if image.size != (SIZE, SIZE):
        image = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return np.asarray(image).transpose(2, 0, 1)


def network(device: str = "cpu", bias: bool = False, drop: float | None = None) -> Any:
    """The model with fresh projections, a torch module. Its towers are frozen and no part of its state.

    `bias`: with the sigmoid loss's bias (Zhai et al. 2023). `drop`: the share of features that training leaves out.
    """
    import torch
    from torch import nn
    from torch.nn import functional

    class Network(nn.Module):  # type: ignore[misc]
        """As open_clip's models: `encode_image`, `encode_text` and a forward pass that gives a dictionary."""

        remember = _remembered
        trunk = f"{NAME} {offline_towers.VERSION}"

        def __init__(self) -> None:
            super().__init__()
            share = DROP if drop is None else drop
            self.image_head = nn.Sequential(nn.LayerNorm(POOLED), nn.Dropout(share), nn.Linear(POOLED, WIDTH))
            self.text_norms = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in KEPT])
            self.text_head = nn.Sequential(nn.Dropout(TEXT_DROP), nn.Linear(WIDTH * len(KEPT), RANK, bias=False), nn.Linear(RANK, WIDTH))
            for parameter in self.text_head[-1].parameters():
                nn.init.zeros_(parameter)
            self.class_share = nn.Parameter(torch.tensor(0.5))
            self.register_buffer("class_text", torch.zeros(CLASSES, CLASS_RANK))
            self.register_buffer("class_basis", torch.zeros(CLASS_RANK, WIDTH))
            self.register_buffer("image_crowd", torch.zeros(CROWD, WIDTH))
            self.register_buffer("text_crowd", torch.zeros(CROWD, WIDTH))
            self.logit_scale = nn.Parameter(torch.tensor(math.log(10 if bias else 1 / 0.07)))
            self.logit_bias = nn.Parameter(torch.tensor(-10.0)) if bias else None
            self.to(device)

        def _text(self, features: Any) -> Any:
            """MiniLM's own features, and what is added to them (of low rank): words that training never met keep their places."""
            layers = [norm(part) for norm, part in zip(self.text_norms, features.split(WIDTH, 1), strict=True)]
            return functional.normalize(layers[-1] + self.text_head(torch.cat(layers, 1)), dim=-1)

        def _named(self, features: Any) -> Any:
            """The mean of the class names' embeddings, weighted by the tower's own ImageNet classifier."""
            with torch.no_grad():
                return _towers(device)[0].classes(features).softmax(-1) @ self.class_text @ self.class_basis

        def _image(self, projected: Any, named: Any) -> Any:
            return functional.normalize(functional.normalize(projected, dim=-1) + self.class_share * named, dim=-1)

        def trunk_image(self, image: Any) -> Any:
            """uint8[n, 3, 224, 224] -> float32[n, 1280]."""
            return _towers(device)[0](image)

        def trunk_text(self, text: Any) -> Any:
            """int64[n, length] -> float32[n, 768]."""
            return _towers(device)[1](text)

        def tokenize(self, texts: str | Sequence[str]) -> Any:
            """int64[n, longest]."""
            return _towers(device)[1].tokenize(texts)

        def encode_image(self, image: Any, normalize: bool = True) -> Any:
            """uint8[n, 3, 224, 224], or features of `trunk_image` -> float32[n, 388], normalised in any case: see `_told_apart`."""
            del normalize
            features = _seen(image, self.trunk_image)
            return _told_apart(self._image(self.image_head(features), self._named(features)), self.text_crowd, IMAGE)

        def encode_text(self, text: Any, normalize: bool = True) -> Any:
            """int64[n, length], or features of `trunk_text` -> float32[n, 388], normalised in any case: see `_told_apart`."""
            del normalize
            return _told_apart(self._text(_seen(text, self.trunk_text)), self.image_crowd, TEXT)

        def forward(self, image: Any = None, text: Any = None) -> dict[str, Any]:
            return _outputs(self, image, text)

    return Network()


def _seen(value: Any, trunk: Callable[[Any], Any]) -> Any:
    """What the frozen tower makes of pixels or tokens; features of it as they are."""
    return value if value.is_floating_point() else trunk(value)


def _told_apart(made: Any, crowd: Any, side: int) -> Any:
    """Embeddings float32[n, 384] -> float32[n, 388], normalised. `crowd`: embeddings of the other kind, float32[m, 384].

    near: the mean cosine to the NEAREST of the crowd, w: NEARNESS. The cosine of what is made of a picture and of a caption is
    (picture . caption - w near(picture) - w near(caption)) / (2 + w^2): what is close to many has to be closer to its own (cross-domain
    similarity local scaling, Conneau et al. 2018, in part). The last two values bring all to one length.
    """
    import torch
    from torch.nn import functional

    near = (made @ crowd.T).topk(NEAREST).values.mean(1)
    more = torch.zeros(len(made), 4, device=made.device)
    more[:, side], more[:, 1 - side] = -NEARNESS * near, 1
    more[:, 2 + side] = NEARNESS * (1 - near**2).clamp(min=0).sqrt()
    return functional.normalize(torch.cat([made, more], 1), dim=-1)


def _outputs(net: Any, image: Any, text: Any) -> dict[str, Any]:
    """As open_clip's `output_dict`; features float32[n, 384], without what `encode_image` and `encode_text` add to them.

    In training also what `remember` wants, without gradients.
    """
    out: dict[str, Any] = {"logit_scale": net.logit_scale.exp()}
    if image is not None:
        features = _seen(image, net.trunk_image)
        named = net._named(features)
        out["image_features"] = net._image(net.image_head(features), named)
        if net.training:
            norm, _, linear = net.image_head  # without its dropout
            out["image_seen"] = net._image(linear(norm(features.detach())), named).detach()
    if text is not None:
        out["text_features"] = net._text(_seen(text, net.trunk_text))
        if net.training:
            out["text_seen"] = out["text_features"].detach()
    if net.logit_bias is not None:
        out["logit_bias"] = net.logit_bias
    return out


def _remembered(net: Any, image: Any, text: Any) -> None:
    """Takes what a training step saw into the crowds: `image_seen` and `text_seen` of the whole batch, once a step."""
    _remember(net.image_crowd, image)
    _remember(net.text_crowd, text)


def _remember(crowd: Any, made: Any) -> None:
    """The crowd is what training saw last."""
    import torch

    crowd.copy_(torch.cat([made.detach().float(), crowd])[:CROWD])


@cache
def _towers(device: str) -> tuple[ImageTower, TextTower]:
    return ImageTower(device), TextTower(device)


def name_classes(net: Any, names: Sequence[str]) -> None:
    """Gives the network MiniLM's embeddings of the names of ImageNet's 1,000 classes, in their order, at a lower rank."""
    import torch
    from torch.nn import functional

    left, scale, right = torch.linalg.svd(
        functional.normalize(net.trunk_text(net.tokenize(names))[:, -WIDTH:], dim=-1), full_matrices=False
    )
    net.class_text.copy_(left[:, :CLASS_RANK] * scale[:CLASS_RANK])
    net.class_basis.copy_(right[:CLASS_RANK])


def read_weights(net: Any, path: str | Path) -> None:
    """Puts the projections of a safetensors file into the network. Raises OSError or RuntimeError for a file that is none."""
    from safetensors.torch import load_file

    found = {name: value.float() for name, value in load_file(str(path)).items()}
    net.load_state_dict({name: value for name, value in found.items() if name != "logit_bias" or net.logit_bias is not None})


def load(device: str = "cpu", weights: str | Path | None = None) -> Scorer:
    """The scorer with its committed projections, or those of another file. Raises ModuleNotFoundError for packages that lack."""
    if lacking := missing():
        raise ModuleNotFoundError(f"{NAME} needs {', '.join(lacking)}: docs/models/offline_scorer.md says how to install them")
    net = network(device)
    read_weights(net, weights or WEIGHTS)
    return Scorer(net.eval().requires_grad_(False), device)


class Scorer:
    """Embeds pictures and captions. Numbers depend in their last digits on what else is in a batch, as with every model."""

    demonstration = DEMONSTRATION

    def __init__(self, net: Any, device: str = "cpu") -> None:
        self.net, self.device = net, device
        self.about = {"model": NAME, "version": VERSION, "demonstration": DEMONSTRATION}

    def encode_image(self, images: Sequence[Image.Image]) -> np.ndarray:
        """float32[n, 388], normalised."""
        return self.embed_image(np.stack([pixels(image) for image in images])) if len(images) else np.zeros((0, DIM), np.float32)

    def embed_image(self, images: np.ndarray) -> np.ndarray:
        """uint8[n, 3, 224, 224], n > 0, as `pixels` makes them -> float32[n, 388], normalised."""
        import torch

        with torch.inference_mode():
            return np.asarray(self.net.encode_image(torch.from_numpy(images)).cpu().numpy())

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """float32[n, 388], normalised."""
        import torch

        if not texts:
            return np.zeros((0, DIM), np.float32)
        with torch.inference_mode():
            return np.asarray(self.net.encode_text(self.net.tokenize(texts)).cpu().numpy())
