"""Launching: the config's data and out, one worker here, two by Ray, signals, and faults that reach the user as one line."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import TransientError, UserError
from pipeline.storage import Store
from stages.lib import torchvision_shim
from tests.support import training
from tests.support.corpus import command, shardmill
from tests.support.s3 import s3_server
from tests.support.training import apart, config, curve, write_config, write_shards

torch = pytest.importorskip("torch")
torchvision_shim.ensure()
pytest.importorskip("open_clip")
pytest.importorskip("tensorboardX")

import pipeline.train  # noqa: E402
from stages.train import checkpoint, launch, loop, metrics  # noqa: E402


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"), 64, per_shard=20, size=48)


@pytest.fixture
def ray_here(ray_session: Any) -> Any:
    """Ray whose workers take this file's classes along: they cannot import it."""
    ray_session.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield ray_session
    ray_session.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def corpus_config(folder: Path, train: dict[str, Any]) -> Path:
    raw = {"input": {"path": "x.csv"}, "run": {"name": "mine", "root": str(folder / "runs")}, "stages": {}, "train": train}
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_a_corpus_config_trains_on_its_own_shards(tmp_path: Path) -> None:
    path = corpus_config(tmp_path, {"model": "ViT-tiny", "epochs": 2})
    with pytest.raises(UserError, match="has no shards yet; make them first: shardmill run"):
        pipeline.train.resolve(path, [])
    Store(str(tmp_path / "runs/mine")).write_json("shards/manifest.json", {})
    wanted, _ = pipeline.train.resolve(path, ["train.batch=64"])
    assert (wanted.data[0].shards, wanted.out, wanted.batch) == (f"{tmp_path}/runs/mine", f"{tmp_path}/runs/mine/train", 64)


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"model": "ViT-tiny", "out": "x"}, r"train\.data is missing"),
        ({"model": "ViT-tiny", "data": [{"shards": "x"}]}, r"train\.out is missing"),
        ({"model": "ViT-tiny", "batch": 10, "workers": 4}, "cannot be cut into workers x accumulate = 4 x 1"),
        ({"model": {"name": "offline-scorer", "lock_image": True}}, r"model\.lock_image: offline-scorer has frozen towers"),
        ({"model": {"name": "offline-scorer", "context_length": 9}}, r"model\.context_length: offline-scorer has frozen towers"),
        ({"model": {"name": "offline-scorer", "image_size": 64}}, r"model\.image_size: offline-scorer has frozen towers"),
        ({"model": {"name": "offline-scorer", "patch_dropout": 0.5}}, r"model\.patch_dropout: offline-scorer has frozen towers"),
        ({"model": "offline-scorer", "grad_checkpointing": True}, r"grad_checkpointing: offline-scorer has frozen towers"),
        ({"model": "ViT-tiny", "augment": {"color_jitter": [0.1, 0.1, 0.1, 0.8]}}, r"train\.augment\.color_jitter: .*hue is 0 to 0\.5"),
        ({"model": "ViT-tiny", "augment": {"scale": [2, 3]}}, r"train\.augment\.scale: .*the least and the largest share"),
        ({"model": "ViT-tiny", "augment": {"scale": [0.5, 0.1]}}, r"train\.augment\.scale: .*the least and the largest share"),
        ({"model": "ViT-tiny", "augment": {"ratio": [2, 1]}}, r"train\.augment\.ratio: .*the least and the largest width"),
        ({"model": {"name": "ViT-tiny", "lock_image_unlocked_groups": 1}}, r"lock_image_unlocked_groups leaves .*; set lock_image: true"),
        ({"model": {"name": "ViT-tiny", "lock_text_unlocked_layers": 1}}, r"lock_text_unlocked_layers leaves .*; set lock_text: true"),
        ({"model": "ViT-tiny", "seed": 2**63}, r"train\.seed: .*less than"),
        ({"model": "ViT-tiny", "bach": 10}, r"train\.bach: unknown key; did you mean batch\?"),
        ({"model": "ViT-tiny", "data": [{"shards": "x", "weight": 1}, {"shards": "y"}]}, "give every corpus a weight, or none"),
    ],
)
def test_a_config_that_cannot_be_is_refused_in_a_line(tmp_path: Path, train: dict[str, Any], said: str) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(yaml.safe_dump({"train": train}))
    with pytest.raises(UserError, match=said):
        pipeline.train.resolve(path, [])


