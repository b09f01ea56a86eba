"""Optimisation: AdamW by open_clip's rule of what is decayed, learning rates as pure functions of the step, clamp, clipping, EMA."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from stages.train.config import Optimizer as Wanted
from stages.train.config import Schedule

MAX_SCALE = math.log(100)  # Radford et al. 2021, section 2.5; open_clip clamps the logit scale to 0..ln 100
NOT_DECAYED = ("bn", "ln", "bias", "logit_scale")


def decayed(name: str, ndim: int) -> bool:
    """open_clip's rule: matrices are decayed; norms, biases, vectors and the logit scale are not."""
    return ndim >= 2 and not any(part in name for part in NOT_DECAYED)


def build(module: Any, wanted: Wanted) -> Any:
    """AdamW over what `module` trains, in two groups: decayed or not."""
    import torch

    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for name, p in named if decayed(name, p.ndim) is want], "weight_decay": wanted.weight_decay if want else 0.0}
        for want in (False, True)
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=wanted.lr, betas=(wanted.beta1, wanted.beta2), eps=wanted.eps)


def warmup_steps(schedule: Schedule, steps: int) -> int:
    """Steps of the warm-up, where it is given as a share too."""
    return int(schedule.warmup if schedule.warmup >= 1 else schedule.warmup * steps)


def learning_rate(wanted: Wanted, schedule: Schedule, step: int, steps: int) -> float:
    """The rate of step `step` (from 0) of `steps`; open_clip's formulas: lr (step + 1) / warmup, then the fall from `lr` to `final`."""
    warmup = warmup_steps(schedule, steps)
    if step < warmup:
        return wanted.lr * (step + 1) / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    left = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[schedule.kind]
    return wanted.lr * (schedule.final + (1 - schedule.final) * left)


def set_rate(optimizer: Any, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def clamp(net: Any) -> None:
    """Holds the logit scale in 0..ln 100."""
    import torch

    with torch.no_grad():
        net.logit_scale.clamp_(0, MAX_SCALE)


def clip(parameters: Iterable[Any], norm: float | None) -> Any:
    """The joint 2-norm of the gradients, a scalar tensor, before they are scaled down to `norm`; None scales nothing."""
    from torch.nn import utils

    if norm is None:
        total = utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    else:
        total = utils.clip_grad_norm_(parameters, norm)
    return total.full_tensor() if hasattr(total, "full_tensor") else total


@dataclass
class Ema:
    """A moving average of the trained weights, sharded as they are: average <- decay * average + (1 - decay) * weight, a step."""

    decay: float
    names: list[str]
    weights: list[Any]
    average: list[Any]

    @classmethod
    def of(cls, module: Any, decay: float) -> Ema:
        named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
        weights = [parameter for _, parameter in named]
        return cls(decay, [name for name, _ in named], weights, [weight.detach().clone() for weight in weights])

    def update(self) -> None:
        import torch

        with torch.no_grad():
            torch._foreach_lerp_(self.average, [weight.detach() for weight in self.weights], 1 - self.decay)

    def state(self) -> dict[str, Any]:
        """Whole tensors on the CPU by name; every rank has to ask."""
        return {name: whole(value) for name, value in zip(self.names, self.average, strict=True)}

    def load(self, state: dict[str, Any]) -> None:
        for name, value in zip(self.names, self.average, strict=True):
            value.copy_(sharded_like(state[name], value))


def whole(value: Any) -> Any:
    """A tensor on the CPU, gathered from all ranks where it is sharded."""
    value = value.detach()
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).cpu().clone()


def sharded_like(value: Any, like: Any) -> Any:
    """A whole tensor, shaped and sharded as `like`."""
    value = value.reshape(like.shape).to(like.device)
    if not hasattr(like, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, like.device_mesh, like.placements)
