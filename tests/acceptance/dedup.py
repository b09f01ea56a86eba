"""Near-duplicates against brute force on real captions: `SHARDMILL_TEST_DATA=… python tests/acceptance/dedup.py`.

Captions of Flickr8k (five an image), of 15 languages, and near-duplicates planted among both. Similarities are computed here by other
means: sets of Python strings and a sparse product over all pairs. Prints one line a measure; exit code 1 if a bound is missed.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash
from scipy.sparse import csr_array

from stages.dedup.captions import Dedup
from stages.dedup.local import cluster_table
from stages.lib.comparable import dense_script, normal, number_hashes
from stages.lib.shingles import code_points, shingles

THRESHOLD, CERTAIN = 0.7, 0.8
Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]  # indices a < b of texts, and their similarity


def captions(folder: Path) -> dict[str, list[str]]:
    """Captions by source, as the files have them."""
    sources = {path.stem: _column(path) for path in sorted(folder.glob("captions/*.csv"))}
    return {"flickr8k": _column(folder / "flickr8k" / "captions.csv"), **sources}


def _column(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    names = [name for name in rows[0] if name not in ("image", "image_id", "lang")]
    return [row[name] for row in rows for name in names if row[name]]


def planted(texts: list[str], count: int, seed: int = 5) -> list[str]:
    """Copies with what happens to captions on the web: case, white space, end marks, a letter or a word changed, a credit added."""
    chance = random.Random(seed)
    out = []
    for text in chance.sample(texts, min(count, len(texts))):
        at = chance.randrange(max(1, len(text)))
        words = text.split()
        edits = [
            text.upper(), "  ".join(words), text.rstrip(" .。।") + "!", text[:at] + text[at + 1 :], text[:at] + "x" + text[at:],
            " ".join(words[1:]), text + " - photo", text.replace(",", ""), f"{text} 2019",
        ]  # fmt: skip
        out.append(chance.choice(edits))
    return [text for text in out if normal(text)]  # rows without a caption are no duplicates of one another


def rows_of(texts: list[str]) -> pa.Table:
    """One row a caption, each with a URL of its own."""
    urls = [f"https://example.org/{i}.jpg" for i in range(len(texts))]
    uids = [xxhash.xxh3_128_hexdigest(f"{url}\0{text}".encode()) for url, text in zip(urls, texts, strict=True)]
    return pa.table({"row": np.arange(len(texts)), "uid": uids, "url": urls, "caption": texts})


class Truth:
    """Similar pairs of different normal forms, by brute force: what the stage is to find."""

    def __init__(self, texts: list[str], stage: Dedup) -> None:
        config = stage.config
        forms = pa.array(texts)
        self.numbers = number_hashes(forms)
        points = code_points(forms)
        self.dense = dense_script(points)
        self.long = points.lengths >= np.where(self.dense, config.min_cjk_chars, config.min_chars)
        sizes = np.where(self.dense, config.cjk_ngram, config.ngram)
        self.sets = [shingles(text, int(n)) for text, n in zip(texts, sizes, strict=True)]

    def comparable(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Pairs that the rules of the stage allow."""
        return (self.numbers[a] == self.numbers[b]) & (self.dense[a] == self.dense[b]) & self.long[a] & self.long[b]

    def jaccard(self, a: int, b: int) -> float:
        union = len(self.sets[a] | self.sets[b])
        return len(self.sets[a] & self.sets[b]) / union if union else 0.0

    def similar(self, least: float) -> Pairs:
        """All pairs of at least this similarity."""
        parts = [found for mask in (self.dense, ~self.dense) for found in self._blocks(np.flatnonzero(mask), least)]
        a, b, values = (np.concatenate([part[i] for part in parts]) for i in range(3))
        allowed = self.comparable(a, b)
        return a[allowed], b[allowed], values[allowed]

    def _blocks(self, at: np.ndarray, least: float, block: int = 512) -> Iterator[Pairs]:
        vocabulary: dict[str, int] = {}
        columns = [[vocabulary.setdefault(shingle, len(vocabulary)) for shingle in self.sets[i]] for i in at]
        sizes = np.array([len(each) for each in columns], dtype=np.int64)
        ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        flat = np.concatenate([np.array(each, dtype=np.int64) for each in columns] or [np.zeros(0, dtype=np.int64)])
        matrix = csr_array((np.ones(len(flat), dtype=np.int32), flat, ends), shape=(len(at), max(1, len(vocabulary))))
        transposed = matrix.T.tocsr()
        for start in range(0, len(at), block):
            common = (matrix[start : start + block] @ transposed[:, start:]).tocoo()
            a, b = common.coords[0] + start, common.coords[1] + start
            value = common.data / (sizes[a] + sizes[b] - common.data)
            near = (value >= least) & (a < b)
            yield at[a[near]], at[b[near]], value[near]


def partition(table: pa.Table) -> set[frozenset[str]]:
    """The clusters of more than one row, by uid."""
    members: dict[str, list[str]] = {}
    for uid, cluster in zip(table["uid"].to_pylist(), table["cluster"].to_pylist(), strict=True):
        members.setdefault(cluster, []).append(uid)
    return {frozenset(each) for each in members.values() if len(each) > 1}


def verified_edges(stage: Dedup, table: pa.Table) -> tuple[pa.Table, int]:
    """The edges of different captions, and how many candidates were compared."""
    candidates = stage.pairs(stage.keyed(table)).candidates
    texts = table["caption"]
    joined = candidates.append_column("text_a", texts.take(candidates["a"])).append_column("text_b", texts.take(candidates["b"]))
    return stage.verify(joined), len(candidates)