def test_paths_are_made_whole_and_names_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.json").write_text("{}")
    given = {"model": {"name": "own.json", "pretrained": "openai"}, "data": [{"shards": ["a/{0..3}.tar", "s3://b/c"]}], "out": "o"}
    given["eval"] = {"data": ["held", "s3://b/e"]}
    whole = pipeline.train.whole_paths(pipeline.train.Train.model_validate(given))
    assert (whole.model.name, whole.model.pretrained, whole.out) == (f"{tmp_path}/own.json", "openai", f"{tmp_path}/o")
    assert whole.eval.data == [f"{tmp_path}/held", "s3://b/e"]
    assert whole.data[0].shards == [f"{tmp_path}/a/{{0..3}}.tar", "s3://b/c"]


def test_evaluation_data_that_is_not_there_is_told_before_the_first_step(tmp_path: Path, shards: Path) -> None:
    wanted = config(tmp_path, data=[{"shards": str(shards)}], eval={"data": str(tmp_path / "nowhere")})
    with pytest.raises(UserError, match=r"^train\.eval\.data: .*nowhere: no shards there"):
        pipeline.train.run_config(wanted)
    assert not (Path(wanted.out or "") / "metrics.jsonl").exists()
    assert not checkpoint.names(Store(wanted.out or ""))


def test_figures_are_made_again_where_the_data_is_another_and_not_where_it_was_moved(tmp_path: Path, shards: Path) -> None:
    def images(data: Path) -> int:
        pipeline.train.run_config(config(tmp_path, batch=16, epochs=1, data=[{"shards": str(shards)}], eval={"data": str(data)}))
        return int(json.loads((tmp_path / "out/eval.json").read_text())["data"]["images"])

    held = write_shards(tmp_path / "held", 24, size=48)
    assert (images(held), images(shards)) == (24, 64)
    written = (tmp_path / "out/eval.json").stat().st_mtime_ns
    assert images(shutil.copytree(shards, tmp_path / "moved")) == 64
    assert (tmp_path / "out/eval.json").stat().st_mtime_ns == written


def test_an_evaluation_that_fails_is_told_when_the_model_is_trained(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: Any) -> None:
        raise RuntimeError("no such operator")

    path = write_config(tmp_path, shards, epochs=2, loader_workers=0, eval={"data": str(shards)})
    with monkeypatch.context() as patched:
        patched.setattr(pipeline.train, "_evaluate", failing)
        with pytest.raises(
            UserError, match=r"^train\.eval: the evaluation after epochs 1, 2 failed: RuntimeError: no such operator; mend it"
        ):
            pipeline.train.run(path)
    assert "trained 8 of 8 steps" in capsys.readouterr().out
    assert (tmp_path / "out/model/open_clip_model.safetensors").exists()
    pipeline.train.run(path)
    assert json.loads((tmp_path / "out/eval.json").read_text())["epochs"] == 2


def test_a_captioning_model_of_a_short_context_is_evaluated_while_it_is_trained(tmp_path: Path, shards: Path) -> None:
    pytest.importorskip("pycocoevalcap")
    raw = {"batch": 16, "epochs": 1, "data": [{"shards": str(shards)}], "eval": {"data": str(shards)}}
    assert not pipeline.train.run_config(config(tmp_path, "micro_coca", **raw)).unmeasured
    assert json.loads((tmp_path / "out/eval.json").read_text())["captioning"]["images"] == 64


def test_all_of_a_training_and_its_evaluation_in_a_bucket(tmp_path: Path, shards: Path) -> None:
    for needed in ("moto", "s3fs"):
        pytest.importorskip(needed)
    import s3fs

    with s3_server("data") as given:
        bucket = s3fs.S3FileSystem(**given)
        bucket.put(f"{shards}/", "data/shards/", recursive=True)
        raw = {"batch": 16, "epochs": 1, "data": [{"shards": str(shards)}], "eval": {"data": "s3://data/shards"}}
        wanted = config(tmp_path, **raw).model_copy(update={"out": "s3://data/out", "storage_options": given})
        pipeline.train.run_config(wanted)
        found = json.loads(bucket.cat("data/out/eval.json"))
        assert found["data"]["images"] == 64
        state = checkpoint.latest(Store("s3://data/out", given))
        assert state is not None
        assert "endpoint_url" not in state["config"]
        nowhere = wanted.eval.model_copy(update={"storage_options": {**given, "client_kwargs": {"endpoint_url": "nonsense"}}})
        with pytest.raises(TransientError, match=r"^s3://data/shards: the storage refuses .*Invalid endpoint"):
            pipeline.train.run_config(wanted.model_copy(update={"eval": nowhere, "out": "s3://data/other"}))


