"""`shardmill verify`: reads every file of the current shards again, as a trainer would, and compares it with all that was said of it.

A file that is missing, cannot be read or says something else becomes a finding, never a trace. Shards are read by as many
processes as there are CPUs; ledger, selection, pool and shards' Parquet are joined by DuckDB, which spills to disk.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from pipeline import views
from pipeline.errors import ContractError, TransientError, UserError
from pipeline.frame import error_text
from pipeline.known import Known
from pipeline.ledger import SCHEMA
from pipeline.parts import Part, addition_of, part_name
from pipeline.phases import ledger, rows, select
from pipeline.runs import reopen
from pipeline.stage import KEPT
from pipeline.storage import Store
from stages import shards as sink
from stages.shards import check
from stages.shards.check import Line, Manifest, Noted

SHOWN = 50  # findings that are printed; all are counted
MOST = 20  # findings of one shard that are told one by one
READERS = 16  # Parquet footers that are read at once
SHORT = 60  # characters of a value that is quoted
MANIFEST, REPORT = "shards/manifest.json", "report/report.json"


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be, and where."""

    where: str
    what: str


def run(folder: str) -> tuple[Manifest, list[Finding]]:
    """The manifest, and everything that does not agree: bytes, hashes, samples, keys, images, Parquet, statistics, ledger, report."""
    known = reopen(folder)
    store = known.run.store
    if not store.exists(MANIFEST):
        raise UserError(f"{folder}: no {MANIFEST}; the run is not finished: repeat `shardmill run`")
    manifest = Manifest(known.keys["shards"], [], 0)
    found: list[Finding] = []
    with reading(MANIFEST, found):
        manifest = _json(store, MANIFEST, Manifest)
        noted = _check_shards(store, manifest, found)
        if manifest.key != known.keys["shards"]:
            found.append(Finding(MANIFEST, f"names key {manifest.key}, but run.json {known.keys['shards']}"))
        else:
            check_ledger(known, manifest, {shard.name for shard in noted.shards if shard.taken_over}, found)
    return manifest, list(dict.fromkeys(found))  # a file that is missing is missed by all that read it


@contextmanager
def reading(where: str, found: list[Finding]) -> Iterator[None]:
    """Makes a finding of what stops the block: a file that is missing, or of which its reader can make nothing."""
    import duckdb

    try:
        yield
    except FileNotFoundError:
        found.append(Finding(where, "is missing"))
    except (OSError, ValueError, KeyError, pa.ArrowException, duckdb.Error, UserError, ContractError) as err:
        found.append(Finding(where, f"cannot be read: {error_text(err.__cause__ or err)}"))


def _json(store: Store, path: str, kind: Any) -> Any:
    """A JSON file of ours, with the form that it must have."""
    return TypeAdapter(kind).validate_json(store.read(path))


# Shards: each one's own files


def processes() -> Executor:
    """A process a CPU; spawned, since a fork of a process with Ray's or Arrow's threads may hang."""
    return ProcessPoolExecutor(max(1, os.cpu_count() or 1), mp_context=multiprocessing.get_context("spawn"))


def _check_shards(store: Store, manifest: Manifest, found: list[Finding]) -> Noted:
    """Every file in the key's folder against the manifest and done.json, which it returns."""
    home = f"shards/{manifest.key}"
    noted: Noted = Noted([], {})
    with reading(f"{home}/done.json", found):
        noted = _json(store, f"{home}/done.json", Noted)
    facts = {shard.name: shard for shard in noted.shards}
    if noted.shards and sink.manifest(manifest.key, [asdict(shard) for shard in noted.shards]) != asdict(manifest):
        found.append(Finding(MANIFEST, f"is not as {home}/done.json has it"))
    with processes() as pool:
        calls = [pool.submit(check_shard, store, home, line, facts.get(line.name)) for line in manifest.shards]
        try:
            for call in calls:
                found += call.result()
        except BrokenProcessPool as err:
            raise TransientError("a process that read shards was killed, perhaps for want of memory; repeat the command") from err
    for name, file in noted.beside.items():
        with reading(f"{home}/{name}", found):
            _check_bytes(store, f"{home}/{name}", file, found)
    listed = {line.name for line in manifest.shards}
    expected = {name for shard in noted.shards if shard.name in listed for name in shard.files} | {*noted.beside, "done.json"}
    if not noted.shards:
        found += [Finding(f"{home}/{name}", "is missing") for name in sorted({*sink.finish([], "")} - {*store.names(home)})]
    else:
        found += _strays(store, home, expected)
    return noted


