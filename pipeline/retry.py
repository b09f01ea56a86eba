"""`shardmill retry`: fetches anew the rows whose fetch ended with given fates, and writes the newly kept ones into new shards."""

from __future__ import annotations

from pipeline import catalog
from pipeline.errors import UserError
from pipeline.phases.fetch import RETRIES, bare_files
from pipeline.runs import Result, reopen, told


def run(folder: str, reasons: list[str], rebuild: bool = False) -> Result:
    """Retries and finishes the run. `rebuild`: all shards are written anew instead of appending to them.

    Raises UserError for a fate that no fetch can have.
    """
    known = reopen(folder)
    possible = {fate for entry in known.run.layout.pool for fate in catalog.fates(entry.stage)}
    for reason in reasons:
        if reason not in possible:
            raise UserError(f"--reason {reason}: no fate of a fetch; valid: {', '.join(sorted(possible))}")
    store = known.run.store
    if not store.exists("shards/manifest.json"):
        raise UserError(f"{folder}: the run is not finished; repeat `shardmill run` first")
    if rebuild and bare_files(store, known.folder("pool")):
        raise UserError(f"{folder}: pool.keep is false, so the images of the shards are gone: retry with --append, or run with a new name")
    note = {"reasons": sorted(reasons), "rebuild": rebuild, "shards": known.keys["shards"], "selection": known.keys["selection"]}
    # The note comes before the work, since it names what the pool will hold. A retry that was cut off has a note, but its
    # shards are not the manifest's yet: then the same command goes on with it.
    cut_off = known.retries and store.read_json("shards/manifest.json")["key"] != known.keys["shards"]
    if cut_off and (known.retries[-1]["reasons"], known.retries[-1]["rebuild"]) != (note["reasons"], rebuild):
        raise UserError(f"{folder}: an earlier retry is unfinished; repeat it first, or `shardmill run`")
    if not cut_off:
        store.write_json(f"{known.folder('pool')}/{RETRIES}{len(known.retries):04d}.json", note)
    return told(known.run.config, known.run.where, again=reasons)
