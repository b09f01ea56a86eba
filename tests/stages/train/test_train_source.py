"""What a config's data is refused for before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from stages.train.prepare import Prepare
from tests.support import training


@pytest.mark.parametrize("name", ["jpg", "webp", "000.png", "json", "__key__", "__url__"])
def test_a_member_that_holds_no_text_is_no_caption(name: str) -> None:
    with pytest.raises(UserError, match=rf"^train\.caption: {name} is no text"):
        Prepare(lambda texts: texts, caption=name)
    assert Prepare(lambda texts: texts, caption="alt").caption == "alt"


def test_a_corpus_that_an_epoch_takes_nothing_of_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from stages.train import loop, models, source

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folders = [str(training.write_shards(tmp_path / name, 20, size=32)) for name in ("a", "b")]

    def opened(weight: float) -> Any:
        data = [{"shards": folders[0], "weight": 1.0}, {"shards": folders[1], "weight": weight}]
        wanted = training.config(tmp_path, data=data, loader_workers=0)
        return source.open_shards(wanted, model, loop.Context())

    model = models.Model(None, (32, 32), (0.0,), (1.0,), lambda texts: texts, 16, "clip")
    opened(0.1).close()
    with pytest.raises(UserError, match=rf"^train\.data\.1\.weight: 1e-09 .* no sample of {folders[1]}"):
        opened(1e-9)


def test_of_a_damaged_shard_one_rank_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("torch")
    from stages.train import loop, models, source

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = training.write_shards(tmp_path / "a", 20, per_shard=10, size=32)
    (folder / "00001.tar").write_bytes((folder / "00001.tar").read_bytes()[:5000])
    wanted = training.config(tmp_path, data=[{"shards": str(folder)}], loader_workers=0)
    model = models.Model(None, (32, 32), (0.0,), (1.0,), lambda texts: texts, 16, "clip")
    for rank in (0, 1):
        source.open_shards(wanted, model, loop.Context(rank=rank, world=2)).close()
    assert [f"{folder}/00001.tar: " in record.getMessage() for record in caplog.records] == [True]
