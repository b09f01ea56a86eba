"""HowTo100M's own files as input: its list, its captions, and columns that are made of a video's id."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.frame import apply
from stages.ingest.files import list_files, stream
from stages.ingest.stage import Ingest, check_columns
from stages.segments import Segments
from stages.subtitles import Subtitles

# Lines of the published list, in its own order of columns.
LIST = """video_id,category_1,category_2,rank,task_id
nVbIUDjzWY4,Cars & Other Vehicles,Motorcycles,27,52907
CTPAZ2euJ2Q,Cars & Other Vehicles,Motorcycles,35,109057
-rOtcZfDyyo,Food and Entertaining,"Drinks, hot",1,9437
"""
CAPTIONS = {
    "nVbIUDjzWY4": {"start": [9.0, 12.4], "end": [12.4, 16.9], "text": ["so we're going to take", "the chain off of this motorcycle now"]},
    "-rOtcZfDyyo": {"start": [0.5], "end": [4.5], "text": ["pour the coffee – slowly"]},
    "broken00000": {"start": "?"},
}


def rows(path: Path, columns: Any = "auto", format: str = "auto") -> list[dict[str, Any]]:
    files = list_files(str(path), format)
    check_columns(files, columns, "auto", {})
    stage = Ingest(Ingest.Config(subtitles=True))
    made: list[dict[str, Any]] = []
    for file in files:
        for raw in stream(file, 0, 2):
            made += stage.normalise(raw, len(made), columns).to_pylist()
    return made


def test_the_published_list_is_known(tmp_path: Path) -> None:
    (tmp_path / "HowTo100M_v1.csv").write_text(LIST, encoding="utf-8")
    found = rows(tmp_path / "HowTo100M_v1.csv")
    assert [row["source_id"] for row in found] == ["nVbIUDjzWY4", "CTPAZ2euJ2Q", "-rOtcZfDyyo"]
    assert found[2]["url"] == "https://www.youtube.com/watch?v=-rOtcZfDyyo"
    assert json.loads(found[2]["carried"]) == {
        "category_1": "Food and Entertaining",
        "category_2": "Drinks, hot",
        "rank": "1",
        "task_id": "9437",
    }
    assert len({row["uid"] for row in found}) == 3


def test_videos_and_captions_lie_where_the_mapping_says(tmp_path: Path) -> None:
    (tmp_path / "HowTo100M_v1.csv").write_text(LIST, encoding="utf-8")
    columns = {"stored_at": "/data/videos/{video_id}.mp4", "subtitle_at": "/data/{category_2}/{video_id}.csv"}
    found = rows(tmp_path / "HowTo100M_v1.csv", columns)
    assert found[0]["stored_at"] == "/data/videos/nVbIUDjzWY4.mp4"
    assert [row["subtitle_at"] for row in found] == ["/data/Motorcycles/nVbIUDjzWY4.csv", "/data/Motorcycles/CTPAZ2euJ2Q.csv", None]
    assert found[0]["url"].endswith("nVbIUDjzWY4")


@pytest.mark.parametrize("name", ["../../etc/passwd", "..", ".hidden", "a/b", "a b", "", "é", "a\nb"])
def test_no_list_chooses_another_file_of_this_machine(tmp_path: Path, name: str) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text(json.dumps({"video_id": name, "url": "http://a.test/1"}) + "\n", encoding="utf-8")
    (row,) = rows(path, {"stored_at": "/data/{video_id}.mp4"})
    assert row["stored_at"] is None


def test_a_name_in_braces_that_the_table_lacks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "HowTo100M_v1.csv").write_text(LIST, encoding="utf-8")
    with pytest.raises(
        UserError, match=r"input\.columns\.stored_at: '/data/\{id\}\.mp4' names 'id', which the table lacks; it has video_id"
    ):
        rows(tmp_path / "HowTo100M_v1.csv", {"stored_at": "/data/{id}.mp4"})


@pytest.mark.parametrize("packed", [False, True])
def test_raw_caption_json_is_a_list_of_videos_with_their_captions(tmp_path: Path, packed: bool) -> None:
    """From the file to clips, a broken entry costing its own row; two rows are read at a time."""
    body = json.dumps(CAPTIONS, indent=1 if packed else None).encode()
    path = tmp_path / ("raw_caption.json.gz" if packed else "raw_caption.json")
    path.write_bytes(gzip.compress(body) if packed else body)
    found = rows(path, format="howto100m")
    assert [row["source_id"] for row in found] == ["nVbIUDjzWY4", "-rOtcZfDyyo", None]
    assert found[0]["url"] == "https://www.youtube.com/watch?v=nVbIUDjzWY4"
    assert (found[2]["fate"], found[2]["detail"][:40]) == ("ingest:malformed", "no start, end and text of captions: brok")
    raw = next(stream(list_files(str(path), "howto100m")[0], 0, 2))
    table = apply(Subtitles(), Ingest(Ingest.Config(subtitles=True)).normalise(raw, 0))
    assert table["subtitle_format"].to_pylist() == ["howto100m", "howto100m"]
    children = Segments(Segments.Config(method="milnce"))(table).children
    assert children["source_caption"].to_pylist() == [text for one in list(CAPTIONS.values())[:2] for text in one["text"]]
    assert children["start_s"].to_pylist() == [8, 12, 0]


def test_captions_that_break_off_end_with_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "raw_caption.json"
    path.write_text(json.dumps(CAPTIONS)[:-60], encoding="utf-8")
    with pytest.raises(UserError, match=r"raw_caption\.json: cannot be read as howto100m: JSON: no entry at"):
        rows(path, format="howto100m")
