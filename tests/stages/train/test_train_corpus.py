"""Sources of training: what is found, how it is counted, and which bytes are a sample's."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pytest

from pipeline.errors import TransientError, UserError
from stages import shards
from stages.train import index, reading
from stages.train.corpus import Corpora, open_corpora
from stages.train.reading import Reader, Samples, Span
from tests.stages.shards.shard_rows import dropped, kept, table, write
from tests.stages.train.s3_traffic import traffic
from tests.support.s3 import s3_server

SIZES = (5, 4, 6)
KEYS = [f"{shard:05d}{at}" for shard, size in enumerate(SIZES) for at in range(size)]


def make_run(folder: Path, idx: bool = False, sizes: tuple[int, ...] = SIZES) -> Path:
    """A run's folder as far as a trainer looks: shards/manifest.json and shards/KEY."""
    home = folder / "shards" / "KEY"
    home.mkdir(parents=True)
    facts = []
    for shard, size in enumerate(sizes):
        rows = [kept(10 * shard + at, shard=shard, index=at) for at in range(size)]
        facts.append(vars(write(home, table([*rows, dropped(90, "download:timeout")]), shard=shard, total=len(sizes), samples=10, idx=idx)))
    for name, value in shards.finish(facts, "test").items():
        (home / name).write_text(json.dumps(value))
    (folder / "shards" / "manifest.json").write_text(json.dumps(shards.manifest("KEY", facts)))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


def opened(source: Any, tmp_path: Path, **more: Any) -> Corpora:
    return open_corpora([source], index_root=str(tmp_path / "index"), **more)


def keys(corpora: Corpora) -> list[str]:
    found = Reader(corpora, 4).read(np.arange(corpora.n))
    return [found[at]["__key__"] for at in range(corpora.n)]


@pytest.mark.parametrize("form", ["", "/shards", "/shards/KEY", "/shards/KEY/*.tar", "/shards/KEY/{00000..00002}.tar"])
def test_every_way_to_name_a_run_s_shards_gives_the_same_samples(run: Path, tmp_path: Path, form: str) -> None:
    corpora = opened(f"{run}{form}", tmp_path)
    assert (corpora.sizes, corpora.n) == ((SIZES,), sum(SIZES))
    assert keys(corpora) == KEYS
    assert [sample["key"] for sample in Samples(corpora)] == KEYS
    assert corpora.fingerprint == opened(str(run), tmp_path).fingerprint


def test_a_list_is_one_corpus_and_several_sources_follow_one_another(run: Path, tmp_path: Path) -> None:
    tars = sorted(map(str, run.glob("shards/KEY/*.tar")))
    corpora = open_corpora([tars[:1], tars[1:]], index_root=str(tmp_path))
    assert corpora.sizes == (SIZES[:1], SIZES[1:])
    shard, place = corpora.locate(np.asarray([0, 4, 5, 14]))
    assert (shard.tolist(), place.tolist()) == ([0, 0, 1, 2], [0, 4, 0, 5])


