"""`shardmill eval` as a user gives it: shards, a table with a folder, judgements, classes; what it writes and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import pipeline.evaluate
from pipeline import cli
from pipeline.errors import ShardmillError, UserError
from pipeline.evaluate import Options
from stages.evaluate import scorers
from tests.stages.evaluate import models
from tests.stages.evaluate.test_evaluate_data import Colours, jpeg, tar
from tests.support.s3 import s3_server

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three one-coloured images with two captions each, as a table and as a shard with labels, and people's judgements of them."""
    (tmp_path / "images").mkdir()
    rows, judged, samples = ["image,caption"], ["image,caption_of,caption,share_yes,n_yes,n_no"], {}
    for number, (name, colour) in enumerate(COLOURS.items()):
        (tmp_path / "images" / f"{name}.png").write_bytes(jpeg(colour))
        rows += [f"{name}.png,all {name}", f"{name}.png,a {name} thing"]
        judged += [f"{name}.png,{other}.png,all {other},{int(name == other)},0,0" for other in COLOURS]
        samples[str(number)] = {"png": jpeg(colour), "txt": f"all {name}\na {name} thing", "cls": str(number)}
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    (tmp_path / "judged.csv").write_text("\n".join(judged))
    (tmp_path / "classes.txt").write_text("red\ngreen\nblue\n")
    tar(tmp_path / "00000.tar", samples)
    return tmp_path


def options(folder: Path, **other: Any) -> Options:
    return Options(data=(str(folder / "00000.tar"),), classes=str(folder / "classes.txt"), templates="plain", **other)


@models.needs_clip
def test_a_scorer_that_knows_colours_gets_everything_right(folder: Path) -> None:
    found = pipeline.evaluate.evaluate(Colours(), options(folder, judgements=(str(folder / "judged.csv"), str(folder / "images"))))
    assert found["data"]["images"] == 3
    assert found["data"]["captions"] == 6
    assert {found["retrieval"][f"{way}_R@1"] for way in ("image_to_text", "text_to_image")} == {1.0}
    assert found["pairs"]["auc"] == 1.0
    assert found["zeroshot"]["top1"] == found["zeroshot"]["mean_per_class"] == 1.0
    assert found["judgements"]["tau_c"] == pytest.approx(2 * 18 / (81 * 0.5))  # its greatest value with 3 of 9 true
    assert found["judgements"]["pairs_others"] == 6
    assert found["judgements"]["tau_c_others"] is None  # all of them are judged alike: there is no order to agree with
    assert list(found["left_out"]) == ["captioning"]


@models.needs_clip
def test_a_table_gives_what_the_same_data_in_shards_gives(folder: Path) -> None:
    scorer = scorers.load(str(models.made(folder / "model", models.CLIP)))
    from_shards = pipeline.evaluate.evaluate(scorer, options(folder))
    table = Options(data=(str(folder / "pairs.csv"),), images=str(folder / "images"))
    from_table = pipeline.evaluate.evaluate(scorer, table)
    assert from_table["retrieval"] == from_shards["retrieval"]
    assert from_table["pairs"]["auc"] == from_shards["pairs"]["auc"]
    assert "zeroshot" in from_table["left_out"]


@models.needs_clip
def test_embeddings_are_open_clips(folder: Path) -> None:
    import open_clip
    import torch

    path = models.made(folder / "model", models.CLIP)
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{path}")
    tokens = open_clip.get_tokenizer(f"local-dir:{path}")(["all red", "a blue thing"])
    images = [Image.effect_noise((50, 40), 80).convert("RGB") for _ in range(3)]
    scorer = scorers.load(str(path))
    with torch.no_grad():
        wanted = model.eval().encode_image(torch.stack([transform(image) for image in images])).numpy()
        wanted_text = model.encode_text(tokens).numpy()
    np.testing.assert_allclose(scorer.encode_image(images), wanted, atol=1e-5)
    np.testing.assert_allclose(scorer.encode_text(["all red", "a blue thing"]), wanted_text, atol=1e-5)


