"""Running stages in a child process that names each row before it starts, for a part whose worker died twice.

When the child dies, the row it had named last gets `STAGE:crashed` or `STAGE:out_of_memory`, and a new child goes on with
the next row. One row at a time: slow, but it happens only to parts that killed two workers.
"""

from __future__ import annotations

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
from pipeline.stage import Stage, alive

SLACK = 512 << 20  # bytes of private memory that a child has besides what its stages may use


def run(stages: Sequence[Stage], table: pa.Table, dumps: Callable[[Any], bytes] = pickle.dumps) -> pa.Table:
    """The table after all `stages` (rows shape), as `frame.apply_all` gives it, at whatever cost in processes.

    `dumps` pickles the stages; pass one that ships a user's module by value.
    """
    with tempfile.TemporaryDirectory(prefix="shardmill-careful-") as name:
        folder = Path(name)
        (folder / "stages").write_bytes(dumps(list(stages)))
        finished: list[pa.Table] = []
        while (at := sum(map(len, finished))) < len(table):
            _write(folder / "rows.arrow", table[at:])
            code = _child(folder)
            done = _read(folder)
            finished += done
            if code == 0:
                break
            row = table[at + sum(map(len, done)) :][:1]
            finished.append(_guilty(stages, row, (folder / "named").read_text(), code))
        return pa.concat_tables(finished) if finished else frame.apply_all(stages, table)


def _child(folder: Path) -> int:
    for name in ("named", "done"):
        (folder / name).write_bytes(b"")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.run([sys.executable, "-m", "pipeline.careful", str(folder)], env=environment, check=False)
    return process.returncode


def _guilty(stages: Sequence[Stage], row: pa.Table, named: str, code: int) -> pa.Table:
    """The row with its fate and the columns that it would have had; `code` is the child's exit code."""
    name = named.strip()
    if name not in {stage.name for stage in stages}:
        raise ContractError(f"the careful child ended with code {code} before it began with a row")
    reason, how = ("out_of_memory", "killed") if code in (-signal.SIGKILL, 77) else ("crashed", f"died with code {code}")
    text = f"the process {how} while it worked on this row alone"
    at = [stage.name for stage in stages].index(name)
    for stage in stages[:at]:
        row = frame.apply(stage, row)
    row = row.set_column(row.schema.get_field_index("fate"), "fate", pa.array([f"{name}:{reason}"]))
    row = row.set_column(row.schema.get_field_index("detail"), "detail", pa.array([text]))
    return frame.apply_all(stages[at:], row)


def _write(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _read(folder: Path) -> list[pa.Table]:
    """The rows that a child finished, one table each; a torn last one is left out."""
    data = (folder / "done").read_bytes()
    tables, at = [], 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 8], "little")
        if at + 8 + size > len(data):
            break
        tables.append(pa.ipc.open_stream(data[at + 8 : at + 8 + size]).read_all())
        at += 8 + size
    return tables


def limit_memory(allowed: int) -> None:
    """Bounds this process's private memory at what it has now plus `allowed` bytes; beyond it, allocation fails."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    now = next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmData:"))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (now + allowed, hard))


def main(folder: Path) -> None:
    """The child: applies the stages to one row after the other, naming the stage before it starts."""
    stages: list[Stage] = pickle.loads((folder / "stages").read_bytes())  # noqa: S301 (written by our own parent)
    for stage in stages:
        stage.open()
    with pa.OSFile(str(folder / "rows.arrow"), "rb") as source:
        table = pa.ipc.open_file(source).read_all()
    limit_memory(max(stage.resources.memory for stage in stages) + SLACK)
    with (folder / "done").open("ab", buffering=0) as done:
        for at in range(len(table)):
            row = table[at : at + 1]
            for stage in stages:
                (folder / "named").write_text(stage.name)
                row = _apply(stage, row)
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, row.schema) as writer:
                writer.write_table(row)
            data = sink.getvalue().to_pybytes()
            done.write(len(data).to_bytes(8, "little") + data)


def _apply(stage: Stage, row: pa.Table) -> pa.Table:
    """A stage on one row; out of memory ends the child with code 77, for its memory is in pieces now."""
    if not alive(row)[0].as_py():
        return frame.apply(stage, row)
    try:
        return frame.apply(stage, row)
    except MemoryError:
        os._exit(77)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
