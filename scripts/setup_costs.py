"""What each extra costs: `python scripts/setup_costs.py [EXTRA ...]` a fresh environment for each, its seconds and megabytes.

Each environment is made as `make setup` makes it (scripts/venv.sh, pip's cache off), in a folder of its own that is removed again.
The table of docs/install.md is this script's output.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "scripts", "pipeline", "stages")


def main(extras: list[str]) -> int:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    print("| extra | packages | seconds | MB |\n| --- | --- | --- | --- |")
    for extra in extras or ["", *declared]:
        packages, seconds, megabytes = cost(extra)
        print(f"| {extra or '(core)'} | {packages} | {seconds} | {megabytes:,} |", flush=True)
    return 0


def cost(extra: str) -> tuple[int, int, int]:
    """Packages, seconds and megabytes of an environment with the core and `extra`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for source in SOURCES:
            whole = ROOT / source
            (shutil.copytree if whole.is_dir() else shutil.copy)(whole, folder / source)
        said = subprocess.run(
            ["sh", "scripts/venv.sh", *extra.split()],
            cwd=folder,
            env={**os.environ, "PIP_NO_CACHE_DIR": "1"},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        found = re.search(r"set-up took (\d+) s; \.venv is (\d+) MB", said)
        if found is None:
            raise SystemExit(f"scripts/venv.sh did not say what it took:\n{said}")
        listed = subprocess.run([".venv/bin/pip", "list", "--format=freeze"], cwd=folder, check=True, capture_output=True, text=True).stdout
        return len(listed.splitlines()), int(found[1]), int(found[2])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
