"""`shardmill retry`: fetches anew the rows whose fetch ended with given fates, and writes the newly kept ones into new shards."""

from __future__ import annotations

from pipeline import catalog, views
from pipeline.errors import UserError
from pipeline.keys import digest
from pipeline.known import Known
from pipeline.ledger import Balance
from pipeline.phases import rows
from pipeline.phases.fetch import RETRIES, bare_files
from pipeline.phases.ledger import view_ledger
from pipeline.runs import Again, Result, reopen, told


def run(folder: str, reasons: list[str], rebuild: bool = False) -> Result:
    """Retries and finishes the run. `rebuild`: all shards are written anew instead of appending to them.

    Where no row ended so, it says that and changes nothing. Raises UserError for a fate that no fetch can have, and where the
    stages changed since the shards were made.
    """
    known = reopen(folder)
    possible = {fate for entry in known.run.layout.pool for fate in catalog.fates(entry.stage)}
    for reason in reasons:
        if reason not in possible:
            raise UserError(f"--reason {reason}: no fate of a fetch; valid: {', '.join(sorted(possible))}")
    store = known.run.store
    if not store.exists("shards/manifest.json"):
        raise UserError(f"{folder}: the run is not finished; repeat `shardmill run` first")
    if _changed(known):
        raise UserError(f"{folder}: stages changed since: repeat `shardmill run` first")
    if rebuild and bare_files(store, known.folder("pool")):
        raise UserError(f"{folder}: pool.keep is false, so the images of the shards are gone: retry with --append, or run with a new name")
    # The note comes before the work, since it names what the pool will hold. A retry that was cut off has a note that the
    # published shards know nothing of: then the same command goes on with it.
    earlier = known.made_of["selection"]["retries"]
    unfinished = known.retries[len(earlier) :]
    if unfinished and (unfinished[-1]["reasons"], unfinished[-1]["rebuild"]) != (sorted(reasons), rebuild):
        raise UserError(f"{folder}: an earlier retry is unfinished; repeat it first, or `shardmill run`")
    # The rows are the published ones: the list that they came from need not be there any more.
    files = known.files if all(done for _, done in rows.state(known.run, known.files)) else None
    if unfinished:
        return told(known.run.config, known.run.where, again=Again(reasons, files))
    if not _ended_so(known, reasons):
        print(f"{folder}: no row ended with {' or '.join(reasons)}; nothing to try again")
        return _as_it_is(known)
    note = {"reasons": sorted(reasons), "rebuild": rebuild, "shards": known.keys["shards"], "selection": known.keys["selection"]}
    path = f"{known.folder('pool')}/{RETRIES}{len(known.retries):04d}.json"
    return told(known.run.config, known.run.where, again=Again(reasons, files, (path, note)))


def _changed(known: Known) -> bool:
    """Whether any stage's key would be another one now: then nothing could be appended to the published shards."""
    today = known.after(known.made_of["selection"]["retries"])
    if any(digest(today[name]) != key for name, key in known.keys.items()):
        return True
    return any(digest(rows.made_of(known.run, file)) != rows.key_of(known.run, file) for file in known.files)


def _ended_so(known: Known, reasons: list[str]) -> int:
    """How many rows of the ledger have one of these fates."""
    with views.connect(known.run.store) as con:
        view_ledger(known, con)
        listed = ", ".join(map(views.quote, reasons))
        return int(con.execute(f"SELECT count(*) FROM ledger WHERE fate IN ({listed})").fetchall()[0][0])


def _as_it_is(known: Known) -> Result:
    store = known.run.store
    levels = store.read_json(f"ledger/{known.keys['shards']}/done.json")
    return Result(store.url, {level: Balance(**found) for level, found in levels.items()})
