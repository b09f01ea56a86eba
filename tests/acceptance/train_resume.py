"""Killed and resumed: the same samples and the same curve: `python tests/acceptance/train_resume.py [SEED]`.

One worker undisturbed is what all are compared with. Then: SIGKILL of all processes of one worker's training at random steps, of two
workers' (Ray's own processes included), and of two workers' that one goes on with; SIGKILL of one Ray worker alone, after which Ray begins
again from the last checkpoint; SIGTERM and Ctrl-C, which leave a checkpoint of the last step. Every step's samples must be the same in
the same places, its loss apart by no more than float32 sums of another order. Prints a table; exit code 1 where a bound is missed.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))
from pipeline.storage import Store
from stages.train import metrics
from tests.support.corpus import command, shardmill
from tests.support.training import write_config, write_shards

LOSS = 2e-5  # relative
EPOCHS = 4
Curve = list[dict[str, Any]]


def main(seed: int) -> int:
    dice = random.Random(seed)
    missed = 0
    print(f"{'what':<44}{'at steps':>14}{'exit codes':>14}{'order':>11}{'loss':>10}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = write_shards(folder / "shards", 200, per_shard=40, size=64)
        calm = finished(make(folder / "calm", shards))
        last = len(calm)
        one, two = {"workers": 1}, {"workers": 2}
        for what, first, then, ends in (
            ("SIGKILL of all, 1 worker", one, one, [kill_all] * 3),
            ("SIGKILL of all, 2 workers", two, two, [kill_all]),
            ("SIGKILL of all, 2 workers, then 1", two, one, [kill_all]),
            ("SIGKILL of one of 2 workers, Ray goes on", two, two, [kill_worker]),
            ("SIGTERM, 1 worker", one, one, [terminate]),
            ("Ctrl-C, 2 workers, then 1", two, one, [interrupt]),
        ):
            at, codes, bounds = [], [], sorted(dice.sample(range(2, last - 4), len(ends)))
            config = make(folder / what.replace(" ", ""), shards, **first)
            for end, step in zip(ends, bounds, strict=True):
                reached, code = disturbed(config, end, step)
                at.append(reached)
                codes.append(code)
            got = finished(make(config.parent, shards, **then))
            order = [line["order"] for line in calm] == [line["order"] for line in got]
            loss = max((abs(a["loss"] - b["loss"]) / a["loss"] for a, b in zip(calm, got, strict=False)), default=1.0)
            ok = order and loss <= LOSS and all(code in wanted(end) for code, end in zip(codes, ends, strict=True))
            missed += not ok
            told = "same" if order else "DIFFERENT"
            print(f"{what:<44}{at!s:>14}{codes!s:>14}{told:>11}{loss:>10.1e}{'' if ok else '  MISSED'}", flush=True)
    return int(missed > 0)


def make(folder: Path, shards: Path, **options: Any) -> Path:
    return write_config(folder, shards, epochs=EPOCHS, checkpoint={"every_steps": 3}, **options)


def curve(config: Path) -> Curve:
    return metrics.read(Store(str(config.parent / "out")))


def finished(config: Path) -> Curve:
    shardmill("train", str(config), timeout=900)
    return curve(config)


def disturbed(config: Path, end: Any, step: int) -> tuple[int, int]:
    """Trains until `step` is logged, and disturbs it then. Returns the step that was reached, and how the command ended."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    with subprocess.Popen(command("train", str(config)), start_new_session=True, **quiet) as going:
        while going.poll() is None and len(curve(config)) < step:
            time.sleep(0.005)
        reached = len(curve(config))
        if going.poll() is None:
            end(psutil.Process(going.pid))
        return reached, going.wait(900)


def kill_all(process: psutil.Process) -> None:
    """The command and everything that it started."""
    everyone = [process, *process.children(recursive=True)]
    for one in everyone:
        one.suspend()
    for one in everyone:
        one.kill()
    psutil.wait_procs(everyone[1:], timeout=30)


def kill_worker(process: psutil.Process) -> None:
    """One of the two that train."""
    workers = [one for one in process.children(recursive=True) if "TrainWorker" in " ".join(one.cmdline())]
    workers[-1].kill()


def terminate(process: psutil.Process) -> None:
    process.terminate()


def interrupt(process: psutil.Process) -> None:
    process.send_signal(signal.SIGINT)


def wanted(end: Any) -> tuple[int, ...]:
    """How a command may end; 0 where it was done before the signal came."""
    return {kill_all: (-9,), kill_worker: (0,), terminate: (3, 0), interrupt: (130, 0)}[end]


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1))
