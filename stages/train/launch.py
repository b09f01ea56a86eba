"""Where training runs: one worker in this very process, several under Ray Train (the one place that knows it).

Ray starts the workers, joins them into a process group, and begins again from the last checkpoint when one is lost. Checkpoints and
metrics are ours and go straight to storage; what a person sees comes through a small actor, by which a stop gets to the workers too.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.errors import TransientError, UserError
from pipeline.storage import Store
from stages.lib.held_stderr import held_stderr
from stages.train import loop, models
from stages.train.config import Train
from stages.train.metrics import Quiet
from stages.train.stop import Signals

log = logging.getLogger("shardmill")
LOGGERS = ("shardmill", "stages")  # whose warnings come from the workers to the driver
POLL_S = 0.5
FAULT_S = 15.0  # how long workers may take to end after one of them named a fault
STOP_S = 600.0  # how long a stop may take: the step, and its checkpoint
GROUP_S = 3600.0  # how long a rank waits for the others: an evaluation is rank 0's alone
OpenSource = Callable[[Train, Any, loop.Context], loop.Source]


@dataclass(frozen=True)
class Cluster:
    """Which Ray; `address: local` starts one here. `ready` is called once it is there, and may refuse it."""

    address: str = "local"
    num_cpus: int | None = None
    object_store_memory: int = 200 << 20
    ready: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Job:
    """All that a worker needs, as it travels to it. `evaluate`, `measured`: see `loop.Context`."""

    config: Train
    open_source: OpenSource
    evaluate: Callable[[str, int], None] | None = None
    measured: str = ""


def run(job: Job, show: Quiet, cluster: Cluster | None = None) -> loop.Outcome:
    """Trains to the end; returns when it is done, or stopped by a signal after a checkpoint was written.

    Raises UserError for what can be mended, TransientError where the same command can go on, KeyboardInterrupt after Ctrl-C.
    """
    cluster = cluster or Cluster()
    config = job.config
    by_ray = config.launch == "ray" or (config.launch == "auto" and (config.workers > 1 or cluster.address != "local"))
    with Signals() as signals:
        try:
            outcome = _by_ray(job, show, cluster, signals) if by_ray else _here(job, show, signals)
        except (KeyboardInterrupt, SystemExit) as err:
            if signals.name == "SIGTERM" or isinstance(err, SystemExit):  # Ray answers SIGTERM so while it starts
                raise TransientError("train: stopped by SIGTERM before the first step; the same command goes on") from None
            raise
    if outcome.state == loop.FAILED:
        raise UserError(outcome.error)
    if outcome.state == loop.STOPPED:
        if signals.name == "SIGINT":
            raise KeyboardInterrupt
        raise TransientError(f"train: stopped by {signals.name} after step {outcome.step} of {outcome.steps}; the same command goes on")
    return outcome


def _here(job: Job, show: Quiet, signals: Signals) -> loop.Outcome:
    """One worker, this process."""

    def begin(step: int, steps: int) -> None:
        signals.begun = True
        show.begin(step, steps)

    context = loop.Context(
        device="cuda" if job.config.gpus else "cpu",
        begin=begin,
        report=show.show,
        note=show.note,
        stop=lambda: bool(signals.name),
        evaluate=job.evaluate,
        measured=job.measured,
    )
    _check_device(job.config)
    with _alone(job.config) if job.config.strategy == "fsdp" else contextlib.nullcontext():
        try:
            return loop.train(job.config, context, job.open_source)
        except RuntimeError as err:  # raised wherever this thread is, by torch's handler of a child's end
            if not str(err).startswith("DataLoader worker"):
                raise
            raise TransientError(f"train: {err}; the system's log tells whether for want of memory; the same command goes on") from err


@contextlib.contextmanager
def _alone(config: Train) -> Iterator[None]:
    """A process group of one, which FSDP wants."""
    import torch

    torch.distributed.init_process_group(_backend(config), store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def _backend(config: Train) -> str:
    return "nccl" if config.gpus else "gloo"


def _check_device(config: Train) -> None:
    import torch

    if config.gpus and not torch.cuda.is_available():
        raise UserError("train.gpus: torch sees no GPU here; install a CUDA torch (docs/install.md), or set gpus: 0")


class _Board:
    """What workers tell, and whether they are to stop; an actor of one thread on the driver's node."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        self.stopping = False

    def tell(self, what: str, value: Any) -> None:
        self.told.append((what, value))

    def take(self) -> list[tuple[str, Any]]:
        """What was told since the last time."""
        told, self.told = self.told, []
        return told

    def stop(self) -> None:
        self.stopping = True

    def stopped(self) -> bool:
        return self.stopping


