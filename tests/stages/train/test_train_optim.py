"""Optimisation: what is decayed, how the rate goes, the clamp, clipping, and the moving average."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.lib import torchvision_shim
from stages.train.config import Optimizer, Schedule

torch = pytest.importorskip("torch")

from stages.train import optim  # noqa: E402

KINDS = ("cosine", "linear", "constant")


@given(st.sampled_from(KINDS), st.integers(1, 500), st.one_of(st.integers(0, 600), st.floats(0, 0.99)), st.floats(0, 1))
def test_the_rate_rises_to_its_peak_and_never_leaves_its_bounds(kind: Any, steps: int, warmup: float, final: float) -> None:
    schedule, wanted = Schedule(kind=kind, warmup=warmup, final=final), Optimizer(lr=0.3)
    rates = [optim.learning_rate(wanted, schedule, step, steps) for step in range(steps)]
    first = optim.warmup_steps(schedule, steps)
    assert all(0 <= rate <= 0.3 * (1 + 1e-9) for rate in rates)
    assert rates[:first] == sorted(rates[:first])
    assert rates[first:] == sorted(rates[first:], reverse=True)
    if first < steps:
        assert rates[first] == pytest.approx(0.3)


def test_the_cosine_is_open_clip_s() -> None:
    torchvision_shim.ensure()
    scheduler = pytest.importorskip("open_clip_train.scheduler")
    parameter = torch.nn.Parameter(torch.zeros(1))
    theirs = torch.optim.AdamW([parameter], lr=1.0)
    adjust = scheduler.cosine_lr(theirs, 1e-3, 10, 100)
    for step in range(100):
        adjust(step)
        assert optim.learning_rate(Optimizer(lr=1e-3), Schedule(warmup=10), step, 100) == pytest.approx(theirs.param_groups[0]["lr"])


def test_the_linear_one_ends_at_its_final_share() -> None:
    schedule = Schedule(kind="linear", warmup=0, final=0.1)
    rates = [optim.learning_rate(Optimizer(lr=1.0), schedule, step, 10) for step in range(11)]
    assert rates == pytest.approx([1 - 0.09 * step for step in range(11)])


def test_norms_biases_vectors_and_the_logit_scale_are_not_decayed() -> None:
    class Net(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.fc = torch.nn.LayerNorm(4), torch.nn.Linear(4, 4)
            self.logit_scale = torch.nn.Parameter(torch.zeros(1, 1))
            self.frozen = torch.nn.Parameter(torch.zeros(2, 2), requires_grad=False)

    net = Net()
    groups = optim.build(net, Optimizer(weight_decay=0.2)).param_groups
    assert {group["weight_decay"]: len(group["params"]) for group in groups} == {0.0: 4, 0.2: 1}
    assert next(group for group in groups if group["weight_decay"])["params"][0] is net.fc.weight


@pytest.mark.parametrize(("before", "after"), [(-1.0, 0.0), (3.0, 3.0), (9.0, math.log(100))])
def test_the_logit_scale_stays_within_its_clamp(before: float, after: float) -> None:
    net = torch.nn.Module()
    net.logit_scale = torch.nn.Parameter(torch.tensor(before))
    optim.clamp(net)
    assert float(net.logit_scale) == pytest.approx(after)


def test_clipping_keeps_the_direction_and_tells_the_norm_before() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert float(optim.clip(parameters, None)) == pytest.approx(5.0)
    assert float(parameters[1].grad) == 4.0
    assert float(optim.clip(parameters, 1.0)) == pytest.approx(5.0)
    assert parameters[0].grad.tolist() == pytest.approx([0.6, 0.0], rel=1e-4)


def test_the_average_follows_its_formula_and_is_restored() -> None:
    net = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.zeros_(net.weight)
    ema = optim.Ema.of(net, 0.9)
    with torch.no_grad():
        net.weight.fill_(1.0)
    ema.update()
    ema.update()
    assert ema.state()["weight"].tolist() == [pytest.approx([0.19, 0.19])]
    again = optim.Ema.of(net, 0.9)
    again.load(ema.state())
    assert torch.equal(again.average[0], ema.average[0])
