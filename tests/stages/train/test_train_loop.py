"""The loop: the same curve whatever the pieces, ranks, strategy or interruptions; stops, figures that are no numbers, metrics."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.storage import Store
from stages.lib import torchvision_shim
from tests.support import training
from tests.support.training import apart, config, curve

torch = pytest.importorskip("torch")
torchvision_shim.ensure()
pytest.importorskip("open_clip")

from stages.train import checkpoint, loop, metrics  # noqa: E402

FLOAT = 2e-5  # float32, sums of another order
DROPS = {"model": {"patch_dropout": 0.5}}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def fresh(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    return folder


SMOOTH = {"loss": {"label_smoothing": 0.1}}


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("micro", {}),
        ("micro", SMOOTH),
        ("micro_sig", {}),
        ("micro_coca", {}),
        ("micro_coca", {"loss": {"learnable": True, "label_smoothing": 0.1}}),
    ],
)
def test_a_batch_in_pieces_is_the_whole_batch(tmp_path: Path, kind: str, more: dict[str, Any]) -> None:
    """Loss, gradient norm and the learnt scale: negatives are the whole batch's."""
    whole = curve(config(fresh(tmp_path, "1"), kind, **more))
    pieces = curve(config(fresh(tmp_path, "4"), kind, accumulate=4, **more))
    for name in ("loss", "grad_norm", "scale"):
        assert apart(whole, pieces, name) < FLOAT * max(line[name] for line in whole), name


@pytest.mark.parametrize("more", [{}, DROPS, {"accumulate": 2, **DROPS}, {"precision": "bf16"}, {"ema": 0.9}, {"precision": "fp16"}])
def test_stopped_in_mid_epoch_it_goes_on_as_if_undisturbed(tmp_path: Path, more: dict[str, Any]) -> None:
    calm = curve(config(fresh(tmp_path, "calm"), **more))
    stopped = config(fresh(tmp_path, "stopped"), **more)
    assert len(curve(stopped, stop_after=3)) == 3
    assert len(curve(stopped, stop_after=4)) == 7
    assert apart(calm, curve(stopped)) == 0
    name = "model_ema/open_clip_model.safetensors" if "ema" in more else "model/open_clip_model.safetensors"
    assert (tmp_path / "calm/out" / name).read_bytes() == (tmp_path / "stopped/out" / name).read_bytes()


def test_what_was_killed_after_its_last_checkpoint_is_done_again(tmp_path: Path) -> None:
    """Lines of metrics beyond the checkpoint are cut off, and half a line too."""
    calm = curve(config(fresh(tmp_path, "calm")))
    killed = config(fresh(tmp_path, "killed"), checkpoint={"every_steps": 3, "keep": 9})
    curve(killed)
    out = Path(killed.out or "")
    for name in checkpoint.names(Store(str(out)))[2:]:
        (out / "checkpoints" / name).unlink()
    with (out / "metrics.jsonl").open("a") as handle:
        handle.write('{"step": 11, "lo')
    assert apart(calm, curve(killed)) == 0


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    calm = curve(config(fresh(tmp_path, "calm")))
    wanted = config(fresh(tmp_path, "damaged"), checkpoint={"every_steps": 3, "keep": 9})
    curve(wanted)
    store = Store(wanted.out or "")
    for name in checkpoint.names(store)[-2:]:
        path = Path(wanted.out or "") / "checkpoints" / name
        path.write_bytes(path.read_bytes()[:5000])
    assert apart(calm, curve(wanted)) < 2e-5
    assert "is damaged" in caplog.text
    for name in checkpoint.names(store):
        (Path(wanted.out or "") / "checkpoints" / name).write_bytes(b"x")
    with pytest.raises(UserError, match="can be read"):
        checkpoint.latest(store)


def test_half_a_checkpoint_is_none(tmp_path: Path) -> None:
    wanted = config(tmp_path)
    curve(wanted, stop_after=3)
    (Path(wanted.out or "") / "checkpoints/.step-000000009.pt.abc.tmp").write_bytes(b"half")
    state = checkpoint.latest(Store(wanted.out or ""))
    assert state is not None
    assert state["step"] == 3


