"""The workers' side of the engine: what a Ray task or actor does around a job, and the board that all of them talk to."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import threading
import time
import traceback
import uuid
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, cast

import pyarrow as pa

from pipeline import careful
from pipeline.errors import ContractError, ShardmillError, TransientError, UserError
from pipeline.frame import error_text, machine_fault
from pipeline.heart import HEART
from pipeline.parts import Attempts
from pipeline.stage import Resources, Stage
from pipeline.storage import Store

ATTEMPTS = 2  # deaths or machine faults of a job before it is run carefully
BEAT_S = 1.0
SAFE = "What is committed is safe: mend, then repeat the command"
METRICS = pa.schema(
    {
        "phase": pa.string(),
        "part": pa.string(),
        "stage": pa.string(),
        "rows": pa.int64(),
        "seconds": pa.float64(),
        "cpu_seconds": pa.float64(),
        "ended": pa.float64(),  # seconds since 1970: about when the part was committed
    }
)
Job = dict[str, Any]
Done = dict[str, Any]


class Work(Protocol):
    """What a worker does with a job; pickled to it. `resources` is for one worker, see `together`."""

    @property
    def name(self) -> str: ...

    @property
    def resources(self) -> Resources: ...

    def open(self) -> None:
        """Loads what it needs, once a worker process."""

    def __call__(self, job: Job, careful: bool, /) -> Done:
        """Does the job and commits it; `careful` when it has killed workers before."""


class AsyncWork(Work, Protocol):
    """Work with many jobs in flight in one worker: waits without blocking."""

    async def run(self, job: Job, careful: bool) -> Done:
        """As `__call__`."""


def together(stages: Sequence[Stage], base: int = 0) -> Resources:
    """What a worker needs that runs all these stages, one after the other: the most of each, and `base` bytes that are nobody's own."""
    needs = [stage.resources for stage in stages]
    return Resources(
        cpus=max(n.cpus for n in needs),
        gpus=max(n.gpus for n in needs),
        memory=base + max(n.memory for n in needs),
        concurrency=max((n.concurrency for n in needs if n.concurrency), default=None),
    )


def dumps(what: Any) -> bytes:
    """Pickles with Ray's cloudpickle, which takes a user's own module along by value."""
    from ray import cloudpickle

    data: bytes = cloudpickle.dumps(what)
    return data


def start_board(download: dict[str, Any]) -> Any:
    """The board, on the driver's own node: other nodes may leave while the run goes on."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    @ray.remote(num_cpus=0, max_concurrency=64)
    class Board:
        """Where workers say what they do, and ask for requests to a host: one for the run."""

        def __init__(self, download: dict[str, Any]) -> None:
            self.beats: dict[str, tuple[float, dict[str, Any]]] = {}
            self.budget = _host_budget(download)

        async def beat(self, worker: str, snapshot: dict[str, Any]) -> None:
            self.beats[worker] = (time.monotonic(), snapshot)

        async def forget(self) -> None:
            """A phase begins: who died in one before it says nothing any more, and its last words are not of this one."""
            self.beats.clear()

        async def read(self) -> dict[str, Any]:
            clock, now = time.monotonic(), []
            rows: dict[str, int] = {}
            for at, snapshot in self.beats.values():
                for stage, count in snapshot["rows"].items():
                    rows[stage] = rows.get(stage, 0) + count
                now += [(part, stage, seconds + clock - at) for part, stage, seconds in snapshot["now"]]
            return {"rows": rows, "now": now}

        async def lease(self, worker: str, want: dict[str, int], give_back: dict[str, int]) -> dict[str, int]:
            granted: dict[str, int] = self.budget.lease(worker, want, give_back, time.monotonic())
            return granted

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Board.options(scheduling_strategy=here).remote(download)  # type: ignore[attr-defined]


def _host_budget(options: dict[str, Any]) -> Any:
    from stages.download.stage import Download

    return Download(Download.Config.model_validate(options)).budget()


class Worker:
    """Common to tasks and actors: opens the work once a process, sends beats, turns faults into words."""

    opened: ClassVar[dict[str, Work]] = {}  # this process's, by identity: one at a time

    def __init__(self, work: Work, store: Store, board: Any) -> None:
        self.work, self.store, self.board = work, store, board
        self.identity = uuid.uuid4().hex

    def ready(self) -> Work:
        """This process's opened copy of the work."""
        if self.identity not in Worker.opened:
            for other in Worker.opened.values():
                getattr(other, "close", lambda: None)()
            _start_beating(self.board)
            with HEART.at(self.work.name, f"{self.work.name} (open)", 0):
                self.work.open()
            if not self.work.resources.gpus:  # CUDA maps far more than it uses
                careful.limit_memory(self.work.resources.memory + careful.SLACK)
            if hasattr(self.work, "lease_call"):
                self.work.lease_call = self._lease
            Worker.opened = {self.identity: self.work}
        return Worker.opened[self.identity]

    async def _lease(self, worker: str, want: dict[str, int], give_back: dict[str, int]) -> dict[str, int]:
        from ray.exceptions import RayError

        try:
            granted: dict[str, int] = await self.board.lease.remote(worker, want, give_back)
        except RayError as err:  # no row is to blame
            raise TransientError(f"the run's board is gone: {error_text(err)}; repeat the command") from err
        return granted

    def begin(self, job: Job) -> tuple[Attempts, bool]:
        attempts = Attempts(self.store, job["id"])
        return attempts, attempts.begin() >= ATTEMPTS

    def end(self, attempts: Attempts, job: Job, done: Done) -> None:
        """Leaves a committed part's times beside it, a row a stage, whatever becomes of the session; and forgets its attempts."""
        new = {stage: timing for stage, timing in done.get("timings", {}).items() if stage not in job.get("timings", {})}
        if new:
            told = {"phase": self.work.name, "part": job["id"], "ended": round(time.time(), 3)}
            lines = [{**told, "stage": stage, **timing} for stage, timing in new.items()]
            name = f"{job['id'].replace('/', '-')}-{uuid.uuid4().hex[:8]}.parquet"
            self.store.write_table(f"metrics/{name}", pa.Table.from_pylist(lines, METRICS))
        attempts.end()


