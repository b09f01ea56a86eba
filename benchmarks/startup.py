"""From the command to the first picture, and the sample as a whole: `python benchmarks/startup.py [--rounds 3]`.

1. A short list of small pictures (nginx on loopback, which writes down when it answers) through `shardmill run`: what passes before the
   first picture is downloaded and what it consists of; what comes after. Medians of the rounds.
2. `shardmill run configs/laion_subset.yaml` into an empty root, the venv being ready: seconds of each phase, wall and CPU seconds in all,
   and what share of it, by 1, processes take to start and to end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import results
from benchmarks.measure import cost, nginx
from benchmarks.scale import FEW, picture, write_config, write_list

ROOT = Path(__file__).resolve().parents[1]
WHOLE_S, MOST = 90.0, 0.5  # of the sample; share of it that waits for processes
WAITING = ("Ray", "rows, and its worker", "the pool's workers", "end of Ray")


def lines(command: list[str]) -> Iterator[tuple[float, str]]:
    """What a command prints, each line with the Unix time at which it came, and at last its end. Raises SystemExit if it fails."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    told = []
    for line in process.stdout or ():
        told.append(line)
        yield time.time(), line
    if process.wait():
        raise SystemExit("".join(told)[-4000:])
    yield time.time(), ""


def steps(config: Path, log: Path, run: Path) -> dict[str, float]:
    """Seconds of each step of a run, in order."""
    began, ended, last = time.time(), dict[str, float](), 0.0
    for at, line in lines([sys.executable, "-m", "pipeline.cli", "run", str(config)]):
        if "INFO phase=" in line and " done " in line:
            ended[line.partition("phase=")[2].partition(" ")[0]] = at
        last = at
    report = json.loads((run / "report" / "report.json").read_text())
    took = {phase["phase"]: phase["seconds"] for phase in report["session"]}
    first = min(map(float, log.read_text().split()))
    begun = {name: at - took[name] for name, at in ended.items()}
    return {
        "Python, imports, config, input": begun["rows"] - began,
        "Ray": report["ray_start_s"],
        "rows, and its worker": took["rows"] - report["ray_start_s"],
        "dedup": begun["pool"] - ended["rows"],
        "the pool's workers": first - begun["pool"],
        "first picture": first - began,
        "download": ended["pool"] - first,
        "selection, shards, report": begun["rows"] + report["seconds"] - ended["pool"],
        "end of Ray": last - begun["rows"] - report["seconds"],
        "in all": last - began,
    }


def short(rounds: int) -> float:
    """Prints the steps; seconds of them in which processes start and end."""
    found: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        picture(work / "pictures")
        with nginx(work / "pictures", work, log := work / "answers.log") as port:
            listed = write_list(work / "short.parquet", FEW)
            for number in range(rounds):
                config = write_config(work / f"round{number}.yaml", listed, work / "runs", port)
                log.write_text("")
                found.append(steps(config, log, work / "runs" / config.stem))
    print(f"{FEW} rows, medians of {rounds} rounds, seconds (lowest to highest)")
    medians = {step: statistics.median(one[step] for one in found) for step in found[0]}
    for step, seconds in medians.items():
        values = [one[step] for one in found]
        print(f"  {step:32}{seconds:6.1f}   ({min(values):.1f} to {max(values):.1f})")
    return sum(medians[step] for step in WAITING)


def sample(waiting: float) -> None:
    """`waiting`: seconds in which processes start and end, as a short list shows them."""
    with tempfile.TemporaryDirectory() as root:
        spent = cost(
            [sys.executable, "-m", "pipeline.cli", "run", str(ROOT / "configs" / "laion_subset.yaml"), "--set", f"run.root={root}"],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        report = json.loads((Path(root) / "laion_subset" / "report" / "report.json").read_text())
    print(f"laion_subset, {report['rows_in']} rows: {spent.wall_s:.1f} s, {spent.cpu_s:.1f} CPU-s, peak {spent.peak_mb:,.0f} MB")
    for phase in report["session"]:
        print(f"  {phase['phase']:32}{phase['seconds']:6.1f}")
    share = waiting / spent.wall_s
    print(f"  of it waiting for processes: {share:.0%} (wanted: {MOST:.0%} at most)")
    results.add("start-up: laion_subset, whole run, seconds", spent.wall_s, None, WHOLE_S, spent.wall_s <= WHOLE_S)
    results.add("start-up: laion_subset, share of waiting for processes", share, None, MOST, share <= MOST)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    results.begin(parser, given)
    sample(short(given.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
