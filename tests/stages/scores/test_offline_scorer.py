"""The offline scorer: its towers against what they are known to answer, and the stage's numbers with it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import pipeline
from pipeline.catalog import entry
from pipeline.errors import UserError
from pipeline.keys import ingredients
from stages.lib import offline_scorer, offline_towers, torchvision_shim

if missing := offline_scorer.missing():
    pytest.skip(f"needs {', '.join(missing)}: docs/models/offline_scorer.md", allow_module_level=True)
import torch

# sentence-transformers 6.2.0 with transformers 5.23.0 on the same weights.
REFERENCE = ["A dog runs in the park.", "A puppy is running outside.", "The stock market fell."]
COSINES = {(0, 1): 0.5439531, (0, 2): 0.03458833, (1, 2): 0.05598665}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def scorer() -> offline_scorer.Scorer:
    return offline_scorer.load()


def photograph(name: str) -> Image.Image:
    """One of the photographs in scikit-image's wheel."""
    data = pytest.importorskip("skimage.data")
    return Image.fromarray(getattr(data, name)())


def encoded(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=95)
    return out.getvalue()


@pytest.mark.parametrize(("name", "classes"), [("chelsea", {281, 282, 285}), ("coffee", {967, 504})])
def test_known_photographs_have_their_imagenet_class(name: str, classes: set[int]) -> None:
    """Egyptian, tabby or tiger cat; espresso or coffee mug. Equal shapes of the mapped tensors would not prove equal meaning."""
    tower = offline_towers.ImageTower()
    pixels = torch.from_numpy(np.stack([offline_scorer.pixels(photograph(name))]))
    assert int(tower.classes(tower(pixels)).argmax()) in classes


def test_sentences_are_embedded_as_sentence_transformers_does_it() -> None:
    tower = offline_towers.TextTower()
    made = torch.nn.functional.normalize(tower(tower.tokenize(REFERENCE))[:, -offline_towers.WIDTH :], dim=-1).numpy()
    for (a, b), cosine in COSINES.items():
        assert made[a] @ made[b] == pytest.approx(cosine, abs=1e-5)


def test_padding_changes_nothing() -> None:
    tower = offline_towers.TextTower()
    alone = tower(tower.tokenize("a dog"))
    among = tower(tower.tokenize(["a dog", "a very long caption of a photograph of two brown dogs in high grass behind a fence"]))
    assert torch.allclose(alone[0], among[0], atol=1e-5)


def test_true_captions_score_above_others(scorer: offline_scorer.Scorer) -> None:
    images = [photograph(name) for name in ("chelsea", "coffee", "rocket")]
    captions = ["a close-up of a cat", "a cup of coffee on a table", "a rocket before its launch"]
    similar = scorer.encode_image(images) @ scorer.encode_text(captions).T
    assert (similar.argmax(1) == np.arange(3)).all()
    assert np.allclose(np.linalg.norm(scorer.encode_text([*captions, ""]), axis=1), 1, atol=1e-5)


def test_what_is_near_to_many_is_scored_lower(scorer: offline_scorer.Scorer) -> None:
    """The cosine of what the scorer gives is (image . text - w near(image) - w near(text)) / (2 + w^2)."""
    net, width, weight = scorer.net, offline_scorer.WIDTH, offline_scorer.NEARNESS
    image, text = scorer.encode_image([photograph("chelsea")]), scorer.encode_text(["a cat", "two dogs run over the grass"])
    plain = [torch.nn.functional.normalize(torch.from_numpy(made[:, :width]), dim=-1) for made in (image, text)]
    near = [
        (made @ crowd.T).sort(1).values[:, -offline_scorer.NEAREST :].mean(1)
        for made, crowd in zip(plain, (net.text_crowd, net.image_crowd), strict=True)
    ]
    wanted = (plain[0] @ plain[1].T - weight * near[0][:, None] - weight * near[1]) / (2 + weight**2)
    np.testing.assert_allclose(image @ text.T, wanted.numpy(), atol=1e-5)
    assert near[1][1] > near[1][0], "the crowd is Flickr8k's, which has many dogs"


