"""Which of a table's columns holds what: the published spellings, and a mapping of the user's own.

Spellings are compared without case. `SPELLINGS` and `SOURCES` are what docs/guide/input.md shows. Where a mapping has a text with names in
braces, as `videos/{video_id}.mp4`, the column is made of that (`fill`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UserError
from stages.ingest.rebatch import OWN
from stages.ingest.values import strings

SUBTITLES = ("subtitle", "subtitle_at")  # fields that are taken where ingest's option `subtitles` asks for them
# Our field -> its spellings, lower case, the more telling ones first: of a page's `url` and an `image_url` the latter is the picture's.
SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "url": (
        *("image_url", "image_urls", "img_url", "imageurl", "image_link", "img_src", "image_src", "original_url", "contenturl"),
        *("video_url", "videourl", "url", "urls", "link", "coco_url", "flickr_url", "src"),
    ),
    "caption": (
        *("caption", "text", "captions", "alt", "alt_text", "alttext", "txt", "top_caption", "all_captions", "raw_caption"),
        *("title", "description", "sentence", "sentences"),
    ),
    "width": ("original_width", "width", "image_width"),
    "height": ("original_height", "height", "image_height"),
    "uid": ("uid",),
    "source_id": ("sample_id", "id", "image_id", "photo_id", "key", "video_id"),
    "sha256": ("sha256",),
    "md5": ("md5",),
    "similarity": ("similarity", "clip_similarity_vitb32", "clip_b32_similarity_score", "clip_similarity", "clip_similarity_vitl14"),
    "nsfw": ("nsfw",),
    "punsafe": ("punsafe", "nsfw_score_opennsfw2"),
    "pwatermark": ("pwatermark", "watermark_score"),
    "aesthetic": ("aesthetic", "aesthetic_score", "aesthetic_score_laion_v2"),
    "licence": ("license", "licence"),
    "face_boxes": ("face_bboxes", "face_boxes"),
    "subtitle": ("subtitle", "subtitles", "vtt", "srt"),
    "subtitle_at": ("subtitle_url", "subtitles_url", "captions_url", "subtitle_path", "subtitle_at"),
    "stored_at": (),  # by a mapping alone: a stranger's table must not name files of this machine
}
YOUTUBE = "https://www.youtube.com/watch?v={video_id}"
_NAME = re.compile(r"\{([^{}]+)\}")
PLAIN = r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$"  # what may be put into a made column: a stranger's `../..` must not choose a file of this machine
SYNONYMS = {"source_caption": "caption", "text": "caption", "license": "licence", "id": "source_id"}


@dataclass(frozen=True)
class Source:
    """A published table, known by columns that it has and lacks (lower case)."""

    name: str
    has: frozenset[str]
    lacks: frozenset[str] = frozenset()
    swapped: bool = False  # WIDTH holds the height and HEIGHT the width
    url: str = ""  # what the URL is made of, where the table has none


def _source(name: str, has: str, lacks: str = "", swapped: bool = False, url: str = "") -> Source:
    return Source(name, frozenset(has.split()), frozenset(lacks.split()), swapped, url)


# The first one that fits. LAION's join script swaps WIDTH and HEIGHT while it adds `hash` and punsafe: only tables without are transposed.
SOURCES = (
    _source("LAION-COCO", "url text top_caption all_captions"),
    _source("LAION aesthetic", "url text aesthetic"),
    _source("LAION-5B joined, Re-LAION", "url text hash punsafe"),
    _source("LAION-400M, LAION-5B as first published", "sample_id url text", lacks="hash punsafe", swapped=True),
    _source("DataComp", "uid url text clip_b32_similarity_score"),
    _source("COYO", "id url text image_phash"),
    _source("RedCaps", "image_id subreddit caption"),
    _source("SBU", "image_urls captions user_ids"),
    _source("img2dataset", "url key status error_message"),
    _source("HowTo100M", "video_id category_1 category_2 task_id", lacks="url", url=YOUTUBE),
    _source("HowTo100M's captions", "video_id subtitle", lacks="url", url=YOUTUBE),
)


@dataclass(frozen=True)
class Columns:
    """Field -> the table's column (or what `fill` makes it of), and what is known of the table."""

    of: Mapping[str, str]
    source: Source | None
    swapped: bool


