"""Models: open_clip's own by name, folder and JSON; normalised, pooled and locked as they should be; written for open_clip to read."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.storage import Store
from stages.lib import torchvision_shim
from tests.support import training

torch = pytest.importorskip("torch")
torchvision_shim.ensure()
pytest.importorskip("open_clip")

from stages.evaluate import scorers  # noqa: E402
from stages.train import checkpoint, launch, models  # noqa: E402
from stages.train.config import Train  # noqa: E402
from stages.train.metrics import Quiet  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def build(tmp_path: Path, kind: str = "micro", /, **options: Any) -> models.Model:
    return models.build(training.config(tmp_path, kind, **options))


def batch(made: models.Model, frames: int = 0) -> tuple[Any, Any]:
    shape = (4, *([frames] if frames else []), 3, *made.image_size)
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    return image, made.tokenizer(["a cat", "two dogs", "a bird", "grass"])


def test_the_tiny_model_of_ours_is_known_by_name() -> None:
    made = models.build(Train.model_validate({"model": "ViT-tiny"}))
    assert (made.image_size, made.context_length, made.loss) == ((224, 224), 32, "clip")


def test_the_first_weights_follow_from_the_seed_alone(tmp_path: Path) -> None:
    def weights(**options: Any) -> Any:
        return torch.cat([value.flatten() for value in build(tmp_path, **options).net.state_dict().values()])

    assert torch.equal(weights(), weights())
    assert not torch.equal(weights(), weights(seed=1))


@pytest.mark.parametrize("model", ["micro", "micro_sig", "micro_coca"])
def test_pixels_are_normalised_as_open_clip_does_it(tmp_path: Path, model: str) -> None:
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from PIL import Image

    made = build(tmp_path, model)
    image, text = batch(made)
    transform = image_transform_v2(PreprocessCfg(**made.net.visual.preprocess_cfg), is_train=False)
    theirs = torch.stack([transform(Image.fromarray(one.permute(1, 2, 0).numpy())) for one in image])
    made.net.eval()
    ours, wanted = models.wrap(made).eval()(image, text), made.net(theirs, text)
    assert set(ours) == set(wanted)
    for name in wanted:
        torch.testing.assert_close(ours[name], wanted[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", ["micro", "micro_coca"])
def test_a_clip_s_frames_are_mean_pooled_before_they_are_normalised(tmp_path: Path, model: str) -> None:
    made = build(tmp_path, model)
    wrapped = models.wrap(made).eval()
    frames, text = batch(made, frames=3)
    out = wrapped(frames, text)
    pixels = (frames.flatten(0, 1).float() / 255 - wrapped.mean) / wrapped.std
    raw = made.net.encode_image(pixels, normalize=False).unflatten(0, (4, 3)).mean(1)
    torch.testing.assert_close(out["image_features"], torch.nn.functional.normalize(raw, dim=-1))
    still = wrapped(frames[:, :1].expand(-1, 3, -1, -1, -1), text)["image_features"]
    torch.testing.assert_close(still, wrapped(frames[:, 0], text)["image_features"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", ["micro", "micro_coca"])
def test_a_locked_tower_is_not_trained_and_stays_in_evaluation_mode(tmp_path: Path, model: str) -> None:
    made = build(tmp_path, model, model={"lock_image": True})
    models.train_mode(made.net)
    assert not any(parameter.requires_grad for parameter in made.net.visual.parameters())
    assert not any(part.training for part in made.net.visual.modules())
    assert made.net.training
    assert made.net.logit_scale.requires_grad


def test_the_last_groups_of_a_locked_tower_can_stay_trainable(tmp_path: Path) -> None:
    made = build(tmp_path, model={"lock_image": True, "lock_image_unlocked_groups": 1, "lock_text": True})
    trained = {name for name, parameter in made.net.named_parameters() if parameter.requires_grad}
    assert trained == {"visual.proj", "logit_scale"}


def test_a_tower_that_cannot_be_locked_in_part_is_the_user_s_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resnet = {**training.CLIP, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}}
    monkeypatch.setitem(training.MODELS, "micro_resnet", resnet)
    assert build(tmp_path, "micro_resnet", model={"lock_image": True})
    with pytest.raises(
        UserError, match=r"^train\.model: open_clip cannot lock .* so: AssertionError: partial locking not currently supported"
    ):
        build(tmp_path, "micro_resnet", model={"lock_image": True, "lock_image_unlocked_groups": 1})


def test_a_clip_model_becomes_siglip_s_with_a_bias(tmp_path: Path) -> None:
    made = build(tmp_path, loss={"kind": "siglip"})
    assert made.loss == "siglip"
    assert made.net.logit_bias.item() == -10
    assert made.description["model_cfg"]["init_logit_bias"] == -10


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": {"name": "ViT-B-23"}}, "did you mean ViT-B-32"),
        ({"model": {"name": "/nowhere/x.json"}}, r"x\.json cannot be read: FileNotFoundError"),
        ({"model": {"drop": 0.1}}, "no timm image tower"),
        ({"model": {"pretrained": "no_such_tag"}}, "open_clip cannot make"),
        ({"loss": {"kind": "coca"}}, "no captioning decoder"),
        ({"model": {"lock_image": True, "lock_text": True}}, ""),
    ],
)
def test_what_cannot_be_is_the_user_s_error(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    if not said:  # both towers locked: the logit scale is left, which is a choice
        build(tmp_path, **options)
        return
    with pytest.raises(UserError, match=said):
        build(tmp_path, **options)


VISION, TEXT = training.VISION, training.TEXT


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"vision_cfg": {**VISION, "bogus": 1}}, "TypeError: .*'bogus'"),
        ({"bogus": 1}, "TypeError: .*'bogus'"),
        ({"vision_cfg": "x"}, "AttributeError|TypeError"),
        ({"text_cfg": None}, "TypeError"),
        ({"embed_dim": "x"}, "TypeError"),
        ({"vision_cfg": {**VISION, "width": 33}}, "AssertionError: embed_dim must be divisible by num_heads"),
        ({"vision_cfg": {**VISION, "patch_size": 64}}, "RuntimeError: .*[Kk]ernel size can't be greater"),
        ({"text_cfg": {**TEXT, "vocab_size": 100}}, "IndexError: index out of range"),
        ({"vision_cfg": {"timm_model_name": "no_such_tower", "image_size": 32}}, r"RuntimeError: Unknown model \(no_such_tower\)"),
    ],
)
def test_a_json_that_describes_no_model_is_the_user_s_error(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    path = tmp_path / f"{tmp_path.name}.json"  # open_clip remembers names
    path.write_text(json.dumps({**training.CLIP, **changed}))
    with pytest.raises(UserError, match=rf"^train\.model: open_clip cannot make {path} with random weights: ({said})"):
        models.build(Train.model_validate({"model": str(path)}))


def test_with_several_workers_it_is_told_before_ray_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_start", lambda *_: pytest.fail("Ray was started"))
    wanted = training.config(tmp_path, workers=2, model={"image_size": 4})
    with pytest.raises(UserError, match=r"^train\.model: open_clip cannot make "):
        launch.run(launch.Job(wanted, training.Pictures), Quiet())


@pytest.mark.parametrize("body", ["3", "[1]", '{"embed_dim": 3}'])
def test_a_json_that_lacks_a_model_s_parts_is_the_user_s_error(tmp_path: Path, body: str) -> None:
    (tmp_path / "x.json").write_text(body)
    with pytest.raises(UserError, match=r"x\.json lacks .*text_cfg"):
        models.build(Train.model_validate({"model": str(tmp_path / "x.json")}))


def test_an_image_smaller_than_a_patch_is_the_user_s_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^train\.model: open_clip cannot make .*: RuntimeError"):
        build(tmp_path, model={"image_size": 4})


def test_what_a_storage_refuses_is_the_user_s_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_DEFAULT_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(UserError, match=r"^train\.model: s3://x/y\.json cannot be read: NoCredentialsError"):
        models.build(Train.model_validate({"model": "s3://x/y.json"}))
    with pytest.raises(UserError, match=r"^train\.model\.pretrained: s3://x/y\.pt cannot be read: NoCredentialsError"):
        build(tmp_path, model={"pretrained": "s3://x/y.pt"})


def test_a_hub_that_cannot_be_reached_is_told_in_a_line_and_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its client would ask again for 24 s. A model that is in its cache is not asked for."""
    import huggingface_hub

    closed = "http://127.0.0.1:9"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # the tests are offline otherwise
    monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda repo, file: f"{closed}/{repo}/resolve/main/{file}")
    for load, said in (
        (lambda: models.build(Train.model_validate({"model": "hf-hub:a/b"})), r"^train\.model: a/b is not in the hub's cache, and"),
        (lambda: scorers.load("hf-hub:a/b"), r"^eval: a/b is not in the hub's cache, and"),
    ):
        began = time.monotonic()
        with pytest.raises(UserError, match=rf"{said} .* cannot be asked for it \(ConnectError: "):
            load()
        assert time.monotonic() - began < 10
    folder = checkpoint.export(Store(str(tmp_path / "out")), made := build(tmp_path), made.net.state_dict())
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, file: f"{folder}/{file}")
    monkeypatch.setattr("open_clip.pretrained.hf_hub_download", lambda repo_id, filename, **_: str(Path(folder) / filename))
    assert models.build(Train.model_validate({"model": "hf-hub:a/b"})).image_size == made.image_size