@pytest.mark.parametrize(
    ("strategy", "kind", "more"),
    [
        ("ddp", "micro", {"accumulate": 2}),
        ("fsdp", "micro", {"optimizer": {"lr": 1e-3, "clip_norm": 1.0}}),
        ("ddp", "micro_sig", {"loss": {"kind": "clip"}}),
        pytest.param("ddp", "micro_sig", {}, marks=pytest.mark.slow),
        pytest.param("fsdp", "micro_sig", {}, marks=pytest.mark.slow),
        pytest.param("ddp", "micro_coca", {"loss": {"learnable": True}}, marks=pytest.mark.slow),
        pytest.param("fsdp", "micro_coca", {"ema": 0.9, "accumulate": 2}, marks=pytest.mark.slow),
        pytest.param("fsdp", "micro", {"model": {"lock_image": True}}, marks=pytest.mark.slow),
        pytest.param("ddp", "micro", {"loss": {"local": False}}, marks=pytest.mark.slow),
    ],
)
def test_two_ranks_have_the_curve_of_one(tmp_path: Path, strategy: str, kind: str, more: dict[str, Any]) -> None:
    one = curve(config(fresh(tmp_path, "1"), kind, **more))
    two = curve(config(fresh(tmp_path, "2"), kind, strategy=strategy, **more), world=2)
    for name in ("loss", "grad_norm", "scale"):
        assert apart(one, two, name) < FLOAT * max(line[name] for line in one), name


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [((1, "ddp"), (2, "fsdp")), ((1, "fsdp"), (1, "ddp"))])
def test_a_checkpoint_is_loaded_by_any_number_of_ranks_and_either_strategy(tmp_path: Path, first: Any, then: Any) -> None:
    calm = curve(config(fresh(tmp_path, "calm"), "micro_coca", ema=0.9))
    folder = fresh(tmp_path, "stopped")
    curve(config(folder, "micro_coca", ema=0.9, strategy=first[1]), world=first[0], stop_after=3)
    assert apart(calm, curve(config(folder, "micro_coca", ema=0.9, strategy=then[1]), world=then[0])) < FLOAT * 10


def test_a_step_that_is_no_number_ends_it_and_names_its_keys(tmp_path: Path) -> None:
    wanted = config(tmp_path, optimizer={"lr": 1e30}, schedule={"warmup": 0})
    with pytest.raises(UserError, match="its keys are in"):
        loop.train(wanted, loop.Context(), training.Pictures)
    (file,) = (Path(wanted.out or "") / "not_finite").glob("*.json")
    told = json.loads(file.read_text())
    assert len(told["keys"]) == wanted.batch
    assert told["step"] == int(file.stem.removeprefix("step-"))
    assert not checkpoint.names(Store(wanted.out or ""))


