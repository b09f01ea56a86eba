"""Videos on this machine with text tracks of their own, through a whole run, to shards of films, sound and pictures."""

from __future__ import annotations

import io
import json
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds
import yaml

from pipeline import explain, export, verify
from pipeline.sample import film
from tests.support import serial
from tests.support.corpus import fates
from tests.support.videos import on_screen, picture, read_jpeg, steady

SAID = [
    (1000, 3000, "Cut the onion into thin rings."),
    (4000, 6500, "Now fry them slowly in butter."),
    (7000, 9000, "They are done when they turn brown."),
]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Three videos, one of them without a text track, and one without sound."""
    for name, suffix, said, audio_s in (("a", "mp4", SAID, 10.0), ("b", "mkv", SAID, 0.0), ("c", "mp4", [], 10.0)):
        pictures = ((ms, picture(ms, 128, 96)) for ms in steady(10, 12.5))
        film.write(tmp_path / f"{name}.{suffix}", pictures, options={"g": "25", "bf": "2"}, subtitles=said, audio_s=audio_s)
    listed = pa.table({"id": ["a", "b", "c"], "path": [str(tmp_path / name) for name in ("a.mp4", "b.mkv", "c.mp4")]})
    pq.write_table(listed, tmp_path / "videos.parquet")
    raw = {
        "input": {"path": str(tmp_path / "videos.parquet"), "columns": {"source_id": "id", "stored_at": "path"}},
        "run": {"name": "test", "root": str(tmp_path / "runs")},
        "stages": {
            "ingest": {"subtitles": True},
            "subtitle_files": {"contact": "test@example.org"},
            "subtitles": {},
            "segments": {"min_s": 1},
            "download": {"contact": "test@example.org", "to": "disk"},
            "frames": {"count": 2, "size": 96, "clip": {"preset": "ultrafast"}, "sound": "flac"},
        },
        "shards": {"samples": 10},
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    return tmp_path / "test.yaml"


def test_films_sound_and_pictures_of_videos_with_text_tracks(config: Path) -> None:
    result = serial.run(config)
    home = config.parent / "runs" / "test"
    assert fates(home) == {"kept": 3, "frames:no_sound": 3}
    assert result.balances["rows"].dropped == {"subtitle_files:no_track": 1}
    seconds = json.loads((home / "report/report.json").read_text())["expanded"]["seconds"]
    assert seconds["cues"] == {"in": 13.0, "kept": 13.0, "dropped": {}}
    assert seconds["segments"] == {"in": 13.0, "kept": 6.5, "dropped": {"frames:no_sound": 6.5}}
    samples = list(wds.WebDataset(sorted(map(str, home.glob("shards/*/*.tar"))), shardshuffle=False, empty_check=False))
    assert [sorted(set(sample) - {"__key__", "__url__", "__local_path__"}) for sample in samples] == [
        ["000.jpg", "001.jpg", "flac", "json", "mp4", "txt"]
    ] * 3
    for sample in samples:
        said = json.loads(sample["json"])
        seconds = said["end_s"] - said["start_s"]
        assert sample["txt"].decode() in [text for _, _, text in SAID]
        times = steady(10, 12.5)
        assert [read_jpeg(sample[f"00{n}.jpg"]) for n in range(2)] == [on_screen(times, t) for t in said["frame_times"]]
        with av.open(io.BytesIO(sample["mp4"])) as opened:
            assert sum(1 for _ in opened.decode(video=0)) == said["clip_frames"]
            assert float(opened.streams.video[0].duration * opened.streams.video[0].time_base) == pytest.approx(seconds, abs=2e-5)
        with av.open(io.BytesIO(sample["flac"])) as opened:
            heard = np.concatenate([frame.to_ndarray().reshape(-1) for frame in opened.decode(audio=0)])
            assert abs(len(heard) - 16_000 * seconds) <= 1
    assert verify.run(str(home))[1] == []


def test_a_film_that_lost_its_frames_is_noticed(config: Path) -> None:
    from stages.shards.check import read_tar

    serial.run(config)
    (tar,) = (config.parent / "runs" / "test").glob("shards/*/*.tar")
    listing = pq.read_table(tar.with_suffix(".parquet"))
    with tar.open("rb") as handle:
        assert read_tar(handle, "00000", listing).faults == []
    body = tar.read_bytes()
    for found, wanted in ((b"moov", "its mp4 has no frames"), (b"fLaC", "has no sound as flac")):
        with io.BytesIO(body.replace(found, b"xxxx")) as handle:
            faults = read_tar(handle, "00000", listing).faults
        assert len(faults) == 3
        assert all(wanted in fault for _, fault in faults)


def test_a_videos_story_tells_its_seconds_and_its_clips(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    serial.run(config)
    home = config.parent / "runs" / "test"
    (story,) = explain.stories(str(home), "row=0")
    assert (story["fate"], story["detail"]) == ("kept", "6.500 s of cues: kept 6.500")
    told = dict(explain.tell(story))
    assert told["stored at"] == str(config.parent / "a.mp4")
    assert told["subtitles"] == "embedded_mov_text, times of words: none"
    assert "caption" not in told
    first = dict(explain.tell(story["children"][0]))
    assert first["segment"] == "1.000 to 3.000 s of the video"
    assert first["frames"] == "2 of 128x96 h264 -> 96x96 jpg"
    explain.show(str(home), "row=1")
    assert "frames:no_sound" in capsys.readouterr().out


def test_stored_videos_without_ids_are_exported_each_for_itself(config: Path) -> None:
    raw = yaml.safe_load(config.read_text())
    raw["input"]["columns"] = {"stored_at": "path"}
    raw["stages"]["frames"] = {"count": 1, "size": 96}
    listed = pq.read_table(config.parent / "videos.parquet").drop_columns(["id"])
    pq.write_table(listed, config.parent / "videos.parquet")
    config.write_text(yaml.safe_dump(raw, sort_keys=False))
    serial.run(config)
    assert export.run(str(config.parent / "runs" / "test"), str(config.parent / "out")) == {"videos": 2, "clips": 6}
    for path in (config.parent / "out" / "captions").iterdir():
        assert len(path.read_text().splitlines()) == 1 + len(SAID)


def test_the_same_words_of_a_video_at_another_time_stay(config: Path) -> None:
    folder = config.parent
    said = [(1000, 3000, "Cut the onion into thin rings."), (6000, 8000, "Cut the onion into thin rings.")]
    film.write(folder / "twice.mp4", ((ms, picture(ms, 128, 96)) for ms in steady(10, 10.0)), subtitles=said)
    listed = {"id": ["t"], "path": [str(folder / "twice.mp4")], "url": ["https://example.org/twice"]}
    pq.write_table(pa.table(listed), folder / "videos.parquet")
    raw = yaml.safe_load(config.read_text())
    raw["input"]["columns"]["url"] = "url"
    names = [*raw["stages"]]
    stages = {name: raw["stages"][name] for name in names[: names.index("download")]}
    raw["stages"] = {**stages, "captions": {}, "dedup": {}, "download": raw["stages"]["download"], "frames": {"count": 1, "size": 96}}
    config.write_text(yaml.safe_dump(raw, sort_keys=False))
    serial.run(config)
    found = fates(folder / "runs" / "test")
    assert "dedup:same_pair" not in found
    assert sum(found.values()) == 2


def test_clips_of_a_video_that_stands_in_two_rows_are_no_near_duplicates(config: Path) -> None:
    """As where it has subtitles in two languages: its rows share a uid, its clips are told apart by what is said in them."""
    folder = config.parent
    said = [
        "1\n00:00:01,000 --> 00:00:03,000\nCut the onion into thin rings.\n\n2\n00:00:04,000 --> 00:00:06,500\nNow fry them in butter.\n",
        "1\n00:00:01,000 --> 00:00:03,000\nDie Zwiebel in Ringe.\n\n2\n00:00:04,000 --> 00:00:06,500\nNun in Butter braten.\n",
    ]
    pq.write_table(pa.table({"path": [str(folder / "a.mp4")] * 2, "subtitle": said}), folder / "videos.parquet")
    raw = yaml.safe_load(config.read_text())
    raw["input"]["columns"] = {"stored_at": "path", "subtitle": "subtitle"}
    names = [*raw["stages"]]
    stages = {name: raw["stages"][name] for name in names[: names.index("download")]}
    raw["stages"] = {**stages, "captions": {}, "dedup": {"on": "caption"}, "download": raw["stages"]["download"]}
    raw["stages"]["frames"] = {"count": 1, "size": 96}
    config.write_text(yaml.safe_dump(raw, sort_keys=False))
    serial.run(config)
    assert fates(folder / "runs" / "test") == {"kept": 4}


def test_the_list_says_what_language_a_subtitle_file_is_in(config: Path) -> None:
    """A column of its own, which no field of ours takes."""
    folder = config.parent
    texts = [("ru", "cp1251", "Режем лук кольцами."), ("el", "cp1253", "Κόβουμε το κρεμμύδι."), (None, "utf-8", "Cut the onion.")]
    bodies = [f"1\n00:00:01,000 --> 00:00:03,000\n{text}\n".encode(encoding) for _, encoding, text in texts]
    columns = {"path": [str(folder / "a.mp4")] * 3, "subtitle": bodies, "lang": [language for language, _, _ in texts]}
    pq.write_table(pa.table(columns), folder / "videos.parquet")
    raw = yaml.safe_load(config.read_text())
    raw["input"]["columns"] = {"stored_at": "path", "subtitle": "subtitle"}
    raw["stages"] |= {"subtitles": {"language_column": "carried.lang"}, "segments": {"method": "cues"}, "frames": {"count": 1, "size": 96}}
    config.write_text(yaml.safe_dump(raw, sort_keys=False))
    serial.run(config)
    stories = explain.stories(str(folder / "runs" / "test"), str(folder / "a.mp4"))
    assert [child["source_caption"] for story in stories for child in story["children"]] == [text for _, _, text in texts]
    assert [story["subtitle_encoding"] for story in stories] == [encoding for _, encoding, _ in texts]
