"""A Ray of several nodes on one machine: real raylets, each with its own object store, of which any may leave and more may join."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MEMORY = 100 << 20  # bytes of each node's object store


class Nodes:
    """A running Ray cluster. The head has no CPUs, so that work is on nodes that may leave."""

    def __init__(self, cpus: int, jobs: bool = False, memory: int | None = None) -> None:
        from ray.cluster_utils import Cluster

        self.each = {"num_cpus": cpus, "object_store_memory": MEMORY, "memory": memory}
        head: dict[str, Any] = {"num_cpus": 0, "object_store_memory": MEMORY, "include_dashboard": jobs}
        if jobs:  # ports of its own: another Ray on this machine has the usual ones
            head |= {"dashboard_port": free_port(), "dashboard_agent_listen_port": free_port()}
        with _environment({"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}):
            self.cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        self.workers: list[Any] = []

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    @property
    def jobs_address(self) -> str:
        return f"http://{self.cluster.webui_url}"

    def add_one(self, **environment: str) -> None:
        """A node joins; its processes see `environment` besides this process's."""
        with _environment(environment):
            self.workers.append(self.cluster.add_node(**self.each))

    def remove_one(self) -> None:
        """A node leaves without a word: its raylet is killed."""
        self.cluster.remove_node(self.workers.pop(0), allow_graceful=False)


@contextlib.contextmanager
def _environment(changed: dict[str, str]) -> Iterator[None]:
    """This process's environment with some variables changed, which the processes that it starts meanwhile keep."""
    before = dict(os.environ)
    os.environ.update(changed)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def ray_cluster(nodes: int, cpus: int, jobs: bool = False, memory: int | None = None) -> Iterator[Nodes]:
    """A cluster of `nodes` nodes with `cpus` CPUs and `memory` bytes each, besides its head; with `jobs`, the head serves jobs."""
    made = Nodes(cpus, jobs, memory)
    try:
        for _ in range(nodes):
            made.add_one()
        made.cluster.wait_for_nodes()
        yield made
    finally:
        made.cluster.shutdown()


def free_port() -> int:
    """A port on which nobody listens now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
