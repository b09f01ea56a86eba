"""Videos without a subtitle file and a text track: their speech becomes cues, by faster-whisper itself with models that are made here."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.catalog import entry
from pipeline.errors import UserError
from pipeline.frame import apply, expand
from pipeline.keys import ingredients
from stages.download.subtitles import SubtitleFiles
from stages.lib import recognition
from stages.lib.subtitles import SubtitleError, parse
from stages.segments import Segments
from stages.subtitles import Subtitles
from tests.stages.download.conftest import QUICK, wanted
from tests.stages.download.test_download_tracks import filmed
from tests.support import whisper

av = pytest.importorskip("av", reason="needs the extra video")
pytest.importorskip("faster_whisper", reason="needs the extra speech: make test-all")
RATE = whisper.RATE


@pytest.fixture(scope="module")
def chance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose words mean nothing."""
    return whisper.random(tmp_path_factory.mktemp("models") / "chance")


def sounding(path: Path, samples: np.ndarray | None, sound_s: float = 0, begin_s: float = 0, pictures_s: float = 1) -> Path:
    """A Matroska file that begins at `begin_s` with grey pictures, its sound (flac) `sound_s` later."""
    with av.open(str(path), "w", format="matroska") as container:
        pictures = container.add_stream("mpeg4", rate=5)
        pictures.width = pictures.height = 64
        pictures.codec_context.time_base = Fraction(1, 1000)
        sound = container.add_stream("flac", rate=RATE, layout="mono", format="s16") if samples is not None else None
        for n in range(round(pictures_s * 5)):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 90, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(begin_s * 1000) + 200 * n, Fraction(1, 1000)
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode(None))
        if sound is not None and samples is not None:
            if not sound.codec_context.is_open:
                sound.codec_context.open()
            whole = (samples * 32767).astype(np.int16)[None]
            for at in range(0, whole.shape[1], sound.codec_context.frame_size):
                piece = np.ascontiguousarray(whole[:, at : at + sound.codec_context.frame_size])
                frame = av.AudioFrame.from_ndarray(piece, format="s16", layout="mono")
                frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), at + round((begin_s + sound_s) * RATE)
                container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
    return path


def listened(paths: list[Path], model: Path, goes_on: Any = None, **speech: Any) -> pa.Table:
    """Videos through subtitle_files and subtitles."""
    table = wanted([None] * len(paths), stored=[str(path) for path in paths])
    table = table.append_column("subtitle", pa.nulls(len(table), pa.large_binary()))
    table = table.append_column("subtitle_at", pa.nulls(len(table), pa.string()))
    given = {**QUICK, "contact": "test@example.org", "speech": {"model": str(model), "vad": False, **speech}}
    stage = SubtitleFiles(SubtitleFiles.Config.model_validate(given))
    try:
        if goes_on is not None:
            return next(stage.pieces(table, goes_on))
        return apply(Subtitles(), apply(stage, table))
    finally:
        stage.close()


def some_words(seconds: float, seed: int = 3) -> np.ndarray:
    said = [word for sentence in whisper.sentences(np.random.default_rng(seed), seconds) for word in sentence]
    return whisper.spoken([word for word in said if word[2] <= seconds], seconds, seed)


def test_speech_becomes_automatic_cues_whose_words_have_times(tmp_path: Path, chance: Path) -> None:
    (row,) = listened([sounding(tmp_path / "a.mkv", some_words(50), pictures_s=50)], chance).to_pylist()
    assert row["fate"] == "kept", row["detail"]
    told = [row[name] for name in ("subtitle_format", "subtitle_automatic", "word_times", "subtitle_oddities")]
    assert told == ["speech", True, "real", ""]
    assert row["subtitle_language"] in whisper.languages()
    last = 0.0
    for cue in row["cues"]:
        assert cue["words"]
        assert cue["text"].split() == [word["text"] for word in cue["words"]]
        assert cue["start_s"] == cue["words"][0]["start_s"]
        assert cue["end_s"] == cue["words"][-1]["end_s"]
        for word in cue["words"]:
            assert last <= word["start_s"] <= word["end_s"] <= 50
            last = word["start_s"]
    rows, clips = expand(Segments(Segments.Config(max_s=30, min_words=1)), listened([tmp_path / "a.mkv"], chance))
    assert rows["fate"].to_pylist() == ["kept"]
    assert len(clips)


