"""Signatures against datasketch's own, bands against their formula, similarities against sets, hashes in few bits."""

from __future__ import annotations

import csv
import itertools
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasketch import MinHash
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.lib.comparable import normal
from stages.lib.hamming import distances, hamming_keys, parse_hashes, piece_masks
from stages.lib.minhash import BLOCK, EMPTY, band_keys, choose_bands, permutations, recall, signatures
from stages.lib.mix import mix64
from stages.lib.shingles import Ragged, code_points, shingle_hash, shingle_hashes, shingles
from stages.lib.similarity import jaccard, similar


def theirs(text: str, n: int, num_perm: int, seed: int) -> np.ndarray:
    sketch = MinHash(num_perm=num_perm, seed=seed, scheme="affine32", hashfunc=shingle_hash)
    sketch.update_batch(shingles(text, n))
    return np.asarray(sketch.hashvalues)


def ours(texts: list[str], n: int = 5, num_perm: int = 128, seed: int = 1) -> np.ndarray:
    return signatures(shingle_hashes(code_points(pa.array(texts, pa.string())), n), num_perm, seed)


def test_values_of_datasketch_on_real_captions(data_dir: Path) -> None:
    for path in [*sorted((data_dir / "captions").glob("*.csv")), data_dir / "flickr8k" / "captions.csv"]:
        with path.open(newline="", encoding="utf-8") as handle:
            found = [
                normal(row["caption"] if "caption" in row else row["cs"]) for _, row in zip(range(40), csv.DictReader(handle), strict=False)
            ]
        signed = ours(found, 3)
        for column, text in enumerate(found):
            assert np.array_equal(signed[:, column], theirs(text, 3, 128, 1)), (path.name, text)


@given(
    st.lists(st.text(st.characters(codec="utf-8"), max_size=30), max_size=5),
    st.integers(1, 6),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60)
def test_values_of_datasketch(texts: list[str], n: int, num_perm: int, seed: int) -> None:
    signed = ours(texts, n, num_perm, seed)
    assert signed.shape == (num_perm, len(texts))
    for column, text in enumerate(texts):
        assert np.array_equal(signed[:, column], theirs(text, n, num_perm, seed))


def test_golden_values() -> None:
    """Of datasketch 2.0.0, MinHash(4, seed=1, scheme="affine32"), sha1_hash32 of b"hello"."""
    hashed = np.array([int.from_bytes(bytes.fromhex("aaf4c61d"), "little")], dtype=np.uint32)
    signed = signatures(Ragged(hashed, np.array([0, 1])), num_perm=4)
    assert signed[:, 0].tolist() == [625790555, 194865109, 3904131391, 1324736089]
    assert (permutations(4, 1)[0] % 2 == 1).all()


def test_blocks_do_not_show() -> None:
    """Sets of every length around the block's, empty ones between them, one far longer than a block."""
    lengths = [0, 1, BLOCK - 1, 0, 2, BLOCK * 2 + 3, 0, 5, 0]
    values = np.random.default_rng(0).integers(0, 2**32, sum(lengths), dtype=np.uint32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    signed = signatures(Ragged(values, offsets), 8)
    for i in range(len(lengths)):
        alone = signatures(Ragged(values[offsets[i] : offsets[i + 1]], np.array([0, lengths[i]])), 8)
        assert np.array_equal(signed[:, i], alone[:, 0])
    assert (signed[:, 0] == EMPTY).all()


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_chosen_bands_find_what_they_must(threshold: float) -> None:
    bands, rows = choose_bands(threshold, 128)
    assert bands * rows <= 128
    assert recall(threshold, bands, rows) >= 0.98
    assert rows == 128 or recall(threshold, 128 // (rows + 1), rows + 1) < 0.98


def test_bands_are_equal_where_values_salt_and_number_are() -> None:
    signed = np.array([[1, 1, 1], [2, 2, 9], [1, 1, 1], [2, 2, 2]], dtype=np.uint32)
    keys = band_keys(signed, 2, 2, np.array([0, 0, 0], dtype=np.uint64))
    assert keys[0, 0] == keys[0, 1] != keys[0, 2]
    assert keys[1, 0] == keys[1, 2] != keys[0, 0]
    salted = band_keys(signed, 2, 2, np.array([0, 5, 0], dtype=np.uint64))
    assert salted[0, 0] == keys[0, 0] != salted[0, 1]


@given(st.lists(st.lists(st.integers(0, 30), max_size=12), min_size=1, max_size=6))
def test_similarity_is_that_of_sets(sets: list[list[int]]) -> None:
    flat = np.array([value for each in sets for value in each], dtype=np.uint64) + np.uint64(2**63)
    ragged = Ragged(flat, np.concatenate([[0], np.cumsum([len(each) for each in sets])]).astype(np.int64))
    pairs = [(a, b) for a in range(len(sets)) for b in range(len(sets))]
    found = jaccard(ragged, *(np.array(end) for end in zip(*pairs, strict=True)))
    for (a, b), value in zip(pairs, found, strict=True):
        x, y = set(sets[a]), set(sets[b])
        assert value == (len(x & y) / len(x | y) if x | y else 0)


@pytest.mark.parametrize(("count", "size", "least"), [(300, 60, 0.4), (300, 60, 0.7), (40, 4000, 0.5), (300, 3, 1.0)])
def test_bounds_by_bitmaps_lose_no_pair(count: int, size: int, least: float) -> None:
    """Sets that grow from one another, so that similarities of all sizes are there; the large ones fill their bitmaps."""
    random_ = np.random.default_rng(size)
    sets = [random_.integers(0, 2**40, size)]
    while len(sets) < count:
        old = sets[random_.integers(len(sets))]
        sets.append(np.where(random_.random(len(old)) < random_.choice([0.02, 0.1, 0.3, 1]), random_.integers(0, 2**40, len(old)), old))
    ragged = Ragged(mix64(np.concatenate(sets)), np.arange(0, count * size + 1, size))
    a, b = (end.ravel() for end in np.meshgrid(np.arange(count), np.arange(count)))
    expected = jaccard(ragged, a, b) >= least
    assert np.array_equal(similar(ragged, a, b, least), expected)
    assert count < expected.sum() < count * count


@given(st.integers(0, 2**64 - 1), st.integers(0, 5), st.integers(1, 4), st.randoms(use_true_random=False))
def test_hashes_in_few_bits_share_a_key(value: int, distance: int, more: int, chance: random.Random) -> None:
    other = value
    for bit in chance.sample(range(64), distance):
        other ^= 1 << bit
    both = np.array([value, other], dtype=np.uint64)
    assert distances(both[:1], both[1:]).tolist() == [distance]
    keys = hamming_keys(both, piece_masks(distance + more, distance))
    assert (keys[:, 0] == keys[:, 1]).any()


def test_pieces_cover_each_choice_once() -> None:
    masks = piece_masks(6, 4)
    assert len(masks) == 15 == len(set(masks.tolist()))
    singles = piece_masks(6, 5).tolist()
    assert sum(singles) == 2**64 - 1
    assert {a | b for a, b in itertools.combinations(singles, 2)} == set(masks.tolist())


def test_hashes_are_read_as_hexadecimal() -> None:
    assert parse_hashes(pa.array(["00000000000000ff", "8000000000000000"])).tolist() == [255, 2**63]
    with pytest.raises(ValueError, match="16 hexadecimal digits"):
        parse_hashes(pa.array(["ff"]))
