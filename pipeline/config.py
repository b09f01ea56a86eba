"""The run config: one YAML a corpus, typed, with unknown keys refused.

The entries under `stages` stay raw here: config lies below the stages, so `catalog.resolve` types them.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError

from pipeline.errors import UserError
from pipeline.stage import Strict

M = TypeVar("M", bound=BaseModel)


class Input(Strict):
    path: str | list[str]
    """File, folder, glob or fsspec URL (or a list of them); `sample://laion` is the embedded sample."""
    columns: str | dict[str, str] = "auto"
    """`auto` recognises published spellings; else our name -> the table's name, as {url: LINK, caption: ALT}."""
    format: Literal["auto", "parquet", "csv", "tsv", "jsonl", "json", "img2dataset"] = "auto"
    header: Literal["auto", "cc3m", "cc12m"] | list[str] = "auto"
    """For headerless tables: the published column order, or the columns' names."""
    storage_options: dict[str, Any] = {}
    """Passed to fsspec for the input's file system. Secrets belong into the environment."""


class Run(Strict):
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    root: str = "runs"
    """Folder or fsspec URL under which the run's folder lies."""
    seed: int = Field(0, ge=0)
    part_rows: int = Field(10_000, ge=1, le=1_000_000)
    """Input rows a part: the unit of commit."""
    stall_s: float = Field(600, gt=0)
    """Seconds without any progress of a stage after which the run ends and names it."""
    max_error_share: float = Field(0.2, ge=0, le=1)
    """Share of a part's rows that may end as STAGE:error before the run stops: that is a bug, not dirty data."""
    storage_options: dict[str, Any] = {}
    """Passed to fsspec for the run's file system."""


class Pool(Strict):
    keep: bool = True
    """Keep the fetched images after the shards are written. Without them a changed threshold costs a new crawl."""


class Ray(Strict):
    address: str = "local"
    """`local` starts Ray here; `auto` or HOST:PORT joins a Ray cluster."""
    num_cpus: int | None = Field(None, ge=1)
    object_store_memory: int = Field(512 << 20, ge=100 << 20)
    """Bytes of shared memory for a Ray that is started here."""


class Report(Strict):
    thumbnails: bool = True


class RunConfig(Strict):
    about: dict[str, Any] = {}
    """What a preset tells of its set: licence, gating, date, source, and for every rule exact/approximated/needs a file."""
    input: Input
    run: Run
    stages: dict[str, Any]
    """Ordered: stage name, or `module:Class` for a stage of one's own -> that stage's options."""
    pool: Pool = Pool()
    shards: dict[str, Any] = {}
    ray: Ray = Ray()
    train: dict[str, Any] = {}
    report: Report = Report()


def load(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """Reads a YAML config and applies `key.sub=value` overrides (values are YAML). Raises UserError with file and key."""
    source = Path(path)
    if not source.is_file():
        raise UserError(f"{source}: no such config; see the presets in configs/")
    try:
        raw = yaml.safe_load(source.read_text(encoding="utf-8"))
    except yaml.YAMLError as err:
        raise UserError(f"{source}: not valid YAML: {err}") from err
    if not isinstance(raw, dict):
        raise UserError(f"{source}: expected a mapping with input, run and stages")
    for override in overrides or []:
        _override(raw, override)
    return validate(RunConfig, raw, str(source))


def _override(raw: dict[str, Any], override: str) -> None:
    """Sets `key.sub=value` in the raw config; `a.0.b` reaches into lists."""
    dotted, eq, text = override.partition("=")
    if not eq or not dotted:
        raise UserError(f"--set {override}: expected key.sub=value")
    node: Any = raw
    *parents, last = dotted.split(".")
    for part in parents:
        if isinstance(node, list):
            node = node[_index(node, part, override)]
        elif node.get(part) is None:
            node[part] = {}
            node = node[part]
        else:
            node = node[part]
        if not isinstance(node, dict | list):
            raise UserError(f"--set {override}: {part} is a value, not a section")
    value = yaml.safe_load(text)
    if isinstance(node, list):
        node[_index(node, last, override)] = value
    else:
        node[last] = value


def _index(node: list[Any], part: str, override: str) -> int:
    if not part.isdecimal() or int(part) >= len(node):
        names = [entry.get("name") for entry in node if isinstance(entry, dict)]
        if part in names:
            return names.index(part)
        raise UserError(f"--set {override}: {part} is neither an index below {len(node)} nor a name of {names}")
    return int(part)


def validate(model: type[M], raw: Any, where: str, prefix: str = "") -> M:
    """Validates `raw`; every fault becomes one line: file, path, what is wrong, and the nearest valid name."""
    try:
        return model.model_validate(raw)
    except ValidationError as err:
        lines = [_explain(model, fault, where, prefix) for fault in err.errors()]
        raise UserError("\n".join(lines)) from None


def _explain(model: type[BaseModel], fault: Any, where: str, prefix: str) -> str:
    path = ".".join([prefix, *map(str, fault["loc"])] if prefix else map(str, fault["loc"])) or "(top)"
    if fault["type"] != "extra_forbidden":
        return f"{where}: {path}: {fault['msg']} (got {str(fault.get('input'))[:80]!r})"
    names = _names_at(model, fault["loc"][:-1])
    near = difflib.get_close_matches(str(fault["loc"][-1]), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else f"; valid: {', '.join(names)}"
    return f"{where}: {path}: unknown key{hint}"


def _names_at(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """The valid keys of the model at `loc`, as far as the path can be followed."""
    for part in loc:
        info = model.model_fields.get(str(part))
        inner = _model_in(info.annotation) if info else None
        if inner is None and not isinstance(part, int):
            return sorted(model.model_fields)
        model = inner or model
    return sorted(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for arg in getattr(annotation, "__args__", ()):
        if (found := _model_in(arg)) is not None:
            return found
    return None
