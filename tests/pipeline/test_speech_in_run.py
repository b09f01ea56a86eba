"""Videos without subtitles through a whole run, on Ray's workers: what is heard in them becomes cues, clips and shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds
import yaml

from pipeline import explain, plan, runs, verify
from tests.support.corpus import fates

pytestmark = pytest.mark.ray
pytest.importorskip("faster_whisper", reason="needs the extra speech: make test-all")


def test_what_is_heard_becomes_clips(tmp_path: Path, ray_session: Any) -> None:
    """The model's weights are chance, so its words mean nothing; their times and texts go all the way."""
    from tests.stages.download.test_download_speech import filmed, sounding
    from tests.support import whisper

    model = whisper.random(tmp_path / "model")
    said = [word for sentence in whisper.sentences(np.random.default_rng(1), 20) for word in sentence if word[2] < 20]
    sounding(tmp_path / "spoken.mkv", whisper.spoken(said, 20), sound_s=0.5, begin_s=3, pictures_s=21)
    filmed(tmp_path / "track.mp4")
    sounding(tmp_path / "mute.mkv", None, pictures_s=3)
    names = ["spoken.mkv", "track.mp4", "mute.mkv"]
    pq.write_table(pa.table({"id": names, "path": [str(tmp_path / name) for name in names]}), tmp_path / "videos.parquet")
    speech = {"model": str(model), "vad": False, "language": "en"}
    raw = {
        "input": {"path": str(tmp_path / "videos.parquet"), "columns": {"source_id": "id", "stored_at": "path"}},
        "run": {"name": "test", "root": str(tmp_path / "runs")},
        "stages": {
            "ingest": {"subtitles": True},
            "subtitle_files": {"contact": "test@example.org", "speech": speech},
            "subtitles": {},
            "segments": {"method": "cues"},
            "download": {"contact": "test@example.org", "to": "disk"},
            "frames": {"count": 1, "size": 64},
        },
        "shards": {"samples": 100},
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    result = runs.run(tmp_path / "test.yaml", [], runs.Quiet())
    assert result.balances["rows"].dropped == {"subtitle_files:no_sound": 1}
    ((story,), (other,)) = (explain.stories(result.folder, name) for name in names[:2])
    assert (story["subtitle_format"], story["subtitle_automatic"], story["word_times"]) == ("speech", True, "real")
    assert other["subtitle_format"] == "embedded_mov_text"
    heard = {child["source_caption"]: child for child in story["children"]}
    assert heard
    assert fates(Path(result.folder)) == {"kept": story["children_in_all"] + other["children_in_all"]}
    shards = sorted(map(str, Path(result.folder).glob("shards/*/*.tar")))
    clips = [(json.loads(sample["json"]), sample["txt"].decode()) for sample in wds.WebDataset(shards, shardshuffle=False)]
    spoken = [(meta, text) for meta, text in clips if meta["source_id"] == "spoken.mkv"]
    assert {text for _, text in spoken} == set(heard)
    assert all(0.5 <= meta["start_s"] < meta["end_s"] <= 21 for meta, _ in spoken)  # in the container's time
    assert verify.run(result.folder)[1] == []
    assert all(line.todo == 0 for line in plan.make(tmp_path / "test.yaml", []))
