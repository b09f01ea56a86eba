"""Phase `rows`: the input cut into parts, each row with its cleaned caption and its fate so far.

Keys are per input file: one more file costs its own rows, no other's. Parquet parts are read at their place; input whose
row count nobody knows before the end (csv.gz) is cut, streaming, by one worker a file.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline import careful as careful_child
from pipeline import frame
from pipeline.engine import Engine
from pipeline.errors import ContractError
from pipeline.heart import HEART, Timing, as_dict
from pipeline.keys import digest, ingredients
from pipeline.layout import Run, stages_of
from pipeline.parts import Attempts, Part, part_name
from pipeline.stage import Expanded, Resources, Stage
from pipeline.storage import Store
from pipeline.workers import Done, Job, dumps, together


@dataclass(frozen=True)
class InputRef:
    """An input file as a finished run remembers it; enough for keys, not for reading. `key`: of its rows, whatever today's stages are."""

    url: str
    etag: str
    rows: int | None
    key: str


def list_input(run: Run) -> list[Any]:
    """The input's files (stages.ingest.files.InputFile), in order."""
    from stages.ingest.files import list_files

    given = run.config.input
    files: list[Any] = list_files(given.path, given.format, given.storage_options)
    return files


def check_columns(run: Run, files: list[Any]) -> None:
    """Raises UserError where the input's columns do not say what url and caption are."""
    from stages.ingest.stage import check_columns

    given = run.config.input
    check_columns(files, given.columns, given.header, given.storage_options)


def made_of(run: Run, file: Any) -> dict[str, Any]:
    """What the key of one input file's rows is made of."""
    given = run.config.input
    columns = {"columns": given.columns, "header": given.header, "format": given.format}
    return ingredients(run.layout.before_barrier, file=[file.url, file.etag], part_rows=run.config.run.part_rows, **columns)


def key_of(run: Run, file: Any) -> str:
    """The key of one input file's rows: the recorded one where a finished run is read, else by the stages as they are now."""
    return file.key if isinstance(file, InputRef) else digest(made_of(run, file))


def state(run: Run, files: list[Any]) -> list[tuple[str, dict[str, Any] | None]]:
    """For each file its key and, where its rows are all committed, {"rows", "children": [count a part]}."""
    out = []
    for file in files:
        key = key_of(run, file)
        path = f"rows/{key}/done.json"
        out.append((key, run.store.read_json(path) if run.store.exists(path) else None))
    return out


