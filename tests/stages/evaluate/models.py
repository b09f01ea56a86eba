"""Tiny models with random weights, as folders that open_clip loads."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from stages.lib import torchvision_shim

needs_clip = pytest.mark.skipif(not importlib.util.find_spec("open_clip"), reason="needs the extra clip: make test-all")

TEXT = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VISION = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
CLIP = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}
COCA = {
    "embed_dim": 32,
    "vision_cfg": {**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
    "text_cfg": {**TEXT, "context_length": 32, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    "custom_text": True,
}


def made(folder: Path, config: dict[str, Any], seed: int = 0) -> Path:
    """The folder, filled."""
    torchvision_shim.ensure()
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny-of-tests.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "tiny-of-tests.json")
    torch.manual_seed(seed)
    model = open_clip.create_model("tiny-of-tests")
    if hasattr(model, "text_decoder"):  # open_clip 3.3 leaves it as it was allocated
        torch.nn.init.normal_(model.text_decoder.text_projection)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    preprocess = {"mean": model.visual.image_mean, "std": model.visual.image_std}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return folder
