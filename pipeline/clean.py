"""`shardmill clean`: removes what the current state of a run no longer uses: old keys and leftovers of killed workers."""

from __future__ import annotations

from pipeline.keys import digest
from pipeline.runs import locked, reopen

PHASES = ("rows", "children", "dedup", "pool", "scores", "image_dedup", "selection", "shards", "ledger")


def run(folder: str) -> list[str]:
    """Removes old keys and prints each; the pool of the current config stays. Returns what was removed."""
    known = reopen(folder)
    store = known.run.store
    current = {*known.keys.values(), *(digest(made) for made in known.made_of["rows"].values())}
    removed = []
    with locked(known.run):
        for phase in PHASES:
            for key in store.names(phase):
                if key not in current and not key.endswith(".json"):
                    removed.append(f"{phase}/{key}")
                    store.remove(removed[-1])
        store.remove("tmp")
        removed += store.sweep()
    for path in removed:
        print(f"removed {store.address(path)}")
    print(f"{len(removed)} removed; the current keys of {store.url} stay")
    return removed