def give_back_memory() -> None:
    """Freed memory goes back to the system, where the C library can do that (glibc): by itself it keeps what lies below anything still in
    use, and a worker that did a part of a dedup would hold 500 MB while it waits. Takes some 40 ms then."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class Tasks(Worker):
    """A function of one-line tables, for Ray tasks."""

    def __call__(self, table: Any) -> Any:
        job, attempts = json.loads(table["line"][0].as_py()), cast(Attempts | None, None)
        try:
            work = self.ready()
            attempts, risky = self.begin(job)
            done = {**work(job, risky), "id": job["id"]}
            self.end(attempts, job, done)
        except Exception as err:  # noqa: BLE001 (every fault becomes a word to the driver, which decides)
            done = _failed(job, err, attempts)
        give_back_memory()
        return _line(done)


class Actor(Worker):
    """The same for actors with several jobs in flight."""

    def __init__(self, work: AsyncWork, store: Store, board: Any) -> None:
        super().__init__(work, store, board)
        self.ready()

    async def __call__(self, table: Any) -> Any:
        job, attempts = json.loads(table["line"][0].as_py()), cast(Attempts | None, None)
        if "failed" in job:
            yield _line(job)
            return
        try:
            attempts, risky = self.begin(job)
            done = {**job, **await self.work.run(job, risky), "id": job["id"]}  # type: ignore[attr-defined]
            self.end(attempts, job, done)
        except Exception as err:  # noqa: BLE001 (as above)
            done = _failed(job, err, attempts)
        give_back_memory()
        yield _line(done)


def _line(done: Done) -> Any:
    return pa.table({"line": [json.dumps(done)]})


def _failed(job: Job, err: Exception, attempts: Attempts | None) -> Done:
    no_memory = isinstance(err, MemoryError) or type(err).__name__ == "OutOfMemoryError"  # of which a single row may be guilty
    if attempts is not None and not no_memory:
        with contextlib.suppress(Exception):
            attempts.withdraw()
    kinds = {ContractError: "bug", UserError: "user"}
    kind = next((kind for cls, kind in kinds.items() if isinstance(err, cls)), "machine" if machine_fault(err) else "bug")
    text = str(err) if isinstance(err, ShardmillError) else error_text(err)
    mend = "" if isinstance(err, TransientError) else f". {SAFE}"  # whose text says so itself
    return {"id": job["id"], "failed": text, "kind": kind, "mend": mend, "trace": traceback.format_exc() if kind == "bug" else ""}


_board: list[Any] = []  # where this process beats: Ray hands a worker process from one run to the next


def _start_beating(board: Any) -> None:
    """A daemon thread, one a process, that tells the current run's board once a second what this process does."""
    _board[:] = [board]
    if any(thread.name == "shardmill-heart" for thread in threading.enumerate()):
        return
    worker = f"{os.uname().nodename}-{os.getpid()}"

    def beat() -> None:
        while True:
            _board[0].beat.remote(worker, HEART.snapshot())
            time.sleep(BEAT_S)

    threading.Thread(target=beat, name="shardmill-heart", daemon=True).start()
