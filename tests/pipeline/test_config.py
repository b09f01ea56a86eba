"""Configs: what is refused, and whether the message says where, what, and what would be right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline import config
from pipeline.errors import UserError

GOOD = """
input: {path: links.parquet}
run: {name: small, seed: 7}
stages:
  captions:
  my.own:Stage: {limit: 3}
  selection:
    - {name: similarity, keep: "similarity >= 0.28"}
    - {name: min_side, keep: "width >= 64"}
"""


def load(tmp_path: Path, text: str = GOOD, *overrides: str) -> config.RunConfig:
    path = tmp_path / "small.yaml"
    path.write_text(text, encoding="utf-8")
    return config.load(path, list(overrides))


def refusal(tmp_path: Path, text: str = GOOD, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(tmp_path, text, *overrides)
    return str(caught.value).replace(str(tmp_path), "DIR")


def test_stage_entries_stay_raw_and_in_order(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    assert list(loaded.stages) == ["captions", "my.own:Stage", "selection"]
    assert loaded.stages["captions"] is None
    assert (loaded.run.name, loaded.run.seed, loaded.ray.address, loaded.pool.keep) == ("small", 7, "local", True)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("run.seed=8", ["run", "seed"], 8),
        ("ray.num_cpus=2", ["ray", "num_cpus"], 2),
        ("shards.order=input", ["shards", "order"], "input"),
        ("stages.captions.languages=[en, de]", ["stages", "captions", "languages"], ["en", "de"]),
        ("stages.my.own:Stage.limit=4", ["stages", "my.own:Stage", "limit"], 4),
        ("stages.my.own:Stage={}", ["stages", "my.own:Stage"], {}),
        ("stages.selection.0.keep=similarity >= 0.3", ["stages", "selection", 0, "keep"], "similarity >= 0.3"),
        ("stages.selection.min_side.keep=width = 1", ["stages", "selection", 1, "keep"], "width = 1"),
        ("input.path=[a, b]", ["input", "path"], ["a", "b"]),
    ],
)
def test_set_reaches_every_key(tmp_path: Path, override: str, path: list[str | int], value: Any) -> None:
    found: Any = load(tmp_path, GOOD, override).model_dump()
    for part in path:
        found = found[part]
    assert found == value


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run"], "--set run: expected key.sub=value"),
        (["=1"], "--set =1: expected key.sub=value"),
        (["input.path.x=1"], "--set input.path.x=1: path is a value, not a section"),
        (["stages.selection.nsfw.keep=x"], "nsfw is neither an index below 2 nor a name of ['similarity', 'min_side']"),
        (["run.seed=[1"], "--set run.seed=[1: not valid YAML: line 1, column 3: expected ',' or ']', but got '<stream end>'"),
        (["run.sead=1"], "DIR/small.yaml: run.sead: unknown key; did you mean seed?"),
        (["ray.cpus=1"], "DIR/small.yaml: ray.cpus: unknown key; did you mean num_cpus?"),
        (["colour=1"], "colour: unknown key; valid: about, input, pool, ray, report, run, shards, stages, train"),
        (["run.part_rows=0"], "run.part_rows: Input should be greater than or equal to 1 (got '0')"),
        (["run.name=../up"], "run.name: String should match pattern"),
        (["run.name=.."], "run.name: String should match pattern"),
    ],
)
def test_a_bad_override_names_the_key_and_what_would_be_right(tmp_path: Path, overrides: list[str], message: str) -> None:
    assert message in refusal(tmp_path, GOOD, *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["input.storage_options=sesame"],
        ["run={storage_options: {secret: sesame}, nam: x}"],
        ["run.storage_options.secret=[sesame"],
        ["run.storage_options.secret=sesame", "run.storage_options.secret.more=sesame"],
        ["input=[{storage_options: {secret: sesame}}]"],
    ],
)
def test_no_error_repeats_what_may_open_a_storage(tmp_path: Path, overrides: list[str]) -> None:
    assert "sesame" not in refusal(tmp_path, GOOD, *overrides)


def test_a_file_that_is_no_text_is_no_config(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\xff\xfe\x00model")
    with pytest.raises(UserError, match="not a config but a binary file"):
        config.read_raw(tmp_path / "model.safetensors")


def test_every_fault_is_told_at_once_on_a_line_of_its_own(tmp_path: Path) -> None:
    lines = refusal(tmp_path, GOOD, "run.sead=1", "pool.kepp=1", "run.seed=-1").splitlines()
    assert len(lines) == 3
    assert all(line.startswith("DIR/small.yaml: ") for line in lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "DIR/small.yaml: not valid YAML: line 1, column 5: expected the node content, but found '<stream end>'"),
        ("- a", "expected a mapping with input, run and stages"),
        ("", "expected a mapping with input, run and stages"),
        ("input: {path: a}\nrun: {name: b}", "stages: Field required"),
        (GOOD + "run: {name: other}\n", "not valid YAML: line 2, column 1: run stands twice"),
        (GOOD + "    - {name: a, name: b}\n", "name stands twice"),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML: line 1, column 4: could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_config(tmp_path: Path, text: str, message: str) -> None:
    assert message in refusal(tmp_path, text)


def test_a_merge_key_may_be_overridden(tmp_path: Path) -> None:
    loaded = load(tmp_path, "input: &i {path: a}\nrun: {name: b}\nstages: {}\nabout: {<<: *i, path: c}")
    assert loaded.about == {"path": "c"}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such config; see the presets in configs/"):
        config.load(tmp_path / "nowhere.yaml")


def test_a_config_is_frozen(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(tmp_path).run.seed = 8  # type: ignore[misc]


def test_on_and_no_are_words_and_true_is_a_boolean(tmp_path: Path) -> None:
    stages = "{dedup: {on: caption}, captions: {languages: [no]}}"
    loaded = load(tmp_path, f"input: {{path: x}}\nrun: {{name: words}}\nstages: {stages}\npool: {{keep: false}}\n", "stages.a.yes=True")
    assert loaded.stages == {"dedup": {"on": "caption"}, "captions": {"languages": ["no"]}, "a": {"yes": True}}
    assert loaded.pool.keep is False


def test_a_raw_config_is_a_mapping_with_its_overrides(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("train: {epochs: 5}")
    assert config.read_raw(tmp_path / "c.yaml", ["train.epochs=7", "more.on=no"]) == {"train": {"epochs": 7}, "more": {"on": "no"}}
    (tmp_path / "c.yaml").write_text("- 1")
    with pytest.raises(UserError, match="expected a mapping"):
        config.read_raw(tmp_path / "c.yaml")


def test_a_config_of_training_alone_is_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"makes none; use it as: shardmill train .*small\.yaml"):
        load(tmp_path, "train: {model: ViT-tiny}")