def test_the_command_trains_on_shards_and_a_stop_loses_nothing(tmp_path: Path, shards: Path) -> None:
    options: dict[str, Any] = {"epochs": 10, "augment": {"hflip": True}, "checkpoint": {"every_steps": 1}}
    shardmill("train", str(write_config(tmp_path / "calm", shards, **options)))
    config_ = write_config(tmp_path / "stopped", shards, **options)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen(command("train", str(config_)), env=environment, stderr=subprocess.PIPE, text=True) as going:
        while going.poll() is None and not len(read(tmp_path / "stopped")) > 5:
            time.sleep(0.01)
        going.send_signal(signal.SIGTERM)
        _, said = going.communicate(timeout=120)
    assert going.returncode == 3
    assert "stopped by SIGTERM after step" in said
    done = len(read(tmp_path / "stopped"))
    assert 5 < done < 40
    out = shardmill("train", str(config_))
    assert f"train step={done}/40" in out.stderr
    assert apart(read(tmp_path / "calm"), read(tmp_path / "stopped")) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 3), (signal.SIGINT, 130)])
def test_a_stop_of_two_workers_loses_nothing(tmp_path: Path, shards: Path, number: signal.Signals, code: int) -> None:
    config_ = write_config(tmp_path, shards, epochs=200, workers=2, loader_workers=0, checkpoint={"every_steps": 10_000})
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen(command("train", str(config_)), env=environment, stderr=subprocess.PIPE, text=True) as going:
        while going.poll() is None and not len(read(tmp_path)) > 5:
            time.sleep(0.05)
        going.send_signal(number)
        _, said = going.communicate(timeout=200)
    assert going.returncode == code, said
    assert f"{number.name}: stopping after this step, with a checkpoint" in said
    assert "Set ray log level" not in said
    assert not (tmp_path / "out/.ray").exists()
    state = checkpoint.latest(Store(str(tmp_path / "out")))
    assert state is not None
    assert state["step"] == len(read(tmp_path))


@pytest.mark.parametrize("limit", [300, 1_000_000])
def test_a_disk_that_takes_no_more_is_told_in_a_line_and_the_same_command_goes_on(tmp_path: Path, shards: Path, limit: int) -> None:
    """The kernel's limit of a file's size stands for it: of metrics.jsonl after two lines, of the first checkpoint. Before, a trace."""
    options: dict[str, Any] = {"epochs": 1, "loader_workers": 0}
    shardmill("train", str(write_config(tmp_path / "calm", shards, **options)))
    config_ = str(write_config(tmp_path / "full", shards, **options))
    out = shardmill("train", config_, check=False, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert out.returncode == 3, out.stderr
    assert [line for line in out.stderr.splitlines() if not line.startswith("INFO")] == [out.stderr.splitlines()[-1]]
    assert "File too large; mend that, then repeat the command" in out.stderr
    shardmill("train", config_)
    assert apart(read(tmp_path / "calm"), read(tmp_path / "full")) == 0


def test_a_gpu_of_too_little_memory_is_told_what_to_change(tmp_path: Path) -> None:
    class Large(training.Pictures):
        def batches(self, epoch: int, start_step: int = 0) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(UserError, match=r"^train\.batch: 8 on 1 workers need more memory .*train\.accumulate.*Tried to allocate"):
        loop.train(config(tmp_path), loop.Context(), Large)


def read(folder: Path) -> list[dict[str, Any]]:
    return metrics.read(Store(str(folder / "out")))


class Faulty(training.Pictures):
    """A source that the user has to mend, on all ranks."""

    def steps(self, epoch: int) -> int:
        raise UserError("these shards cannot be")


class Dying(training.Pictures):
    """Ends the process of rank 1 at step 3 of the second epoch, the first time."""

    def batches(self, epoch: int, start_step: int = 0) -> Any:
        for batch in super().batches(epoch, start_step):
            mark = Path(self.wanted.out or "") / "died"
            if epoch == 1 and batch.step == 3 and self.first and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch


def test_a_fault_is_the_user_s_in_this_process(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="these shards cannot be"):
        launch.run(launch.Job(config(tmp_path), Faulty), metrics.Quiet())


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, TransientError), (signal.SIGINT, KeyboardInterrupt)])
def test_a_stop_before_the_first_step_ends_at_once(tmp_path: Path, number: signal.Signals, error: type[BaseException]) -> None:
    """Counting samples and features of frozen towers may take hours; before, the stop waited for all of it."""

    class Slow(training.Pictures):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            os.kill(os.getpid(), number)
            time.sleep(20)

    began = time.monotonic()
    with pytest.raises(error, match=None if error is KeyboardInterrupt else "stopped by SIGTERM before the first step; the same command"):
        launch.run(launch.Job(config(tmp_path), Slow), metrics.Quiet())
    assert time.monotonic() - began < 10


