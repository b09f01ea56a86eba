"""Cues as Arrow columns: what the stages `subtitles` and `segments` hand to one another."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from stages.lib.subtitles.model import Cue, Word

WORD = pa.struct([("text", pa.string()), ("start_s", pa.float64()), ("end_s", pa.float64())])
CUE = pa.struct([("start_s", pa.float64()), ("end_s", pa.float64()), ("text", pa.string()), ("words", pa.list_(WORD))])


def to_column(cue: Cue) -> dict[str, Any]:
    words = [{"text": word.text, "start_s": word.start_s, "end_s": word.end_s} for word in cue.words]
    return {"start_s": cue.start_s, "end_s": cue.end_s, "text": cue.text, "words": words}


def from_column(cue: dict[str, Any]) -> Cue:
    words = tuple(Word(word["text"], word["start_s"], word["end_s"]) for word in cue["words"] or [])
    return Cue(cue["start_s"], cue["end_s"], cue["text"], words)
