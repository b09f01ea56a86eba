"""THE place that knows Ray Data: it hands jobs (a part, a bucket, a shard each) to workers and brings back what they say.

A job is one worker's from its first read to its atomic commit, so image bytes pass neither through the driver nor from
worker to worker; what flows through Ray Data is a line of JSON a job (docs/decisions/0001-parts-on-ray-data.md). Here are
retries of failed jobs, the watchdog for stages that stall, and the one budget of requests per host for the whole run.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from pipeline import careful
from pipeline.config import RunConfig
from pipeline.errors import ContractError, ShardmillError, TransientError, UserError
from pipeline.frame import error_text, machine_fault
from pipeline.heart import HEART
from pipeline.parts import Attempts
from pipeline.stage import Resources
from pipeline.storage import Store

log = logging.getLogger("shardmill")

ATTEMPTS = 2  # deaths or machine faults of a job before it is run carefully
PASSES = 4  # how often failed jobs are handed out again
BEAT_S = 1.0
Job = dict[str, Any]
Done = dict[str, Any]


class Work(Protocol):
    """What a worker does with a job; pickled to it. `resources` is for one worker."""

    name: str
    resources: Resources

    def open(self) -> None:
        """Loads what it needs, once a worker process."""

    def __call__(self, job: Job, careful: bool, /) -> Done:
        """Does the job and commits it; `careful` when it has killed workers before."""


class AsyncWork(Work, Protocol):
    """Work with many jobs in flight in one worker: waits without blocking."""

    async def run(self, job: Job, careful: bool) -> Done:
        """As `__call__`."""


@dataclass
class Progress:
    """What a watcher of the run sees after each beat: jobs done, and the workers' own words."""

    phase: str
    jobs: int
    done: int = 0
    results: list[Done] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    now: list[tuple[str, str, float]] = field(default_factory=list)


Watch = Callable[[Progress], None]


@dataclass
class Engine:
    """A Ray session for one run; use as a context manager. Starting Ray is put off until the first job."""

    config: RunConfig
    store: Store
    watch: Watch = lambda _: None
    modules: Sequence[str] = ()
    owns_ray: bool = False
    board: Any = None
    started_s: float = 0.0

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        if self.board is not None:
            ray.kill(self.board)
        if self.owns_ray:
            ray.shutdown()

    def start(self) -> None:
        """Joins or starts Ray, once. Raises UserError when a cluster cannot be reached."""
        if self.board is not None:
            return
        began = time.monotonic()
        self.owns_ray = _init_ray(self.config)
        _ship_by_value(self.modules)
        self.board = _board_class().remote(self.config.stages.get("download") or {})
        self.started_s = time.monotonic() - began

    def cpus(self) -> int:
        """CPUs of the whole Ray cluster."""
        import ray

        self.start()
        return max(1, int(ray.cluster_resources().get("CPU", 1)))

    def tasks(self, work: Work, jobs: Sequence[Job]) -> list[Done]:
        """Runs each job in a Ray task; returns what the workers say, in the order of `jobs`."""
        return self._run(work.name, jobs, lambda todo: self._task_stream(work, todo))

    def stream(self, works: Sequence[AsyncWork], jobs: Sequence[Job], sizes: Sequence[int]) -> list[Done]:
        """Runs jobs through one pool of actors after the other (fetch, then score), all at once."""
        return self._run(" + ".join(work.name for work in works), jobs, lambda todo: self._actor_stream(works, todo, sizes))

    def _run(self, phase: str, jobs: Sequence[Job], launch: Callable[[Sequence[Job]], Any]) -> list[Done]:
        if not jobs:
            return []
        self.start()
        progress = Progress(phase, len(jobs))
        todo, finished = list(jobs), {}
        for _ in range(PASSES):
            failed: list[Done] = []
            for done in self._consume(launch(todo), progress):
                _raise_if_ours(done)
                if "failed" in done:
                    failed.append(done)
                    continue
                finished[done["id"]] = done
                progress.done += 1
                progress.results.append(done)
                self.watch(progress)
            todo = [job for job in todo if job["id"] not in finished]
            if not todo:
                return [finished[job["id"]] for job in jobs]
            for done in failed:
                log.warning("phase=%s job=%s failed, will be tried again: %s", phase, done["id"], done["failed"])
        last = failed[0]["failed"] if failed else "the workers were lost"
        raise TransientError(
            f"{phase}: {len(todo)} of {len(jobs)} parts failed {PASSES} times, last: {last}. "
            "What is committed is safe: mend, then repeat the command"
        )

    def _task_stream(self, work: Work, jobs: Sequence[Job]) -> Any:
        need = work.resources
        return _dataset(jobs, len(jobs)).map_batches(
            _Tasks(work, self.store, self.board),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=need.cpus,
            num_gpus=need.gpus or None,
            memory=need.memory,
        )

    def _actor_stream(self, works: Sequence[AsyncWork], jobs: Sequence[Job], sizes: Sequence[int]) -> Any:
        from ray.data import ActorPoolStrategy

        data = _dataset(jobs, len(jobs))
        for work, size in zip(works, sizes, strict=True):
            need = work.resources
            data = data.map_batches(
                _Actor,
                fn_constructor_args=(work, self.store, self.board),
                batch_size=1,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=4, max_concurrent_calls_per_actor=4),
                num_cpus=need.cpus,
                num_gpus=need.gpus or None,
                memory=need.memory,
            )
        return data

    def _consume(self, data: Any, progress: Progress) -> Iterator[Done]:
        """Yields results as they come, from a thread, so that this one can watch for stalls and show progress."""
        results: queue.Queue[Any] = queue.Queue()

        def pull() -> None:
            try:
                for row in data.iter_rows():
                    results.put(json.loads(row["line"]))
                results.put(None)
            except BaseException as err:  # noqa: BLE001 (handed to the thread that waits)
                results.put(err)

        threading.Thread(target=pull, daemon=True).start()
        last_beat = time.monotonic()
        while True:
            try:
                got = results.get(timeout=BEAT_S)
            except queue.Empty:
                got = ()
            if got is None:
                return
            if isinstance(got, BaseException):
                raise _translate(got)
            if got:
                yield got
            if time.monotonic() - last_beat >= BEAT_S:
                last_beat = time.monotonic()
                self._beat(progress)

    def _beat(self, progress: Progress) -> None:
        import ray

        seen = ray.get(self.board.read.remote())
        progress.rows = seen["rows"]
        progress.now = _youngest(seen["now"], {done["id"] for done in progress.results})
        self.watch(progress)
        limit = self.config.run.stall_s
        for part, stage, seconds in progress.now:
            if seconds > limit:
                raise TransientError(
                    f"stage {stage} made no progress for {limit:.0f} s on {part} (run.stall_s); the run was ended. "
                    "What is committed is safe: mend the stage, then repeat the command"
                )


