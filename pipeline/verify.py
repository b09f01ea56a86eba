"""`shardmill verify`: reads every shard of the current manifest again, as a trainer would, and compares it with all that was said of it."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO

from pipeline import views
from pipeline.errors import UserError
from pipeline.frame import error_text
from pipeline.known import Known
from pipeline.phases.ledger import view_ledger
from pipeline.runs import reopen
from pipeline.storage import Store

SHOWN = 50  # faults that are printed; all are counted


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be, and where."""

    where: str
    what: str


def run(folder: str) -> tuple[dict[str, Any], list[Finding]]:
    """The manifest, and everything that does not agree with it: bytes, hashes, samples, keys, images, Parquet, ledger."""
    known = reopen(folder)
    store = known.run.store
    if not store.exists("shards/manifest.json"):
        raise UserError(f"{folder}: no shards/manifest.json; the run is not finished: repeat `shardmill run`")
    manifest = store.read_json("shards/manifest.json")
    home = f"shards/{manifest['key']}"
    found: list[Finding] = []
    # Spawned: a fork of a process with Ray's or Arrow's threads may hang.
    with ProcessPoolExecutor(max(1, os.cpu_count() or 1), mp_context=multiprocessing.get_context("spawn")) as pool:
        calls = [pool.submit(check_shard, store, home, shard) for shard in manifest["shards"]]
        for call in calls:
            found += call.result()
    found += check_ledger(known, manifest)
    return manifest, found


def check_shard(store: Store, home: str, shard: dict[str, Any]) -> list[Finding]:
    """One tar against its line in the manifest and its own Parquet."""
    path = f"{home}/{shard['name']}"
    if not store.exists(path):
        return [Finding(path, "is missing")]
    found = []
    table = store.read_table(f"{home}/{shard['name'].removesuffix('.tar')}.parquet", ["key", "status", "width", "height", "caption"])
    listed = {row["key"]: row for row in table.to_pylist() if row["status"] == "success"}
    seen: set[str] = set()
    with store.open(path) as handle:
        hashed = _Hashed(handle)
        try:
            for sample in _samples(hashed):
                found += [Finding(f"{path} {sample['__key__']}", text) for text in _check_sample(sample, listed, seen)]
                seen.add(sample["__key__"])
        except (tarfile.TarError, ValueError, OSError) as err:
            found.append(Finding(path, f"cannot be read to its end: {error_text(err)}"))
        while hashed.read(1 << 20):
            pass
    if hashed.bytes != shard["bytes"]:
        found.append(Finding(path, f"has {hashed.bytes} bytes, the manifest says {shard['bytes']}"))
    if hashed.sha256.hexdigest() != shard["sha256"]:
        found.append(Finding(path, "its sha256 is not the manifest's"))
    if len(seen) != shard["samples"]:
        found.append(Finding(path, f"has {len(seen)} samples, the manifest says {shard['samples']}"))
    found += [Finding(path, f"lacks sample {key}, which its Parquet lists") for key in sorted(set(listed) - seen)]
    stem = shard["name"].removesuffix(".tar")
    found += [Finding(path, f"sample {key} does not begin with its shard's number {stem}") for key in seen if not key.startswith(stem)]
    return found


class _Hashed:
    """A reader that hashes and counts what goes through it, so that a shard is read once and never held whole."""

    def __init__(self, handle: BinaryIO) -> None:
        self.handle, self.sha256, self.bytes = handle, hashlib.sha256(), 0

    def read(self, size: int = -1) -> bytes:
        data = self.handle.read(size)
        self.sha256.update(data)
        self.bytes += len(data)
        return data


def _samples(stream: _Hashed) -> Iterator[dict[str, Any]]:
    """The samples of a tar, read and grouped by webdataset itself."""
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    yield from group_by_keys({**file, "__url__": ""} for file in tar_file_iterator(stream))


def _check_sample(sample: dict[str, Any], listed: dict[str, Any], seen: set[str]) -> Iterator[str]:
    from PIL import Image

    key = sample["__key__"]
    if key in seen:
        yield "stands twice"
    row = listed.get(key)
    if row is None:
        yield "is not in the Parquet, or not as a success"
        return
    image = next((sample[suffix] for suffix in ("jpg", "webp", "png") if suffix in sample), None)
    if image is None:
        yield "has no image"
        return
    try:
        with Image.open(io.BytesIO(image)) as opened:
            opened.load()
            if opened.size != (row["width"], row["height"]):
                yield f"image is {opened.size}, the Parquet says {(row['width'], row['height'])}"
    except (OSError, ValueError, SyntaxError) as err:
        yield f"its image cannot be decoded: {error_text(err)}"
    if sample["txt"].decode() != row["caption"]:
        yield "its txt is not the Parquet's caption"


def check_ledger(known: Known, manifest: dict[str, Any]) -> list[Finding]:
    """Ledger against manifest, input and shards' Parquet: each row once, kept = samples, the same keys on both sides."""
    store, found = known.run.store, []
    rows_in = sum(part.rows for part in known.parts)
    with views.connect(store) as con:
        view_ledger(known, con)
        rows, distinct, kept, keys = con.execute(
            "SELECT count(*), count(DISTINCT row), count(*) FILTER (fate = 'kept'), count(DISTINCT key) FROM ledger"
        ).fetchall()[0]
        facts = {"rows in the ledger": (rows, rows_in), "different rows in the ledger": (distinct, rows_in)}
        facts |= {"kept rows in the ledger": (kept, manifest["samples"]), "different keys in the ledger": (keys, manifest["samples"])}
        found += [Finding("ledger", f"{got} {what}, expected {expected}") for what, (got, expected) in facts.items() if got != expected]
        paths = [f"shards/{manifest['key']}/{shard['name'].removesuffix('.tar')}.parquet" for shard in manifest["shards"]]
        if paths:
            listed = ", ".join(views.quote(store.address(path)) for path in paths)
            sql = (
                f"SELECT l.key, p.key FROM (SELECT key FROM ledger WHERE key IS NOT NULL) l "
                f"FULL JOIN (SELECT key FROM read_parquet([{listed}], union_by_name=true) WHERE status = 'success') p ON p.key = l.key "
                "WHERE l.key IS NULL OR p.key IS NULL LIMIT 10"
            )
            found += [
                Finding("ledger", f"key {a or b} stands only in the {'ledger' if a else 'Parquet'}") for a, b in con.execute(sql).fetchall()
            ]
    return found


def show(folder: str) -> bool:
    """Prints what was checked and what was found; True when all agrees."""
    manifest, found = run(folder)
    for finding in found[:SHOWN]:
        print(f"{finding.where}: {finding.what}")
    if len(found) > SHOWN:
        print(f"… and {len(found) - SHOWN:,} more")
    shards, samples = len(manifest["shards"]), manifest["samples"]
    size = sum(shard["bytes"] for shard in manifest["shards"])
    verdict = f"{len(found)} faults" if found else "all agrees: sha256, samples, keys, images, Parquet, ledger"
    print(f"{shards:,} shards, {samples:,} samples, {size / 1e6:,.1f} MB read: {verdict}")
    return not found
