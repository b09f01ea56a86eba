"""The engine's plan without Ray: each job in turn, in this process. What differs from a real run is the engine's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import views
from pipeline.config import load
from pipeline.layout import open_run
from pipeline.progress import Quiet
from pipeline.runs import Result, Session, list_input, phases


class Serial:
    """What phases ask of an engine."""

    started_s = 0.0
    driver_bytes = 0

    def cpus(self) -> int:
        return 1

    def fitting(self, _needs: Any) -> int:
        return 1

    def tasks(self, work: Any, jobs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        work.open()
        return [{**work(job, False), "id": job["id"]} for job in jobs]

    def stream(self, works: Sequence[Any], jobs: Sequence[dict[str, Any]], sizes: Sequence[int]) -> list[dict[str, Any]]:
        return asyncio.run(self._stream(works, jobs))

    async def _stream(self, works: Sequence[Any], jobs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        for work in works:
            work.open()
        done = []
        for job in jobs:
            said: dict[str, Any] = dict(job)
            for work in works:
                said |= await work.run(job, False)
            done.append(said)
        await works[0].stages[0].aclose()
        return done


def run(config: Path) -> Result:
    """As `pipeline.run`, without Ray."""
    this = open_run(load(config), str(config))
    with views.connect(this.store) as con:
        return phases(Session(this, Serial(), con, Quiet()), list_input(this), {}, None)  # type: ignore[arg-type]
