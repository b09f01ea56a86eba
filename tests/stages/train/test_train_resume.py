"""Going on: what a checkpoint takes along, what may change since it was written, and which checkpoints are kept."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.storage import Store
from stages.lib import torchvision_shim
from tests.support.training import MODELS, VISION, Pictures, apart, config, curve

torch = pytest.importorskip("torch")
torchvision_shim.ensure()
open_clip = pytest.importorskip("open_clip")

from stages.train import checkpoint, loop, metrics  # noqa: E402
from stages.train.config import Train, resumable, shown  # noqa: E402


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


def test_mostly_bad_data_ends_it_at_the_end_of_an_epoch_that_no_line_is_written_in(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.data: 21 of 40 samples"):
        curve(config(tmp_path, log_every=1000), Mostly)


def test_an_evaluation_s_time_is_not_training_s(tmp_path: Path) -> None:
    wanted = config(tmp_path, log_every=4)
    loop.train(wanted, loop.Context(evaluate=lambda *_: time.sleep(2)), Pictures)
    _, over_it, _ = metrics.read(Store(wanted.out or ""))
    assert 4 * wanted.batch / over_it["samples_per_s"] < 2


def test_a_checkpoint_whose_bytes_changed_is_told_and_the_one_before_it_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One weight of thousands is another: the file has its length and structure, and torch looks at no checksum."""
    calm = curve(config(fresh(tmp_path, "calm")))
    wanted = config(fresh(tmp_path, "damaged"), checkpoint={"every_steps": 3, "keep": 9})
    curve(wanted, stop_after=7)
    state = checkpoint.latest(Store(wanted.out or ""))
    assert state is not None
    path = Path(wanted.out or "") / "checkpoints/step-000000007.pt"
    data = path.read_bytes()
    weights = state["state_dict"]["token_embedding.weight"].numpy().tobytes()[:4096]
    assert weights in data
    path.write_bytes(data.replace(weights, bytes(4096)))
    assert apart(calm, curve(wanted)) < 2e-5
    assert "step-000000007.pt is damaged" in caplog.text


def evaluated(wanted: Any, measured: str) -> list[int]:
    """Trains, and returns after which epochs the model was evaluated."""
    store, seen = Store(wanted.out or ""), list[int]()

    def evaluate(_: str, epochs: int) -> None:
        seen.append(epochs)
        for path in ("eval.json", loop.EVALS.format(epochs)):
            store.write_json(path, {"epochs": epochs, "measured": measured})

    loop.train(wanted, loop.Context(evaluate=evaluate, measured=measured), Pictures)
    return seen


def test_what_is_evaluated_on_other_data_is_evaluated_again(tmp_path: Path) -> None:
    wanted = config(tmp_path)
    assert [evaluated(wanted, "some"), evaluated(wanted, "some"), evaluated(wanted, "others")] == [[1, 2], [], [2]]


def test_figures_of_steps_that_are_trained_again_are_made_again(tmp_path: Path) -> None:
    wanted = config(tmp_path, checkpoint={"keep": 9})
    out = Path(wanted.out or "")
    evaluated(wanted, "some")
    (out / "checkpoints/step-000000010.pt").unlink()
    curve(wanted, stop_after=2)
    assert [path.name for path in (out / "evals").iterdir()] == ["epoch-00001.json"]
    assert not (out / "eval.json").exists()
    assert evaluated(wanted, "some") == [2]


def test_a_training_that_begins_anew_leaves_no_figures_of_the_one_before(tmp_path: Path) -> None:
    wanted = config(tmp_path)
    out = Path(wanted.out or "")
    evaluated(wanted, "some")
    shutil.rmtree(out / "checkpoints")
    curve(wanted, stop_after=2)
    assert not list((out / "evals").iterdir())
    assert not (out / "eval.json").exists()


def test_a_failing_evaluation_is_told_and_training_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def failing(_: str, epochs: int) -> None:
        raise RuntimeError("no such operator")

    wanted = config(tmp_path)
    Store(wanted.out or "").write_json("eval.json", {})
    outcome = loop.train(wanted, loop.Context(evaluate=failing), Pictures)
    assert (outcome.state, outcome.step) == (loop.DONE, 10)
    assert "after epochs 1, 2 failed" in outcome.unmeasured
    assert "RuntimeError: no such operator" in outcome.unmeasured
    assert "no such operator" in caplog.text
    assert not Store(wanted.out or "").exists("eval.json")
    assert evaluated(wanted, "some") == [2]


