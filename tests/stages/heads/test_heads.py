"""Heads on embeddings: against torch's own layers, and one that was trained here to know a picture when it sees one."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import pipeline
from pipeline.catalog import entry
from pipeline.errors import UserError
from pipeline.keys import ingredients

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs the extra clip or scorer")
EMBEDDING = pa.list_(pa.float16())


def embeddings(n: int, width: int, seed: int = 0) -> np.ndarray:
    made = np.random.default_rng(seed).normal(size=(n, width))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float16)


def judged(given: np.ndarray, **head: Any) -> list[float | None]:
    table = pa.table({"image_embedding": pa.array([*given, None], EMBEDDING)})
    out: list[float | None] = pipeline.use("heads", heads={"verdict": head})(table)["verdict"].to_pylist()
    return out


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("between", ["none", "relu", "gelu"])
def test_a_stack_of_twelve_layers_says_what_torch_says(tmp_path: Path, suffix: str, between: str) -> None:
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    act = {"none": torch.nn.Dropout, "relu": torch.nn.ReLU, "gelu": torch.nn.GELU}[between]
    sizes = [16, *range(20, 9, -1), 3]  # so many that names in the order of letters would be wrong
    parts = [part for at in range(12) for part in (torch.nn.Linear(sizes[at], sizes[at + 1], bias=at % 2 == 0), act())][:-1]
    net = torch.nn.Sequential(*parts).eval()
    path = tmp_path / f"head{suffix}"
    state = {f"layers.{key}": value for key, value in net.state_dict().items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    given = embeddings(5, 16)
    with torch.inference_mode():
        wanted = torch.softmax(net(torch.from_numpy(given.astype(np.float32))), 1)[:, 2].numpy()
    found = judged(given, file=str(path), between=between, output="softmax", index=2)
    np.testing.assert_allclose(np.array(found[:-1], dtype=np.float32), wanted, rtol=1e-4)
    assert found[-1] is None, "no embedding, no judgement"


def test_what_is_no_head_is_refused_and_another_file_is_another_key(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "head.safetensors"
    one = {"heads": {"verdict": {"file": str(path)}}}
    with pytest.raises(UserError, match="there is no"):
        entry("heads", one)
    path.write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot be read"):
        entry("heads", one).stage.check_ready()  # type: ignore[attr-defined]
    save_file({"scale": np.ones(3, np.float32)}, path)
    with pytest.raises(UserError, match="no linear layer"):
        entry("heads", one).stage.check_ready()  # type: ignore[attr-defined]
    save_file({"0.weight": np.ones((4, 8), np.float32), "1.weight": np.ones((1, 5), np.float32)}, path)
    with pytest.raises(UserError, match="no stack"):
        entry("heads", one).stage.check_ready()  # type: ignore[attr-defined]
    save_file({"weight": np.ones((1, 8), np.float32)}, path)
    with pytest.raises(UserError, match="index"):
        entry("heads", {"heads": {"verdict": {"file": str(path), "index": 1}}}).stage.check_ready()  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="takes 8 values, the embedding has 4"):
        judged(embeddings(1, 4), file=str(path))
    with pytest.raises(UserError, match="lower-case"):
        entry("heads", {"heads": {"Is NSFW?": {"file": str(path)}}})
    before = ingredients([entry("heads", one)])
    save_file({"weight": np.zeros((1, 8), np.float32)}, path)
    assert ingredients([entry("heads", one)]) != before


def test_a_checkpoint_that_would_run_code_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "head.pt").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    with pytest.raises(UserError, match="cannot be read"):
        entry("heads", {"heads": {"x": {"file": str(tmp_path / "head.pt")}}}).stage.open()
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_a_head_that_was_trained_on_the_offline_scorer_fires_on_pictures_that_it_never_saw(tmp_path: Path, data_dir: Path) -> None:
    """Dogs against everything else, by the captions of Flickr8k: a linear head learnt on train photographs, asked on val ones."""
    import csv

    from PIL import Image
    from safetensors.numpy import save_file
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    from stages.lib import offline_scorer

    if offline_scorer.missing():
        pytest.skip("needs the extra scorer")
    flickr = data_dir / "flickr8k"
    captions: dict[str, list[str]] = {}
    with (flickr / "captions.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            captions.setdefault(row["image"], []).append(f" {row['caption'].lower()} ")
    scorer = offline_scorer.load()

    def embedded(split: str, most: int) -> tuple[np.ndarray, np.ndarray]:
        paths = sorted((flickr / split).glob("*.jpg"))[:most]
        images = [Image.open(io.BytesIO(path.read_bytes())).convert("RGB") for path in paths]
        return scorer.encode_image(images), np.array([sum(" dog" in text for text in captions[path.name]) >= 3 for path in paths])

    known, dogs = embedded("train", 200)
    learnt = LogisticRegression(C=100).fit(known, dogs)
    save_file({"weight": learnt.coef_.astype(np.float32), "bias": learnt.intercept_.astype(np.float32)}, tmp_path / "dog.safetensors")
    asked, truth = embedded("val", 150)
    said = judged(asked.astype(np.float16), file=str(tmp_path / "dog.safetensors"), output="sigmoid")[:-1]
    assert roc_auc_score(truth, said) > 0.95
