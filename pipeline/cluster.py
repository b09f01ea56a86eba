"""`shardmill submit`: a config as a job of a Ray cluster, with shardmill itself, the config and the user's own stages shipped.

What is shipped is code; the packages that shardmill needs must be on every node, which the run checks before it works.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shlex
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline.catalog import BUILT_IN
from pipeline.config import RunConfig, load
from pipeline.errors import TransientError, UserError
from pipeline.frame import error_text
from pipeline.layout import open_run
from pipeline.runs import find

JOBS_PORT = 8265
START_S = 60.0  # how long a cluster may refuse a job
END_S = 15.0  # how long a stopped job may take to end


def submit(config: str | Path, overrides: list[str], address: str | None = None) -> bool:
    """Submits, prints the log as it comes, and returns whether the run was finished. Ctrl-C stops the job.

    `address`: the cluster's job server, `http://HEAD:8265`; without it, port 8265 of the config's `ray.address`.
    Raises UserError for a config that cannot run, TransientError when no job server answers.
    """
    source = find(config)
    loaded = load(source, overrides)
    open_run(loaded, str(source))
    _check_shared(loaded)
    client = _client(address or _jobs_address(loaded.ray.address))
    with tempfile.TemporaryDirectory(prefix="shardmill-submit-") as name:
        _fill(Path(name), source, [name for name in loaded.stages if name not in BUILT_IN])
        needs = {"working_dir": name, "py_modules": list(map(str, packages())), "excludes": ["__pycache__"]}
        job = _submit(client, entrypoint=entrypoint(source, overrides), runtime_env=needs, metadata={"run": loaded.run.name})
    print(f"job {job}; stop it with Ctrl-C here, or: ray job stop {job}", flush=True)
    return _follow(client, job)


def _check_shared(config: RunConfig) -> None:
    """Refuses what only this machine has. A folder that all nodes share is written as file:///mnt/…"""
    given = [config.input.path] if isinstance(config.input.path, str) else config.input.path
    for key, path in [("run.root", config.run.root), *(("input.path", path) for path in given)]:
        if "://" not in path or path.startswith("sample://"):
            raise UserError(
                f"{key}: {path} lies on this machine; a cluster needs what all nodes reach, as s3://bucket/… or, for a shared folder, file:///…"
            )


def packages() -> list[Path]:
    """The folders of our own two packages, as they are imported here."""
    import pipeline
    import stages

    return [Path(str(package.__file__)).parent for package in (pipeline, stages)]


def entrypoint(source: Path, overrides: list[str]) -> str:
    """The command that the cluster's head runs; the last override makes it join the cluster that it is on."""
    words = ["python", "-m", "pipeline.cli", "run", source.name]
    for override in [*overrides, "ray.address=auto"]:
        words += ["--set", override]
    return shlex.join(words)


def _fill(folder: Path, source: Path, own: list[str]) -> None:
    """The job's working folder: the config, and the user's own stages, a module's file or a package's whole folder."""
    import sys

    from pipeline.catalog import stage_class

    shutil.copyfile(source, folder / source.name)
    for name in own:
        stage_class(name)
        file = Path(str(sys.modules[name.partition(":")[0].partition(".")[0]].__file__))
        if file.name == "__init__.py":
            shutil.copytree(file.parent, folder / file.parent.name, dirs_exist_ok=True)
        else:
            shutil.copyfile(file, folder / file.name)


def _jobs_address(ray_address: str) -> str:
    if ray_address in ("local", "auto"):
        return f"http://127.0.0.1:{JOBS_PORT}"
    return f"http://{ray_address.removeprefix('ray://').partition(':')[0]}:{JOBS_PORT}"


def _client(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as err:
        raise TransientError(
            f"{address}: no Ray job server answers: {error_text(err)}; it needs ray[default] on the head, and its port"
        ) from err


def _submit(client: Any, **job: Any) -> str:
    """The job's id. A cluster that has just started takes no jobs for some seconds, so that it is asked again."""
    for name in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.WARNING)  # a line for each package that is sent
    until = time.monotonic() + START_S
    while True:
        try:
            return str(client.submit_job(**job))
        except RuntimeError as err:
            if time.monotonic() > until:
                raise TransientError(f"the cluster takes no job: {error_text(err)}; repeat the command") from err
            time.sleep(1)


def _follow(client: Any, job: str) -> bool:
    async def tail() -> None:
        async for lines in client.tail_job_logs(job):
            print(lines, end="", flush=True)

    try:
        with contextlib.suppress(RuntimeError):  # the log broke off: the status says why
            asyncio.run(tail())
    except KeyboardInterrupt:
        client.stop_job(job)
        print(f"\njob {job}: {_ended(client, job)}", flush=True)
        raise
    status = _ended(client, job)
    print(f"job {job}: {status}", flush=True)
    if status == "running":
        raise TransientError(f"job {job} goes on, but its log broke off; see: ray job logs --follow {job}")
    return status == "succeeded"


def _ended(client: Any, job: str) -> str:
    """The job's status, once it has ended or END_S have passed."""
    until = time.monotonic() + END_S
    while not (status := client.get_job_status(job)).is_terminal() and time.monotonic() < until:
        time.sleep(0.2)
    return str(status.value).lower()
