"""The presets: each one opens, checks its rules, asks for a contact, and reads tables spelled as its set spells them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import config, plan
from pipeline.errors import UserError
from pipeline.known import columns_known
from pipeline.layout import Run, open_run
from stages.ingest.files import list_files, stream
from stages.ingest.stage import Ingest
from stages.selection import Selection
from stages.selection.rules import Rules

CONFIGS = Path(__file__).parent.parent / "configs"
PRESETS = ["laion400m", "relaion2b_en", "datacomp_small", "cc12m", "coyo"]
WAYS = ("exact", "approximated: ", "needs a file: ", "left out: ", "ours, ")
URL, TEXT = "http://a.test/1.jpg", "A dog, running"

# One row of each set, in its own spelling and types.
TABLES: dict[str, dict[str, pa.Array]] = {
    "laion400m": {
        "SAMPLE_ID": pa.array([2949826599029]),
        "URL": pa.array([URL]),
        "TEXT": pa.array([TEXT]),
        "HEIGHT": pa.array([640.0]),  # the width: this list has them swapped
        "WIDTH": pa.array([480.0]),
        "LICENSE": pa.array(["?"]),
        "NSFW": pa.array(["UNLIKELY"]),
        "similarity": pa.array([0.3125]),
    },
    "relaion2b_en": {
        "URL": pa.array([URL]),
        "TEXT": pa.array([TEXT]),
        "WIDTH": pa.array([640], pa.int32()),
        "HEIGHT": pa.array([480], pa.int32()),
        "similarity": pa.array([0.3125]),
        "hash": pa.array([-7358291056193716]),
        "pwatermark": pa.array([0.25], pa.float32()),
        "punsafe": pa.array([None], pa.float32()),
    },
    "datacomp_small": {
        "uid": pa.array(["0123456789abcdef0123456789abcdef"]),
        "url": pa.array([URL]),
        "text": pa.array([TEXT]),
        "original_width": pa.array([640]),
        "original_height": pa.array([480]),
        "clip_b32_similarity_score": pa.array([0.25], pa.float32()),
        "clip_l14_similarity_score": pa.array([0.3125], pa.float32()),
        "face_bboxes": pa.array([[[0.1, 0.2, 0.3, 0.4]]]),
        "sha256": pa.array(["ab" * 32]),
    },
    "coyo": {
        "id": pa.array([841814333321]),
        "url": pa.array([URL]),
        "text": pa.array([TEXT]),
        "width": pa.array([640]),
        "height": pa.array([480]),
        "image_phash": pa.array(["dff9c4fd2dba1ab6"]),
        "text_length": pa.array([14]),
        "word_count": pa.array([3]),
        "num_tokens_bert": pa.array([4]),
        "num_tokens_gpt": pa.array([4]),
        "num_faces": pa.array([0]),
        "clip_similarity_vitb32": pa.array([0.3125]),
        "clip_similarity_vitl14": pa.array([0.25]),
        "nsfw_score_opennsfw2": pa.array([0.125]),
        "nsfw_score_gantman": pa.array([0.5]),
        "watermark_score": pa.array([0.25]),
        "aesthetic_score_laion_v2": pa.array([4.5]),
    },
}


def opened(name: str, *overrides: str) -> Run:
    return open_run(config.load(CONFIGS / f"{name}.yaml", list(overrides)))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_opens_and_its_rules_are_sound(name: str) -> None:
    run = opened(name)
    assert run.config.run.name == name
    assert run.layout.dedup is not None
    assert run.layout.dedup.stage.config.on == "both"
    assert run.layout.image_dedup is not None
    assert run.layout.selection is not None
    run.layout.selection.stage.check(columns_known(run))  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_tells_what_it_is(name: str) -> None:
    about = opened(name).config.about
    assert {"licence", "gating", "date", "source", "rules"} <= about.keys()
    assert "not tried" in about["source"] or "was tried" in about["source"]
    odd = {rule: said for rule, said in about["rules"].items() if not str(said).startswith(WAYS)}
    assert not odd


@pytest.mark.parametrize("name", PRESETS)
def test_no_preset_begins_on_the_public_web_without_a_contact(name: str) -> None:
    download = next(entry.stage for entry in opened(name).entries if entry.name == "download")
    with pytest.raises(UserError, match=r"stages\.download\.contact: empty"):
        download.check_ready()  # type: ignore[attr-defined]
    given = opened(name, "stages.download.contact=owner@example.org")
    next(entry.stage for entry in given.entries if entry.name == "download").check_ready()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_reads_its_set(name: str, tmp_path: Path) -> None:
    if name == "cc12m":
        path = tmp_path / "cc12m.tsv"
        path.write_text(f'{URL}\t{TEXT}\nhttp://a.test/2.jpg\t<PERSON> at "home\n', encoding="utf-8")
    else:
        path = tmp_path / "part-00000.parquet"
        pq.write_table(pa.table(TABLES[name]), path)
    row = first_row(opened(name, f"input.path={path}"))
    assert (row["url"], row["source_caption"], row["fate"]) == (URL, TEXT, "kept")
    if name != "cc12m":
        assert (row["claimed_width"], row["claimed_height"], row["claimed_similarity"]) == (640, 480, 0.3125)


def first_row(run: Run) -> dict[str, Any]:
    given = run.config.input
    (file,) = list_files(given.path, given.format, given.storage_options)
    raw = next(stream(file, 0, run.config.run.part_rows, header=given.header, storage_options=given.storage_options))
    row: dict[str, Any] = Ingest().normalise(raw, 0, given.columns).to_pylist()[0]
    return row


@pytest.mark.parametrize("baseline", ["no_filter", "basic", "clip_score", "basic_and_clip_score", "laion2b"])
def test_every_baseline_of_datacomp_can_be_chosen(baseline: str, tmp_path: Path) -> None:
    text = (
        (CONFIGS / "datacomp_small.yaml").read_text(encoding="utf-8").replace("selection: *basic_and_clip_score", f"selection: *{baseline}")
    )
    path = tmp_path / "datacomp_small.yaml"
    path.write_text(text, encoding="utf-8")
    run = open_run(config.load(path))
    assert run.layout.selection is not None
    run.layout.selection.stage.check(columns_known(run))  # type: ignore[attr-defined]
    assert [rule.name for rule in run.layout.selection.stage.rules] == [  # type: ignore[attr-defined]
        rule["name"] for rule in run.config.about["baselines"][baseline]
    ]


def test_datacomps_subset_asks_for_its_file() -> None:
    rules = opened("datacomp_small").config.about["baselines"]["subset"]
    with pytest.raises(UserError, match="cannot read the subset file"):
        Selection(Rules.model_validate(rules)).check({})


def test_howto100m_is_planned_from_its_captions(tmp_path: Path) -> None:
    """A list in the shape of raw_caption.json; the published list with MIL-NCE's csv files beside it is the other way in."""
    (tmp_path / "raw_caption.json").write_text('{"nVbIUDjzWY4": {"start": [9.0], "end": [12.4], "text": ["we take the chain off"]}}')
    given = [f"input.path={tmp_path}/raw_caption.json", f"run.root={tmp_path}/runs"]
    run = opened("howto100m", *given)
    assert run.layout.media == ["frames"]
    assert run.layout.aligner == run.layout.scorer == "ViT-B-32"
    odd = {rule: said for rule, said in run.config.about["rules"].items() if not str(said).startswith(WAYS)}
    assert not odd
    download = next(entry.stage for entry in run.entries if entry.name == "download")
    with pytest.raises(UserError, match=r"stages\.download\.contact: empty"):
        download.check_ready()  # type: ignore[attr-defined]
    row = first_row(run)
    assert (row["source_id"], row["stored_at"], row["fate"]) == ("nVbIUDjzWY4", "data/howto100m/videos/nVbIUDjzWY4.mp4", "kept")
    if importlib.util.find_spec("open_clip") is None or importlib.util.find_spec("av") is None:
        return
    lines = plan.make(CONFIGS / "howto100m.yaml", [*given, "stages.download.contact=owner@example.org"])
    assert [(line.phase, line.todo) for line in lines] == [("rows", 1), ("pool", None), ("scores", None), ("shards", 1)]
    assert lines[1].note == "aligned by ViT-B-32"
