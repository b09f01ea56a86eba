"""Whether the nodes can do the work: room for workers, and on a Ray cluster the same Python, Ray and shardmill, and the run's
storage in reach."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from typing import Any

from pipeline.errors import UserError
from pipeline.frame import error_text
from pipeline.stage import Resources
from pipeline.storage import Store
from pipeline.workers import Work

NODE_S = 60.0  # how long a node may take to answer before the work


def check_room(works: Sequence[Work]) -> None:
    """Raises UserError for a worker that no node has room for: Ray would wait for such a node without end."""
    import ray

    rooms = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for work in works:
        need = _need(work.resources)
        if any(all(room.get(name, 0) >= amount for name, amount in need.items()) for room in rooms):
            continue
        lacking = [name for name, amount in need.items() if all(room.get(name, 0) < amount for room in rooms)] or list(need)
        stages: Sequence[Any] = getattr(work, "needing", [work])
        named = max(stages, key=lambda stage: _need(stage.resources)[lacking[0]]).name
        have = " or ".join(sorted({_told({name: room.get(name, 0) for name in need}) for room in rooms}))
        raise UserError(
            f"stage {named}: a worker of phase {work.name} needs {_told(need)}; no machine has that, only {have}. "
            f"Take a machine with more, or let the stage ask for less ({', '.join(lacking)})"
        )


def fitting(needs: Resources) -> int:
    """How many workers with these needs have room at once on all nodes, of several nodes also when the largest leaves, but half at least:
    Ray begins a lost worker elsewhere, and the jobs that it had in hand wait for that, with no room left until the others are through.
    """
    import ray

    need = {name: amount for name, amount in _need(needs).items() if amount}
    rooms = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fits = [min((int(room.get(name, 0) / amount + 1e-6) for name, amount in need.items()), default=1) for room in rooms]
    return max(sum(fits) - max(fits), sum(fits) // 2) if sum(map(bool, fits)) > 1 else sum(fits)


def _need(needs: Resources) -> dict[str, float]:
    return {"CPU": needs.cpus, "GPU": needs.gpus, "memory": needs.memory}


def _told(room: dict[str, float]) -> str:
    return f"{room['CPU']:g} CPU, {room['GPU']:g} GPU and {room['memory'] / 2**30:.1f} GiB of memory"


def check_nodes(store: Store) -> None:
    """Raises UserError naming each node that could not do the work, and how to mend it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ask = ray.remote(num_cpus=0, max_retries=0)(_node_facts)
    asked = {}
    for node in ray.nodes():
        if node["Alive"]:
            place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[node["NodeManagerAddress"], node["NodeID"][:8]] = ask.options(scheduling_strategy=place).remote(store)
    own, faults = _node_facts(store), []
    for (address, node_id), answer in asked.items():
        try:
            facts = ray.get(answer, timeout=NODE_S)
        except Exception as err:  # noqa: BLE001 (whatever hinders a node is told with its name)
            faults.append(f"node {address} ({node_id}) cannot run shardmill: {last_words(err)}; install it there, or use shardmill submit")
            continue
        faults += [
            f"node {address} ({node_id}): {name} is {facts[name]}, here it is {own[name]}; install the same on all nodes"
            for name in ("python", "ray", "code")
            if facts[name] != own[name]
        ]
        if facts["storage"]:
            faults.append(
                f"node {address} ({node_id}) cannot read and write {store.url}: {facts['storage']}; give it access, or change run.root"
            )
    if faults:
        raise UserError("\n".join(faults))


def last_words(err: Exception) -> str:
    """Of a worker's trace, which Ray packs into its own words, the line that names the error."""
    named = [line.strip() for line in str(err).splitlines() if re.match(r"\s*\w+Error: ", line)]
    return named[-1] if named else error_text(err)


def _node_facts(store: Store) -> dict[str, str]:
    """This node's versions, a hash of our code, and what hinders it from using the run's storage ("" when nothing does)."""
    import hashlib
    import platform
    from pathlib import Path

    import ray

    import stages

    code = hashlib.sha256()
    for package in (Path(__file__).parent, Path(str(stages.__file__)).parent):
        for file in sorted(package.rglob("*.py")):
            code.update(file.read_bytes())
    probe, hindered = f"tmp/nodes/{uuid.uuid4().hex}", ""
    try:
        store.write(probe, b"shardmill")
        if store.read(probe) != b"shardmill":
            hindered = "what was written is not what is read"
        store.remove(probe)
    except Exception as err:  # noqa: BLE001 (told to the user as it is)
        hindered = error_text(err.__cause__ or err)
    return {"python": platform.python_version(), "ray": ray.__version__, "code": code.hexdigest()[:12], "storage": hindered}