def recognise(names: list[str], given: str | Mapping[str, str] = "auto") -> Columns:
    """The columns of a table that has `names`. What `given` maps comes first, the rest goes by `SPELLINGS`.

    Raises UserError, with the table's columns and the nearest one, for an unknown field or column in `given`, and where nothing says
    where the pictures are.
    """
    names = [name for name in names if name not in OWN or name == OWN[1]]
    mapped = _mapped(names, given)
    low: dict[str, str] = {}
    for name in names:
        low.setdefault(name.lower(), name)
    source = next((s for s in SOURCES if s.has <= low.keys() and not s.lacks & low.keys()), None)
    found = dict(mapped)
    taken = set(mapped.values())
    for field, spellings in SPELLINGS.items():
        column = next((low[spelling] for spelling in spellings if spelling in low and low[spelling] not in taken), None)
        if field not in found and column is not None:
            found[field] = column
            taken.add(column)
    if source is not None and source.name == "img2dataset":
        found.pop("md5", None)  # older versions took it of the re-encoded file, so that no download ever agrees
    if OWN[1] in names:
        found.setdefault("stored_at", OWN[1])
    if "url" not in found and source is not None and source.url:
        found["url"] = source.url
    if "url" not in found and "stored_at" not in found:
        raise UserError(_no_url(names))
    return Columns(found, source, bool(source and source.swapped) and not {"width", "height"} & mapped.keys())


def _mapped(names: list[str], given: str | Mapping[str, str]) -> dict[str, str]:
    if isinstance(given, str):
        if given != "auto":
            raise UserError(f"input.columns: {given!r} is neither auto nor a map such as {{url: LINK, caption: ALT}}")
        return {}
    out: dict[str, str] = {}
    for key, column in given.items():
        field = SYNONYMS.get(key, key.removeprefix("claimed_"))
        if field not in SPELLINGS:
            raise UserError(f"input.columns.{key}: unknown{_nearest(key, list(SPELLINGS))}; valid: {', '.join(SPELLINGS)}")
        inner = _NAME.findall(column)
        if inner and column not in names:
            if unknown := [name for name in inner if name not in names]:
                raise UserError(f"input.columns.{key}: {column!r} names {unknown[0]!r}, which the table lacks; it has {_listed(names)}")
        elif column not in names:
            raise UserError(f"input.columns.{key}: the table has no column {column!r}{_nearest(column, names)}; it has {_listed(names)}")
        out[field] = column
    return out


def fill(raw: pa.Table, known: Columns) -> pa.Table:
    """The table with the columns that are made of others. Null where one of those is null, or has other characters than PLAIN allows."""
    for text in dict.fromkeys(known.of.values()):
        if text in raw.column_names:
            continue
        pieces = _NAME.split(text)  # text and names in turn
        made = [strings(raw[piece]) if at % 2 else pa.scalar(piece, pa.string()) for at, piece in enumerate(pieces)]
        values = pc.binary_join_element_wise(*made, "")
        for name in pieces[1::2]:
            plain = pc.match_substring_regex(strings(raw[name]), PLAIN)
            values = pc.if_else(pc.fill_null(plain, False), values, pa.scalar(None, pa.string()))
        raw = raw.append_column(text, values)
    return raw


def _no_url(names: list[str]) -> str:
    likely = [name for name in names if any(part in name.lower() for part in ("url", "uri", "link", "src", "image"))]
    near = f" (the nearest: {likely[0]})" if likely else _nearest("url", names)
    return f"input.columns: no column of the table is known to hold URLs{near}; set input.columns: {{url: NAME}}; it has {_listed(names)}"


def _nearest(wanted: str, names: list[str]) -> str:
    by_low = {name.lower(): name for name in names}
    near = difflib.get_close_matches(wanted.lower(), list(by_low), n=1, cutoff=0.4)
    return f" (the nearest: {by_low[near[0]]})" if near else ""


def _listed(names: list[str]) -> str:
    return ", ".join(names[:60]) + (f" and {len(names) - 60} more" if len(names) > 60 else "") or "no columns"
