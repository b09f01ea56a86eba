"""Going on: what a checkpoint takes along, what may change since it was written, and which checkpoints are kept."""

from __future__ import annotations

import time
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

from stages.train import checkpoint, loop, metrics  # noqa: E402


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


class Replacing(Pictures):
    """A sample of each batch stands for a bad one."""

    def batches(self, epoch: int, start_step: int = 0) -> Any:
        for batch in super().batches(epoch, start_step):
            batch.replaced = 1
            yield batch


def counted(wanted: Any, context: loop.Context | None = None, **more: Any) -> list[tuple[Any, ...]]:
    """Step, digest of the order and replaced samples of each line."""
    if context is not None:
        loop.train(wanted, context, Replacing)
    lines = metrics.read(Store(wanted.out or "")) if context is not None else curve(wanted, Replacing, **more)
    return [(line["step"], line["order"], line["replaced"]) for line in lines]


def test_a_line_counts_all_steps_since_the_last_whatever_came_between(tmp_path: Path) -> None:
    """Evaluations and stops; lines after 4, 8 and 10 steps, epochs of 5."""
    calm = counted(config(fresh(tmp_path, "calm"), log_every=4))
    assert [(step, replaced) for step, _, replaced in calm] == [(4, 4), (8, 4), (10, 2)]
    evaluated = config(fresh(tmp_path, "evaluated"), log_every=4)
    assert counted(evaluated, loop.Context(evaluate=lambda *_: None)) == calm
    stopped = config(fresh(tmp_path, "stopped"), log_every=4)
    curve(stopped, Replacing, stop_after=3)
    curve(stopped, Replacing, stop_after=3)
    assert counted(stopped) == calm


@pytest.mark.slow
def test_a_line_counts_all_steps_of_one_rank_and_of_the_two_that_went_on(tmp_path: Path) -> None:
    calm = counted(config(fresh(tmp_path, "calm"), log_every=4), world=1)
    stopped = config(fresh(tmp_path, "stopped"), log_every=4)
    curve(stopped, Replacing, stop_after=3)
    found = counted(stopped, world=2)
    assert [order for _, order, _ in found] == [order for _, order, _ in calm]
    assert [replaced for _, _, replaced in found] == [3 + 2, 8, 4]  # from the third step on, each rank's batches have one


class Mostly(Pictures):
    """From the third step on, almost all samples stand for bad ones."""

    def batches(self, epoch: int, start_step: int = 0) -> Any:
        for batch in super().batches(epoch, start_step):
            batch.replaced = 7 if epoch or batch.step >= 2 else 0
            yield batch


def test_data_that_is_mostly_bad_ends_it_at_the_same_step_whatever_came_between(tmp_path: Path) -> None:
    """21 of 40 samples at the end of the first epoch, 14 of them before the stop."""
    calm, stopped = config(fresh(tmp_path, "calm")), config(fresh(tmp_path, "stopped"))
    with pytest.raises(UserError, match=r"train\.data: 21 of 40 samples"):
        curve(calm, Mostly)
    curve(stopped, Mostly, stop_after=4)
    with pytest.raises(UserError, match=r"train\.data: 21 of 40 samples"):
        curve(stopped, Mostly)


def test_an_evaluation_s_time_is_not_training_s(tmp_path: Path) -> None:
    wanted = config(tmp_path, log_every=4)
    loop.train(wanted, loop.Context(evaluate=lambda *_: time.sleep(2)), Pictures)
    _, over_it, _ = metrics.read(Store(wanted.out or ""))
    assert 4 * wanted.batch / over_it["samples_per_s"] < 2


def fresh(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    return folder
