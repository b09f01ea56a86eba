"""Stages that hand on rows piece by piece: each row once, in any order, the failing one alone dropped, signs of life on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline import careful
from pipeline.errors import ContractError
from pipeline.frame import apply_pieces, framed
from pipeline.phases.rows import run_stages
from pipeline.stage import Column, Stage
from stages.frames import Frames
from tests.support.hostile import Hostile
from tests.support.videos import Kind, make, steady


class Doubled(Stage):
    """Two rows a piece, the last ones first; fails at a null."""

    name = "doubled"
    version = 1
    reads = {"n": Column(pa.int64(), "a number")}
    adds = {"twice": Column(pa.int64(), "n times two")}
    reasons = {"odd": "never"}

    def __call__(self, table: pa.Table) -> pa.Table:
        return pa.concat_tables(list(self.pieces(table, lambda: None))[::-1])

    def pieces(self, table: pa.Table, goes_on: Callable[[], None]) -> Iterator[pa.Table]:
        for at in range((len(table) - 1) // 2 * 2, -1, -2):
            piece = table[at : at + 2]
            goes_on()
            yield piece.append_column("twice", pa.array([2 * n for n in piece["n"].to_pylist()], pa.int64()))


class Lossy(Doubled):
    name = "lossy"

    def pieces(self, table: pa.Table, goes_on: Callable[[], None]) -> Iterator[pa.Table]:
        yield from list(super().pieces(table, goes_on))[1:]


class Twice(Doubled):
    name = "twice"

    def pieces(self, table: pa.Table, goes_on: Callable[[], None]) -> Iterator[pa.Table]:
        yield from [*super().pieces(table, goes_on)] * 2


def numbers(values: list[int | None], dead: int | None = None) -> pa.Table:
    table = framed(pa.table({"n": pa.array(values, pa.int64())}), 10)
    fates = ["captions:short" if n == dead else "kept" for n in range(len(values))]
    return table.set_column(table.schema.get_field_index("fate"), "fate", pa.array(fates))


def test_pieces_come_as_they_are_and_run_stages_puts_them_in_order() -> None:
    table, signs = numbers([1, 2, 3, 4, 5], dead=1), []
    pieces = list(apply_pieces(Doubled(), table, lambda: signs.append(1)))
    assert [piece["row"].to_pylist() for piece in pieces] == [[11], [13, 14], [10, 12]]
    assert [piece["twice"].to_pylist() for piece in pieces] == [[None], [8, 10], [2, 6]]
    assert len(signs) == 4  # of the stage, and one for each of its pieces
    whole = run_stages([Doubled()], table, "part", False, {})
    assert whole["row"].to_pylist() == [10, 11, 12, 13, 14]
    assert whole["twice"].to_pylist() == [2, None, 6, 8, 10]


def test_a_row_that_fails_costs_itself_alone() -> None:
    made = pa.concat_tables(apply_pieces(Doubled(), numbers([1, None, 3, 4, 5]), lambda: None)).sort_by("row")
    assert made["fate"].to_pylist() == ["kept", "doubled:error", "kept", "kept", "kept"]
    assert made["twice"].to_pylist() == [2, None, 6, 8, 10]
    assert "TypeError" in made["detail"][1].as_py()


@pytest.mark.parametrize(("stage", "words"), [(Lossy(), "lost 1 of 3"), (Twice(), "returned a row twice")])
def test_rows_are_neither_lost_nor_doubled(stage: Stage, words: str) -> None:
    with pytest.raises(ContractError, match=words):
        list(apply_pieces(stage, numbers([1, 2, 3]), lambda: None))


def test_a_video_in_which_nothing_is_wanted_for_long_gives_signs_of_life(tmp_path: Path) -> None:
    path = make(tmp_path / "long.mp4", Kind(steady(200, 10), options=(("g", "20"), ("preset", "ultrafast"))), (64, 64))
    stage, signs = Frames(Frames.Config(count=1, size=64)), []
    stage.open()
    table = framed(pa.table({"video": [str(path)], "start_s": [198.0], "end_s": [199.0]}))
    made = pa.concat_tables(apply_pieces(stage, table, lambda: signs.append(1)))
    assert made["fate"].to_pylist() == ["kept"]
    assert len(signs) > 2000 / 64


def test_clips_of_a_long_video_come_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.frames.PIECE", 20_000)
    path = make(tmp_path / "film.mp4", Kind(steady(60, 5), options=(("g", "10"),)), (64, 64))
    stage = Frames(Frames.Config(count=2, size=64))
    stage.open()
    spans = [(float(n), n + 1.0) for n in range(58)] + [(70.0, 71.0)]
    columns: dict[str, Any] = {"video": [str(path)] * 59, "start_s": [a for a, _ in spans], "end_s": [b for _, b in spans]}
    pieces = list(apply_pieces(stage, framed(pa.table(columns)), lambda: None))
    assert len(pieces) > 3
    assert max(piece.nbytes for piece in pieces) < 80_000
    whole = pa.concat_tables(pieces).sort_by("row")
    assert whole["fate"].to_pylist() == ["kept"] * 58 + ["frames:out_of_video"]
    assert whole["frames"].to_pylist() == stage(framed(pa.table(columns)))["frames"].to_pylist()


def test_the_careful_child_gives_signs_of_life() -> None:
    signs: list[int] = []
    careful.run([Hostile()], framed(pa.table({"caption": ["a dog", "abort-now", "a cat"]})), goes_on=lambda: signs.append(1))
    assert signs