def test_times_are_those_of_the_container_wherever_it_and_its_sound_begin(tmp_path: Path, chance: Path) -> None:
    """The same sound gives the same words; a film whose sound begins 2.5 s late has them 2.5 s later."""
    sound = some_words(20)
    films = [sounding(tmp_path / f"{n}.mkv", sound, *shift) for n, shift in enumerate([(0, 0), (2.5, 0), (0, 7), (2.5, 7)])]
    plain, *shifted = [row["cues"] for row in listened(films, chance).to_pylist()]
    for cues, late in zip(shifted, (2.5, 0, 2.5), strict=True):
        assert [cue["text"] for cue in cues] == [cue["text"] for cue in plain]
        times = np.array([word["start_s"] for cue in cues for word in cue["words"]])
        assert np.abs(times - late - [word["start_s"] for cue in plain for word in cue["words"]]).max() <= 0.002


def test_each_video_without_speech_has_its_reason(tmp_path: Path, chance: Path) -> None:
    """And a text track is taken before any speech."""
    silent = sounding(tmp_path / "silent.mkv", None)
    noise = sounding(tmp_path / "noise.mkv", np.random.default_rng(1).normal(0, 0.02, 5 * RATE))
    whole = sounding(tmp_path / "whole.mkv", some_words(10)).read_bytes()
    damaged = tmp_path / "damaged.mkv"
    head = whole.index(b"fLaC")  # the decoder's own header, and every frame after it
    damaged.write_bytes(whole[:head] + b"\0" * 42 + whole[head + 42 :].replace(b"\xff\xf8", b"\0\0"))
    html = tmp_path / "page.mkv"
    html.write_text("<html>")
    films = [silent, noise, damaged, html, filmed(tmp_path / "track.mp4")]
    fates = listened(films, chance, vad=True)["fate"].to_pylist()
    assert fates == [*(f"subtitle_files:{reason}" for reason in ("no_sound", "no_speech", "damaged_sound", "not_a_video")), "kept"]


def test_a_file_that_is_cut_off_keeps_what_is_there(tmp_path: Path, chance: Path) -> None:
    whole = sounding(tmp_path / "whole.mkv", some_words(40)).read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    (row,) = listened([cut], chance).to_pylist()
    assert row["fate"] == "kept"
    assert 20 < row["cues"][-1]["end_s"] < 30


