"""A small corpus for tests of whole runs: pictures and captions, a list of their URLs, a config, and what a finished run left."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from tests.support.server import Server

COLOURS = ("red", "green", "blue", "yellow", "black", "white", "brown", "violet", "orange", "grey")
THINGS = ("bicycle", "lighthouse", "teapot", "violin", "tractor", "lantern", "sailing boat", "wooden chair", "stone bridge", "market stall")
TIMES = ("STATS", "duration", "start_time", "end_time")


def picture(number: int, size: tuple[int, int] = (320, 256)) -> bytes:
    """A JPEG unlike all others: coarse noise, so that perceptual hashes differ widely."""
    noise = np.random.default_rng(number).integers(0, 256, (9, 9, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def caption(number: int) -> str:
    """A caption of 10 words that is no near-duplicate of another number's: most of its letters are its own."""
    rng = np.random.default_rng(number + 10_000)
    letters = rng.choice(list("abcdefghijklmnopqrstuvwxyz"), (6, 8))
    names = " ".join("".join(word[: 4 + n % 5]) for n, word in enumerate(letters))
    return f"a {COLOURS[rng.integers(10)]} {THINGS[rng.integers(10)]} {names}"


def serve_pictures(server: Server, folder: Path, rows: int, first: int = 0, hosts: int = 20) -> Path:
    """Puts `rows` pictures on the server and writes their list (LAION's spelling) to `folder`; returns its path."""
    urls = []
    for number in range(first, first + rows):
        path = f"/pictures/{number}.jpg"
        server.files[path] = picture(number)
        urls.append(server.url(path, f"host{number % hosts}.test"))
    return write_list(folder / f"list-{first:06d}.parquet", urls, [caption(number) for number in range(first, first + rows)])


def write_list(path: Path, urls: list[str], captions: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"URL": urls, "TEXT": captions}), path)
    return path


def write_config(file: Path, server: Server, path: Path | list[str], **changes: Any) -> Path:
    """A config for the input at `path`, all names led to the server; `changes` are dotted keys with `__` for the dot."""
    raw: dict[str, Any] = {
        "input": {"path": path if isinstance(path, list) else str(path)},
        "run": {"name": "test", "root": str(file.parent / "runs"), "part_rows": 50, "seed": 3},
        "stages": {
            "ingest": {},
            "captions": {},
            "dedup": {"on": "caption"},
            "download": {**server.options(), "timeout_s": 5, "retries": 0, "per_host": {"concurrency": 16, "per_second": None}},
            "images": {"size": 64},
            "image_dedup": {},
            "selection": [],
        },
        "shards": {"samples": 25},
    }
    for dotted, value in changes.items():
        node = raw
        *parents, last = dotted.split("__")
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
    file.write_text(yaml.safe_dump(raw, sort_keys=False))
    return file


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "pipeline.cli", *args]


def shardmill(*args: str, check: bool = True, **more: Any) -> subprocess.CompletedProcess[str]:
    """Runs the command in a process of its own, so that it starts its own Ray."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])}
    out = subprocess.run(
        command(*args), capture_output=True, text=True, check=False, env=environment, timeout=more.pop("timeout", 280), **more
    )
    if check and out.returncode:
        raise AssertionError(f"shardmill {' '.join(args)} ended with {out.returncode}:\n{out.stdout}\n{out.stderr}")
    return out


def outputs(run: Path) -> dict[str, str]:
    """Name -> SHA-256 of every file of the current shards and of the manifest, the time fields of the statistics left out."""
    manifest = json.loads((run / "shards" / "manifest.json").read_text())
    found = {"manifest": json.dumps({**manifest, "key": ""}, sort_keys=True)}
    for path in sorted((run / "shards" / manifest["key"]).iterdir()):
        data = path.read_bytes()
        if path.name.endswith("_stats.json"):
            data = json.dumps({name: value for name, value in json.loads(data).items() if name not in TIMES}).encode()
        if path.name == "done.json":
            continue
        found[path.name] = hashlib.sha256(data).hexdigest()
    return found


def ledger(run: Path) -> pa.Table:
    """The current ledger, in order of rows."""
    key = json.loads((run / "run.json").read_text())["keys"]["shards"]
    return pq.read_table(sorted((run / "ledger" / key).glob("part-*.parquet"))).sort_by("row")


def fates(run: Path) -> dict[str, int]:
    """Fate -> rows."""
    counted = ledger(run)["fate"].value_counts().to_pylist()
    return {entry["values"]: entry["counts"] for entry in counted}
