"""Samples out of shards by ranges of bytes: whichever are wanted, at one request for neighbours.

webdataset parses what comes, so that a sample here is what it is to every other reader; its splitters and shuffle buffers, which
make the order depend on the number of processes, are not used.
"""

from __future__ import annotations

import io
import json
import logging
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import fsspec
import numpy as np

from pipeline.errors import TransientError, UserError
from stages.train.corpus import Corpora
from stages.train.index import DAMAGED, opened

Sample = dict[str, Any]
"""As webdataset has it: `__key__`, `__url__`, and bytes by lower-case suffix (`jpg`, `txt`, `json`; of a clip `000.jpg` …)."""

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "avif", "bmp", "tif", "tiff")
TRIES = 5  # of one request
FIRST_WAIT_S = 0.2  # doubled with each try
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Span:
    """Neighbouring samples `first`..`last` - 1 of one shard (a place in `corpora.shards`)."""

    shard: int
    first: int
    last: int


class Reader:
    """Reads samples of `corpora` by their ids; `chunk` is the longest run of samples that one request fetches."""

    def __init__(self, corpora: Corpora, chunk: int = 32) -> None:
        self.corpora, self.chunk = corpora, chunk
        self._bounds = lru_cache(maxsize=256)(corpora.bounds)

    def spans(self, ids: np.ndarray) -> list[Span]:
        """What to read for `ids`: for each chunk that holds any of them its part from the first to the last."""
        if not len(ids):
            return []
        shard, place = self.corpora.locate(np.sort(ids))
        starts = np.flatnonzero(np.diff(shard, prepend=-1) | np.diff(place // self.chunk, prepend=-1))
        ends = np.append(starts[1:], len(shard)) - 1
        return [Span(int(shard[a]), int(place[a]), int(place[b]) + 1) for a, b in zip(starts, ends, strict=True)]

    def ids(self, span: Span) -> range:
        """The ids of a span's samples."""
        before = int(self.corpora.ends[span.shard]) - self.corpora.shards[span.shard][0].samples
        return range(before + span.first, before + span.last)

    def fetch(self, span: Span) -> bytes:
        """The bytes of a span: from its first sample to its last, or to the tar's end. Threads may call this.

        Raises UserError where the shard is gone, TransientError where the storage fails again and again.
        """
        bounds = self._bounds(span.shard)
        known = len(bounds) - 1
        begin, end = (int(bounds[min(at, known)]) for at in (span.first, span.last))
        return self._ranged(span.shard, begin, end) if begin < end else b""

    def parse(self, span: Span, data: bytes) -> dict[int, Sample]:
        """Id -> sample of what `fetch` gave. Samples that are not there, or that webdataset makes nothing of, are missing."""
        samples = list(parsed(self.corpora.shards[span.shard][0].url, io.BytesIO(data))) if data else []
        ids = self.ids(span)
        if len(samples) == len(ids):
            return dict(zip(ids, samples, strict=True))
        return dict(self._one_by_one(span, data))

    def read(self, ids: np.ndarray) -> dict[int, Sample]:
        """Id -> sample, with whatever else lies between them."""
        out: dict[int, Sample] = {}
        for span in self.spans(ids):
            out |= self.parse(span, self.fetch(span))
        return out

    def _one_by_one(self, span: Span, data: bytes) -> Iterator[tuple[int, Sample]]:
        """A damaged sample must not take its neighbours along: each is parsed by its own bytes."""
        bounds = self._bounds(span.shard)
        for id_, at in zip(self.ids(span), range(span.first, min(span.last, len(bounds) - 1)), strict=False):
            piece = data[int(bounds[at] - bounds[span.first]) : int(bounds[at + 1] - bounds[span.first])]
            samples = list(parsed(self.corpora.shards[span.shard][0].url, io.BytesIO(piece))) if piece else []
            if len(samples) == 1:
                yield id_, samples[0]

    def _ranged(self, shard: int, begin: int, end: int) -> bytes:
        found, options = self.corpora.shards[shard]
        fs, path = fsspec.core.url_to_fs(found.url, **options)
        for attempt in range(1, TRIES + 1):
            try:
                data = bytes(fs.cat_file(path, start=begin, end=end))
                if len(data) == end - begin:
                    return data
                fault = f"{len(data)} of {end - begin} bytes came"
            except FileNotFoundError as err:
                raise UserError(f"{found.url} is gone; shards must stay while they are trained on (was the run cleaned?)") from err
            except PermissionError as err:
                raise UserError(f"{found.url}: not allowed to read it: {err}") from err
            except Exception as err:  # noqa: BLE001 - each client library has errors of its own for a network's faults
                fault = f"{type(err).__name__}: {' '.join(str(err).split())[:200]}"
            if attempt < TRIES:
                time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1) * random.uniform(0.5, 1))
        raise TransientError(f"{found.url}: bytes {begin} to {end} not read in {TRIES} tries: {fault}; repeat the command to go on")


