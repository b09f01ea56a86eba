"""A Ray of several nodes on one machine: real raylets, each with its own object store, of which any may leave and more may join."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

MEMORY = 100 << 20  # bytes of each node's object store


class Nodes:
    """A running Ray cluster. The head has no CPUs, so that work is on nodes that may leave."""

    def __init__(self, cpus: int) -> None:
        from ray.cluster_utils import Cluster

        self.cpus = cpus
        self.cluster: Any = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": MEMORY}
        )
        self.workers: list[Any] = []

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add_one(self, **environment: str) -> None:
        """A node joins; its processes see `environment` besides this process's."""
        with _environment(environment):
            self.workers.append(self.cluster.add_node(num_cpus=self.cpus, object_store_memory=MEMORY))

    def remove_one(self) -> None:
        """A node leaves without a word: its raylet is killed."""
        self.cluster.remove_node(self.workers.pop(0), allow_graceful=False)


@contextlib.contextmanager
def _environment(changed: dict[str, str]) -> Iterator[None]:
    """This process's environment with some variables changed, which the processes that it starts meanwhile keep."""
    import os

    before = dict(os.environ)
    os.environ.update(changed)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def ray_cluster(nodes: int, cpus: int) -> Iterator[Nodes]:
    """A cluster of `nodes` nodes with `cpus` CPUs each, besides its head."""
    made = Nodes(cpus)
    try:
        for _ in range(nodes):
            made.add_one()
        made.cluster.wait_for_nodes()
        yield made
    finally:
        made.cluster.shutdown()
