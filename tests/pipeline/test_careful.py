"""A row that kills its process costs that row, and names the stage."""

from __future__ import annotations

import pyarrow as pa
import pytest

from pipeline import careful
from pipeline.errors import ContractError
from pipeline.frame import framed
from tests.support.hostile import Hostile, Sentences

CAPTIONS = ["a dog", "abort-now", "a cat", "raise-now", "eat-memory", "", "a bird", "x" * 201]


def test_each_guilty_row_gets_its_fate_and_no_other_is_lost() -> None:
    table = framed(pa.table({"caption": CAPTIONS}))
    out = careful.run([Hostile()], table)
    assert out["row"].to_pylist() == list(range(8))
    assert out["fate"].to_pylist() == [
        "kept", "hostile:crashed", "kept", "hostile:error", "hostile:out_of_memory", "kept", "kept", "hostile:long",
    ]  # fmt: skip
    assert out["letters"].to_pylist()[:3] == [5, None, 5]
    assert "died with code -6" in out["detail"][1].as_py()


def test_dead_rows_pass_untouched_and_no_rows_are_no_rows() -> None:
    table = framed(pa.table({"caption": ["abort-now"]}))
    dead = table.set_column(table.schema.get_field_index("fate"), "fate", pa.array(["captions:empty"]))
    assert careful.run([Hostile()], dead)["fate"].to_pylist() == ["captions:empty"]
    assert len(careful.run([Hostile()], table[:0])) == 0


def test_an_expand_stage_may_die_too() -> None:
    table = framed(pa.table({"caption": ["one. two.", "abort-now. three", ".", "four"]}))
    table = table.append_column("source_caption", table["caption"])
    rows, children = careful.expand([Hostile()], Sentences(), table)
    assert rows["fate"].to_pylist() == ["kept", "hostile:crashed", "sentences:no_text", "kept"]
    assert children.to_pylist() == [
        {"parent": 0, "source_caption": "one"},
        {"parent": 0, "source_caption": "two"},
        {"parent": 3, "source_caption": "four"},
    ]


def test_a_fault_of_the_program_is_no_rows_fate() -> None:
    table = framed(pa.table({"caption": ["one", "two"]}))
    with pytest.raises(ContractError, match=r"sentences reads source_caption, which the table lacks"):
        careful.expand([], Sentences(), table)
