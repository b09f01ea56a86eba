"""Trains the minimal Whisper of `whisper.py` on chords for words (torch, some minutes of a CPU)."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from tests.support import whisper
from tests.support.whisper import CONTEXT, POSITIONS, Size

SIZE = Size(64, 2, 1, 2)
LONGEST = 32  # tokens of a window
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""Log-mel windows, where in 30 s each begins, tokens, the tokens wanted after each, and where each is heard."""


def trained(folder: Path, steps: int, seed: int = 1, tell: Any = None) -> Path:
    """A model that has learnt for so many steps; written every 300 and at the end."""
    torch.manual_seed(seed)
    names = whisper.tokens(False)
    weights = {n: torch.tensor(v, requires_grad=n != "encoder.positions") for n, v in whisper.begin(SIZE, len(names), seed).items()}
    learnt = [value for value in weights.values() if value.requires_grad]
    optimiser = torch.optim.AdamW(learnt, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.0)
    began = time.monotonic()
    for step, (mel, begins, ids, wanted, looks) in enumerate(batches(seed, names)):
        if step == steps:
            break
        for group in optimiser.param_groups:
            group["lr"] = 2.5e-3 * min(1, (step + 1) / 60) * min(1, 0.02 + 2 * (1 - step / steps))
        logits, (own, following) = forward(weights, mel, begins, ids)
        said = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-100)
        where = _missed(looks[:, 1:], following) + _missed(looks[:, :-1], own)
        optimiser.zero_grad()
        (said + 0.5 * where).backward()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimiser.step()
        if tell and step % 25 == 0:
            right = (logits.argmax(-1) == wanted)[wanted >= 0].float().mean()
            tell(f"step {step} {time.monotonic() - began:.0f} s: words {said:.3f} places {where:.3f} right {right:.3f}")
        if (step + 1) % 300 == 0 or step + 1 == steps:
            whisper.save(folder, SIZE, {name: value.detach().numpy() for name, value in weights.items()}, names)
    return folder


