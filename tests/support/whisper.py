"""Whisper models of the true architecture whose weights are made here, as folders that faster-whisper reads.

`random` has weights of chance: it shows the way from a film to cues, its words mean nothing. `trained` knows twelve words, each a chord of
two tones (`spoken`), which it learns in minutes on a CPU (torch): with it words and times can be checked.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

RATE = 16_000
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
POSITIONS, CONTEXT, MELS = 1500, 448, 80
TEXT = 50_257  # text tokens of the multilingual models


@dataclass(frozen=True)
class Size:
    """Of a model: width, heads, and layers of encoder and decoder."""

    width: int
    heads: int
    encoder: int
    decoder: int


def tokens(multilingual: bool) -> list[str]:
    """The vocabulary: bytes, the words, special tokens, and times of 0.02 s; a multilingual one in the places of the real ones."""
    from tokenizers.pre_tokenizers import ByteLevel

    text = sorted(ByteLevel.alphabet())
    text += [f"Ġ{word}"[:n] for word in WORDS for n in range(2, len(word) + 2) if f"Ġ{word}"[:n] not in text]
    text = list(dict.fromkeys(text))
    fill = [*(f"Ġfill{n}" for n in range(TEXT - 1 - len(text))), ""] if multilingual else []  # CTranslate2 knows them by the empty token
    return [*text, *fill, *special(multilingual), *(f"<|{n * 0.02:.2f}|>" for n in range(POSITIONS + 1))]


def languages() -> list[str]:
    from faster_whisper.tokenizer import _LANGUAGE_CODES

    return list(_LANGUAGE_CODES[:99])


def special(multilingual: bool) -> list[str]:
    names = ["endoftext", "startoftranscript", *(languages() if multilingual else []), "translate", "transcribe", "startoflm"]
    return [f"<|{name}|>" for name in (*names, "startofprev", "nocaptions", "notimestamps")]


def shapes(size: Size, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of each weight."""
    wide = size.width
    out: dict[str, tuple[int, ...]] = {
        "encoder.conv1.weight": (wide, MELS, 3),
        "encoder.conv1.bias": (wide,),
        "encoder.conv2.weight": (wide, wide, 3),
        "encoder.conv2.bias": (wide,),
        "encoder.positions": (POSITIONS, wide),
        "decoder.positions": (CONTEXT, wide),
        "decoder.tokens": (vocabulary, wide),
    }
    for side, layers, blocks in (("encoder", size.encoder, ("self",)), ("decoder", size.decoder, ("self", "cross"))):
        out |= _norm(f"{side}.norm", wide)
        for n in range(layers):
            for block in blocks:
                out |= _norm(f"{side}.{n}.{block}.norm", wide)
                for name in ("q", "k", "v", "out"):
                    out[f"{side}.{n}.{block}.{name}.weight"] = (wide, wide)
                    out[f"{side}.{n}.{block}.{name}.bias"] = (wide,)
            out |= _norm(f"{side}.{n}.norm", wide)
            out |= {f"{side}.{n}.up.weight": (4 * wide, wide), f"{side}.{n}.up.bias": (4 * wide,)}
            out |= {f"{side}.{n}.down.weight": (wide, 4 * wide), f"{side}.{n}.down.bias": (wide,)}
    return out


