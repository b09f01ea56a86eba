"""image_dedup: which rows have near-duplicate images, by the perceptual hash and the bytes' sha256. It marks; selection decides.

Two images are near-duplicates if their hashes differ in at most max_distance of 64 bits, or if their bytes are the same. A flat
image has no hash worth comparing, so its bytes alone count. Hashes travel with the keys: pairs are proven where they meet.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from pipeline.stage import Column, Resources, Stage, Strict
from stages.dedup import buckets
from stages.dedup.contract import NEAR, SAME, Pairs, entry_table, order_of
from stages.lib.comparable import text_hashes
from stages.lib.components import Labels, components, edge_table
from stages.lib.hamming import distances, hamming_keys, parse_hashes, piece_masks
from stages.lib.mix import mix

SHA_SEED, PHASH_SALT = 3, 4


class Options(Strict):
    """Near-duplicate images."""

    max_distance: int = Field(4, ge=0, le=16)
    """Bits of the perceptual hash that may differ. 0: equal hashes; 4: careful; 8 to 10 join different images too."""
    pieces: int | None = Field(None, ge=1, le=24)
    """Pieces of the hash, more than max_distance. More make more but rarer keys: C(pieces, max_distance). Null: max_distance + 2,
    15 keys of 21 bits at 4; from 10 million images on take 7, 35 keys of 27 bits."""
    max_bucket: int = Field(1000, ge=2)
    """Of more different hashes under one key, each is compared with the smallest row's alone. Counted as `hot_keys`."""
    max_component: int = Field(1000, ge=2)
    """A cluster of more rows is cut into stars: a row and those that are near-duplicates of it. Counted as `split_components`."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.pieces is not None and self.pieces <= self.max_distance:
            raise ValueError(f"pieces: {self.pieces} must be more than max_distance = {self.max_distance}")
        return self

    def masks(self) -> np.ndarray:
        """The bits that each key holds."""
        return piece_masks(self.pieces or self.max_distance + 2, self.max_distance)


class ImageDedup(Stage):
    """Clusters of near-duplicate images over the whole input."""

    name = "image_dedup"
    version = 1
    shape = "shuffle"
    reads = {
        "uid": Column(pa.string(), "32 hexadecimal digits; the order of rows"),
        "phash": Column(pa.string(), "perceptual hash, 16 hexadecimal digits; null: not compared"),
        "flat": Column(pa.bool_(), "an image of one colour, whose phash means nothing"),
        "sha256": Column(pa.string(), "hash of the downloaded bytes; null: not compared"),
    }
    adds = {
        "image_cluster": Column(pa.string(), "uid of the smallest row among those whose images near-duplicates join to this one"),
        "image_cluster_size": Column(pa.int32(), "rows of the image cluster, 1 or more"),
    }
    resources = Resources(cpus=1, memory=3 << 30)
    payload: str | None = None

    class Config(Options):
        pass

    @property
    def entries_per_row(self) -> int:
        """A key for the bytes, one for the hash, and one for each choice of its pieces."""
        return 2 + len(self.config.masks())

    def keyed(self, rows: pa.Table) -> pa.Table:
        """Entries (ENTRIES) of `row`, `uid`, `phash`, `flat` and `sha256`. Of equal hashes in this table only the smallest row
        gets the keys of pieces, since all of them meet under the hash itself."""
        row, order = rows["row"].to_numpy(), order_of(rows["uid"])
        known = np.flatnonzero(rows["sha256"].is_valid())
        sha = text_hashes(rows["sha256"].take(pa.array(known)).combine_chunks(), SHA_SEED)
        shaped = np.flatnonzero(pc.and_not(rows["phash"].is_valid(), pc.fill_null(rows["flat"], False)))
        phash = parse_hashes(rows["phash"].take(pa.array(shaped)).combine_chunks())
        tables = [
            entry_table(sha, SAME, row[known], order[known], sha),
            entry_table(mix(np.uint64(PHASH_SALT), phash), SAME, row[shaped], order[shaped], phash),
        ]
        by_hash = np.lexsort((row[shaped], order[shaped], phash))
        smallest = np.sort(by_hash[buckets.first_of(phash[by_hash])])
        at, phash = shaped[smallest], phash[smallest]
        tables += [entry_table(key, NEAR, row[at], order[at], phash) for key in hamming_keys(phash, self.config.masks())]
        return pa.concat_tables(tables)

    def pairs(self, entries: pa.Table) -> Pairs:
        """All entries of some keys -> stars of equal images, and the pairs of hashes that are near."""
        same = buckets.groups(entries, SAME)
        a, b = buckets.stars(same)
        equal = edge_table(same.row[a], same.row[b], same.order[a], same.order[b], same=True)
        near = buckets.fold(buckets.groups(entries, NEAR))
        found = buckets.pair_up(near, self.config.max_bucket)
        close = distances(near.content[found.a], near.content[found.b]) <= self.config.max_distance
        a, b = found.a[close], found.b[close]
        edges = edge_table(near.row[a], near.row[b], near.order[a], near.order[b], same=False)
        return Pairs(edges=pa.concat_tables([equal, edges]), counts={"hot_keys": found.hot, "pairs_cut": found.cut})

    def verify(self, pairs: pa.Table) -> pa.Table:
        """Never called: `pairs` proves what it finds."""
        raise TypeError(f"{self.name} leaves no pairs to verify (got {len(pairs)})")

    def components(self, edges: Iterable[pa.Table]) -> Labels:
        """Clusters of all edges, and counts."""
        return components(edges, self.config.max_component)