def _strays(store: Store, folder: str, expected: set[str]) -> list[Finding]:
    return [Finding(f"{folder}/{name}", "is no file of this run") for name in sorted({*store.names(folder)} - expected)]


def _check_bytes(store: Store, path: str, file: sink.FileFacts, found: list[Finding]) -> None:
    with store.open(path) as handle:
        found += _differing_bytes(path, sink.facts_of(handle), file)


def _differing_bytes(path: str, now: sink.FileFacts, then: sink.FileFacts) -> list[Finding]:
    if now.bytes != then.bytes:
        return [Finding(path, f"has {now.bytes} bytes, {then.bytes} were written")]
    return [Finding(path, "its sha256 is not that of what was written")] if now.sha256 != then.sha256 else []


def check_shard(store: Store, home: str, line: Line, facts: sink.ShardFacts | None) -> list[Finding]:
    """The files of one shard against its line in the manifest, against `facts` where they are known, and with one another."""
    found: list[Finding] = []
    for name, file in (facts.files if facts else {}).items():
        if file is not None and name != line.name:
            with reading(f"{home}/{name}", found):
                _check_bytes(store, f"{home}/{name}", file, found)
    listing: pa.Table | None = None
    parquet, stats, tar = (f"{home}/{line.stem}{end}" for end in (".parquet", "_stats.json", ".tar"))
    with reading(parquet, found), store.ranges(parquet) as handle:
        file = pq.ParquetFile(handle)
        listing = file.read(columns=[*check.COLUMNS, *(name for name in check.CLIPS if name in file.schema_arrow.names)])
    with reading(stats, found):
        value = _json(store, stats, dict[str, Any])
        found += [Finding(stats, fault) for fault in check.statistics_faults(value, listing)] if listing is not None else []
    with reading(tar, found), store.open(tar) as handle:
        read = check.read_tar(handle, line.stem, listing)
        found += _differing_bytes(tar, read.file, sink.FileFacts(line.bytes, line.sha256))
        found += [Finding(f"{tar} {key}".rstrip(), fault) for key, fault in read.faults]
        if len(read.keys) != line.samples:
            found.append(Finding(tar, f"has {len(read.keys)} samples, the manifest says {line.samples}"))
    found = list(dict.fromkeys(found))
    more = len(found) - MOST
    return [*found[:MOST], *([Finding(f"{home}/{line.stem}", f"{more} more findings of this shard")] if more > 0 else [])]


# The ledger: each of its rows with all that says something of the row


