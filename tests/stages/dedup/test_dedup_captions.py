"""dedup on one table: clusters, proofs, what falls, and that the order and the division of rows never show."""

from __future__ import annotations

import csv
import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.stage import keyed_config
from stages.dedup.captions import Dedup
from stages.dedup.local import cluster_table
from stages.lib.comparable import normal
from stages.lib.shingles import shingles

DOG = "a black and white dog runs over the wet sand of the beach"


def table_of(captions: list[str | None], urls: list[str | None] | None = None) -> pa.Table:
    urls = urls or [f"https://example.org/{i}.jpg" for i in range(len(captions))]
    uids = [xxhash.xxh3_128_hexdigest(f"{url}\0{caption}".encode()) for url, caption in zip(urls, captions, strict=True)]
    return pa.table({"uid": uids, "url": pa.array(urls, pa.string()), "caption": pa.array(captions, pa.string())})


def clusters(captions: list[str | None], **config: Any) -> list[set[int]]:
    """The rows of each cluster of two or more."""
    out, _ = cluster_table(Dedup(Dedup.Config(**config)), table_of(captions))
    members: dict[str, set[int]] = {}
    for row, cluster in zip(out["row"].to_pylist(), out["cluster"].to_pylist(), strict=True):
        members.setdefault(cluster, set()).add(row)
    return sorted((each for each in members.values() if len(each) > 1), key=min)


def jaccard(one: str, other: str, n: int = 5) -> float:
    x, y = shingles(normal(one), n), shingles(normal(other), n)
    return len(x & y) / len(x | y)


def test_near_duplicates_are_joined_and_others_are_not() -> None:
    other = "a red car stands in front of an old house"
    captions = [DOG, DOG.upper(), DOG + "!", DOG.replace("wet", "dry"), other, DOG.replace("dog", "cow") + " at night"]
    assert clusters(captions) == [{0, 1, 2, 3}]
    assert jaccard(DOG, captions[3]) >= 0.7 > jaccard(DOG, captions[5])


def test_a_cluster_is_named_by_its_smallest_uid_and_knows_its_size() -> None:
    table = table_of([DOG, "something else that is long enough", DOG + "."])
    out, counts = cluster_table(Dedup(), table)
    smallest = min(table["uid"][0].as_py(), table["uid"][2].as_py())
    assert out["cluster"].to_pylist() == [smallest, table["uid"][1].as_py(), smallest]
    assert out["cluster_size"].to_pylist() == [2, 1, 2]
    assert out.schema.field("cluster").type == pa.string()
    assert out.schema.field("cluster_size").type == pa.int32()
    assert (counts["clusters"], counts["clustered_rows"], counts["hot_keys"]) == (1, 2, 0)


def test_short_captions_are_compared_for_equality_alone() -> None:
    assert clusters(["a small brown dog", "a small brown dogs", "A  small brown dog"]) == [{0, 2}]
    assert clusters(["a small brown dog", "a small brown dogs"], min_chars=10) == [{0, 1}]


def test_captions_of_cjk_scripts_have_shorter_shingles_and_are_signed_when_shorter() -> None:
    red = "一只黑白相间的狗在海滩上奔跑着追逐一个红色的球"
    assert clusters([red, red + "。", "两个孩子在公园里的草地上踢足球玩得很开心"]) == [{0, 1}]
    assert clusters([red[:12], red[:12] + "了"]) == [{0, 1}]
    assert clusters([red[:8], red[:8] + "了"]) == []


def test_lengths_of_shingles_are_never_mixed() -> None:
    half = "abcdefghij一只黑白相间的狗在海"  # a letter more decides about its script
    both = [half + "一", half + "a"]
    assert clusters(both, threshold=0.5) == []
    assert clusters(both, threshold=0.5, ngram=3) == []


@pytest.mark.parametrize(("other", "joined"), [("43", False), ("42", True)])
def test_numbers_tell_captions_apart(other: str, joined: bool) -> None:
    shoes = "running shoes for men, white and blue, size {}, new in box"
    pair = [shoes.format(42), shoes.format(other) + "!"]
    assert bool(clusters(pair)) == joined
    assert clusters(pair, same_numbers=False) == [{0, 1}]


def test_empty_captions_are_duplicates_of_nothing() -> None:
    captions: list[str | None] = ["", None, "  ", "\u3000", DOG, DOG]
    assert clusters(captions, max_per_caption=1) == [{4, 5}]
    out, _ = cluster_table(Dedup(Dedup.Config(max_per_caption=1)), table_of(captions))
    assert out["fate"].to_pylist()[:4] == ["kept"] * 4


