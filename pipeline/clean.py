"""`shardmill clean`: removes what nobody needs of a run any more: old keys, comparisons of former shards, what killed workers left."""

from __future__ import annotations

from typing import Any

from pipeline.keys import digest
from pipeline.phases import fetch
from pipeline.runs import check_writable, states
from pipeline.storage import Store

PHASES = ("rows", "children", "dedup", "pool", "scores", "image_dedup", "selection", "shards", "ledger")


def run(folder: str) -> list[str]:
    """Removes old keys and prints each. Returns what was removed.

    What is published stays, what was begun since stays, and so do the shards that retries of their pools append to.
    """
    store = Store(folder)
    states(store)  # no run here: said before anything is touched
    check_writable(store)
    removed = []
    with store.locked("run"):
        current = {key for state in states(store) if state for key in _keys(store, state)}
        for phase in PHASES:
            for key in store.names(phase):
                if key not in current and not key.endswith(".json"):
                    removed.append(f"{phase}/{key}")
                    store.remove(removed[-1])
        removed += _comparisons(store)
        store.remove("tmp")
        removed += store.sweep()
    for path in removed:
        print(f"removed {store.address(path)}")
    print(f"{len(removed)} removed; the current keys of {store.url} stay")
    return removed


def _comparisons(store: Store) -> list[str]:
    """Removes what `shardmill compare` wrote of former shards of this run; their names."""
    _, published = states(store)
    removed = []
    for name in store.names("report", ".json"):
        found = store.read_json(f"report/{name}") if name.startswith("compare-") and published else {}
        shards = found.get("b", {}).get("shards")
        if published and shards and shards != published["keys"]["shards"]:
            for path in (f"report/{name}", f"report/{name.removesuffix('.json')}.html"):
                store.remove(path)
                removed.append(path)
    return removed


def _keys(store: Store, state: dict[str, Any]) -> set[str]:
    """Every key that a state of run.json is made of, or would be if it were come back to."""
    keys = {*state["keys"].values(), *(digest(made) for made in state["made_of"]["rows"].values())}
    return keys | {note[phase] for note in fetch.retries(store, state["keys"]["pool"]) for phase in ("shards", "selection")}
