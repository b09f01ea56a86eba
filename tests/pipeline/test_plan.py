"""What a plan says of a change, and where stages may stand."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline import plan, runs
from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.layout import open_run
from pipeline.runs import without_secrets
from pipeline.storage import Store

LOOPBACK = {"allow_networks": ["127.0.0.1/32"]}


def test_a_change_is_named_with_its_key_and_both_values() -> None:
    old = {"stages": {"captions": {"version": 1, "config": {"min_chars": 5, "urls": "keep"}}}, "rows": ["a"], "seed": 1}
    new = {"stages": {"captions": {"version": 2, "config": {"min_chars": 8, "emoji": "drop"}}}, "rows": ["b"], "seed": 1}
    assert plan.differences(old, new) == [
        "captions.version 1 -> 2",
        "captions.min_chars 5 -> 8",
        "captions.urls is gone",
        "captions.emoji is new",
        "rows changed",
    ]
    assert plan.differences(old, old) == []


def run_of(stages: dict[str, Any]) -> Any:
    return open_run(RunConfig.model_validate({"input": {"path": "x"}, "run": {"name": "x"}, "stages": stages}))


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ({"ingest": {}, "images": {}}, "download is missing"),
        ({"captions": {}, "ingest": {}, "download": LOOPBACK, "images": {}}, "the first must be ingest, not captions"),
        ({"ingest": {}, "images": {}, "download": LOOPBACK}, "must stand as download, images"),
        (
            {"ingest": {}, "captions": {}, "dedup": {}, "tests.support.hostile:Hostile": {}, "download": LOOPBACK, "images": {}},
            "put it before dedup",
        ),
        (
            {"ingest": {}, "tests.support.hostile:Hostile": {}, "download": LOOPBACK, "images": {}},
            "reads caption, which no stage before it adds",
        ),
        (
            {"ingest": {}, "captions": {}, "download": LOOPBACK, "images": {}, "selection": [], "tests.support.hostile:Hostile": {}},
            "it stands after selection, where no row is worked on",
        ),
        ({"ingest": {}, "download": LOOPBACK, "images": {}, "shards": {}}, "shards stands at the top level"),
        ({"ingest": {}, "download": LOOPBACK, "images": {}, "tests.support.hostile:Sentences": {}}, "of shape expand cannot stand here"),
    ],
)
def test_stages_that_cannot_stand_so_are_refused(stages: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        run_of(stages)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stages.selection.0.keep='colour > 2'", r"c\.yaml: stages\.selection.*blank.*colour"),
        ("stages.image.size=10", r"c\.yaml: stages\.image: unknown stage; did you mean images\?"),
        ("stages.download.allow_networks=[]", r"c\.yaml: stages\.download\.contact: empty"),
        ("stages.selection={}", r"nowhere\.parquet"),
        ("train.epoch=3", r"c\.yaml: train\.epoch: unknown key; did you mean epochs\?"),
        ("train.optimizer={lr: -1}", r"c\.yaml: train\.optimizer\.lr: .*greater than 0"),
    ],
)
def test_a_plan_refuses_what_a_run_refuses_and_names_the_file(tmp_path: Path, override: str, said: str) -> None:
    stages = {"ingest": {}, "download": LOOPBACK, "images": {}, "selection": [{"name": "blank", "keep": "width > 2"}]}
    run = {"name": "x", "root": str(tmp_path / "runs")}
    (tmp_path / "c.yaml").write_text(
        yaml.safe_dump({"input": {"path": str(tmp_path / "nowhere.parquet")}, "run": run, "stages": stages}, sort_keys=False)
    )
    with pytest.raises(UserError, match=said):
        plan.make(tmp_path / "c.yaml", [override])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("path", ["list.parquet", "sample://laion"])
@pytest.mark.parametrize("command", [plan.make, runs.run])
def test_a_root_that_is_no_folder_is_refused(tmp_path: Path, command: Any, path: str) -> None:
    pq.write_table(pa.table({"url": ["http://a.test/1.jpg"], "caption": ["a"]}), tmp_path / "list.parquet")
    (tmp_path / "file").write_text("")
    raw = {
        "input": {"path": path if "://" in path else str(tmp_path / path)},
        "run": {"name": "x", "root": str(tmp_path / "file")},
        "stages": {"ingest": {}, "download": LOOPBACK, "images": {}},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    with pytest.raises(UserError, match=r"run\.root: cannot write to .*/file.*Not a directory"):
        command(tmp_path / "c.yaml")


def test_a_run_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(UserError, match=r"run\.root: cannot write to .*/x: .*Not a directory"):
        runs.check_root(Store(str(tmp_path / "x")))


def test_a_root_that_may_not_be_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    store = Store("/data/runs/x")
    monkeypatch.setattr(type(store.fs), "ls", refuse)
    with pytest.raises(UserError, match=r"run\.root: cannot write to /data/runs/x: .*Permission denied"):
        runs.check_root(store)


def test_stages_fall_into_phases_by_their_place() -> None:
    own = {"tests.support.hostile:Hostile": {}}
    run = run_of({"ingest": {}, "captions": {}, **own, "dedup": {}, "download": LOOPBACK, "images": {}, "image_dedup": {}, "selection": []})
    phases = {name: [entry.name for entry in entries] for name, entries in run.layout.phases()}
    assert phases == {
        "rows": ["ingest", "captions", "tests.support.hostile:Hostile"],
        "dedup": ["dedup"],
        "pool": ["download", "images"],
        "image_dedup": ["image_dedup"],
        "selection": ["selection"],
        "shards": ["shards"],
    }


def test_what_opens_a_storage_is_not_written_down() -> None:
    options = {"key": "AKIA", "secret": "s", "client_kwargs": {"endpoint_url": "http://x", "aws_session_token": "t"}, "anon": False}
    config = {"run": {"name": "key", "storage_options": options}, "stages": {"download": {"storage_options": {"password": "p"}}}}
    assert without_secrets(config) == {
        "run": {"name": "key", "storage_options": {"client_kwargs": {"endpoint_url": "http://x"}, "anon": False}},
        "stages": {"download": {"storage_options": {}}},
    }