@dataclass
class _Asking:
    """Asks the board whether to stop, twice a second, and never waits for the answer."""

    board: Any
    asked: Any = None
    at: float = 0.0
    answer: bool = False

    def __call__(self) -> bool:
        import ray

        if self.asked is None and time.monotonic() - self.at > POLL_S:
            self.asked, self.at = self.board.stopped.remote(), time.monotonic()
        if self.asked is not None and ray.wait([self.asked], timeout=0)[0]:
            self.answer, self.asked = self.answer or ray.get(self.asked), None
        return self.answer


def _work(given: dict[str, Any]) -> dict[str, Any]:
    """A Ray worker: one rank."""
    import ray.train
    import ray.train.torch

    job, board = given["job"], given["board"]
    here = ray.train.get_context()

    def tell(what: str, value: Any) -> None:
        board.tell.remote(what, value)

    context = loop.Context(
        rank=here.get_world_rank(),
        world=here.get_world_size(),
        device=str(ray.train.torch.get_device()) if job.config.gpus else "cpu",
        begin=lambda step, steps: tell("begin", (step, steps)),
        report=functools.partial(tell, "line"),
        note=functools.partial(tell, "note"),
        stop=_Asking(board),
        evaluate=job.evaluate,
        measured=job.measured,
    )
    told = _Told(tell)
    for name in LOGGERS:
        logging.getLogger(name).addHandler(told)
    try:
        return asdict(loop.train(job.config, context, job.open_source))
    except UserError as err:  # trying again would not help: told, not raised
        ray.get(board.tell.remote("fault", str(err)))
        return asdict(loop.Outcome(loop.FAILED, error=str(err)))
    finally:
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(told)


class _Told(logging.Handler):
    """Brings a worker's warnings (a bad sample, a damaged checkpoint) to the board: Ray keeps them from the driver."""

    def __init__(self, tell: Callable[[str, Any], None]) -> None:
        super().__init__(logging.WARNING)
        self.tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self.tell("log", (record.levelno, self.format(record)))


@dataclass
class _Fit:
    """`trainer.fit()` in a thread, so that this one can show progress and pass a stop on."""

    trainer: Any
    result: Any = None
    error: BaseException | None = None
    thread: Any = field(default=None)

    def start(self) -> None:
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.result = self.trainer.fit()
        except BaseException as err:  # noqa: BLE001 (handed to the thread that waits)
            self.error = err


def _by_ray(job: Job, show: Quiet, cluster: Cluster, signals: Signals) -> loop.Outcome:
    """Workers of Ray Train."""
    import ray

    models.build(job.config.model_copy(update={"gpus": 0}))  # what it says of a config is told here; in a worker Ray would try again
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    owns = _start(cluster, job.config)
    signals.take()
    try:
        cluster.ready()
        _check_resources(job.config)
        board = ray.remote(num_cpus=0)(_Board).remote()
        store = Store(job.config.out or "", dict(job.config.storage_options)).sub(".ray")
        store.remove("")
        fit = _Fit(_trainer(job, board, store))
        fit.start()
        fault = _follow(fit, board, show, signals)
        store.remove("")
        if fault:
            return loop.Outcome(loop.FAILED, error=fault)
        if fit.error is not None:
            raise _translated(fit.error, job.config) from fit.error
        return loop.Outcome(**fit.result.return_value)
    finally:
        if owns:
            ray.shutdown()