def test_the_same_pair_falls_once_the_smallest_row_stays() -> None:
    urls: list[str | None] = ["u", "u", "v", "u", "u", "", "", None, None]
    captions: list[str | None] = [DOG, DOG, DOG, DOG + ".", DOG, "x", "x", "x", "x"]
    out, _ = cluster_table(Dedup(), table_of(captions, urls))
    assert out["fate"].to_pylist() == ["kept", "dedup:same_pair", "kept", "kept", "dedup:same_pair", *["kept"] * 4]
    assert out["detail"][1].as_py() == "the same URL and caption as row 0"
    assert out["cluster_size"].to_pylist()[:5] == [5] * 5
    none, _ = cluster_table(Dedup(), table_of(["", "", None, "x"], ["u", "u", "u", "u"]))
    fates = none["fate"].to_pylist()
    assert (sorted(fates[:3]), fates[3]) == (["dedup:same_pair", "dedup:same_pair", "kept"], "kept")


def test_the_same_words_of_a_video_at_another_time_are_another_pair() -> None:
    table = table_of([DOG] * 3, ["v", "v", "v"]).append_column("start_s", pa.array([1.5, 9.25, 1.5]))
    out, _ = cluster_table(Dedup(), table)
    assert out["fate"].to_pylist() == ["kept", "kept", "dedup:same_pair"]


def test_no_more_than_max_per_caption_go_on_and_they_are_the_smallest() -> None:
    table = table_of([("Stock Photo", "stock  photo")[i % 2] for i in range(25)] + ["logo"] * 10)
    out, _ = cluster_table(Dedup(), table)
    kept = [fate == "kept" for fate in out["fate"].to_pylist()]
    uids = table["uid"].to_pylist()
    assert {uid for uid, stays in zip(uids[:25], kept, strict=False) if stays} == set(sorted(uids[:25])[:10])
    assert all(kept[25:])
    assert out["detail"].drop_null().unique().to_pylist() == ["25 rows have this caption, 10 go on"]
    every, _ = cluster_table(Dedup(Dedup.Config(max_per_caption=None)), table)
    assert set(every["fate"].to_pylist()) == {"kept"}


def test_a_pair_that_falls_does_not_count_for_the_cap() -> None:
    out, _ = cluster_table(Dedup(Dedup.Config(max_per_caption=2)), table_of(["logo"] * 4, ["u", "u", "u", "v"]))
    assert sorted(out["fate"].to_pylist()) == ["dedup:same_pair", "dedup:same_pair", "kept", "kept"]


def test_a_hot_key_is_cut_to_a_star_and_counted() -> None:
    names = [f"{a}{b}" for a in "abcdefghij" for b in "klmnopqrst"]
    captions: list[str | None] = [f"the weather forecast for the town of {name} and all that lies around it today" for name in names]
    stage = Dedup(Dedup.Config(max_bucket=10))
    out, counts = cluster_table(stage, table_of(captions))
    assert counts["hot_keys"] > 0
    assert counts["pairs_cut"] > 0
    assert set(out["cluster_size"].to_pylist()) == {100}
    entries = stage.keyed(table_of(captions).append_column("row", pa.array(range(100))))
    assert len(stage.pairs(entries).candidates) < 25 * 100 < len(Dedup().pairs(entries).candidates) < 100 * 100


def test_a_large_cluster_becomes_stars_each_proven_to_its_centre() -> None:
    words = [f"{a}{b}{c}lo" for a in "bcdfgh" for b in "aeiou" for c in "klmn"]
    captions: list[str | None] = [" ".join(words[i : i + 12]) for i in range(100)]  # a chain: like its neighbours alone
    out, counts = cluster_table(Dedup(Dedup.Config(max_component=20)), table_of(captions))
    uids = dict(zip(table_of(captions)["uid"].to_pylist(), captions, strict=True))
    assert counts["split_components"] == 1
    assert counts["split_rows"] == 100
    for caption, cluster in zip(captions, out["cluster"].to_pylist(), strict=True):
        assert jaccard(str(caption), str(uids[cluster])) >= 0.7


def real(data_dir: Path) -> list[str]:
    with (data_dir / "flickr8k" / "captions.csv").open(newline="", encoding="utf-8") as handle:
        texts = [row["caption"] for row in csv.DictReader(handle)][:3000]
    with (data_dir / "captions" / "flickr8k_zh_human.csv").open(newline="", encoding="utf-8") as handle:
        texts += [row["caption"] for row in csv.DictReader(handle)][:1000]
    chance = random.Random(3)
    return [*texts, *(text.replace("a", "the", 1) for text in chance.sample(texts, 400)), *chance.sample(texts, 100)]