def inside(clusters: np.ndarray, truth: Truth) -> tuple[int, int]:
    """Pairs of different captions in one cluster, and how many of them are below the threshold."""
    pairs = below = 0
    order = np.argsort(clusters, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(clusters[order])) + 1):
        for i, a in enumerate(members.tolist()):
            for b in members[i + 1 :].tolist():
                pairs += 1
                below += truth.jaccard(a, b) < THRESHOLD
    return pairs, below


class Report:
    """Lines of a measure, what was seen and what was asked for."""

    def __init__(self) -> None:
        self.missed = 0

    def line(self, what: str, seen: str, asked: str = "", kept: bool = True) -> None:
        self.missed += not kept
        sys.stdout.write(f"{'' if kept else 'MISSED '}{what:58} {seen:>14}  {asked}\n")


def check(name: str, texts: list[str], report: Report) -> None:
    """One set of captions: recall, edges, what clusters hold."""
    stage = Dedup(Dedup.Config(threshold=THRESHOLD))
    forms = [normal(text) for text in texts]
    distinct = sorted(set(forms))
    place = {form: i for i, form in enumerate(distinct)}
    table = rows_of(texts)
    truth = Truth(distinct, stage)
    out, counts = cluster_table(stage, table)
    number = {cluster: i for i, cluster in enumerate(out["cluster"].unique().to_pylist())}
    clusters = np.empty(len(distinct), dtype=np.int64)
    of_row = np.array([number[cluster] for cluster in out["cluster"].to_pylist()])
    at = np.array([place[form] for form in forms])
    clusters[at] = of_row
    report.line(f"{name}: captions, different ones", f"{len(texts)}, {len(distinct)}")
    apart = int((clusters[at] != of_row).sum())
    report.line(f"{name}: equal captions in different clusters", str(apart), "0", apart == 0)
    a, b, value = truth.similar(THRESHOLD)
    for least, asked in ((CERTAIN, 0.99), (THRESHOLD, 0.97)):
        found = clusters[a] == clusters[b]
        chosen = value >= least
        recall = float(found[chosen].mean()) if chosen.any() else 1.0
        report.line(f"{name}: recall of {int(chosen.sum())} pairs of J >= {least}", f"{recall:.4f}", f">= {asked}", recall >= asked)
    edges, candidates = verified_edges(stage, table)
    ends = [at[edges[end].to_numpy()] for end in ("a", "b")]
    bad = sum(truth.jaccard(x, y) < THRESHOLD for x, y in zip(ends[0].tolist(), ends[1].tolist(), strict=True))
    bad += int((~truth.comparable(*ends)).sum())
    report.line(f"{name}: of {len(edges)} edges below the threshold or not allowed", str(bad), "0", bad == 0)
    pairs, below = inside(clusters, truth)
    report.line(f"{name}: of {pairs} pairs in one cluster below the threshold", f"{below / max(1, pairs):.4f}")
    cut = f"{candidates / len(texts):.2f}, {counts['hot_keys']}, {counts['split_components']}"
    report.line(f"{name}: candidates a caption, keys cut, clusters cut", cut)


def check_order(texts: list[str], report: Report) -> None:
    """The same clusters for any order of rows, any parts and any buckets."""
    stage = Dedup(Dedup.Config(threshold=THRESHOLD, max_bucket=20, max_component=10))
    table = rows_of(texts)
    expected = None
    for parts, buckets, shuffled in ((1, 1, False), (2, 3, False), (7, 1, False), (1, 1, True), (7, 5, True)):
        given = table
        if shuffled:
            given = table.take(np.random.default_rng(parts).permutation(len(table))).drop_columns(["row"])
        out, counts = cluster_table(stage, given, partitions=parts, buckets=buckets)
        told = zip(out["cluster"].to_pylist(), out["fate"].to_pylist(), strict=True)
        found = dict(zip(given["uid"].to_pylist(), told, strict=True)), counts
        expected = expected or found
        what = f"same clusters, fates, counts: {parts} parts, {buckets} buckets{', shuffled' if shuffled else ''}"
        report.line(what, str(found == expected), "True", found == expected)
    report.line("  with keys and clusters cut", f"{expected[1]['hot_keys']}, {expected[1]['split_components']}" if expected else "")


def check_speed(texts: list[str], report: Report) -> None:
    """Captions keyed, and clustered, a second of CPU."""
    stage = Dedup(Dedup.Config(threshold=THRESHOLD))
    table = rows_of([f"{text} {i // len(texts):x}" for i, text in enumerate(texts * 5)])
    began = time.process_time()
    entries = stage.keyed(table)
    keyed = time.process_time() - began
    began = time.process_time()
    cluster_table(stage, table)
    whole = time.process_time() - began
    mean = sum(map(len, texts)) / len(texts)
    rate = len(table) / keyed
    report.line(f"captions keyed a CPU-second ({len(table)} of {mean:.0f} characters)", f"{rate:.0f}", ">= 50000", rate >= 50_000)
    report.line("captions clustered a CPU-second, all steps", f"{len(table) / whole:.0f}")
    report.line("bytes of entries a caption", f"{entries.nbytes / len(table):.0f}")
    report.line("peak memory of all this, brute force included, MB", f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=40_000, help="captions of a set at most")
    most = parser.parse_args().most
    sources = captions(Path(os.environ["SHARDMILL_TEST_DATA"]))
    english = sources.pop("flickr8k")
    many = [text for texts in sources.values() for text in texts]
    random.Random(1).shuffle(many)
    report = Report()
    check("flickr8k", english[:most] + planted(english[:most], 3000), report)
    check("15 languages", many[:most] + planted(many[:most], 3000), report)
    check_order(english[:8000] + many[:4000] + planted(english[:8000] + many[:4000], 2000), report)
    check_speed(english, report)
    return int(report.missed > 0)


if __name__ == "__main__":
    sys.exit(main())
