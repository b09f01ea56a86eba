"""Ten kills at random moments, then the same bytes: `python tests/acceptance/kill.py [ROWS] [SEED]`, or `… kill.py videos [SEED]`.

SIGKILL hits the driver or a Ray worker in turn while runs of one corpus (of pictures, or the embedded sample of videos) go on; the run is
repeated until it ends. Its tars, Parquet, manifest, sizes.json and statistics must equal an undisturbed run's. Prints a line a kill; exit
code 1 where bytes differ.
Nodes that leave: tests/acceptance/cluster.py.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import yaml

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.support.corpus import command, fates, outputs, serve_pictures, shardmill, write_config
from tests.support.server import Server

KILLS = 10
RUN_S = 1800  # that a run may take on a machine with other work
MOST_BETWEEN = 25  # files committed between two kills; a run of 400 rows commits about 150


def main(seed: int, made: Callable[[Path], Path]) -> int:
    """`made` writes the config into a new folder and returns its path; its run is `FOLDER/runs/test`."""
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        calm = folder / "calm" / "runs" / "test"
        shardmill("run", str(made(folder / "calm")), timeout=RUN_S)
        print(f"undisturbed: {fates(calm)}, {len(outputs(calm))} files")
        config = made(folder / "killed")
        kills = 0
        while kills < KILLS:
            kills += _disturbed(config, dice, KILLS - kills)
            if kills < KILLS and _finished(config):
                (config.parent / "runs").rename(folder / f"finished-{kills}")
        shardmill("run", str(config), timeout=RUN_S)
        return _compare("after ten kills", outputs(config.parent / "runs" / "test"), outputs(calm))


def pictures(rows: int, seed: int) -> int:
    with tempfile.TemporaryDirectory() as name, Server() as server:
        listed = serve_pictures(server, Path(name), rows)

        def made(folder: Path) -> Path:
            folder.mkdir()
            return write_config(folder / "test.yaml", server, listed, run__part_rows=20)

        return main(seed, made)


def videos(seed: int) -> int:
    raw = yaml.safe_load((Path(__file__).parents[2] / "configs" / "howto100m_subset.yaml").read_text())

    def made(folder: Path) -> Path:
        folder.mkdir()
        changed = {**raw, "run": {**raw["run"], "name": "test", "root": str(folder / "runs"), "part_rows": 1}}
        (folder / "test.yaml").write_text(yaml.safe_dump(changed, sort_keys=False))
        return folder / "test.yaml"

    return main(seed, made)


def _finished(config: Path) -> bool:
    return (config.parent / "runs" / "test" / "report" / "report.json").exists()


def _disturbed(config: Path, dice: random.Random, most: int) -> int:
    """One go at the run; kills workers, and in the end the driver. Returns the number of kills.

    A moment is a random number of files more than are committed now, and a random part of a second: so kills hit all phases
    of a run, and not Ray's start.
    """
    kills = 0
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command("run", str(config)), start_new_session=True, **quiet) as going:
        while kills < most:
            wanted = _committed(config) + dice.randint(1, MOST_BETWEEN)
            while going.poll() is None and _committed(config) < wanted:
                time.sleep(0.02)
            time.sleep(dice.uniform(0, 0.3))
            if going.poll() is not None:
                break
            workers = _workers(going.pid)
            if workers and dice.random() < 0.6:
                victim, doing = dice.choice(workers)
                print(f"  {_committed(config)} files committed: SIGKILL for the worker {doing}", flush=True)
                victim.kill()
                kills += 1
            else:
                print(f"  {_committed(config)} files committed: SIGKILL for the driver", flush=True)
                os.killpg(going.pid, signal.SIGKILL)
                kills += 1
                break
        going.wait(RUN_S)
    return kills


def _workers(driver: int) -> list[tuple[psutil.Process, str]]:
    """Processes that work on parts now, with what Ray calls their work; Ray's own helpers are none."""
    out = []
    for process in psutil.Process(driver).children(recursive=True):
        try:
            doing = " ".join(process.cmdline()).strip()
        except psutil.Error:
            continue
        if doing.startswith("ray::Map"):
            out.append((process, doing))
    return out


def _committed(config: Path) -> int:
    """Counted while files come and go."""
    return sum(name.endswith((".parquet", ".arrow", ".tar")) for _, _, names in os.walk(config.parent / "runs") for name in names)


def _compare(what: str, got: dict[str, str], wanted: dict[str, str]) -> int:
    differ = sorted(name for name in {*got, *wanted} if got.get(name) != wanted.get(name))
    print(f"{what}: {len(wanted)} files, {len(differ)} differ {json.dumps(differ[:5]) if differ else ''}")
    return int(bool(differ))


if __name__ == "__main__":
    given = sys.argv[1:]
    if given[:1] == ["videos"]:
        sys.exit(videos(int(given[1]) if len(given) > 1 else 1))
    sys.exit(pictures(int(given[0]) if given else 400, int(given[1]) if len(given) > 1 else 1))
