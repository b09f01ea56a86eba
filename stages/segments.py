"""segments: the cues of a video become segments, each a span of time with the text that is spoken in it and a row of its own.

How cues are cut is stages/lib/segments.py; this file holds the options, the columns and the reasons. Its caption column is the one that the
stage `captions` reads, so the same cleaning, language rules and dedup hold for spoken text as for images' captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

import pyarrow as pa
from pydantic import Field, model_validator

from pipeline.stage import Column, Expanded, Stage, Strict, drop
from stages.lib.segments import DROPPED, Method, Rules, Segment, cut, why_none
from stages.lib.subtitles.columns import CUE, WORD, from_column

MIN_S = {"sentences": 2.0, "windows": 2.0, "cues": 0.0, "howto100m": 10.0, "milnce": 5.0}
MIN_WORDS = {"sentences": 4, "windows": 4, "cues": 0, "howto100m": 0, "milnce": 0}


class Options(Strict):
    """Lengths are of speech: from the first word's start to the last one's end."""

    method: Method = "sentences"
    """sentences: by punctuation and pauses, short ones joined, long ones cut. windows: as much as fits. cues: each cue as it is.
    howto100m: each cue with neighbours until min_s. milnce: each cue, widened to min_s, in whole seconds."""
    min_s: float | None = Field(None, ge=0)
    """Seconds of a segment at least. Default: 2; howto100m 10 and milnce 5, as their loaders have them; cues 0."""
    max_s: float = Field(15.0, gt=0)
    """Seconds at most (sentences, windows)."""
    min_words: int | None = Field(None, ge=0)
    """Words at least (sentences, windows: 4 by default; howto100m: 0, as its loader). Scripts without blanks count two letters for a
    word (kana, Han), or four (Thai, Lao, Burmese, Khmer)."""
    max_words: int = Field(60, ge=1)
    """Words at most (sentences, windows)."""
    pause_s: float = Field(0.6, ge=0)
    """A silence of this many seconds ends a sentence, as a full stop does. Half of all words follow within 0.3 s, nine in ten within
    0.65."""
    max_gap_s: float = Field(2.0, ge=0)
    """Nothing is joined over a silence of this many seconds."""
    max_words_per_s: float = Field(8.0, gt=0)
    """Faster speech is taken for wrong times (sentences, windows)."""
    overlap: Literal["keep", "drop"] = "keep"
    """Segments that overlap the one before them (cues, howto100m, milnce; the others never do)."""
    candidates: int = Field(1, ge=1, le=32)
    """milnce: how many neighbouring cues' texts stand in `candidates`; its README trains with 4."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.method in ("sentences", "windows") and self.least_s > self.max_s:
            raise ValueError(f"min_s {self.least_s} is more than max_s {self.max_s}")
        if self.least_words > self.max_words:
            raise ValueError(f"min_words {self.least_words} is more than max_words {self.max_words}")
        return self

    @property
    def least_s(self) -> float:
        return MIN_S[self.method] if self.min_s is None else self.min_s

    @property
    def least_words(self) -> int:
        return MIN_WORDS[self.method] if self.min_words is None else self.min_words


class Segments(Stage):
    """One row a segment. A video without one is dropped for the reason that took most of its time. The detail of each video, kept or not,
    holds its balance of seconds."""

    name = "segments"
    version = 5
    shape = "expand"
    reads = {
        "cues": Column(pa.list_(CUE), "timed texts in order"),
        "word_times": Column(pa.string(), "real, interpolated or none"),
    }
    adds = {
        "segment": Column(pa.int32(), "its place among the segments of its video, from 0"),
        "start_s": Column(pa.float64(), "seconds from the video's start to its first word's"),
        "end_s": Column(pa.float64(), "seconds from the video's start to its last word's end"),
        "segment_s": Column(pa.float64(), "seconds from the one to the other"),
        "exact": Column(pa.bool_(), "both ends are times that the file gives; false: interpolated within a cue, or rounded"),
        "source_caption": Column(pa.string(), "what is spoken"),
        "segment_words": Column(pa.list_(WORD), "its words with their times, in seconds of the video; empty where cues are taken whole"),
        "candidates": Column(pa.list_(pa.string()), "milnce: the texts of the cues around it"),
    }
    reasons = {"no_cues": "the video has no cues", **DROPPED}

    class Config(Options):
        pass

    def __call__(self, table: pa.Table) -> Expanded:
        rules = self._rules()
        reasons: list[str | None] = []
        details: list[str] = []
        children = [_children(0, [])]
        for row, cues, times in zip(table["row"].to_pylist(), table["cues"], table["word_times"].to_pylist(), strict=True):
            each = cut([from_column(cue) for cue in cues.as_py() or []], rules, times == "real")
            reasons.append(None if each.segments else why_none(each) if each.lost else "no_cues")
            details.append(each.balance.text())
            children.append(_children(row, each.segments))  # one video's cues and segments at a time are Python objects
        return Expanded(self._parents(table, reasons, details), pa.concat_tables(children))

    def _rules(self) -> Rules:
        config = self.config
        return Rules(
            method=config.method,
            min_ms=round(config.least_s * 1000),
            max_ms=round(config.max_s * 1000),
            min_words=config.least_words,
            max_words=config.max_words,
            pause_ms=round(config.pause_s * 1000),
            max_gap_ms=round(config.max_gap_s * 1000),
            max_words_per_s=config.max_words_per_s,
            keep_overlap=config.overlap == "keep",
            candidates=config.candidates,
        )

    def _parents(self, table: pa.Table, reasons: list[str | None], details: list[str]) -> pa.Table:
        table = table.select(["row", "fate"]).append_column("detail", pa.array(details, pa.string()))
        for reason in dict.fromkeys(filter(None, reasons)):
            mask = pa.array([other == reason for other in reasons])
            table = drop(table, mask, f"{self.name}:{reason}", table["detail"])
        return table


def _children(row: int, segments: Sequence[Segment]) -> pa.Table:
    return pa.table(
        {
            "parent": pa.array([row] * len(segments), pa.int64()),
            "segment": pa.array(range(len(segments)), pa.int32()),
            "start_s": pa.array([segment.start / 1000 for segment in segments], pa.float64()),
            "end_s": pa.array([segment.end / 1000 for segment in segments], pa.float64()),
            "segment_s": pa.array([(segment.end - segment.start) / 1000 for segment in segments], pa.float64()),
            "exact": pa.array([segment.exact for segment in segments], pa.bool_()),
            "source_caption": pa.array([segment.text for segment in segments], pa.string()),
            "segment_words": pa.array([_words(segment) for segment in segments], pa.list_(WORD)),
            "candidates": pa.array([list(segment.candidates) for segment in segments], pa.list_(pa.string())),
        }
    )


def _words(segment: Segment) -> list[dict[str, Any]]:
    return [{"text": token.text, "start_s": token.start / 1000, "end_s": token.end / 1000} for token in segment.tokens]
