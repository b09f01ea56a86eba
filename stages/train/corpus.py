"""What is trained on: the shards that a source names, in one order, and how many samples each has.

A source is a run's folder, a folder of shards (ours, img2dataset's, webdataset's), or tars by name, glob or brace list; local or
at any fsspec URL. The shards' numbers of samples come from what lies beside them, and are counted only where nothing does.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import fsspec
import numpy as np

from pipeline.errors import ShardmillError, TransientError, UserError
from pipeline.storage import Store
from stages.train import content
from stages.train.index import Indices

Options = Mapping[str, Any]
log = logging.getLogger("shardmill")
NAMED = 20  # damaged shards that a message names; the rest are counted
MARKS = ("ETag", "etag", "md5Hash", "crc32c", "mtime", "LastModified", "updated")


@dataclass(frozen=True)
class Shard:
    """A tar. `samples` -1: not known yet. `mark` changes when the tar's bytes do: its sha256, ETag or time of change.

    `content`: what its bytes alone decide (see `stages.train.content`); "" where neither manifest nor storage tell it. `fault`: how it is
    damaged, as far as an index had to be made to count its samples.
    """

    url: str
    samples: int
    bytes: int
    mark: str
    content: str = ""
    fault: str = ""

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Corpora:
    """Corpora one after the other: sample ids are 0..n-1 in the order of corpora, shards and samples.

    `options`: storage options for fsspec, of each corpus.
    """

    corpora: tuple[tuple[Shard, ...], ...]
    options: tuple[Options, ...] = field(repr=False)  # may hold secrets
    indices: Indices = field(default_factory=Indices, repr=False)

    @property
    def sizes(self) -> tuple[tuple[int, ...], ...]:
        """Samples of each shard, by corpus, as `Order` wants them."""
        return tuple(tuple(shard.samples for shard in corpus) for corpus in self.corpora)

    @property
    def n(self) -> int:
        return int(self.ends[-1])

    @cached_property
    def shards(self) -> tuple[tuple[Shard, Options], ...]:
        """All shards in order, each with its storage options."""
        return tuple((shard, options) for corpus, options in zip(self.corpora, self.options, strict=True) for shard in corpus)

    @cached_property
    def ends(self) -> np.ndarray:
        """int64: the id that follows each shard's last one."""
        return np.cumsum([shard.samples for shard, _ in self.shards], dtype=np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits of all shards' names, bytes, numbers of samples and contents: the same ids mean the same samples.

        Reads some bytes of each shard whose content neither a manifest nor the storage tells. Raises TransientError where it cannot.
        """
        with ThreadPoolExecutor(16) as pool:
            contents = iter(list(pool.map(lambda one: one[0].content or content.read(one[0].url, one[0].bytes, one[1]), self.shards)))
        told = [[[shard.name, shard.bytes, shard.samples, next(contents)] for shard in corpus] for corpus in self.corpora]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]

    def locate(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The shard (a place in `shards`) of each id, and its place in the shard; both int64."""
        shard = np.searchsorted(self.ends, ids, "right")
        before = np.concatenate([[0], self.ends])[shard]
        return shard, np.asarray(ids) - before

    def bounds(self, shard: int) -> np.ndarray:
        """Where the samples of that shard begin: see `Index`."""
        found, options = self.shards[shard]
        return self.indices.of(found.url, found.bytes, found.mark, options).bounds


def open_corpora(
    sources: Sequence[str | Sequence[str]],
    storage_options: Options | Sequence[Options] | None = None,
    index_root: str | None = None,
    index_options: Options | None = None,
    key: str = "train.data",
    quiet: bool = False,
) -> Corpora:
    """The corpora that the sources name, one each (a list within the list is one corpus of several names).

    `storage_options`: fsspec's, for all sources or one for each. `index_root`: the folder (path or URL) that keeps the indices of
    shards without one (default: the user's cache). `key`: the option that names the sources, for messages. `quiet`: of damaged
    shards another process warns. Raises UserError for a source that names nothing, or has no samples.
    """
    given = [storage_options or {}] * len(sources) if storage_options is None or isinstance(storage_options, Mapping) else storage_options
    options = tuple(dict(one) for one in given)
    indices = Indices(index_root, index_options or {}) if index_root else Indices(options=index_options or {})
    corpora = []
    for source, one in zip(sources, options, strict=True):
        names = [source] if isinstance(source, str) else source
        shards = _counted([shard for name in names for shard in _found(name, one, key)], one, indices)
        if not sum(shard.samples for shard in shards):
            why = f"; {damaged}" if (damaged := _damaged(shards)) else ""
            raise UserError(f"{key}: {source}: its {len(shards)} shards hold no samples{why}")
        if not quiet and (damaged := _damaged(shards)):
            log.warning("%s: damaged shards, of which only what stands before the damage is there: %s", key, damaged)
        corpora.append(tuple(shards))
    if not corpora:
        raise UserError(f"{key}: empty; name a run's folder, a folder of shards or tars")
    return Corpora(tuple(corpora), options, indices)


def _damaged(shards: list[Shard]) -> str:
    """Names the first of those that are, each with its fault, and counts the rest."""
    found = [f"{shard.url}: {shard.fault}" for shard in shards if shard.fault]
    return "; ".join([*found[:NAMED], *([f"and {len(found) - NAMED} more"] if len(found) > NAMED else [])])


def _found(source: str, options: Options, key: str) -> list[Shard]:
    """The shards of one name."""
    from braceexpand import braceexpand

    try:
        if any(mark in source for mark in "*?["):
            fs, path = fsspec.core.url_to_fs(source, **options)
            found = [info for name in _expanded(path) for info in fs.glob(name, detail=True).values()]
            shards = [_shard(fs, info) for info in sorted(found, key=lambda info: str(info["name"]))]
        elif "{" in source:
            shards = _named(list(braceexpand(source)), options)
        elif source.endswith(".tar"):
            shards = _named([source], options)
        else:
            fsspec.core.url_to_fs(source, **options)  # raises here what is told below by its key
            shards = _folder(Store(source, dict(options)), key)
    except (OSError, ValueError, ImportError) as err:
        said = " ".join(str(err).split())[:300]
        raise UserError(f"{key}: {source}: {type(err).__name__}: {said}; give a run's folder, a folder of shards or tars") from err
    except ShardmillError:
        raise
    except Exception as err:  # a client library's own: no credentials, no endpoint
        said = " ".join(str(err).split())[:300]
        raise TransientError(f"{key}: {source}: the storage refuses it: {type(err).__name__}: {said}; check endpoint and keys") from err
    if not shards:
        raise UserError(f"{key}: {source}: no shards there (shards/manifest.json, or tars)")
    return shards


def _expanded(path: str) -> list[str]:
    from braceexpand import braceexpand

    return list(braceexpand(path)) if "{" in path else [path]


def _named(urls: list[str], options: Options) -> list[Shard]:
    """Tars by their names, by one listing of each folder. Raises FileNotFoundError for one that is not there."""
    listed: dict[str, dict[str, Any]] = {}
    shards = []
    for url in urls:
        fs, path = fsspec.core.url_to_fs(url, **options)
        folder = path.rpartition("/")[0]
        if folder not in listed:
            listed[folder] = {str(info["name"]): info for info in fs.ls(folder, detail=True)}
        if path not in listed[folder]:
            raise FileNotFoundError(f"{url} is not there")
        shards.append(_shard(fs, listed[folder][path]))
    return shards


def _folder(store: Store, key: str) -> list[Shard]:
    """A run's folder, the folder `shards` of one, or a folder with tars in it or (where there are none) below it."""
    for home, at in ((store.sub("shards"), "shards/manifest.json"), (store, "manifest.json")):
        if store.exists(at) and isinstance(told := store.read_json(at), dict) and "shards" in told:
            return _manifest(home, told, key)
    found = store.fs.find(store.full(""), detail=True)
    tars = [info for name, info in sorted(found.items()) if name.endswith(".tar") and not name.rpartition("/")[2].startswith((".", "_"))]
    direct = [info for info in tars if str(info["name"]).rpartition("/")[0] == store.full("")]
    return [_shard(store.fs, info) for info in direct or tars]


def _manifest(home: Store, told: dict[str, Any], key: str) -> list[Shard]:
    """The current shards of a run: they lie in the folder of the manifest's key (or, copied elsewhere, beside the manifest)."""
    inner = home.sub(str(told["key"]))
    names = set(inner.names("", ".tar"))
    if not names:
        inner, names = home, set(home.names("", ".tar"))
    gone = [shard["name"] for shard in told["shards"] if shard["name"] not in names]
    if gone:
        raise UserError(f"{key}: {home.url}: {len(gone)} shards of its manifest are not there, the first is {gone[0]}; finish the run")
    return [
        Shard(inner.address(shard["name"]), shard["samples"], shard["bytes"], shard["sha256"], content.by_sha256(shard["sha256"]))
        for shard in told["shards"]
    ]


def _shard(fs: Any, info: Mapping[str, Any]) -> Shard:
    local = "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))
    name = str(info["name"])
    mark = next((str(info[key]) for key in MARKS if info.get(key) is not None), "")
    return Shard(name if local else str(fs.unstrip_protocol(name)), -1, int(info["size"]), mark, content.told(info))


def _counted(shards: list[Shard], options: Options, indices: Indices) -> list[Shard]:
    """With their numbers of samples: of sizes.json, of _stats.json (img2dataset's successes), or counted.

    And with the contents that a run's manifest tells of them, so that a run's shards are the same however they are named.
    """
    sizes: dict[str, dict[str, Any]] = {}
    contents: dict[str, dict[tuple[str, int], str]] = {}
    for shard in shards:
        folder = shard.url.rpartition("/")[0]
        if shard.samples < 0 and folder not in sizes:
            told = _json(f"{folder}/sizes.json", options)
            sizes[folder] = told if isinstance(told, dict) else {}
            home, _, key = folder.rpartition("/")
            contents[folder] = {} if home.endswith("/") else content.of_manifest(_json(f"{home}/manifest.json", options), key)

    def count(shard: Shard) -> Shard:
        if shard.samples >= 0:
            return shard
        folder = shard.url.rpartition("/")[0]
        said, fault = sizes[folder].get(shard.name), ""
        if not isinstance(said, int):
            stats = _json(f"{shard.url.removesuffix('.tar')}_stats.json", options)
            said = stats.get("successes") if isinstance(stats, dict) else None
        if not isinstance(said, int):
            found = indices.of(shard.url, shard.bytes, shard.mark, options)
            said, fault = len(found.bounds) - 1, found.fault
        return replace(shard, samples=said, fault=fault, content=contents[folder].get((shard.name, shard.bytes), shard.content))

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(count, shards))


def _json(url: str, options: Options) -> Any:
    fs, path = fsspec.core.url_to_fs(url, **options)
    try:
        return json.loads(fs.cat_file(path))
    except (FileNotFoundError, PermissionError, ValueError):  # S3 forbids what is not there to those who may not list
        return None