def _norm(name: str, wide: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.gamma": (wide,), f"{name}.beta": (wide,)}


def waves(length: int, wide: int) -> np.ndarray:
    """Whisper's places: sines and cosines."""
    steps = np.exp(-math.log(10_000) / (wide // 2 - 1) * np.arange(wide // 2))
    angles = np.arange(length)[:, None] * steps[None]
    return np.concatenate([np.sin(angles), np.cos(angles)], 1).astype(np.float32)


def begin(size: Size, vocabulary: int, seed: int) -> dict[str, np.ndarray]:
    """Weights to begin with. The tokens of times look like the encoder's places that they name."""
    rng = np.random.default_rng(seed)
    out = {}
    for name, shape in shapes(size, vocabulary).items():
        if name.endswith(("bias", "beta")):
            out[name] = np.zeros(shape, np.float32)
        elif name.endswith("gamma"):
            out[name] = np.ones(shape, np.float32)
        else:
            out[name] = rng.normal(0, 1 / math.sqrt(math.prod(shape[1:])), shape).astype(np.float32)
    places = waves(POSITIONS + 1, size.width)
    out["encoder.positions"] = places[:POSITIONS]
    out["decoder.tokens"] = rng.normal(0, 0.5 / math.sqrt(size.width), (vocabulary, size.width)).astype(np.float32)
    out["decoder.tokens"][-len(places) :] = places / math.sqrt(size.width)
    out["decoder.positions"] = out["decoder.positions"] * 0.3
    return out


def random(folder: Path, seed: int = 1) -> Path:
    """A multilingual model of chance."""
    names = tokens(True)
    size = Size(16, 2, 1, 2)
    return save(folder, size, begin(size, len(names), seed), names)


def save(folder: Path, size: Size, weights: dict[str, np.ndarray], names: list[str]) -> Path:
    """Writes the folder: model.bin, config.json, vocabulary.json, tokenizer.json, preprocessor_config.json."""
    from ctranslate2.specs import WhisperSpec

    folder.mkdir(parents=True, exist_ok=True)
    spec = WhisperSpec(size.encoder, size.heads, size.decoder, size.heads)
    ours = weights
    for name in ("conv1", "conv2"):
        layer = getattr(spec.encoder, name)
        layer.weight, layer.bias = ours[f"encoder.{name}.weight"], ours[f"encoder.{name}.bias"]
    spec.encoder.position_encodings.encodings = ours["encoder.positions"]
    spec.decoder.position_encodings.encodings = ours["decoder.positions"]
    spec.decoder.embeddings.weight = spec.decoder.projection.weight = ours["decoder.tokens"]
    for side, blocks in (("encoder", ("self",)), ("decoder", ("self", "cross"))):
        half = getattr(spec, side)
        _put(half.layer_norm, ours, f"{side}.norm")
        for n, layer in enumerate(half.layer):
            for block in blocks:
                part = layer.self_attention if block == "self" else layer.attention
                at = f"{side}.{n}.{block}"
                _put(part.layer_norm, ours, f"{at}.norm")
                for linear, joined in zip(part.linear, ("qkv", "o") if block == "self" else ("q", "kv", "o"), strict=True):
                    parts = [f"{at}.{ {'o': 'out'}.get(letter, letter) }" for letter in joined]
                    linear.weight = np.concatenate([ours[f"{one}.weight"] for one in parts])
                    linear.bias = np.concatenate([ours[f"{one}.bias"] for one in parts])
            _put(layer.ffn.layer_norm, ours, f"{side}.{n}.norm")
            for linear, name in ((layer.ffn.linear_0, "up"), (layer.ffn.linear_1, "down")):
                linear.weight, linear.bias = ours[f"{side}.{n}.{name}.weight"], ours[f"{side}.{n}.{name}.bias"]
    at = {name: n for n, name in enumerate(names)}
    spec.register_vocabulary(names)
    spec.config.suppress_ids, spec.config.suppress_ids_begin = [], [at["<|endoftext|>"]]
    spec.config.lang_ids = [at[name] for name in (f"<|{language}|>" for language in languages()) if name in at]
    spec.config.alignment_heads = [(size.decoder - 1, head) for head in range(size.heads)]
    spec.validate()
    spec.optimize()
    spec.save(str(folder))
    _tokenizer(names).save(str(folder / "tokenizer.json"))
    kinds = {"feature_size": MELS, "sampling_rate": RATE, "hop_length": 160, "chunk_length": 30, "n_fft": 400}
    (folder / "preprocessor_config.json").write_text(json.dumps(kinds))
    return folder


def _put(norm: Any, weights: dict[str, np.ndarray], name: str) -> None:
    norm.gamma, norm.beta = weights[f"{name}.gamma"], weights[f"{name}.beta"]


def _tokenizer(names: list[str]) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    first = names.index("<|endoftext|>")
    text = {name: n for n, name in enumerate(names[:first])}
    merges = list(dict.fromkeys((f"Ġ{word}"[:n], f"Ġ{word}"[n]) for word in WORDS for n in range(1, len(word) + 1)))
    made = Tokenizer(models.BPE(text, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    times = names.index("<|0.00|>")
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names[first:times]])
    made.add_tokens([AddedToken(name, normalized=False) for name in names[times:]])
    return made


def spoken(said: list[tuple[str, float, float]], seconds: float, seed: int = 0, noise: float = 0.002) -> np.ndarray:
    """Sound (float32, 16 kHz) of words (word, start, end in seconds): each a chord of two tones."""
    rng = np.random.default_rng(seed)
    out = rng.normal(0, noise, round(seconds * RATE))
    for word, start, end in said:
        n = WORDS.index(word)
        times = np.arange(round((end - start) * RATE)) / RATE
        low, high = 250 * 1.15**n, 1500 * 1.1 ** ((n * 5) % 12)
        ramp = np.minimum(1, np.minimum(times, times[::-1]) / 0.02)
        tones = np.sin(2 * np.pi * low * times) + np.sin(2 * np.pi * high * times)
        at = round(start * RATE)
        piece = (0.15 * ramp * tones)[: max(0, len(out) - at)]
        out[at : at + len(piece)] += piece
    return out.astype(np.float32)


def sentences(rng: np.random.Generator, seconds: float) -> list[list[tuple[str, float, float]]]:
    """Chance sentences of two to five words: words of 0.3 to 0.5 s, 0.1 to 0.25 s apart, sentences 1 to 4 s apart. Words come again in
    their order, so that none stands twice within half a minute; the last sentence goes on beyond `seconds`."""
    out: list[list[tuple[str, float, float]]] = []
    at, order, place = float(rng.uniform(0.1, 2.5)), rng.permutation(WORDS), 0
    while at < seconds:
        sentence = []
        for _ in range(int(rng.integers(2, 6))):
            end = at + float(rng.uniform(0.3, 0.5))
            sentence.append((str(order[place % len(order)]), round(at, 3), round(end, 3)))
            at, place = end + float(rng.uniform(0.1, 0.25)), place + 1
        out.append(sentence)
        at += float(rng.uniform(1, 4))
        if place % len(order) < 5:  # a round takes half a minute
            at = max(at, 31 * (place // len(order)) + float(rng.uniform(0.1, 1)))
    return out