def check_ledger(known: Known, manifest: Manifest, taken_over: set[str], found: list[Finding]) -> None:
    """Ledger and report against rows, selection, the stages' files and the shards' Parquet, row by row."""
    store, folder = known.run.store, f"ledger/{known.keys['shards']}"
    levels: dict[str, Level] = {}
    counts: dict[str, Any] = {}
    with reading(folder, found):
        levels |= {known.run.layout.level: Level("ledger", folder, known.parts)}
        if known.run.layout.expand:
            levels["rows"] = Level("parents_ledger", f"{folder}/parents", rows.parts(known.run, known.files, "rows"))
        for level in levels.values():
            found += _strays(store, level.folder, {*level.names, "done.json", "parents"})
        unread = _unreadable(store, sorted({*_committed(known, manifest, levels)}))
        if unread:
            found += [*unread, Finding(folder, "was not compared row by row, for want of files that can be read")]
            return
        with views.connect(store) as con:
            for level in levels.values():
                views.files(con, level.view, store, level.paths, SCHEMA)
            _view_listed(store, manifest, taken_over, con)
            _check_rows(known, manifest, con, levels, found)
            counts |= {name: _counts(con, level) for name, level in levels.items()}
    if not counts:
        return
    with reading(f"{folder}/done.json", found):
        found += _differ(f"{folder}/done.json", _json(store, f"{folder}/done.json", dict[str, Any]), counts)
    with reading(REPORT, found):
        expected = counts[known.run.layout.level] | ({"parents": counts["rows"]} if len(levels) > 1 else {})
        expected["shards"] = {"count": len(manifest.shards), "samples": manifest.samples, "bytes": manifest.bytes}
        report = _json(store, REPORT, dict[str, Any])
        if str(report.get("shards_at")).endswith(manifest.key):  # else it tells of former shards: the run was killed before it
            found += _differ(REPORT, report, expected)


@dataclass(frozen=True)
class Level:
    """The ledger of one level: its view, its folder, and the parts that it must have."""

    view: str
    folder: str
    parts: list[Part]

    @property
    def names(self) -> list[str]:
        return [part_name(part.no) for part in self.parts if part.rows]

    @property
    def paths(self) -> list[str]:
        return [f"{self.folder}/{name}" for name in self.names]


def _committed(known: Known, manifest: Manifest, levels: dict[str, Level]) -> Iterator[str]:
    """Every Parquet file that is compared: those that must be there, and those that are."""
    for level in levels.values():
        yield from (part.path for part in level.parts)
        yield from level.paths
    yield from (f"{known.folder('selection')}/{name}" for name in levels[known.run.layout.level].names)
    for phase in ("dedup", "pool", "scores", "image_dedup"):
        if phase in known.keys:
            yield from (f"{known.folder(phase)}/{name}" for name in known.run.store.names(known.folder(phase), ".parquet"))
    yield from _listings(manifest)


def _listings(manifest: Manifest) -> list[str]:
    return [f"shards/{manifest.key}/{line.stem}.parquet" for line in manifest.shards]


def _unreadable(store: Store, paths: list[str]) -> list[Finding]:
    """Opens every file, so that one that DuckDB would stumble over is named."""

    def opened(path: str) -> list[Finding]:
        found: list[Finding] = []
        with reading(path, found), store.ranges(path) as handle:
            pq.ParquetFile(handle)
        return found

    with ThreadPoolExecutor(READERS) as pool:
        return [finding for found in pool.map(opened, paths) for finding in found]


def _check_rows(known: Known, manifest: Manifest, con: Any, levels: dict[str, Level], found: list[Finding]) -> None:
    folder = f"ledger/{known.keys['shards']}"
    known.view_known(con, "known", image_dedup=True)
    select.view_selected(known, con)
    parent = "r.parent" if known.run.layout.expand else "NULL"
    stage: Any = known.run.layout.shards.stage
    key = stage.key_sql("s.shard", 's."index"', ledger.shards_total(known))
    chosen = (
        f"SELECT r.row, {parent} AS parent, r.uid, r.url, s.fate, s.detail, s.shard, CASE WHEN s.fate = '{KEPT}' THEN {key} END AS key "
        "FROM rows r JOIN selected s ON s.row = r.row"
    )
    found += _compare(con, folder, "SELECT * FROM ledger", "the selection", chosen, SCHEMA.names[1:])
    told = f"SELECT * REPLACE (CASE WHEN fate <> '{KEPT}' THEN coalesce(detail, fate) END AS detail) FROM ledger"
    found += _compare(con, folder, told, "the shards' Parquet", "SELECT * FROM listed", ["uid", "url", "fate", "detail", "shard", "key"])
    found += _compare(con, folder, UNCHOSEN, "the stages' files", _fetched(con, known), ["fate", "detail"])
    for relation, where in (("listed", f"shards/{manifest.key}/*.parquet"), *((level.view, level.folder) for level in levels.values())):
        ((lines, different),) = con.execute(f"SELECT count(*), count(DISTINCT row) FROM {relation}").fetchall()
        if lines != different:
            found.append(Finding(where, f"has {lines:,} lines of {different:,} different rows"))
    ((kept, keys),) = con.execute(f"SELECT count(*), count(DISTINCT key) FROM ledger WHERE fate = '{KEPT}'").fetchall()
    if {kept, keys} != {manifest.samples}:
        found.append(Finding(folder, f"has {kept:,} kept rows with {keys:,} keys, the manifest has {manifest.samples:,} samples"))
    if len(levels) > 1:
        found += _check_parents(known, con, f"{folder}/parents")


