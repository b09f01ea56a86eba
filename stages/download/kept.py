"""Fetched files that stay (`keep_in`): a folder in which each lies under its URL's hash, so that no run asks the web for it again.

A file is there whole or not at all: it is moved to its place under another name first, and the note by which it is found comes last.
Several processes, also of several machines, may use one folder.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
import socket
import uuid
from pathlib import Path
from typing import Any

from stages.download.fetch import Outcome

NOTED = ("final_url", "http_status", "content_type", "fetched_bytes", "sha256", "latency_ms")
PART = ".part"


class Kept:
    """A folder of fetched files. Its methods block; they raise OSError where the disk does."""

    def __init__(self, folder: str, engine: str) -> None:
        self.folder, self.engine = Path(folder), engine
        self.folder.mkdir(parents=True, exist_ok=True)
        self.mine = f"{socket.gethostname()}-{os.getpid()}"
        self._sweep()

    def find(self, url: str) -> Outcome | None:
        """What was kept of a URL; None where there is nothing, or where it is not as its note says."""
        note = self._note(url)
        try:
            said: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
            path = self._file(note, said["sha256"])
            if path.stat().st_size != said["fetched_bytes"]:
                return None
            return Outcome(**{name: said[name] for name in NOTED}, path=str(path))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def keep(self, url: str, outcome: Outcome) -> Outcome:
        """The outcome with its file at its place here; what another process has kept meanwhile stays, and is returned."""
        if (before := self.find(url)) is not None:
            outcome.discard()
            return before
        note = self._note(url)
        path = self._file(note, str(outcome.sha256))
        part = path.with_name(f"{path.name}.{self.mine}.{uuid.uuid4().hex}{PART}")
        try:
            shutil.move(str(outcome.path), part)
            part.replace(path)
            part.write_text(json.dumps({name: getattr(outcome, name) for name in NOTED}), encoding="utf-8")
            part.replace(note)
        finally:
            part.unlink(missing_ok=True)
        outcome.path = str(path)
        return outcome

    def forget(self, path: str) -> None:
        """Removes a file of this folder: it is not what was wanted."""
        if Path(path).parent == self.folder:
            Path(path).unlink(missing_ok=True)  # its note finds nothing then

    def _note(self, url: str) -> Path:
        digest = hashlib.sha256(f"{self.engine}\0{url}".encode(errors="surrogatepass")).hexdigest()
        return self.folder / f"{digest}.json"

    def _file(self, note: Path, sha256: str) -> Path:
        """Named by its content too, so that two who fetch at once cannot mix up theirs."""
        return note.with_name(f"{note.stem}-{sha256[:16]}")

    def _sweep(self) -> None:
        """Removes what killed processes of this machine left half done."""
        host = f"{socket.gethostname()}-"
        for part in self.folder.glob(f"*.{glob.escape(host)}*{PART}"):
            pid = part.name.rpartition(host)[2].partition(".")[0]
            if pid.isdecimal() and Path("/proc").exists() and not Path("/proc", pid).exists():
                with contextlib.suppress(OSError):
                    part.unlink()
