"""Names to stages: imports a stage when it is asked for, and types the raw `stages` entries of a config."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import RunConfig, validate
from pipeline.errors import UserError
from pipeline.stage import COMMON_REASONS, Column, Stage

# What makes a stage add these columns.
WANTED = {
    "video": "set stages.download.to: disk",
    "subtitle": "set stages.ingest.subtitles: true",
    "cut_times": "put the stage cuts before it",
}
BUILT_IN: Mapping[str, str] = {
    "ingest": "stages.ingest.stage:Ingest",
    "subtitle_files": "stages.download.subtitles:SubtitleFiles",
    "subtitles": "stages.subtitles:Subtitles",
    "segments": "stages.segments:Segments",
    "captions": "stages.captions:Captions",
    "pii": "stages.pii:Pii",
    "concepts": "stages.concepts:Concepts",
    "dedup": "stages.dedup.captions:Dedup",
    "download": "stages.download.stage:Download",
    "faces": "stages.faces:Faces",
    "images": "stages.images:Images",
    "alignment": "stages.frames.alignment:Alignment",
    "cuts": "stages.frames.cuts:Cuts",
    "frames": "stages.frames:Frames",
    "scores": "stages.scores:Scores",
    "heads": "stages.heads:Heads",
    "decontaminate": "stages.decontaminate:Decontaminate",
    "image_dedup": "stages.dedup.images:ImageDedup",
    "selection": "stages.selection:Selection",
    "shards": "stages.shards:Shards",
}


@dataclass(frozen=True)
class Entry:
    """A stage of a config: its name there (a built-in's, or `module:Class`), and the stage with its typed config."""

    name: str
    stage: Stage
    source: str | None = None  # hash of a user's module, part of the key

    @property
    def built_in(self) -> bool:
        return self.name in BUILT_IN


def stage_class(name: str) -> type[Stage]:
    """The class of a built-in name or of `module:Class`; raises UserError for an unknown one."""
    target = BUILT_IN.get(name, name)
    module, colon, attribute = target.partition(":")
    if not colon:
        near = difflib.get_close_matches(name, BUILT_IN, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"built in are {', '.join(BUILT_IN)}; one of your own is module:Class"
        raise UserError(f"stages.{name}: unknown stage; {hint}")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, SyntaxError) as err:
        raise UserError(f"stages.{name}: cannot import {target}: {err}; is the file on PYTHONPATH or in the current folder?") from err
    if not (isinstance(found, type) and issubclass(found, Stage)):
        raise UserError(f"stages.{name}: {target} is no subclass of pipeline.stage.Stage")
    if name not in BUILT_IN and found.name in BUILT_IN:
        raise UserError(f"stages.{name}: its name {found.name!r} is a built-in stage's; give it another")
    return found


def resolve(config: RunConfig, where: str = "config", past: bool = False) -> list[Entry]:
    """All stages of a config in order, each with its typed Config; `shards` (top level) comes last.

    `past`: of a run that is only read. Raises UserError for a bad key of theirs, or of the section `train`, which is for later.
    """
    if "shards" in config.stages:
        raise UserError(f"{where}: stages.shards: shards stands at the top level, beside stages")
    if config.train:
        from stages.train.config import Train

        validate(Train, config.train, where, "train")
    entries = [entry(name, options, where, past) for name, options in {**config.stages, "shards": config.shards}.items()]
    named: dict[str, str] = {}
    for e in entries:
        if (other := named.setdefault(e.stage.name, e.name)) != e.name:
            raise UserError(f"{where}: stages.{e.name}: its name {e.stage.name!r} is {other}'s too; give it another")
    return entries


def entry(name: str, options: Any = None, where: str = "config", past: bool = False) -> Entry:
    """One stage, its options validated; `past`: files that they name may be gone. Raises UserError with the full path of a bad key."""
    cls = stage_class(name)
    prefix = name if name == "shards" else f"stages.{name}"
    typed = validate(cls.Config, {} if options is None else options, where, prefix, past)
    source = None
    if name not in BUILT_IN:
        source = hashlib.sha256(Path(inspect.getfile(cls)).read_bytes()).hexdigest()
    return Entry(name, cls(typed), source)


def fates(stage: Stage | type[Stage]) -> dict[str, str]:
    """Every fate that a stage can give, in full (`images:too_small`), with its meaning."""
    reasons = {**stage.reasons, **(COMMON_REASONS if stage.shape in ("rows", "expand") else {})}
    return {f"{stage.name}:{reason}": meaning for reason, meaning in reasons.items()}


def columns(entries: list[Entry]) -> dict[str, Column]:
    """The columns known after these stages, by name, as selection's rules may use them."""
    known: dict[str, Column] = {}
    for e in entries:
        known.update(e.stage.adds)
    return known


def check_order(entries: list[Entry]) -> None:
    """Refuses a stage that reads a column which no earlier stage adds."""
    known: set[str] = {"row", "fate", "detail"}
    for e in entries:
        missing = [name for name in e.stage.reads if name not in known]
        if missing:
            hints = [f"; {WANTED[name]}" for name in WANTED if name in missing]
            raise UserError(f"stages.{e.name}: reads {', '.join(missing)}, which no stage before it adds{''.join(hints)}")
        known.update(e.stage.adds)