# The ledger's fates as they were before the selection.
CHOSEN = f"fate = '{KEPT}' OR starts_with(fate, 'selection:')"
UNCHOSEN = (
    f"SELECT row, CASE WHEN {CHOSEN} THEN '{KEPT}' ELSE fate END AS fate, "
    f"CASE WHEN {CHOSEN} THEN NULL ELSE detail END AS detail FROM ledger"
)


def _fetched(con: Any, known: Known) -> str:
    """SQL of the fates that the stages gave. A later fetch, of a retry that is not finished, does not belie an earlier one."""
    if all(addition_of(name)[1] == 0 for name in known.run.store.names(known.folder("pool"), ".parquet")):
        return "SELECT row, fate, detail FROM known"
    con.execute(f"CREATE OR REPLACE TEMP VIEW unchosen AS {UNCHOSEN}")
    return (
        "SELECT k.row, CASE WHEN p.fate IS NULL THEN k.fate ELSE p.fate END AS fate, "
        "CASE WHEN p.fate IS NULL THEN k.detail ELSE p.detail END AS detail FROM known k LEFT JOIN unchosen u ON u.row = k.row "
        "LEFT JOIN (SELECT DISTINCT fetch_id, fate, detail FROM pool_all) p "
        "ON p.fetch_id = k.fetch_id AND p.fate = u.fate AND p.detail IS NOT DISTINCT FROM u.detail"
    )


def _view_listed(store: Store, manifest: Manifest, taken_over: set[str], con: Any) -> None:
    """View `listed`: the lines of all shards' Parquet in the ledger's words, `detail` what error_message says.

    A shard that was taken over lists the rows that were dropped then: of those that are in another shard now nothing is said,
    of the others no fate.
    """
    paths = _listings(manifest)
    shards, taken = [int(line.stem) for line in manifest.shards], [line.name in taken_over for line in manifest.shards]
    texts = [(name, pa.string()) for name in ("uid", "url", "fate", "error_message", "key", "status")]
    views.files(con, "listings", store, paths, pa.schema([("row", pa.int64()), *texts]))
    addresses = pa.array([store.address(path) for path in paths], pa.string())
    con.register("numbers", pa.table({"filename": addresses, "shard": pa.array(shards, pa.int32()), "taken": pa.array(taken, pa.bool_())}))
    old = "n.taken AND p.status <> 'success'"
    still = f"WHEN {old} AND l.fate <> '{KEPT}' THEN"
    con.execute(
        f"CREATE OR REPLACE TEMP VIEW listed AS SELECT p.row, p.uid, p.url, CASE {still} l.fate ELSE p.fate END AS fate, "
        f"CASE {still} coalesce(l.detail, l.fate) ELSE p.error_message END AS detail, n.shard, "
        "CASE WHEN p.status = 'success' THEN p.key END AS key FROM listings p JOIN numbers n USING (filename) "
        f"LEFT JOIN ledger l ON n.taken AND l.row = p.row WHERE ({old} AND l.shard <> n.shard) IS NOT TRUE"
    )


