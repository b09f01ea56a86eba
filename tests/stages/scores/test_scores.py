"""The score stage against open_clip's own encode, normalise and dot, with a random model saved as a local folder."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import pipeline
from pipeline.catalog import entry
from pipeline.errors import UserError
from stages.lib import torchvision_shim

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("open_clip"), reason="needs the extra clip: make test-all")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random ViT-B-32 as open_clip's hub models lie on disk."""
    torchvision_shim.ensure()
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(3)
    made = tmp_path_factory.mktemp("model")
    model = open_clip.create_model("ViT-B-32")
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, made / "open_clip_model.safetensors")
    visual = {"mean": model.visual.image_mean, "std": model.visual.image_std}
    config = {"model_cfg": open_clip.get_model_config("ViT-B-32"), "preprocess_cfg": visual}
    (made / "open_clip_config.json").write_text(json.dumps(config))
    return made


def pairs(n: int) -> pa.Table:
    rng = np.random.default_rng(5)
    images = []
    for at in range(n):
        small = rng.integers(0, 256, (7, 7, 3), np.uint8)
        out = io.BytesIO()
        Image.fromarray(small).resize((224, 224 + at % 3)).save(out, "JPEG", quality=95)
        images.append(out.getvalue())
    captions = [f"picture number {at}, {'red' if at % 2 else 'blue'} and {'large' if at % 3 else 'small'}" for at in range(n)]
    return pa.table({"image": pa.array(images, pa.large_binary()), "caption": pa.array(captions, pa.string())})


def by_open_clip(folder: Path, table: pa.Table) -> np.ndarray:
    import open_clip
    import torch

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    with torch.no_grad():
        stacked = torch.stack([transform(Image.open(io.BytesIO(image)).convert("RGB")) for image in table["image"].to_pylist()])
        image = model.encode_image(stacked)
        text = model.encode_text(tokenizer(table["caption"].to_pylist()))
        image, text = image / image.norm(dim=-1, keepdim=True), text / text.norm(dim=-1, keepdim=True)
        return np.asarray((image * text).sum(dim=-1))


@pytest.mark.slow
def test_similarity_is_open_clips_own_on_100_pairs(folder: Path) -> None:
    table = pairs(100)
    out = pipeline.use("scores", model=str(folder), batch=32)(table)
    assert out["fate"].to_pylist() == ["kept"] * 100
    ours = out["similarity"].to_numpy()
    assert np.ptp(ours) > 1e-3, "all the same: nothing was compared"
    np.testing.assert_allclose(ours, by_open_clip(folder, table), atol=1e-5)


def test_a_clips_similarity_is_the_mean_of_open_clips_own_over_its_frames(folder: Path) -> None:
    table = pairs(4)
    bodies = table["image"].to_pylist()
    clips = pa.table(
        {"frames": pa.array([bodies[:3], bodies[3:]], pa.list_(pa.large_binary())), "caption": ["picture number 0", "picture number 3"]}
    )
    single = pa.table({"image": pa.array(bodies, pa.large_binary()), "caption": 3 * ["picture number 0"] + ["picture number 3"]})
    found = pipeline.use("scores", model=str(folder), media="frames", batch=2)(clips)["similarity"].to_numpy()
    wanted = by_open_clip(folder, single)
    np.testing.assert_allclose(found, [wanted[:3].mean(), wanted[3]], atol=1e-5)


def test_embeddings_are_kept_and_a_broken_image_costs_one_row(folder: Path) -> None:
    table = pairs(6)
    broken = table.set_column(0, "image", pa.array([*table["image"].to_pylist()[:5], b"\xff\xd8 no picture"], pa.large_binary()))
    out = pipeline.use("scores", model=str(folder), batch=4, embeddings=True)(broken)
    assert out["fate"].to_pylist() == ["kept"] * 5 + ["scores:undecodable"]
    assert out["similarity"].null_count == 1
    image, text = (np.array(out[name].to_pylist()[:5], dtype=np.float32) for name in ("image_embedding", "text_embedding"))
    assert image.shape == text.shape == (5, 512)
    np.testing.assert_allclose((image * text).sum(axis=1), out["similarity"].to_numpy()[:5].astype(np.float32), atol=2e-3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "ViT-B-33"}, r"knows no model ViT-B-33.*did you mean ViT-B-32"),
        ({"model": "ViT-B-32"}, r"without weights judges nothing.*openai"),
        ({"model": "ViT-B-32", "pretrained": "opanai"}, r"none of ViT-B-32's weights"),
        ({"model": "."}, r"no open_clip_config.json"),
    ],
)
def test_what_cannot_judge_is_refused_before_the_run(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        entry("scores", options).stage.check_ready()  # type: ignore[attr-defined]


def test_a_model_without_weights_judges_nothing(folder: Path, tmp_path: Path) -> None:
    """open_clip itself would say a word in its log and go on with random numbers."""
    (tmp_path / "open_clip_config.json").write_bytes((folder / "open_clip_config.json").read_bytes())
    with pytest.raises(UserError, match="holds no weights"):
        entry("scores", {"model": str(tmp_path)}).stage.check_ready()  # type: ignore[attr-defined]
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot load"):
        entry("scores", {"model": str(tmp_path)}).stage.open()
    (tmp_path / "w.pt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UserError, match="cannot load"):
        entry("scores", {"model": "ViT-B-32", "pretrained": str(tmp_path / "w.pt")}).stage.open()