def test_what_is_no_folder_is_told_in_a_line() -> None:
    with pytest.raises(UserError, match=r"^train\.model: open_clip cannot make local-dir:/nowhere .*FileNotFoundError"):
        models.build(Train.model_validate({"model": "local-dir:/nowhere"}))


def test_a_folder_brings_its_weights_and_takes_no_others(tmp_path: Path) -> None:
    folder = checkpoint.export(Store(str(tmp_path / "out")), made := build(tmp_path), made.net.state_dict())
    with pytest.raises(UserError, match=r"^train\.model\.pretrained: .* brings its own weights; leave it out"):
        models.build(Train.model_validate({"model": {"name": folder, "pretrained": "openai"}}))
    (Path(folder) / checkpoint.WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"^train\.model: .*Required pretrained weights"):
        models.build(Train.model_validate({"model": folder}))


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("body", [b"", b"no weights at all", b"PK" + bytes(99), bytes(99)])
def test_a_file_that_holds_no_weights_is_the_user_s_error(tmp_path: Path, name: str, body: bytes) -> None:
    (tmp_path / name).write_bytes(body)
    with pytest.raises(UserError, match=rf"open_clip cannot make .* with .*{name}: (?!.*weights_only)\w+: ."):
        build(tmp_path, model={"pretrained": str(tmp_path / name)})
    with pytest.raises(UserError, match=r"train\.model\.pretrained: .*holds no weights of the offline scorer"):
        models.build(Train.model_validate({"model": {"name": "offline-scorer", "pretrained": str(tmp_path / name)}}))


