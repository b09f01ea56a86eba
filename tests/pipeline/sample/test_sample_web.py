"""The built web: the same bytes every time, every class there, captions and pictures as the truth says."""

from __future__ import annotations

import itertools
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import imagehash
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import catalog, sample
from pipeline.errors import UserError
from pipeline.sample import pages, photos, web
from pipeline.sample.classes import CLASSES
from pipeline.sample.dirt import BLANK

DEAD = {name for name, kind in CLASSES.items() if kind.fate.startswith(("captions:", "download:", "images:"))}


def test_building_twice_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    web.build(tmp_path)
    for name in ("laion.parquet", "truth.parquet", "web.parquet", "facts.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_a_built_web_is_built_once(folder: Path) -> None:
    before = (folder / "web.parquet").stat().st_mtime_ns
    assert web.ensure(folder.parent) == folder
    assert (folder / "web.parquet").stat().st_mtime_ns == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_every_class_has_rows_and_every_row_a_class(truth: list[dict[str, Any]]) -> None:
    assert {row["truth"] for row in truth} == set(CLASSES)
    assert 500 <= len(truth) <= 700
    assert [row["row"] for row in truth] == list(range(len(truth)))


def test_the_list_is_spelled_as_laion_400m(served: sample.Sample, truth: list[dict[str, Any]]) -> None:
    table = pq.read_table(served.table)
    assert table.column_names == ["SAMPLE_ID", "URL", "TEXT", "HEIGHT", "WIDTH", "LICENSE", "NSFW"]  # no score that nobody gave
    assert table["URL"].to_pylist() == [row["url"] for row in truth]
    assert table["WIDTH"].type == pa.float64()
    assert 0 < table["WIDTH"].null_count < 60


def test_claimed_sizes_are_swapped_as_in_laion(served: sample.Sample, truth: list[dict[str, Any]]) -> None:
    served_pages = pages.read(served.folder / "web.parquet")
    claimed = pq.read_table(served.table, columns=["HEIGHT", "WIDTH"]).to_pylist()
    plain = [row for row in truth if row["truth"] == "plain" and claimed[row["row"]]["WIDTH"]]
    for row in plain:
        with Image.open(_body(served_pages, row)) as image:
            assert (claimed[row["row"]]["HEIGHT"], claimed[row["row"]]["WIDTH"]) == image.size


def test_captions_of_the_sound_are_what_the_list_says_or_its_clean_form(served: sample.Sample, truth: list[dict[str, Any]]) -> None:
    texts = pq.read_table(served.table)["TEXT"].to_pylist()
    changed = {row["truth"] for row, text in zip(truth, texts, strict=True) if text != row["caption"]}
    assert changed == {"mojibake", "escaped", "control", "caption_empty"}


def test_a_repeated_pair_comes_after_the_first(served: sample.Sample, truth: list[dict[str, Any]]) -> None:
    pairs = list(zip(*(pq.read_table(served.table)[name].to_pylist() for name in ("URL", "TEXT")), strict=True))
    again = [row["row"] for row in truth if row["truth"] == "same_pair"]
    assert len(again) == len(pairs) - len(set(pairs)) == 6
    assert all(pairs.index(pairs[row]) < row for row in again)


def test_each_picture_is_a_picture_of_its_own(served: sample.Sample, truth: list[dict[str, Any]]) -> None:
    """Different picture ids differ in more than 8 bits of a perceptual hash, and copies of one in at most 4."""
    served_pages = pages.read(served.folder / "web.parquet")
    hashes: dict[int, list[Any]] = defaultdict(list)
    for row in truth:
        alive = row["truth"] not in DEAD and row["truth"] not in ("redirect", "exif_rotated", "alpha_png")
        if row["picture"] is not None and row["picture"] < BLANK and alive:
            with Image.open(_body(served_pages, row)) as image:
                hashes[row["picture"]].append(imagehash.phash(image.convert("RGB")))
    assert len(hashes) > 150
    assert max(first - other for found in hashes.values() for first, other in itertools.pairwise(found)) <= 4
    assert min(one[0] - two[0] for one, two in itertools.combinations(hashes.values(), 2)) > 8


def test_captions_are_near_one_another_only_where_the_truth_says_so() -> None:
    captions = [caption for view in photos.views() for caption in view.captions]
    assert len(captions) == len(set(captions))
    assert max(_jaccard(one, two) for one, two in itertools.combinations(captions, 2)) < 0.5


def test_near_captions_are_near(truth: list[dict[str, Any]]) -> None:
    groups: dict[str, list[str]] = defaultdict(list)
    for row in truth:
        if row["truth"] == "near_caption":
            groups[row["group"]].append(row["caption"])
    assert len(groups) == 6
    for captions in groups.values():
        assert len(set(captions)) == 3
        assert min(_jaccard(one, two) for one, two in itertools.combinations(captions, 2)) >= 0.8


def test_facts_say_that_it_is_a_demonstration(folder: Path, truth: list[dict[str, Any]]) -> None:
    facts = sample.facts(folder)
    assert facts["photographs"] == len({row["photo"] for row in truth} - {None}) == 21
    assert facts["text"] == "demonstration: 21 distinct photographs"
    assert facts["rows"] == len(truth)


def test_every_expected_fate_is_one_that_a_stage_can_give(truth: list[dict[str, Any]]) -> None:
    given = {fate for row in truth for fate in row["expected"].split("|") if not fate.startswith(("kept", "selection:"))}
    declared = set().union(*(catalog.fates(catalog.stage_class(name)) for name in ("captions", "dedup", "download", "images")))
    assert given <= declared


def test_a_view_shows_its_box_and_its_mirror_the_same_mirrored() -> None:
    view = photos.views()[1]
    whole = photos.views()[0].image()
    assert view.image().size == (round(whole.width * 0.62) - round(whole.width * 0.27), round(whole.height * 0.40))
    left = view.image().crop((0, 0, 1, view.image().height))
    mirrored = view.mirrored().image()
    assert mirrored.crop((mirrored.width - 1, 0, mirrored.width, mirrored.height)).tobytes() == left.tobytes()


def test_a_missing_package_is_named() -> None:
    with pytest.raises(UserError, match=r"no_such_package.*pip install 'shardmill\[sample\]'"):
        photos.locate("no_such_package/picture.png")


def test_a_missing_picture_is_named() -> None:
    with pytest.raises(UserError, match=r"matplotlib.*does not carry"):
        photos.locate("matplotlib/no-such-picture.png")


def test_hosts_are_many_and_of_reserved_names(truth: list[dict[str, Any]]) -> None:
    sound = [row["url"] for row in truth if row["truth"] != "bad_url" and row["url"].startswith("http")]
    hosts = Counter(pages.address(url).partition("/")[0] for url in sound)
    made_up = [host for host in hosts if host.endswith((".example", ".test"))]
    assert len(made_up) > 80
    assert max(hosts[host] for host in made_up) <= 12


def _body(found: dict[str, pages.Page], row: dict[str, Any]) -> Any:
    import io

    return io.BytesIO(found[pages.address(row["url"])].body)


def _jaccard(one: str, two: str) -> float:
    """Of character 5-grams, as near-duplicates are judged."""
    sets = []
    for caption in (one, two):
        text = " ".join(unicodedata.normalize("NFKC", caption).casefold().split())
        sets.append({text[i : i + 5] for i in range(max(1, len(text) - 4))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])
