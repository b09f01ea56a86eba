"""The loader: the same batches for any number of ranks and workers, from any step on, whatever is wrong with the data."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import TransientError, UserError
from stages.train.augment import Augment
from stages.train.corpus import Corpora, open_corpora
from stages.train.loader import Batch, Loader
from stages.train.order import Order
from stages.train.prepare import Parts, Prepare
from stages.train.reading import Reader
from tests.stages.shards.shard_rows import picture
from tests.stages.train.s3_traffic import traffic
from tests.support.s3 import s3_server

torch = pytest.importorskip("torch")


def tokens(texts: list[str]) -> Any:
    """A text's first characters, so that a test can read it again."""
    return torch.tensor([[ord(char) for char in text[:12].ljust(12)] for text in texts], dtype=torch.int64)


def read(row: Any) -> str:
    return "".join(map(chr, row.tolist())).strip()


def write_tar(path: Path, samples: list[tuple[str, dict[str, bytes]]]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for key, members in samples:
            for suffix, body in members.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(body)
                archive.addfile(info, io.BytesIO(body))


def good(at: int) -> tuple[str, dict[str, bytes]]:
    texts = json.dumps({"captions": [f"a{at}", f"b{at}", f"c{at}"], "alt": f"alt {at}"}).encode()
    return f"{at:05d}", {"jpg": picture(at), "json": texts, "txt": f"text {at}".encode()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 samples in shards of 30, 30, 30 and 10, without any index."""
    folder = tmp_path_factory.mktemp("shards")
    for shard, begin in enumerate(range(0, 100, 30)):
        write_tar(folder / f"{shard}.tar", [good(at) for at in range(begin, min(100, begin + 30))])
    return folder


@pytest.fixture(scope="module")
def corpora(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpora:
    return open_corpora([str(folder)], index_root=str(tmp_path_factory.mktemp("index")))


def order_of(corpora: Corpora, batch: int = 12, **more: Any) -> Order:
    return Order(corpora.sizes, batch, **{"seed": 5, "chunk": 8, "window": 2, **more})


def prepare_of(**more: Any) -> Prepare:
    return Prepare(tokens, **{"image_size": 24, "augment": Augment(scale=(0.5, 1.0), hflip=True), **more})


def taken(corpora: Corpora, steps: list[tuple[int, int, int]], world: int = 1, workers: int = 0, **more: Any) -> list[list[Batch]]:
    """The batches of all ranks; `steps`: (epoch, from step, to step), each asked of the same loader."""
    out = []
    for rank in range(world):
        with Loader(corpora, order_of(corpora), rank, world, workers, prepare_of(**more)) as loader:
            out.append(list(_steps(loader, steps)))
    return out


def _steps(loader: Loader, steps: list[tuple[int, int, int]]) -> Iterator[Batch]:
    for epoch, begin, end in steps:
        for batch in loader.batches(epoch, begin):
            if batch.step == end:
                break
            yield batch


def joined(ranks: list[list[Batch]]) -> list[tuple[Any, ...]]:
    """Global batches out of the ranks' shares, as comparable values."""
    return [
        (
            parts[0].step,
            np.concatenate([part.ids for part in parts]).tolist(),
            torch.cat([part.image for part in parts]).tolist(),
            torch.cat([part.text for part in parts]).tolist(),
            [key for part in parts for key in part.keys],
        )
        for parts in zip(*ranks, strict=True)
    ]


ALL = [(0, 0, 99), (1, 0, 99), (2, 0, 99)]


@pytest.fixture(scope="module")
def expected(corpora: Corpora) -> list[tuple[Any, ...]]:
    """Three epochs in one process; 8 steps each."""
    return joined(taken(corpora, ALL))


def test_a_batch_is_what_the_order_and_the_shards_say(corpora: Corpora, expected: list[tuple[Any, ...]]) -> None:
    order = order_of(corpora)
    assert [ids for _, ids, *_ in expected] == [ids.tolist() for epoch in range(3) for ids in order.batches(epoch)]
    for _, ids, _, text, keys in expected:
        assert [read(torch.tensor(row)) for row in text] == [f"text {id_}" for id_ in ids]
        assert keys == [f"{id_:05d}" for id_ in ids]
    (batch, *_), *_ = taken(corpora, [(0, 0, 1)], augment=None)
    assert (batch.image.dtype, batch.image.shape) == (torch.uint8, (12, 3, 24, 24))
    assert (batch.text.dtype, batch.text.shape) == (torch.int64, (12, 12))
    assert batch.replaced == 0


@pytest.mark.parametrize(("world", "workers"), [(1, 1), (1, 3), (2, 0), (3, 2), (12, 0)])
def test_ranks_and_workers_change_nothing(corpora: Corpora, expected: list[tuple[Any, ...]], world: int, workers: int) -> None:
    assert joined(taken(corpora, ALL, world, workers)) == expected


@pytest.mark.parametrize(("world", "workers"), [(1, 2), (2, 0), (4, 1)])
def test_resumed_in_mid_epoch_by_others_it_goes_on_as_it_was(
    corpora: Corpora, expected: list[tuple[Any, ...]], world: int, workers: int
) -> None:
    for epoch, step in ((0, 3), (1, 7), (2, 1)):
        found = joined(taken(corpora, [(epoch, step, 99), (epoch + 1, 0, 99)][: 3 - epoch], world, workers))
        assert found[: 8 - step] == expected[epoch * 8 + step : epoch * 8 + 8]
        assert found == expected[epoch * 8 + step :][: len(found)]


def test_asked_for_another_place_the_workers_start_anew(corpora: Corpora, expected: list[tuple[Any, ...]]) -> None:
    found = joined(taken(corpora, [(0, 0, 2), (2, 5, 99), (0, 2, 4)], workers=2))
    assert found == expected[:2] + expected[21:24] + expected[2:4]


def test_augmentation_is_another_in_each_epoch_and_none_if_none_is_asked(corpora: Corpora) -> None:
    def pixels(**more: Any) -> list[dict[int, bytes]]:
        (batches,) = taken(corpora, [(0, 0, 99), (1, 0, 99)], **more)
        out: list[dict[int, bytes]] = [{}, {}]
        for at, batch in enumerate(batches):
            out[at // 8] |= {id_: image.numpy().tobytes() for id_, image in zip(batch.ids.tolist(), batch.image, strict=True)}
        return out

    first, second = pixels()
    both = set(first) & set(second)
    assert sum(first[id_] == second[id_] for id_ in both) < len(both) / 10
    first, second = pixels(augment=None)
    assert all(first[id_] == second[id_] for id_ in both)


def test_captions_come_from_the_json_and_of_a_list_one_an_epoch(corpora: Corpora) -> None:
    (batches,) = taken(corpora, [(0, 0, 99), (1, 0, 99)], caption="captions")
    texts = [(int(id_), read(row)) for batch in batches for id_, row in zip(batch.ids, batch.text, strict=True)]
    assert all(text[1:] == str(id_) for id_, text in texts)
    assert {text[0] for _, text in texts} == {"a", "b", "c"}
    assert len(set(texts)) > 110  # of 96 samples twice, another caption in two of three cases
    (batches,) = taken(corpora, [(0, 0, 1)], caption="alt")
    assert read(batches[0].text[0]) == f"alt {batches[0].ids[0]}"


def spoiled(folder: Path, tmp_path: Path) -> tuple[Corpora, set[int]]:
    """The same shards with bad samples of every kind, and a shard that is cut off behind its statistics' back."""
    shutil.copytree(folder, tmp_path / "bad")
    samples = [good(at) for at in range(30)]
    samples[3][1]["jpg"] = b"no picture"
    samples[4][1]["jpg"] = picture(4)[:-40]
    del samples[9][1]["jpg"]
    samples[15][1]["txt"] = b"  \n"
    del samples[29][1]["txt"]
    write_tar(tmp_path / "bad" / "0.tar", samples)
    (tmp_path / "bad" / "3_stats.json").write_text(json.dumps({"successes": 10}))
    write_tar(tmp_path / "bad" / "3.tar", [good(at) for at in range(90, 97)])
    return open_corpora([str(tmp_path / "bad")], index_root=str(tmp_path / "index")), {3, 4, 9, 15, 29, 97, 98, 99}


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (3, 2)])
def test_a_bad_sample_is_replaced_by_the_next_good_one_counted_and_named(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, world: int, workers: int
) -> None:
    corpora, bad = spoiled(folder, tmp_path)
    instead = {id_: next(now % 100 for now in range(id_, id_ + 16) if now % 100 not in bad) for id_ in bad}
    assert corpora.n == 100
    ranks = taken(corpora, [(0, 0, 99), (1, 0, 99)], world, workers)
    for _, ids, _, text, keys in joined(ranks):
        assert keys == [f"{instead.get(id_, id_):05d}" for id_ in ids]
        assert [read(torch.tensor(row)) for row in text] == [f"text {instead.get(id_, id_)}" for id_ in ids]
    for batch in (batch for rank in ranks for batch in rank):
        assert batch.replaced == len(bad & set(batch.ids.tolist()))
    seen = {int(id_) for rank in ranks for batch in rank for id_ in batch.ids}
    assert bad <= seen  # in two epochs every sample's turn came
    for id_ in bad:
        assert f"sample {id_} (" in caplog.text
    assert "00003" in caplog.text


def cut(folder: Path, tmp_path: Path, left: dict[int, int]) -> Corpora:
    """The same shards, of which some hold but so many samples and say nothing of it."""
    shutil.copytree(folder, tmp_path / "cut")
    for shard, samples in left.items():
        (tmp_path / "cut" / f"{shard}_stats.json").write_text(json.dumps({"successes": 10 if shard == 3 else 30}))
        write_tar(tmp_path / "cut" / f"{shard}.tar", [good(30 * shard + at) for at in range(samples)])
    return open_corpora([str(tmp_path / "cut")], index_root=str(tmp_path / "index"))


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (3, 2)])
def test_a_damaged_shard_does_not_end_training(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, world: int, workers: int
) -> None:
    """Samples 35 to 59 and all of the shard after them are missing; of the last shard 7 are there."""
    corpora = cut(folder, tmp_path, {1: 5, 2: 0, 3: 7})
    ranks = taken(corpora, ALL, world, workers)
    instead = {at: 90 + (at % 10 if at % 10 < 7 else 0) for at in range(35, 75)}  # in the last shard, from the same place on
    instead |= dict.fromkeys(range(75, 90), 90) | dict.fromkeys((97, 98, 99), 0)  # among the 16 that follow
    for _, ids, _, text, keys in joined(ranks):
        assert keys == [f"{instead.get(id_, id_):05d}" for id_ in ids]
        assert [read(torch.tensor(row)) for row in text] == [f"text {instead.get(id_, id_)}" for id_ in ids]
    assert joined(taken(corpora, [(1, 3, 99)], 2)) == joined(ranks)[11:16], "resumed by others"
    assert "1.tar" in caplog.text
    assert "2.tar" in caplog.text


