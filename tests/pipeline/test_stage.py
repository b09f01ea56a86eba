"""The contract's own pieces: drop, and what of a config goes into a key."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from pydantic import RootModel

from pipeline.frame import framed
from pipeline.stage import KEPT, Stage, Strict, drop, keyed_config, keyless


@pytest.mark.parametrize("chunked", [False, True])
def test_drop_touches_only_the_living_rows_of_the_mask(chunked: bool) -> None:
    table = framed(pa.table({"a": [1, 2, 3, 4]}))
    table = drop(table, pa.array([True, False, False, False]), "one:early", "first")
    mask = pa.array([True, True, None, False])
    out = drop(table, pa.chunked_array([mask[:1], mask[1:]]) if chunked else mask, "two:late", pa.array(["w", "x", "y", "z"]))
    assert out["fate"].to_pylist() == ["one:early", "two:late", KEPT, KEPT]
    assert out["detail"].to_pylist() == ["first", "x", None, None]
    assert out.select(["a", "row"]).equals(table.select(["a", "row"]))


def test_a_stage_of_another_shape_is_not_called_with_rows() -> None:
    class Sink(Stage):
        name, version, shape = "sink", 1, "sink"

    with pytest.raises(TypeError, match="stage sink of shape sink is not called with a table"):
        Sink()(pa.table({"a": [1]}))


class Rule(Strict):
    keep: str = "x"
    label: str = keyless("shown only")


class Rules(RootModel[list[Rule]]):
    pass


class Options(Strict):
    size: int = 224
    timeout_s: float = keyless(10.0, gt=0)
    rule: Rule = Rule()
    rules: list[Rule] = [Rule(keep="y")]
    by_name: dict[str, Rule] = {"z": Rule()}
    words: frozenset[str] = frozenset({"b", "a"})
    folder: Path = Path("a/b")


def test_a_key_holds_all_but_keyless_fields_however_deep() -> None:
    rule = {"keep": "x"}
    wanted = {"size": 224, "rule": rule, "rules": [{"keep": "y"}], "by_name": {"z": rule}, "words": ["a", "b"], "folder": "a/b"}
    assert keyed_config(Options()) == wanted
    assert keyed_config(Options(timeout_s=1, rule=Rule(label="other"))) == wanted
    assert keyed_config(Options(size=1)) != wanted


def test_a_root_models_entries_are_keyed() -> None:
    assert keyed_config(Rules([Rule(keep="a", label="l")])) == {"root": [{"keep": "a"}]}
