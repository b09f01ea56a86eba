"""`shardmill plan`: what a run would do, phase by phase, and why; begins nothing."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import views
from pipeline.config import load
from pipeline.known import WHOLE, Known
from pipeline.layout import open_run
from pipeline.phases import fetch, rows
from pipeline.runs import check_config, check_root, find, list_input, served

KEYED = ("rows", "dedup", "pool", "scores", "image_dedup", "selection")  # ingredients that are keys themselves


@dataclass(frozen=True)
class Line:
    """A phase of the plan. `todo` None: it cannot be known before an earlier phase is done."""

    phase: str
    stages: str
    key: str
    resources: str
    todo: int | None
    done: int
    why: str
    note: str = ""
    """What has to be said of the phase below the table: by which model it scores."""


def make(config: str | Path, overrides: list[str] | None = None) -> list[Line]:
    """The plan of a config as it stands against what is committed. Raises UserError for what a run would refuse.

    Writes nothing, but for `sample://…`: the sample is built under ROOT/.sample if it is not there, since it is the input.
    """
    source = find(config)
    with served(load(source, overrides)) as (served_config, _):
        this = open_run(served_config, str(source))
        check_config(this)
        check_root(this.store)
        known = Known(this, list_input(this))
        before = this.store.read_json("run.json") if this.store.exists("run.json") else None
        return [_line(known, phase, before) for phase, _ in this.layout.phases()]


def _line(known: Known, phase: str, before: dict[str, Any] | None) -> Line:
    entries = dict(known.run.layout.phases())[phase]
    todo, done = _counts(known, phase)
    key = known.keys[phase] if phase != "rows" else f"{len(known.files)} file{'s' if len(known.files) != 1 else ''}"
    needs = [entry.stage.resources for entry in entries]
    resources = f"{max(n.cpus for n in needs):g} CPU" + (f" {max(n.gpus for n in needs):g} GPU" if any(n.gpus for n in needs) else "")
    began = done > 0 or (phase in WHOLE and bool(known.run.store.names(known.folder(phase))))
    judges = {"scores": ("scored", known.run.layout.scorer), "pool": ("aligned", known.run.layout.aligner)}
    done_by, judge = judges.get(phase, ("", None))
    note = f"{done_by} by {judge}" if judge else ""
    return Line(phase, ", ".join(e.name for e in entries), key, resources, todo, done, _why(known, phase, before, todo, began), note)


def _counts(known: Known, phase: str) -> tuple[int | None, int]:
    """(parts to do, parts done) of a phase."""
    this, files = known.run, known.files
    if phase == "rows":
        todo = len(rows.todo(this, files))
        return todo, sum(len(this.store.names(f"rows/{key}", ".parquet")) for key, _ in rows.state(this, files))
    if phase in WHOLE:
        return (0, 1) if known.done(phase) else (1, 0)
    done = len(this.store.names(known.folder(phase), ".parquet"))
    if known.finished:
        return 0, done
    ready = all(state for _, state in rows.state(this, files)) and (this.layout.dedup is None or known.done("dedup"))
    if not ready:
        return None, done
    with views.connect(this.store) as con:
        known.view_alive(con)
        return fetch.count(this, con)[phase], done


def _why(known: Known, phase: str, before: dict[str, Any] | None, todo: int | None, began: bool) -> str:
    if todo == 0:
        return "all is committed"
    if todo is None:
        return "counted when the phases before are done"
    old = (before or {}).get("made_of", {}).get(phase)
    if old is None:
        return "never run"
    changes = _by_file(old, known.made_of[phase]) if phase == "rows" else differences(old, known.made_of[phase])
    if not changes:
        return "begun, not finished" if began else "never run"
    return "; ".join(changes[:3]) + ("; …" if len(changes) > 3 else "")


def _by_file(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What changed in `rows`, whose keys are per input file: each change once, however many files it is true of."""
    files = [f"{url} is new" for url in new if url not in old] + [f"{url} is gone" for url in old if url not in new]
    return files + list(dict.fromkeys(change for url in new if url in old for change in differences(old[url], new[url])))


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """What changed between two key ingredients, as `captions.min_chars 5 -> 8`; of an earlier phase's key, that it did."""
    if isinstance(old, dict) and isinstance(new, dict):
        out = []
        for name in [*old, *(n for n in new if n not in old)]:
            here = f"{path}.{name}" if path else str(name)
            if name not in new:
                out.append(f"{_named(here)} is gone")
            elif name not in old:
                out.append(f"{_named(here)} is new")
            else:
                out += differences(old[name], new[name], here)
        return out
    if old == new:
        return []
    if path in KEYED:
        return [f"{path} changed"]
    return [f"{_named(path)} {_short(old)} -> {_short(new)}"]


def _named(path: str) -> str:
    """As a config has it: `captions.min_chars` for `stages.captions.config.min_chars`."""
    return path.removeprefix("stages.").replace(".config.", ".")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "…"


def show(config: str | Path, overrides: list[str]) -> None:
    """Prints the plan."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("phase", "stages", "key", "needs", "to do", "done", "why"):
        table.add_column(name, justify="right" if name in ("to do", "done") else "left", no_wrap=name not in ("stages", "why"))
    lines = make(config, overrides)
    for line in lines:
        todo = "?" if line.todo is None else f"{line.todo:,}"
        style = "dim" if line.todo == 0 else None
        table.add_row(line.phase, line.stages, line.key, line.resources, todo, f"{line.done:,}", line.why, style=style)
    console = Console(markup=False) if sys.stdout.isatty() else Console(markup=False, width=180)
    console.print(table)
    if not any(line.note for line in lines if line.phase == "scores"):
        console.print("not scored: the config has no `scores` stage, so no image is compared with its caption", soft_wrap=True)
    for line in lines:
        if line.note:
            console.print(line.note, soft_wrap=True)