@models.needs_clip
def test_the_command_writes_and_prints_and_the_model_may_lie_in_a_run(folder: Path) -> None:
    models.made(folder / "run" / "train" / "model", models.CLIP)
    given = ["eval", str(folder / "run"), "--data", str(folder / "00000.tar"), "--classes", str(folder / "classes.txt")]
    given += ["--templates", "plain", "--judgements", str(folder / "judged.csv"), str(folder / "images")]
    done = CliRunner().invoke(cli.app, given)
    assert done.exit_code == 0, done.output
    written = json.loads((folder / "run" / "train" / "eval.json").read_text())
    assert f"{written['retrieval']['text_to_image_R@1']:.4f}" in done.output
    assert "tau_c" in done.output
    assert "not measured: captioning" in done.output
    again = CliRunner().invoke(cli.app, [*given, "--out", str(folder / "again.json")])
    assert again.exit_code == 0
    second = json.loads((folder / "again.json").read_text())
    assert {**second, "seconds": 0} == {**written, "seconds": 0}


@models.needs_clip
def test_what_a_config_trained_is_found_by_its_config(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's name and root are the config's, not the file's: `make pretrain SET="run.root=…"` measures what it trained."""
    monkeypatch.chdir(folder)
    models.made(folder / "elsewhere" / "named" / "train" / "model", models.CLIP)
    raw = {"input": {"path": "x.csv"}, "run": {"name": "named"}, "stages": {}}
    train = {"model": "ViT-tiny", "data": [{"shards": str(folder / "00000.tar")}]}
    (folder / "mine.yaml").write_text(json.dumps({**raw, "train": train}))
    given = ["eval", "mine.yaml", "--set", "run.root=elsewhere", "--classes", "classes.txt", "--templates", "plain"]
    done = CliRunner().invoke(cli.app, given)
    assert done.exit_code == 0, done.output
    written = json.loads((folder / "elsewhere/named/train/eval.json").read_text())
    assert written["data"]["sources"] == [str(folder / "00000.tar")]
    assert written["data"]["trained_on"]
    assert "measured on what it was trained on" in done.output
    (folder / "other.tar").write_bytes((folder / "00000.tar").read_bytes())
    done = CliRunner().invoke(cli.app, [*given, "--set", "train.eval.data=other.tar"])
    assert "trained on" not in done.output
    assert json.loads((folder / "elsewhere/named/train/eval.json").read_text())["data"]["sources"] == ["other.tar"]
    with pytest.raises(UserError, match=r"has no model yet; train it first: shardmill train mine\.yaml"):
        pipeline.evaluate.run("mine.yaml", Options())
    with pytest.raises(UserError, match="--set goes with a config"):
        pipeline.evaluate.run("elsewhere/named", Options(), overrides=["run.root=x"])


@models.needs_clip
def test_a_model_at_a_url(folder: Path) -> None:
    found = pipeline.evaluate.run(f"file://{models.made(folder / 'model', models.CLIP)}", options(folder))
    assert found["data"]["images"] == 3
    assert (folder / "model" / "eval.json").exists()


@models.needs_clip
def test_model_data_and_figures_in_a_bucket(folder: Path) -> None:
    for needed in ("moto", "s3fs"):
        pytest.importorskip(needed)
    import s3fs

    models.made(folder / "model", models.CLIP)
    with s3_server("data") as given:
        bucket = s3fs.S3FileSystem(**given)
        bucket.put(str(folder / "model"), "data/model", recursive=True)
        for name in ("00000.tar", "judged.csv", "classes.txt"):
            bucket.put(str(folder / name), f"data/{name}")
        bucket.put(str(folder / "images"), "data/images", recursive=True)
        line = ["eval", "s3://data/model", "--data", "s3://data/00000.tar", "--classes", "s3://data/classes.txt", "--templates", "plain"]
        line += ["--judgements", "s3://data/judged.csv", "s3://data/images"]
        for key, value in (("key", given["key"]), ("secret", given["secret"]), ("client_kwargs", json.dumps(given["client_kwargs"]))):
            line += ["--storage-option", f"{key}={value}"]
        done = CliRunner().invoke(cli.app, line)
        assert done.exit_code == 0, done.output
        written = json.loads(bucket.cat("data/model/eval.json"))
    here = pipeline.evaluate.evaluate(
        scorers.load(str(folder / "model")), options(folder, judgements=(str(folder / "judged.csv"), str(folder / "images")))
    )
    assert written["retrieval"] == here["retrieval"]
    assert written["judgements"]["tau_c"] == here["judgements"]["tau_c"]


@models.needs_clip
@pytest.mark.parametrize("url", ["nope://data/model", "s3://data/model"])
def test_a_storage_that_refuses_is_told_in_a_line(folder: Path, url: str) -> None:
    given = {"client_kwargs": {"endpoint_url": "nonsense"}} if url.startswith("s3") else {}
    with pytest.raises(UserError, match=rf"^eval: {url}: cannot be read: ValueError: .*check the URL, its endpoint and keys"):
        scorers.load(url, storage_options=given)
    with pytest.raises(ShardmillError, match=rf"{url}.*ValueError"):
        pipeline.evaluate.evaluate(Colours(), Options(data=(url,), storage_options=given))
    with pytest.raises(UserError, match=rf"{url}: cannot be read: ValueError"):
        pipeline.evaluate.evaluate(Colours(), Options(judgements=(url, str(folder)), storage_options=given))


@models.needs_clip
@pytest.mark.parametrize("body", [b"", b"no weights at all", bytes(99)])
def test_weights_that_are_none_are_told_in_a_line(folder: Path, body: bytes) -> None:
    (folder / "w.pt").write_bytes(body)
    with pytest.raises(UserError, match=r"open_clip cannot load ViT-B-32 .*w\.pt"):
        scorers.load("ViT-B-32", str(folder / "w.pt"))


@models.needs_clip
def test_a_model_that_writes_captions(folder: Path) -> None:
    pytest.importorskip("pycocoevalcap")
    found = pipeline.evaluate.run(str(models.made(folder / "coca", models.COCA)), options(folder))
    assert found["captioning"]["images"] == 3
    assert found["captioning"]["examples"][0]["given"] == "all red"
    assert 0 <= found["captioning"]["bleu4"] < 0.01
    quiet = pipeline.evaluate.run(str(folder / "coca"), options(folder, write_captions=False))
    assert quiet["left_out"]["captioning"] == "not asked for (--no-captioning)"


@models.needs_clip
@pytest.mark.parametrize(
    ("model", "pretrained", "said"),
    [
        ("ViT-B-33", None, r"knows no model ViT-B-33.*did you mean ViT-B-32"),
        ("ViT-B-32", None, "a model without weights answers nothing; choose by --pretrained one of ViT-B-32's weights: openai"),
        ("ViT-B-32", "opanai", "'opanai' is none of ViT-B-32's weights"),
    ],
)
def test_models_that_are_not_there(model: str, pretrained: str | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        scorers.load(model, pretrained)


@models.needs_clip
def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no open_clip_config\.json"):
        scorers.load(str(tmp_path))


@models.needs_clip
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"data": ("pairs.csv",)}, "--data CSV --images FOLDER"),
        ({"data": ("pairs.csv", "more.csv"), "images": "images"}, "one table goes with one folder"),
        ({"data": ("nowhere.tar",)}, "^eval: --data: nowhere.tar"),
        ({"data": ("00000.tar",), "classes": "none.txt"}, "none.txt: no such file"),
        ({"judgements": ("none.csv", "images")}, "none.csv: no such file"),
        ({"judgements": ("judged.csv", ".")}, "holds none of the images that judged.csv judges"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], said: str) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=said):
        pipeline.evaluate.evaluate(Colours(), Options(**given))


