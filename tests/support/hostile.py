"""Stages as a user might write them on a bad day: one kills its process, one eats all memory, one never returns."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import TransientError
from pipeline.stage import Column, Expanded, Resources, Stage, Strict, drop


class Hostile(Stage):
    """Counts a caption's letters; does something terrible on a caption that names it."""

    name = "hostile"
    version = 1
    reads = {"caption": Column(pa.string(), "the caption")}
    adds = {"letters": Column(pa.int32(), "characters of the caption")}
    reasons = {"long": "the caption has more than 200 characters"}
    resources = Resources(memory=256 << 20)

    class Config(Strict):
        nap_s: float = 0.0
        """Seconds of sleep on a caption that says sleep-for-ever."""

    def __call__(self, table: pa.Table) -> pa.Table:
        joined = " ".join(caption or "" for caption in table["caption"].to_pylist())
        if "abort-now" in joined:
            os.abort()
        if "eat-memory" in joined:
            eaten = []
            while True:
                eaten.append(bytearray(32 << 20))
        if "sleep-for-ever" in joined:
            time.sleep(self.config.nap_s)
        if "raise-now" in joined:
            raise ValueError("told to")
        letters = pc.fill_null(pc.utf8_length(table["caption"]), 0)
        return drop(table.append_column("letters", letters), pc.greater(letters, 200), "hostile:long")


class Sentences(Stage):
    """An expand stage: a caption becomes its sentences."""

    name = "sentences"
    version = 1
    shape = "expand"
    reads = {"source_caption": Column(pa.string(), "the caption as the input has it")}
    adds = {"source_caption": Column(pa.string(), "one sentence of the parent's caption")}
    reasons = {"no_text": "the caption has no sentence"}

    def __call__(self, table: pa.Table) -> Expanded:
        pieces = [[s.strip() for s in caption.split(".") if s.strip()] for caption in table["source_caption"].to_pylist()]
        rows = drop(table, pa.array([not p for p in pieces]), "sentences:no_text")
        parents = [row for row, found in zip(table["row"].to_pylist(), pieces, strict=True) for _ in found]
        texts = [text for found in pieces for text in found]
        return Expanded(rows, pa.table({"parent": pa.array(parents, pa.int64()), "source_caption": pa.array(texts, pa.string())}))


class Wide(Hostile):
    """Wants more than other stages."""

    name = "wide"
    resources = Resources(cpus=2, memory=6 << 30, concurrency=3)


class Gpu(Hostile):
    """Wants what few machines have."""

    name = "gpu"
    resources = Resources(gpus=1)


@dataclass
class Echo:
    """Work for the engine that says which of its jobs it did; the job `full` finds the disk full."""

    resources: Resources
    name: str = "echo"
    nap_s: float = 0.0

    def open(self) -> None:
        """Nothing to load."""

    def __call__(self, job: dict[str, Any], careful: bool) -> dict[str, Any]:
        time.sleep(self.nap_s)
        if job["id"] == "full":
            raise TransientError("no space left; what is committed is safe: free space, then repeat the command")
        return {"echo": job["id"]}