@pytest.mark.parametrize("more", [{}, {"ema": 0.9}])
def test_an_exported_model_that_is_gone_is_there_again(tmp_path: Path, more: dict[str, Any]) -> None:
    wanted = config(tmp_path, **more)
    curve(wanted)
    out = Path(wanted.out or "")
    held = {path: path.read_bytes() for path in out.glob("model*/*")}
    assert len(held) == (4 if more else 2)
    for path in held:
        path.unlink()
        curve(wanted)
        assert {one: one.read_bytes() for one in out.glob("model*/*")} == held


def test_a_done_training_s_model_is_that_of_its_last_step(tmp_path: Path) -> None:
    """15 steps were stopped at the end of an epoch that exported nothing, and are all that is asked for now."""
    from safetensors.torch import load_file

    curve(config(tmp_path))
    curve(config(tmp_path, epochs=4), stop_after=5)
    wanted = config(tmp_path, epochs=3)
    curve(wanted)
    state = checkpoint.latest(Store(wanted.out or ""))
    assert state is not None
    assert state["step"] == 15
    held = load_file(f"{wanted.out}/model/{checkpoint.WEIGHTS}")
    assert all(torch.equal(value, state["state_dict"][name]) for name, value in held.items())


def test_what_a_done_training_cannot_give_any_more_is_refused(tmp_path: Path) -> None:
    curve(config(tmp_path))
    with pytest.raises(UserError, match=r"train\.ema: .*kept no moving average"):
        curve(config(tmp_path, ema=0.9))
    with pytest.raises(UserError, match=r"train\.epochs: 1 would be 5 steps, and .* is of step 10"):
        curve(config(tmp_path, epochs=1))


@pytest.fixture
def forgetful() -> Iterator[Callable[[], None]]:
    """Makes open_clip forget the model, as another process does not know it."""

    def forget() -> None:
        open_clip.factory._MODEL_CONFIGS.pop("micro", None)

    yield forget
    forget()


@pytest.mark.parametrize(("name", "value"), [("head_width", 8), ("layers", 3)])
def test_a_model_that_was_changed_in_place_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgetful: Callable[[], None], name: str, value: int
) -> None:
    """With weights of the same shapes, and of others."""
    curve(config(tmp_path), stop_after=2)
    monkeypatch.setitem(MODELS, "micro", {**MODELS["micro"], "vision_cfg": {**VISION, name: value}})
    forgetful()
    said = rf"train\.model: .*micro\.json: model_cfg\.vision_cfg\.{name} was {VISION[name]} when .* is {value} now"
    with pytest.raises(UserError, match=said):
        curve(config(tmp_path))


def test_a_project_that_was_moved_goes_on(tmp_path: Path) -> None:
    calm = curve(config(fresh(tmp_path, "calm")))
    curve(config(fresh(tmp_path, "here")), stop_after=3)
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert apart(calm, curve(config(tmp_path / "there"))) == 0


def test_the_option_that_changed_is_named_with_its_section() -> None:
    wanted = {"model": {"name": "/here/own.json", "pretrained": "/here/a.pt"}, "augment": {"hflip": True}}
    before = shown(Train.model_validate(wanted))
    assert resumable(before, Train.model_validate({**wanted, "model": {"name": "/there/own.json", "pretrained": "s3://there/a.pt"}})) == [
        "model"
    ]
    for change, said in (
        ({"model": {"name": "/here/own.json", "pretrained": "/here/b.pt"}}, r"train\.model\.pretrained: it was a\.pt when .* is b\.pt now"),
        ({"augment": {"hflip": False}}, r"train\.augment\.hflip: it was True when .* is False now; set it back"),
        ({"seed": 5}, r"train\.seed: it was 0 when .* is 5 now"),
    ):
        with pytest.raises(UserError, match=said):
            resumable(before, Train.model_validate({**wanted, **change}))


def fresh(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    return folder
