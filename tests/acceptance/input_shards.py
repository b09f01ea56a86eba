"""Shards as input: `python tests/acceptance/input_shards.py [ROWS]` (default 200).

What shardmill wrote, and what img2dataset wrote of the same list, is the input of a second run each. The server counts: no picture is
asked for again. The second run has the same samples (URL, caption, nearly the same pixels). Exit code 1 otherwise. Extra img2dataset.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.support.corpus import caption, picture, shardmill, write_config
from tests.support.server import Server

MAX_DIFFERENCE = 3.0  # of 255: a JPEG of quality 95 was decoded and encoded again
DEAD = 10  # one row in so many


def main() -> int:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with tempfile.TemporaryDirectory() as name, Server() as server:
        folder = Path(name)
        urls = [f"http://127.0.0.1:{server.port}/{'status/404' if n % DEAD == 7 else 'pictures'}/{n}.jpg" for n in range(rows)]
        server.files |= {f"/pictures/{n}.jpg": picture(n) for n in range(rows) if n % DEAD != 7}
        pq.write_table(pa.table({"url": urls, "caption": [caption(n) for n in range(rows)]}), folder / "list.parquet")
        first = of_shardmill(folder, server, "first", folder / "list.parquet", {})
        inputs = {"shardmill, in random order": first, "img2dataset": img2dataset(folder)}
        inputs["shardmill, in order of input"] = of_shardmill(folder, server, "ordered", folder / "list.parquet", {"order": "input"})
        bad = 0
        for number, (whose, shards) in enumerate(inputs.items()):
            before = len(server.requests)
            again = of_shardmill(folder, server, f"again{number}", shards, {}, format="img2dataset")
            asked = [request.path for request in server.requests[before:]]
            bad |= report(whose, samples(shards), samples(again), asked)
        return int(bad)


def of_shardmill(folder: Path, server: Server, name: str, path: Path, shards: dict[str, Any], **source: Any) -> Path:
    """The folder with the shards of a run. Rows that were dropped when the input was made have no bytes there, and a dead link."""
    config = folder / f"{name}.yaml"
    changes: dict[str, Any] = {f"input__{key}": value for key, value in source.items()}
    write_config(config, server, path, run__name=name, shards={"samples": 50, **shards}, **changes)
    shardmill("run", str(config))
    run = folder / "runs" / name
    return run / "shards" / json.loads((run / "shards" / "manifest.json").read_text())["key"]


def img2dataset(folder: Path) -> Path:
    out = folder / "img2dataset"
    options = {"url_list": folder / "list.parquet", "input_format": "parquet", "caption_col": "caption", "output_folder": out}
    options |= {"output_format": "webdataset", "number_sample_per_shard": 50, "image_size": 64, "resize_mode": "center_crop"}
    options |= {"processes_count": 1, "thread_count": 8, "timeout": 5}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
    command = [sys.executable, "-m", "img2dataset.main", *arguments]
    subprocess.run(command, check=True, capture_output=True, timeout=200, env=environment)
    return out


def samples(folder: Path) -> dict[str, tuple[str, np.ndarray]]:
    """URL -> caption and pixels of every sample."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            files = {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]
        for name in files:
            if name.endswith(".json"):
                pixels = np.asarray(Image.open(io.BytesIO(files[name.removesuffix("json") + "jpg"])).convert("RGB"), float)
                found[json.loads(files[name])["url"]] = (files[name.removesuffix("json") + "txt"].decode(), pixels)
    return found


def report(whose: str, given: dict[str, tuple[str, np.ndarray]], got: dict[str, tuple[str, np.ndarray]], asked: list[str]) -> bool:
    same = sum(url in got and got[url][0] == text for url, (text, _) in given.items())
    differences = [float(np.abs(given[url][1] - got[url][1]).mean()) for url in given.keys() & got.keys()]
    pictures = [path for path in asked if path.startswith("/pictures/")]
    print(f"{whose:30} {len(given):5} samples given, {len(got):5} got, {same:5} with the same URL and caption,", end=" ")
    print(f"mean difference {np.mean(differences):.2f}, largest {max(differences):.2f}; {len(pictures)} pictures asked for again,", end=" ")
    print(f"{len(asked) - len(pictures)} requests for rows that have no picture in the shards")
    return bool(pictures) or same != len(given) or len(got) != len(given) or max(differences) > MAX_DIFFERENCE


if __name__ == "__main__":
    sys.exit(main())
