"""benchmarks/results.json: what was measured, a line a figure; a figure of the same name is replaced."""

from __future__ import annotations

import argparse
import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.json")
AMOUNTS = ("rows", "rounds", "samples", "pairs")  # options that say how much is measured
_form: list[str] = []


def begin(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """Figures of a run of less than its script does by itself (`make bench`) get a name of their own and leave the whole one's alone."""
    usual = {name: parser.get_default(name) for name in AMOUNTS}
    less = any(isinstance(value, int) and getattr(given, name) < value for name, value in usual.items())
    _form[:] = [", short form"] if less else []


def machine() -> str:
    """The machine in words, with how busy it was: `2 cores, x86_64, Python 3.11.7, load 3`."""
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, load {os.getloadavg()[0]:.0f}"


def add(name: str, ours: float, peer: float | None, target: float, met: bool, ratio: float | None = None) -> None:
    """Adds a figure. `ratio`: how many times better than the peer; null where ours alone is measured against the target."""
    line = {"name": name + "".join(_form), "ours": round(ours, 3), "peer": peer if peer is None else round(peer, 3)}
    line |= {"ratio": ratio if ratio is None else round(ratio, 3), "target": target, "met": bool(met)}
    line |= {"machine": machine(), "date": datetime.now(UTC).date().isoformat()}
    listed: list[dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    kept = [one for one in listed if one["name"] != line["name"]]
    RESULTS.write_text(json.dumps([*kept, line], indent=1) + "\n")