def _check_parents(known: Known, con: Any, folder: str) -> list[Finding]:
    """The level of the input rows: as the stages left them, and kept where they have children."""
    views.rows(con, "parents", known.run.store, rows.parts(known.run, known.files, "rows"), known.row_schema("rows"))
    as_made = "SELECT row, NULL AS parent, uid, url, fate, detail, NULL AS shard, NULL AS key FROM parents"
    found = _compare(con, folder, "SELECT * FROM parents_ledger", "the stages' files", as_made, SCHEMA.names[1:])
    ((wrong, first),) = con.execute(
        "SELECT count(*), min(coalesce(p.row, c.parent)) FROM parents_ledger p FULL JOIN (SELECT DISTINCT parent FROM ledger) c "
        f"ON c.parent = p.row WHERE (p.fate = '{KEPT}') IS DISTINCT FROM (c.parent IS NOT NULL)"
    ).fetchall()
    if wrong:
        found.append(Finding(folder, f"has {_rows(wrong)} kept without a child, or not kept with one; the first is row {first}"))
    return found


def _compare(con: Any, where: str, mine: str, other: str, theirs: str, columns: list[str]) -> list[Finding]:
    """Where the ledger (the query `mine`) and `other` (the query `theirs`) differ in rows or in these columns."""
    diff = views.differences(con, mine, theirs, columns)
    whole = [(diff.lacking, "has {} that {} has not"), (diff.foreign, "lacks {} of {}")]
    found = [Finding(where, f"{what.format(_rows(one.rows), other)}; the first is row {one.first}") for one, what in whole if one.rows]
    for column, one in diff.columns.items():
        if one.rows:
            values = f"{one.mine[:SHORT]!r}, not {one.theirs[:SHORT]!r}"
            found.append(Finding(where, f"{column} of {_rows(one.rows)} is not as in {other}; the first is row {one.first}: {values}"))
    return found


def _rows(count: int) -> str:
    return f"{count:,} row{'s' * (count > 1)}"


def _counts(con: Any, level: Level) -> dict[str, Any]:
    """Rows in, kept and dropped of a level, counted in its ledger."""
    dropped = dict(con.execute(f"SELECT fate, count(*) FROM {level.view} GROUP BY fate").fetchall())
    return {"rows_in": sum(part.rows for part in level.parts), "kept": dropped.pop(KEPT, 0), "dropped": dropped}


def _differ(path: str, said: dict[str, Any], counted: dict[str, Any], within: str = "") -> list[Finding]:
    """What a JSON file says otherwise than what was counted; of objects, each entry that differs."""
    found = []
    for name, count in counted.items():
        value = said.get(name)
        if isinstance(value, dict) and isinstance(count, dict):
            found += _differ(path, value, {**dict.fromkeys(value), **count}, f"{within}{name} ")
        elif value != count:
            found.append(Finding(path, f"{within}{name} is {value}, counted: {count}"))
    return found


def show(folder: str) -> bool:
    """Prints what was checked and what was found; True when all agrees."""
    manifest, found = run(folder)
    for finding in found[:SHOWN]:
        print(_line(f"{finding.where}: {finding.what}"))
    if len(found) > SHOWN:
        print(f"… and {len(found) - SHOWN:,} more")
    shards, samples = len(manifest.shards), manifest.samples
    agrees = "all agrees: sha256, samples, keys, images, Parquet, statistics, indices, ledger, report"
    verdict = f"{len(found)} fault{'s' * (len(found) > 1)}" if found else agrees
    print(f"{shards:,} shards, {samples:,} samples, {manifest.bytes / 1e6:,.1f} MB read: {verdict}")
    return not found


def _line(text: str) -> str:
    """A text on one line without control characters: what stands in falsified files may be anything."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
