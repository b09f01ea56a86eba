"""One MinHash dedup of others over one table: `PYTHON benchmarks/dedup_peers.py NAME TABLE CLUSTERS`, PYTHON that of the peer's own venv.

TABLE: Parquet with `text` (lower case, single spaces) and `spaced` (the same, a space between characters and "_" for a space). All use
shingles of 5 characters, 128 permutations and a threshold of 0.7, and otherwise their own defaults; text-dedup knows n-grams of words
alone, so each character is a word of `spaced` for it. CLUSTERS: Parquet with `cluster`, a number for each row of the table. Needs nothing
of shardmill, and of the peers the libraries that `make bench-setup-dedup` installs.
"""

from __future__ import annotations

import pickle
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SHINGLE, PERMUTATIONS, THRESHOLD = 5, 128, 0.7


class Joined:
    """Union-find over the rows."""

    def __init__(self, rows: int) -> None:
        self.parent = list(range(rows))

    def root(self, at: int) -> int:
        while self.parent[at] != at:
            self.parent[at] = self.parent[self.parent[at]]
            at = self.parent[at]
        return at

    def join(self, one: int, other: int) -> None:
        self.parent[self.root(one)] = self.root(other)

    def roots(self) -> list[int]:
        return [self.root(at) for at in range(len(self.parent))]


def datasketch(table: Path) -> list[int]:
    """`MinHash.generator`, and for each caption a query of `MinHashLSH`, then an insert."""
    from datasketch import MinHash, MinHashLSH

    texts = pq.read_table(table, columns=["text"])["text"].to_pylist()
    joined, lsh = Joined(len(texts)), MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS)
    sets = ({text[at : at + SHINGLE].encode() for at in range(max(1, len(text) - SHINGLE + 1))} for text in texts)
    for at, made in enumerate(MinHash.generator(sets, num_perm=PERMUTATIONS)):
        for found in lsh.query(made):
            joined.join(at, found)
        lsh.insert(at, made)
    return joined.roots()


def data_juicer(table: Path) -> list[int]:
    """`document_minhash_deduplicator`. It tells which rows are left, not the clusters, so these are read off its tables of bands."""
    from data_juicer.core.data import NestedDataset
    from data_juicer.ops.deduplicator.document_minhash_deduplicator import DocumentMinhashDeduplicator
    from datasets import load_dataset

    with tempfile.TemporaryDirectory() as cache:
        data = load_dataset("parquet", data_files=str(table), split="train", cache_dir=cache, columns=["text"])
        op: Any = DocumentMinhashDeduplicator(
            tokenization="character", window_size=SHINGLE, num_permutations=PERMUTATIONS, jaccard_threshold=THRESHOLD, num_proc=1
        )
        rows = len(data)
        op.process(NestedDataset(data).map(op.compute_hash, num_proc=1))  # as op.run does, which would import torch to free models
    joined = Joined(rows)
    for bands in op.hash_tables:
        for members in bands.values():
            first = min(members)
            for other in members:
                joined.join(other, first)
    return joined.roots()


def text_dedup(table: Path) -> list[int]:
    """`python -m text_dedup.minhash`, whose union-find `--debug` writes."""
    from text_dedup.minhash import main

    rows = pq.read_metadata(table).num_rows
    with tempfile.TemporaryDirectory() as work:
        given: dict[str, object] = {"path": "parquet", "data_files": table, "split": "train", "cache_dir": f"{work}/cache", "output": work}
        given |= {"column": "spaced", "ngram": SHINGLE, "min_length": 1, "num_perm": PERMUTATIONS, "threshold": THRESHOLD, "num_proc": 1}
        main([part for name, value in given.items() for part in (f"--{name}", str(value))] + ["--debug"], standalone_mode=False)
        with Path(work, "uf.pkl").open("rb") as file:
            found = pickle.load(file)  # noqa: S301 (what the line above wrote)
    return [found.find(at) for at in range(rows)]


def told(clusters: list[int], path: Path) -> None:
    pq.write_table(pa.table({"cluster": pa.array(clusters, pa.int64())}), path)


if __name__ == "__main__":
    run = {"datasketch": datasketch, "data-juicer": data_juicer, "text-dedup": text_dedup}[sys.argv[1]]
    told(run(Path(sys.argv[2])), Path(sys.argv[3]))