def test_the_crowd_is_what_training_saw_last() -> None:
    net = offline_scorer.network()
    first, last = torch.rand(200, offline_towers.POOLED), torch.rand(200, offline_towers.POOLED)
    for features in (first, last):
        out = net.train()(image=features, text=torch.rand(200, offline_towers.WIDTH * len(offline_towers.KEPT)))
        net.remember(out["image_seen"], out["text_seen"])
    net.eval()
    wanted = net(image=torch.cat([last, first]))["image_features"][: offline_scorer.CROWD]
    assert torch.allclose(net.image_crowd, wanted, atol=1e-5)


def test_the_committed_weights_are_small_and_half_precision() -> None:
    from safetensors import safe_open

    assert offline_scorer.WEIGHTS.stat().st_size < 2_000_000
    with safe_open(str(offline_scorer.WEIGHTS), "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118 (no mapping)


def table() -> pa.Table:
    bodies = [encoded(photograph("chelsea").resize((224, 150))), encoded(photograph("coffee").resize((224, 224))), b"no picture"]
    captions = ["a cat", None, "a dog"]
    return pa.table({"image": pa.array(bodies, pa.large_binary()), "caption": pa.array(captions, pa.string())})


def test_the_stage_scores_by_it_and_says_that_it_is_a_demonstration(scorer: offline_scorer.Scorer) -> None:
    pairs = table()
    out = pipeline.use("scores", model="offline-scorer", batch=2, embeddings=True)(pairs)
    assert out["fate"].to_pylist() == ["kept", "kept", "scores:undecodable"]
    images = [Image.open(io.BytesIO(body)) for body in pairs["image"].to_pylist()[:2]]
    expected = (scorer.encode_image(images) * scorer.encode_text(["a cat", ""])).sum(1)
    np.testing.assert_allclose(out["similarity"].to_numpy()[:2].astype(np.float32), expected, atol=1e-5)
    assert len(out["image_embedding"][0].as_py()) == offline_scorer.DIM
    again = pipeline.use("scores", model="offline-scorer", batch=2, embeddings=True)(pairs)
    assert again["similarity"].equals(out["similarity"])
    stage: Any = entry("scores", {"model": "offline-scorer"}).stage
    assert "demonstration" in stage.demonstration
    assert stage.version != (other := entry("scores", {"model": "ViT-B-32", "pretrained": "openai"}).stage).version
    assert other.demonstration is None  # type: ignore[attr-defined]


def test_projections_of_one_s_own_training_judge_in_place_of_the_bundled_ones(tmp_path: Path) -> None:
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(offline_scorer.WEIGHTS.read_bytes())
    bundled, own = (pipeline.use("scores", model="offline-scorer", **more)(table()) for more in ({}, {"pretrained": str(mine)}))
    assert own["similarity"].equals(bundled["similarity"])
    config = {"model": "offline-scorer", "pretrained": str(mine)}
    before = ingredients([entry("scores", config)])
    mine.write_bytes(b"no weights")
    assert ingredients([entry("scores", config)]) != before, "other weights under the same name must not find the old scores"
    with pytest.raises(UserError, match=r"mine\.safetensors holds no projections of offline-scorer"):
        entry("scores", {"model": "offline-scorer", "pretrained": str(mine)}).stage.open()


@pytest.mark.parametrize("options", [{"pretrained": "openai"}, {"precision": "bf16"}])
def test_what_it_cannot_do_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="offline-scorer"):
        entry("scores", {"model": "offline-scorer", **options}).stage.check_ready()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Six samples of three photographs (each with two captions), one of which is damaged."""
    import tarfile

    folder = tmp_path_factory.mktemp("shards")
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for at in range(6):
            body = b"\xff\xd8 no picture" if at // 2 == 1 else encoded(photograph(("chelsea", "", "coffee")[at // 2]).resize((224, 224)))
            for suffix, data in (("jpg", body), ("txt", f"caption number {at}".encode())):
                info = tarfile.TarInfo(f"{at:06d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return str(folder)


def features(shards: str, out: Path, rank: int = 0, world: int = 1, **options: Any) -> tuple[Any, Any]:
    """The model of a config on these shards, and its source of features."""
    pytest.importorskip("open_clip")
    from stages.train import frozen, loop, source
    from stages.train.config import Train

    raw = {"model": "offline-scorer", "data": [{"shards": shards}], "out": str(out), "batch": 2, "frozen_features": 2}
    config = Train.model_validate({**raw, "augment": {"scale": None}, **options})
    made = frozen.build(config)
    return made, source.open_shards(config, made, loop.Context(rank=rank, world=world))


def test_frozen_features_are_what_the_towers_make_of_each_sample(shards: str, tmp_path: Path) -> None:
    made, found = features(shards, tmp_path)
    assert (found.samples, found.steps(0)) == (6, 3)
    batches = list(found.batches(0))
    assert sorted(id_ for batch in batches for id_ in batch.ids.tolist()) == list(range(6))
    assert sum(batch.replaced for batch in batches) == 2, "the damaged photograph's two samples"
    texts = made.net.trunk_text(made.tokenizer([f"caption number {at}" for at in range(6)]))
    for batch in batches:
        stands_for = [4 if id_ in (2, 3) else id_ for id_ in batch.ids.tolist()]
        assert batch.keys == [f"{id_:06d}" for id_ in stands_for]
        assert torch.allclose(batch.text, texts[stands_for], atol=2e-3)
        pictures = [offline_scorer.pixels(photograph("chelsea" if id_ < 2 else "coffee").resize((224, 224))) for id_ in stands_for]
        wanted = made.net.trunk_image(torch.from_numpy(np.stack(pictures)))
        assert (torch.nn.functional.cosine_similarity(batch.image, wanted) > 0.98).all(), "JPEG apart, the same"


def test_ranks_get_their_share_of_the_same_batches_and_nothing_is_made_twice(shards: str, tmp_path: Path) -> None:
    _, whole = features(shards, tmp_path)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    for rank in range(2):
        _, part = features(shards, tmp_path, rank, 2)
        for ours, theirs in zip(part.batches(1, 1), list(whole.batches(1))[1:], strict=True):
            assert ours.step == theirs.step
            assert torch.equal(ours.image[0], theirs.image[rank])
            assert torch.equal(ours.text[0], theirs.text[rank])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")} == written


def test_the_training_stage_trains_it_on_features(shards: str, tmp_path: Path) -> None:
    """The gradient reaches the projections and nothing else; what is exported is what the scorer loads."""
    from stages.train import loop, source
    from stages.train.config import Train

    pytest.importorskip("open_clip")
    raw = {"model": "offline-scorer", "data": [{"shards": shards}], "out": str(tmp_path), "batch": 4, "frozen_features": 1, "epochs": 3}
    config = Train.model_validate({**raw, "tensorboard": False, "log_every": 1})
    notes: list[str] = []
    outcome = loop.train(config, loop.Context(note=notes.append), source.open_shards)
    assert outcome.state == loop.DONE
    assert [note.rpartition(",")[0] for note in notes] == [f"features of frozen towers: part {at} of 2" for at in (1, 2)]
    weights = next(tmp_path.rglob("open_clip_model.safetensors"))
    assert weights.stat().st_size < 8_000_000
    embedded = offline_scorer.load(weights=weights).encode_text(["a cat"])
    assert embedded.shape == (1, offline_scorer.DIM)


@pytest.mark.parametrize(("world", "accumulate"), [(1, 2), (1, 4), pytest.param(2, 1, marks=pytest.mark.slow)])
def test_the_crowd_is_the_global_batch_s_whatever_the_ranks_and_pieces(shards: str, tmp_path: Path, world: int, accumulate: int) -> None:
    from safetensors.torch import load_file

    from stages.train import source
    from stages.train.config import Train
    from tests.support.training import curve

    torchvision_shim.ensure()
    pytest.importorskip("open_clip")
    raw = {"model": "offline-scorer", "data": [{"shards": shards}], "batch": 4, "frozen_features": 1, "tensorboard": False}
    crowds = []
    for name, ranks, pieces in (("whole", 1, 1), ("parts", world, accumulate)):
        wanted = Train.model_validate({**raw, "out": str(tmp_path / name), "accumulate": pieces, "log_every": 1})
        curve(wanted, source.open_shards, ranks)
        weights = load_file(next((tmp_path / name).rglob("open_clip_model.safetensors")))
        crowds.append([weights["image_crowd"], weights["text_crowd"]])
    for whole, parts in zip(*crowds, strict=True):
        assert int((whole != 0).any(1).sum()) == 4
        assert torch.allclose(whole, parts, atol=1e-5)


def test_what_was_trained_is_evaluated_while_training_and_by_its_folder(shards: str, tmp_path: Path) -> None:
    from stages.lib import torchvision_shim

    torchvision_shim.ensure()
    for needed in ("open_clip", "tensorboardX"):
        pytest.importorskip(needed)
    import pipeline.train
    from stages.evaluate import scorers
    from stages.train.config import Train

    raw = {"model": "offline-scorer", "data": [{"shards": shards}], "out": str(tmp_path / "out"), "batch": 4, "frozen_features": 1}
    pipeline.train.run_config(Train.model_validate({**raw, "tensorboard": False, "eval": {"data": shards}}))
    found = json.loads((tmp_path / "out/eval.json").read_text())
    assert found["retrieval"]["text_to_image_queries"] == 4, "all captions but those of the damaged photograph"
    assert found["model"]["model"] == "offline-scorer"
    by_folder = scorers.load(str(tmp_path / "out")).encode_text(["a cat"])
    by_file = offline_scorer.load(weights=tmp_path / "out/model/open_clip_model.safetensors").encode_text(["a cat"])
    assert np.array_equal(by_folder, by_file)
    assert not np.allclose(by_folder, offline_scorer.load().encode_text(["a cat"]))


def test_a_clip_is_scored_by_the_mean_of_its_frames(scorer: offline_scorer.Scorer) -> None:
    """Batches of three frames are cut between clips, five frames of a clip go through in two pieces, a broken one costs its clip."""
    cat, cup = (photograph(name).resize((224, 224)) for name in ("chelsea", "coffee"))
    clips = [[encoded(cat), encoded(cup)], [encoded(cup)] * 5, [encoded(cat), b"no picture"], [], None, [encoded(cat)]]
    captions = ["a cat", "a cup of coffee", "a cat", "a cat", "a cat", "a cat"]
    table = pa.table({"frames": pa.array(clips, pa.list_(pa.large_binary())), "caption": pa.array(captions, pa.string())})
    out = pipeline.use("scores", model="offline-scorer", media="frames", batch=3, embeddings=True)(table)
    assert out["fate"].to_pylist() == ["kept", "kept", *["scores:undecodable"] * 3, "kept"]
    seen = scorer.encode_image([Image.open(io.BytesIO(encoded(image))) for image in (cat, cup)])
    text = scorer.encode_text(captions[:2])
    expected = [(seen @ text[0]).mean(), seen[1] @ text[1], seen[0] @ text[0]]
    np.testing.assert_allclose([out["similarity"][at].as_py() for at in (0, 1, 5)], expected, atol=1e-5)
    pooled = np.array(out["image_embedding"][0].as_py(), dtype=np.float32)
    np.testing.assert_allclose(pooled, seen.mean(0) / np.linalg.norm(seen.mean(0)), atol=1e-3)