def test_fp16_that_overflows_again_and_again_ends_it_and_leaves_metrics_that_are_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scale that hardly falls, so that every step's gradients overflow."""
    scaler = functools.partial(torch.amp.GradScaler, init_scale=1e38, backoff_factor=0.999)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    monkeypatch.setattr(loop, "SKIPPED", 4)
    wanted = config(tmp_path, precision="fp16")
    with pytest.raises(UserError, match="the 4th step in a row without an update; its keys are in"):
        loop.train(wanted, loop.Context(), training.Pictures)
    text = (Path(wanted.out or "") / "metrics.jsonl").read_text()
    lines = [json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")) for line in text.splitlines()]
    assert [line["grad_norm"] for line in lines] == [None] * 3
    assert len(list((Path(wanted.out or "") / "not_finite").glob("*.json"))) == 1


def test_only_the_last_checkpoints_are_kept_and_open_clip_reads_them(tmp_path: Path) -> None:
    import open_clip

    wanted = config(tmp_path, checkpoint={"every_steps": 2, "keep": 3})
    curve(wanted)
    assert checkpoint.names(Store(wanted.out or "")) == [f"step-{step:09d}.pt" for step in (6, 8, 10)]
    made = open_clip.create_model("micro", pretrained=f"{wanted.out}/checkpoints/step-000000010.pt", weights_only=True)
    model = open_clip.create_model(f"local-dir:{wanted.out}/model")
    assert all(torch.equal(a, b) for a, b in zip(made.state_dict().values(), model.state_dict().values(), strict=True))


def test_done_is_done(tmp_path: Path) -> None:
    wanted = config(tmp_path)
    first = curve(wanted)
    began: list[Any] = []
    outcome = loop.train(wanted, loop.Context(begin=lambda *at: began.append(at), report=began.append), training.Pictures)
    assert (outcome.state, outcome.step, began) == (loop.DONE, 10, [(10, 10)])
    assert metrics.read(Store(wanted.out or "")) == first


@pytest.mark.parametrize("change", [{"batch": 4}, {"seed": 1}, {"model": {"lock_text": True}}])
def test_a_state_of_another_training_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    curve(config(tmp_path), stop_after=2)
    with pytest.raises(UserError, match=rf"train\.{next(iter(change))}(\.lock_text)?: it was"):
        curve(config(tmp_path, **change))


def test_other_shards_are_refused(tmp_path: Path) -> None:
    class Others(training.Pictures):
        fingerprint = "others"

    curve(config(tmp_path), stop_after=2)
    with pytest.raises(UserError, match="the shards are not those"):
        curve(config(tmp_path), Others)


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    plain = curve(config(fresh(tmp_path, "1"), "micro_coca"))
    assert apart(plain, curve(config(fresh(tmp_path, "2"), "micro_coca", grad_checkpointing=True))) < FLOAT


@pytest.mark.slow
def test_compiled_it_is_the_same(tmp_path: Path) -> None:
    plain = curve(config(fresh(tmp_path, "1"), epochs=1))
    assert apart(plain, curve(config(fresh(tmp_path, "2"), epochs=1, compile=True))) < 1e-3


@pytest.mark.parametrize("kind", ["micro", "micro_coca"])
def test_clips_are_trained_on(tmp_path: Path, kind: str) -> None:
    lines = curve(config(tmp_path, kind), training.Clips)
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_a_locked_tower_comes_out_as_it_went_in(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from stages.train import models

    wanted = config(tmp_path, model={"lock_image": True})
    before = models.build(wanted).net.state_dict()
    curve(wanted)
    after = load_file(f"{wanted.out}/model/open_clip_model.safetensors")
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if name.startswith("visual.")}


def test_a_line_of_metrics_tells_what_one_wants_to_know(tmp_path: Path) -> None:
    wanted = config(tmp_path, "micro_coca", log_every=3, tensorboard=True)
    pytest.importorskip("tensorboardX")
    lines = curve(wanted)
    assert [line["step"] for line in lines] == [3, 6, 9, 10]
    assert set(lines[0]) == {
        *("step", "epoch", "samples_seen", "loss", "contrastive", "caption", "scale", "grad_norm", "lr"),
        *("samples_per_s", "data_wait_share", "replaced", "order"),
    }
    assert lines[-1]["samples_seen"] == 80
    assert lines[0]["loss"] == pytest.approx(lines[0]["contrastive"] + lines[0]["caption"])
    assert list((Path(wanted.out or "") / "tensorboard").iterdir())


def test_everything_can_lie_in_an_object_store(tmp_path: Path) -> None:
    calm = curve(config(fresh(tmp_path, "calm")))
    wanted = config(fresh(tmp_path, "remote"), tensorboard=True).model_copy(update={"out": f"memory://{tmp_path.name}/out"})
    curve(wanted, stop_after=3)
    assert apart(calm, curve(wanted)) == 0
    store = Store(wanted.out or "")
    assert store.names("tensorboard")
    assert store.exists("model/open_clip_model.safetensors")


def test_a_model_is_evaluated_after_the_epochs_that_were_asked_for(tmp_path: Path) -> None:
    wanted = config(tmp_path, epochs=3, eval={"every_epochs": 2})
    seen: list[Any] = []
    context = loop.Context(evaluate=lambda folder, epochs: seen.append((epochs, (Path(folder) / "open_clip_config.json").is_file())))
    loop.train(wanted, context, training.Pictures)
    assert seen == [(2, True), (3, True)]


def test_an_evaluation_that_a_kill_prevented_is_made_by_the_next_go(tmp_path: Path) -> None:
    wanted, seen = config(tmp_path), []

    def killed(folder: str, epochs: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.train(wanted, loop.Context(evaluate=killed), training.Pictures)
    context = loop.Context(evaluate=lambda folder, epochs: seen.append(epochs))
    assert loop.train(wanted, context, training.Pictures).state == loop.DONE
    assert seen == [1, 2]


@pytest.mark.parametrize(("first", "then"), [({}, {}), ({"eval": {"every_epochs": 2}}, {}), ({}, {"ema": 0.9})])
def test_what_is_evaluated_after_a_stop_is_the_checkpoint_s_model(tmp_path: Path, first: dict[str, Any], then: dict[str, Any]) -> None:
    """Evaluation, its rhythm or the moving average may be asked for after the stop: the folder holds that epoch's weights in any case."""
    from safetensors.torch import load_file

    wanted, seen = config(tmp_path, epochs=3, **first), []
    with_eval = loop.Context(evaluate=lambda *_: None)
    stops = iter([False] * 9)
    stop = loop.Context(stop=lambda: next(stops, True), evaluate=with_eval.evaluate if first else None)
    assert loop.train(wanted, stop, training.Pictures).step == 10
    state = checkpoint.latest(Store(wanted.out or ""))
    assert state is not None

    def evaluate(folder: str, epochs: int) -> None:
        held = load_file(f"{folder}/open_clip_model.safetensors")
        seen.append((epochs, all(torch.equal(value, state["state_dict"][name]) for name, value in held.items())))

    (Path(wanted.out or "") / "evals").mkdir(exist_ok=True)
    loop.train(config(tmp_path, epochs=3, **then), loop.Context(evaluate=evaluate), training.Pictures)
    assert seen[0] == (2, True)
    assert [epochs for epochs, _ in seen] == [2, 3]


def test_a_checkpoint_holds_no_secrets(tmp_path: Path) -> None:
    wanted = config(tmp_path, epochs=1, data=[{"shards": "s3://b/c", "storage_options": {"secret": "hush1"}}])
    curve(wanted.model_copy(update={"storage_options": {"auto_mkdir": True}}))
    state = checkpoint.latest(Store(wanted.out or ""))
    assert state is not None
    assert "hush1" not in state["config"]
    assert "auto_mkdir" not in state["config"]
