"""Bodies on disk: files of this process, gone when they are given back; those of killed processes go when the next one begins."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import itertools
import os
import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO


class Sink:
    """A file that a body is written to. `append` takes pieces as a list would."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: BinaryIO | None = None
        self.restart()

    def restart(self) -> None:
        """Forgets what was written: a request is made once more."""
        if self.file is not None:
            self.file.close()
        self.file, self.size, self.hash = self.path.open("wb"), 0, hashlib.sha256()

    def append(self, data: bytes, keep: bool = True) -> None:
        """Writes, hashes and counts; with `keep` false, only the latter."""
        if keep and self.file is not None:
            self.file.write(data)
        self.hash.update(data)
        self.size += len(data)

    def finish(self) -> None:
        """The file is whole."""
        if self.file is not None:
            self.file.close()
            self.file = None

    def discard(self) -> None:
        """Removes it, also where the disk is full and what was written last cannot be."""
        with contextlib.suppress(OSError):
            self.finish()
        self.path.unlink(missing_ok=True)


class Spool:
    """This process's folder of bodies, below the system's folder for temporary files (TMPDIR)."""

    def __init__(self) -> None:
        root = Path(tempfile.gettempdir(), f"shardmill-bodies-{getpass.getuser()}")
        root.mkdir(mode=0o700, exist_ok=True)
        sweep(root)
        self.folder = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=root))
        self.numbers = itertools.count()

    def new(self) -> Sink:
        return Sink(self.folder / f"{next(self.numbers):08d}")

    def give_back(self, path: str) -> None:
        """Removes a file of this spool; what lies elsewhere is another's."""
        if Path(path).parent == self.folder:
            Path(path).unlink(missing_ok=True)

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def sweep(root: Path) -> None:
    """Removes folders of processes that are no more."""
    for folder in root.iterdir():
        pid = folder.name.partition("-")[0]
        if pid.isdecimal() and not Path("/proc", pid).exists() and Path("/proc").exists():
            shutil.rmtree(folder, ignore_errors=True)
