"""The shards as the programs that are meant to read them see them, each with its own code."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from stages import shards
from tests.stages.shards.shard_rows import dropped, kept, table, write

SIZES = (4, 3)
CAPTIONS = [f"photo {at}" for size in SIZES for at in range(size)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of 4 and 3 samples with a dropped row each, and the indices beside them. Nulls stand in the first samples."""
    folder = tmp_path_factory.mktemp("shards")
    facts = []
    for shard, size in enumerate(SIZES):
        rows = [kept(at, similarity=None if at < 2 else 0.3, language=None if at == 0 else "en") for at in range(size)]
        facts.append(vars(write(folder, table([*rows, dropped(90, "download:timeout")]), shard=shard, total=2, samples=10, idx=True)))
    for name, value in shards.finish(facts[::-1], "test").items():
        (folder / name).write_text(json.dumps(value))
    (folder / "manifest.json").write_text(json.dumps(shards.manifest("KEY", facts[::-1])))
    return folder


def tars(corpus: Path) -> list[str]:
    return sorted(map(str, corpus.glob("*.tar")))


def test_webdataset(corpus: Path) -> None:
    import webdataset as wds

    found = list(wds.WebDataset(tars(corpus), shardshuffle=False).decode("pil").to_tuple("__key__", "jpg", "txt", "json"))
    assert [key for key, *_ in found] == [f"{shard:05d}{at}" for shard, size in enumerate(SIZES) for at in range(size)]
    assert [text for _, _, text, _ in found] == CAPTIONS
    assert all(image.size == (32, 24) and meta["width"] == 32 for _, image, _, meta in found)


@pytest.mark.skipif(not importlib.util.find_spec("open_clip_train"), reason="needs the extra clip: make test-all")
def test_open_clip_reads_them_with_the_sizes_from_sizes_json(corpus: Path) -> None:
    from stages.lib import torchvision_shim

    torchvision_shim.ensure()
    from types import SimpleNamespace

    from open_clip_train.data import get_dataset_size, get_wds_dataset

    assert get_dataset_size(f"{corpus}/{{00000..00001}}.tar") == (7, 2)
    args = SimpleNamespace(
        **{"train_data": None, "val_data": f"{corpus}/{{00000..00001}}.tar", "val_num_samples": None, "dataset_resampled": False},
        **{"seed": 0, "batch_size": 7, "world_size": 1, "workers": 0, "train_data_upsampling_factors": None},
    )
    data = get_wds_dataset(args, lambda image: image.size[0], is_train=False, tokenizer=lambda text: [text])
    (batch,) = list(data.dataloader)
    assert (batch[0].tolist(), list(batch[1])) == ([32] * 7, CAPTIONS)


def test_hugging_face_infers_one_type_for_every_field(corpus: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    found: Any = load_dataset("webdataset", data_files=tars(corpus), split="train", cache_dir=str(tmp_path))
    assert [row["txt"] for row in found] == CAPTIONS
    assert [round(row["json"]["similarity"], 6) for row in found][:3] == [0.0, 0.0, 0.3]
    assert found[0]["jpg"].size == (32, 24)


def test_wids_finds_every_sample_by_its_number(corpus: Path, tmp_path: Path) -> None:
    wids = pytest.importorskip("wids")
    found = wids.ShardListDataset(str(corpus / "shardindex.json"), cache_dir=str(tmp_path), keep=True)
    assert len(found) == 7
    assert [found[at][".txt"] for at in range(7)] == CAPTIONS


def test_manifest_and_sizes_are_in_the_order_of_the_shards(corpus: Path) -> None:
    manifest = json.loads((corpus / "manifest.json").read_text())
    assert [(shard["name"], shard["samples"]) for shard in manifest["shards"]] == [("00000.tar", 4), ("00001.tar", 3)]
    assert (manifest["key"], manifest["samples"]) == ("KEY", 7)
    assert json.loads((corpus / "sizes.json").read_text()) == {"00000.tar": 4, "00001.tar": 3}
