"""A finished run whose rows hold what attacks a page that shows them, and what a report has to tell apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.corpus import caption, picture, write_config
from tests.support.server import Server

ATTACKS = (
    "<script>window.hacked = 1</script> a dog on the beach",
    "</script><script>window.hacked = 1</script> a cat in a box",
    '"><img src=x onerror="window.hacked = 1"> a red bicycle',
    "'><svg onload=window.hacked=1> a wooden chair",
    "<!--<script>window.hacked = 1 a stone bridge over water",
    "{{ 7 * 7 }} {% raw %} a violin on a table",
    "javascript:window.hacked=1//",
    "</title></style><body onload=window.hacked=1> a lighthouse",
    "&lt;script&gt;window.hacked=1&lt;/script&gt; an old tractor",
    "<a href='javascript:window.hacked=1'>a teapot and two cups</a>",
    "]]><script>window.hacked = 1</script> a lantern in the night",
    "a sailing boat `window.hacked = 1` ${window.hacked = 1}",
    "\u2028<iframe srcdoc='<script>parent.hacked=1</script>'> market stall",
    "<math><mtext><table><mglyph><style><img src onerror=window.hacked=1>",
)
CONCEPTS = ("tractor", "violin", "stone bridge", "\"'><!-- teapot", "</ lantern>", "unicorn")
EVALUATION = "<img src=x onerror=window.hacked=1>"  # a file's name
ROWS = 120
RULES: list[dict[str, Any]] = [{"name": "similarity", "keep": "similarity >= 0.0"}]


def fill(server: Server, folder: Path) -> Path:
    """A list of ROWS rows: plain ones, near-duplicate captions and pictures, losses, and ATTACKS as captions, paths and hosts; beside
    it a list of words, and evaluation images, two of them pictures of the list."""
    urls, captions, claimed, unsafe = [], [], [], []
    for n in range(ROWS):
        path, host, text = f"/pictures/{n}.jpg", f"host{n % 6}.test", caption(n)
        server.files[path] = picture(n)
        if n < len(ATTACKS):
            text = ATTACKS[n]
        elif n < 2 * len(ATTACKS):
            path = f"/missing/{ATTACKS[n - len(ATTACKS)]}"
        elif n < 2 * len(ATTACKS) + 3:
            host = "<script>alert(1)<-script>.test"
        elif n % 10 == 3:
            path = f"/status/404/{n}"
        elif n % 10 == 5:
            text = caption(n - 1) + "."
        elif n % 10 == 7:
            server.files[path] = server.files[f"/pictures/{n - 1}.jpg"]
        urls.append(server.url(path, host))
        captions.append(text)
        claimed.append(0.2 + (n * 37 % 100) / 400)
        unsafe.append(0.9 if n % 9 == 0 else 0.01)
    file = folder / "lists" / "list-0.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    (folder / "words.txt").write_text("\n".join(CONCEPTS), encoding="utf-8")
    (folder / "eval" / "deep").mkdir(parents=True)
    for name, n in ((f"{EVALUATION}.jpg", 31), ("deep/b.jpg", 32), ("c.jpg", 5000)):
        (folder / "eval" / name).write_bytes(picture(n, (200, 160)))
    pq.write_table(pa.table({"URL": urls, "TEXT": captions, "similarity": claimed, "punsafe": unsafe}), file)
    return file.parent


def config(file: Path, server: Server, lists: Path, rules: list[dict[str, Any]], **changes: Any) -> Path:
    """The run's config: scored by `Judged`, near-duplicates of both kinds, and the rules of the selection."""
    stages = {
        "ingest": {},
        "captions": {},
        "concepts": {"words": str(lists.parent / "words.txt")},
        "dedup": {"on": "caption"},
        "download": {**server.options(), "timeout_s": 5, "retries": 0, "per_host": {"concurrency": 16, "per_second": None}},
        "images": {"size": 64},
        "tests.support.judged:Judged": {},
        "decontaminate": {"sets": {"eval": str(lists.parent / "eval")}},
        "image_dedup": {},
        "selection": rules,
    }
    return write_config(file, server, lists, stages=stages, **changes)
