"""Stage `subtitle_files`: a video's subtitle file from where the list says it lies, within the download's guards and limits.

It stands before the barrier of the download, since segments are made of the subtitles and only those that stay are fetched. Files are
small; what lies in the list itself is left as it is.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.stage import Column, drop
from stages.download import config as options
from stages.download.reasons import REASONS
from stages.download.stage import Download


class SubtitleFiles(Download):
    """Fetches `subtitle_at` where `subtitle` is empty. Its options are the download's; limits per host are kept together with it."""

    name = "subtitle_files"
    version = 1
    reads = {
        "subtitle": Column(pa.large_binary(), "a file that the list holds itself, or null", stored=False),
        "subtitle_at": Column(pa.string(), "URL, or path where `local` allows it"),
    }
    adds = {"subtitle": Column(pa.large_binary(), "the subtitle file's bytes", stored=False)}
    reasons = {
        **REASONS,
        "missing": "the row has neither a subtitle file nor an address of one",
        "local": "a path, which `local` does not allow",
    }

    class Config(options.Config):
        max_bytes: options.Size = Field(20_000_000, ge=1)
        """Largest file in bytes, after decompression. A day of automatic captions has 5 MB."""
        local: bool = False
        """Addresses without http:// or https:// are paths on this machine or fsspec URLs. Only for lists of your own: a stranger's must
        not name files of this machine."""

    def __call__(self, table: pa.Table) -> pa.Table:
        at = table["subtitle_at"]
        need = pc.is_null(table["subtitle"])
        web = pc.fill_null(pc.match_substring_regex(at, r"^(?i:https?)://"), False)
        table = drop(table, pc.and_(need, pc.is_null(at)), f"{self.name}:missing", "no subtitle file")
        if not self.config.local:
            table = drop(table, pc.and_(need, pc.invert(web)), f"{self.name}:local", "set stages.subtitle_files.local: true to read it")
        todo = pc.and_(need, pc.equal(table["fate"], "kept"))
        wanted = table.filter(todo)
        if not len(wanted):
            return table
        none, here = pa.scalar(None, pa.string()), web.filter(todo)
        asked = pa.table(
            {
                **{name: wanted[name] for name in ("row", "fate", "detail")},
                "url": pc.if_else(here, wanted["subtitle_at"], none),
                "stored_at": pc.if_else(here, none, pa.array([json.dumps({"path": at}) for at in wanted["subtitle_at"].to_pylist()])),
                "expected_hash": pa.nulls(len(wanted), pa.string()),
            }
        )
        return self._filled(table, super().__call__(asked))

    def _filled(self, table: pa.Table, got: pa.Table) -> pa.Table:
        index = pc.index_in(table["row"], got["row"].combine_chunks())
        here = pc.is_valid(index)
        for name, source in (("subtitle", "body"), ("fate", "fate"), ("detail", "detail")):
            values = pc.if_else(here, got[source].take(index), table[name])
            table = table.set_column(table.schema.get_field_index(name), name, values)
        return table

    def _columns(self, table: pa.Table, outcomes: list[Any]) -> pa.Table:
        bodies = pa.array([outcome.body for outcome in outcomes], pa.large_binary())
        table = super()._fated(table, outcomes)
        return table.append_column("body", bodies)
