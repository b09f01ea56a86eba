"""How many tokens CLIP's text tower sees of a caption: open_clip's own tokenizer (byte-pair encoding, 49,408 entries), counted only.

The tokenizer's file is loaded without the rest of open_clip: no torchvision, no timm. It imports torch itself, so `clip` is needed.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.lib.text import settled

WORD_BYTES = 1000  # merging is quadratic in a word's bytes (0.07 s at 1,000), and no text that anyone means has such a word
TOKEN_BYTES = 32  # the longest entry of the vocabulary
_REMEMBERED = 500_000  # words whose length is kept; above, all are forgotten (the tokenizer's own memory would grow for ever)


class TokenCounter:
    """Counts as `len(SimpleTokenizer().encode(text)) + 2`: the start and end tokens stand in the context of 77 too.

    Raises ImportError where open_clip or torch is not installed.
    """

    def __init__(self) -> None:
        self._tokenizer = _simple_tokenizer()
        self._special = dict(self._tokenizer.cache)
        self._lengths: dict[str, int] = {}

    def count(self, texts: pa.StringArray, enough: int) -> pa.Int32Array:
        """Tokens of each cleaned text; null where a word has more than 1,000 bytes, or the bytes alone make it more than `enough`."""
        visible = pc.binary_length(pc.replace_substring(texts, " ", ""))
        readable = pc.less_equal(visible, TOKEN_BYTES * enough)
        held = texts.filter(readable)
        # Of open_clip's own cleaning (ftfy, unescape, white space, lower case) only the case can change such a text.
        known = pc.and_not(settled(held, plain=True), pc.match_substring(held, "&"))
        out: list[int | None] = [None] * len(texts)
        # A loop over rows: the tokenizer reads one text at a time.
        for row, text, lower in zip(np.flatnonzero(readable).tolist(), held.to_pylist(), known.to_pylist(), strict=True):
            out[row] = self._count(text.lower() if lower else self._tokenizer.clean_fn(text))
        return pa.array(out, pa.int32())

    def _count(self, text: str) -> int | None:
        total = 2
        for word in self._tokenizer.pat.findall(text):
            length = self._lengths.get(word) or self._length(word)
            if length is None:
                return None
            total += length
        return total

    def _length(self, word: str) -> int | None:
        raw = word.encode("utf-8")
        if len(raw) > WORD_BYTES:
            return None
        if len(self._lengths) >= _REMEMBERED:
            self._lengths.clear()
            self._tokenizer.cache = dict(self._special)
        pieces = self._tokenizer.bpe("".join(map(self._tokenizer.byte_encoder.__getitem__, raw)))
        length: int = pieces.count(" ") + 1
        self._lengths[word] = length
        return length


def _simple_tokenizer() -> Any:
    """open_clip.tokenizer.SimpleTokenizer, from its file alone: importing the package would import torchvision and timm too."""
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        raise ImportError("open_clip is not installed")
    spec = importlib.util.spec_from_file_location("_open_clip_tokenizer", Path(package.origin).parent / "tokenizer.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"open_clip at {package.origin} has no tokenizer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()
