"""The preset howto100m on videos and captions in the published forms, by both ways in, to shards; without its two models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import webdataset as wds
import yaml

from pipeline import verify
from pipeline.sample import film
from tests.support import serial
from tests.support.corpus import fates
from tests.support.videos import on_screen, picture, read_jpeg, steady

CONFIG = Path(__file__).parents[2] / "configs" / "howto100m.yaml"
CAPTIONS = [
    (0.41, 3.91, "pick the berries tonight"),
    (3.92, 5.9, "put them into a bowl"),
    (7.0, 13.78, "and plant a little raspberry bush"),
]
SPANS = [(0, 5), (2, 7), (7, 13)]  # 5 s around the middle, from 0 on; both ends cut to whole seconds
FPS = 10


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Two videos; the captions of a third one, which is not there; both forms of captions, and the list."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "captions").mkdir()
    ids = ["-tCQ4tCQdWE", "2Mn5sVpFDTg", "gone0000000"]
    for name in ids[:2]:
        film.write(tmp_path / f"videos/{name}.mp4", ((ms, picture(ms, 128, 96)) for ms in steady(15, FPS)), options={"g": "20"})
    columns = dict(zip(("start", "end", "text"), map(list, zip(*CAPTIONS, strict=True)), strict=True))
    (tmp_path / "raw_caption.json").write_text(json.dumps(dict.fromkeys(ids, columns)))
    (tmp_path / "HowTo100M_v1.csv").write_text(
        "video_id,category_1,category_2,rank,task_id\n" + "".join(f"{name},Hobbies and Crafts,Gardening,1,7\n" for name in ids)
    )
    for name in ids:
        lines = "".join(f"{start},{end},{text}\n" for start, end, text in CAPTIONS)
        (tmp_path / f"captions/{name}.csv").write_text("start,end,text\n" + lines)
    return tmp_path


def written(home: Path, way: str) -> Path:
    raw: dict[str, Any] = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    for judge in ("alignment", "scores"):
        del raw["stages"][judge]
    raw["run"] |= {"root": str(home / "runs"), "name": "test"}
    raw["stages"]["download"]["contact"] = "owner@example.org"
    raw["stages"]["frames"]["size"] = 96
    videos = f"{home}/videos/{{video_id}}.mp4"
    if way == "captions":
        raw["input"] |= {"path": str(home / "raw_caption.json")}
        raw["input"]["columns"]["stored_at"] = videos
    else:
        raw["input"] = {"path": str(home / "HowTo100M_v1.csv")}
        raw["input"]["columns"] = {"stored_at": videos, "subtitle_at": f"{home}/captions/{{video_id}}.csv"}
        files = {"subtitle_files": {"local": True, "contact": "owner@example.org"}}
        raw["stages"] = {"ingest": raw["stages"]["ingest"], **files, **{name: raw["stages"][name] for name in list(raw["stages"])[1:]}}
    (home / "test.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    return home / "test.yaml"


@pytest.mark.parametrize("way", ["captions", "list"])
def test_each_caption_becomes_milnces_clip(home: Path, way: str) -> None:
    serial.run(written(home, way))
    run = home / "runs" / "test"
    assert fates(run) == {"kept": 6, "download:stored_unreadable": 3}
    seconds = json.loads((run / "report/report.json").read_text())["expanded"]["seconds"]  # overlaps count once
    assert seconds["cues"] == {"in": 36.78, "kept": pytest.approx(34.44), "dropped": {"silence": pytest.approx(2.34)}}
    assert seconds["segments"] == {"in": 39.0, "kept": 26.0, "dropped": {"download:stored_unreadable": 13.0}}
    samples = list(wds.WebDataset(sorted(map(str, run.glob("shards/*/*.tar"))), shardshuffle=False, empty_check=False))
    texts = {text: span for (_, _, text), span in zip(CAPTIONS, SPANS, strict=True)}
    for sample in samples:
        meta = json.loads(sample["json"])
        start, end = texts[sample["txt"].decode()]
        assert (meta["start_s"], meta["end_s"], meta["segment_s"]) == (start, end, end - start)
        assert len(meta["frame_times"]) == 5 * (end - start)
        seen = [read_jpeg(sample[f"{n:03d}.jpg"]) for n in range(len(meta["frame_times"]))]
        assert seen == [on_screen(steady(15, FPS), t) for t in meta["frame_times"]]
        assert meta["url"] == f"https://www.youtube.com/watch?v={meta['source_id']}"
    (listing,) = run.glob("shards/*/00000.parquet")
    kept = [row for row in pq.read_table(listing).to_pylist() if row["status"] == "success"]
    for row in kept:  # as its loader picks them, whose last or first one stands twice where there are too few
        places = [0, 0, 1, 2] if row["segment"] == 2 else [0, 1, 2, 2]
        assert row["candidates"] == [CAPTIONS[place][2] for place in places]
    if way == "list":
        assert json.loads(kept[0]["carried"])["category_2"] == "Gardening"
    assert verify.run(str(run))[1] == []
