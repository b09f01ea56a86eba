"""Videos of the web that are kept (`download.keep_in`): other segments, captions and sizes fetch none a second time."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds
import yaml

from pipeline.sample import film
from tests.support import serial
from tests.support.corpus import fates
from tests.support.server import Server
from tests.support.videos import on_screen, picture, read_jpeg, steady

SAID = [
    (1000, 3000, "Cut the onion into thin rings."),
    (4000, 6500, "Now fry them slowly in butter."),
    (7000, 9000, "They are done when they turn brown."),
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server() as made:
        for name in "ab":
            pictures = ((ms, picture(ms, 128, 96)) for ms in steady(10, 12.5))
            film.write(tmp_path / f"{name}.mp4", pictures, options={"g": "25", "bf": "2"}, subtitles=SAID)
            made.files[f"/{name}.mp4"] = (tmp_path / f"{name}.mp4").read_bytes()
        yield made


def config(folder: Path, server: Server, name: str, keep: bool = True, **segments: Any) -> Path:
    urls = [server.url(f"/{name}.mp4", "films.test") for name in "ab"]
    pq.write_table(pa.table({"url": urls}), folder / "videos.parquet")
    fetch = {**server.options(), "retries": 0, **({"keep_in": str(folder / "films")} if keep else {})}
    raw = {
        "input": {"path": str(folder / "videos.parquet"), "columns": {"url": "url"}},
        "run": {"name": name, "root": str(folder / "runs")},
        "stages": {
            "ingest": {"subtitles": True},
            "subtitle_files": {**fetch, "tracks": "fetched"},
            "subtitles": {},
            "segments": segments,
            "download": {**fetch, "to": "disk"},
            "frames": {"count": 2, "size": 96},
        },
        "shards": {"samples": 10},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    return folder / f"{name}.yaml"


def shards(folder: Path, name: str) -> list[Path]:
    manifest = json.loads((folder / "runs" / name / "shards/manifest.json").read_text())
    return sorted((folder / "runs" / name / "shards" / manifest["key"]).glob("*.tar"))


def test_other_segments_fetch_nothing_again(tmp_path: Path, server: Server) -> None:
    serial.run(config(tmp_path, server, "films", min_s=1))
    assert server.count(host="films.test") == 2  # for the track and the frames
    serial.run(config(tmp_path, server, "films", method="windows", min_s=4, max_gap_s=10))
    assert server.count(host="films.test") == 2
    texts = set()
    for sample in wds.WebDataset(list(map(str, shards(tmp_path, "films"))), shardshuffle=False, empty_check=False):
        meta = json.loads(sample["json"])
        times = steady(10, 12.5)
        assert [read_jpeg(sample[f"00{n}.jpg"]) for n in range(2)] == [on_screen(times, t) for t in meta["frame_times"]]
        texts.add(sample["txt"].decode())
    assert texts == {" ".join(text for _, _, text in SAID)}


def test_the_shards_are_those_of_a_run_that_keeps_nothing(tmp_path: Path, server: Server) -> None:
    for name, keep in (("one", True), ("two", True), ("three", False)):
        serial.run(config(tmp_path, server, name, keep, min_s=1))
        assert fates(tmp_path / "runs" / name) == {"kept": 6}
    assert server.count(host="films.test") == 2 + 4
    one, two, three = ([path.read_bytes() for path in shards(tmp_path, name)] for name in ("one", "two", "three"))
    assert one == two
    assert [names(body) for body in one] == [names(body) for body in three]


def names(body: bytes) -> list[str]:
    import tarfile

    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        return tar.getnames()


def test_a_video_of_rows_in_several_parts_is_fetched_once(tmp_path: Path, server: Server) -> None:
    """As where a list has a line for each language of its subtitles."""
    path = config(tmp_path, server, "films", keep=False, min_s=1)
    srt = [f"1\n00:00:0{n}.000 --> 00:00:0{n + 2}.000\nCut the onion into thin rings, number {n}.\n" for n in (1, 2, 5)]
    urls = [server.url(f"/{name}.mp4", "films.test") for name in "aba"]
    pq.write_table(pa.table({"url": urls, "subtitle": srt}), tmp_path / "videos.parquet")
    raw = yaml.safe_load(path.read_text())
    raw["input"]["columns"] |= {"subtitle": "subtitle"}
    raw["run"]["part_rows"] = 1
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    serial.run(path)
    assert fates(tmp_path / "runs" / "films") == {"kept": 3}
    assert server.count(host="films.test") == 2
