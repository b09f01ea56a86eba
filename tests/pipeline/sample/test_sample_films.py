"""The sample's films are the same to the byte, whatever the memory held before: shards are compared by their bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

MADE = """
import hashlib, sys
from pathlib import Path
import numpy as np
from pipeline.sample import counter, film, howto
y, x = np.mgrid[0:240, 0:320]
wave = 90 + 60 * np.sin(x / 11) * np.cos(y / 17)
scenes = [np.stack([np.roll(wave, 7 * n, 1)] * 3, -1).astype(np.uint8) for n in range(4)]
film.write(Path(sys.argv[1]), ((80 * n, counter.write(scenes[n // 30], 80 * n)) for n in range(120)), "libx264", howto.X264)
print(hashlib.sha256(Path(sys.argv[1]).read_bytes()).hexdigest())
"""


def test_what_lay_in_memory_before_does_not_show(tmp_path: Path) -> None:
    """x264's macroblock tree fails this: glibc fills memory with another byte for each value."""
    found = set()
    for fill in ("0", "1", "128"):
        environment = {**os.environ, "MALLOC_PERTURB_": fill, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, "-c", MADE, str(tmp_path / "film.mp4")]
        found.add(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)
    assert len(found) == 1
