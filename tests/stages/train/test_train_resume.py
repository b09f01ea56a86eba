"""Going on: what a checkpoint takes along, what may change since it was written, and which checkpoints are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.storage import Store
from stages.lib import torchvision_shim
from tests.support.training import Pictures, config, curve

torch = pytest.importorskip("torch")
torchvision_shim.ensure()
pytest.importorskip("open_clip")

from stages.train import checkpoint, loop  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def put(store: Store, *steps: int) -> None:
    """Files of checkpoints that nobody reads."""
    for step in steps:
        store.write(f"checkpoints/step-{step:09d}.pt", b"damaged")


@pytest.mark.parametrize(("keep", "wanted"), [(1, [18]), (2, [16, 18]), (9, [10, 12, 14, 16, 18])])
def test_a_damaged_checkpoint_costs_no_later_one(tmp_path: Path, keep: int, wanted: list[int]) -> None:
    """Training went on from step 10, because that of step 20 was damaged: the curve has no step 20 yet."""
    store = Store(str(tmp_path))
    put(store, 10, 20)
    for step in (12, 14, 16, 18):
        path = checkpoint.save(store, {}, step, keep)
        assert store.exists(path)
    assert checkpoint.names(store) == [f"step-{step:09d}.pt" for step in wanted]


@pytest.mark.parametrize("change", [{"weight_decay": 0.7}, {"beta1": 0.5, "beta2": 0.6, "eps": 1e-3}])
def test_the_optimizer_s_options_are_those_of_the_config_after_a_resume_too(tmp_path: Path, change: dict[str, float]) -> None:
    curve(config(tmp_path), stop_after=2)
    wanted = config(tmp_path, optimizer={"lr": 2e-3, **change})
    rank = loop._Rank(wanted, loop.Context(), Store(wanted.out or ""), Pictures)
    assert rank.step == 2
    assert all(state["step"] == 2 for state in rank.stepper.optimizer.state.values())
    options = wanted.optimizer
    plain, decayed = rank.stepper.optimizer.param_groups
    assert (plain["weight_decay"], decayed["weight_decay"]) == (0, options.weight_decay)
    for group in (plain, decayed):
        assert (*group["betas"], group["eps"]) == (options.beta1, options.beta2, options.eps)
    rank.close()


@pytest.mark.parametrize(("first", "then"), [("fp32", "fp16"), ("fp16", "fp32"), ("bf16", "fp16")])
def test_another_precision_goes_on(tmp_path: Path, first: str, then: str) -> None:
    curve(config(tmp_path, epochs=1, precision=first), stop_after=3)
    assert [line["step"] for line in curve(config(tmp_path, epochs=1, precision=then))] == [1, 2, 3, 4, 5]


SOURCES = [{"shards": "a", "weight": 3.0}, {"shards": "b", "weight": 1.0}]


def test_the_mixture_s_weights_are_part_of_the_order(tmp_path: Path) -> None:
    curve(config(tmp_path, data=SOURCES), stop_after=2)
    with pytest.raises(UserError, match=r"train\.data: the weights were \[3\.0, 1\.0\].* are \[1\.0, 1\.0\]"):
        curve(config(tmp_path, data=[{**source, "weight": 1.0} for source in SOURCES]))
    with pytest.raises(UserError, match=r"train\.data: the weights"):
        curve(config(tmp_path, data=[{"shards": source["shards"]} for source in SOURCES]))
    moved = [{**source, "shards": f"elsewhere/{source['shards']}"} for source in SOURCES]
    assert len(curve(config(tmp_path, data=moved))) == 10