@models.needs_clip
def test_damaged_shards_and_what_is_missing_of_them_stand_with_the_figures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (found := pipeline.evaluate.evaluate(Colours(), options(folder)))["data"]["damaged_shards"] == {}
    assert found["data"]["missing"] == 0
    whole = (folder / "00000.tar").read_bytes()
    (folder / "00001.tar").write_bytes(b"hello" * 1000)
    (folder / "00002.tar").write_bytes(whole[: len(whole) // 3])
    (folder / "sizes.json").write_text(json.dumps({"00000.tar": 3, "00001.tar": 0, "00002.tar": 3}))
    found = pipeline.evaluate.evaluate(Colours(), Options(data=(str(folder),)))
    left = found["data"]["images"] - 3
    assert 0 < left < 3
    assert found["data"]["missing"] == 3 - left
    assert list(found["data"]["damaged_shards"]) == [f"{folder}/00002.tar"]
    pipeline.evaluate.show({**found, "written": "x"})
    assert f"{folder}/00002.tar: {left} samples, not the 3" in capsys.readouterr().out
    (folder / "sizes.json").unlink()
    found = pipeline.evaluate.evaluate(Colours(), Options(data=(str(folder),)))
    assert found["data"]["missing"] is None
    assert list(found["data"]["damaged_shards"]) == [f"{folder}/00001.tar", f"{folder}/00002.tar"]


@models.needs_clip
def test_weights_of_another_model_are_told_in_a_line(folder: Path) -> None:
    weights = models.made(folder / "model", models.CLIP) / "open_clip_model.safetensors"
    with pytest.raises(UserError, match=r"^eval: open_clip cannot load ViT-B-32 \(.*safetensors\): \w+Error: "):
        scorers.load("ViT-B-32", str(weights))


@models.needs_clip
def test_a_folder_brings_its_weights_and_takes_no_others(folder: Path) -> None:
    made = models.made(folder / "model", models.CLIP)
    with pytest.raises(UserError, match=r"^eval: --pretrained openai: .*model brings its own weights; leave it out"):
        scorers.load(str(made), "openai")
    (made / "open_clip_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"^eval: open_clip cannot load .* Required pretrained weights"):
        scorers.load(str(made))


@models.needs_clip
@pytest.mark.parametrize("device", ["bogus", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_told_in_a_line(folder: Path, device: str) -> None:
    with pytest.raises(UserError, match=rf"^eval: --device {device}: "):
        scorers.load("offline-scorer", None, device)


@pytest.mark.parametrize("name", ["step-000000005.pt", "open_clip_model.safetensors", "s3://a/b.pt"])
def test_a_file_of_weights_as_the_model_is_told_what_to_give(name: str) -> None:
    with pytest.raises(UserError, match=rf"^eval: {name} is a file of weights.*out.*--pretrained {name}"):
        pipeline.evaluate.run(name, Options(data=("x",)))


@pytest.mark.parametrize("out", ["pairs.csv/x.json", "images", "/proc/x/eval.json", "images/"])
def test_where_the_figures_cannot_be_written_is_told_before_anything_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(scorers, "load", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(UserError, match=rf"^eval: --out {out}: "):
        pipeline.evaluate.run("ViT-B-32", Options(data=("00000.tar",)), out=out)


def test_a_negative_seed_is_refused(folder: Path) -> None:
    done = CliRunner().invoke(cli.app, ["eval", "ViT-B-32", "--data", str(folder), "--seed", "-1"])
    assert done.exit_code == 2
    assert "--seed" in done.output


@models.needs_clip
def test_names_of_classes_and_templates_are_read_before_the_images(folder: Path) -> None:
    (folder / "none.txt").write_text("no place")
    (folder / "empty.txt").write_text(" \n")
    tar(folder / "00000.tar", {"0": {"jpg": jpeg((255, 0, 0)), "txt": "red"}})
    for wrong in (
        {"classes": "nowhere.txt"},
        {"classes": str(folder / "empty.txt")},
        {"templates": str(folder / "none.txt")},
        {"templates": "opanai"},
    ):
        scorer = Colours()
        with pytest.raises(UserError):
            pipeline.evaluate.evaluate(scorer, Options(data=(str(folder / "00000.tar"),), **wrong))  # type: ignore[arg-type]
        assert not scorer.images


@models.needs_clip
@pytest.mark.parametrize(
    ("option", "key", "given"),
    [
        ("--caption", "nosuch", {"caption_key": "nosuch"}),
        ("--label", "nosuch", {"label_key": "nosuch"}),
        ("--caption", "blank", {"caption_key": "blank"}),
    ],
)
def test_a_key_that_no_sample_has_is_refused_with_those_there_are(folder: Path, option: str, key: str, given: dict[str, Any]) -> None:
    """Of the command exit code 2; before, a table without figures and exit code 0."""
    image = {"png": jpeg((255, 0, 0)), "txt": "red"}
    tar(folder / "00000.tar", {"0": {**image, "json": {"alt": "red", "kind": "red"}}, "1": {**image, "json": {"alt": "red", "blank": " "}}})
    scorer = Colours()
    with pytest.raises(UserError, match=rf"^eval: {option} {key}: no sample's json says anything there; its keys are alt, blank, kind$"):
        pipeline.evaluate.evaluate(scorer, Options(data=(str(folder / "00000.tar"),), **given))
    assert not scorer.images
    found = pipeline.evaluate.evaluate(
        scorer, Options(data=(str(folder / "00000.tar"),), caption_key="alt", label_key="kind", templates="plain")
    )
    assert (found["data"]["captions"], found["zeroshot"]["classes"]) == (2, 1)


@models.needs_clip
def test_judgements_are_read_before_any_image_and_before_the_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "wrong.csv").write_text("image,caption,score\na,b,1\n")
    monkeypatch.setattr(scorers, "load", lambda *_: pytest.fail("the model was loaded"))
    for table, images, said in (
        ("wrong.csv", "images", "judgements need image, caption"),
        ("judged.csv", "nowhere", "no such folder of images"),
        ("judged.csv", ".", "holds none of the images that judged.csv judges"),
    ):
        asked = Options(data=("00000.tar",), judgements=(table, images))
        with pytest.raises(UserError, match=said):
            pipeline.evaluate.run("ViT-B-32", asked, "openai")
        scorer = Colours()
        with pytest.raises(UserError, match=said):
            pipeline.evaluate.evaluate(scorer, asked)
        assert not scorer.images


@models.needs_clip
def test_a_gpu_of_too_little_memory_is_told_what_to_change(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    class Large(Colours):
        def encode_image(self, images: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(scorers, "load", lambda *_: Large())
    with pytest.raises(UserError, match=r"^eval: --batch 64: CUDA out of memory\. Tried .*; lower it$"):
        pipeline.evaluate.run("x", Options(data=(str(folder / "00000.tar"),)), out=str(folder / "x.json"))


@models.needs_clip
def test_judgements_without_an_order_are_told(folder: Path) -> None:
    (folder / "judged.csv").write_text("image,caption,share_yes\nred.png,all red,1\nblue.png,all red,1\n")
    found = pipeline.evaluate.evaluate(Colours(), Options(judgements=(str(folder / "judged.csv"), str(folder / "images"))))
    assert found["judgements"]["tau_c"] is None
    assert "are alike" in found["left_out"]["judgements tau_c"]


@models.needs_clip
def test_a_moving_average_that_was_never_kept_is_told_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    models.made(folder / "out" / "model", models.CLIP)
    train = {"model": "ViT-tiny", "data": [{"shards": "00000.tar"}], "out": "out", "ema": 0.99}
    (folder / "mine.yaml").write_text(json.dumps({"train": train}))
    with pytest.raises(UserError, match=r"^mine\.yaml: train\.ema: .*out has a model and no moving average of it.* --set train\.ema=null"):
        pipeline.evaluate.run("mine.yaml", Options())
    assert pipeline.evaluate.run("mine.yaml", Options(), overrides=["train.ema=null"])["retrieval"]


@models.needs_clip
@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_table_in_another_encoding_is_told_so(folder: Path, encoding: str) -> None:
    (folder / "pairs.csv").write_bytes("image,caption\nred.png,träge".encode(encoding))
    said = r"pairs\.csv: is not UTF-8 \(byte \d+\); save it as UTF-8"
    with pytest.raises(UserError, match=said):
        pipeline.evaluate.evaluate(Colours(), Options(data=(str(folder / "pairs.csv"),), images=str(folder / "images")))
    with pytest.raises(UserError, match=said):
        pipeline.evaluate.evaluate(Colours(), Options(judgements=(str(folder / "pairs.csv"), str(folder / "images"))))


def test_a_table_in_a_training_s_config_is_told_where_it_goes() -> None:
    with pytest.raises(UserError, match=r"^train\.eval\.data: x\.csv: .*shards.*shardmill eval CONFIG --data x\.csv --images FOLDER"):
        pipeline.evaluate.items(Options(data=("x.csv",), data_key="train.eval.data"))


@models.needs_clip
def test_labels_without_names_cost_no_other_figures(folder: Path) -> None:
    found = pipeline.evaluate.evaluate(Colours(), Options(data=(str(folder / "00000.tar"),)))
    assert "give the class names by --classes" in found["left_out"]["zeroshot"]
    assert found["retrieval"]["image_to_text_R@1"] == 1.0


def test_nothing_to_evaluate_on_is_refused_before_the_model_is_loaded() -> None:
    with pytest.raises(UserError, match="give --data, --judgements or both"):
        pipeline.evaluate.run("no-such-model", Options())