def test_a_loader_worker_that_is_killed_is_a_fault_that_may_pass(tmp_path: Path, shards: Path) -> None:
    """As the kernel does where memory is short; before, it ended with a trace as a bug does."""
    config_ = write_config(tmp_path, shards, epochs=2000, checkpoint={"every_steps": 10_000})
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen(command("train", str(config_)), env=environment, stderr=subprocess.PIPE, text=True) as going:
        while going.poll() is None and not len(read(tmp_path)) > 5:
            time.sleep(0.05)
        children = Path(f"/proc/{going.pid}/task/{going.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        _, said = going.communicate(timeout=120)
    assert going.returncode == 3, said
    assert said.splitlines()[-1].startswith("error: train: ")
    assert "the same command goes on" in said


def test_fsdp_alone_needs_no_ray(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    plain = curve(config(tmp_path / "a", epochs=1))
    wanted = config(tmp_path / "b", epochs=1, strategy="fsdp")
    assert launch.run(launch.Job(wanted, training.Pictures), metrics.Quiet()).state == loop.DONE
    assert apart(plain, metrics.read(Store(wanted.out or ""))) < 2e-5


@pytest.mark.slow
@pytest.mark.ray
def test_a_lost_worker_costs_steps_but_not_the_curve(tmp_path: Path, ray_here: Any) -> None:
    class Told(metrics.Quiet):
        begun: list[Any] = []

        def begin(self, step: int, steps: int) -> None:
            self.begun.append((step, steps))

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    calm = curve(config(tmp_path / "a"))
    wanted = config(tmp_path / "b", workers=2, checkpoint={"every_steps": 2})
    outcome = launch.run(launch.Job(wanted, Dying), Told())
    assert (outcome.state, outcome.step) == (loop.DONE, 10)
    begun = [step for step, _ in Told.begun]
    assert begun in ([0, 8], [0, 6])  # rank 1 ends itself after step 8, rank 0 perhaps while it writes that step's checkpoint
    assert apart(calm, metrics.read(Store(wanted.out or ""))) < 2e-5
    assert not (tmp_path / "b/out/.ray").exists()


@pytest.mark.slow
@pytest.mark.ray
def test_a_fault_in_a_worker_is_told_once_and_not_tried_again(tmp_path: Path, ray_here: Any) -> None:
    with pytest.raises(UserError, match=r"^these shards cannot be$"):
        launch.run(launch.Job(config(tmp_path, workers=2), Faulty), metrics.Quiet())


@pytest.mark.slow
@pytest.mark.ray
def test_what_a_worker_warns_of_is_told_here(tmp_path: Path, ray_here: Any, caplog: pytest.LogCaptureFixture) -> None:
    def failing(*_: Any) -> None:
        raise UserError("this model cannot be evaluated")

    outcome = launch.run(launch.Job(config(tmp_path, workers=2, epochs=1), training.Pictures, failing), metrics.Quiet())
    assert (outcome.state, outcome.step) == (loop.DONE, 5)
    assert "after epoch 1 failed: this model cannot be evaluated" in outcome.unmeasured
    assert "the evaluation after epoch 1 failed: this model cannot be evaluated" in caplog.text


@pytest.mark.slow
@pytest.mark.ray
def test_more_workers_than_ray_has_room_for_are_refused(tmp_path: Path, ray_here: Any) -> None:
    with pytest.raises(UserError, match="lower workers or cpus, or add nodes"):
        launch.run(launch.Job(config(tmp_path, workers=2, cpus=4), training.Pictures), metrics.Quiet())


@pytest.mark.slow
@pytest.mark.ray
def test_a_worker_that_is_lost_again_and_again_ends_it(tmp_path: Path, ray_here: Any) -> None:
    class Always(Dying):
        def batches(self, epoch: int, start_step: int = 0) -> Any:
            raise OSError("no such device")

    with pytest.raises(TransientError, match=r"failed more than 1 times.*no such device"):
        launch.run(launch.Job(config(tmp_path, workers=2, max_failures=1), Always), metrics.Quiet())


def test_a_second_training_into_one_folder_is_refused(tmp_path: Path, shards: Path) -> None:
    wanted = config(tmp_path, data=[{"shards": str(shards)}])
    with Store(wanted.out or "").locked("training"), pytest.raises(TransientError, match="another shardmill works on this training"):
        pipeline.train.run_config(wanted)