def _missed(looks: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    return -(looks * (shares + 1e-6).log()).sum(-1)[looks.sum(-1) > 0].mean()


def forward(
    weights: dict[str, torch.Tensor], mel: torch.Tensor, begins: torch.Tensor, ids: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits, and where each layer looks (the mean of its heads)."""
    x = F.gelu(F.conv1d(mel, weights["encoder.conv1.weight"], weights["encoder.conv1.bias"], padding=1))
    x = F.gelu(F.conv1d(x, weights["encoder.conv2.weight"], weights["encoder.conv2.bias"], padding=1, stride=2))
    x = x.transpose(1, 2) + weights["encoder.positions"][begins[:, None] + torch.arange(x.shape[2])]
    for n in range(SIZE.encoder):
        x = x + _attend(weights, f"encoder.{n}.self", x, None)[0]
        x = x + _feed(weights, f"encoder.{n}", x)
    heard = _norm(weights, "encoder.norm", x)
    x = weights["decoder.tokens"][ids] + weights["decoder.positions"][: ids.shape[1]]
    looked = []
    for n in range(SIZE.decoder):
        x = x + _attend(weights, f"decoder.{n}.self", x, None, causal=True)[0]
        more, shares = _attend(weights, f"decoder.{n}.cross", x, heard)
        looked.append(shares)
        x = x + more
        x = x + _feed(weights, f"decoder.{n}", x)
    return _norm(weights, "decoder.norm", x) @ weights["decoder.tokens"].T, looked


def _norm(weights: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.gamma"], weights[f"{name}.beta"])


def _feed(weights: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    x = F.gelu(F.linear(_norm(weights, f"{name}.norm", x), weights[f"{name}.up.weight"], weights[f"{name}.up.bias"]))
    return F.linear(x, weights[f"{name}.down.weight"], weights[f"{name}.down.bias"])


def _attend(
    weights: dict[str, torch.Tensor], name: str, x: torch.Tensor, other: torch.Tensor | None, causal: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    x = _norm(weights, f"{name}.norm", x)
    source = x if other is None else other
    q, k, v = (
        F.linear(given, weights[f"{name}.{one}.weight"], weights[f"{name}.{one}.bias"]).unflatten(-1, (SIZE.heads, -1)).transpose(1, 2)
        for one, given in (("q", x), ("k", source), ("v", source))
    )
    if other is None:
        made, looked = F.scaled_dot_product_attention(q, k, v, is_causal=causal), q
    else:
        shares = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        made, looked = shares @ v, shares.mean(1)
    return F.linear(made.transpose(1, 2).flatten(-2), weights[f"{name}.out.weight"], weights[f"{name}.out.bias"]), looked


def batches(seed: int, names: list[str]) -> Iterator[Batch]:
    """Windows of 30 s. Five batches in six hold only the ten seconds in which anything is said: as good to learn from, and cheaper."""
    from faster_whisper.feature_extractor import FeatureExtractor

    rng, extract, at = np.random.default_rng(seed), FeatureExtractor(), {name: n for n, name in enumerate(names)}
    for number in itertools.count():
        whole = number % 6 == 5
        count, length = (3, 30) if whole else (8, 10)
        mels, begins, rows = [], [], []
        for _ in range(count):
            begin = 0 if whole else int(rng.choice([0, 20, rng.integers(0, 21)]))
            told = [sentence for sentence in whisper.sentences(rng, length) if begin + length == 30 or sentence[-1][2] < length - 0.2]
            sound = whisper.spoken([word for one in told for word in one], length, int(rng.integers(1 << 30)), 10 ** rng.uniform(-4, -2.3))
            mels.append(extract(sound)[:, : length * 100])
            begins.append(begin * 50)
            rows.append(_row(told, begin, at, bool(rng.random() < 0.5)))
        ids = torch.zeros(count, LONGEST, dtype=torch.long)
        wanted = torch.full((count, LONGEST), -100)
        looks = torch.zeros(count, LONGEST + 1, length * 50)
        for n, ((made, ranges, prompt), begin) in enumerate(zip(rows, begins, strict=True)):
            row = made[: LONGEST + 1]
            ids[n, : len(row) - 1] = torch.tensor(row[:-1])
            wanted[n, prompt - 1 : len(row) - 1] = torch.tensor(row[prompt:])
            for k, (first, last) in enumerate(ranges[: len(row)]):
                a, b = max(0, first - begin), min(length * 50, last - begin)
                if b > a:
                    looks[n, k, a:b] = 1 / (b - a)
        yield torch.tensor(np.stack(mels), dtype=torch.float32), torch.tensor(begins), ids, wanted, looks


def _row(
    told: list[list[tuple[str, float, float]]], begin: float, at: dict[str, int], timed: bool
) -> tuple[list[int], list[tuple[int, int]], int]:
    """Tokens, the places (of 0.02 s) where each is heard, and how many of them are the prompt. A sentence that the window cuts off ends
    it by its start alone, as Whisper is taught."""

    def place(seconds: float) -> int:
        return min(POSITIONS, round((seconds + begin) * 50))

    rows: list[tuple[str, int, int]] = [("<|startoftranscript|>", 0, 0)]
    if not timed:
        rows.append(("<|notimestamps|>", 0, 0))
    last = 0
    for n, sentence in enumerate(told):
        start, end = place(sentence[0][1]), place(sentence[-1][2])
        cut = sentence[-1][2] + begin > 30
        if timed:
            rows.append((_time(start if n else min(start, 50)), start, start + 5))
            if cut and n:
                break
        for word, a, b in sentence:
            if b + begin <= 30:
                rows.append((f"Ġ{word}", place(a), place(b)))
                last = place(b)
        if timed:
            rows.append((_time(min(end, last)), min(end, last), min(end, last) + 5))
    rows.append(("<|endoftext|>", last, last + 10))
    return [at[name] for name, _, _ in rows], [(a, min(b, POSITIONS)) for _, a, b in rows], 1 if timed else 2


def _time(place: int) -> str:
    return f"<|{place * 0.02:.2f}|>"


assert CONTEXT > LONGEST