def _follow(fit: _Fit, board: Any, show: Quiet, signals: Signals) -> str:
    """Shows what the workers tell until they end; returns the fault that one of them named, if any."""
    import ray

    fault, fault_at, stop_at, begun = "", 0.0, 0.0, False
    while True:
        fit.thread.join(POLL_S)
        ended = not fit.thread.is_alive()
        for what, value in ray.get(board.take.remote()):
            if what == "fault":
                fault, fault_at = fault or value, fault_at or time.monotonic()
            elif what == "line":
                show.show(value)
            elif what == "note":
                show.note(value)
            elif what == "log":
                log.log(value[0], "%s", value[1])
            else:
                if begun:
                    log.warning("train: a worker was lost; training goes on from step %d", value[0])
                show.begin(*value)
                begun = signals.begun = True
        if ended or (fault and time.monotonic() - fault_at > FAULT_S):
            return fault
        if signals.name and not stop_at:
            ray.get(board.stop.remote())
            stop_at = time.monotonic()
        if stop_at and time.monotonic() - stop_at > STOP_S:
            raise TransientError(
                "train: the workers did not stop in time; they were ended, and the same command goes on from the last checkpoint"
            )


def _trainer(job: Job, board: Any, store: Store) -> Any:
    import pyarrow.fs
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    config = job.config
    need = {"CPU": config.cpus, **({"GPU": 1.0} if config.gpus else {})}
    files = None if store.local else pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(store.fs))
    return TorchTrainer(
        _work,
        train_loop_config={"job": job, "board": board},
        torch_config=TorchConfig(backend=_backend(config), timeout_s=int(GROUP_S)),
        scaling_config=ray.train.ScalingConfig(num_workers=config.workers, use_gpu=bool(config.gpus), resources_per_worker=need),
        run_config=ray.train.RunConfig(
            name=uuid.uuid4().hex[:8],
            storage_path=store.full(""),
            storage_filesystem=files,
            failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
        ),
    )


def _start(cluster: Cluster, config: Train) -> bool:
    """Starts or joins Ray; true when it is ours to end."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # C++ lines that say nothing to a user
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a Ray that is started here reports to nobody
    import ray

    for name in ("ray.train", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if ray.is_initialized():
        return False
    local = cluster.address == "local"
    options: dict[str, Any] = {}
    if local:
        asked = math.ceil(config.workers * config.cpus)
        options = {"num_cpus": max(cluster.num_cpus or os.cpu_count() or 1, asked), "object_store_memory": cluster.object_store_memory}
        options |= {"runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}}}
    try:
        with held_stderr():
            ray.init(
                address=cluster.address,
                include_dashboard=False if local else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **options,
            )
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as err:
        text = " ".join(str(err).split())[:300]
        raise UserError(
            f"ray.address: cannot join a Ray cluster at {cluster.address}: {text}; give HOST:PORT of a running head, or local"
        ) from err
    return True


def _check_resources(config: Train) -> None:
    """Ray would wait for ever for what a cluster does not have."""
    import ray

    have = ray.cluster_resources()
    for name, each, key in (("CPU", config.cpus, "cpus"), ("GPU", float(config.gpus), "gpus")):
        if config.workers * each > have.get(name, 0):
            raise UserError(
                f"train.workers: {config.workers} workers of {each:g} {name}s need more than the {have.get(name, 0):g} that Ray has; "
                f"lower workers or {key}, or add nodes"
            )


def _translated(err: BaseException, config: Train) -> BaseException:
    """Ray's word for workers that were lost too often, or raised."""
    named = [line.strip() for line in str(err).splitlines() if "Error" in line]
    text = (named[-1] if named else " ".join(str(err).split()))[:500]
    return TransientError(
        f"train: a worker failed more than {config.max_failures} times (train.max_failures), last: {text}; "
        "mend it, then repeat the command: it goes on from the last checkpoint"
    )
