"""One step of optimisation: forward and backward in pieces, clipping, AdamW, clamp, moving average.

Accumulation as open_clip does it: the features of all pieces first, without gradient, then each piece again with gradient, among
the features of the others; so every sample is contrasted with the whole global batch whatever the number of pieces. Random
numbers of a piece are seeded alike both times, so dropout is the same.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.train import optim
from stages.train.config import Train
from stages.train.losses import FEATURES, Losses
from stages.train.optim import Ema

SEEN = ("image_seen", "text_seen")


@dataclass
class Stepper:
    """The state of training on one rank and how it is moved on by a batch."""

    config: Train
    module: Any  # what is called: DDP, FSDP, or the plain module
    inner: Any  # the plain module, whose parameters these are
    losses: Losses
    optimizer: Any
    scaler: Any  # torch.amp.GradScaler; does nothing but for fp16
    ema: Ema | None
    device: Any
    dtype: Any  # of autocast; None for float32
    rank: int
    world: int

    def __call__(self, image: Any, text: Any, rate: float, step: int) -> dict[str, Any]:
        """Trains on this rank's share of a global batch; returns scalar tensors: the loss's parts (of this rank), grad_norm and scale."""
        optim.set_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        shares = self._token_shares(text)
        image, text = (value.to(self.device, non_blocking=True) for value in (image, text))
        pieces = list(zip(image.chunk(self.config.accumulate), text.chunk(self.config.accumulate), strict=True))
        parts = self._accumulated(pieces, shares, step) if len(pieces) > 1 else self._whole(*pieces[0], shares[0], step)
        self.scaler.unscale_(self.optimizer)
        parts["grad_norm"] = optim.clip((p for p in self.inner.parameters() if p.requires_grad), self.config.optimizer.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        optim.clamp(self.inner.net)
        if self.ema is not None:
            self.ema.update()
        return parts

    def _whole(self, image: Any, text: Any, share: Any, step: int) -> dict[str, Any]:
        out = self._forward(image, text, step, 0)
        self._remember([out])
        return self._backward(out, out, share, True)

    def _accumulated(self, pieces: list[tuple[Any, Any]], shares: list[Any], step: int) -> dict[str, Any]:
        import torch

        with torch.no_grad():
            known = [self._features(self._forward(image, text, step, at)) for at, (image, text) in enumerate(pieces)]
        sums: dict[str, Any] = {}
        outs = []
        for at, (image, text) in enumerate(pieces):
            last = at == len(pieces) - 1
            with contextlib.nullcontext() if last else self._unsynced():
                out = self._forward(image, text, step, at)
                around = [*known[:at], self._features(out), *known[at + 1 :]]
                features = {name: torch.cat([one[name] for one in around]) for name in FEATURES}
                parts = self._backward(features, out, shares[at], last)
            outs.append({name: out[name] for name in SEEN if name in out})
            sums["caption"] = sums.get("caption", 0) + parts.pop("caption", 0)
            sums |= parts  # the contrastive part is the whole batch's in each piece
        self._remember(outs)
        return {name: value for name, value in sums.items() if torch.is_tensor(value)}

    def _remember(self, outs: list[dict[str, Any]]) -> None:
        """Shows the whole global batch, in its order, to a model that keeps what it saw (the offline scorer): once a step, on all ranks."""
        import torch

        if not hasattr(self.inner.net, "remember"):
            return
        seen = [torch.cat([out[name] for out in outs]).contiguous() for name in SEEN]
        if self.world > 1:
            parts = [[torch.empty_like(value) for _ in range(self.world)] for value in seen]
            for value, part in zip(seen, parts, strict=True):
                torch.distributed.all_gather(part, value)
            seen = [torch.cat(part) for part in parts]
        self.inner.net.remember(*seen)

    def _features(self, out: dict[str, Any]) -> dict[str, Any]:
        return {name: out[name] for name in FEATURES}

    def _unsynced(self) -> Any:
        """DDP exchanges gradients once a step; FSDP at each piece, so that no rank ever holds a whole gradient."""
        return self.module.no_sync() if hasattr(self.module, "no_sync") else contextlib.nullcontext()

    def _autocast(self) -> Any:
        import torch

        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)

    def _forward(self, image: Any, text: Any, step: int, piece: int) -> dict[str, Any]:
        """Seeded by (seed, step, rank, piece): a resumed run drops the same values out."""
        import torch

        seed = np.random.SeedSequence([self.config.seed, step, self.rank, piece]).generate_state(1, np.uint64)[0]
        torch.manual_seed(int(seed))
        with self._autocast():
            out: dict[str, Any] = self.module(image, text)
        return out

    def _backward(self, features: dict[str, Any], out: dict[str, Any], share: Any, counts: bool) -> dict[str, Any]:
        with self._autocast():
            parts = self.losses(features, out, share, counts)
            total = sum(parts.values())
        self.scaler.scale(total).backward()
        return {**{name: value.detach() for name, value in parts.items()}, "scale": out["logit_scale"].detach().mean()}

    def _token_shares(self, text: Any) -> list[Any]:
        """Each piece's share of the global batch's caption tokens, times the ranks, whose gradients are averaged."""
        import torch

        counts = [self.losses.tokens(piece) for piece in text.chunk(self.config.accumulate)]
        total: Any = max(sum(counts), 1)
        if self.losses.caption is not None and self.world > 1:
            total = torch.tensor(float(total), device=self.device)
            torch.distributed.all_reduce(total)
        return [count * self.world / total for count in counts]


def parallel(inner: Any, strategy: str, world: int, device: Any) -> Any:
    """The module as it is called: sharded (FSDP2), replicated (DDP), or as it is on a single rank.

    FSDP2: every block of a tower is a unit of its own, gathered when it is needed; the rest is the root's.
    """
    import torch

    if strategy == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(device.type, (world,))
        for block in blocks(inner):
            fully_shard(block, mesh=mesh)
        return fully_shard(inner, mesh=mesh)
    if world == 1:
        return inner
    ids = [device] if device.type == "cuda" else None
    return torch.nn.parallel.DistributedDataParallel(inner, device_ids=ids, gradient_as_bucket_view=True)


def blocks(module: Any) -> list[Any]:
    """The repeated blocks of all towers, outermost only: children of lists, and of sequences named as timm and open_clip name them."""
    import torch

    found: list[Any] = []
    for name, child in module.named_children():
        listed = isinstance(child, torch.nn.ModuleList) or (
            isinstance(child, torch.nn.Sequential) and name in ("blocks", "stages", "layers", "resblocks")
        )
        if listed:
            found += [block for block in child if any(True for _ in block.parameters())]
        else:
            found += blocks(child)
    return found
