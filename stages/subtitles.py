"""subtitles: a subtitle file's bytes become cues: timed text, with the times of its words where the file has them.

Formats, encodings, YouTube's rolling captions and repairs are functions in stages/lib/subtitles; this file holds the columns and
the reasons.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pyarrow as pa
from pydantic import Field

from pipeline.stage import Column, Stage, Strict, drop
from stages.lib.subtitles import REASONS, SubtitleError, Track, parse
from stages.lib.subtitles.columns import CUE, to_column

CARRIED = "carried"  # ingest's column of all other columns of the list


class Options(Strict):
    """Nothing need be set: formats and encodings are seen from the content."""

    max_bytes: int = Field(50_000_000, ge=1)
    """Bytes of a subtitle file; larger ones are not read. A day of automatic captions has 5 MB."""
    name_column: str | None = None
    """The column with the file's name, extension or media type, for what the content leaves open."""
    language_column: str | None = None
    """The column with the language's code (en, ru, …), for files in encodings from before UTF-8. Of this one and the others `carried.NAME`
    is the column NAME of the list."""
    video_column: str | None = None
    """The column with the video's id, where `subtitle` is a collection of HowTo100M's that holds many videos."""


class Subtitles(Stage):
    """Reads a subtitle file. What was mended or left out within it is counted in `subtitle_oddities`."""

    name = "subtitles"
    version = 4
    adds = {
        "cues": Column(pa.list_(CUE), "timed texts in order, repeats removed; `words` is empty where no word is timed", stored=False),
        "subtitle_format": Column(
            pa.string(),
            "vtt, srt, sbv, json3, srv1, srv2, srv3, ttml, howto100m, milnce_csv, caption_pickle, embedded_CODEC, or speech (recognised)",
        ),
        "subtitle_encoding": Column(pa.string(), "the encoding that the text was read by"),
        "subtitle_language": Column(pa.string(), "the language that the file names, if it does"),
        "subtitle_automatic": Column(
            pa.bool_(), "recognised, or of the rolling form of automatic captions; false says only that nothing shows it"
        ),
        "word_times": Column(pa.string(), "real, interpolated (equal steps, as in translated tracks) or none"),
        "subtitle_oddities": Column(pa.string(), "what was mended or left out, with counts: `bad_timing 2, repeated_lines 40`"),
    }
    reasons = {
        **REASONS,
        "missing": "the row has no subtitle file",
        "too_large": "more than max_bytes bytes",
        "no_cues": "a subtitle file without a single timed text",
    }

    class Config(Options):
        pass

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.reads = {"subtitle": Column(pa.large_binary(), "the subtitle file's bytes", stored=False)}
        self._columns = [self.config.name_column, self.config.language_column, self.config.video_column]
        named = {CARRIED if name.startswith(f"{CARRIED}.") else name for name in self._columns if name}
        self.reads |= {name: Column(pa.string(), "named in the options") for name in sorted(named)}

    def __call__(self, table: pa.Table) -> pa.Table:
        hints = [_hints(table, name) for name in self._columns]
        rows = zip(
            table["subtitle"], *hints, strict=True
        )  # one file after the other: they and their cues are not all held as Python objects
        read: list[Track | SubtitleError] = []
        cues: list[pa.Array] = [pa.array([], pa.list_(CUE))]
        for body, name, language, video in rows:
            got = self._read(body.as_py(), name, language, video)
            said = [to_column(cue) for cue in got.cues] if isinstance(got, Track) else None
            cues.append(pa.array([said], pa.list_(CUE)))
            read.append(replace(got, cues=()) if isinstance(got, Track) else got)
        tracks = [got if isinstance(got, Track) else None for got in read]
        columns = {
            "cues": pa.chunked_array(cues),
            "subtitle_format": pa.array([t and t.format for t in tracks], pa.string()),
            "subtitle_encoding": pa.array([t and t.encoding for t in tracks], pa.string()),
            "subtitle_language": pa.array([t and t.language for t in tracks], pa.string()),
            "subtitle_automatic": pa.array([None if t is None else t.automatic for t in tracks], pa.bool_()),
            "word_times": pa.array([t and t.word_times for t in tracks], pa.string()),
            "subtitle_oddities": pa.array([t and _oddities(t) for t in tracks], pa.string()),
        }
        for name, values in columns.items():
            table = table.append_column(name, values)
        return self._drop(table, read)

    def _read(self, body: bytes | None, name: str | None, language: str | None, video: str | None) -> Track | SubtitleError:
        if body is None:
            return SubtitleError("missing", "no subtitle")
        if len(body) > self.config.max_bytes:
            return SubtitleError("too_large", f"{len(body)} bytes > {self.config.max_bytes}")
        try:
            track = parse(body, name or "", language, video)
        except SubtitleError as err:
            return err
        return track if track.cues else SubtitleError("no_cues", f"{track.format}: {_oddities(track) or 'no cue at all'}")

    def _drop(self, table: pa.Table, read: list[Track | SubtitleError]) -> pa.Table:
        errors = [got if isinstance(got, SubtitleError) else None for got in read]
        for reason in dict.fromkeys(err.reason for err in errors if err):
            mask = pa.array([err is not None and err.reason == reason for err in errors])
            table = drop(table, mask, f"{self.name}:{reason}", pa.array([err and err.detail for err in errors], pa.string()))
        return table


def _hints(table: pa.Table, name: str | None) -> list[str | None]:
    """A column's texts, or what the list's own column has."""
    if name is None or not name.startswith(f"{CARRIED}."):
        return table[name].to_pylist() if name else [None] * len(table)
    found = (json.loads(text or "{}").get(name.removeprefix(f"{CARRIED}.")) for text in table[CARRIED].to_pylist())
    return [None if value is None else str(value) for value in found]


def _oddities(track: Track) -> str:
    return ", ".join(f"{name} {count}" for name, count in track.oddities.items())
