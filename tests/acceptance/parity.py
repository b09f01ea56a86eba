"""Whole runs against img2dataset 1.47: `python tests/acceptance/parity.py DATA [COUNT]`.

COUNT photographs (default 120) of DATA's web_photos and flickr8k, and what goes wrong on the web (dead links, pages, tiny, turned,
transparent, CMYK, animated, damaged and forbidden pictures), are fetched from one server on loopback by `shardmill run` (order: input)
and by `img2dataset`, case by case. Compared are file names, Parquet schema, keys, every field of Parquet and JSON, captions, statistics and
pixels. Prints a line a case, then the table of wanted differences with counts. Exit code 1 where anything else differs. Extra img2dataset.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.acceptance.parity_web import WANTED, Page, pages
from tests.support.corpus import shardmill, write_config
from tests.support.server import Server

SIZE, SAMPLES = 224, 50
# Mean absolute difference of the samples of one picture, of 255, and PSNR in dB, of one encoding by two resizers: each halves
# large pictures in a way of its own.
MAX_DIFFERENCE, MIN_PSNR = 4.0, 30.0
ENDS = (".tar", ".parquet", "_stats.json")
BESIDE = {"sizes.json", "shardindex.json", "done.json"}


@dataclass(frozen=True)
class Case:
    """Options of one pair of runs."""

    mode: str = "center_crop"
    only_if_bigger: bool = False
    kind: str = "jpg"
    quality: int = 95
    engine: str = "shardmill"

    @property
    def name(self) -> str:
        marks = [self.mode, "only_if_bigger" * self.only_if_bigger, self.kind, "engine img2dataset" * (self.engine == "img2dataset")]
        return " ".join(filter(None, marks))


CASES = (
    Case(),
    Case("border"),
    Case("keep_ratio"),
    Case("keep_ratio_largest"),
    Case("no"),
    Case("center_crop", True, "png", 6),
    Case("border", True, "webp"),
    Case("keep_ratio", True, "png", 6),
    Case("keep_ratio_largest", True, "webp"),
    Case("no", True, "png", 6),
    Case(engine="img2dataset"),
)


@dataclass
class Comparison:
    """What two folders have in common: `faults` are differences that nobody wanted."""

    faults: list[str] = field(default_factory=list)
    wanted: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    samples: int = 0
    sizes: int = 0
    differences: list[float] = field(default_factory=list)
    psnrs: list[float] = field(default_factory=list)

    def differs(self, page: Page, name: str, theirs: Any, ours: Any) -> None:
        why = next((WANTED[key] for key in ((page.kind, name), ("*", name)) if key in WANTED), None)
        if why:
            self.wanted[why] += 1
        else:
            self.faults.append(f"{page.kind} {page.path}: {name}: img2dataset {theirs!r}, ours {ours!r}"[:300])


def main() -> int:
    data, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 120
    faults, wanted = 0, Counter[str]()
    with tempfile.TemporaryDirectory() as name, Server() as server:
        folder = Path(name)
        listed = pages(data, count)
        urls = [page.serve(server) for page in listed]
        by_url = dict(zip(urls, listed, strict=True))
        table = pa.table({"url": urls, "caption": [page.caption for page in listed]})
        pq.write_table(table, folder / "list.parquet")
        print(f"{len(listed)} rows: {dict(Counter(page.kind for page in listed))}")
        print(
            f"{'case':36} {'rows':>5} {'samples':>8} {'sizes equal':>12} {'mean |diff|':>12} {'largest':>8} {'PSNR mean':>10} {'least':>6}"
        )
        for case in CASES:
            theirs = img2dataset(case, folder)
            ours = of_shardmill(case, folder, server)
            out = compare(theirs, ours, by_url)
            psnr = f"{np.mean(out.psnrs):10.1f} {min(out.psnrs):6.1f}"
            diff = f"{np.mean(out.differences):10.2f} {max(out.differences):8.2f}"
            print(f"{case.name:38} {out.rows:5} {out.samples:8} {out.sizes:12} {diff} {psnr}", flush=True)
            for fault in out.faults[:12]:
                print(f"  FAULT {fault}")
            faults += len(out.faults)
            if case.engine == "img2dataset" and max(out.differences) > 0:
                print("  FAULT pixels differ though both engines are img2dataset's")
                faults += 1
            wanted += out.wanted
    print("\nwanted differences (fields, over all cases)")
    print("\n".join(f"{n:6}  {why}" for why, n in wanted.most_common()))
    print(f"{faults} faults" if faults else "no other difference")
    return int(faults > 0)


def img2dataset(case: Case, folder: Path) -> Path:
    out = folder / f"theirs-{case.name.replace(' ', '-')}"
    if case.engine == "img2dataset":  # the same options as the first case
        return folder / f"theirs-{Case().name.replace(' ', '-')}"
    options: dict[str, Any] = {"url_list": folder / "list.parquet", "input_format": "parquet", "caption_col": "caption"}
    options |= {"output_folder": out, "output_format": "webdataset", "number_sample_per_shard": SAMPLES, "processes_count": 1}
    options |= {"thread_count": 8, "image_size": SIZE, "resize_mode": case.mode, "resize_only_if_bigger": case.only_if_bigger}
    options |= {"encode_format": case.kind, "encode_quality": case.quality, "timeout": 5}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "img2dataset.main", *arguments], capture_output=True, text=True, timeout=100, check=False, env=environment
    )
    if done.returncode:
        raise RuntimeError(f"img2dataset ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return out


def of_shardmill(case: Case, folder: Path, server: Server) -> Path:
    raw = folder / "test.yaml"
    encoding = {"format": case.kind, "quality": case.quality}
    write_config(
        raw,
        server,
        folder / "list.parquet",
        run__name=case.name.replace(" ", "-"),
        stages={
            "ingest": {},
            "download": {**server.options(), "engine": case.engine, "timeout_s": 5, "retries": 0, "per_host": {"per_second": None}},
            "images": {"engine": case.engine, "size": SIZE, "mode": case.mode, "only_if_bigger": case.only_if_bigger, **encoding},
            "selection": [],
        },
        shards={"samples": SAMPLES, "order": "input"},
    )
    shardmill("run", str(raw))
    run = folder / "runs" / case.name.replace(" ", "-")
    return run / "shards" / json.loads((run / "shards" / "manifest.json").read_text())["key"]


def compare(theirs: Path, ours: Path, by_url: dict[str, Page]) -> Comparison:
    out = Comparison()
    names, mine = ({path.name for path in folder.iterdir() if path.is_file()} for folder in (theirs, ours))
    if names != mine - BESIDE or any(not name.endswith(ENDS) for name in names):
        out.faults.append(f"files: {sorted(names)}, ours {sorted(mine)}")
    for name in sorted(names & mine):
        if name.endswith(".parquet"):
            shard(theirs / name, ours / name, by_url, out)
        elif name.endswith("_stats.json"):
            statistics(theirs / name, ours / name, out)
    return out


def shard(theirs: Path, ours: Path, by_url: dict[str, Page], out: Comparison) -> None:
    want, have = pq.read_table(theirs).sort_by("key"), pq.read_table(ours)
    if have.schema.names[: len(want.schema)] != want.schema.names or have.select(want.schema.names).schema.types != want.schema.types:
        out.faults.append(f"{ours.name}: schema {want.schema.names}, ours {have.schema.names}")
    if want["key"] != have["key"] or want["url"] != have["url"]:
        out.faults.append(f"{ours.name}: keys or URLs differ")
        return
    files, mine = (members(path.with_suffix(".tar")) for path in (theirs, ours))
    for a, b in zip(want.to_pylist(), have.select(want.schema.names).to_pylist(), strict=True):
        row(a, b, by_url[a["url"]], out)
        if a["status"] == b["status"] == "success":
            sample(a["key"], files, mine, by_url[a["url"]], out)
    listed = {name.partition(".")[0] for name in files} ^ {name.partition(".")[0] for name in mine}
    for a, b in zip(want.to_pylist(), have.to_pylist(), strict=True):
        if (a["key"] in listed) != ((a["status"] == "success") != (b["status"] == "success")):
            out.faults.append(f"{ours.name}: sample {a['key']} stands in one tar alone, which its status does not say")


def row(theirs: dict[str, Any], ours: dict[str, Any], page: Page, out: Comparison) -> None:
    """One line of the Parquet files."""
    out.rows += 1
    if theirs["status"] != ours["status"]:
        out.differs(page, "status", theirs["status"], f"{ours['status']} ({ours['error_message']})")
        return
    failed = theirs["status"] != "success"
    for name, value in theirs.items():
        if value != ours[name]:
            out.differs(page, f"{name} of a failed row" if failed and value is None else name, value, ours[name])
    sizes = ("width", "height", "original_width", "original_height")
    out.sizes += not failed and all(theirs[name] == ours[name] for name in sizes)


def sample(key: str, theirs: dict[str, bytes], ours: dict[str, bytes], page: Page, out: Comparison) -> None:
    """One sample of the tars: member names, text, JSON field by field, pixels."""
    out.samples += 1
    suffixes = [sorted(name.partition(".")[2] for name in files if name.startswith(f"{key}.")) for files in (theirs, ours)]
    if suffixes[0] != suffixes[1]:
        out.differs(page, "members", *suffixes)
        return
    if theirs[f"{key}.txt"] != ours[f"{key}.txt"]:
        out.differs(page, "txt", theirs[f"{key}.txt"], ours[f"{key}.txt"])
    want, have = json.loads(theirs[f"{key}.json"]), json.loads(ours[f"{key}.json"])
    if list(have)[: len(want)] != list(want):
        out.faults.append(f"{key}.json: fields {list(want)}, ours {list(have)}")
    for name in want:
        if want[name] is None and have[name] == "":
            out.differs(page, "null in JSON", want[name], have[name])
        elif want[name] != have[name]:
            out.differs(page, name, want[name], have[name])
    kind = next(suffix for suffix in suffixes[0] if suffix not in ("json", "txt"))
    pixels(theirs[f"{key}.{kind}"], ours[f"{key}.{kind}"], page, out)


def pixels(theirs: bytes, ours: bytes, page: Page, out: Comparison) -> None:
    with Image.open(io.BytesIO(theirs)) as a, Image.open(io.BytesIO(ours)) as b:
        if a.mode != b.mode or a.format != b.format:
            out.differs(page, "channels", f"{a.format} {a.mode}", f"{b.format} {b.mode}")
        if a.size != b.size:
            return
        one, other = (np.asarray(image.convert("RGB"), float) for image in (a, b))
    difference = float(np.abs(one - other).mean())
    psnr = float(10 * np.log10(255**2 / max(0.065, np.mean((one - other) ** 2))))
    if difference > MAX_DIFFERENCE or psnr < MIN_PSNR:
        out.differs(page, "pixels", "", f"mean absolute difference {difference:.2f}, PSNR {psnr:.1f} dB")
    else:
        out.differences.append(difference)
        out.psnrs.append(psnr)


def statistics(theirs: Path, ours: Path, out: Comparison) -> None:
    """Both count the same rows; ours has one more count."""
    want, have = (json.loads(path.read_text()) for path in (theirs, ours))
    if [name for name in have if name != "filtered"] != list(want) or want["count"] != have["count"] or have["filtered"]:
        out.faults.append(f"{ours.name}: {want}, ours {have}")
    counted = pq.read_table(ours.with_name(ours.name.replace("_stats.json", ".parquet")))["status"].to_pylist()
    for name, status in (("successes", "success"), ("failed_to_download",) * 2, ("failed_to_resize",) * 2):
        if have[name] != counted.count(status):
            out.faults.append(f"{ours.name}: {name} {have[name]}, the Parquet has {counted.count(status)}")


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]


if __name__ == "__main__":
    raise SystemExit(main())
