"""BLEU-4 and CIDEr against examples that other libraries publish; greedy decoding against a loop without batches or shortcuts."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import UserError
from stages.evaluate import captioning, scorers
from tests.stages.evaluate import models

needs_library = pytest.mark.skipif(not importlib.util.find_spec("pycocoevalcap"), reason="needs pycocoevalcap")


@needs_library
def test_cider_is_the_published_example_of_aac_metrics() -> None:
    """aac-metrics 0.6, README: {"cider_d": tensor(0.9614)}, its own implementation, tokens by Stanford's tokenizer."""
    references = [
        ["a man speaks.", "someone speaks.", "a man is speaking while a bird is chirping in the background"],
        ["rain is falling hard on a surface"],
    ]
    found = captioning.scored(["a man is speaking", "rain falls"], references)
    assert found["cider"] == pytest.approx(0.9614, abs=5e-5)


@needs_library
def test_bleu_is_the_published_example_of_nltk() -> None:
    """nltk.translate.bleu_score.corpus_bleu, docstring: 0.5920..., its own implementation."""
    written = [
        "It is a guide to action which ensures that the military always obeys the commands of the party",
        "he read the book because he was interested in world history",
    ]
    first = [
        "It is a guide to action that ensures that the military will forever heed Party commands",
        "It is the guiding principle which guarantees the military forces always being under the command of the Party",
        "It is the practical guide for the army always to heed the directions of the party",
    ]
    as_written = captioning.scored(written, [first, ["he was interested in world history because he read the book"]])
    # NLTK's example keeps the case, and so does not match Party with party; here all is in lower case, as on COCO's server.
    kept = [[text.replace("Party", "Partei") for text in first], ["he was interested in world history because he read the book"]]
    assert captioning.scored(written, kept)["bleu4"] == pytest.approx(0.5920, abs=2e-4)
    assert as_written["bleu4"] >= 0.5920


@needs_library
def test_the_very_references_score_highest() -> None:
    references = [[f"a {colour} dog runs over the {ground} lawn"] for colour in ("red", "black", "brown") for ground in ("wet", "dry")]
    found = captioning.scored([some[0] for some in references], references)
    assert found["bleu4"] == pytest.approx(1, abs=1e-6)
    assert found["cider"] == pytest.approx(10, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [  # right: Stanford PTBTokenizer 3.4.1 -lowerCase, punctuation removed, as pycocoevalcap calls it
        ("A boy wears Mr . Potato , isn't he ?", "a boy wears mr potato is n't he"),
        ("The dog's 2 well-known owners can't stop.", "the dog 's 2 well-known owners ca n't stop"),
        ("We cannot see the girl's T-shirt # 28 .", "we can not see the girl 's t-shirt # 28"),
        ("a five o'clock shadow & jeans", "a five o'clock shadow & jeans"),
        ('"Hello," they\'re saying!', "hello they 're saying"),
    ],
)
def test_tokens_are_stanfords(text: str, wanted: str) -> None:
    assert captioning.tokens(text) == wanted


def pictures(n: int) -> list[Image.Image]:
    rng = np.random.default_rng(1)
    return [Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)) for _ in range(n)]


@pytest.fixture(scope="module")
def coca(tmp_path_factory: pytest.TempPathFactory) -> Any:
    loaded = scorers.load(str(models.made(tmp_path_factory.mktemp("coca"), models.COCA, seed=3)))
    loaded.model.text_decoder.text_projection.data[:, 49407].mul_(4)  # so that captions end, and at different lengths
    return loaded


@models.needs_clip
def test_greedy_decoding_is_the_models_own_best_next_token(coca: Any) -> None:
    import torch

    some = coca.pixels(pictures(4) + [Image.new("RGB", (32, 32), colour) for colour in ("red", "white")])
    written = captioning.Captioner(coca).written(some)
    for pixels, tokens in zip(some, written, strict=True):
        text = [49406]
        with torch.no_grad():
            while len(text) < captioning.LONGEST - 1:
                logits = coca.model(pixels[None], torch.tensor([text]), output_labels=False)["logits"][0, -1]
                if len(text) < captioning.SHORTEST:
                    logits[49407] = -torch.inf
                text.append(int(logits.argmax()))
                if text[-1] == 49407:
                    break
        assert tokens == [token for token in text[1:] if token != 49407]
    assert len({len(tokens) for tokens in written}) > 1, "all of one length: the end was never tested"


@models.needs_clip
@pytest.mark.filterwarnings("ignore")
def test_greedy_decoding_is_open_clips(coca: Any) -> None:
    """Where there is a transformers that open_clip's generate works with (before 4.56)."""
    from open_clip import coca_model

    if not coca_model._has_transformers:
        pytest.skip("open_clip's generate needs a transformers older than 4.56")
    some = coca.pixels(pictures(8))
    rows = coca.model.generate(some, generation_type="top_k", top_k=1, seq_len=captioning.LONGEST).tolist()
    wanted = [[token for token in row[1:] if token not in (0, 49407)] for row in rows]
    assert captioning.Captioner(coca).written(some) == wanted


@models.needs_clip
def test_captions_are_text(coca: Any) -> None:
    written = captioning.Captioner(coca)(pictures(3))
    assert len(written) == 3
    assert all(text and "<" not in text for text in written)


@models.needs_clip
def test_a_model_that_writes_nothing_is_refused(tmp_path: Path) -> None:
    clip: Any = scorers.load(str(models.made(tmp_path, models.CLIP)))
    with pytest.raises(UserError, match="writes no captions; only CoCa models do"):
        captioning.Captioner(clip)


@models.needs_clip
def test_a_caption_is_no_longer_than_the_model_s_context(tmp_path: Path) -> None:
    """Texts of 6 tokens with both ends, where the decoder ends no caption by itself."""
    text, multimodal = ({**models.COCA[name], "context_length": 6} for name in ("text_cfg", "multimodal_cfg"))
    short = scorers.load(str(models.made(tmp_path / "short", {**models.COCA, "text_cfg": text, "multimodal_cfg": multimodal})))
    assert isinstance(short, scorers.OpenClip)
    short.model.text_decoder.text_projection.data[:, 49407].mul_(0)
    written = captioning.Captioner(short).written(short.pixels(pictures(3)))
    assert [len(tokens) for tokens in written] == [5, 5, 5]
