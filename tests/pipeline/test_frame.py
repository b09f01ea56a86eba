"""What surrounds a stage: no row is lost, moved or blamed for another's fault, whatever the stage does."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import frame
from pipeline.errors import ContractError, TransientError
from pipeline.frame import apply, apply_all, apply_stream, expand, framed
from pipeline.stage import KEPT, Column, Expanded, Stage, drop

DEAD = "before:gone"


class Half(Stage):
    """Adds half of an even number, drops odd ones, raises for negative ones."""

    name, version = "half", 1
    reads = {"number": Column(pa.int64(), "any integer")}
    adds = {"half": Column(pa.int64(), "number / 2")}
    reasons = {"odd": "the number is odd"}
    calls = 0

    def __call__(self, table: pa.Table) -> pa.Table:
        self.calls += 1
        if pc.any(pc.less(table["number"], 0)).as_py():
            raise ValueError("a negative\nnumber")
        out = table.append_column("half", pc.divide(table["number"], 2))
        return drop(out, pc.equal(pc.bit_wise_and(table["number"], 1), 1), "half:odd", pc.cast(table["number"], pa.string()))


def given_rows(numbers: list[int], dead: list[bool] | None = None) -> pa.Table:
    table = framed(pa.table({"number": pa.array(numbers, pa.int64()), "other": pa.array([f"o{n}" for n in numbers], pa.string())}))
    if dead is not None:
        mask = pa.array(dead, pa.bool_())
        table = drop(table, mask, DEAD, "why")
    return table


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(-3, 9), st.booleans()), max_size=60), st.integers(1, 7))
def test_every_row_keeps_its_place_and_has_one_fate(rows: list[tuple[int, bool]], chunk: int) -> None:
    """Random faults among random dead rows, in tables of any chunking: balance, order, and each row's own fate."""
    table = given_rows([number for number, _ in rows], [dead for _, dead in rows])
    table = pa.concat_tables([table[i : i + chunk] for i in range(0, len(table), chunk)] or [table])
    out = apply(Half(), table)
    assert out["row"].to_pylist() == list(range(len(rows)))
    assert out["other"].equals(table["other"])
    for (number, dead), row in zip(rows, out.to_pylist(), strict=True):
        if dead:
            assert (row["fate"], row["detail"], row["half"]) == (DEAD, "why", None)
        elif number < 0:
            assert (row["fate"], row["detail"], row["half"]) == ("half:error", "ValueError: a negative number", None)
        elif number % 2:
            assert (row["fate"], row["detail"]) == ("half:odd", str(number))
        else:
            assert (row["fate"], row["detail"], row["half"]) == (KEPT, None, number // 2)


def test_one_bad_row_among_1024_costs_21_calls() -> None:
    stage = Half()
    out = apply(stage, given_rows([2] * 700 + [-1] + [2] * 323))
    assert out["fate"].to_pylist().count("half:error") == 1
    assert stage.calls == 21  # 1 + 2 for each of the ten halvings


def test_a_stage_is_not_called_without_living_rows() -> None:
    stage = Half()
    out = apply(stage, given_rows([1, 2], [True, True]))
    assert stage.calls == 0
    assert out.schema.field("half").type == pa.int64()
    assert out["half"].null_count == 2
    assert apply(stage, given_rows([])).schema.field("half").type == pa.int64()


def test_stages_one_after_the_other_see_only_the_living() -> None:
    class Quarter(Half):
        name = "quarter"
        reads = {"half": Column(pa.int64(), "half")}
        adds = {"quarter": Column(pa.int64(), "half / 2")}

        def __call__(self, table: pa.Table) -> pa.Table:
            assert table.column_names == ["row", "half", "fate", "detail"]
            assert set(table["fate"].to_pylist()) == {KEPT}
            return table.append_column("quarter", pc.divide(table["half"], 2))

    out = apply_all([Half(), Quarter()], given_rows([8, 3, -1]))
    assert out["quarter"].to_pylist() == [2, None, None]
    assert out["fate"].to_pylist() == [KEPT, "half:odd", "half:error"]


def test_a_rewritten_column_keeps_what_dead_rows_had() -> None:
    class Upper(Stage):
        name, version = "upper", 1
        reads = adds = {"other": Column(pa.string(), "upper case")}

        def __call__(self, table: pa.Table) -> pa.Table:
            return table.set_column(table.schema.get_field_index("other"), "other", pc.utf8_upper(table["other"]))

    out = apply(Upper(), given_rows([1, 2], [True, False]))
    assert out["other"].to_pylist() == ["o1", "O2"]
    assert out.column_names == given_rows([1]).column_names
    assert apply(Upper(), given_rows([1], [True]))["other"].to_pylist() == ["o1"]


def machine_faults() -> list[BaseException]:
    class OutOfMemoryError(RuntimeError):
        """As torch names its own."""

    return [
        MemoryError("no memory"),
        OSError(errno.ENOSPC, "no space left"),
        OSError(errno.EMFILE, "too many open files"),
        TransientError("the store is away"),
        ContractError("a stage's own"),
        OutOfMemoryError("GPU"),
    ]


@pytest.mark.parametrize("fault", machine_faults(), ids=lambda fault: f"{type(fault).__name__}-{getattr(fault, 'errno', '')}")
def test_the_machines_faults_blame_no_row(fault: BaseException) -> None:
    class Unlucky(Half):
        def __call__(self, table: pa.Table) -> pa.Table:
            raise fault

    with pytest.raises(type(fault)):
        apply(Unlucky(), given_rows([2, 4]))


@pytest.mark.parametrize("fault", [ConnectionResetError("reset"), TimeoutError("slow"), OSError("cannot identify image file")])
def test_other_os_errors_are_a_rows(fault: OSError) -> None:
    class Picky(Half):
        def __call__(self, table: pa.Table) -> pa.Table:
            raise fault

    out = apply(Picky(), given_rows([2]))
    assert out["fate"].to_pylist() == ["half:error"]
    assert out["detail"].to_pylist() == [f"{type(fault).__name__}: {fault}"]


def test_an_error_text_is_one_bounded_line() -> None:
    text = frame.error_text(ValueError("a\nb\t" + "x" * 10_000))
    assert text.startswith("ValueError: a b x")
    assert len(text) == frame.DETAIL_CHARS


def with_half(table: pa.Table) -> pa.Table:
    return table.append_column("half", table["number"])


BROKEN: dict[str, tuple[Callable[[pa.Table], Any], str]] = {
    "no table": (lambda table: None, "returned NoneType, not a pyarrow Table"),
    "lost": (lambda table: with_half(table)[:-1], r"lost, added or moved rows \(3 went in, 2 came out\)"),
    "moved": (lambda table: with_half(table).take([1, 0, 2]), "lost, added or moved"),
    "added": (lambda table: pa.concat_tables([with_half(table)] * 2), "lost, added or moved"),
    "no fate": (lambda table: with_half(table).drop(["fate"]), "without fate"),
    "foreign fate": (lambda table: drop(with_half(table), pa.array([True] * 3), "other:odd"), "does not declare: other:odd"),
    "null fate": (lambda table: drop(with_half(table), pa.array([True] * 3), None), "does not declare: None"),
    "no column": (lambda table: table, "declares half but did not add it"),
    "wrong type": (lambda table: table.append_column("half", pc.cast(table["number"], pa.string())), "half is string, declared int64"),
}


@pytest.mark.parametrize(("work", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_promise_is_a_contract_error(work: Callable[[pa.Table], Any], message: str) -> None:
    class Liar(Half):
        def __call__(self, table: pa.Table) -> Any:
            return work(table)

    with pytest.raises(ContractError, match=message):
        apply(Liar(), given_rows([2, 4, 6]))


def test_a_missing_column_and_a_missing_fate_are_named() -> None:
    with pytest.raises(ContractError, match="half reads number, which the table lacks; it has a, row, fate, detail"):
        apply(Half(), framed(pa.table({"a": [1]})))
    table = given_rows([2, 4])
    holed = table.set_column(table.schema.get_field_index("fate"), "fate", pa.array([KEPT, None], pa.string()))
    with pytest.raises(ContractError, match="1 rows have no fate"):
        apply(Half(), holed)


def test_framed_adds_only_what_is_missing() -> None:
    table = framed(pa.table({"a": [1, 2]}), first_row=40)
    assert table["row"].to_pylist() == [40, 41]
    assert framed(table).equals(table)


class Streamed(Half):
    """Half, in tables of `size` rows from the last to the first."""

    size = 3

    async def stream(self, table: pa.Table) -> AsyncIterator[pa.Table]:
        for end in range(len(table), 0, -self.size):
            await asyncio.sleep(0)
            yield Half.__call__(self, table[max(0, end - self.size) : end].take(pa.array(range(min(self.size, end)))[::-1]))


def gather(stage: Stage, table: pa.Table) -> list[pa.Table]:
    async def run() -> list[pa.Table]:
        return [out async for out in apply_stream(stage, table)]

    return asyncio.run(run())


def test_bodies_of_rows_that_are_all_alive_are_not_copied() -> None:
    """A picture's body went through memory three times more on its way from the download into the image stage."""

    class Passes(Stage):
        name, version = "passes", 1
        reads = {"body": Column(pa.large_binary(), "bytes")}
        adds = {"made": Column(pa.large_binary(), "other bytes")}

        def __call__(self, table: pa.Table) -> pa.Table:
            self.seen = place(table["body"])
            self.made = pa.array([b"made"] * len(table), pa.large_binary())
            return table.append_column("made", self.made)

        async def stream(self, table: pa.Table) -> AsyncIterator[pa.Table]:
            yield self(table)

    def place(column: Any) -> int:
        return int(column.chunk(0).buffers()[2].address)

    table = framed(pa.table({"body": pa.array([b"a body", b"another"], pa.large_binary())}))
    stage = Passes()
    for run in (lambda: [apply(stage, table)], lambda: gather(stage, table)):
        (out,) = run()
        assert stage.seen == place(table["body"])
        assert place(out["made"]) == stage.made.buffers()[2].address
    dead = apply(stage, drop(table, pa.array([True, False]), DEAD))
    assert dead["made"].to_pylist() == [None, b"made"]


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=30))
def test_a_stream_in_any_order_gives_what_apply_gives(rows: list[tuple[int, bool]]) -> None:
    table = given_rows([number for number, _ in rows], [dead for _, dead in rows])
    parts = gather(Streamed(), table)
    wanted = apply(Half(), table)
    got = pa.concat_tables(parts) if parts else wanted
    assert got.sort_by("row").equals(wanted)


@pytest.mark.parametrize(
    ("take", "message"),
    [([0, 1], "lost 1 of 3 rows"), ([0, 1, 1, 2], "a row twice"), ([0, 1, 9], "a row that it did not get")],
)
def test_a_stream_that_loses_or_repeats_is_a_contract_error(take: list[int], message: str) -> None:
    class Liar(Half):
        async def stream(self, table: pa.Table) -> AsyncIterator[pa.Table]:
            out = Half.__call__(self, table)
            extra = out[:1].set_column(out.schema.get_field_index("row"), "row", pa.array([99], pa.int64()))
            yield pa.concat_tables([out[i : i + 1] if i < 9 else extra for i in take])

    with pytest.raises(ContractError, match=message):
        gather(Liar(), given_rows([2, 4, 6]))


class Count(Stage):
    """`number` children for each row; none for 0, which is dropped; raises for negative ones."""

    name, version, shape = "count", 1, "expand"
    reads = {"number": Column(pa.int64(), "how many children")}
    adds = {"nth": Column(pa.int32(), "from 0")}
    reasons = {"none": "no children"}

    def __call__(self, table: pa.Table) -> Expanded:
        pairs = [(row, n) for row, number in zip(table["row"].to_pylist(), table["number"].to_pylist(), strict=True) for n in range(number)]
        if pc.any(pc.less(table["number"], 0)).as_py():
            raise ValueError("negative")
        children = pa.table({"parent": pa.array([p for p, _ in pairs], pa.int64()), "nth": pa.array([n for _, n in pairs], pa.int32())})
        return Expanded(drop(table, pc.equal(table["number"], 0), "count:none"), children)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(-2, 3), st.booleans()), max_size=40))
