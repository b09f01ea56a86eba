"""dedup: which rows have near-duplicate captions. It marks them; selection decides. Only exact repeats fall here.

Captions are compared in their normal form (stages/lib/comparable.py) by the Jaccard similarity of their shingles. MinHash bands
find candidates, their true similarity proves them, connected components are the clusters. docs/guide/dedup.md tells the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from pipeline.stage import Column, Resources, Stage, Strict, keyless
from stages.dedup import buckets
from stages.dedup.contract import CANDIDATES, FATES, NEAR, SAME, Pairs, entry_table, order_of
from stages.lib import minhash
from stages.lib.comparable import dense_script, normal_batch, number_hashes, text_hashes
from stages.lib.components import Labels, components, edge_table, order_table, proven_table
from stages.lib.mix import mix
from stages.lib.shingles import Ragged, code_points, shingle_hashes
from stages.lib.similarity import similar

BLOCK = 1 << 16  # texts that are signed at a time: 34 MB of signatures
KEY_SEED, PAIR_SEED = 1, 2  # different hashes of a caption, so that a chance collision of one is none of the other


class Options(Strict):
    """Near-duplicate captions, and what selection does about them."""

    on: Literal["caption", "both", "image"] = keyless("both")
    """What makes two rows one for selection: the `caption` cluster; `both`, the captions and the image (phash, sha256 or URL)
    too; `image`, the image alone. Nothing here depends on it."""
    threshold: float = Field(0.7, gt=0, le=1)
    """Least Jaccard similarity of two captions' shingles. One changed word in 60 characters gives about 0.75."""
    max_per_caption: int | None = Field(10, ge=1)
    """At most this many rows with the very same normal form of the caption go on, as in COYO; null: all."""
    same_numbers: bool = True
    """Captions with different numbers are no near-duplicates: "size 42" and "size 43" are two products."""
    min_chars: int = Field(20, ge=1)
    """Shorter captions (characters of the normal form) are compared for equality alone."""
    min_cjk_chars: int = Field(10, ge=1)
    """The same for captions mostly in Han, kana, Hangul, Thai, Lao, Khmer or Myanmar."""
    ngram: int = Field(5, ge=1, le=32)
    """Characters of a shingle."""
    cjk_ngram: int = Field(3, ge=1, le=32)
    """The same for those scripts. Captions with different lengths of shingles are never compared."""
    num_perm: int = Field(128, ge=1, le=4096)
    """Values of a signature."""
    bands: int | None = Field(None, ge=1)
    """Keys of a caption. Null: with `band_rows`, the fewest that find 98 % of the pairs at the threshold: 25 of 5 at 0.7."""
    band_rows: int | None = Field(None, ge=1)
    """Values of a key."""
    max_bucket: int = Field(100, ge=2)
    """Of more different captions under one key, each is compared with the smallest row alone. Counted as `hot_keys`."""
    max_component: int = Field(1000, ge=2)
    """A cluster of more rows is cut into stars: a row and those that are near-duplicates of it. Counted as `split_components`."""
    seed: int = Field(1, ge=0, lt=1 << 32)
    """Of the permutations, as datasketch's."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.bands is None) != (self.band_rows is None):
            raise ValueError("bands and band_rows: give both or neither")
        if self.bands is not None and self.bands * (self.band_rows or 0) > self.num_perm:
            raise ValueError(f"bands x band_rows = {self.bands * (self.band_rows or 0)} values > num_perm = {self.num_perm}")
        return self

    def chosen_bands(self) -> tuple[int, int]:
        """(bands, values of each)."""
        if self.bands is not None and self.band_rows is not None:
            return self.bands, self.band_rows
        return minhash.choose_bands(self.threshold, self.num_perm)


class Dedup(Stage):
    """Clusters of near-duplicate captions over the whole input."""

    name = "dedup"
    version = 2
    shape = "shuffle"
    reads = {
        "uid": Column(pa.string(), "32 hexadecimal digits; the order of rows"),
        "url": Column(pa.string(), "the image's address; null: never the same pair as another row"),
        "caption": Column(pa.string(), "the cleaned caption"),
    }
    may_read = {"start_s": Column(pa.float64(), "of a clip: the same words of one video at another time are another pair")}
    adds = {
        "cluster": Column(pa.string(), "uid of the smallest row among those whose captions near-duplicates join to this one"),
        "cluster_size": Column(pa.int32(), "rows of the cluster, 1 or more, those that fell here included"),
    }
    reasons = {
        "same_pair": "an earlier row (by uid, then row) has the very same URL and caption (and, of clips, start)",
        "max_per_caption": "max_per_caption earlier rows have the same caption but for case, width and white space",
    }
    resources = Resources(cpus=1, memory=3 << 30)
    payload: str | None = "caption"

    class Config(Options):
        pass

    @property
    def entries_per_row(self) -> int:
        """A key for each band and one for the caption itself."""
        bands, _ = self.config.chosen_bands()
        return int(bands) + 1

    def keyed(self, rows: pa.Table) -> pa.Table:
        """Entries (ENTRIES) of `row`, `uid`, `url`, `caption` and, of clips, `start_s`. Of identical captions in this table only the
        smallest row gets band keys, since all of them meet under the caption's own key."""
        row, order = rows["row"].to_numpy(), order_of(rows["uid"])
        texts = normal_batch(rows["caption"])
        caption = text_hashes(texts, KEY_SEED)
        pair = _pair_hashes(rows, row)
        # No caption is no shared caption: such rows meet by URL alone.
        key = np.where(pc.equal(pc.binary_length(texts), 0).to_numpy(zero_copy_only=False), mix(pair), caption)
        by_caption = np.lexsort((row, order, caption))
        smallest = np.sort(by_caption[buckets.first_of(caption[by_caption])])
        tables = [entry_table(key, SAME, row, order, pair)]
        for start in range(0, len(smallest), BLOCK):
            at = smallest[start : start + BLOCK]
            for signed, keys in self._band_keys(texts.take(pa.array(at))):
                tables += [entry_table(each, NEAR, row[at[signed]], order[at[signed]], caption[at[signed]]) for each in keys]
        return pa.concat_tables(tables)

    def _band_keys(self, texts: pa.StringArray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each length of shingles: which texts are signed (indices), and their keys (bands, signed)."""
        config = self.config
        bands, values = config.chosen_bands()
        points = code_points(texts)
        numbers = number_hashes(texts) if config.same_numbers else np.zeros(len(texts), dtype=np.uint64)
        dense = dense_script(points)
        for mask, least, n in ((~dense, config.min_chars, config.ngram), (dense, config.min_cjk_chars, config.cjk_ngram)):
            at = np.flatnonzero(mask & (points.lengths >= least))
            if not len(at):
                continue
            chosen = code_points(texts.take(pa.array(at)))  # cheaper than to take points
            signed = minhash.signatures(shingle_hashes(chosen, n), config.num_perm, config.seed)
            yield at, buckets.spread(minhash.band_keys(signed, bands, values, mix(np.uint64(n), numbers[at])))

    def pairs(self, entries: pa.Table) -> Pairs:
        """All entries of some keys -> candidates; stars of identical captions; the rows that fall."""
        same = buckets.groups(entries, SAME)
        a, b = buckets.stars(same)
        near = buckets.fold(buckets.groups(entries, NEAR))
        found = buckets.pair_up(near, self.config.max_bucket)
        candidates = pa.table([near.row[found.a], near.row[found.b]], schema=CANDIDATES)
        proven = edge_table(same.row[a], same.row[b], same.order[a], same.order[b], same=True)
        ends = np.concatenate([found.a, found.b])
        edges = pa.concat_tables([proven, order_table(near.row[ends], near.order[ends])])
        return Pairs(candidates, edges, self._fates(same), {"hot_keys": found.hot, "pairs_cut": found.cut})

    def _fates(self, same: buckets.Groups) -> pa.Table:
        """Repeats of a pair, then what is left of a caption beyond the cap."""
        n = len(same.key)
        by_pair = np.lexsort((np.arange(n), same.content, same.key))
        first = buckets.first_of(same.key[by_pair]) | buckets.first_of(same.content[by_pair])
        repeated = np.zeros(n, dtype=bool)
        repeated[by_pair] = ~first
        earliest = np.empty(n, dtype=np.int64)
        earliest[by_pair] = same.row[by_pair[np.maximum.accumulate(np.where(first, np.arange(n), 0))]]
        details = [f"the same URL and caption as row {row}" for row in earliest[repeated].tolist()]
        out = [_fate_table(same.row[repeated], f"{self.name}:same_pair", details)]
        most = self.config.max_per_caption
        if most is not None:
            left = same.take(np.flatnonzero(~repeated))
            starts = left.starts
            place = np.arange(len(left.key)) - np.repeat(starts[:-1], np.diff(starts))
            size = np.repeat(np.diff(starts), np.diff(starts))
            over = place >= most
            details = [f"{count} rows have this caption, {most} go on" for count in size[over].tolist()]
            out.append(_fate_table(left.row[over], f"{self.name}:max_per_caption", details))
        return pa.concat_tables(out)

    def verify(self, pairs: pa.Table) -> pa.Table:
        """a, b, text_a, text_b -> edges (EDGES) of the pairs whose true similarity is at least the threshold."""
        texts = pa.concat_arrays([*pairs["text_a"].chunks, *pairs["text_b"].chunks, pa.array([], pa.string())]).dictionary_encode()
        forms = normal_batch(texts.dictionary)
        numbers = number_hashes(forms) if self.config.same_numbers else np.zeros(len(forms), dtype=np.uint64)
        shingled, place = self._exact(forms)
        ends = texts.indices.to_numpy()
        a, b = ends[: len(pairs)], ends[len(pairs) :]
        near = similar(shingled, place[a], place[b], self.config.threshold) & (numbers[a] == numbers[b])
        return proven_table(pairs["a"].to_numpy()[near], pairs["b"].to_numpy()[near])

    def _exact(self, texts: pa.StringArray) -> tuple[Ragged, np.ndarray]:
        """64-bit hashes of the shingles of each text, those of another length being others, and where each text's are among them."""
        dense = dense_script(code_points(texts))
        order = np.argsort(dense, kind="stable")
        wide, narrow = (texts.take(pa.array(np.flatnonzero(mask))) for mask in (~dense, dense))
        one = shingle_hashes(code_points(wide), self.config.ngram, bits=64)
        other = shingle_hashes(code_points(narrow), self.config.cjk_ngram, bits=64)
        both = Ragged(np.concatenate([one.values, ~other.values]), np.concatenate([one.offsets, one.offsets[-1] + other.offsets[1:]]))
        place = np.empty(len(texts), dtype=np.int64)
        place[order] = np.arange(len(texts))
        return both, place

    def components(self, edges: Iterable[pa.Table]) -> Labels:
        """Clusters of all edges, and counts."""
        return components(edges, self.config.max_component)


def _fate_table(rows: np.ndarray, fate: str, details: list[str]) -> pa.Table:
    return pa.table([rows, pa.repeat(pa.scalar(fate), len(rows)), pa.array(details, pa.string())], schema=FATES)


def _pair_hashes(rows: pa.Table, row: np.ndarray) -> np.ndarray:
    """uint64, equal for the very same URL and caption, and start where there is one; a row without a URL is like no other."""
    what = [rows[name] for name in ("url", "caption", "start_s") if name in rows.column_names]
    joined = pc.binary_join_element_wise(rows["url"].cast(pa.string()), *(pc.fill_null(v.cast(pa.string()), "") for v in what[1:]), "\0")
    none = pc.fill_null(pc.equal(rows["url"], ""), True).to_numpy()
    return np.where(none, mix(row), text_hashes(pc.fill_null(joined, "").combine_chunks(), PAIR_SEED))