def test_long_sound_is_heard_in_windows_that_end_where_it_is_quiet(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    sound = rng.normal(0, 0.1, 700 * RATE).astype(np.float32)
    for quiet in (280, 561):
        sound[quiet * RATE : (quiet + 1) * RATE] *= 0.001
    found = list(recognition.windows(str(sounding(tmp_path / "long.mkv", sound, sound_s=1)), lambda: None))
    begins = [begin / RATE for begin, _ in found]
    assert begins[0] == 1
    assert [281 < begins[1] < 282, 562 < begins[2] < 563] == [True, True]
    assert sum(len(samples) for _, samples in found) == 700 * RATE
    joined = np.concatenate([samples for _, samples in found])
    assert np.array_equal(joined, (sound * 32767).astype(np.int16))


def test_the_watchdog_hears_of_it_and_it_can_be_ended(tmp_path: Path, chance: Path) -> None:
    film = sounding(tmp_path / "a.mkv", some_words(100))
    signs: list[float] = []
    table = listened([film], chance, goes_on=lambda: signs.append(time.monotonic()))
    assert table["fate"].to_pylist() == ["kept"]
    assert len(signs) > 10

    class EnoughError(Exception):
        pass

    def stop() -> None:
        if threading.current_thread() is not threading.main_thread() and len(signs) > 30:
            raise EnoughError
        signs.append(0)

    with pytest.raises(EnoughError):
        listened([film], chance, goes_on=stop)


ENDED = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from tests.stages.download.test_download_speech import listened
from pathlib import Path
def goes_on(said=[]):
    said.append(0)
    if len(said) == 40:
        print("hears", flush=True)
    time.sleep(0.05)
listened([Path(sys.argv[1])], Path(sys.argv[2]), goes_on)
"""


def test_ctrl_c_ends_it_within_seconds(tmp_path: Path, chance: Path) -> None:
    film = sounding(tmp_path / "long.mkv", np.tile(some_words(60), 30))
    child = subprocess.Popen([sys.executable, "-c", ENDED, str(film), str(chance)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    assert child.stdout.readline() == b"hears\n"
    child.send_signal(2)
    began = time.monotonic()
    child.wait(timeout=60)
    assert child.returncode != 0
    assert time.monotonic() - began < 20


def test_a_model_is_a_folder_with_its_files_and_nothing_is_looked_up(tmp_path: Path, chance: Path) -> None:
    def refused(model: Path | str, **more: Any) -> str:
        with pytest.raises(UserError) as told:
            entry("subtitle_files", {"contact": "a@example.org", "speech": {"model": str(model), **more}}).stage.check_ready()
        return str(told.value)

    assert "is no folder; a model is a local folder of CTranslate2's form with model.bin, config.json, tokenizer.json" in refused("tiny")
    (tmp_path / "empty").mkdir()
    assert "lacks model.bin, config.json, tokenizer.json, vocabulary.json or vocabulary.txt" in refused(tmp_path / "empty")
    for name, content, told in (
        ("model.bin", b"torch", "is no Whisper of CTranslate2's form"),
        ("tokenizer.json", b"{", "speech.model: "),
        ("tokenizer.json", b"", "speech.model: "),
    ):
        copy = tmp_path / f"{name}{len(content)}"
        copy.mkdir()
        for path in chance.iterdir():
            (copy / path.name).symlink_to(path)
        (copy / name).unlink()
        (copy / name).write_bytes(content)
        assert told in refused(copy)
    assert "cuda needs gpus" in refused(chance, device="cuda")
    assert "knows no xx" in refused(chance, language="xx")


def test_a_model_that_is_cut_off_or_takes_other_mels_ends_the_run(tmp_path: Path, chance: Path) -> None:
    film = sounding(tmp_path / "a.mkv", some_words(3))
    for name, content, told in (
        ("model.bin", (chance / "model.bin").read_bytes()[:100_000], "cannot be loaded"),
        ("preprocessor_config.json", json.dumps({"feature_size": 128}).encode(), "takes 80 mels"),
    ):
        copy = tmp_path / name
        copy.mkdir()
        for path in chance.iterdir():
            (copy / path.name).symlink_to(path)
        (copy / name).unlink()
        (copy / name).write_bytes(content)
        with pytest.raises(UserError, match=told):
            listened([film], copy, goes_on=lambda: None)


def test_the_key_knows_the_models_content(tmp_path: Path, chance: Path) -> None:
    copy = tmp_path / "model"
    copy.mkdir()
    for path in chance.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())

    def key(**more: Any) -> Any:
        return ingredients([entry("subtitle_files", {"contact": "a@example.org", "speech": {"model": str(copy), **more}})])

    before = key()
    assert key(cpus=2, gpus=1) == before
    assert key(beam_size=1) != before
    whisper.random(copy, seed=2)
    assert key() != before


@pytest.mark.parametrize("cues", ["[[0]]", '[[-5, 1, [[null, "x"]]]]', "{}"])
def test_a_file_that_only_looks_like_recognised_speech_is_refused(cues: str) -> None:
    with pytest.raises(SubtitleError):
        parse(f'{{"recognised": true, "cues": {cues}}}'.encode())


def test_a_run_can_be_read_after_its_model_is_gone(tmp_path: Path) -> None:
    options = {**QUICK, "speech": {"model": str(tmp_path / "gone")}}
    with pytest.raises(UserError, match="is no folder"):
        entry("subtitle_files", options)
    assert entry("subtitle_files", options, past=True).stage.files == []
