"""Images on their way to the shards: the same bytes however they travel, and jobs that do not grow with the pool."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline import views
from pipeline.phases import select, write
from pipeline.runs import reopen
from tests.pipeline.conftest import Made


class Inline:
    """An engine that does each job here and at once, and remembers it."""

    def __init__(self) -> None:
        self.jobs: dict[str, list[dict[str, Any]]] = {}

    def tasks(self, work: Any, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        work.open()
        self.jobs[work.name] = jobs
        return [work(job, False) for job in jobs]


def written(made: Made) -> tuple[dict[str, Any], Inline]:
    """The manifest of shards that are written anew, and the engine that was at work."""
    known, engine = reopen(str(made.run)), Inline()
    store = known.run.store
    store.remove(known.folder("shards"))
    with views.connect(store) as con:
        known.view_known(con, "known", image_dedup=True)
        select.view_selected(known, con)
        write.run_phase(known, engine, con)  # type: ignore[arg-type]
    return store.read_json("shards/manifest.json"), engine


@pytest.mark.parametrize("buckets", [write.MAX_BUCKETS, 1])
def test_shards_are_the_same_however_images_travel(made: Made, monkeypatch: pytest.MonkeyPatch, buckets: int) -> None:
    """In one group of pool files or one for each, and with a bucket for each shard or for all."""
    before = json.loads((made.run / "shards" / "manifest.json").read_text())
    assert len(before["shards"]) > 1
    together, few = written(made)
    monkeypatch.setattr(write, "GROUP_IMAGES", 1)
    monkeypatch.setattr(write, "MAX_BUCKETS", buckets)
    apart, many = written(made)
    assert together == apart == before
    assert len(many.jobs["shards (move)"]) > len(few.jobs["shards (move)"])
    # Each shard's job named every group: their number times that of the shards went through the driver.
    assert [len(json.dumps(job)) for job in many.jobs["shards"]] == [len(json.dumps(job)) for job in few.jobs["shards"]]
    monkeypatch.setattr(write, "MAX_GROUPS", 1)  # so many images that groups have to grow
    assert len(written(made)[1].jobs["shards (move)"]) == 1
