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
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.config import RunConfig
from pipeline.errors import ContractError, TransientError, UserError
from pipeline.frame import error_text
from pipeline.nodes import check_nodes, check_room, fitting, last_words
from pipeline.stage import Resources
from pipeline.storage import Store
from pipeline.workers import BEAT_S, SAFE, Actor, AsyncWork, Done, Job, Tasks, Work, start_board
from stages.lib.held_stderr import held_stderr

log = logging.getLogger("shardmill")

REACH_S = 10.0  # how long a cluster's head may take to answer
START_S = 60.0  # how long worker processes may take to start, besides run.stall_s
# glibc's malloc in workers: what is larger than 8 MB, and free memory at the heap's end beyond 16 MB, go back to the system at once.
# Without fixed thresholds it learns to keep them (up to 32 MB each, an arena a thread), and a worker's memory grows with the run
# (tests/acceptance/memory.py); with lower ones every picture's pixels are fresh pages, 6 to 20 % more CPU (docs/performance.md).
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(8 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 20),
    "MALLOC_ARENA_MAX": "2",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}
AT_ONCE = 4  # jobs that an actor has in hand: while one waits for its last slow hosts, others fill its time
PASSES = 4  # how often failed jobs are handed out again


@dataclass
class Progress:
    """What a watcher of the run sees after each beat: jobs done, and the workers' own words."""

    phase: str
    jobs: int
    done: int = 0
    finished: set[str] = field(default_factory=set)
    rows_in: int = 0  # of the finished jobs; summed as they come, since there may be a hundred thousand
    rows_kept: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    now: list[tuple[str, str, float]] = field(default_factory=list)
    stirred: float = field(default_factory=time.monotonic)  # when last a job ended, or a stage was at work

    def ended(self, done: Done) -> None:
        self.finished.add(done["id"])
        self.done += 1
        self.rows_in += int(done.get("rows", 0))
        self.rows_kept += int(done.get("kept", 0))
        self.stirred = time.monotonic()


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
    name: str = field(default_factory=lambda: f"shardmill-{uuid.uuid4().hex}")  # of its streams
    driver_bytes: int = 0  # of the lines of JSON that went out to workers and came back

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        if self.board is not None:
            _end_streams(self.name, force=not self.owns_ray)
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
        if self.config.ray.address != "local":
            check_nodes(self.store)
        self.board = start_board(self.config.stages.get("download") or {})
        self.started_s = time.monotonic() - began

    def cpus(self) -> int:
        """CPUs of the whole Ray cluster."""
        import ray

        self.start()
        return max(1, int(ray.cluster_resources().get("CPU", 1)))

    def fitting(self, needs: Resources) -> int:
        """How many workers with these needs have room at once on all machines, see `nodes.fitting`."""
        self.start()
        return fitting(needs)

    def tasks(self, work: Work, jobs: Sequence[Job]) -> list[Done]:
        """Runs each job in a Ray task; returns what the workers say, in the order of `jobs`."""
        return self._run([work], jobs, lambda todo: self._task_stream(work, todo))

    def stream(self, works: Sequence[AsyncWork], jobs: Sequence[Job], sizes: Sequence[int]) -> list[Done]:
        """Runs jobs through one pool of actors after the other (fetch, then score), all at once."""
        return self._run(works, jobs, lambda todo: self._actor_stream(works, todo, sizes))

    def _run(self, works: Sequence[Work], jobs: Sequence[Job], launch: Callable[[Sequence[Job]], Any]) -> list[Done]:
        if not jobs:
            return []
        self.start()
        check_room(works)
        self.board.forget.remote()
        phase = " + ".join(work.name for work in works)
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
                progress.ended(done)
                self.watch(progress)
            todo = [job for job in todo if job["id"] not in finished]
            if not todo:
                return [finished[job["id"]] for job in jobs]
            for done in failed:
                log.warning("phase=%s job=%s failed, will be tried again: %s", phase, done["id"], done["failed"])
        last = failed[0]["failed"] + failed[0]["mend"] if failed else f"the workers were lost. {SAFE}"
        raise TransientError(f"{phase}: {len(todo)} of {len(jobs)} parts failed {PASSES} times, last: {last}")

    def _task_stream(self, work: Work, jobs: Sequence[Job]) -> Any:
        from ray.data import TaskPoolStrategy

        need = work.resources
        return self._dataset(jobs).map_batches(
            Tasks(work, self.store, self.board),
            compute=TaskPoolStrategy(need.concurrency),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=need.cpus,
            num_gpus=need.gpus or None,
            memory=need.memory,
        )

    def _actor_stream(self, works: Sequence[AsyncWork], jobs: Sequence[Job], sizes: Sequence[int]) -> Any:
        from ray.data import ActorPoolStrategy

        data = self._dataset(jobs)
        for work, size in zip(works, sizes, strict=True):
            need = work.resources
            at_once = min(AT_ONCE, -(-len(jobs) // size))  # so that an actor that starts first leaves the others theirs
            data = data.map_batches(
                Actor,
                fn_constructor_args=(work, self.store, self.board),
                batch_size=1,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(
                    size=min(size, len(jobs)), max_tasks_in_flight_per_actor=at_once, max_concurrent_calls_per_actor=at_once
                ),
                num_cpus=need.cpus,
                num_gpus=need.gpus or None,
                memory=need.memory,
            )
        return data

    def _dataset(self, jobs: Sequence[Job]) -> Any:
        import ray

        lines = [json.dumps(job) for job in jobs]
        self.driver_bytes += sum(map(len, lines))
        return ray.data.from_items([{"line": line} for line in lines], override_num_blocks=min(len(jobs), 4096))

    def _consume(self, data: Any, progress: Progress) -> Iterator[Done]:
        """Yields results as they come, from a thread, so that this one can watch for stalls and show progress."""
        data.set_name(self.name)
        results: queue.Queue[Any] = queue.Queue()

        def pull() -> None:
            try:
                for row in data.iter_rows():
                    self.driver_bytes += len(row["line"])
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

        try:
            seen = ray.get(self.board.read.remote())
        except ray.exceptions.RayError as err:
            raise _translate(err) from err
        progress.rows = seen["rows"]
        progress.now = _youngest(seen["now"], progress.finished)
        self.watch(progress)
        limit = self.config.run.stall_s
        for part, stage, seconds in progress.now:
            if seconds > limit:
                raise TransientError(
                    f"stage {stage} made no progress for {limit:.0f} s on {part} (run.stall_s); the run was ended. "
                    "What is committed is safe: mend the stage, then repeat the command"
                )
        if progress.now:
            progress.stirred = time.monotonic()
        if time.monotonic() - progress.stirred > START_S + limit:
            raise TransientError(
                f"{progress.phase}: no stage was at work for run.stall_s + {START_S:.0f} s; the run was ended. Its workers cannot start or "
                "wait for CPUs, GPUs or memory that others hold. What is committed is safe: make room, then repeat the command"
            )


def _youngest(now: list[tuple[str, str, float]], finished: set[str]) -> list[tuple[str, str, float]]:
    """One entry a part, the youngest: a dead worker's last words are void once its part is finished or begun anew."""
    best: dict[str, tuple[str, str, float]] = {}
    for part, stage, seconds in now:
        if part not in finished and (part not in best or seconds < best[part][2]):
            best[part] = (part, stage, seconds)
    return list(best.values())


def _end_streams(name: str, force: bool) -> None:
    """Ends Ray Data's threads that still hand out work: they would go on, and start another Ray for themselves when this one is gone.

    `force`: kills what they have begun, where this Ray goes on; one that is ended here ends it by itself, without a word.
    """
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

    for thread in threading.enumerate():
        if isinstance(thread, StreamingExecutor) and name in thread.name:
            thread.shutdown(force=force)


def _init_ray(config: RunConfig) -> bool:
    """True when Ray was started here and so is ours to end."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # C++ lines that say nothing to a user
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # no Ray but the one that is started here
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a Ray that is started here reports to nobody
    logging.getLogger("ray").setLevel(logging.ERROR)
    import ray
    from ray.data import DataContext

    owns = not ray.is_initialized()
    if owns:
        local = config.ray.address == "local"
        options: dict[str, Any] = {"num_cpus": config.ray.num_cpus, "object_store_memory": config.ray.object_store_memory} if local else {}
        environment = dict(MALLOC)
        if local:
            environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        if not local:
            _check_reachable(config.ray.address)
        try:
            with held_stderr():
                ray.init(
                    address=config.ray.address,
                    include_dashboard=False if local else None,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    runtime_env={"env_vars": environment},
                    **options,
                )
        except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as err:
            raise _cannot_join(config.ray.address, err) from err
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what fails is told by us, once
    return owns


def _check_reachable(address: str) -> None:
    """Raises UserError where nothing listens at a cluster's address; Ray itself would try for minutes."""
    import socket

    from ray._private.services import canonicalize_bootstrap_address

    found = address
    try:
        found = str(canonicalize_bootstrap_address(address))  # of auto: RAY_ADDRESS, or the Ray of this machine
        host, _, port = found.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()
    except (OSError, ValueError) as err:
        raise _cannot_join(found, err) from err


def _cannot_join(address: str, err: BaseException) -> UserError:
    said = "".join(getattr(err, "__notes__", [])).strip().rpartition("\n")[2].partition("] ")[2]
    return UserError(
        f"ray.address: cannot join a Ray cluster at {address}: {error_text(err)}{said and f' ({said})'}; "
        "give HOST:PORT of a running head (and its token, see docs/guide/cluster.md), or local to work here"
    )


def _ship_by_value(modules: Sequence[str]) -> None:
    """A user's own modules travel with the pickles: nodes of a Ray cluster need not have their files."""
    from ray import cloudpickle

    for name in modules:
        cloudpickle.register_pickle_by_value(sys.modules[name])


def _raise_if_ours(done: Done) -> None:
    """Faults that another attempt cannot mend end the run; a worker's trace is shown with them."""
    if "failed" not in done or done["kind"] == "machine":
        return
    if done["kind"] == "user":
        raise UserError(done["failed"])
    raise ContractError(f"{done['id']}: {done['failed']}\n{done['trace']}")


def _translate(err: BaseException) -> BaseException:
    import ray

    if not isinstance(err, ray.exceptions.RayError):
        return err
    if isinstance(err, ray.exceptions.OutOfMemoryError):
        return TransientError(
            "the machine's memory was nearly full, of whatever program, and Ray killed workers again and again. What is committed is safe: "
            "free memory, or let fewer workers work at once (ray.num_cpus), then repeat the command"
        )
    words = last_words(err).partition(". ")[0].rstrip(".")
    return TransientError(f"Ray lost workers and gave up: {words}. What is committed is safe: repeat the command")