def test_a_shard_alone_that_is_cut_has_its_own_samples_to_stand_in(folder: Path, tmp_path: Path) -> None:
    cut(folder, tmp_path, {0: 5})
    corpora = open_corpora([str(tmp_path / "cut/0.tar")], index_root=str(tmp_path / "index"))
    held = [int(key) for key in Parts(Reader(corpora), prepare_of()).make(0, np.arange(30)).keys]
    assert held[:5] == list(range(5))
    assert {held[at] for at in range(5, 30)} == {0, 2, 3, 4}, "from half, a quarter … of the place on; 0 follows the end"


def test_frozen_features_have_the_same_stand_ins(folder: Path, tmp_path: Path) -> None:
    from stages.train.frozen import _sources

    corpora = cut(folder, tmp_path, {1: 5, 2: 0, 3: 7})
    bad = np.zeros(100, bool)
    bad[[*range(35, 90), 97, 98, 99]] = True
    parts = Parts(Reader(corpora), prepare_of())
    assert parts.make(0, np.arange(100)).keys == [f"{at:05d}" for at in _sources(bad, corpora)]
    with pytest.raises(UserError, match=r"0\.tar.*right kind"):
        _sources(np.ones(100, bool), corpora)


@pytest.mark.parametrize("workers", [0, 2])
def test_where_nothing_can_be_trained_on_it_ends_with_one_line(folder: Path, tmp_path: Path, workers: int) -> None:
    corpora = open_corpora([str(folder)], index_root=str(tmp_path))
    with Loader(corpora, order_of(corpora), 0, 1, workers, prepare_of(caption="nothing")) as loader:
        for _ in range(2):  # the second time it must not wait for what never comes
            with pytest.raises(
                UserError, match=r"samples .* cannot be trained on, the last: no caption: nothing is empty .*its json has \w+.*\d\.tar"
            ) as caught:
                next(loader.batches(0))
            assert "Traceback" not in str(caught.value)


