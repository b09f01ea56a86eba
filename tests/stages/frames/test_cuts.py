"""Cuts are found where films that were made for it have them, and where PySceneDetect itself finds them in real ones."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline.catalog import check_order, entry
from pipeline.errors import UserError
from pipeline.frame import apply, framed
from pipeline.sample import film
from stages.frames import Frames
from stages.frames.cuts import Cuts
from tests.support.videos import uneven

pytest.importorskip("scenedetect")
CUTS_MS = (3000, 4400, 9160, 12000)
LENGTH_S = 16.0


def picture(shot: int, ms: int) -> np.ndarray:
    """A picture of its own for each shot, over which a camera pans."""
    rng = np.random.default_rng(shot)
    coarse = rng.integers(0, 255, (8, 24, 3), dtype=np.uint8)
    return np.ascontiguousarray(np.roll(coarse.repeat(15, 0).repeat(15, 1), ms // 80, axis=1)[:, :160])


def write(path: Path, times: Sequence[int], shift_ms: int = 0) -> Path:
    """`times`: ms since the beginning of the film, which lies at `shift_ms`."""
    pictures = ((ms + shift_ms, picture(int(np.searchsorted(CUTS_MS, ms, side="right")), ms)) for ms in times)
    film.write(path, pictures, options={"preset": "ultrafast", "g": "40"})
    return path


KINDS = {
    "steady": ("mp4", sorted({*range(0, 16_000, 40)}), 0),
    "uneven": ("mp4", sorted({*(ms for ms in uneven(LENGTH_S, 5)), *CUTS_MS}), 0),
    "shifted": ("mkv", sorted({*range(0, 16_000, 40)}), 8333),
}


def cuts(path: Path, clips: Sequence[tuple[float | None, float | None]], **options: Any) -> list[dict[str, Any]]:
    starts, ends = zip(*clips, strict=True)
    columns = {"start_s": pa.array(starts, pa.float64()), "end_s": pa.array(ends, pa.float64())}
    stage = Cuts(Cuts.Config(**options))
    stage.open()
    rows: list[dict[str, Any]] = apply(stage, framed(pa.table({"video": [str(path)] * len(clips), **columns}))).to_pylist()
    return rows


@pytest.mark.parametrize("detector", ["adaptive", "content"])
@pytest.mark.parametrize("kind", KINDS)
def test_cuts_lie_where_they_were_made(tmp_path: Path, kind: str, detector: str) -> None:
    """Clips across a cut and three, between cuts, from a cut on, up to one, and one with none near it."""
    suffix, times, shift = KINDS[kind]
    path = write(tmp_path / f"film.{suffix}", times, shift)
    clips = [(2.0, 4.0), (2.5, 9.5), (5.0, 9.0), (3.0, 4.2), (9.2, 12.0), (13.5, 15.0), (15.0, 15.5)]
    rows = cuts(path, clips, detector=detector)
    assert [row["cuts"] for row in rows] == [1, 3, 0, 0, 0, 0, 0]
    assert rows[1]["cut_times"] == pytest.approx([3.0, 4.4, 9.16], abs=1e-3)
    assert rows[2]["cut_times"] == []
    assert [row["nearest_cut_s"] for row in rows] == pytest.approx([3.0, 4.4, 9.16, 3.0, 12.0, 12.0, None], abs=1e-3)
    assert {row["fate"] for row in rows} == {"kept"}


def test_a_shifted_clip_is_judged_where_its_frames_are(tmp_path: Path) -> None:
    path = write(tmp_path / "film.mp4", range(0, 16_000, 40))
    columns = {"start_s": [2.0, 2.0], "end_s": [4.0, 4.0], "shift_s": pa.array([0, 3], pa.float32())}
    stage = Cuts()
    stage.open()
    out = apply(stage, framed(pa.table({"video": [str(path)] * 2, **columns})))
    assert out["cuts"].to_pylist() == [1, 0]


def test_frames_at_the_middle_of_each_shot(tmp_path: Path) -> None:
    path = write(tmp_path / "film.mp4", range(0, 16_000, 40))
    columns = {"start_s": [2.5, 5.0, 1.0], "end_s": [9.5, 9.0, 2.0], "shift_s": pa.array([0, 0, 1.5], pa.float32())}
    table = framed(pa.table({"video": [str(path)] * 3, **columns}))
    for most, wanted in ((64, [[2.75, 3.7, 6.78, 9.33], [7.0], [2.75, 3.25]]), (2, [[3.7, 6.78], [7.0], [2.75, 3.25]])):
        made = table
        for stage in (Cuts(), Frames(Frames.Config(pick="scenes", max_count=most, size=64))):
            stage.open()
            made = apply(stage, made)
        times = made["frame_times"].to_pylist()
        assert len(times) == 3
        for got, want in zip(times, wanted, strict=True):
            assert got == pytest.approx(want, abs=1e-3)
        for pictures, at in zip(made["frames"].to_pylist(), times, strict=True):
            shots = [int(np.searchsorted(CUTS_MS, 1000 * t, side="right")) for t in at]
            assert len(set(shots)) == len(pictures) == len(at)
            for body, shot, t in zip(pictures, shots, at, strict=True):
                seen = np.asarray(Image.open(io.BytesIO(body)).convert("RGB").resize((16, 12)), float)
                ms = int(t * 1000) // 40 * 40
                own = np.asarray(Image.fromarray(picture(shot, ms)).crop((20, 0, 140, 120)).resize((16, 12)), float)
                assert np.abs(seen - own).mean() < 30


def test_frames_of_scenes_need_the_cuts() -> None:
    entries = [entry("cuts"), entry("frames", {"pick": "scenes"})]
    for missing, some in (("video, start_s, end_s, cut_times", entries[1:]), ("video, start_s, end_s, which", entries)):
        with pytest.raises(UserError, match=f"reads {missing}"):
            check_order(some)
    with pytest.raises(UserError, match="put the stage cuts before it"):
        check_order(entries[1:])


def test_what_cannot_be_read_has_no_cuts(tmp_path: Path) -> None:
    (tmp_path / "page.mp4").write_text("<html>")
    assert [row["cuts"] for row in cuts(tmp_path / "page.mp4", [(0.0, 2.0)])] == [None]
    path = write(tmp_path / "film.mp4", range(0, 3000, 40))
    assert [row["cuts"] for row in cuts(path, [(1.0, 1.0), (None, 2.0), (0.5, 2.0)])] == [None, None, 0]


@pytest.mark.parametrize(("name", "count"), [("datajuicer_video1.mp4", 2), ("decord_pancake.mkv", 0), ("imageio_cockatoo.mp4", 0)])
def test_real_files_have_the_cuts_that_pyscenedetect_finds_by_itself(data_dir: Path, name: str, count: int) -> None:
    """By its own reader, which takes the first of several video streams, where ours takes the best."""
    from scenedetect import AdaptiveDetector, detect

    path = data_dir / "video" / name
    own = [scene[0].seconds for scene in detect(str(path), AdaptiveDetector(min_scene_len=0.6))][1:]
    stage = Cuts()
    stage.open()
    found = stage._found(str(path), [(0.0, 200.0)])
    assert len(own) == count
    assert found.tolist() == pytest.approx(own, abs=0.01)


@pytest.mark.slow
def test_slides_that_change_are_cuts_as_pyscenedetect_has_them(data_dir: Path) -> None:
    """A screen of 1080p: one of its changes is just above the threshold, and only by PySceneDetect's way of scaling."""
    stage = Cuts()
    stage.open()
    found = stage._found(str(data_dir / "video" / "video2dataset_test.mp4"), [(0.0, 200.0)])
    assert found.tolist() == pytest.approx([69.87, 89.93, 92.83, 100.5], abs=0.01)
