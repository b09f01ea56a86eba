"""Offsets between speech and picture are found on films whose scenes are known: colours with a model that sees them, and photographs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline.errors import UserError
from pipeline.frame import apply, apply_pieces, framed
from pipeline.sample import film
from stages.frames import Frames
from stages.frames.alignment import Alignment
from stages.frames.cuts import Cuts
from stages.lib import offline_scorer

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "grey": (128, 128, 128), "yellow": (200, 200, 30)}
SCENE_S = 4


class SeesColours:
    """In the place of a model: the mean colour of a picture, and the colour that a text names."""

    def __init__(self) -> None:
        self.embedded: list[int] = []

    def transform(self, image: Image.Image) -> np.ndarray:
        return _direction(np.asarray(image).reshape(-1, 3).mean(0))

    def embed_images(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        self.embedded.append(len(pixels))
        return np.array(pixels, dtype=np.float32).reshape(len(pixels), 3)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([_direction(np.array(COLOURS[text])) for text in texts], dtype=np.float32).reshape(len(texts), 3)


def _direction(colour: np.ndarray) -> np.ndarray:
    return np.asarray(colour / np.linalg.norm(colour))


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each colour for four seconds."""
    path = tmp_path_factory.mktemp("alignment") / "colours.mp4"
    plain = [np.full((120, 160, 3), colour, np.uint8) for colour in COLOURS.values()]
    times = range(0, 1000 * SCENE_S * len(plain), 100)
    film.write(path, ((ms, plain[ms // (1000 * SCENE_S)]) for ms in times), options={"preset": "ultrafast", "g": "30"})
    return path


def table(path: Path, clips: Sequence[tuple[float | None, float | None, str]]) -> pa.Table:
    starts, ends, captions = zip(*clips, strict=True)
    columns = {"start_s": pa.array(starts, pa.float64()), "end_s": pa.array(ends, pa.float64()), "caption": pa.array(captions, pa.string())}
    return framed(pa.table({"video": pa.array([str(path)] * len(clips)), **columns}))


def stage(**options: Any) -> Alignment:
    made = Alignment(Alignment.Config(model="offline-scorer", **options))
    made.towers = SeesColours()  # type: ignore[assignment]
    return made


def aligned(path: Path, clips: Sequence[tuple[float | None, float | None, str]], **options: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = apply(stage(**options), table(path, clips)).to_pylist()
    return rows


def test_the_offset_is_that_of_the_picture(colours: Path) -> None:
    """Blue is seen from 8 to 12 s: said while it is seen, four seconds before and after, and by a clip between two times of the grid."""
    clips = [(9.2, 11.1, "blue"), (4.0, 8.0, "blue"), (13.0, 15.0, "blue"), (5.1, 5.4, "blue")]
    rows = aligned(colours, clips)
    assert [row["offset_s"] for row in rows] == [0, 4, -3, 3]
    assert [row["fate"] for row in rows] == ["kept"] * 4
    assert [row["offset_gain"] > 0.1 for row in rows] == [False, True, True, True]
    for row in rows:
        assert row["alignability"] == pytest.approx(1, abs=0.02)
        assert len(row["offset_similarities"]) == 21
        assert max(value for value in row["offset_similarities"] if value is not None) == row["alignability"]


def test_the_mean_is_over_the_clips_own_seconds(colours: Path) -> None:
    """From 6 to 10 s half of the clip is green, half blue; from 7 to 11 s one in four is green."""
    (row,) = aligned(colours, [(6.0, 10.0, "blue")], window_s=2)
    both = float(_direction(np.array(COLOURS["green"])) @ _direction(np.array(COLOURS["blue"])))
    assert row["offset_similarities"] == pytest.approx([both, (3 * both + 1) / 4, (both + 1) / 2, (both + 3) / 4, 1], abs=0.02)
    assert (row["offset_s"], row["offset_gain"]) == (2, pytest.approx((1 - both) / 2, abs=0.02))


def test_there_is_no_similarity_where_there_is_no_video(colours: Path) -> None:
    (first, last, beyond) = aligned(colours, [(0.5, 3.0, "red"), (17.0, 20.0, "yellow"), (27.5, 28.9, "yellow")], window_s=9)
    assert [value is None for value in first["offset_similarities"]] == [True] * 9 + [False] * 10
    assert [value is None for value in last["offset_similarities"]] == [False] * 10 + [True] * 9
    assert (first["offset_s"], last["offset_s"]) == (0, 0)
    assert beyond["offset_s"] == -9  # speech after the picture's end: nothing to gain over
    assert beyond["offset_gain"] is None


def test_what_has_no_length_or_cannot_be_read_has_no_offset(colours: Path, tmp_path: Path) -> None:
    assert [row["offset_s"] for row in aligned(colours, [(3.0, 3.0, "red"), (None, 2.0, "red")])] == [None, None]
    (tmp_path / "page.mp4").write_text("<html>")
    (row,) = aligned(tmp_path / "page.mp4", [(0.0, 2.0, "red")])
    assert (row["fate"], row["offset_s"], row["offset_similarities"]) == ("kept", None, None)


def test_a_clip_that_ends_hours_behind_the_video_costs_nothing(colours: Path) -> None:
    """Of a thousand hours each second would be looked for."""
    began = time.process_time()
    rows = aligned(colours, [(0.5, 3.0, "red"), *[(1.0, 3_600_000.0, "blue")] * 20])
    assert [row["offset_s"] for row in rows] == [0, *[None] * 20]
    assert time.process_time() - began < 8


def test_a_frame_goes_through_the_model_once_for_all_clips(colours: Path) -> None:
    made = stage(window_s=3, batch=5)
    seen: Any = made.towers
    apply(made, table(colours, [(4.0, 8.0, "green")] * 6 + [(6.0, 9.0, "green")]))
    assert seen.embedded == [5, 5, 1]  # seconds 1 to 11


@pytest.mark.parametrize("name", ["alignment", "cuts"])
def test_videos_are_judged_one_by_one_and_the_watchdog_hears_of_it(colours: Path, tmp_path: Path, name: str) -> None:
    """Rows of two videos in turn come back in their order; while a video is read, the stage says that it goes on."""
    other = tmp_path / "other.mp4"
    other.write_bytes(colours.read_bytes())
    both = [table(path, [(4.0 * n, 4.0 * n + 3, "blue")]) for n in range(4) for path in (colours, other)]
    mixed = _numbered(pa.concat_tables(both))
    made: Any = stage() if name == "alignment" else Cuts()
    told: list[int] = []
    pieces = list(apply_pieces(made, mixed, lambda: told.append(1)))
    assert sorted(map(len, pieces)) == [4, 4]
    assert len(told) > 4
    whole = apply(made, mixed)
    assert whole["row"].to_pylist() == list(range(8))
    column = "offset_s" if name == "alignment" else "cuts"
    assert whole[column].to_pylist()[::2] == whole[column].to_pylist()[1::2]
    assert None not in whole[column].to_pylist()


def _numbered(rows: pa.Table) -> pa.Table:
    return rows.set_column(rows.schema.get_field_index("row"), "row", pa.array(range(len(rows)), pa.int64()))


def test_frames_are_those_of_the_shifted_time(colours: Path) -> None:
    """A clip is shifted where that gains enough; the others stay, and each says by how much it was."""
    clips = [(4.0, 8.0, "blue"), (9.0, 11.0, "blue"), (13.0, 15.0, "blue"), (28.5, 30.0, "red")]
    judged = apply(stage(shift_min_gain=0.5), table(colours, clips))
    frames = Frames(Frames.Config(count=2))
    frames.open()
    rows = apply(frames, judged).to_pylist()
    assert [(row["offset_s"], row["shift_s"]) for row in rows] == [(4, 4), (0, 0), (-3, 0), (None, 0)]
    assert [row["frame_times"] for row in rows[:3]] == [[9, 11], [9.5, 10.5], [13.5, 14.5]]
    assert rows[3]["fate"] == "frames:out_of_video"
    assert {row["shift_s"] for row in aligned(colours, clips)} == {0}


@pytest.mark.skipif(bool(offline_scorer.missing()), reason="needs the extra scorer")
def test_photographs_are_found_by_what_is_said_of_them(tmp_path: Path) -> None:
    """The bundled scorer: a cat that was shown before, a cup of coffee that is shown meanwhile, an astronaut who is shown later."""
    data = pytest.importorskip("skimage.data")
    said = {"chelsea": "a close-up of a cat", "coffee": "a cup of coffee on a table", "astronaut": "a smiling woman in a space suit"}
    pictures = [np.asarray(Image.fromarray(getattr(data, name)()).convert("RGB").resize((320, 240))) for name in said]
    film.write(tmp_path / "film.mp4", ((ms, pictures[ms // 4000]) for ms in range(0, 12_000, 200)), options={"preset": "ultrafast"})
    rows = by_the_scorer(tmp_path / "film.mp4", [(4.0, 8.0, said["chelsea"]), (5.0, 7.0, said["coffee"]), (1.0, 3.0, said["astronaut"])])
    assert [row["offset_s"] for row in rows] == [-4, 0, 7]


def by_the_scorer(path: Path, clips: Sequence[tuple[float, float, str]]) -> list[dict[str, Any]]:
    made = Alignment(Alignment.Config(model="offline-scorer"))
    made.open()
    rows: list[dict[str, Any]] = apply(made, table(path, clips)).to_pylist()
    made.close()
    assert made.demonstration
    return rows


def test_a_missing_model_is_named_by_its_option() -> None:
    made: Any = Alignment(Alignment.Config(model="offline-scorer", precision="bf16"))
    with pytest.raises(UserError, match=r"stages\.alignment\.precision|stages\.alignment\.model"):
        made.check_ready()
    assert made.version != Alignment.version