def test_expand_balances_on_both_levels(rows: list[tuple[int, bool]]) -> None:
    table = given_rows([number for number, _ in rows], [dead for _, dead in rows])
    out = expand(Count(), table)
    assert out.rows["row"].to_pylist() == list(range(len(rows)))
    wanted = [DEAD if dead else "count:error" if n < 0 else "count:none" if n == 0 else KEPT for n, dead in rows]
    assert out.rows["fate"].to_pylist() == wanted
    parents = [row for row, (n, dead) in enumerate(rows) for _ in range(n) if not dead]
    assert out.children["parent"].to_pylist() == parents
    assert out.children.schema == pa.schema([("parent", pa.int64()), ("nth", pa.int32())])


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        ([0], "1 rows are kept without a child and 0 children have no kept parent"),
        ([0, 1, 7], "0 rows are kept without a child and 1 children have no kept parent"),
        ([1, 0], "must stand together, in the order"),
        ([0, 1, 0], "must stand together"),
    ],
)
def test_children_without_parents_and_parents_without_children_are_contract_errors(parents: list[int], message: str) -> None:
    class Liar(Count):
        def __call__(self, table: pa.Table) -> Expanded:
            nth = pa.array([0] * len(parents), pa.int32())
            return Expanded(table, pa.table({"parent": pa.array(parents, pa.int64()), "nth": nth}))

    with pytest.raises(ContractError, match=message):
        expand(Liar(), given_rows([1, 1]))


def test_an_expand_stage_must_return_both_tables() -> None:
    class Liar(Count):
        def __call__(self, table: pa.Table) -> Any:
            return table

    with pytest.raises(ContractError, match="returned Table, not Expanded"):
        expand(Liar(), given_rows([1]))
