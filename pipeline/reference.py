"""The reference, made from the code: stages, config keys, and the JSON schema for editors. Prose lives in docs/, not here."""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, RootModel
from pydantic.fields import FieldInfo
from pydantic.json_schema import models_json_schema

from pipeline import catalog
from pipeline.config import RunConfig
from pipeline.stage import COMMON_REASONS, Column, Stage
from stages.train.config import Train

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def show(name: str | None = None) -> None:
    """Prints all stages, or one: laid out on a terminal, as Markdown into a pipe or file."""
    from rich.console import Console
    from rich.markdown import Markdown

    text = stage_text(catalog.stage_class(name)) if name else stages_text()
    console = Console()
    if console.is_terminal:
        console.print(Markdown(text))
    else:
        print(text, end="")


def stages_text() -> str:
    """Markdown: every built-in stage with its columns, reasons and options."""
    stages = [catalog.stage_class(name) for name in catalog.BUILT_IN]
    common = _table(("reason", "meaning"), ((f"`STAGE:{reason}`", meaning) for reason, meaning in COMMON_REASONS.items()))
    index = _table(("stage", "shape", "what it does"), ((f"[{s.name}](#{s.name})", s.shape, _first_line(s)) for s in stages))
    head = f"# Stages\n\nIn the order of a run.\n\n{index}\nAny stage that is called with rows can also give these:\n\n{common}"
    return "\n".join([head, *(stage_text(stage) for stage in stages)])


def stage_text(stage: type[Stage]) -> str:
    """Markdown: one stage in full."""
    needs = stage.resources
    gpus = f"{needs.gpus:g} GPU, " if needs.gpus else ""
    resources = f"{needs.cpus:g} CPU, {gpus}{needs.memory >> 20} MB a worker"
    parts = [
        f"## {stage.name}\n",
        f"{inspect.cleandoc(stage.__doc__ or '')}\n",
        f"Version {stage.version}; shape {stage.shape}; {resources}.\n",
        _columns("Reads", stage.reads),
        _columns("Reads where an earlier stage adds them", stage.may_read),
        _columns("Adds", stage.adds),
        _section("Reasons", ("fate", "meaning"), ((f"`{stage.name}:{reason}`", text) for reason, text in stage.reasons.items())),
        _section("Options", ("option", "type", "default", "meaning"), options(stage.Config)),
    ]
    return "\n".join(part for part in parts if part)


def config_text() -> str:
    """Markdown: every key of a run's config; the options of stages are in the stages' own page."""
    rows = options(RunConfig)
    head = "# Config keys\n\nOne YAML file a corpus. `--set key.sub=value` overrides any key. Unknown keys are refused.\n"
    tail = "\nThe entries of `stages`, and `shards`, are the stages' own options: see [stages](stages.md)."
    training = _table(("key", "type", "default", "meaning"), options(Train, "train."))
    return f"{head}\n{_table(('key', 'type', 'default', 'meaning'), rows)}{tail}\n\n## train\n\n{training}"


def options(model: type[BaseModel], prefix: str = "") -> list[tuple[str, str, str, str]]:
    """(dotted key, type, default, meaning) of every field, nested models followed; for a root model, of its entries."""
    if issubclass(model, RootModel):
        inner = _models(model.model_fields["root"].annotation)
        return [row for found in inner for row in options(found, prefix)]
    rows: list[tuple[str, str, str, str]] = []
    for name, info in model.model_fields.items():
        key = f"{prefix}{info.alias or name}"
        meaning = " ".join((info.description or "").split())
        inner = _models(info.annotation)
        if len(inner) == 1 and not (issubclass(inner[0], RootModel)):
            rows.append((f"`{key}`", _kind(info.annotation), _default(info), meaning or _first_line(inner[0])))
            many = get_origin(info.annotation) in (list, dict, tuple)
            rows.extend(options(inner[0], f"{key}{'[]' if many else ''}."))
        else:
            rows.append((f"`{key}`", _kind(info.annotation), _default(info), meaning))
    return rows


def schema() -> dict[str, Any]:
    """JSON schema (2020-12) of a run's config, the options of the built-in stages and of training included."""
    stages = {name: catalog.stage_class(name) for name in catalog.BUILT_IN}
    models: list[Any] = [(RunConfig, "validation"), (Train, "validation"), *((stage.Config, "validation") for stage in stages.values())]
    refs, definitions = models_json_schema(models, ref_template="#/$defs/{model}")
    defs: dict[str, Any] = definitions["$defs"]
    top: dict[str, Any] = defs.pop(refs[RunConfig, "validation"]["$ref"].rpartition("/")[2])
    entry: dict[str, Any] = {name: {"anyOf": [refs[stage.Config, "validation"], {"type": "null"}]} for name, stage in stages.items()}
    top["properties"] |= {"shards": entry.pop("shards"), "train": refs[Train, "validation"]}
    listed = top["properties"]["stages"]
    listed |= {"properties": entry, "patternProperties": {r"^[\w.]+:\w+$": {}}, "additionalProperties": False}
    return {"$schema": DIALECT, **top, "$defs": defs}


def schema_text() -> str:
    """`schema()` as the text of a file."""
    return json.dumps(schema(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _columns(title: str, columns: Mapping[str, Column]) -> str:
    rows = ((f"`{name}`", str(c.type), c.meaning + ("" if c.stored else " (not stored)")) for name, c in columns.items())
    return _section(title, ("column", "type", "meaning"), rows)


def _section(title: str, head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    listed = list(rows)
    return f"**{title}**\n\n{_table(head, listed)}" if listed else ""


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join("| " + " | ".join(re.sub(r"\s+", " ", cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _first_line(thing: type) -> str:
    own = thing.__doc__ if thing.__doc__ and not thing.__doc__.startswith("!!! abstract") else ""
    return inspect.cleandoc(own or "").partition("\n")[0]


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return ""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return f"`{text}`"


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models that an annotation names, outermost first."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return list(dict.fromkeys(found for arg in get_args(annotation) for found in _models(arg)))


def _kind(annotation: Any) -> str:
    """A type as a person writes it: `text`, `number`, `one of a, b`, `list of text` …"""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(f"`{value}`" for value in args)
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(arg) for arg in args)
    if origin is dict:
        return f"map of {_kind(args[1])}"
    if origin in (list, tuple):
        return f"list of {_kind(next((arg for arg in args if arg is not ...), Any))}"
    if hasattr(annotation, "__metadata__"):
        return _kind(args[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    names = {str: "text", int: "integer", float: "number", bool: "true/false", type(None): "null", dict: "map", list: "list"}
    return names.get(annotation, "anything" if annotation is Any else getattr(annotation, "__name__", str(annotation)))
