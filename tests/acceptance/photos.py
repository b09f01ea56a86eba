"""Real photographs through the whole pipeline: `python tests/acceptance/photos.py DATA SHEET.png [FLICKR_ROWS]`.

DATA's web_photos with their alt texts and FLICKR_ROWS (default 3000) of its Flickr8k captions are served by a file server process on
loopback, under 50 host names, and run by the command with every stage but scores. Prints counts per fate, images a second and CPU seconds
of the run's processes, then `verify`; writes a contact sheet of twenty output images. Exit code 1 where rows are lost, verify finds a
fault, or a sound photograph fails.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from textwrap import wrap
from typing import Any
from urllib.parse import quote

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.support.corpus import command, fates, shardmill

HOSTS = 50
# What may become of a sound photograph with a human's caption. Everything else is a fault.
SOUND = ("captions:", "dedup:", "selection:", "images:too_small", "images:aspect", "images:unsupported_format")
FILE_SERVER = """
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
class Quiet(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
class Many(ThreadingHTTPServer):
    request_queue_size = 1024
server = Many(("127.0.0.1", 0), partial(Quiet, directory=sys.argv[1]))
print(server.server_port, flush=True)
server.serve_forever()
"""


@contextlib.contextmanager
def file_server(folder: Path) -> Iterator[int]:
    """Python's threading file server over a folder, as a process of its own; yields its port."""
    process = subprocess.Popen([sys.executable, "-c", FILE_SERVER, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


def pairs(data: Path, flickr_rows: int) -> tuple[list[str], list[str]]:
    """URLs and captions: web photographs with alt texts, then Flickr8k's with their first captions, then with their others."""
    with (data / "web_photos" / "pairs.csv").open(encoding="utf-8") as file:
        found = [(f"/web_photos/{line['file']}", line["alt"]) for line in csv.DictReader(file)]
    with (data / "flickr8k" / "images.csv").open(encoding="utf-8") as file:
        where = {line["image"]: f"/flickr8k/{line['split']}/{line['image']}" for line in csv.DictReader(file)}
    with (data / "flickr8k" / "captions.csv").open(encoding="utf-8") as file:
        lines = [(where[line["image"]], line["caption"]) for line in csv.DictReader(file) if line["image"] in where]
    firsts = dict(reversed(lines))
    found += [*firsts.items(), *(line for line in lines if line[1] != firsts[line[0]])][:flickr_rows]
    urls = [f"http://photos{zlib.crc32(path.encode()) % HOSTS}.test{quote(path)}" for path, _ in found]
    return urls, [caption for _, caption in found]


def config(folder: Path, port: int) -> Path:
    raw: dict[str, Any] = {
        "input": {"path": str(folder / "list.parquet")},
        "run": {"name": "photos", "root": str(folder / "runs"), "part_rows": 500},
        "stages": {
            "ingest": {},
            "captions": {"min_chars": 5, "boilerplate": True, "languages": ["en"]},
            "dedup": {"on": "both", "threshold": 0.7},
            "download": {
                "resolve": {"*": f"127.0.0.1:{port}"},
                "allow_networks": ["127.0.0.1/32"],
                "per_host": {"concurrency": 8, "per_second": None},
            },
            "images": {"size": 224, "min_side": 64, "max_aspect": 3},
            "image_dedup": {},
            "selection": [{"name": "blank", "keep": "not flat"}],
        },
        "shards": {"samples": 500},
    }
    (folder / "photos.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    return folder / "photos.yaml"


def watched(arguments: list[str], environment: dict[str, str]) -> tuple[int, float, float, int]:
    """Runs a command; exit code, seconds, CPU seconds of its processes and their largest common memory in bytes."""
    began, cpu, most = time.monotonic(), dict[int, float](), 0
    process = subprocess.Popen(arguments, env=environment)
    tree = psutil.Process(process.pid)
    while process.poll() is None:
        memory = 0
        with contextlib.suppress(psutil.NoSuchProcess):
            for one in [tree, *tree.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    times, facts = one.cpu_times(), one.memory_full_info()
                    cpu[one.pid], memory = times.user + times.system, memory + facts.pss
        most = max(most, memory)
        time.sleep(1)
    return process.returncode, time.monotonic() - began, sum(cpu.values()), most


def sheet(run: Path, path: Path) -> None:
    """Twenty samples, evenly spread over the shards, each with its caption."""
    manifest = json.loads((run / "shards" / "manifest.json").read_text())
    found: list[tuple[bytes, str]] = []
    for shard in manifest["shards"]:
        with tarfile.open(run / "shards" / manifest["key"] / shard["name"]) as tar:
            files = {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]
        found += [(files[name], files[name[:-3] + "txt"].decode()) for name in sorted(files) if name.endswith("jpg")]
    out = Image.new("RGB", (5 * 232, 4 * 270), "white")
    draw, font = ImageDraw.Draw(out), ImageFont.load_default(11)
    for place, (image, caption) in enumerate(found[:: max(1, len(found) // 20)][:20]):
        left, top = place % 5 * 232 + 4, place // 5 * 270 + 4
        out.paste(Image.open(io.BytesIO(image)), (left, top))
        draw.multiline_text((left, top + 226), "\n".join(wrap(caption, 36)[:3]), "black", font)
    out.save(path)


def main() -> int:
    data, picture = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    rows = int(sys.argv[3]) if len(sys.argv) > 3 else 3000
    with tempfile.TemporaryDirectory() as name, file_server(data) as port:
        folder = Path(name)
        urls, captions = pairs(data, rows)
        pq.write_table(pa.table({"url": urls, "caption": captions}), folder / "list.parquet")
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        code, seconds, cpu, memory = watched(command("run", str(config(folder, port))), environment)
        if code:
            return code
        run = folder / "runs" / "photos"
        ended = fates(run)
        for fate, count in sorted(ended.items(), key=lambda item: -item[1]):
            print(f"{count:6}  {fate}")
        fetched = len(set(urls))
        print(f"{len(urls)} rows, {fetched} URLs, in {seconds:.1f} s: {fetched / seconds:.0f} URLs/s with start and end;", end=" ")
        print(f"{cpu:.0f} CPU-s, {1000 * cpu / fetched:.1f} CPU-ms a URL; most memory of all processes {memory / 1e9:.2f} GB")
        stages = json.loads((run / "report" / "report.json").read_text())
        print(json.dumps(stages.get("stages", {}), indent=None))
        checked = shardmill("verify", str(run), check=False)
        print(checked.stdout.strip())
        sheet(run, picture)
        faults = {fate: n for fate, n in ended.items() if fate != "kept" and not fate.startswith(SOUND)}
        print(f"FAULT: sound photographs that failed: {faults}" if faults else "no sound photograph failed")
        return int(checked.returncode != 0 or bool(faults) or sum(ended.values()) != len(urls))


if __name__ == "__main__":
    sys.exit(main())
