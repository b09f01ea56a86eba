"""Stage `ingest`: the input's tables, in whatever spelling, as rows with one set of columns.

Files are found and read by files.py, spellings recognised by columns.py, values converted by values.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from pipeline.errors import UserError
from pipeline.stage import KEPT, Column, Resources, Stage, Strict, drop
from stages.ingest.columns import SUBTITLES, Columns, fill, recognise
from stages.ingest.files import Header, InputFile, stream
from stages.ingest.jsontext import json_text
from stages.ingest.rebatch import FILE, MALFORMED, OWN, STORED_AT
from stages.ingest.values import blank_to_null, floats, json_objects, plain_values, sizes, strings, whole

CHECKED = 50  # files
_UID = r"^[0-9a-f]{32}$"
_HEX = {"sha256": r"^[0-9a-fA-F]{64}$", "md5": r"^[0-9a-fA-F]{32}$"}


class Ingest(Stage):
    """Reads the list, numbers its rows, gives each one a uid, and puts published column spellings into one form.

    The engine calls `normalise` with each raw table; a raw table has no rows of ours yet, so the stage is never called with one.
    """

    name = "ingest"
    version = 4
    reads = {}
    adds = {
        "uid": Column(pa.string(), "32 lower-case hex digits: the input's own, else xxh3_128 of url, NUL, source_caption"),
        "source_id": Column(pa.string(), "another id of the input; null where it has none"),
        "url": Column(pa.string(), "where the picture is, without white space around it; null where the input names none"),
        "source_caption": Column(pa.string(), "the caption as the input has it (valid UTF-8); of several the first"),
        "claimed_width": Column(pa.int32(), "width in pixels as the input says; LAION's swapped sizes are put right"),
        "claimed_height": Column(pa.int32(), "height in pixels as the input says"),
        "expected_hash": Column(pa.string(), "sha256:HEX or md5:HEX of the original file; null where the input has none"),
        "stored_at": Column(pa.string(), 'JSON {"path", "offset", "length"} of bytes that lie in storage already; null: fetch'),
        "claimed_similarity": Column(pa.float32(), "cosine of picture and caption as the input says (mostly CLIP ViT-B/32)"),
        "claimed_nsfw": Column(pa.string(), "the input's NSFW tag: UNLIKELY, UNSURE or NSFW in LAION"),
        "claimed_punsafe": Column(pa.float32(), "probability of unsafe content as the input says, 0..1 (COYO: OpenNSFW2)"),
        "claimed_pwatermark": Column(pa.float32(), "probability of a watermark as the input says, 0..1"),
        "claimed_aesthetic": Column(pa.float32(), "aesthetic score as the input says, about 1..10"),
        "licence": Column(pa.string(), "licence as the input says; null for LAION's ?"),
        "face_boxes": Column(pa.string(), "JSON [[x0, y0, x1, y1] ...], parts of width and height in 0..1; null where there is none"),
        "carried": Column(pa.string(), "JSON object of all other columns of the input; null where there are none"),
    }
    reasons = {"malformed": "the line is no row: wrong number of cells, not UTF-8, no JSON object; the detail holds its text"}
    resources = Resources(cpus=1, memory=1 << 30)

    class Config(Strict):
        subtitles: bool = False
        """The list is of videos: take the columns `subtitle` (a subtitle file's content) and `subtitle_at` (its URL or path) along."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        if self.config.subtitles:
            self.adds = {
                **type(self).adds,
                "subtitle": Column(pa.large_binary(), "a subtitle file's content as the list has it; null where it has none", stored=False),
                "subtitle_at": Column(pa.string(), "URL or path of a subtitle file; null where the list has none"),
            }

    def normalise(self, raw: pa.Table, first_row: int, columns: str | Mapping[str, str] = "auto") -> pa.Table:
        """Table with `row` (int64, from `first_row` on), the stage's columns, `fate` and `detail`; row for row of `raw`.

        `columns`: `auto`, or field -> the table's column. Raises UserError where no column holds URLs (columns.recognise).
        """
        n = len(raw)
        broken = whole(raw[MALFORMED]).cast(pa.string()) if MALFORMED in raw.column_names else pa.nulls(n, pa.string())
        try:
            known = recognise(raw.column_names, columns)
        except UserError as err:
            if broken.null_count:
                file = (raw.schema.metadata or {}).get(FILE.encode(), b"").decode()
                raise UserError(f"{file}: {err}" if file else str(err)) from None
            known = Columns({}, None, False)  # no line could be read, so no column is known
        if not self.config.subtitles:
            known = replace(known, of={field: name for field, name in known.of.items() if field not in SUBTITLES})
        values = _values(fill(raw, known), known)
        rows = pa.array(np.arange(first_row, first_row + n), pa.int64())
        out = pa.table({"row": rows, **{name: values.get(name, pa.nulls(n, column.type)) for name, column in self.adds.items()}})
        out = out.append_column("fate", pa.repeat(pa.scalar(KEPT), n)).append_column("detail", pa.nulls(n, pa.string()))
        return drop(out, pc.is_valid(broken), f"{self.name}:malformed", broken)


def _values(raw: pa.Table, known: Columns) -> dict[str, pa.Array]:
    """Our columns, as far as the table has them."""
    of = known.of
    out: dict[str, pa.Array] = {}
    texts = {name: strings(raw[of[name]]) for name in ("url", "caption", "uid", "source_id", "stored_at", "nsfw", "licence") if name in of}
    n = len(raw)
    out["url"] = blank_to_null(texts.get("url", pa.nulls(n, pa.string())))
    out["source_caption"] = texts.get("caption", pa.nulls(n, pa.string()))
    if "stored_at" in of:
        out["stored_at"] = blank_to_null(texts["stored_at"])
    if "subtitle" in of:
        held = whole(raw[of["subtitle"]])
        held = held if pa.types.is_binary(held.type) or pa.types.is_large_binary(held.type) else strings(held)
        out["subtitle"] = held.cast(pa.large_binary())
    if "subtitle_at" in of:
        out["subtitle_at"] = blank_to_null(strings(raw[of["subtitle_at"]]))
    if "nsfw" in of:
        out["claimed_nsfw"] = blank_to_null(texts["nsfw"])
    if "licence" in of:
        licence = blank_to_null(texts["licence"])
        out["licence"] = pc.if_else(pc.equal(licence, "?"), pa.scalar(None, pa.string()), licence)
    width, height = ("height", "width") if known.swapped else ("width", "height")
    for ours, field in (("claimed_width", width), ("claimed_height", height)):
        if field in of:
            out[ours] = sizes(raw[of[field]])
    for field in ("similarity", "punsafe", "pwatermark", "aesthetic"):
        if field in of:
            out[f"claimed_{field}"] = floats(raw[of[field]])
    if "face_boxes" in of:
        out["face_boxes"] = _boxes(whole(raw[of["face_boxes"]]))
    out["expected_hash"] = _expected(raw, known, out.get("stored_at"))
    out["uid"], out["source_id"] = _ids(texts, out)
    used = {*of.values(), *OWN}
    out["carried"] = json_objects(raw.select([name for name in raw.column_names if name not in used]))
    return out


def _expected(raw: pa.Table, known: Columns, stored_at: pa.Array | None) -> pa.StringArray:
    """sha256 before md5. Null for bytes in storage: a shard holds the picture re-encoded, its hash is the original's."""
    none = pa.scalar(None, pa.string())
    out = pa.nulls(len(raw), pa.string())
    for name, form in _HEX.items():
        if name in known.of:
            digits = blank_to_null(strings(raw[known.of[name]]))
            fits = pc.fill_null(pc.match_substring_regex(digits, form), False)
            hashes = pc.binary_join_element_wise(f"{name}:", pc.ascii_lower(digits), "")
            out = pc.coalesce(out, pc.if_else(fits, hashes, none))
    return out if stored_at is None else pc.if_else(pc.is_valid(stored_at), none, out)


def _ids(texts: Mapping[str, pa.StringArray], out: Mapping[str, pa.Array]) -> tuple[pa.StringArray, pa.StringArray]:
    """uid and source_id. Where there is no URL the uid is made of the place in storage (the tar's name and the offset) instead."""
    url = out["url"]
    if "stored_at" in out:
        places = [None if text is None else _short(text) for text in out["stored_at"].to_pylist()]
        url = pc.coalesce(url, pa.array(places, pa.string()))
    joined = pc.binary_join_element_wise(pc.fill_null(url, ""), pc.fill_null(out["source_caption"], ""), "\0").cast(pa.binary())
    made = pa.array([xxhash.xxh3_128_hexdigest(both) for both in joined.to_pylist()], pa.string())  # one C call a row
    none = pa.nulls(len(url), pa.string())
    own = texts.get("uid", none)
    fits = pc.fill_null(pc.match_substring_regex(own, _UID), False)
    other = blank_to_null(pc.if_else(fits, pa.scalar(None, pa.string()), own))
    return pc.if_else(fits, own, made), pc.coalesce(blank_to_null(texts.get("source_id", none)), other)


def _short(stored_at: str) -> str:
    """The place without its folder, which may be another one tomorrow."""
    try:
        place = json.loads(stored_at)
        return f"{str(place['path']).rpartition('/')[2]}:{place.get('offset', 0)}"
    except (ValueError, TypeError, KeyError, AttributeError):
        return stored_at


def _boxes(array: pa.Array) -> pa.StringArray:
    """Lists of boxes as JSON, texts as they are; null for no box."""
    if not pa.types.is_nested(array.type):
        return blank_to_null(strings(array))
    return pa.array([json_text(each) if each else None for each in plain_values(array)], pa.string())


def check_columns(files: Sequence[InputFile], columns: str | Mapping[str, str], header: Header, storage_options: Mapping[str, Any]) -> None:
    """Refuses a wrong mapping before any work: by the footers of all Parquet files, and by a few rows of the others, of `CHECKED` at most.

    Raises UserError that names the file.
    """
    for file, names in _headers(files, header, storage_options):
        try:
            recognise(names, columns)
        except UserError as err:
            raise UserError(f"{file.url}: {err}") from None


def _headers(files: Sequence[InputFile], header: Header, storage_options: Mapping[str, Any]) -> Iterator[tuple[InputFile, list[str]]]:
    opened = [file for i, file in enumerate(files) if i == 0 or file.format in ("csv", "tsv", "jsonl")]
    for file in opened[:CHECKED]:
        raw = next(stream(file, 0, 100, header=header, storage_options=storage_options), None)
        if raw is not None and (MALFORMED not in raw.column_names or raw[MALFORMED].null_count):
            yield file, raw.column_names
    kinds = {(file.columns, file.tar is None): file for file in reversed(files) if file.columns is not None and file.rows}
    for (names, alone), file in kinds.items():
        yield file, [*(name for name in names or () if name not in OWN), *(() if alone else (STORED_AT,))]
