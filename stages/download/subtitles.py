"""Stage `subtitle_files`: a video's subtitle file from where the list says it lies, the text track of the video itself, or its speech.

It stands before the barrier of the download, since segments are made of the subtitles and only those that stay are fetched. Files are
small; what lies in the list itself is left as it is. A text track has to be read from the whole video: one on this machine is read
where it lies, one on the web is fetched for it alone, and again for the frames of the segments that stay.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.errors import UserError
from pipeline.stage import KEPT, Column, drop
from stages.download import config as options
from stages.download import speech as recognise
from stages.download.reasons import REASONS
from stages.download.stage import Download, _LoopThread
from stages.lib.subtitles import SubtitleError
from stages.lib.subtitles.embedded import as_file, choose, read_tracks

Found = tuple[bytes | None, str, str | None]  # a subtitle file, fate and detail


class SubtitleFiles(Download):
    """Fetches `subtitle_at` where `subtitle` is empty; where both are, takes the video's own text track, and where it has none, by option,
    recognises what is said. Its options are the download's; limits per host are kept together with it."""

    name = "subtitle_files"
    version = 4
    reads = {
        "subtitle": Column(pa.large_binary(), "a file that the list holds itself, or null", stored=False),
        "subtitle_at": Column(pa.string(), "URL, or path where `local` allows it"),
        "url": Column(pa.string(), "of the video"),
        "stored_at": Column(pa.string(), "of a video that lies in storage already"),
    }
    adds = {"subtitle": Column(pa.large_binary(), "the subtitle file's bytes, or a text track or recognised speech as JSON", stored=False)}
    reasons = {
        **REASONS,
        "missing": "the row has neither a subtitle file nor an address of one, and `tracks` does not look into its video",
        "local": "a path, which `local` does not allow",
        "no_track": "nor has its video a text track with a cue; subtitles that are images have no text",
        "not_a_video": "the video cannot be opened to look for a text track, or its texts are more than max_bytes",
        **recognise.REASONS,
    }

    class Config(options.Config):
        max_bytes: options.Size = Field(20_000_000, ge=1)
        """Largest file in bytes, after decompression. A day of automatic captions has 5 MB."""
        local: bool = False
        """Addresses without http:// or https:// are paths on this machine or fsspec URLs. Only for lists of your own: a stranger's must
        not name files of this machine."""
        tracks: Literal["none", "stored", "fetched"] = "stored"
        """Where the list names no subtitle file, whose text tracks are taken: `stored`, of videos that lie in storage (stored_at);
        `fetched`, also of those on the web, which costs one more download of the whole video. Needs the extra `video`."""
        languages: list[str] = []
        """Of several text tracks the first of these languages (en, de …) is taken, else the file's default, else its first."""
        max_video_bytes: options.Size = Field(2_000_000_000, ge=1)
        """Largest video that is fetched for its text track."""
        speech: recognise.Options | None = None
        """Of videos that `tracks` looks into and that have no text track, speech is recognised (extra `speech`)."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._videos: _Videos | None = None
        self._listener: recognise.Listener | None = None
        if self.config.speech is not None:
            self.files, self.resources = self.config.speech.files(), self.config.speech.resources()

    def check_ready(self) -> None:
        super().check_ready()
        if self.config.speech is not None:
            recognise.require(self.config.speech)

    def __call__(self, table: pa.Table) -> pa.Table:
        """See `pieces`."""
        return next(self.pieces(table, lambda: None))

    def pieces(self, table: pa.Table, goes_on: Callable[[], None]) -> Iterator[pa.Table]:
        """All rows at once; `goes_on` is called as files come, and for each video that was looked into."""
        at = table["subtitle_at"]
        need = pc.is_null(table["subtitle"])
        web = pc.fill_null(pc.match_substring_regex(at, r"^(?i:https?)://"), False)
        inside = pc.and_(pc.and_(need, pc.is_null(at)), self._may_hold(table))
        table = drop(table, pc.and_(pc.and_(need, pc.is_null(at)), pc.invert(inside)), f"{self.name}:missing", "no subtitle file")
        if not self.config.local:
            path = pc.and_(pc.and_(need, pc.is_valid(at)), pc.invert(web))
            table = drop(table, path, f"{self.name}:local", "set stages.subtitle_files.local: true to read it")
        todo = pc.and_(pc.and_(need, pc.is_valid(at)), pc.equal(table["fate"], KEPT))
        if len(wanted := table.filter(todo)):
            table = self._filled(table, self._fetched(wanted, web.filter(todo), goes_on))
        if len(wanted := table.filter(inside)):
            table = self._filled(table, self._looked_into(wanted, goes_on))
        yield table

    def _may_hold(self, table: pa.Table) -> Any:
        if self.config.tracks == "none":
            return pa.array([False] * len(table))
        stored = pc.is_valid(table["stored_at"])
        return stored if self.config.tracks == "stored" else pc.or_(stored, pc.is_valid(table["url"]))

    def _fetched(self, wanted: pa.Table, web: pa.ChunkedArray, goes_on: Callable[[], None]) -> pa.Table:
        none = pa.scalar(None, pa.string())
        asked = pa.table(
            {
                **{name: wanted[name] for name in ("row", "fate", "detail")},
                "url": pc.if_else(web, wanted["subtitle_at"], none),
                "stored_at": pc.if_else(web, none, pa.array([json.dumps({"path": at}) for at in wanted["subtitle_at"].to_pylist()])),
                "expected_hash": pa.nulls(len(wanted), pa.string()),
            }
        )
        if self._thread is None:
            self._thread = _LoopThread()
        return self._thread.run(self._files(asked, goes_on))

    async def _files(self, asked: pa.Table, goes_on: Callable[[], None]) -> pa.Table:
        made = []
        async for piece in self.stream(asked):
            made.append(piece)
            goes_on()
        return pa.concat_tables(made)

    def _looked_into(self, wanted: pa.Table, goes_on: Callable[[], None]) -> pa.Table:
        """Row, fate, detail and body: the text track of each row's video."""
        if self._thread is None:
            self._thread = _LoopThread()
        if self._videos is None:
            _require()
            self._videos = _Videos(self.config)
        self._videos.lease_call = self.lease_call
        asked = wanted.select(["row", "fate", "detail", "url", "stored_at"])
        asked = asked.append_column("expected_hash", pa.nulls(len(wanted), pa.string()))
        if self.config.speech is not None and self._listener is None:
            self._listener = recognise.Listener(self.config.speech)
        try:
            return self._thread.run(self._tracks(self._videos, asked, goes_on))
        except BaseException:  # Ctrl-C, for one: the thread that listens must not go on for hours
            if self._listener is not None:
                self._listener.stop()
                self._listener = None
            raise

    async def _tracks(self, videos: _Videos, asked: pa.Table, goes_on: Callable[[], None]) -> pa.Table:
        loop, made = asyncio.get_running_loop(), []
        async for piece in videos.stream(asked):
            found: list[Found] = []
            try:
                for path, fate, detail in zip(*(piece[name].to_pylist() for name in ("video", "fate", "detail")), strict=True):
                    found.append(await loop.run_in_executor(None, self._track, path, goes_on) if fate == KEPT else (None, fate, detail))
                    goes_on()
            finally:
                videos.release(piece)
            types = {"body": pa.large_binary(), "fate": pa.string(), "detail": pa.string()}
            columns = {name: pa.array(values, kind) for (name, kind), values in zip(types.items(), zip(*found, strict=True), strict=True)}
            made.append(pa.table({"row": piece["row"], **columns}))
        return pa.concat_tables(made)

    def _track(self, path: str, goes_on: Callable[[], None]) -> Found:
        try:
            track = choose(read_tracks(path, self.config.max_bytes), self.config.languages)
        except SubtitleError as err:
            return None, f"{self.name}:not_a_video", err.detail
        if track is None and self._listener is not None:
            return self._listener.heard(path, goes_on)
        return (as_file(track), KEPT, None) if track else (None, f"{self.name}:no_track", "no text track with a cue in the video")

    async def aclose(self) -> None:
        await super().aclose()
        if self._videos is not None:
            await self._videos.aclose()
            self._videos = None

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


class _Videos(Download):
    """Videos, on disk for as long as their text tracks are read."""

    name = "subtitle_files"

    def __init__(self, given: SubtitleFiles.Config) -> None:
        most = given.max_video_bytes
        room = max(given.max_bytes_in_flight, 2 * most)
        own = {name: getattr(given, name) for name in options.Config.model_fields}
        super().__init__(options.Config(**{**own, "to": "disk", "max_bytes": most, "max_bytes_in_flight": room}))


def _require() -> None:
    """Raises UserError where the extra is missing."""
    try:
        import av  # noqa: F401
    except ImportError as err:
        raise UserError(f"stages.subtitle_files.tracks: needs PyAV ({err}); install shardmill[video], or set it to none") from None