def _youngest(now: list[tuple[str, str, float]], finished: set[str]) -> list[tuple[str, str, float]]:
    """One entry a part, the youngest: a dead worker's last words are void once its part is finished or begun anew."""
    best: dict[str, tuple[str, str, float]] = {}
    for part, stage, seconds in now:
        if part not in finished and (part not in best or seconds < best[part][2]):
            best[part] = (part, stage, seconds)
    return list(best.values())


def _init_ray(config: RunConfig) -> bool:
    """True when Ray was started here and so is ours to end."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # C++ lines that say nothing to a user
    import ray
    from ray.data import DataContext

    owns = not ray.is_initialized()
    if owns:
        local = config.ray.address == "local"
        options: dict[str, Any] = {"num_cpus": config.ray.num_cpus, "object_store_memory": config.ray.object_store_memory} if local else {}
        paths = os.pathsep.join(path for path in sys.path if path)
        try:
            ray.init(
                address=config.ray.address,
                include_dashboard=False if local else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": {"PYTHONPATH": paths}} if local else None,
                **options,
            )
        except (ConnectionError, ValueError, RuntimeError) as err:
            raise UserError(f"ray.address: cannot join a Ray cluster at {config.ray.address}: {error_text(err)}") from err
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what fails is told by us, once
    return owns


def _ship_by_value(modules: Sequence[str]) -> None:
    """A user's own modules travel with the pickles: nodes of a Ray cluster need not have their files."""
    from ray import cloudpickle

    for name in modules:
        cloudpickle.register_pickle_by_value(sys.modules[name])


def _dataset(jobs: Sequence[Job], blocks: int) -> Any:
    import ray

    return ray.data.from_items([{"line": json.dumps(job)} for job in jobs], override_num_blocks=min(blocks, 4096))


