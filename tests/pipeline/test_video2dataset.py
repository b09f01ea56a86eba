"""Shards of clips as video2dataset's own readers take them (iejMac/video2dataset: dataloader/dataloader.py, workers/subset_worker.py).

Its package needs decord and versions of 2024, so its steps are done here by what they are made of: webdataset and pyarrow.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds
import yaml

from pipeline.sample import film
from tests.support import serial
from tests.support.videos import picture, steady

SAID = [(1000, 3000, "Cut the onion into thin rings."), (4000, 6500, "Now fry them slowly in butter.")]


@pytest.fixture(params=[True, False])
def shards(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[list[Path], bool]:
    """Two videos with a text track each, and whether the samples' JSON is whole."""
    for name in ("a", "b"):
        pictures = ((ms, picture(ms, 128, 96)) for ms in steady(8, 12.5))
        film.write(tmp_path / f"{name}.mp4", pictures, options={"g": "25"}, subtitles=SAID, audio_s=8.0)
    (tmp_path / "videos.csv").write_text("video_id,licence\na,?\nb,CC BY\n", encoding="utf-8")
    raw = {
        "input": {"path": str(tmp_path / "videos.csv"), "columns": {"stored_at": f"{tmp_path}/{{video_id}}.mp4"}},
        "run": {"name": "test", "root": str(tmp_path / "runs")},
        "stages": {
            "ingest": {"subtitles": True},
            "subtitle_files": {"contact": "test@example.org"},
            "subtitles": {},
            "segments": {"method": "milnce", "min_s": 2, "candidates": 2},
            "captions": {"languages": ["en"]},
            "download": {"contact": "test@example.org", "to": "disk"},
            "cuts": {},
            "frames": {"pick": "none", "size": 96, "clip": {"preset": "ultrafast"}, "sound": "flac"},
        },
        "shards": {"samples": 3, "whole_json": request.param},
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    serial.run(tmp_path / "test.yaml")
    return sorted((tmp_path / "runs" / "test").glob("shards/*/*.tar")), request.param


def read(tars: list[Path]) -> list[dict[str, Any]]:
    """get_video_dataset's first steps, with its keys: video_key mp4, enforced txt."""
    urls = [str(tar) for tar in tars]
    dataset = wds.WebDataset(urls, nodesplitter=wds.split_by_node, shardshuffle=False, empty_check=False)
    return list(dataset.select(lambda sample: all(key in sample for key in ("mp4", "txt"))))


def test_its_loader_takes_every_sample(shards: tuple[list[Path], bool]) -> None:
    samples = read(shards[0])
    assert len(samples) == 4
    assert sorted(sample["txt"].decode() for sample in samples) == sorted(2 * [text for _, _, text in SAID])
    assert all(sample["mp4"][4:8] == b"ftyp" for sample in samples)


def test_its_stages_write_what_they_read(shards: tuple[list[Path], bool]) -> None:
    """They take the Parquet beside a tar for the schema of what they write, and each of its columns from the sample's JSON."""
    tars, whole = shards
    for tar in tars:
        schema = pq.read_schema(tar.with_suffix(".parquet"))
        metas = [json.loads(sample["json"]) for sample in read([tar])]
        lacking = {name for meta in metas for name in schema.names if name not in meta}
        if not whole:
            assert "candidates" in lacking
            continue
        assert not lacking
        for meta in metas:
            assert (meta["status"], meta["error_message"]) == ("success", "")
        table = pa.Table.from_pydict({name: [meta[name] for meta in metas] for name in schema.names}, schema)
        listed = pq.read_table(tar.with_suffix(".parquet"))
        kept = listed.filter(pa.compute.equal(listed["status"], "success"))
        for name in ("key", "caption", "start_s", "segment_words", "candidates", "claimed_width", "cuts"):
            assert table[name].to_pylist() == kept[name].to_pylist(), name