def todo(run: Run, files: list[Any]) -> list[Job]:
    """The jobs that are missing: a part each, or a whole file where its row count is unknown."""
    jobs: list[Job] = []
    size = run.config.run.part_rows
    for file, (key, done) in zip(files, state(run, files), strict=True):
        if done is not None:
            continue
        if file.rows is None:
            jobs.append({"id": f"rows/{key}/stream", "file": file.url, "key": key})
            continue
        have = set(run.store.names(f"rows/{key}", ".parquet"))
        for index in range(-(-file.rows // size)):
            if part_name(index) not in have:
                first = index * size
                job = {"id": f"rows/{key}/{part_name(index)}", "file": file.url, "key": key, "index": index}
                jobs.append({**job, "first": first, "rows": min(size, file.rows - first)})
    return jobs


def run_phase(run: Run, engine: Engine, files: list[Any]) -> list[Done]:
    """Makes what is missing and notes each file's counts."""
    work = RowsWork(run.store, stages_of(run.layout.rows), _stage(run.layout.expand), stages_of(run.layout.children), files, run.config)
    results = engine.tasks(work, todo(run, files))
    for file, (key, done) in zip(files, state(run, files), strict=True):
        if done is None:
            _note(run, file, key)
    return results


def parts(run: Run, files: list[Any], level: str) -> list[Part]:
    """All parts of a level (`rows`, `children`) with run-wide numbers; the phase must be complete."""
    out: list[Part] = []
    base = parents = 0
    for file, (key, done) in zip(files, state(run, files), strict=True):
        if done is None:
            raise ContractError(f"{file.url}: its rows are not all committed")
        within = 0
        for index, rows in enumerate(done[level]):
            # Input rows are numbered within their file, children within their part.
            part_base = base if level == "rows" else base + within
            out.append(Part(len(out), key, index, base + within, rows, part_base, file.url, level, parents))
            within += rows
        base += within
        parents += sum(done["rows"])
    return out


def _note(run: Run, file: Any, key: str) -> None:
    names = run.store.names(f"rows/{key}", ".parquet")
    counts = [run.store.rows(f"rows/{key}/{name}") for name in names]
    if file.rows is not None and sum(counts) != file.rows:
        raise ContractError(f"{file.url}: {file.rows} rows came in, but {sum(counts)} are committed")
    noted: dict[str, Any] = {"file": file.url, "rows": counts}
    if run.layout.expand:
        noted["children"] = [run.store.rows(f"children/{key}/{name}") for name in names]
    run.store.write_json(f"rows/{key}/done.json", noted)


def _stage(entry: Any) -> Stage | None:
    return entry.stage if entry else None


@dataclass
class RowsWork:
    """Reads a range of an input file, runs the stages before the first barrier, commits the part."""

    store: Store
    stages: list[Stage]
    expand: Stage | None
    children: list[Stage]
    files: list[Any]
    config: Any
    name: str = "rows"
    lease_call: Any = None

    @property
    def needing(self) -> list[Stage]:
        return [*self.stages, *([self.expand] if self.expand else []), *self.children]

    @property
    def resources(self) -> Resources:
        return together(self.needing)

    def open(self) -> None:
        for stage in self.needing:
            stage.open()

    def __call__(self, job: Job, careful: bool) -> Done:
        file = next(file for file in self.files if file.url == job["file"])
        for stage in self.needing:
            if hasattr(stage, "lease_call"):  # it asks hosts
                stage.lease_call = self.lease_call
        timings: dict[str, Timing] = {}
        if "index" in job:
            raw = next(self._read(file, job["first"], job["rows"]))
            if len(raw) != job["rows"]:
                raise ContractError(f"{file.url}: its footer promised {job['rows']} rows from row {job['first']} on, but {len(raw)} came")
            kept = self._part(job["key"], job["index"], job["first"], raw, careful, timings)
            return {"rows": len(raw), "kept": kept, "timings": as_dict(timings)}
        total = kept = 0
        for index, raw in enumerate(self._stream(file, job["key"])):
            if not self.store.exists(f"rows/{job['key']}/{part_name(index)}"):
                attempts = Attempts(self.store, f"rows/{job['key']}/{part_name(index)}")
                kept += self._part(job["key"], index, total, raw, attempts.begin() > 1, timings)
                attempts.end()
            total += len(raw)
        return {"rows": total, "kept": kept, "timings": as_dict(timings)}

    def _stream(self, file: Any, key: str) -> Iterator[pa.Table]:
        """The file's parts from its beginning on. Reading is work too: a resume may read past committed parts for long."""
        tables = self._read(file, 0, self.config.run.part_rows)
        for index in itertools.count():
            with HEART.at(f"rows/{key}/{part_name(index)}", f"{self.name} (reading)", 0):
                raw = next(tables, None)
            if raw is None:
                return
            yield raw

    def _read(self, file: Any, first: int, rows: int) -> Iterator[pa.Table]:
        from stages.ingest.files import stream

        given = self.config.input
        tables: Iterator[pa.Table] = stream(file, first, rows, header=given.header, storage_options=given.storage_options)
        return tables

    def _part(self, key: str, index: int, first: int, raw: pa.Table, careful: bool, timings: dict[str, Timing]) -> int:
        """Runs the stages over one part and commits it: children first, since the part's own file says that it is done.

        Returns how many rows are still alive.
        """
        part = f"rows/{key}/{part_name(index)}"
        ingest, *rest = self.stages
        with HEART.at(part, ingest.name, len(raw), timings):
            table = ingest.normalise(raw, first, self.config.input.columns)  # type: ignore[attr-defined]
        if self.expand is None:
            table = run_stages(rest, table, part, careful, timings)
        else:
            table, children = expand_rows(rest, self.expand, table, part, careful, timings)
            children = inherit(self._inherited(table), frame.framed(children), self.expand)
            children = run_stages(self.children, children, part, careful, timings)
            self.store.write_table(f"children/{key}/{part_name(index)}", stored(children, [*self.stages, self.expand, *self.children]))
        check_errors(table, self.config.run.max_error_share, part)
        self.store.write_table(part, stored(table, self.stages))
        return frame.kept(table)

    def _inherited(self, table: pa.Table) -> pa.Table:
        """Without the columns that only travel, but for those that a stage of the children reads: a video's file of subtitles stands
        once, not with each of its segments."""
        read = {name for stage in self.children for name in stage.reads}
        passing = {name for stage in self.stages for name, column in stage.adds.items() if not column.stored}
        return table.drop_columns([name for name in table.column_names if name in passing - read])


def run_stages(stages: list[Stage], table: pa.Table, part: str, careful: bool, timings: dict[str, Timing]) -> pa.Table:
    """All stages over a table, timed; `careful`: in a child process, a row at a time."""
    if careful and stages:
        with HEART.at(part, f"{stages[0].name} (careful)", len(table), timings) as mark:
            return careful_child.run(stages, table, dumps, mark.goes_on)
    for stage in stages:
        with HEART.at(part, stage.name, len(table), timings) as mark:
            pieces = list(frame.apply_pieces(stage, table, mark.goes_on))
        table = pieces[0] if len(pieces) == 1 else _in_order(table, pa.concat_tables(pieces))
    return table


def _in_order(table: pa.Table, made: pa.Table) -> pa.Table:
    """`made` in the order of `table`; the same rows stand in both."""
    import numpy as np

    home = np.argsort(made["row"].to_numpy(), kind="stable")
    rank = np.argsort(np.argsort(table["row"].to_numpy(), kind="stable"), kind="stable")
    return made.take(pa.array(home[rank]))


def expand_rows(stages: list[Stage], last: Stage, table: pa.Table, part: str, careful: bool, timings: dict[str, Timing]) -> Expanded:
    """`run_stages`, then the expand stage `last`."""
    if careful:
        with HEART.at(part, f"{last.name} (careful)", len(table), timings) as mark:
            return careful_child.expand(stages, last, table, dumps, mark.goes_on)
    table = run_stages(stages, table, part, careful, timings)
    with HEART.at(part, last.name, len(table), timings):
        return frame.expand(last, table)


def inherit(parents: pa.Table, children: pa.Table, expand: Stage) -> pa.Table:
    """Children with their parent's columns, but for those that the expand stage made, and a uid of their own.

    A child's uid is xxh3_128 of its parent's uid, its place among its siblings, and the texts and numbers that the stage gave it, NUL
    between them: rows that share a uid, as a video's with subtitles in two languages, may have children that differ.
    """
    import numpy as np
    import pyarrow.compute as pc
    import xxhash

    at = np.searchsorted(parents["row"].to_numpy(), children["parent"].to_numpy())
    place = np.arange(len(at)) - np.searchsorted(at, at)
    for name in parents.column_names:
        if name not in children.column_names:
            children = children.append_column(parents.schema.field(name), parents[name].take(pa.array(at)))
    if "uid" not in expand.adds:
        own = [pc.fill_null(children[name].cast(pa.string()), "") for name, column in expand.adds.items() if _plain(column.type)]
        joined = pc.binary_join_element_wise(children["uid"], pa.array(place).cast(pa.string()), *own, "\0").cast(pa.binary())
        uids = [xxhash.xxh3_128_hexdigest(said) for said in joined.to_pylist()]  # one C call a child
        children = children.set_column(children.schema.get_field_index("uid"), "uid", pa.array(uids, pa.string()))
    return children


def _plain(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind))


def stored(table: pa.Table, stages: list[Stage]) -> pa.Table:
    """Without the columns that only travel between stages."""
    passing = {name for stage in stages for name, column in stage.adds.items() if not column.stored}
    return table.drop_columns([name for name in table.column_names if name in passing])


def check_errors(table: pa.Table, share: float, part: str) -> None:
    """Stops a run in which a stage fails on more than `share` of a part: that is a bug, not dirty data."""
    import pyarrow.compute as pc

    failed = table.filter(pc.ends_with(table["fate"], ":error"))
    if len(failed) > max(20, share * len(table)):
        first = failed[:1].to_pylist()[0]
        raise ContractError(
            f"{part}: {len(failed)} of {len(table)} rows failed with {first['fate']} (run.max_error_share {share}); "
            f"the first, row {first['row']}: {first['detail']}"
        )
