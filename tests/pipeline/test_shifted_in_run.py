"""A film whose narrator is seconds early or late, through a whole run: the pictures in the shards are those of what is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds
import yaml
from PIL import Image

from pipeline import export, verify
from pipeline.sample import counter, film
from stages.lib import offline_scorer
from tests.support import serial
from tests.support.corpus import fates
from tests.support.videos import read_jpeg

pytestmark = pytest.mark.skipif(bool(offline_scorer.missing()), reason="needs the extra scorer: docs/models/offline_scorer.md")

SHOWN = ("chelsea", "coffee", "astronaut")  # six seconds each
SAID = [
    (1000, 4000, "This is a cup of coffee on a table.", 5),
    (7000, 10_000, "A smiling woman in a space suit.", 5),
    (13_000, 16_000, "And that is a close-up of a cat.", -10),
]


def test_clips_are_shown_when_their_words_fit(tmp_path: Path) -> None:
    """Every frame shows its own time."""
    data = pytest.importorskip("skimage.data")
    pictures = [np.asarray(Image.fromarray(getattr(data, name)()).convert("RGB").resize((320, 240))) for name in SHOWN]
    shown = ((ms, counter.write(pictures[ms // 6000], ms)) for ms in range(0, 18_000, 200))
    film.write(tmp_path / "film.mp4", shown, options={"preset": "veryfast", "crf": "20"}, subtitles=[line[:3] for line in SAID])
    pq.write_table(pa.table({"video_id": ["film"], "path": [str(tmp_path / "film.mp4")]}), tmp_path / "videos.parquet")
    raw = {
        "input": {"path": str(tmp_path / "videos.parquet"), "columns": {"stored_at": "path"}},
        "run": {"name": "test", "root": str(tmp_path / "runs")},
        "stages": {
            "ingest": {"subtitles": True},
            "subtitle_files": {"contact": "test@example.org"},
            "subtitles": {},
            "segments": {"method": "cues"},
            "captions": {},
            "download": {"contact": "test@example.org", "to": "disk"},
            "alignment": {"model": "offline-scorer", "shift_min_gain": 0.01},
            "cuts": {},
            "frames": {"count": 3},
            "selection": [{"name": "one_shot", "keep": "cuts = 0"}],
        },
        "shards": {"samples": 10},
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    serial.run(tmp_path / "test.yaml")
    home = tmp_path / "runs" / "test"
    assert fates(home) == {"kept": 3}
    samples = list(wds.WebDataset(sorted(map(str, home.glob("shards/*/*.tar"))), shardshuffle=False, empty_check=False))
    found = {sample["txt"].decode(): sample for sample in samples}
    for start, end, text, shift in SAID:
        meta = json.loads(found[text]["json"])
        assert (meta["start_s"], meta["end_s"], meta["shift_s"], meta["cuts"]) == (start / 1000, end / 1000, shift, 0), text
        wanted = [start / 1000 + shift + 0.5 + n for n in range(3)]
        assert meta["frame_times"] == pytest.approx(wanted)
        seen = [read_jpeg(found[text][f"00{n}.jpg"]) for n in range(3)]
        assert seen == [int(t * 1000) // 200 * 200 for t in wanted]
    assert verify.run(str(home))[1] == []
    export.run(str(home), str(tmp_path / "out"))
    lines = (tmp_path / "out/captions/film.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert lines == [
        f"{(s + 1000 * d) / 1000},{(e + 1000 * d) / 1000},{text}" for s, e, text, d in sorted(SAID, key=lambda x: x[0] + 1000 * x[3])
    ]
