"""The run config: one YAML a corpus, typed, with unknown keys refused.

The entries under `stages` stay raw here: config lies below the stages, so `catalog.resolve` types them.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError

from pipeline.errors import UserError
from pipeline.stage import Strict

M = TypeVar("M", bound=BaseModel)
SECRETS, STORAGE_OPTION = "storage_options", "--storage-option"  # a section, and an option, whose values are never repeated in an error


class Input(Strict):
    """The list of links, or of shards that lie there already."""

    path: str | list[str]
    """File, folder, glob or fsspec URL (or a list of them); `sample://laion` is the embedded sample."""
    columns: str | dict[str, str] = "auto"
    """`auto` recognises published spellings; else our name -> the table's name, as {url: LINK, caption: ALT}, or a text with names of
    columns in braces, as {stored_at: "videos/{video_id}.mp4"}."""
    format: Literal["auto", "parquet", "csv", "tsv", "jsonl", "json", "howto100m", "img2dataset"] = "auto"
    """What the files are; `auto` goes by their names (and a folder of shards is img2dataset's). `howto100m`: its raw_caption.json or
    caption.json."""
    header: Literal["auto", "cc3m", "cc12m"] | list[str] = "auto"
    """For headerless tables: the published column order, or the columns' names."""
    storage_options: dict[str, Any] = {}
    """Passed to fsspec for the input's file system. Secrets belong into the environment."""


class Run(Strict):
    """Where the run lies and how it is cut."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")
    """The name of the run's folder under `root`."""
    root: str = "runs"
    """Folder or fsspec URL under which the run's folder lies."""
    seed: int = Field(0, ge=0)
    """Decides about every shuffle and random choice."""
    part_rows: int = Field(10_000, ge=1, le=1_000_000)
    """Input rows a part: the unit of commit."""
    stall_s: float = Field(600, gt=0)
    """Seconds without any progress of a stage after which the run ends and names it."""
    max_error_share: float = Field(0.2, ge=0, le=1)
    """Share of a part's rows that may end as STAGE:error before the run stops: that is a bug, not dirty data."""
    storage_options: dict[str, Any] = {}
    """Passed to fsspec for the run's file system."""


class Pool(Strict):
    """What was fetched: every image, with what is known of it."""

    keep: bool = True
    """Keep the fetched images after the shards are written. Without them a changed threshold costs a new crawl."""


class Ray(Strict):
    """Where the work is done."""

    address: str = "local"
    """`local` starts Ray here; `auto` or HOST:PORT joins a Ray cluster."""
    num_cpus: int | None = Field(None, ge=1)
    """CPUs of a Ray that is started here; null takes all of the machine's."""
    object_store_memory: int = Field(512 << 20, ge=100 << 20)
    """Bytes of shared memory for a Ray that is started here."""


class Report(Strict):
    """What the report holds besides its figures."""

    thumbnails: bool = True
    """Small pictures in the report's page, and 24 samples with their captions as report/samples.jpg."""
    unsafe: float = Field(0.5, ge=0, le=1)
    """The value of `unsafe_by` from which a picture is blurred: in the pages until it is clicked, in samples.jpg for good."""
    unsafe_by: list[str] = ["claimed_punsafe"]
    """Columns that say how unsafe a picture is, as `claimed_punsafe` or a head's; those that a run has not count for nothing. Pictures
    that the input tags NSFW are blurred too."""


class RunConfig(Strict):
    about: dict[str, Any] = {}
    """What a preset tells of its set: licence, gating, date, source, and for every rule exact/approximated/needs a file."""
    input: Input
    run: Run
    stages: dict[str, Any]
    """In the order of the run: stage name, or `module:Class` for a stage of one's own -> that stage's options."""
    pool: Pool = Pool()
    shards: dict[str, Any] = {}
    """The options of the shards: size, order, layout."""
    ray: Ray = Ray()
    train: dict[str, Any] = {}
    """The options of training on the shards."""
    report: Report = Report()


def load(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """Reads a YAML config and applies `key.sub=value` overrides (values are YAML). Raises UserError with file and key."""
    raw = read_raw(path, overrides)
    if "train" in raw and not {"input", "run", "stages"} & set(raw):
        raise UserError(f"{path}: trains on shards that are there and makes none; use it as: shardmill train {path}")
    return validate(RunConfig, raw, str(Path(path)))


def read_raw(path: str | Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """A YAML config as it stands, `key.sub=value` overrides applied, not yet validated. Raises UserError with file and key."""
    source = Path(path)
    if not source.is_file():
        raise UserError(f"{source}: no such config; see the presets in configs/")
    try:
        text = source.read_text(encoding="utf-8")
    except UnicodeDecodeError as err:
        raise UserError(f"{source}: not a config but a binary file; a config is YAML in UTF-8") from err
    raw = _parse(text, str(source))
    if not isinstance(raw, dict):
        raise UserError(f"{source}: expected a mapping with input, run and stages")
    for override in overrides or []:
        _override(raw, override)
    return raw


def options_of(pairs: list[str], option: str) -> dict[str, Any]:
    """What an option of the command line makes of its `key.sub=value` pairs (values are YAML). Raises UserError that names it."""
    out: dict[str, Any] = {}
    for pair in pairs:
        _override(out, pair, option)
    return out


class _Loader(yaml.SafeLoader):
    """As `safe_load`, but a key that stands twice is refused instead of the first being lost, and, as in YAML 1.2, `on`, `off`, `yes`
    and `no` are words: `dedup: {on: caption}` and `languages: [no]` mean what they say."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if twice := [key for key, count in Counter(map(str, keys)).items() if count > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_BOOLEAN = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != _BOOLEAN] for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOLEAN, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as err:
        place = f"line {err.problem_mark.line + 1}, column {err.problem_mark.column + 1}: " if err.problem_mark else ""
        raise UserError(f"{where}: not valid YAML: {place}{err.problem}") from err
    except yaml.YAMLError as err:
        raise UserError(f"{where}: not valid YAML: {' '.join(str(err).split())}") from err


def _override(raw: dict[str, Any], override: str, option: str = "--set") -> None:
    """Sets `key.sub=value` in the raw config; `a.0.b` reaches into lists."""
    dotted, eq, text = override.partition("=")
    if not eq or not dotted:
        raise UserError(f"{option} {override}: expected key.sub=value")
    said = f"{option} {dotted}=…" if SECRETS in dotted or option == STORAGE_OPTION else f"{option} {override}"
    value = _parse(text, said)
    node: Any = raw
    rest = dotted
    while True:
        part, rest = _first_part(node, rest)
        at = _index(node, part, said) if isinstance(node, list) else part
        if not rest:
            node[at] = value
            return
        if isinstance(node, dict) and node.get(part) is None:
            node[part] = {}
        node = node[at]
        if not isinstance(node, dict | list):
            raise UserError(f"{said}: {part} is a value, not a section")


def _first_part(node: Any, dotted: str) -> tuple[str, str]:
    """The first key of `a.b.c` and the rest; a key of the section that holds dots itself (`my.module:Class`) is found whole."""
    whole = [key for key in node if isinstance(node, dict) and "." in str(key) and f"{dotted}.".startswith(f"{key}.")]
    part = str(max(whole, key=len)) if whole else dotted.partition(".")[0]
    return part, dotted[len(part) + 1 :]


def _index(node: list[Any], part: str, said: str) -> int:
    if not part.isdecimal() or int(part) >= len(node):
        names = [entry.get("name") for entry in node if isinstance(entry, dict)]
        if part in names:
            return names.index(part)
        raise UserError(f"{said}: {part} is neither an index below {len(node)} nor a name of {names}")
    return int(part)


def validate(model: type[M], raw: Any, where: str, prefix: str = "", past: bool = False) -> M:
    """Validates `raw`; every fault becomes one line: file, path, what is wrong, and the nearest valid name.

    `past`: the config of what is made already, whose input files may be gone (`pipeline.stage.of_the_past`).
    """
    try:
        return model.model_validate(raw, context={"past": past})
    except ValidationError as err:
        lines = [_explain(model, fault, where, prefix) for fault in err.errors()]
        raise UserError("\n".join(lines)) from None


def _explain(model: type[BaseModel], fault: Any, where: str, prefix: str) -> str:
    path = ".".join([prefix, *map(str, fault["loc"])] if prefix else map(str, fault["loc"])) or "(top)"
    if fault["type"] != "extra_forbidden":
        return f"{where}: {path}: {fault['msg'].removeprefix('Value error, ')}{_got(fault)}"
    names = _names_at(model, fault["loc"][:-1])
    near = difflib.get_close_matches(str(fault["loc"][-1]), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else f"; valid: {', '.join(names)}"
    return f"{where}: {path}: unknown key{hint}"


def _got(fault: Any) -> str:
    """The value at fault, where it is short and opens no storage: whole sections may hold keys and passwords."""
    value = fault.get("input")
    shown = isinstance(value, str | int | float) and SECRETS not in fault["loc"]
    return f" (got {str(value)[:80]!r})" if shown else ""


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