def parsed(url: str, stream: Any) -> Iterator[Sample]:
    """The samples of a tar, or of whole members of one, by webdataset. A damaged tar has those that stand before the damage."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    def note(err: Exception) -> bool:
        if not isinstance(err, DAMAGED):
            raise err  # the storage's fault is none of the tar's
        log.debug("%s: %s: %s", url, type(err).__name__, err.args[:1])
        return True  # go on

    yield from group_by_keys(tar_file_expander([{"url": url, "stream": stream}], handler=note), handler=note)


class Samples:
    """Every sample once, in order, for evaluation; shards are read from front to back.

    Each has `key` (str), `shard` (its URL), `image` (encoded bytes, None without one), `frames` (encoded, of a video clip),
    `text` (`txt`, None without one), `json` (dict, {} without one) and `members` (bytes by suffix). Raises UserError where a shard
    is gone, TransientError where the storage fails. Once they were gone through, `damaged` is what is wrong with a shard, by its
    URL, and `missing` how many are said to be there and are not: None where a damaged shard has nothing that says how many it had.
    """

    def __init__(self, corpora: Corpora) -> None:
        self.corpora = corpora
        self.damaged = {shard.url: shard.fault for shard, _ in corpora.shards if shard.fault}
        self.missing = None if self.damaged else 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for shard, options in self.corpora.shards:
            count = 0
            for sample in _streamed(shard.url, options):
                count += 1
                yield told(sample)
            if count != shard.samples:
                self.missing = None if self.missing is None else self.missing + max(0, shard.samples - count)
                self.damaged[shard.url] = f"{count} samples, not the {shard.samples} that are said of it"
                log.warning("%s: %s", shard.url, self.damaged[shard.url])


def _streamed(url: str, options: Any) -> Iterator[Sample]:
    try:
        with opened(url, options) as handle:
            yield from parsed(url, handle)
    except FileNotFoundError as err:
        raise UserError(f"{url} is gone; shards must stay while they are read (was the run cleaned?)") from err
    except OSError as err:
        raise TransientError(f"{url}: reading it failed: {type(err).__name__}: {err}; repeat the command") from err


def told(sample: Sample) -> dict[str, Any]:
    """A sample as `samples` gives it."""
    members = {name: value for name, value in sample.items() if not name.startswith("__")}
    image, frames = pictures(members)
    text = members.get("txt")
    return {
        **{"key": sample["__key__"], "shard": sample["__url__"], "image": image, "frames": frames, "members": members},
        **{"text": None if text is None else text.decode(errors="replace"), "json": fields(members)},
    }


def pictures(members: dict[str, Any]) -> tuple[Any, list[Any]]:
    """The encoded picture of a sample (None without one), and the frames of a clip (KEY.000.jpg, KEY.001.jpg …) in their order."""
    image = next((members[suffix] for suffix in PICTURES if suffix in members), None)
    numbered = sorted(name for name in members if name.partition(".")[0].isdecimal() and name.partition(".")[2] in PICTURES)
    return image, [members[name] for name in sorted(numbered, key=lambda name: int(name.partition(".")[0]))]


def fields(members: dict[str, Any]) -> dict[str, Any]:
    """The sample's json as a dict; {} where there is none or it is no JSON object."""
    try:
        value = json.loads(members.get("json", b"{}"))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
