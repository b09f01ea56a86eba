"""Running stages in a child process that names each row before it starts, for a part whose worker died twice.

When the child dies, the row it had named last gets `STAGE:crashed` or `STAGE:out_of_memory`, and a new child goes on with
the next row. One row at a time: slow, but it happens only to parts that killed two workers.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline import frame
from pipeline.errors import ContractError
from pipeline.stage import Expanded, Stage

NO_MEMORY = 77  # exit code of a child whose allocation failed
FAULT = 78  # exit code of a child that no row is to blame for; its words lie in `fault`
SLACK = 512 << 20  # bytes of private memory that a child has besides what its stages may use


def _nothing() -> None:
    """Nobody watches."""


def run(
    stages: Sequence[Stage], table: pa.Table, dumps: Callable[[Any], bytes] = pickle.dumps, goes_on: Callable[[], None] = _nothing
) -> pa.Table:
    """The table after all `stages` (rows shape), as `frame.apply_all` gives it, at whatever cost in processes.

    `dumps` pickles the stages; pass one that ships a user's module by value. `goes_on` is called when rows were finished.
    """
    return expand(stages, None, table, dumps, goes_on).rows


def expand(
    stages: Sequence[Stage],
    last: Stage | None,
    table: pa.Table,
    dumps: Callable[[Any], bytes] = pickle.dumps,
    goes_on: Callable[[], None] = _nothing,
) -> Expanded:
    """The same with an expand stage at the end; without one `children` is a table of no rows."""
    with tempfile.TemporaryDirectory(prefix="shardmill-careful-") as name:
        folder = Path(name)
        (folder / "stages").write_bytes(dumps((list(map(_unopened, stages)), last and _unopened(last))))
        finished: list[Expanded] = []
        while len(finished) < len(table):
            _write(folder / "rows.arrow", table[len(finished) :])
            code = _child(folder, goes_on)
            finished += _read(folder)
            if code == 0:
                break
            if code == FAULT:
                raise ContractError((folder / "fault").read_text())
            row = table[len(finished) : len(finished) + 1]
            finished.append(_guilty(stages, last, row, (folder / "named").read_text(), code))
    if not finished:
        return _apply(stages, last, table)
    return Expanded(pa.concat_tables([done.rows for done in finished]), pa.concat_tables([done.children for done in finished]))


def _unopened(stage: Stage) -> Stage:
    """The stage without what `open` loaded, which may not be picklable (a model, a thread)."""
    return type(stage)(stage.config)


def _apply(stages: Sequence[Stage], last: Stage | None, table: pa.Table) -> Expanded:
    table = frame.apply_all(stages, table)
    return frame.expand(last, table) if last else Expanded(table, pa.table({}))


def _child(folder: Path, goes_on: Callable[[], None]) -> int:
    """Its exit code. `goes_on` is called whenever it has written another row."""
    for name in ("named", "done"):
        (folder / name).write_bytes(b"")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen([sys.executable, "-m", "pipeline.careful", str(folder)], env=environment) as process:
        size = 0
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1.0)
            if (now := (folder / "done").stat().st_size) > size:
                size = now
                goes_on()
        return process.returncode


def _guilty(stages: Sequence[Stage], last: Stage | None, row: pa.Table, named: str, code: int) -> Expanded:
    """The row with its fate and the columns that it would have had; `code` is the child's exit code."""
    names = [stage.name for stage in (*stages, *([last] if last else []))]
    if named not in names:
        raise ContractError(f"the careful child ended with code {code} before it began with a row")
    reason, how = ("out_of_memory", "was killed") if code in (-signal.SIGKILL, NO_MEMORY) else ("crashed", f"died with code {code}")
    at = names.index(named)
    row = frame.apply_all(stages[:at], row)
    row = row.set_column(row.schema.get_field_index("fate"), "fate", pa.array([f"{named}:{reason}"]))
    text = f"the process {how} while it worked on this row alone"
    row = row.set_column(row.schema.get_field_index("detail"), "detail", pa.array([text]))
    return _apply(stages[at:], last, row)


def _write(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _read(folder: Path) -> list[Expanded]:
    """The rows that a child finished; a torn last one is left out."""
    data = (folder / "done").read_bytes()
    tables, at = [], 0
    while at + 8 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 8], "little")
        if end > len(data):
            break
        tables.append(pa.ipc.open_stream(data[at + 8 : end]).read_all())
        at = end
    return [Expanded(rows, children) for rows, children in zip(tables[::2], tables[1::2], strict=False)]


def limit_memory(allowed: int) -> None:
    """Bounds this process's private memory at what it has now plus `allowed` bytes; beyond it, allocation fails."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    now = next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmData:"))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (now + allowed, hard))


def main(folder: Path) -> None:
    """The child: applies the stages to one row after the other, naming the stage before it starts."""
    stages, last = pickle.loads((folder / "stages").read_bytes())  # noqa: S301 (written by our own parent)
    everything: list[Stage] = [*stages, *([last] if last else [])]
    for stage in everything:
        stage.open()
    with pa.OSFile(str(folder / "rows.arrow"), "rb") as source:
        table = pa.ipc.open_file(source).read_all()
    limit_memory(max(stage.resources.memory for stage in everything) + SLACK)
    with (folder / "done").open("ab", buffering=0) as done:
        for at in range(len(table)):
            for made in _one(stages, last, table[at : at + 1], folder / "named"):
                sink = pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, made.schema) as writer:
                    writer.write_table(made)
                data = sink.getvalue().to_pybytes()
                done.write(len(data).to_bytes(8, "little") + data)


def _one(stages: list[Stage], last: Stage | None, row: pa.Table, named: Path) -> Expanded:
    """One row through all stages; out of memory ends the child, for its memory is in pieces then."""
    try:
        for stage in stages:
            named.write_text(stage.name)
            row = frame.apply(stage, row)
        if last:
            named.write_text(last.name)
        return _apply([], last, row)
    except MemoryError:
        os._exit(NO_MEMORY)


if __name__ == "__main__":
    home = Path(sys.argv[1])
    try:
        main(home)
    except Exception as err:  # noqa: BLE001 (the parent raises it)
        (home / "fault").write_text(frame.error_text(err))
        os._exit(FAULT)
