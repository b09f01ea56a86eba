"""Zero-shot classification: open_clip's classifier from any scorer, templates of the user's own, figures by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import UserError
from stages.evaluate import zeroshot
from stages.lib import torchvision_shim
from tests.stages.evaluate import models


class Words:
    """A scorer whose text vectors follow from the text's hash."""

    about: dict[str, Any] = {}

    def encode_image(self, images: Sequence[Image.Image]) -> np.ndarray:
        raise NotImplementedError

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") for text in texts]
        return np.stack([np.random.default_rng(seed).normal(size=8) for seed in seeds]).astype(np.float32)


@models.needs_clip
def test_a_class_is_the_mean_of_its_prompts() -> None:
    prompts = zeroshot.templates("mine.txt", "a photo of a {}.\n\na {c}, drawn\n")
    classes = [f"thing {n}" for n in range(23)]  # more than the builder takes at a time
    found = zeroshot.classifier(Words(), classes, prompts)
    for name, vector in zip(classes, found, strict=True):
        some = Words().encode_text([f"a photo of a {name}.", f"a {name}, drawn"])
        mean = (some / np.linalg.norm(some, axis=1, keepdims=True)).mean(axis=0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)


@models.needs_clip
def test_the_classifier_of_an_open_clip_model_is_open_clips(tmp_path: Path) -> None:
    folder = models.made(tmp_path, models.CLIP)
    torchvision_shim.ensure()
    import open_clip

    from stages.evaluate import scorers

    model = open_clip.create_model(f"local-dir:{folder}").eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    classes = ["dog", "cat", "boat"]
    wanted = open_clip.build_zero_shot_classifier(model, tokenizer, classes, open_clip.SIMPLE_IMAGENET_TEMPLATES).numpy().T
    found = zeroshot.classifier(scorers.load(str(folder)), classes, zeroshot.templates("simple"))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert [len(zeroshot.templates(name)) for name in ("openai", "simple", "plain")] == [80, 7, 1]


@pytest.mark.parametrize(("text", "said"), [("a photo of a dog\n", "'a photo of a dog' has no {}"), ("\n", "holds no templates")])
def test_templates_without_a_place_for_the_class_are_refused(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        zeroshot.templates("mine.txt", text)


@models.needs_clip
def test_unknown_templates_are_refused() -> None:
    with pytest.raises(UserError, match="neither a file nor one of openai, simple, plain"):
        zeroshot.templates("opanai")


def test_figures_worked_out_by_hand() -> None:
    # Seven classes along the axes; class 0 has three images of which two are right, class 1 one that is wrong, the others none.
    weights = np.eye(7, dtype=np.float32)
    image = np.zeros((4, 7), np.float32)
    image[0, 0] = image[1, 0] = 1
    image[2] = [0.1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4]  # class 0 is the last of seven
    image[3] = [0.2, 0.1, 0.9, 0, 0, 0, 0]  # class 1 is the third
    found = zeroshot.figures(image, np.array([0, 0, 0, 1]), weights)
    assert (found["top1"], found["top5"]) == (0.5, 0.75)
    assert found["mean_per_class"] == pytest.approx((2 / 3 + 0) / 2)
    assert (found["images"], found["classes"], found["classes_seen"]) == (4, 7, 2)


def test_all_classes_alike_is_never_right_and_five_classes_have_no_top5() -> None:
    found = zeroshot.figures(np.ones((3, 2), np.float32), np.array([0, 1, 2]), np.ones((5, 2), np.float32))
    assert found["top1"] == 0.0
    assert "top5" not in found


@given(st.integers(0, 1000), st.integers(1, 30))
@settings(max_examples=50)
def test_top_k_is_that_of_a_sort(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    image, weights = rng.normal(size=(n, 5)).astype(np.float32), rng.normal(size=(9, 5)).astype(np.float32)
    labels = rng.integers(0, 9, n)
    best = np.argsort(-(image @ weights.T), axis=1)
    found = zeroshot.figures(image, labels, weights)
    assert found["top1"] == pytest.approx(np.mean(best[:, 0] == labels))
    assert found["top5"] == pytest.approx(np.mean([label in row[:5] for label, row in zip(labels, best, strict=True)]))
