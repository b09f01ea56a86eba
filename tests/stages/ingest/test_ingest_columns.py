"""Spellings: every published table's columns end where they belong, and a user's own mapping comes first."""

from __future__ import annotations

import pytest

from pipeline.errors import UserError
from stages.ingest.columns import SOURCES, SPELLINGS, recognise

LAION_JOINED = ["URL", "TEXT", "WIDTH", "HEIGHT", "similarity", "hash", "pwatermark", "punsafe"]


@pytest.mark.parametrize(
    ("columns", "source", "swapped"),
    [
        ("SAMPLE_ID URL TEXT HEIGHT WIDTH LICENSE NSFW similarity", "LAION-400M, LAION-5B as first published", True),
        (
            "SAMPLE_ID URL TEXT HEIGHT WIDTH LICENSE LANGUAGE NSFW similarity __index_level_0__",
            "LAION-400M, LAION-5B as first published",
            True,
        ),
        ("URL TEXT WIDTH HEIGHT similarity LANGUAGE hash pwatermark punsafe", "LAION-5B joined, Re-LAION", False),
        ("url caption width height similarity hash pwatermark punsafe key status error_message", "img2dataset", False),
        ("URL TEXT WIDTH HEIGHT similarity hash punsafe pwatermark AESTHETIC_SCORE", "LAION-5B joined, Re-LAION", False),
        ("URL TEXT WIDTH HEIGHT similarity hash punsafe pwatermark aesthetic", "LAION aesthetic", False),
        ("URL TEXT top_caption all_captions all_similarities WIDTH HEIGHT similarity hash pwatermark punsafe", "LAION-COCO", False),
        (
            "uid url text original_width original_height clip_b32_similarity_score face_bboxes sha256",
            "DataComp",
            False,
        ),
        ("id url text width height image_phash text_length clip_similarity_vitb32 nsfw_score_opennsfw2 watermark_score", "COYO", False),
        ("image_id author url raw_caption caption subreddit score created_utc permalink crosspost_parents", "RedCaps", False),
        ("image_urls captions user_ids", "SBU", False),
        ("URL TEXT", None, False),
        ("url caption", None, False),
    ],
)
def test_published_tables(columns: str, source: str | None, swapped: bool) -> None:
    known = recognise(columns.split())
    assert (known.source and known.source.name) == source
    assert known.swapped == swapped
    assert known.of["url"].lower() in ("url", "image_urls")
    assert known.of["caption"].lower() in ("text", "caption", "captions")


def test_the_tables_of_spellings_hold_no_name_twice() -> None:
    listed = [spelling for spellings in SPELLINGS.values() for spelling in spellings]
    assert len(listed) == len(set(listed))
    assert all(spelling == spelling.lower() for spelling in listed)
    assert len({source.name for source in SOURCES}) == len(SOURCES)


def test_the_picture_comes_before_its_page() -> None:
    assert recognise(["url", "image_url", "caption"]).of["url"] == "image_url"
    assert recognise(["title", "original_url", "source_website"]).of == {"url": "original_url", "caption": "title"}


def test_a_mapping_comes_first_and_the_rest_is_recognised() -> None:
    known = recognise(["LINK_2", "ALT", "url", "text", "width"], {"url": "LINK_2", "source_caption": "ALT"})
    assert known.of == {"url": "LINK_2", "caption": "ALT", "width": "width"}
    assert recognise(LAION_JOINED, {"claimed_similarity": "punsafe"}).of["similarity"] == "punsafe"
    assert "punsafe" not in recognise(LAION_JOINED, {"claimed_similarity": "punsafe"}).of


def test_sizes_that_are_mapped_are_not_swapped() -> None:
    names = ["SAMPLE_ID", "URL", "TEXT", "HEIGHT", "WIDTH"]
    assert recognise(names).swapped
    assert not recognise(names, {"width": "HEIGHT", "height": "WIDTH"}).swapped


def test_no_table_of_a_stranger_names_places_in_storage() -> None:
    assert "stored_at" not in recognise(["url", "stored_at"]).of
    assert recognise(["place", "text"], {"stored_at": "place"}).of["stored_at"] == "place"


def test_an_md5_of_img2dataset_is_not_believed() -> None:
    assert "md5" not in recognise(["url", "caption", "key", "status", "error_message", "md5"]).of
    assert recognise(["url", "caption", "md5"]).of["md5"] == "md5"


@pytest.mark.parametrize(
    ("columns", "given", "message"),
    [
        (
            ["page", "image_uri", "words"],
            "auto",
            "no column of the table is known to hold URLs (the nearest: image_uri); set",
        ),
        (["URL", "TEXT"], {"url": "ULR"}, "input.columns.url: the table has no column 'ULR' (the nearest: URL); it has URL, TEXT"),
        (["URL", "TEXT"], {"captoin": "TEXT"}, "input.columns.captoin: unknown (the nearest: caption); valid: url, caption"),
        (["URL", "TEXT"], "laion", "'laion' is neither auto nor a map"),
        ([], "auto", "it has no columns"),
    ],
)
def test_what_is_refused(columns: list[str], given: str | dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        recognise(columns, given)
    assert message in str(caught.value)
