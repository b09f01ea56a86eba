"""Opt-out lists: URLs, hosts and content hashes that must not be fetched, or not be kept.

An entry takes 8 bytes (its xxh3_64), so that registries of many millions fit into a worker; with 100 million entries a
wrong match has a chance of 1 in 180 thousand million a look-up.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import fsspec
import numpy as np
import xxhash

from stages.download.reasons import FetchError
from stages.download.urls import Target, parse

HASH_DIGITS = {"md5": 32, "sha1": 40, "sha256": 64, "sha512": 128}
_HASH = re.compile(r"(?:(md5|sha1|sha256|sha512):)?([0-9a-fA-F]{32,128})")


def kind_of(entry: str) -> str:
    """`url`, `hash` or `host`: what an entry of a list is, as its form shows. Raises ValueError for none of them."""
    if "://" in entry:
        return "url"
    if found := _HASH.fullmatch(entry):
        if len(found[2]) in HASH_DIGITS.values() and (not found[1] or HASH_DIGITS[found[1]] == len(found[2])):
            return "hash"
    elif re.fullmatch(r"(?:\*\.)?[^\s/:@]+", entry):
        return "host"
    raise ValueError(f"{entry[:80]!r} is neither a URL, nor a host, nor a hash (sha256:HEX, md5:HEX …)")


def normal(entry: str) -> str:
    """The entry in the form that is looked up: `u:` + URL, `h:` + host, `x:` + hex digits. Raises ValueError."""
    kind = kind_of(entry)
    if kind == "url":
        try:
            return f"u:{parse(entry).url}"
        except FetchError as err:
            raise ValueError(f"{entry[:80]!r} is no URL: {err.detail}") from None
    if kind == "hash":
        return f"x:{entry.rpartition(':')[2].lower()}"
    try:
        return "h:" + parse(f"http://{entry.removeprefix('*.')}/").host
    except FetchError as err:
        raise ValueError(f"{entry[:80]!r} is no host: {err.detail}") from None


class OptOut:
    """Looks things up in the lists. `entries`: inline ones; `files`: fsspec paths of text files, one entry a line, remarks after `#`
    at the beginning of a line.

    A host stands for itself and all names under it. Raises ValueError (with file and line) for an entry that is none.
    """

    def __init__(self, entries: Sequence[str] = (), files: Sequence[str] = ()) -> None:
        self.algorithms: set[str] = set()
        parts = [self._hashes(map(normal, entries)), *(self._hashes(_lines(path)) for path in files)]
        self.hashes = np.unique(np.concatenate(parts))

    def _hashes(self, entries: Iterable[str]) -> np.ndarray:
        return np.fromiter(map(self._hash, entries), dtype=np.uint64)

    def _hash(self, entry: str) -> int:
        if entry.startswith("x:"):
            self.algorithms.update(name for name, digits in HASH_DIGITS.items() if digits == len(entry) - 2)
        return int(xxhash.xxh3_64_intdigest(entry.encode()))

    def refuse(self, target: Target) -> None:
        """Raises FetchError(optout) where the URL or its host is listed."""
        if not self.hashes.size:
            return
        parts = target.host.split(".")
        for i in range(len(parts)):
            if self._holds(f"h:{'.'.join(parts[i:])}"):
                raise FetchError("optout", "the host is on an opt-out list")
        if self._holds(f"u:{target.url}"):
            raise FetchError("optout", "the URL is on an opt-out list")

    def refuse_body(self, body: bytes) -> None:
        """Raises FetchError(optout) where one of the content's hashes is listed."""
        if any(self._holds(f"x:{hashlib.new(name, body, usedforsecurity=False).hexdigest()}") for name in self.algorithms):
            raise FetchError("optout", "the content's hash is on an opt-out list")

    def refuse_file(self, path: Path) -> None:
        """The same of a file's content, which is not held in memory."""
        for name in self.algorithms:
            with path.open("rb") as file:
                if self._holds(f"x:{hashlib.file_digest(file, name).hexdigest()}"):
                    raise FetchError("optout", "the content's hash is on an opt-out list")

    def _holds(self, text: str) -> bool:
        value = np.uint64(xxhash.xxh3_64_intdigest(text.encode()))
        at = int(np.searchsorted(self.hashes, value))
        return at < self.hashes.size and bool(self.hashes[at] == value)


def _lines(path: str) -> Iterator[str]:
    with fsspec.open(path, "rt", encoding="utf-8", compression="infer") as file:
        for number, line in enumerate(file, 1):
            entry = line.strip()
            if not entry or entry.startswith("#"):
                continue
            try:
                yield normal(entry)
            except ValueError as err:
                raise ValueError(f"{path}, line {number}: {err}") from None