def test_a_shard_that_goes_away_is_told(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    corpora = open_corpora([str(tmp_path / "copy")], index_root=str(tmp_path / "index"))
    (tmp_path / "copy" / "1.tar").unlink()
    with pytest.raises(UserError, match=r"1\.tar is gone"):
        taken(corpora, [(0, 0, 99)], workers=2)


def test_ranks_that_cannot_share_a_batch_are_refused(corpora: Corpora) -> None:
    with pytest.raises(UserError, match="multiple of 5"):
        Loader(corpora, order_of(corpora), 0, 5, 0, prepare_of())
    with pytest.raises(UserError, match="other shards"):
        Loader(corpora, Order(((100,),), 10), 0, 1, 0, prepare_of())


def test_more_workers_than_samples_a_step(corpora: Corpora, expected: list[tuple[Any, ...]]) -> None:
    assert joined(taken(corpora, [(0, 0, 3)], world=6, workers=5)) == expected[:3]


def test_closing_in_mid_epoch_ends_the_processes(corpora: Corpora) -> None:
    import multiprocessing

    before = set(multiprocessing.active_children())
    with Loader(corpora, order_of(corpora), 0, 1, 2, prepare_of()) as loader:
        next(loader.batches(0))
        assert len(set(multiprocessing.active_children()) - before) == 2
    assert not set(multiprocessing.active_children()) - before


@pytest.mark.parametrize("in_thread", [False, True])
def test_a_worker_that_is_killed_is_told_and_the_others_end(corpora: Corpora, in_thread: bool) -> None:
    """Ray Train runs the trainer in a thread, where torch's signal handler does not reach."""
    import multiprocessing

    before = set(multiprocessing.active_children())

    def train() -> str:
        with Loader(corpora, order_of(corpora), 0, 1, 2, prepare_of()) as loader:
            batches = (batch for epoch in range(1000) for batch in loader.batches(epoch))
            next(batches)
            (set(multiprocessing.active_children()) - before).pop().kill()
            try:
                for _ in batches:
                    pass
            except (RuntimeError, TransientError) as err:  # torch's handler of signals, or the loader
                return str(err)
        return ""

    if in_thread:
        with ThreadPoolExecutor(1) as pool:
            said = pool.submit(train).result()
    else:
        said = train()
    assert "worker" in said
    assert not set(multiprocessing.active_children()) - before


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Corpora:
    """Clips of 4 frames, one of 2 and one of 7."""
    folder = tmp_path_factory.mktemp("clips")
    counts = [4, 4, 2, 7, 4, 4]
    samples = [
        (f"{at:05d}", {**{f"{frame:03d}.jpg": picture(10 * at + frame) for frame in range(n)}, "txt": f"text {at}".encode()})
        for at, n in enumerate(counts)
    ]
    write_tar(folder / "0.tar", samples)
    return open_corpora([str(folder)], index_root=str(folder / "index"))


def test_clips_have_frames_spread_over_what_they_have(clips: Corpora) -> None:
    parts = Parts(Reader(clips), Prepare(tokens, image_size=(24, 32)))
    made = parts.make(0, np.arange(6))
    assert made.image.shape == (6, 4, 3, 24, 32)
    still = Parts(Reader(clips), Prepare(tokens, image_size=(24, 32), frames=1))

    def frames(clip: int, numbers: list[int]) -> Any:
        from PIL import Image

        found = [np.asarray(Image.open(io.BytesIO(picture(10 * clip + at)))) for at in numbers]
        return torch.from_numpy(np.stack(found)).movedim(-1, -3)

    for clip, numbers in ((0, [0, 1, 2, 3]), (2, [0, 0, 1, 1]), (3, [0, 2, 4, 6])):
        assert torch.equal(made.image[clip], frames(clip, numbers))
    assert still.make(0, np.arange(2)).image.shape == (2, 1, 3, 24, 32)
    with Loader(clips, Order(clips.sizes, 4), 0, 1, 2, Prepare(tokens, augment=Augment())) as loader:
        assert next(loader.batches(0)).image.shape == (4, 4, 3, 224, 224)


def test_a_bucket_is_read_in_few_requests_and_hardly_more_bytes_than_are_used(tmp_path: Path) -> None:
    """1,000 samples an epoch, 4 ranks: about one request a chunk of 32 samples, and each byte about once."""
    s3fs = pytest.importorskip("s3fs")
    for shard in range(4):
        write_tar(tmp_path / f"{shard}.tar", [good(at) for at in range(shard * 256, shard * 256 + 256)])
    with s3_server("reading") as options:  # its own: servers of one process share what lies in a bucket
        s3fs.S3FileSystem(**options).put([str(path) for path in sorted(tmp_path.glob("*.tar"))], "reading/shards/")
        corpora = open_corpora(["s3://reading/shards"], options, str(tmp_path / "index"))
        order = Order(corpora.sizes, 128)
        used = sum(int(corpora.bounds(at)[-1]) for at in range(4))
        with traffic() as counted:
            for rank in range(4):
                with Loader(corpora, order, rank, 4, 0, prepare_of(), epochs=1) as loader:
                    assert len(list(loader.batches(0))) == 8
        assert counted.requests == counted.gets
        assert counted.gets <= 1024 / 32 + 2 * 4
        assert counted.bytes <= 1.15 * used
        with (
            Loader(corpora, order, 0, 1, 2, prepare_of()) as forked,
            Loader(open_corpora([str(tmp_path)], index_root=str(tmp_path / "other")), order, 0, 1, 0, prepare_of()) as local,
        ):
            for one, other in zip(forked.batches(0), local.batches(0), strict=True):
                assert one.keys == other.keys
                assert torch.equal(one.image, other.image)


def test_storage_that_fails_ends_as_a_fault_of_the_world(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s3fs = pytest.importorskip("s3fs")
    from stages.train import reading

    with s3_server("data") as options:
        s3fs.S3FileSystem(**options).put([str(path) for path in sorted(folder.glob("*.tar"))], "data/shards/")
        options["config_kwargs"] = {"retries": {"max_attempts": 0}, "connect_timeout": 1}
        corpora = open_corpora(["s3://data/shards"], options, str(tmp_path / "index"))
        for shard in range(4):
            corpora.bounds(shard)
    monkeypatch.setattr(reading, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(reading, "TRIES", 2)
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    with pytest.raises(TransientError, match="not read in 2 tries"):
        Reader(corpora).read(np.arange(4))