def _board_class() -> Any:
    import ray

    @ray.remote(num_cpus=0, max_concurrency=64)
    class Board:
        """Where workers say what they do, and ask for requests to a host: one for the run."""

        def __init__(self, download: dict[str, Any]) -> None:
            self.beats: dict[str, tuple[float, dict[str, Any]]] = {}
            self.budget = _host_budget(download)

        async def beat(self, worker: str, snapshot: dict[str, Any]) -> None:
            self.beats[worker] = (time.monotonic(), snapshot)

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

    return Board


def _host_budget(options: dict[str, Any]) -> Any:
    from stages.download.stage import Download

    return Download(Download.Config.model_validate(options)).budget()


class _Worker:
    """Common to tasks and actors: opens the work once a process, sends beats, turns faults into words."""

    opened: ClassVar[dict[str, Work]] = {}  # this process's, by identity: one at a time

    def __init__(self, work: Work, store: Store, board: Any) -> None:
        self.work, self.store, self.board = work, store, board
        self.identity = uuid.uuid4().hex

    def ready(self) -> Work:
        """This process's opened copy of the work."""
        if self.identity not in _Worker.opened:
            for other in _Worker.opened.values():
                getattr(other, "close", lambda: None)()
            self.work.open()
            careful.limit_memory(self.work.resources.memory + careful.SLACK)
            if hasattr(self.work, "lease_call"):
                self.work.lease_call = self._lease
            _Worker.opened = {self.identity: self.work}
            _start_beating(self.board)
        return _Worker.opened[self.identity]

    async def _lease(self, worker: str, want: dict[str, int], give_back: dict[str, int]) -> dict[str, int]:
        granted: dict[str, int] = await self.board.lease.remote(worker, want, give_back)
        return granted

    def begin(self, job: Job) -> tuple[Attempts, bool]:
        attempts = Attempts(self.store, job["id"])
        return attempts, attempts.begin() >= ATTEMPTS


class _Tasks(_Worker):
    """A function of one-line tables, for Ray tasks."""

    def __call__(self, table: Any) -> Any:
        job = json.loads(table["line"][0].as_py())
        try:
            work = self.ready()
            attempts, risky = self.begin(job)
            done = {**work(job, risky), "id": job["id"]}
            attempts.end()
        except Exception as err:  # noqa: BLE001 (every fault becomes a word to the driver, which decides)
            done = _failed(job, err)
        return _line(done)


class _Actor(_Worker):
    """The same for actors with several jobs in flight."""

    def __init__(self, work: AsyncWork, store: Store, board: Any) -> None:
        super().__init__(work, store, board)
        self.ready()

    async def __call__(self, table: Any) -> Any:
        job = json.loads(table["line"][0].as_py())
        if "failed" in job:
            yield _line(job)
            return
        try:
            attempts, risky = self.begin(job)
            done = {**job, **await self.work.run(job, risky), "id": job["id"]}  # type: ignore[attr-defined]
            attempts.end()
        except Exception as err:  # noqa: BLE001 (as above)
            done = _failed(job, err)
        yield _line(done)


def _line(done: Done) -> Any:
    import pyarrow as pa

    return pa.table({"line": [json.dumps(done)]})


def _failed(job: Job, err: Exception) -> Done:
    kinds = {ContractError: "bug", UserError: "user"}
    kind = next((kind for cls, kind in kinds.items() if isinstance(err, cls)), "machine" if machine_fault(err) else "bug")
    text = str(err) if isinstance(err, ShardmillError) else error_text(err)
    return {"id": job["id"], "failed": text, "kind": kind, "trace": traceback.format_exc() if kind == "bug" else ""}


def _raise_if_ours(done: Done) -> None:
    """Faults that another attempt cannot mend end the run; a worker's trace is shown with them."""
    if "failed" not in done or done["kind"] == "machine":
        return
    if done["kind"] == "user":
        raise UserError(done["failed"])
    raise ContractError(f"{done['id']}: {done['failed']}\n{done['trace']}")


def _translate(err: BaseException) -> BaseException:
    import ray

    if isinstance(err, ray.exceptions.RayError):
        return TransientError(f"Ray lost workers and gave up: {error_text(err)}. What is committed is safe: repeat the command")
    return err


def _start_beating(board: Any) -> None:
    """A daemon thread, one a process, that tells the board once a second what this process does."""
    if any(thread.name == "shardmill-heart" for thread in threading.enumerate()):
        return
    worker = f"{os.uname().nodename}-{os.getpid()}"

    def beat() -> None:
        while True:
            board.beat.remote(worker, HEART.snapshot())
            time.sleep(BEAT_S)

    threading.Thread(target=beat, name="shardmill-heart", daemon=True).start()