def test_patch_dropout_is_the_tower_s_own(tmp_path: Path) -> None:
    assert build(tmp_path, model={"patch_dropout": 0.5}).net.visual.patch_dropout.prob == 0.5


@pytest.mark.parametrize("model", ["micro", "micro_sig", "micro_coca"])
def test_open_clip_loads_what_was_written_and_so_do_we(tmp_path: Path, model: str) -> None:
    import open_clip

    made = build(tmp_path, model, seed=5)
    with torch.no_grad():
        made.net.logit_scale.fill_(3.0)
    folder = checkpoint.export(Store(str(tmp_path / "out")), made, made.net.state_dict())
    (written,) = Path(folder).glob("*.safetensors")
    assert written.stat().st_mode == (Path(folder) / "open_clip_config.json").stat().st_mode
    theirs = open_clip.create_model(f"local-dir:{folder}", output_dict=True)
    weights = f"{folder}/open_clip_model.safetensors"
    ours = build(tmp_path, model, model={"pretrained": weights}).net
    by_folder = models.build(Train.model_validate({"model": folder})).net
    for loaded in (theirs, ours, by_folder, open_clip.create_model(model, pretrained=weights)):
        for name, value in made.net.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value), name


def test_blocks_are_the_towers_repeated_ones(tmp_path: Path) -> None:
    from stages.train.step import blocks

    assert len(blocks(build(tmp_path).net)) == 4
    assert len(blocks(build(tmp_path, "micro_coca").net)) == 8


def test_weights_at_a_url_are_fetched(tmp_path: Path) -> None:
    import fsspec

    made = build(tmp_path, seed=3)
    torch.save(made.net.state_dict(), tmp_path / "w.pt")
    with fsspec.open("memory://weights/w.pt", "wb") as handle:
        handle.write((tmp_path / "w.pt").read_bytes())
    loaded = build(tmp_path, model={"pretrained": "memory://weights/w.pt"})
    assert torch.equal(loaded.net.visual.proj, made.net.visual.proj)


def test_normalised_features_only_where_pixels_come(tmp_path: Path) -> None:
    """Features of a frozen tower pass as they are."""

    class Head(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.logit_scale = torch.nn.Parameter(torch.tensor(1.0))

        def forward(self, image: Any, text: Any) -> dict[str, Any]:
            return {"image_features": image, "text_features": text}

    model = models.Model(Head(), (8, 8), (), (), SimpleNamespace, 4, "clip")  # type: ignore[arg-type]
    image = torch.ones(2, 5)
    assert torch.equal(models.wrap(model)(image, image)["image_features"], image)