def by_uid(table: pa.Table, out: pa.Table) -> dict[str, dict[str, Any]]:
    return dict(zip(table["uid"].to_pylist(), out.drop_columns(["row", "detail"]).to_pylist(), strict=True))


@pytest.mark.parametrize(("parts", "buckets"), [(2, 3), (7, 5)])
def test_order_and_division_of_rows_do_not_show(data_dir: Path, parts: int, buckets: int) -> None:
    stage = Dedup(Dedup.Config(max_bucket=4, max_component=2, max_per_caption=2))
    table = table_of(list(real(data_dir)))
    one, counts = cluster_table(stage, table)
    mixed = table.take(np.random.default_rng(parts).permutation(len(table)))
    other, other_counts = cluster_table(stage, mixed, parts, buckets)
    assert counts == other_counts
    assert counts["hot_keys"] > 0
    assert counts["split_components"] > 0
    told = [by_uid(table, one), by_uid(mixed, other)]
    assert told[0] == told[1]


def with_texts(candidates: pa.Table, texts: pa.ChunkedArray) -> pa.Table:
    for end in ("a", "b"):
        candidates = candidates.append_column(f"text_{end}", texts.take(candidates[end]))
    return candidates


def test_every_edge_is_proven_and_no_certain_pair_is_missed(data_dir: Path) -> None:
    stage = Dedup(Dedup.Config(same_numbers=False))
    forms = sorted({normal(text) for text in real(data_dir)[2500:]})
    forms = [form for form in forms if len(form) >= 20 or (ord(form[0]) > 0x2E80 and len(form) >= 10)]
    table = table_of(list(forms)).append_column("row", pa.array(range(len(forms))))
    proven = stage.verify(with_texts(stage.pairs(stage.keyed(table)).candidates, table["caption"]))
    edges = {frozenset((line["a"], line["b"])) for line in proven.to_pylist()}
    sets = [shingles(form, 3 if ord(form[0]) > 0x2E80 else 5) for form in forms]
    certain = 0
    for a, b in itertools.combinations(range(len(forms)), 2):
        common = len(sets[a] & sets[b])
        value = common / (len(sets[a]) + len(sets[b]) - common)
        assert value >= 0.7 or frozenset((a, b)) not in edges
        assert value < 0.8 or frozenset((a, b)) in edges, (forms[a], forms[b])
        certain += value >= 0.8
    assert certain > 30


@given(st.lists(st.text("ab1 ", min_size=4, max_size=9), min_size=1, max_size=8), st.floats(0.2, 1))
@settings(max_examples=60)
def test_verify_is_true_similarity_and_symmetric(texts: list[str], threshold: float) -> None:
    stage = Dedup(Dedup.Config(threshold=threshold, same_numbers=False))
    pairs = [(a, b) for a in range(len(texts)) for b in range(len(texts)) if a != b]
    table = pa.table(
        {"a": pa.array([a for a, _ in pairs], pa.int64()), "b": pa.array([b for _, b in pairs], pa.int64())}
        | {f"text_{end}": pa.array([texts[pair[i]] for pair in pairs], pa.string()) for i, end in enumerate("ab")}
    )
    found = {(line["a"], line["b"]) for line in stage.verify(table).to_pylist()}
    expected = set()
    for a, b in pairs:
        if normal(texts[a]) or normal(texts[b]):
            x, y = (shingles(normal(text), 5) for text in (texts[a], texts[b]))
            expected |= {(a, b)} if len(x & y) / len(x | y) >= threshold else set()
    assert found == expected
    assert found == {(b, a) for a, b in found}


def test_entries_are_as_many_as_declared() -> None:
    stage = Dedup()
    captions: list[str | None] = [f"{DOG} and {word}" for word in ("one", "two", "three", "four", "five", "six")]
    table = table_of(captions).append_column("row", pa.array(range(6)))
    entries = stage.keyed(table)
    assert stage.entries_per_row == 26
    assert len(entries) == 6 * 26
    assert entries.schema.field("key").type == pa.uint64()
    assert len(stage.keyed(table.slice(0, 0))) == 0
    assert len(stage.pairs(entries.slice(0, 0)).candidates) == 0


def test_config() -> None:
    assert "on" not in keyed_config(Dedup.Config(on="caption"))
    assert Dedup.Config().chosen_bands() == (25, 5)
    assert Dedup.Config(bands=20, band_rows=6).chosen_bands() == (20, 6)
    for bad in ({"bands": 20}, {"bands": 26, "band_rows": 5}, {"threshold": 0}, {"threshold": 1.1}, {"on": "text"}, {"ngrams": 4}):
        with pytest.raises(ValidationError):
            Dedup.Config(**bad)  # type: ignore[arg-type]
