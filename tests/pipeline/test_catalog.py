"""Names to stages: built-in ones, a user's own, and what is refused."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import catalog
from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.stage import COMMON_REASONS, Stage

OWN = '''
import pyarrow as pa
from pipeline.stage import Column, Stage, Strict


class Shout(Stage):
    """Adds the caption in capitals."""

    name, version = "shout", 1
    reads = {"caption": Column(pa.string(), "the caption")}
    adds = {"loud": Column(pa.string(), "in capitals")}
    reasons = {"silent": "there is nothing to shout"}

    class Config(Strict):
        marks: int = 1


class Again(Shout):
    pass


class Thief(Shout):
    name = "images"


class NoStage:
    pass
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's file `own_stages_of_mine.py` in the current folder."""
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "own_stages_of_mine.py"
    path.write_text(textwrap.dedent(OWN))
    yield path
    sys.modules.pop("own_stages_of_mine", None)


def run_config(stages: dict[str, object], **more: object) -> RunConfig:
    return RunConfig.model_validate({"input": {"path": "a"}, "run": {"name": "b"}, "stages": stages, **more})


@pytest.mark.parametrize("name", catalog.BUILT_IN)
def test_every_built_in_stage_declares_itself(name: str) -> None:
    stage = catalog.stage_class(name)
    assert stage.name == name
    assert stage.version >= 1
    assert stage.__doc__
    assert not set(stage.reasons) & set(COMMON_REASONS)
    for field, info in stage.Config.model_fields.items():
        assert info.description or field == "root", f"{name}.{field} has no line of meaning"


def test_a_stage_of_ones_own(own: Path) -> None:
    entry = catalog.entry("own_stages_of_mine:Shout", {"marks": 3})
    assert entry.stage.config.marks == 3
    assert not entry.built_in
    before = entry.source
    own.write_text(own.read_text() + "\n# changed\n")
    assert catalog.entry("own_stages_of_mine:Shout").source != before


def test_a_bad_option_is_named_with_its_whole_path(own: Path) -> None:
    with pytest.raises(UserError, match=r"^f\.yaml: stages\.own_stages_of_mine:Shout\.mark: unknown key; did you mean marks\?$"):
        catalog.entry("own_stages_of_mine:Shout", {"mark": 3}, "f.yaml")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("captoins", "stages.captoins: unknown stage; did you mean captions?"),
        ("xyz", "unknown stage; built in are ingest, subtitle_files,"),
        ("own_stages_of_mine:Shuot", "cannot import own_stages_of_mine:Shuot"),
        ("no_such_module_here:A", "is the file on PYTHONPATH or in the current folder?"),
        ("own_stages_of_mine:NoStage", "is no subclass of pipeline.stage.Stage"),
        ("own_stages_of_mine:Thief", "its name 'images' is a built-in stage's; give it another"),
    ],
)
def test_a_name_that_is_no_stage(own: Path, name: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        catalog.stage_class(name)
    assert message in str(caught.value)


def test_a_users_file_that_does_not_parse_is_the_users_to_mend(own: Path) -> None:
    own.write_text("def broken(:\n")
    with pytest.raises(UserError, match=r"cannot import own_stages_of_mine:Shout: .*own_stages_of_mine.py, line 1"):
        catalog.stage_class("own_stages_of_mine:Shout")


def test_shards_comes_last_and_stands_at_the_top_level(own: Path) -> None:
    entries = catalog.resolve(run_config({"own_stages_of_mine:Shout": None}))
    assert [e.name for e in entries] == ["own_stages_of_mine:Shout", "shards"]
    with pytest.raises(UserError, match=r"stages\.shards: shards stands at the top level"):
        catalog.resolve(run_config({"shards": {}}))


def test_two_stages_of_one_name_are_refused(own: Path) -> None:
    with pytest.raises(UserError, match="own_stages_of_mine:Again: its name 'shout' is own_stages_of_mine:Shout's too"):
        catalog.resolve(run_config({"own_stages_of_mine:Shout": {}, "own_stages_of_mine:Again": {}}))


def test_a_stage_before_its_columns_is_refused(own: Path) -> None:
    shout, captions, ingest = (catalog.entry(name) for name in ("own_stages_of_mine:Shout", "captions", "ingest"))
    catalog.check_order([ingest, captions, shout])
    with pytest.raises(UserError, match=r"stages\.own_stages_of_mine:Shout: reads caption, which no stage before it adds"):
        catalog.check_order([ingest, shout, captions])
    assert "loud" in catalog.columns([ingest, captions, shout])


def test_fates_are_the_stages_reasons_and_the_common_ones(own: Path) -> None:
    fates = catalog.fates(catalog.stage_class("own_stages_of_mine:Shout"))
    assert set(fates) == {"shout:silent", "shout:error", "shout:crashed", "shout:out_of_memory"}

    class Sink(Stage):
        name, version, shape = "sink", 1, "sink"

    assert catalog.fates(Sink) == {}


@pytest.mark.parametrize(
    ("stages", "hint"),
    [
        ({"ingest": {}, "subtitles": {}}, r"stages\.subtitles: reads subtitle, .*set stages\.ingest\.subtitles: true"),
        (
            {"ingest": {"subtitles": True}, "subtitles": {}, "segments": {}, "download": {}, "frames": {}},
            r"stages\.frames: .*download\.to: disk",
        ),
    ],
)
def test_a_column_that_an_option_brings_names_the_option(stages: dict[str, object], hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        catalog.check_order(catalog.resolve(run_config(stages)))
