"""Captions by a CoCa model, and what they are worth: BLEU-4 and CIDEr.

Decoding is greedy, in a loop of ours: `open_clip.CoCa.generate` (3.3) refuses to work without transformers, and with its version 5,
whatever the generation type. The loop gives what `generate(generation_type="top_k", top_k=1)` gives (30 tokens at most, 5 at least).

The scores are those of pycocoevalcap 1.2: the COCO evaluation server's own code (BSD), by which the published figures were made.
Others were weighed: aac-metrics computes the same and is younger, but brings transformers, sentence-transformers and msclap; sacrebleu
is better kept, but has no CIDEr. Its wheel is large (104 MB, mostly Java for METEOR and SPICE, unused here), hence optional. "CIDEr" is
what everybody calls by that name: CIDEr-D (clipped, with a length penalty), times 10; with idf from the references given.

Its tokenizer is Java's; `tokens` does the same for plain English: of 37,333 captions (Flickr8k and 378 web photographs) 37,294 come
out as by Stanford's PTBTokenizer with punctuation removed; abbreviations ("Mr.") and brackets ("-lrb-") differ.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pipeline.errors import UserError
from stages.evaluate.scorers import OpenClip

LONGEST, SHORTEST = 30, 5  # tokens with both ends, as open_clip's generate; where the model's context is shorter, it is the bound
AT_ONCE = 16  # images decoded together: their logits, of every position, take 90 MB
WORDS = re.compile(
    r"(?:n't|'(?:s|re|ve|ll|d|m))(?!\w)"  # clitics stand alone: do n't, dog 's
    r"|can(?=not\b)|(?<=can)not\b"
    r"|\w+?(?=n't(?!\w))|\w+(?:[-./,]\w+|'(?!(?:s|re|ve|ll|d|m)(?!\w))\w+)*|[#&]"
)


def ready() -> bool:
    """Whether the library of the scores is there."""
    return importlib.util.find_spec("pycocoevalcap") is not None


def tokens(text: str) -> str:
    """Lower-case words joined by blanks, clitics apart, punctuation gone."""
    return " ".join(WORDS.findall(text.lower().replace("’", "'")))


def scored(written: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float | int]:
    """BLEU-4 (0 to 1) and CIDEr (0 to 10) over all images: one written caption and one or more references each."""
    if not ready():
        raise UserError("captioning: needs pycocoevalcap: pip install pycocoevalcap==1.2")
    bleu = importlib.import_module("pycocoevalcap.bleu.bleu").Bleu(4)
    cider = importlib.import_module("pycocoevalcap.cider.cider").Cider()
    given = {at: [tokens(one) for one in some] for at, some in enumerate(references)}
    made = {at: [tokens(one)] for at, one in enumerate(written)}
    return {
        "images": len(made),
        "bleu4": float(bleu.compute_score(given, made, verbose=0)[0][3]),
        "cider": float(cider.compute_score(given, made)[0]),
    }


@dataclass(frozen=True)
class Captioner:
    """Writes one caption an image by greedy decoding."""

    scorer: OpenClip

    def __post_init__(self) -> None:
        if not self.scorer.captions:
            raise UserError(f"captioning: {self.scorer.about.get('model')} writes no captions; only CoCa models do")
        if not hasattr(self.scorer.tokenizer, "sot_token_id"):
            raise UserError(f"captioning: the tokenizer of {self.scorer.about.get('model')} names no start token")

    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        groups = (images[at : at + AT_ONCE] for at in range(0, len(images), AT_ONCE))
        rows = [row for group in groups for row in self.written(self.scorer.pixels(group))]
        return [" ".join(self.scorer.tokenizer.decode(row).split()) for row in rows]

    def written(self, pixels: Any) -> list[list[int]]:
        """Tokens of each image's caption without start and end."""
        import torch

        model, end = self.scorer.model, self.scorer.tokenizer.eot_token_id
        longest = min(LONGEST - 1, self.scorer.tokenizer.context_length, model.text_decoder.context_length)
        with torch.inference_mode():
            latent, embedded = model._encode_image(pixels)
            text = torch.full((len(pixels), 1), self.scorer.tokenizer.sot_token_id, device=pixels.device)
            done = torch.zeros(len(pixels), dtype=torch.bool, device=pixels.device)
            while text.shape[1] < longest and not bool(done.all()):
                logits = model(None, text, image_latent=latent, image_embs=embedded, output_labels=False)["logits"][:, -1]
                if text.shape[1] < SHORTEST:
                    logits[:, end] = -torch.inf
                chosen = torch.where(done, end, logits.argmax(dim=-1))
                done |= chosen == end
                text = torch.cat([text, chosen[:, None]], dim=1)
        rows = text[:, 1:].cpu().numpy()
        return [row[: _first(row == end)].tolist() for row in rows]


def _first(found: np.ndarray) -> int:
    return int(found.argmax()) if found.any() else len(found)