def test_an_img2dataset_folder_is_counted_by_its_statistics(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "img2dataset"
    shutil.copytree(run / "shards" / "KEY", folder)
    (folder / "sizes.json").unlink()
    corpora = opened(str(folder), tmp_path)
    assert corpora.sizes == (SIZES,)
    assert not (tmp_path / "index").exists()  # nothing had to be read
    assert keys(corpora) == KEYS


def test_plain_tars_are_counted_once(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for tar in run.glob("shards/KEY/*.tar"):
        shutil.copy2(tar, tmp_path)
    assert opened(str(tmp_path), tmp_path).sizes == (SIZES,)
    monkeypatch.setattr(index, "scan", None)
    again = opened(str(tmp_path), tmp_path)
    assert keys(again) == KEYS
    assert not list((tmp_path / "index").glob(".*.lock"))


def test_the_fingerprint_follows_the_shards_wherever_they_lie(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "copy")
    assert opened(str(tmp_path / "copy"), tmp_path).fingerprint == opened(str(run), tmp_path).fingerprint
    other = make_run(tmp_path / "other", sizes=(5, 4, 7))
    assert opened(str(other), tmp_path).fingerprint != opened(str(run), tmp_path).fingerprint


def swapped(path: Path, size: int) -> None:
    """A tar of `size` samples whose captions have changed places: the same names and sizes."""
    with tarfile.open(path, "w") as archive:
        for at in range(size):
            add(archive, f"{at}.jpg", b"j" * 30_000)
            add(archive, f"{at}.txt", f"caption {(at + 1) % size:02d}".encode())


@pytest.mark.parametrize("size", [5, 60])  # read whole, and in pieces
def test_other_samples_of_the_same_size_have_another_fingerprint(tmp_path: Path, size: int) -> None:
    (tmp_path / "a").mkdir()
    with tarfile.open(tmp_path / "a/0.tar", "w") as archive:
        for at in range(size):
            add(archive, f"{at}.jpg", b"j" * 30_000)
            add(archive, f"{at}.txt", f"caption {at:02d}".encode())
    before = opened(str(tmp_path / "a"), tmp_path).fingerprint
    shutil.copytree(tmp_path / "a", tmp_path / "copy", copy_function=shutil.copyfile)
    os.utime(tmp_path / "copy/0.tar", (1, 1))
    assert opened(str(tmp_path / "copy"), tmp_path).fingerprint == before
    memory = fsspec.filesystem("memory")
    memory.pipe(f"/{tmp_path.name}/0.tar", (tmp_path / "a/0.tar").read_bytes())
    assert opened(f"memory://{tmp_path.name}", tmp_path).fingerprint == before
    swapped(tmp_path / "a/0.tar", size)
    assert (tmp_path / "a/0.tar").stat().st_size == (tmp_path / "copy/0.tar").stat().st_size
    assert opened(str(tmp_path / "a"), tmp_path).fingerprint != before


def test_a_run_that_wrote_other_shards_of_the_same_size_has_another_fingerprint(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    before = opened(str(run), tmp_path).fingerprint
    path = run / "shards/manifest.json"
    told = json.loads(path.read_text())
    told["shards"][1]["sha256"] = "0" * 64
    path.write_text(json.dumps(told))
    assert opened(str(run), tmp_path).fingerprint != before


def test_an_object_store_s_hashes_tell_content_without_a_read(tmp_path: Path) -> None:
    s3fs = pytest.importorskip("s3fs")
    swapped(tmp_path / "0.tar", 5)
    with s3_server("data") as options:
        fs = s3fs.S3FileSystem(**options)
        fs.put(str(tmp_path / "0.tar"), "data/a/0.tar")
        corpora = opened("s3://data/a", tmp_path, storage_options=options)
        with traffic() as counted:
            before = corpora.fingerprint
        assert counted.requests == 0
        body = bytearray((tmp_path / "0.tar").read_bytes())
        body[600] ^= 1
        fs.pipe("data/a/0.tar", bytes(body))
        fs.invalidate_cache()
        assert opened("s3://data/a", tmp_path, storage_options=options).fingerprint != before


def test_dali_s_index_says_the_same_as_the_headers(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", idx=True)
    for tar in run.glob("shards/KEY/*.tar"):
        told = index.dali(tar.with_suffix(".idx").read_text(), tar.stat().st_size)
        assert told is not None
        assert told.tolist() == index.scan(str(tar), {}).bounds.tolist()


@pytest.mark.parametrize(
    "text", ["", "v9 1\njpg 512 3 a.jpg", "v1.2 1\njpg 512 3 a b.jpg", "v1.2 1\njpg 512 99999 a.jpg", "v1.2 1\njpg x 3 a"]
)
def test_an_index_that_does_not_fit_is_not_used(text: str) -> None:
    assert index.dali(text, 2048) is None


def add(archive: tarfile.TarFile, name: str, body: bytes = b"x") -> None:
    info = tarfile.TarInfo(name)
    info.size = len(body)
    archive.addfile(info, io.BytesIO(body))


def test_foreign_tars_have_webdataset_s_samples(tmp_path: Path) -> None:
    """Folders, long names, metadata members, odd files: the index and webdataset agree on what a sample is."""
    path = tmp_path / "foreign.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("folder/"))
        add(archive, "__meta__/x.json")
        for name in ("a", "f/b", "f/" + "long" * 60, "é", "c"):
            add(archive, f"{name}.jpg", b"j" * 700)
            add(archive, f"{name}.seg.PNG", b"")
            if name == "f/b":
                add(archive, "no_suffix")
            add(archive, f"{name}.txt", name.encode())
    corpora = opened(str(path), tmp_path)
    with path.open("rb") as handle:
        expected = [{name: value for name, value in sample.items() if name != "__url__"} for sample in reading.parsed("", handle)]
    assert len(expected) == corpora.n == 5
    for chunk in (1, 2, 32):
        found = Reader(corpora, chunk).read(np.arange(5))
        assert [{name: value for name, value in found[at].items() if name != "__url__"} for at in range(5)] == expected


def test_a_tar_that_ends_too_early_has_the_samples_that_are_whole(run: Path, tmp_path: Path) -> None:
    whole = (run / "shards/KEY/00002.tar").read_bytes()
    bounds = index.scan(str(run / "shards/KEY/00002.tar"), {}).bounds
    with tarfile.open(run / "shards/KEY/00002.tar") as archive:
        in_json = archive.getmembers()[1].offset_data + 5
    for cut, left in ((int(bounds[3]), 3), (int(bounds[3]) + 600, 3), (int(bounds[1]) - 1, 1), (in_json, 0), (0, 0)):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        assert len(index.scan(str(tmp_path / "cut.tar"), {}).bounds) - 1 == left
        if left:
            found = Reader(opened(str(tmp_path / "cut.tar"), tmp_path)).read(np.arange(left))
            assert [found[at]["__key__"] for at in range(left)] == KEYS[-6:][:left]
            assert all(found[at]["txt"] for at in range(left))


def spoil(tar: bytes, how: str) -> bytes:
    """A tar's bytes, damaged; the second of its samples begins at byte 6,656."""
    at = 6656
    return {
        "cut": tar[: at + 100],
        "cut within a file": tar[: at + 1000],
        "no end mark": tar.rstrip(b"\0") + bytes(-len(tar.rstrip(b"\0")) % 512),
        "empty": b"",
        "no tar": b"hello" * 1000,
        "overwritten": tar[:at] + b"\xff" * (len(tar) - at),
        "a hole": tar[:at] + bytes(4096) + tar[at + 4096 :],
    }[how]


@pytest.mark.parametrize("how", ["cut", "cut within a file", "no end mark", "empty", "no tar", "overwritten", "a hole"])
def test_a_shard_that_does_not_end_where_a_tar_ends_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(2):
        with tarfile.open(folder / f"{number}.tar", "w") as archive:
            for key in ("a", "b"):
                add(archive, f"{key}.jpg", b"j" * 5000)
                add(archive, f"{key}.txt", key.encode())
    assert opened(str(folder), tmp_path).n == 4
    assert not caplog.text
    (folder / "0.tar").write_bytes(spoil((folder / "0.tar").read_bytes(), how))
    for _ in range(2):  # by a scan, and by what was kept of it
        caplog.clear()
        corpora = opened(str(folder), tmp_path)
        assert corpora.shards[0][0].fault
        assert not corpora.shards[1][0].fault
        assert f"{folder}/0.tar: {corpora.shards[0][0].fault}" in caplog.text
        assert "1.tar" not in caplog.text
        assert len(caplog.records) == 1
    read = Samples(corpora)
    assert len(list(read)) == corpora.n
    assert read.missing is None, "nothing says how many there were"
    assert read.damaged == {f"{folder}/0.tar": corpora.shards[0][0].fault}


def test_evaluation_counts_what_is_said_of_a_shard_and_is_not_there(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for key in ("a", "b"):
            add(archive, f"{key}.jpg", b"j" * 5000)
    (tmp_path / "sizes.json").write_text(json.dumps({"0.tar": 5}))
    read = Samples(opened(str(tmp_path), tmp_path))
    assert [sample["key"] for sample in read] == ["a", "b"]
    assert read.missing == 3
    assert list(read.damaged) == [f"{tmp_path}/0.tar"]
    assert "2 samples, not the 5" in read.damaged[f"{tmp_path}/0.tar"]


def test_shards_of_which_nothing_is_left_say_why(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"hello" * 1000)
    with pytest.raises(UserError, match=r"its 1 shards hold no samples; .*0\.tar: .*"):
        opened(str(tmp_path), tmp_path)


def test_a_damaged_sample_takes_no_neighbour_along(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "shards" / "KEY", tmp_path / "run")
    opened(str(tmp_path / "run"), tmp_path).bounds(0)
    path = tmp_path / "run" / "00000.tar"
    corpora = opened(str(tmp_path / "run"), tmp_path)
    at = int(corpora.bounds(0)[2])
    body = bytearray(path.read_bytes())
    body[at : at + 512] = b"\xff" * 512  # the header of sample 2's picture
    with path.open("r+b") as handle:
        handle.write(body)
    reader = Reader(corpora)
    data = reader.fetch(Span(0, 0, 5))
    assert {0, 1, 3, 4} <= set(reader.parse(Span(0, 0, 5), data))


@pytest.mark.parametrize("source", ["nowhere", "nowhere/*.tar", "nowhere/{0..2}.tar", "nowhere/1.tar", "unknown://x", "."])
def test_a_source_that_names_nothing_is_the_users_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"train\.data"):
        opened(source, tmp_path)


def test_a_run_with_missing_shards_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "shards/KEY/00001.tar").unlink()
    with pytest.raises(UserError, match=r"00001\.tar"):
        opened(str(run), tmp_path)


class Flaky:
    """A file system that fails `faults` times."""

    def __init__(self, faults: list[Any]) -> None:
        self.faults = faults

    def cat_file(self, path: str, start: int, end: int) -> bytes:
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, Exception):
            raise fault
        data = Path(path).read_bytes()[start:end]
        return data[:10] if fault == "short" else data


def test_faults_of_the_storage_are_retried_with_a_bound(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flaky: list[Any] = []
    monkeypatch.setattr(reading, "FIRST_WAIT_S", 0.001)
    corpora = open_corpora([str(run)], index_root=str(tmp_path))
    for shard in range(3):
        corpora.bounds(shard)
    monkeypatch.setattr(
        "stages.train.reading.fsspec", SimpleNamespace(core=SimpleNamespace(url_to_fs=lambda url, **_: (Flaky(flaky), url)))
    )
    flaky += [TimeoutError("slow"), "short", OSError("reset")]
    assert keys(corpora) == KEYS
    flaky += [TimeoutError("slow")] * 5
    with pytest.raises(TransientError, match="5 tries"):
        Reader(corpora).read(np.asarray([0]))
    flaky[:] = [FileNotFoundError("gone")]
    with pytest.raises(UserError, match="is gone"):
        Reader(corpora).read(np.asarray([0]))


def test_evaluation_never_takes_a_failed_read_for_the_end_of_a_shard(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 10_000:
                raise ConnectionResetError("reset")
            return super().read(size)

    corpora = opened(str(run), tmp_path)
    body = Broken((run / "shards/KEY/00000.tar").read_bytes())
    monkeypatch.setattr(reading, "opened", lambda *_: contextlib.nullcontext(body))
    with pytest.raises(TransientError, match="reset"):
        list(Samples(corpora))


def test_an_unreachable_store_is_told_in_one_line(tmp_path: Path) -> None:
    s3fs = pytest.importorskip("s3fs")
    options = {"key": "a", "secret": "b", "endpoint_url": "http://127.0.0.1:9", "config_kwargs": {"retries": {"max_attempts": 0}}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3fs.S3FileSystem, "retries", 1)
        for source in ("s3://data/run", "s3://data/*.tar", "s3://data/1.tar"):
            with pytest.raises((UserError, TransientError), match="s3://data"):
                opened(source, tmp_path, storage_options=options)


@pytest.mark.parametrize("idx", [False, True])
def test_in_a_bucket(tmp_path: Path, idx: bool) -> None:
    s3fs = pytest.importorskip("s3fs")
    make_run(tmp_path / "run", idx=idx)
    with s3_server("data") as options:
        s3fs.S3FileSystem(**options).put(f"{tmp_path}/run", "data/run", recursive=True)
        with traffic() as counted:
            corpora = opened("s3://data/run", tmp_path, storage_options=options)
        assert counted.requests <= 6  # the manifest, and one listing
        assert corpora.shards[0][0].url.startswith("s3://data/run/shards/KEY/")
        with traffic() as counted:
            assert keys(corpora) == KEYS
        first = counted.requests
        with traffic() as counted:
            assert keys(corpora) == KEYS
        assert counted.requests == counted.gets == 5 < first  # chunks of 4: 2, 1 and 2; the indices are kept
        assert counted.bytes == sum(int(corpora.bounds(at)[-1]) for at in range(3))
        assert [sample["key"] for sample in Samples(corpora)] == KEYS
        assert opened("s3://data/run/shards/KEY/*.tar", tmp_path, storage_options=options).fingerprint == corpora.fingerprint
        in_bucket = open_corpora(["s3://data/run"], options, "s3://data/index", options)
        assert keys(in_bucket) == KEYS
        assert len(s3fs.S3FileSystem(**options).ls("data/index", refresh=True)) == 3
        assert options["key"] not in repr(corpora)
